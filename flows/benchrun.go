package flows

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/nn"
	"github.com/flowrun/flowrun/gpu/optim"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/infer"
	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

// What bench measures: the graph in front of the model, the model, the whole graph.

// probe is what the model is timed on: a batch of the flow's own data.
type probe struct {
	input, target []float32
	n             int
}

// graph is an empty graph over a budget and buffers of its own. enough ends it.
func (b *bench) graph(ctx context.Context) (w *wiring, enough context.CancelCauseFunc) {
	r := b.run
	r.budget, r.maker = pipe.NewBudget(r.parts.scans), b.maker(b.size())
	ctx, enough = context.WithCancelCause(ctx)
	return &wiring{run: r, g: pipe.New(ctx)}, enough
}

// data measures the graph up to what the model would be given.
func (b *bench) data(ctx context.Context) error {
	w, enough := b.graph(ctx)
	defer enough(nil)
	p := &stretch{g: w.g, limit: b.limit(), enough: enough, begun: time.Now()}
	for _, s := range b.pieces {
		if s.in == batches || s.out == codeGrids || b.exact() && s.in == volumes {
			break
		}
		s.wire(w, s)
	}
	if b.wholes() {
		hollow, back := &gauge{Model: b.model, hollow: true, passed: p.took}, b.run.back
		study := back.study
		back.model, back.study = hollow, nil // there are no codes to count
		defer func() { back.model, back.study = b.model, study }()
		b.cut(w)
		defer func() { b.probe = hollow.probe() }()
	} else {
		each, total := int64(product(b.size())), int64(0)
		pipe.Into(w.batches, "device", func(_ context.Context, batch *volume.Batch) error {
			defer batch.Release()
			if b.probe == nil {
				b.probe = &probe{slices.Clone(batch.Input), slices.Clone(batch.Target), len(batch.Tags)}
			}
			total += int64(len(batch.Tags)) * each
			p.took(total)
			return nil
		})
	}
	f, err := b.flow(p)
	if err != nil {
		return err
	}
	f.MBs = 4 * f.Voxels / 1e6
	b.note(func(k *BenchFigures) { k.Data, k.Unreadable = &f, b.run.quarantine.Len() })
	return nil
}

// cut has whole scans cut up as the model would have it.
func (b *bench) cut(w *wiring) {
	encode := w.encoder()
	pipe.Into(w.volumes, "device", func(ctx context.Context, v *volume.Volume) error {
		defer v.Release()
		_, err := encode(ctx, v)
		return err
	})
}

// both measures the whole graph.
func (b *bench) both(ctx context.Context) error {
	w, enough := b.graph(ctx)
	defer enough(nil)
	r, p := b.run, &stretch{g: w.g, limit: b.limit(), enough: enough, begun: time.Now()}
	if r.session != nil {
		total := int64(0)
		r.loop = &train.Loop{Model: r.session, Schedule: optim.Schedule{LR: benchLR}, Report: func(s train.Step) {
			total += s.Voxels
			p.took(total)
		}}
	} else {
		r.epochs = 1 // a scan is put together once
		r.back.model = &gauge{Model: b.model, halves: b.exact(), passed: p.took}
	}
	last := nothing
	for _, s := range b.pieces {
		if s.in == snapshots {
			break // nothing is kept
		}
		s.wire(w, s)
		last = s.out
	}
	w.discard(last)
	f, err := b.flow(p)
	if err == nil {
		b.note(func(k *BenchFigures) { k.together(f) })
	}
	return err
}

// errEnough ends a graph that was measured for long enough.
var errEnough = errors.New("measured")

// stretch times the voxels that pass a point of a graph.
type stretch struct {
	g      *pipe.Graph
	limit  time.Duration
	enough context.CancelCauseFunc
	begun  time.Time

	mu              sync.Mutex
	first, last     time.Time
	skipped, passed int64       // voxels, at first and at last
	before, after   []pipe.Stat // then
	over            bool
}

// took is told of all voxels that have passed so far, and ends the graph behind the limit. The first that come are not timed.
func (p *stretch) took(total int64) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.over:
		return
	case p.before == nil:
		p.first, p.skipped, p.before = now, total, p.g.Stats()
		return
	}
	p.last, p.passed = now, total
	if now.Sub(p.begun) >= p.limit {
		p.over, p.after = true, p.g.Stats()
		p.enough(errEnough)
	}
}

