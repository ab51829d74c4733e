package flows

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"time"

	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

// A run in which training goes wrong goes back in place: the graph has ended, a checkpoint from before the trouble is loaded
// into the same session, and a new graph goes on from there. All that this changes of the run's course is put into that
// checkpoint before the first step, so that a kill at any moment either finds it there or goes through the same trouble once
// more, to the same end.

// openGuard is the run's guard, with what a snapshot remembers; nil where it is off.
func (r *run) openGuard(snap *volume.Snapshot, o train.Options) (*train.Guard, error) {
	if o.Guard.Tries == 0 {
		return nil, nil
	}
	guard := train.NewGuard(o.Guard, o.LR)
	if snap == nil {
		return guard, nil
	}
	anew, err := guard.Load(snap.Meta["guard"])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.last, err)
	}
	if anew { // those of another course stay on record
		known, err := observe.Divergences(r.job.run.Dir)
		if err != nil {
			return nil, err
		}
		for _, d := range known {
			if d.TrainLR != guard.LR { // else this course was killed before its first checkpoint, and goes through it again
				guard.Incidents = max(guard.Incidents, d.Number)
			}
		}
	}
	if guard.Scale != 1 {
		r.log.Info().Float64("lr_scale", guard.Scale).Msg("the learning rate stays lowered; a new train.lr would take its place")
	}
	return guard, nil
}

// goBack brings the run to where it can go on from an incident; false says that it is to stop.
func (r *run) goBack(ctx context.Context, d *train.DivergedError) (goesOn bool, err error) {
	guard := r.loop.Guard
	lr := r.loop.Schedule.At(d.Step) * guard.Scale
	_, delays := r.loop.Model.(train.Delayer)
	action := guard.Answer(&d.Incident, delays)
	var snap *volume.Snapshot // nil: there is nothing but the beginning
	path, step := "", 0
	if r.store != nil {
		if snap, path, err = r.store.Before(d.Sound()); err != nil {
			return false, err
		}
		if snap != nil {
			step = snap.Step
		}
		if err := r.store.Suspect(step); err != nil {
			return false, err
		}
	}
	if err := r.record(d, action, lr, step, path); err != nil {
		return false, err
	}
	e := r.log.Warn().Str("event", "incident").Int("step", d.Step).Int("since", d.Since).Str("kind", string(d.Kind)).
		Str("action", string(action)).Int("back_to", step).Float64("lr_scale", guard.Scale)
	if guard.GANStart > 0 {
		e = e.Int("gan_start", guard.GANStart)
	}
	e.Msg("training went wrong: " + d.What)
	if action == train.Stop {
		d.Advice = r.advice(path)
		return false, nil
	}
	return true, r.restart(ctx, snap, path)
}

// record writes the incident down.
func (r *run) record(d *train.DivergedError, action train.Action, lr float64, step int, path string) error {
	guard := r.loop.Guard
	i := observe.Divergence{
		Number: guard.Incidents, Time: time.Now().Truncate(time.Second), Step: d.Step, Since: d.Since, Kind: string(d.Kind), What: d.What,
		Measured: d.Measured, Scans: []string{}, Action: string(action), Try: guard.Tries, Tries: guard.Options.Tries, BackTo: step,
		LR: lr, TrainLR: guard.LR, LRScale: guard.Scale, GANStart: guard.GANStart,
	}
	if path != "" {
		i.Checkpoint = filepath.ToSlash(filepath.Join("checkpoints", filepath.Base(path)))
	}
	if i.Measured == nil {
		i.Measured = map[string]float64{}
	}
	named := map[string]bool{}
	for _, t := range d.Tags {
		if !named[t.Scan] {
			named[t.Scan] = true
			i.Scans = append(i.Scans, t.Scan)
		}
	}
	return observe.AddDivergence(r.job.run.Dir, i)
}

// advice is the end of the last line of a run that diverged for good. path is the checkpoint that is left, "" for none.
func (r *run) advice(path string) string {
	guard := r.loop.Guard
	var how []string
	what, from := "set train.lr lower", "to begin anew"
	if guard.Scale < 1 {
		how = append(how, fmt.Sprintf("%.2g times train.lr", guard.Scale))
	}
	if guard.GANStart > 0 {
		how = append(how, fmt.Sprintf("discriminators from step %d on", guard.GANStart))
		what = "set train.lr or train.gan.weight lower"
	}
	if path != "" {
		from = "to go on from " + path
	}
	return fmt.Sprintf("going back %d times was in vain, the last time with %s; %s and run it again %s; %s says more", guard.Tries,
		strings.Join(how, " and "), what, from, r.file("incidents.jsonl"))
}

// restart puts the run where a snapshot is, or at its beginning where that is nil.
func (r *run) restart(ctx context.Context, snap *volume.Snapshot, path string) error {
	o, _ := option[train.Options](r.job)
	memory, step := "", 0
	r.last, r.start = path, volume.Cursor{}
	if snap != nil {
		memory, step = snap.Meta["guard"], snap.Step
		if !r.job.queued() {
			r.start = snap.Cursor
		}
	} else if err := r.session.Init(); err != nil {
		return err
	}
	if err := r.loop.Guard.Resume(memory); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := r.fill(snap, *o); err != nil {
		return err
	}
	if err := r.rewind(snap); err != nil {
		return err
	}
	pace := r.loop.Pace
	*r.loop = *r.newLoop(snap, *o, r.total(snap, *o, pace), r.loop.Guard) // in place: others look at it
	r.loop.Pace = pace
	var err error
	if r.left, err = r.job.replay(r.data, r.quarantine, r.start); err != nil {
		return err
	}
	if err := r.metrics.Back(step); err != nil {
		return err
	}
	return r.keep(ctx, snap)
}

// keep saves the snapshot that the run goes on from once more, with its new course; of a run that begins anew, that of step 0.
func (r *run) keep(ctx context.Context, snap *volume.Snapshot) error {
	if r.store == nil {
		return nil
	}
	meta, err := r.meta(r.loop)
	if err != nil {
		return err
	}
	again := volume.Snapshot{Reason: "start", Meta: map[string]string{}}
	if snap != nil {
		again = *snap
	} else {
		state, err := r.session.State()
		if err != nil {
			return err
		}
		for _, a := range state {
			again.Arrays = append(again.Arrays, volume.Array(a))
		}
	}
	again.Meta = maps.Clone(again.Meta)
	maps.Copy(again.Meta, meta)
	if r.queues != nil {
		again.Tags = nil // they were acknowledged
		kept, err := r.ledgered(&again)
		if err != nil {
			return err
		}
		again = *kept
	}
	r.last, err = r.save(ctx, &again)
	return err
}
