package train

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/flowrun/flowrun/gpu/optim"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/volume"
)

// Model is what the loop drives; a vqgan.Session is one.
type Model interface {
	// Feed begins to bring n patches, [n, D, H, W] each, to the device for the next step, while the one before may be under way. They stay
	// as they are until Launch returns.
	Feed(input, target []float32, n int) error
	// Launch begins an optimiser step on what was fed.
	Launch()
	// Finish waits for the step that was launched and takes it at a learning rate. After an error the state is as before the step.
	Finish(lr float64) (vqgan.Stats, error)
	// State copies all that the next step depends on.
	State() ([]vqgan.Array, error)
}

// Step is what one optimiser step did.
type Step struct {
	Step    int // from 1
	Total   int // the schedule's last step; 0 if not known yet
	Cursor  volume.Cursor
	Patches int
	Voxels  int64
	LR      float64
	Stats   vqgan.Stats
	Seconds float64 // since the end of the step before: waiting for the batch, and the step
}

// DivergedError ends a loop in trouble. All snapshots before it are released.
type DivergedError struct {
	Incident
	First  bool         // in the first step from a checkpoint, which is of no use then
	Tags   []volume.Tag // of the step; none where a validation found it
	Advice string       // what to do about it
	Err    error        // may be nil
}

func (e *DivergedError) Error() string {
	on, advice := "", e.Advice
	if len(e.Tags) > 0 {
		on = " on " + e.Tags[0].String()
	}
	switch {
	case advice != "":
	case e.First:
		advice = "the checkpoint had diverged already: set run.resume to the one before it, and a lower train.lr"
	default:
		advice = "continue from the last checkpoint with a lower train.lr"
	}
	return fmt.Sprintf("step %d diverged%s: %s; %s", e.Step, on, e.What, advice)
}

func (e *DivergedError) Unwrap() error { return e.Err }

// Loop trains Model on a stream of batches. It is used once.
type Loop struct {
	Model    Model
	Schedule optim.Schedule // its Steps is the last step, or 0 while Hours hasn't been turned into steps
	Hours    time.Duration  // > 0: Steps becomes what fits, once the pace is known
	MaxSteps int            // 0: no limit
	Every    int            // steps between snapshots; 0: none but at validations, a stop and the end
	Validate func(ctx context.Context, step int) (map[string]float64, error)
	EveryVal int // steps between validations
	Report   func(Step)
	Meta     func(*Loop) (map[string]string, error) // what a snapshot says beside its arrays
	Guard    *Guard                                 // ends the loop where training goes wrong; nil: only numbers that aren't finite do
	Wanted   func(trained int) string               // why a snapshot is due after so many patches since the last one, "" for none; may be nil
	Room     func(ctx context.Context)              // waits until there is memory for a snapshot, or a stop; may be nil
	Stopping <-chan struct{}                        // closed: finish the step, snapshot, return

	// Where the loop is; set to resume.
	Step    int
	Patches int // trained; fewer than Step batches' where one was the data's last
	Cursor  volume.Cursor
	Pace    time.Duration // of a step, with its share of a validation; 0 until Hours became Steps
	Due     bool          // a stop cut the validation at Step short: the loop that goes on makes it before its next step

	first int // Step when Run began
	tags  []volume.Tag
	slot  chan struct{}
}

// pace is how many steps are timed, and unpaced how many before them are not, before Hours becomes a number of steps. A
// validation is timed then too, for its share in the time of each step.
const pace, unpaced = 10, 2

// flight is a step that was launched.
type flight struct {
	tags []volume.Tag
	size [3]int
	why  string // a snapshot is due behind it; "" isn't known yet
}