// flow waits for a graph's end and says what flowed.
func (b *bench) flow(p *stretch) (Flow, error) {
	err := p.g.Wait()
	cut := errors.Is(err, errEnough)
	if err != nil && !cut {
		return Flow{}, err
	}
	if !cut { // its data ended
		p.last, p.after = time.Now(), p.g.Stats()
	}
	voxels, seconds := p.passed-p.skipped, p.last.Sub(p.first).Seconds()
	if voxels <= 0 { // all came at once
		voxels, seconds, p.before = p.skipped, p.last.Sub(p.begun).Seconds(), nil
	}
	f := Flow{Seconds: seconds, Voxels: float64(voxels) / seconds}
	if held := b.loaded(p.after); held > 0 { // what a shuffle had in store at first doesn't make the reader faster
		f.Voxels = min(f.Voxels, held/p.last.Sub(p.begun).Seconds())
	}
	f.Patches = f.Voxels / float64(product(b.size()))
	f.describe(p.before, p.after)
	return f, nil
}

// loaded is about how many voxels of patches the scans hold that were read; 0 where scans are read as a stream, or never were.
func (b *bench) loaded(stats []pipe.Stat) float64 {
	i := slices.IndexFunc(stats, func(s pipe.Stat) bool { return s.Stage == "vet" })
	if i < 0 || b.model != nil {
		return 0
	}
	d := b.run.data
	return float64(stats[i].Out) * float64(d.perEpoch()) / float64(len(d.train)) * float64(product(b.size()))
}

// benchLR is low: the same batch comes again and again.
const benchLR = 1e-6

// r1Every is how often bench takes a step with R1, in steps, unless train.gan.r1_every is less.
const r1Every = 4

// The phases of training, in the order of Compute.
var phaseNames = []string{"autoencoder", "with discriminators", "with R1"}

// phases are the train stage's options of each phase that training has.
func phases(o train.Options) []train.Options {
	list := []train.Options{o}
	if o.GAN.Weight > 0 {
		list = append(list, o)
		if o.GAN.R1 > 0 {
			list = append(list, o)
			list[1].GAN.R1 = 0
		}
	}
	list[0].GAN.Weight = 0
	return list
}

// learning measures optimiser steps on one batch, in each phase that training has.
func (b *bench) learning(ctx context.Context) error {
	o, _ := option[train.Options](b.Job)
	s, all := b.run.session, phases(*o)
	work := make([]float64, len(all)) // FLOPs a patch
	for i, only := range all {
		plan, err := b.plan(b.run.engine, only, b.size())
		if err != nil {
			return err
		}
		work[i] = float64(plan.Step) / float64(b.micro())
	}
	took := make([][]float64, len(all))
	step := func(ph int) func() (int, error) {
		return func() (int, error) {
			st, err := s.Step(b.probe.input, b.probe.target, b.probe.n, benchLR)
			if st.GAN.R1 > 0 {
				return 2, err
			}
			return ph, err
		}
	}
	known := func(ph int, seconds float64) {
		took[ph] = append(took[ph], seconds)
		b.note(func(k *BenchFigures) {
			k.Compute = nil
			for i, t := range took {
				if len(t) > 0 {
					k.Compute = append(k.Compute, k.speed(phaseNames[i], b.probe.n, t, work[i]))
				}
			}
		})
	}
	for ph := range min(2, len(all)) {
		s.SetGANStart([]int{math.MaxInt, 0}[ph])
		if err := b.repeat(ctx, step(ph), known); err != nil {
			return err
		}
	}
	if o.GAN.R1 > 0 {
		b.note(func(k *BenchFigures) { k.R1Every = min(o.GAN.R1Every, r1Every) })
	}
	n := min(b.micro(), b.probe.n)
	voxels := n * product(b.size())
	return b.profile(ctx, phaseNames[min(2, len(all))-1], func() ([]nn.Timing, error) {
		return s.Profile(b.probe.input[:voxels], b.probe.target[:voxels], n)
	})
}

// micro is the patches of a pass.
func (b *bench) micro() int {
	if o, _ := option[train.Options](b.Job); o.MicroBatch > 0 {
		return o.MicroBatch
	}
	return b.batch()
}

// untimed is how many calls come before those that count, unless they take long.
const untimed = 2

