package train

import (
	"context"
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
		r := &run{Loop: l, yield: yield, slot: make(chan struct{}, 1), first: l.Step, saved: l.Step, validated: l.Step, began: time.Now()}
		r.mark = r.began
		if err := r.all(ctx, in); err != nil {
			r.fail(ctx, err)
		}
	}
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
