package train

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/volume"
)

// pace is how many steps are timed, and unpaced how many before them are not, before Hours becomes a number of steps. A
// validation is timed then too, for its share in the time of each step.
const pace, unpaced = 10, 2

// run is a Loop under way: all, launch, settle, duties and end are what happens, in this order.
type run struct {
	*Loop
	yield func(*volume.Snapshot, error) bool
	slot  chan struct{} // taken by the snapshot that isn't released yet

	flying    *flight      // the step in flight; nil: none
	tags      []volume.Tag // trained since the last snapshot
	first     int          // Step when Run began
	saved     int          // the last snapshot's Step
	validated int          // the last validation's

	began time.Time     // when Run did
	mark  time.Time     // from when on the next step is timed
	timed time.Duration // what the steps took that make the pace
}

// flight is a step that was launched.
type flight struct {
	tags []volume.Tag
	size [3]int
	why  string // a snapshot is due behind it; "" isn't known yet
}

// errLeft ends a run whose consumer wants no more.
var errLeft = errors.New("the consumer left")

// fail passes an error on. One of training waits until the snapshot before it is safe: where a run goes back to is not to
// depend on how fast the disk is.
func (r *run) fail(ctx context.Context, err error) {
	if errors.Is(err, errLeft) {
		return
	}
	if _, ok := errors.AsType[*DivergedError](err); ok {
		select {
		case r.slot <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
	r.yield(nil, err)
}

// all makes the validation that is due, trains, and ends.
func (r *run) all(ctx context.Context, in iter.Seq[*volume.Batch]) error {
	if r.Due && r.Validate != nil && !r.stopped() {
		if err := r.emit(ctx, "validate", true); err != nil {
			return err
		}
	}
	if !r.stopped() && !r.finished() {
		if err := r.train(ctx, in); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return nil // a hard stop: the batches' end isn't that of the data
	}
	return r.end(ctx)
}

// train takes steps until the batches end, the last step is taken, or Stopping. Then none is in flight.
func (r *run) train(ctx context.Context, in iter.Seq[*volume.Batch]) error {
	for b := range in {
		if b == nil {
			if err := r.settle(ctx); err != nil {
				return err
			}
			continue
		}
		if err := r.launch(ctx, b); err != nil {
			return err
		}
		if r.flying == nil {
			return nil // stopped
		}
		if !r.due(r.flying) {
			continue
		}
		if err := r.settle(ctx); err != nil || r.finished() {
			return err
		}
	}
	return r.settle(ctx)
}

// launch feeds a batch while the step before it is under way, finishes that, and begins the batch's own unless Stopping. The batch is
// released.
func (r *run) launch(ctx context.Context, b *volume.Batch) error {
	defer b.Release()
	if !r.stopped() {
		if err := r.Model.Feed(b.Input, b.Target, len(b.Tags)); err != nil {
			return fmt.Errorf("%s: %w", b.Tags[0], err)
		}
	}
	if err := r.settle(ctx); err != nil || r.stopped() {
		return err
	}
	r.Model.Launch()
	r.flying = &flight{tags: b.Tags, size: b.Size}
	return nil
}

// due says that the step in flight is to be finished before there is another batch: which may wait for what follows from it.
func (r *run) due(f *flight) bool {
	step := r.Step + 1
	if r.Every > 0 && step%r.Every == 0 {
		f.why = "every"
	}
	if f.why != "" || r.last(step) || r.validates(step) || r.paced(step) {
		return true
	}
	f.why = r.wanted(len(r.tags) + len(f.tags))
	return f.why != ""
}

// settle finishes the step in flight, if there is one, tells of it, and does what follows from it.
func (r *run) settle(ctx context.Context) error {
	f := r.flying
	if f == nil {
		return nil
	}
	r.flying = nil
	st, err := r.finish(f)
	if err != nil {
		return err
	}
	if r.Report != nil {
		r.Report(st)
	}
	if r.Guard != nil {
		if i := r.Guard.Watch(r.Step, reading(st.Stats)); i != nil {
			return &DivergedError{Incident: *i, Tags: f.tags}
		}
	}
	if r.finished() {
		return nil
	}
	if r.paced(r.Step) {
		if err := r.setPace(ctx); err != nil {
			return err
		}
	}
	return r.duties(ctx, f.why)
}

// finish ends a step that was launched.
func (r *run) finish(f *flight) (Step, error) {
	lr := r.Schedule.At(r.Step+1) * r.Guard.LRScale()
	stats, err := r.Model.Finish(lr)
	if err != nil {
		if what, ok := errors.AsType[*vqgan.NonFiniteError](err); ok {
			r.Guard.note(r.Step+1, stats.GAN.Active)
			return Step{}, &DivergedError{Incident: r.Guard.nonFinite(r.Step+1, what.What), First: r.Step == r.first && r.first > 0, Tags: f.tags, Err: what}
		}
		return Step{}, fmt.Errorf("step %d on %s: %w", r.Step+1, f.tags[0], err)
	}
	n := len(f.tags)
	end := f.tags[n-1]
	r.Step++
	r.Patches += n
	r.Cursor = volume.Cursor{Epoch: end.Epoch, Seq: end.Seq + 1}
	if r.Every > 0 {
		r.tags = append(r.tags, f.tags...)
	}
	voxels := int64(n) * int64(f.size[0]) * int64(f.size[1]) * int64(f.size[2])
	return Step{Step: r.Step, Total: r.Schedule.Steps, Cursor: r.Cursor, Patches: n, Voxels: voxels, LR: lr, Stats: stats,
		Seconds: r.lap().Seconds()}, nil
}

// lap is how long the step that was finished took, which counts for the pace where that is wanted.
func (r *run) lap() time.Duration {
	now := time.Now()
	took := now.Sub(r.mark)
	r.mark = now
	if r.pacing() && r.Step-r.first > unpaced {
		r.timed += took
	}
	return took
}

// paced says that after this step the pace is known.
func (r *run) paced(step int) bool { return r.pacing() && step-r.first == unpaced+pace }

// setPace turns Hours into steps. A validation is made, to know how long it takes.
func (r *run) setPace(ctx context.Context) error {
	each := r.timed / pace
	if began := time.Now(); r.Validate != nil {
		if err := r.emit(ctx, "validate", true); err != nil {
			return err
		}
		each += time.Since(began) / time.Duration(r.EveryVal)
	}
	r.Pace = max(each, 1)
	r.Schedule.Steps = r.Step + max(1, int((r.Hours-time.Since(r.began))/r.Pace))
	return nil
}

// duties are a validation and a snapshot, where they are due behind a step.
func (r *run) duties(ctx context.Context, why string) error {
	validate := r.validates(r.Step) && r.validated != r.Step
	if why == "" && !validate {
		why = r.wanted(len(r.tags))
	}
	if !validate && why == "" {
		return nil
	}
	return r.emit(ctx, cmp.Or(why, "validate"), validate)
}

// end emits the last snapshot, unless there is nothing new to say.
func (r *run) end(ctx context.Context) error {
	reason := "end"
	if r.stopped() && !r.finished() {
		reason = "stop"
	}
	unmeasured := r.Validate != nil && reason == "end" && r.validated != r.Step
	if r.Step == r.saved && !unmeasured {
		return nil
	}
	return r.emit(ctx, reason, reason == "end")
}

// emit passes a snapshot on, with what a validation measures where one is asked for. Its time is no step's.
func (r *run) emit(ctx context.Context, reason string, validate bool) error {
	var metrics map[string]float64
	if validate && r.Validate != nil {
		var err error
		if metrics, err = r.measure(ctx); err != nil {
			return fmt.Errorf("validate: %w", err)
		}
		if r.Due {
			reason = "stop"
		}
	}
	s, err := r.snapshot(ctx, reason, metrics)
	if err != nil {
		return err
	}
	r.saved = r.Step
	if !r.yield(s, nil) {
		return errLeft
	}
	r.mark = time.Now()
	return nil
}

// measure validates. Where Stopping cuts it short nothing was measured, and it is Due.
func (r *run) measure(ctx context.Context) (map[string]float64, error) {
	metrics, err := r.untilStopping(ctx)
	switch {
	case err == nil:
		r.validated, r.Due = r.Step, false
		return metrics, nil
	case ctx.Err() == nil && r.stopped():
		r.Due = true
		return nil, nil
	}
	if what, ok := errors.AsType[*vqgan.NonFiniteError](err); ok {
		d := &DivergedError{Incident: r.Guard.nonFinite(r.Step+1, what.What), Err: what}
		d.Step = r.Step // which made the weights that the next one would have met
		return nil, d
	}
	return nil, err
}

// untilStopping calls Validate with a context that Stopping ends.
func (r *run) untilStopping(ctx context.Context) (map[string]float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	watched := make(chan struct{})
	defer func() { cancel(); <-watched }()
	go func() {
		defer close(watched)
		select {
		case <-r.Stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	return r.Validate(ctx, r.Step)
}

// snapshot copies the state, once the snapshot before it has been released.
func (r *run) snapshot(ctx context.Context, reason string, metrics map[string]float64) (*volume.Snapshot, error) {
	select {
	case r.slot <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if r.Room != nil {
		r.Room(ctx)
	}
	state, err := r.Model.State()
	if err != nil {
		return nil, fmt.Errorf("state at step %d: %w", r.Step, err)
	}
	s := &volume.Snapshot{Step: r.Step, Cursor: r.Cursor, Metrics: metrics, Reason: reason, Tags: r.tags,
		Free: func() { <-r.slot }}
	for _, a := range state {
		s.Arrays = append(s.Arrays, volume.Array(a))
	}
	if r.Meta != nil {
		if s.Meta, err = r.Meta(r.Loop); err != nil {
			s.Release()
			return nil, err
		}
	}
	r.tags = nil
	return s, nil
}
