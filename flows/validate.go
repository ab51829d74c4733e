package flows

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/metrics"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/volume"
)

// validator measures the model on held-out scans, patch by patch on a grid without overlap (but where tiles are flush
// with the far end), with the raw and the EMA weights, next to the trilinear baseline. It changes nothing that training
// depends on: order, state and randomness stay as they are.
type validator struct {
	session *vqgan.Session
	model   vqgan.Config
	read    read.Options
	held    []*volume.Scan
	patch   [3]int
	limit   int // patches of a pass; 0: all
	whole   int // scans reconstructed whole
	ema     bool
	workers int

	setAside func(read.Bad) error
	status   func(string)
	alive    func() // called now and then
	scratch  *batch.Scratch
	baseline *metrics.Result // of the trilinear baseline, measured in the first pass

	scans  []metrics.ScanResult // of the newest validation: the EMA weights', where there are any
	counts []int64              // how often it used each code, of one codebook after the other

	target, recon []float32
	codes         []int32
}

// newValidator returns a validator, or nil where no scan is held out.
func (j *Job) newValidator(s *vqgan.Session, d *data, o validateOptions) *validator {
	if len(d.held) == 0 {
		return nil
	}
	r := j.reading()
	n := o.patch[0] * o.patch[1] * o.patch[2]
	m := j.multiple()
	return &validator{session: s, model: j.model, read: *r, held: d.held, patch: o.patch, limit: o.limit, whole: o.whole, ema: o.ema,
		workers: o.workers, setAside: o.setAside, status: o.status, alive: o.alive, scratch: batch.NewScratch(o.workers),
		target: make([]float32, n), recon: make([]float32, n), codes: make([]int32, n/(m[0]*m[1]*m[2])*j.model.Depth())}
}

type validateOptions struct {
	patch    [3]int
	limit    int
	whole    int
	ema      bool
	workers  int
	setAside func(read.Bad) error
	status   func(string) // told how far a validation is
	alive    func()       // called at each patch
}

// pass is one measurement of a set of weights.
type pass struct {
	ema   bool
	meter metrics.Meter
	usage *metrics.Usage
}

// measure makes one validation. The keys are those of metrics.jsonl: val/… for the raw weights, val/ema_… for their
// running mean. It also returns the picture of the first scan's middle. A scan that can't be read is held out no more, and
// what was measured before it is measured anew: values and baseline are always of the same scans. There are none where no
// scan is left.
func (v *validator) measure(ctx context.Context) (map[string]float64, *picture, error) {
	if len(v.held) == 0 {
		return nil, nil, nil
	}
	passes := []*pass{v.newPass(false)}
	if v.ema {
		passes = append(passes, v.newPass(true))
	}
	var base *metrics.Meter
	if v.baseline == nil {
		base = &metrics.Meter{Window: v.read.WindowHU, Workers: v.workers}
	}
	var shown *picture
	patches, scans, due := 0, 0, 0
	for i, scan := range v.held {
		if due += v.share(i); v.limit > 0 && due == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, nil, context.Cause(ctx)
		}
		vol, err := v.load(ctx, scan)
		if err != nil {
			if ctx.Err() != nil {
				return nil, nil, context.Cause(ctx)
			}
			if err := v.setAside(read.Bad{Scan: scan.ID, Path: scan.Path, Reason: err.Error()}); err != nil {
				return nil, nil, err
			}
			v.held, v.baseline = slices.Concat(v.held[:i], v.held[i+1:]), nil
			return v.measure(ctx)
		}
		var pic *picture
		if shown == nil {
			if pic, err = newPicture(vol); err != nil {
				vol.Release()
				return nil, nil, err
			}
			shown = pic
		}
		v.status(fmt.Sprintf("validating %d/%d", i+1, len(v.held)))
		n, err := v.scan(ctx, vol, due, passes, base, pic)
		vol.Release()
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", scan.ID, err)
		}
		patches += n
		scans++
		due = 0
	}
	if base != nil {
		r := base.Result()
		v.baseline = &r
	}
	values, err := v.values(passes, scans, patches)
	if err == nil {
		err = v.wholes(ctx, values)
	}
	if err != nil {
		return nil, nil, err
	}
	return values, shown, nil
}

func (v *validator) newPass(ema bool) *pass {
	return &pass{ema: ema, usage: metrics.NewUsage(v.model.Codes, v.model.Depth()),
		meter: metrics.Meter{Window: v.read.WindowHU, Workers: v.workers, Fine: true}}
}