// Run is the train stage: batches in, snapshots out. It ends when the batches do, at the schedule's last step, or at
// Stopping; each ends with a snapshot, unless no step was taken since the one before it. When ctx ends it ends without, and
// where training goes wrong with a *DivergedError.
//
// One step is in flight: the next batch is fed while the device is at it. A nil batch says that there is none yet; then, too, the step is
// finished. All that follows from a step, a snapshot or an end, comes before the next is launched; what is known to follow doesn't wait for
// the next batch.
func (l *Loop) Run(ctx context.Context, in iter.Seq[*volume.Batch]) iter.Seq2[*volume.Snapshot, error] {
	return func(yield func(*volume.Snapshot, error) bool) {
		l.slot = make(chan struct{}, 1)
		l.first = l.Step
		saved := l.Step
		start := time.Now()
		last, validated := start, l.Step
		var timed time.Duration
		reason := "end"

		// fail passes an error on. One of training waits until the snapshot before it is safe: where a run goes back to is not
		// to depend on how fast the disk is.
		fail := func(err error) {
			if _, ok := errors.AsType[*DivergedError](err); ok {
				select {
				case l.slot <- struct{}{}:
				case <-ctx.Done():
					return
				}
			}
			yield(nil, err)
		}

		// emit validates where asked to, and passes a snapshot on; false ends the loop.
		emit := func(reason string, validate bool) bool {
			var metrics map[string]float64
			if validate && l.Validate != nil {
				var err error
				metrics, err = l.validate(ctx)
				switch {
				case err != nil && ctx.Err() == nil && l.stopped():
					reason, l.Due = "stop", true // cut short: nothing was measured
				case err != nil:
					if what, ok := errors.AsType[*vqgan.NonFiniteError](err); ok {
						d := &DivergedError{Incident: l.Guard.nonFinite(l.Step+1, what.What), Err: what}
						d.Step = l.Step // which made the weights that the next one would have met
						err = d
					}
					fail(fmt.Errorf("validate: %w", err))
					return false
				default:
					validated, l.Due = l.Step, false
				}
			}
			s, err := l.snapshot(ctx, reason, metrics)
			if err != nil {
				yield(nil, err)
				return false
			}
			saved = l.Step
			return yield(s, nil)
		}

		// settle finishes the step in flight and does what follows from it; false ends the loop.
		var flying *flight
		settle := func() bool {
			f := flying
			flying = nil
			st, err := l.finish(f)
			if err != nil {
				fail(err)
				return false
			}
			now := time.Now()
			st.Seconds = now.Sub(last).Seconds()
			pacing := l.pacing()
			if pacing && l.Step-l.first > unpaced {
				timed += now.Sub(last)
			}
			last, st.Total = now, l.Schedule.Steps
			if l.Report != nil {
				l.Report(st)
			}
			if l.Guard != nil {
				if i := l.Guard.Watch(l.Step, reading(st.Stats)); i != nil {
					fail(&DivergedError{Incident: *i, Tags: f.tags})
					return false
				}
			}
			if l.finished() {
				return true
			}
			if pacing && l.Step-l.first == unpaced+pace {
				each := timed / pace
				if began := time.Now(); l.Validate != nil {
					if !emit("validate", true) {
						return false
					}
					each += time.Since(began) / time.Duration(l.EveryVal)
				}
				l.Pace = max(each, 1)
				l.Schedule.Steps = l.Step + max(1, int((l.Hours-time.Since(start))/l.Pace))
				last = time.Now()
			}
			validate := l.validates(l.Step) && validated != l.Step
			if f.why == "" && !validate {
				f.why = l.wanted(len(l.tags))
			}
			if validate || f.why != "" {
				if !emit(cmp.Or(f.why, "validate"), validate) {
					return false
				}
				last = time.Now()
			}
			return true
		}

		if l.Due && l.Validate != nil && !l.stopped() {
			if !emit("validate", true) {
				return
			}
			last = time.Now()
		}
		if !l.stopped() && !l.finished() {
			for b := range in {
				if b != nil && !l.stopped() {
					if err := l.Model.Feed(b.Input, b.Target, len(b.Tags)); err != nil {
						fail(fmt.Errorf("%s: %w", b.Tags[0], err))
						b.Release()
						return
					}
				}
				if flying != nil && !settle() {
					if b != nil {
						b.Release()
					}
					return
				}
				if b == nil {
					continue
				}
				if l.stopped() {
					b.Release()
					reason = "stop"
					break
				}
				flying = l.launch(b)
				if !l.due(flying) {
					continue
				}
				if !settle() {
					return
				}
				if l.finished() {
					break
				}
			}
			if flying != nil && !settle() {
				return
			}
		} else if l.stopped() {
			reason = "stop"
		}
		if ctx.Err() != nil {
			return // a hard stop: the batches' end isn't that of the data
		}
		if l.stopped() && !l.finished() {
			reason = "stop"
		}
		unmeasured := l.Validate != nil && reason == "end" && validated != l.Step
		if l.Step > saved || unmeasured {
			emit(reason, reason == "end")
		}
	}
}