// repeat calls f, which says what it did, and tells took how many seconds each call took: by the device's clock, where it has one, from the
// end of the call before; else by the host's.
func (b *bench) repeat(ctx context.Context, f func() (int, error), took func(what int, seconds float64)) error {
	clock, ticks := b.run.engine.(gpu.Clock)
	calls := 0
	mark := func() { // four are enough: a call is told of behind the next one
		if ticks {
			clock.Mark(calls % 4)
		}
	}
	mark()
	before := func() error { return nil } // tells of the call before, whose end is known by now
	begun := time.Now()
	for warm, counted := 0, 0; counted == 0 || counted < b.options.Steps && time.Since(begun) < b.limit(); {
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), before())
		}
		counts := warm == untimed || warm > 0 && time.Since(begun) > b.limit()/2
		start := time.Now()
		what, err := f()
		if err != nil {
			return err
		}
		call, seconds := calls, time.Since(start).Seconds()
		calls++
		mark()
		if err := before(); err != nil {
			return err
		}
		before = func() error { return nil }
		if !counts {
			warm++
			continue
		}
		counted++
		if !ticks {
			took(what, seconds)
			continue
		}
		before = func() error {
			d, err := clock.Elapsed(call%4, (call+1)%4)
			if err == nil {
				took(what, d.Seconds())
			}
			return err
		}
	}
	return before()
}

// profile notes what each kind of op takes, of the second of two runs.
func (b *bench) profile(ctx context.Context, phase string, f func() ([]nn.Timing, error)) error {
	for range 2 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		list, err := f()
		if err != nil {
			return err
		}
		b.note(func(k *BenchFigures) { k.profiled(phase, list) })
	}
	return nil
}

// inference measures a trained model on one batch, or on a whole patch through the halves that the flow uses.
func (b *bench) inference(ctx context.Context) error {
	n, size := b.batch(), b.size()
	if want := n * product(size); b.probe == nil || b.probe.n != n {
		b.probe = &probe{make([]float32, want), make([]float32, want), n} // the scans have no batch as large
	}
	x, y := b.probe.input, make([]float32, len(b.probe.input))
	name, call := "reconstruct", func() error { return b.model.Reconstruct(y, x, n, nil) }
	if b.wholes() {
		cells := size
		for a, f := range b.model.Downsample() {
			cells[a] /= f
		}
		idx := make([]int32, product(cells)*b.model.Depth())
		encode := func() error { return b.model.Encode(idx, nil, nil, x, size) }
		name, call = "encode", encode
		if b.exact() {
			name, call = "encode and decode", func() error { return errors.Join(encode(), b.model.Decode(y, idx, nil, size)) }
		}
	}
	var took []float64
	err := b.repeat(ctx, func() (int, error) { return 0, call() }, func(_ int, seconds float64) {
		took = append(took, seconds)
		b.note(func(k *BenchFigures) { k.Compute = []Speed{k.speed(name, n, took, b.forward())} })
	})
	coder, ok := b.model.(*vqgan.Coder)
	if err != nil || !ok || b.wholes() {
		return err
	}
	return b.profile(ctx, name, func() ([]nn.Timing, error) { return coder.Profile(x, n) })
}

// forward is the FLOPs of a patch on the way back.
func (b *bench) forward() (flops float64) {
	if b.run.engine == nil {
		return 0
	}
	plan, err := vqgan.PlanCoder(b.run.engine, b.Job.model, b.coderOptions(b.keys))
	if err != nil || plan == nil {
		return 0
	}
	if !b.wholes() {
		return float64(plan.Forward) / float64(b.batch())
	}
	for _, p := range plan.Programs { // the halves
		flops += float64(p.Forward)
	}
	return flops
}

// gauge stands before a model and counts the voxels that it is given.
type gauge struct {
	infer.Model
	hollow bool // encodes nothing
	halves bool // a voxel counts half when it is encoded and half when it is decoded
	voxels int64
	passed func(voxels int64) // told of all so far
	first  []float32          // patch of the model's size
}

// Reconstruct is the model's.
func (g *gauge) Reconstruct(dst, src []float32, n int, codes []int32) error {
	err := g.Model.Reconstruct(dst, src, n, codes)
	g.count(len(src))
	return err
}

// Encode is the model's, unless the gauge is hollow.
func (g *gauge) Encode(idx []int32, latents, quantised, src []float32, size [3]int) error {
	var err error
	if !g.hollow {
		err = g.Model.Encode(idx, latents, quantised, src, size)
	} else if g.first == nil && size == g.Patch() {
		g.first = slices.Clone(src)
	}
	n := len(src)
	if g.halves {
		n /= 2
	}
	g.count(n)
	return err
}

// Decode is the model's.
func (g *gauge) Decode(dst []float32, idx []int32, quantised []float32, size [3]int) error {
	err := g.Model.Decode(dst, idx, quantised, size)
	g.count(len(dst) / 2)
	return err
}

func (g *gauge) count(voxels int) {
	g.voxels += int64(voxels)
	g.passed(g.voxels)
}

// probe is the first whole patch; nil where there was none.
func (g *gauge) probe() *probe {
	if g.first == nil {
		return nil
	}
	return &probe{g.first, slices.Clone(g.first), 1}
}

func product(n [3]int) int { return n[0] * n[1] * n[2] }
