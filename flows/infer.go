package flows

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/cuda"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/codes"
	"github.com/flowrun/flowrun/stages/infer"
	"github.com/flowrun/flowrun/stages/merge"
	"github.com/flowrun/flowrun/stages/metrics"
	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/volume"
	"github.com/flowrun/flowrun/stages/weights"
	"github.com/flowrun/flowrun/stages/write"
)

// The way back: a trained model on whole scans.

// back is what a run needs on the way back, beside what every run has.
type back struct {
	model  infer.Model
	tiling infer.Tiling
	names  map[string]string // of the files written, by scan
	study  *metrics.Study    // nil without measure

	written atomic.Int64 // files

	mu    sync.Mutex
	grids map[string]volume.Grid // of the scans being decoded
}

// openBack opens the model for inference and checks what the stages behind it need. It returns the engine's arena.
func (r *run) openBack(m modelKeys) (arena int64, err error) {
	j := r.job
	r.back = &back{model: infer.NewIdentity(m.patch), grids: map[string]volume.Grid{}}
	if m.Checkpoint != infer.IdentityName {
		coder, engine, bytes, err := r.openCoder(m)
		if err != nil {
			return 0, err
		}
		r.back.model, r.engine, arena = coder, engine, bytes
	}
	o, merges := option[merge.Options](j)
	if merges && o.Mode == merge.ModeExact && !r.back.model.Tileable() {
		return 0, &ConfigError{j.piece(o).file.Errorf("mode", "exact needs a model with norm: channel, but with %s (norm: %s) each voxel depends on its whole tile; set it to blend", m.Checkpoint, j.model.Norm)}
	}
	r.back.tiling = j.tiling(m)
	if w, ok := option[write.Options](j); ok {
		if err := write.Ready(*w); err != nil {
			return 0, configErrorf("write.%w", err)
		}
	}
	if o, ok := option[metrics.Options](j); ok {
		r.back.study = r.newStudy(*o)
	}
	return arena, nil
}

// tiling is how the job's scans are cut up for encode and decode.
func (j *Job) tiling(m modelKeys) infer.Tiling {
	t := infer.Tiling{Patch: m.patch}
	o, ok := m.piece.options.(*infer.CodeOptions)
	if !ok {
		return t
	}
	regular := tile.Options{Mode: tile.ModeGrid, Patch: o.Patch, Stride: o.Stride}
	t.Grid = func(dims [3]int) (volume.Grid, error) {
		return regular.Grid(dims, j.multiple())
	}
	if s, ok := option[codes.Options](j); ok {
		t.Latents = s.Latents
	}
	if l, ok := option[codes.LoadOptions](j); ok {
		t.Quantised = l.Use != codes.UseCodes
	}
	return t
}

// openCoder opens a checkpoint for inference. It returns its arena's bytes too.
func (r *run) openCoder(m modelKeys) (*vqgan.Coder, gpu.Engine, int64, error) {
	j := r.job
	snap, err := checkpoint.Load(m.Checkpoint)
	if err != nil {
		return nil, nil, 0, &ConfigError{m.piece.file.Errorf("checkpoint", "%v", err)}
	}
	arrays := weights.ToModel(snap.Arrays)
	ema := slices.ContainsFunc(arrays, func(a vqgan.Array) bool { return strings.HasPrefix(a.Name, "ema.") })
	if m.Weights == infer.WeightsEMA && !ema {
		r.log.Warn().Str("checkpoint", m.Checkpoint).Msg("it holds no EMA weights (train.ema was 0): the raw ones are used")
	}
	ema = ema && m.Weights == infer.WeightsEMA
	e, err := j.engine(m.Device)
	if err != nil {
		return nil, nil, 0, err
	}
	r.warnLess()
	o := j.coderOptions(m)
	coder, err := vqgan.OpenCoder(e, j.model, arrays, ema, o)
	if _, ok := errors.AsType[*cuda.Error](err); ok {
		return nil, nil, 0, errors.Join(fmt.Errorf("%s: %w", m.piece.label, err), e.Close())
	}
	if err != nil {
		return nil, nil, 0, errors.Join(configErrorf("%s: %s: %w", j.path, m.piece.label, err), e.Close())
	}
	plan, err := vqgan.PlanCoder(e, j.model, o)
	return coder, e, plan.Total, err
}