// validate measures, until Stopping.
func (l *Loop) validate(ctx context.Context) (map[string]float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	watched := make(chan struct{})
	defer func() { cancel(); <-watched }()
	go func() {
		defer close(watched)
		select {
		case <-l.Stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	return l.Validate(ctx, l.Step)
}

func (l *Loop) stopped() bool {
	select {
	case <-l.Stopping:
		return true
	default:
		return false
	}
}

func (l *Loop) finished() bool { return l.last(l.Step) }

func (l *Loop) last(step int) bool {
	return l.MaxSteps > 0 && step >= l.MaxSteps || l.Schedule.Steps > 0 && step >= l.Schedule.Steps
}

// pacing says that steps are timed until Hours is a number of them.
func (l *Loop) pacing() bool { return l.Hours > 0 && l.Schedule.Steps == 0 }

// validates says whether held-out scans are measured behind a step.
func (l *Loop) validates(step int) bool { return l.Validate != nil && step%l.EveryVal == 0 }

// wanted is why a snapshot is due after so many patches since the last one, other than by steps.
func (l *Loop) wanted(trained int) string {
	if l.Wanted == nil {
		return ""
	}
	return l.Wanted(trained)
}

// due says that the step in flight is to be finished before there is another batch: which may wait for what follows from it.
func (l *Loop) due(f *flight) bool {
	step := l.Step + 1
	if l.Every > 0 && step%l.Every == 0 {
		f.why = "every"
	}
	if f.why != "" || l.last(step) || l.validates(step) || l.pacing() && step-l.first == unpaced+pace {
		return true
	}
	f.why = l.wanted(len(l.tags) + len(f.tags))
	return f.why != ""
}

// launch begins a step on a batch that was fed, and releases it.
func (l *Loop) launch(b *volume.Batch) *flight {
	defer b.Release()
	l.Model.Launch()
	return &flight{tags: b.Tags, size: b.Size}
}

// finish ends the step in flight.
func (l *Loop) finish(f *flight) (Step, error) {
	n := len(f.tags)
	lr := l.Schedule.At(l.Step+1) * l.Guard.LRScale()
	stats, err := l.Model.Finish(lr)
	if err != nil {
		if what, ok := errors.AsType[*vqgan.NonFiniteError](err); ok {
			l.Guard.note(l.Step+1, stats.GAN.Active)
			return Step{}, &DivergedError{Incident: l.Guard.nonFinite(l.Step+1, what.What), First: l.Step == l.first && l.first > 0, Tags: f.tags, Err: what}
		}
		return Step{}, fmt.Errorf("step %d on %s: %w", l.Step+1, f.tags[0], err)
	}
	end := f.tags[n-1]
	l.Step++
	l.Patches += n
	l.Cursor = volume.Cursor{Epoch: end.Epoch, Seq: end.Seq + 1}
	if l.Every > 0 {
		l.tags = append(l.tags, f.tags...)
	}
	voxels := int64(n) * int64(f.size[0]) * int64(f.size[1]) * int64(f.size[2])
	return Step{Step: l.Step, Cursor: l.Cursor, Patches: n, Voxels: voxels, LR: lr, Stats: stats}, nil
}

// snapshot copies the state, once the snapshot before it has been released.
func (l *Loop) snapshot(ctx context.Context, reason string, metrics map[string]float64) (*volume.Snapshot, error) {
	select {
	case l.slot <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if l.Room != nil {
		l.Room(ctx)
	}
	state, err := l.Model.State()
	if err != nil {
		return nil, fmt.Errorf("state at step %d: %w", l.Step, err)
	}
	s := &volume.Snapshot{Step: l.Step, Cursor: l.Cursor, Metrics: metrics, Reason: reason, Tags: l.tags,
		Free: func() { <-l.slot }}
	for _, a := range state {
		s.Arrays = append(s.Arrays, volume.Array(a))
	}
	if l.Meta != nil {
		if s.Meta, err = l.Meta(l); err != nil {
			s.Release()
			return nil, err
		}
	}
	l.tags = nil
	return s, nil
}
