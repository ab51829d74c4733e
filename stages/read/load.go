package read

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/volume"
)

// chunk is the voxels that are converted at a time. They and their bytes stay in the processor's cache.
const chunk = 16 << 10

// buffers is the memory for reading one file beside its samples.
const buffers = 4 << 20

// Cost is the most bytes of memory that Load holds for a scan, its result included. A scan that is in the cache costs
// buffers only.
func Cost(scan *volume.Scan, o Options) int64 {
	cost := buffers + 2*scan.Voxels()
	if o.Cache == "" && !o.resample() {
		return cost
	}
	r, err := nifti.Open(scan.Path, o.limits())
	if err != nil {
		return cost // Load will say what is wrong
	}
	defer func() { _ = r.Close() }()
	p, err := newPlan(r.Header, &o)
	if err != nil {
		return cost
	}
	if o.Cache != "" && cached(scan, p, &o) {
		return buffers
	}
	if o.resample() {
		cost += newResampling(p, &o).bytes()
	}
	return cost
}

// Load reads a scan's voxels: the whole file is read and verified (checksum, sizes, and that it is the file that List
// saw) before the volume is given. free gives back what was reserved for it; it runs once, when the volume is released
// or before Load returns an error. Errors name the scan's path.
//
// A failure that may pass (a network folder that is away for a moment) isn't the scan's: it is read again, the volume warns of it.
//
// With a cache, the copy is verified whole, by its checksum, each time that it is opened, and made anew if it isn't
// sound or isn't of this file. A cache that can't be written is a warning of the volume.
func Load(ctx context.Context, scan *volume.Scan, epoch int, o Options, free func()) (*volume.Volume, error) {
	v := &volume.Volume{Scan: scan, Epoch: epoch, Dims: scan.Dims, Window: o.WindowHU}
	samples, err := load(ctx, v, &o)
	var tries tries
	for tries.again(ctx, err) {
		failed := err
		if samples, err = load(ctx, v, &o); err == nil {
			v.Warnings = append(v.Warnings, readAgain(failed))
		}
	}
	if err != nil {
		if free != nil {
			free()
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%s: %w", scan.Path, err)
	}
	return v.Own(samples, free), nil
}

// Dry gives the volume of a scan without its samples.
func Dry(scan *volume.Scan, epoch int, o Options) *volume.Volume {
	v := &volume.Volume{Scan: scan, Epoch: epoch, Dims: scan.Dims, Window: o.WindowHU, Slope: 1}
	return v.Own(nil, nil)
}

// open opens a scan's file before its voxels, and sees that it is the one that List saw, or one of the same content.
func open(scan *volume.Scan, o *Options) (*nifti.Reader, *plan, error) {
	r, err := nifti.Open(scan.Path, o.limits())
	if err != nil {
		return nil, nil, err
	}
	p, err := newPlan(r.Header, o)
	switch {
	case digest(r.Header) != scan.Digest && (scan.Content == "" || r.Content() != scan.Content):
		err = errors.New("the file has changed since the run began: another header, size or time of modification (cp -p and rsync -t keep the time)")
	case err == nil && p.dims != scan.Dims:
		err = fmt.Errorf("dims are %v, but the run's list of scans has %v (was frame, channel_dim or spacing changed?)", p.dims, scan.Dims)
	}
	if err != nil {
		return nil, nil, errors.Join(err, r.Close())
	}
	return r, p, nil
}

func load(ctx context.Context, v *volume.Volume, o *Options) (samples volume.Samples, err error) {
	r, p, err := open(v.Scan, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	var c *cache
	if o.Cache != "" {
		c = newCache(v.Scan, p, o)
		if samples, err := c.open(ctx, v); err == nil {
			return samples, nil
		} else if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	l := newLoader(r, p, o)
	data := make([]int16, v.Scan.Voxels())
	if err := l.whole(ctx, data); err != nil {
		return nil, err
	}
	v.Geometry, v.Slope, v.Inter = p.geometry, l.slope, l.inter
	v.Warnings = append(p.warnings, l.warnings()...)
	if c != nil {
		if err := c.write(ctx, v, data); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			v.Warnings = append(v.Warnings, fmt.Sprintf("cache: %v; the scan is used without it", err))
		}
	}
	return &volume.Memory{Data: data, Dims: p.dims}, nil
}

// loader turns one file's voxels into int16 samples, in the file's order.
type loader struct {
	r    *nifti.Reader
	h    *nifti.Header
	p    *plan
	o    *Options
	left int64 // voxels of the image that haven't been read

	slope, inter float64 // of samples
	low, high    float64 // of the intensities, HU; of raw samples, until low shows that they are CT
	bad          int64   // voxels that were NaN or Inf
	end          []string

	q   quantiser
	buf []byte
	hu  []float64
	tmp []int16
}

func newLoader(r *nifti.Reader, p *plan, o *Options) *loader {
	l := &loader{r: r, h: r.Header, p: p, o: o, left: p.grid.Voxels(), low: math.Inf(1), high: math.Inf(-1)}
	n := min(chunk, l.left)
	l.buf, l.tmp = make([]byte, n*int64(l.h.Datatype.Size())), make([]int16, n)
	if p.raw {
		l.slope, l.inter = l.h.Scaling()
		l.inter += l.slope * l.h.Offset16()
		return l
	}
	l.q, l.hu = newQuantiser(o.WindowHU), make([]float64, n)
	l.slope, l.inter = l.q.step, l.q.centre
	return l
}

// whole reads the image into data, then the rest of the file for its checksum.
func (l *loader) whole(ctx context.Context, data []int16) error {
	g := &l.p.geometry
	if !g.Resample {
		if err := l.block(ctx, newPlacer(data, l.p.grid.Dims, g.Axes, g.Flip), l.left); err != nil {
			return err
		}
		return l.finish(ctx)
	}
	r := newResampling(l.p, l.o)
	put := newPlacer(data, r.put, g.Axes, g.Flip)
	emit := func(z int, samples []int16) error {
		put.place(int64(z)*int64(len(samples)), samples)
		return nil
	}
	for l.left > 0 {
		if err := l.resampled(ctx, r, emit); err != nil {
			return err
		}
	}
	return l.finish(ctx)
}

// finish reads what is left of the file, and verifies it.
func (l *loader) finish(ctx context.Context) error {
	err := l.each(ctx, l.left, func(_ int64, n int, b []byte) error { // what resampling had no need of
		l.intensities(l.hu[:n], b)
		return nil
	})
	if err == nil {
		l.end, err = l.r.Finish()
	}
	return err
}

// each reads the next voxels of the image in chunks and hands their bytes to use, with the voxel at which each begins, from 0.
func (l *loader) each(ctx context.Context, voxels int64, use func(at int64, n int, b []byte) error) error {
	size := l.h.Datatype.Size()
	if l.left == l.p.grid.Voxels() {
		if err := l.r.SkipTo(l.p.grid.Skip); err != nil {
			return err
		}
	}
	for at := int64(0); at < voxels; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := int(min(chunk, voxels-at))
		if _, err := l.r.Read(l.buf[:n*size]); err != nil {
			return err
		}
		l.left -= int64(n)
		if err := use(at, n, l.buf[:n*size]); err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}

// block reads the next voxels of the image and puts them in their places, from put's first: raw samples as they are, others
// clipped to the window and rounded to the steps that span it.
func (l *loader) block(ctx context.Context, put *placer, voxels int64) error {
	return l.each(ctx, voxels, func(at int64, n int, b []byte) error {
		dst := l.tmp[:n]
		if !l.p.raw {
			l.intensities(l.hu[:n], b)
			for i, x := range l.hu[:n] {
				dst[i] = l.q.sample(x)
			}
			put.place(at, dst)
			return nil
		}
		if put.straight {
			dst = put.data[at : at+int64(n)]
		}
		l.h.Int16(dst, b)
		if l.low >= -500 { // else it is CT, and its range doesn't matter
			l.extend(dst)
		}
		if !put.straight {
			put.place(at, dst)
		}
		return nil
	})
}

// extend takes samples into the range of intensities.
func (l *loader) extend(samples []int16) {
	lo, hi := slices.Min(samples), slices.Max(samples)
	a, b := l.slope*float64(lo)+l.inter, l.slope*float64(hi)+l.inter
	l.low, l.high = min(l.low, a, b), max(l.high, a, b)
}

// intensities decodes and scales voxels to HU, clipped to the window; what isn't a number becomes its low end. It keeps
// count.
func (l *loader) intensities(dst []float64, b []byte) {
	l.h.Float64(dst, b)
	slope, inter := l.h.Scaling()
	lo, hi := l.o.WindowHU[0], l.o.WindowHU[1]
	for i, x := range dst {
		x = slope*x + inter
		if x-x != 0 { // NaN or Inf
			l.bad++
			dst[i] = lo
			continue
		}
		l.low, l.high = min(l.low, x), max(l.high, x)
		dst[i] = min(max(x, lo), hi)
	}
}

// warnings says what was odd about the voxels.
func (l *loader) warnings() []string {
	var w []string
	if l.bad > 0 {
		w = append(w, fmt.Sprintf("%d voxels are NaN or Inf; taken as %v HU", l.bad, l.o.WindowHU[0]))
	}
	switch {
	case l.low >= 0 && l.high <= 1:
		w = append(w, "intensities lie in 0..1: they don't look like Hounsfield units")
	case l.low >= -500:
		w = append(w, fmt.Sprintf("no voxel is below -500 (lowest %.6g): intensities don't look like Hounsfield units", l.low))
	}
	return append(w, l.end...)
}

// quantiser rounds intensities of a window to int16: HU = step*sample + centre. step is the power of two, the smallest
// by which the window is at most 65534 steps; centre is the window's, rounded to a step, so that where step ≤ 1 whole
// HU are exact.
type quantiser struct{ step, centre, lo, hi float64 }

func newQuantiser(window [2]float64) quantiser {
	lo, hi := window[0], window[1]
	_, e := math.Frexp((hi - lo) / 65534) // (hi-lo)/65534 = f·2^e, 1/2 ≤ f < 1
	step := math.Ldexp(1, e)
	if step/2*65534 >= hi-lo {
		step /= 2
	}
	return quantiser{step: step, centre: step * math.Round((lo+hi)/2/step), lo: lo, hi: hi}
}

// sample rounds to the nearest step, but never up to half a HU: what rounds to whole HU afterwards, halves up, is what
// would have without steps.
func (q quantiser) sample(hu float64) int16 {
	hu = min(max(hu, q.lo), q.hi)
	s := math.Floor((hu-q.centre)/q.step + 0.5)
	if at := q.step*s + q.centre; at > hu && at-math.Floor(at) == 0.5 {
		s--
	}
	return int16(min(max(s, math.MinInt16), math.MaxInt16))
}

// placer puts samples in file order to their canonical places.
type placer struct {
	data     []int16
	dims     [3]int // the file's
	start    int
	step     [3]int
	straight bool // the file's order is the canonical one
}

func newPlacer(data []int16, dims, axes [3]int, flip [3]bool) *placer {
	p := &placer{data: data, dims: dims}
	p.start, p.step = nifti.Place(dims, axes, flip)
	p.straight = axes == [3]int{0, 1, 2} && flip == [3]bool{}
	return p
}

// place puts samples of which the first is the file's voxel at.
func (p *placer) place(at int64, samples []int16) {
	if p.straight {
		copy(p.data[at:], samples)
		return
	}
	x, y := int(at)%p.dims[0], int(at)/p.dims[0]
	y, z := y%p.dims[1], y/p.dims[1]
	for len(samples) > 0 {
		n := min(len(samples), p.dims[0]-x)
		to := p.start + x*p.step[0] + y*p.step[1] + z*p.step[2]
		row := samples[:n]
		switch step := p.step[0]; step {
		case 1:
			copy(p.data[to:to+n], row)
		case -1:
			reverse(p.data[to-n+1:to+1], row)
		default:
			for _, s := range row {
				p.data[to] = s
				to += step
			}
		}
		samples, x = samples[n:], 0
		if y++; y == p.dims[1] {
			y, z = 0, z+1
		}
	}
}

// reverse copies src backwards.
func reverse(dst, src []int16) {
	for len(src) >= 4 && len(dst) >= 4 {
		d, s := dst[len(dst)-4:], src[:4]
		d[0], d[1], d[2], d[3] = s[3], s[2], s[1], s[0]
		dst, src = dst[:len(dst)-4], src[4:]
	}
	for i, s := range src {
		dst[len(src)-1-i] = s
	}
}