// coderOptions say which halves of the model the flow runs, on what, in how much memory.
func (j *Job) coderOptions(m modelKeys) vqgan.CoderOptions {
	o := vqgan.CoderOptions{Patch: m.patch, MemoryLimit: j.arenaLimit(m.Memory)}
	if b, ok := option[batch.Options](j); ok && !j.exact() {
		o.Batch = b.Size
	}
	_, o.EncodeOnly = option[codes.Options](j)
	return o
}

// nameFiles names what is written for each scan.
func (r *run) nameFiles() (err error) {
	if r.back == nil {
		return nil
	}
	if w, ok := option[write.Options](r.job); ok {
		if r.back.names, err = write.Names(r.data.all, *w); err != nil {
			return &ConfigError{r.job.piece(w).file.Errorf("dir", "%v", err)}
		}
	}
	if s, ok := option[codes.Options](r.job); ok {
		if r.back.names, err = codes.Names(r.data.all); err != nil {
			return &ConfigError{r.job.piece(s).file.Errorf("dir", "%v", err)}
		}
	}
	return nil
}

// checkPatch finds patches that are too small to tile the scans exactly.
func (r *run) checkPatch(m modelKeys) error {
	j, p := r.job, m.piece
	t, tiles := option[tile.Options](j)
	switch {
	case j.exact() && tiles:
		p = j.piece(t)
	case !j.exact() && tiles:
		return nil
	}
	_, loads := option[codes.LoadOptions](j)
	_, saves := option[codes.Options](j)
	for _, s := range r.data.all {
		if err := infer.CheckPatch(r.back.model, s.Dims, r.back.tiling, !loads, !saves); err != nil {
			reason, _ := strings.CutPrefix(err.Error(), "patch: ")
			return &ConfigError{p.file.Errorf("patch", "scan %s: %s", s.ID, reason)}
		}
	}
	return nil
}

// grid is where the tiles of a volume lie that merge puts together.
func (r *run) grid(v *volume.Volume) (volume.Grid, error) {
	r.back.mu.Lock()
	g, ok := r.back.grids[v.Scan.ID]
	r.back.mu.Unlock()
	if ok {
		return g, nil
	}
	t, _ := option[tile.Options](r.job)
	return t.Grid(v.Dims, r.job.multiple())
}

// wireInfer runs patches through the model; or, where merge is to be exact, whole volumes: tile and batch have then only
// said how large a tile is.
func wireInfer(w *wiring, s *piece) {
	if !w.job.exact() {
		w.outputs = pipe.Transform(w.batches, s.label, func(ctx context.Context, in iter.Seq[*volume.Batch]) iter.Seq2[*volume.Output, error] {
			return infer.Blend(ctx, w.begun(in), w.back.model, w.countCodes)
		})
		return
	}
	encode := w.encoder()
	w.outputs = pipe.Expand(w.volumes, s.label, func(ctx context.Context, v *volume.Volume) iter.Seq2[*volume.Output, error] {
		return func(yield func(*volume.Output, error) bool) {
			defer v.Release()
			if w.stopped() {
				return
			}
			switch c, err := encode(ctx, v); {
			case err != nil:
				yield(nil, err)
			case c != nil:
				w.decode(ctx, c, v, yield)
			}
		}
	})
}

// encoder returns what makes codes of volumes, one at a time. There are none of a volume that is lost.
func (w *wiring) encoder() func(context.Context, *volume.Volume) (*volume.Codes, error) {
	scratch := batch.NewScratch(w.job.workers())
	cut := func(dst []float32, p *volume.Patch) error { return batch.Cut(dst, p, scratch) }
	return func(ctx context.Context, v *volume.Volume) (*volume.Codes, error) {
		w.at(v.Scan, "encoding")
		defer w.status("")
		c, err := infer.Encode(ctx, v, w.back.model, w.back.tiling, cut)
		switch {
		case err != nil && ctx.Err() == nil && v.Lost() != nil:
			return nil, w.loses(v)
		case err != nil:
			return nil, err
		}
		err = w.countCodes(volume.Tag{Scan: v.Scan.ID}, c.Index)
		return c, err
	}
}