// values are what passes found, by their keys. A reconstruction that isn't finite is an error: no checkpoint is to keep such weights.
func (v *validator) values(passes []*pass, scans, patches int) (map[string]float64, error) {
	values := map[string]float64{
		"val/psnr_trilinear": v.baseline.PSNR,
		"val/ssim_trilinear": v.baseline.SSIM,
		"val/psnr_window_hu": v.read.WindowHU[1] - v.read.WindowHU[0],
		"val/scans":          float64(scans),
		"val/patches":        float64(patches),
	}
	for _, p := range passes {
		prefix := "val/"
		if p.ema {
			prefix = "val/ema_"
		}
		r := p.meter.Result()
		v.scans, v.counts = r.Scans, p.usage.Counts()
		if l1 := r.L1; patches > 0 && !p.ema && (math.IsNaN(l1) || math.IsInf(l1, 0)) {
			return nil, &vqgan.NonFiniteError{What: "the reconstruction"}
		}
		for name, x := range map[string]float64{
			"recon_loss": r.L1, "psnr": r.PSNR, "psnr_mean": r.PSNRMean, "psnr_body": r.PSNRBody, "ssim": r.SSIM, "mae_hu": r.MAEHU,
			"hfen": r.HFEN, "hf_ratio": r.HFRatio,
			"perplexity": p.usage.Perplexity(), "codebook_usage": p.usage.Share(),
		} {
			if !math.IsNaN(x) {
				values[prefix+name] = x
			}
		}
	}
	return values, nil
}

// load reads a scan. A read that doesn't come back once ctx has ended, as from a server that is away, is left behind.
func (v *validator) load(ctx context.Context, scan *volume.Scan) (*volume.Volume, error) {
	type result struct {
		vol      *volume.Volume
		err      error
		panicked any
	}
	came := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			r.panicked = recover()
			came <- r
		}()
		r.vol, r.err = read.Load(ctx, scan, 0, v.read, func() {})
	}()
	var late <-chan time.Time
	for over := ctx.Done(); ; {
		select {
		case r := <-came:
			if r.panicked != nil {
				panic(r.panicked)
			}
			return r.vol, r.err
		case <-over:
			over, late = nil, time.After(leaveAfter)
		case <-late:
			return nil, ctx.Err()
		}
	}
}

// share is how many of the limit's patches fall to the i-th scan, the first one's above all. What falls to a scan that
// can't be read goes to the next.
func (v *validator) share(i int) int {
	n := len(v.held)
	until := func(i int) int { return (i*v.limit + n - 1) / n }
	return until(i+1) - until(i)
}

// scan measures one scan and returns the number of patches measured.
func (v *validator) scan(ctx context.Context, vol *volume.Volume, limit int, passes []*pass, base *metrics.Meter, pic *picture) (int, error) {
	grid, err := tile.NewGrid(vol.Dims, v.patch, v.patch, v.model.Downsample)
	if err != nil {
		return 0, err
	}
	measured := spread(grid.Len(), limit)
	for _, p := range passes {
		p.meter.BeginScan(vol.Scan.ID)
	}
	if base != nil {
		base.BeginScan(vol.Scan.ID)
	}
	for t := range grid.Len() {
		if err := ctx.Err(); err != nil {
			return 0, context.Cause(ctx)
		}
		origin := grid.Tile(t)
		measure, show := slices.Contains(measured, t), pic != nil && pic.crosses(origin, v.patch)
		if !measure && !show {
			continue
		}
		patch := &volume.Patch{Volume: vol, Tag: volume.Tag{Scan: vol.Scan.ID, Tile: t, Tiles: grid.Len(), Origin: origin, Size: v.patch}}
		if err := batch.Cut(v.target, patch, v.scratch); err != nil {
			return 0, err
		}
		v.alive()
		inside := inside(origin, v.patch, vol.Dims)
		orig := crop(v.target, v.patch, inside)
		for i, p := range passes {
			last := i == len(passes)-1
			if !measure && !last {
				continue
			}
			if err := v.session.Reconstruct(v.recon, v.target, 1, p.ema, v.codes); err != nil {
				return 0, err
			}
			if measure {
				if err := p.meter.Add(orig, crop(v.recon, v.patch, inside), inside); err != nil {
					return 0, err
				}
				if err := p.usage.Add(v.codes); err != nil {
					return 0, err
				}
			}
			if show && last {
				pic.paste(origin, v.patch, v.recon)
			}
		}
		if measure && base != nil {
			if err := metrics.Trilinear(v.recon, v.target, v.patch, v.model.Downsample); err != nil {
				return 0, err
			}
			if err := base.Add(orig, crop(v.recon, v.patch, inside), inside); err != nil {
				return 0, err
			}
		}
	}
	return len(measured), nil
}

// spread chooses limit of n tiles, evenly; all where limit is 0 or more than n.
func spread(n, limit int) []int {
	if limit == 0 || limit > n {
		limit = n
	}
	tiles := make([]int, limit)
	for i := range tiles {
		tiles[i] = (2*i + 1) * n / (2 * limit)
	}
	return tiles
}

// inside is the part of a patch that lies in its volume; the rest repeats the edge and isn't measured.
func inside(origin, patch, dims [3]int) [3]int {
	for a := range patch {
		patch[a] = min(patch[a], dims[a]-origin[a])
	}
	return patch
}

// crop is the low corner, of size part, of a block of the given size.
func crop(block []float32, size, part [3]int) []float32 {
	if part == size {
		return block
	}
	out := make([]float32, 0, part[0]*part[1]*part[2])
	for z := range part[2] {
		for y := range part[1] {
			out = append(out, block[(z*size[1]+y)*size[0]:][:part[0]]...)
		}
	}
	return out
}