// decode yields the outputs of codes. v stays the caller's.
func (w *wiring) decode(ctx context.Context, c *volume.Codes, v *volume.Volume, yield func(*volume.Output, error) bool) {
	g, err := infer.DecodeGrid(c, w.back.model, w.back.tiling)
	if err != nil {
		yield(nil, dataErrorf("scan %s: %w", v.Scan.ID, err))
		return
	}
	w.back.mu.Lock()
	w.back.grids[v.Scan.ID] = g
	w.back.mu.Unlock()
	for out, err := range infer.Decode(ctx, c, v, w.back.model, w.back.tiling) {
		if !yield(out, err) {
			return
		}
	}
}

// countCodes tells measure which codes a scan is made of.
func (r *run) countCodes(t volume.Tag, index []int32) error {
	if r.back.study == nil || r.back.study.Codebook == 0 {
		return nil
	}
	return r.back.study.Codes(t.Scan, index)
}

func wireMerge(w *wiring, s *piece) {
	o := *s.options.(*merge.Options)
	_, decoding := option[codes.LoadOptions](w.job)
	if w.job.exact() || decoding && w.back.model.Tileable() {
		o.Window = merge.Crop // tiles overlap by twice the receptive field: the middle is true on either side
	}
	w.slabs = pipe.Transform(w.outputs, s.label, func(ctx context.Context, in iter.Seq[*volume.Output]) iter.Seq2[*volume.Slab, error] {
		return merge.Merge(w.tell(in), o, w.grid, w.cut(ctx))
	})
}

func wireWrite(w *wiring, s *piece) {
	o := *s.options.(*write.Options)
	restore := func(v *volume.Volume) write.Restorer { return read.Restore(v.Scan, v.Geometry) }
	w.files = pipe.Transform(w.slabs, s.label, func(ctx context.Context, in iter.Seq[*volume.Slab]) iter.Seq2[string, error] {
		return func(yield func(string, error) bool) {
			for f, err := range write.Write(in, o, w.back.names, restore, w.cut(ctx)) {
				if err == nil {
					w.back.written.Add(1)
					w.log.Info().Str("event", "written").Str("scan", f.Scan).Str("path", f.Path).Int64("bytes", f.Bytes).Msg("written")
				}
				if !yield(f.Path, err) {
					return
				}
			}
		}
	})
}

// tell says of each output how far its scan is.
func (w *wiring) tell(in iter.Seq[*volume.Output]) iter.Seq[*volume.Output] {
	return func(yield func(*volume.Output) bool) {
		defer w.status("")
		for o := range in {
			w.at(o.Volume.Scan, fmt.Sprintf("tile %d of %d", o.Tile+1, o.Tiles))
			if !yield(o) {
				return
			}
		}
	}
}

// at says what is done to a scan.
func (w *wiring) at(s *volume.Scan, what string) {
	w.status(fmt.Sprintf("scan %d of %d, %s: %s", s.Index+1, len(w.data.all), s.ID, what))
}

// cut says whether the data is being cut short.
func (w *wiring) cut(ctx context.Context) func() bool {
	return func() bool { return w.stopped() || ctx.Err() != nil }
}

// stopped is true after a soft stop: scans that are begun are finished, others aren't begun.
func (w *wiring) stopped() bool { return closed(w.g.Stopping()) }

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// begun passes batches on; after a soft stop only those that a scan needs of which one has passed.
func (w *wiring) begun(in iter.Seq[*volume.Batch]) iter.Seq[*volume.Batch] {
	return func(yield func(*volume.Batch) bool) {
		scans := map[string]bool{}
		for b := range in {
			stopped := w.stopped()
			if stopped && !slices.ContainsFunc(b.Tags, func(t volume.Tag) bool { return scans[t.Scan] }) {
				b.Release()
				continue
			}
			for _, t := range b.Tags {
				scans[t.Scan] = scans[t.Scan] || !stopped
			}
			if !yield(b) {
				return
			}
		}
	}
}
