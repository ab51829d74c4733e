package flows

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/flowrun/flowrun/gpu/optim"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
	"github.com/flowrun/flowrun/stages/weights"
)

// The model of a run that trains, and the loop around it.

// openModel plans, opens and fills the engine's session, and the loop around it.
func (r *run) openModel(snap *volume.Snapshot, o train.Options) error {
	j := r.job
	patch := j.patch()
	session, engine, err := j.openSession(r.data, o, patch)
	if err != nil {
		return err
	}
	r.session, r.engine = session, engine
	r.warnLess()
	if snap != nil {
		r.samePerceptual(snap)
		r.sameDiscriminators(snap, o)
	}
	if err := r.fill(snap, o); err != nil {
		return err
	}
	guard, err := r.openGuard(snap, o)
	if err != nil {
		return err
	}
	if r.epochs = o.Epochs; j.run.Hours > 0 {
		r.epochs = math.MaxInt
	}
	was, err := clockOf(snap)
	if err != nil {
		return fmt.Errorf("%s: %w", r.last, err)
	}
	r.before = was.spent()
	total := r.total(snap, o, was.pace())
	if snap != nil && was.Hours == j.run.Hours && was.Hours > 0 { // a run that was stopped keeps its course
		total, _ = strconv.Atoi(snap.Meta["total"])
	}
	if total > 0 && o.Warmup > total {
		r.log.Warn().Int("warmup", o.Warmup).Int("steps", total).Msg("train.warmup is longer than the run: the learning rate never gets to train.lr")
	}
	if total > 0 && o.GAN.Weight > 0 && o.GAN.Start >= total {
		r.log.Warn().Int("start", o.GAN.Start).Int("steps", total).Msg("train.gan.start is not before the end of the run: the discriminators never begin")
	}
	r.validator = j.newValidator(session, r.data, validateOptions{patch: patch, limit: o.Validate.Patches, whole: o.Validate.Whole, ema: o.EMA > 0,
		workers: j.workers(), setAside: r.setAside, status: r.status, alive: func() { r.watch.pulse.Add(1) }})
	if r.validator == nil {
		r.log.Warn().Msg("no scan is held out: nothing is validated, and no checkpoint can be called the best")
	}
	r.loop = r.newLoop(snap, o, total, guard)
	r.loop.Pace = was.pace()
	return nil
}

// sameDiscriminators says where a run goes on without its discriminators, or with new ones.
func (r *run) sameDiscriminators(snap *volume.Snapshot, o train.Options) {
	had := len(vqgan.Discriminators(weights.ToModel(snap.Arrays))) > 0
	switch {
	case had && o.GAN.Weight == 0:
		r.log.Warn().Msgf("train.gan.weight is 0: the discriminators of %s are left behind; if it gets a weight again, new ones begin", r.last)
	case !had && o.GAN.Weight > 0:
		r.log.Info().Msgf("%s has no discriminators: new ones begin behind step %d, with all of train.gan.ramp before them", r.last, max(snap.Step, o.GAN.Start))
	}
}

// fill gives the session a snapshot's state, or the weights that a new run begins with.
func (r *run) fill(snap *volume.Snapshot, o train.Options) error {
	switch {
	case snap != nil:
		err := r.session.SetState(weights.ToModel(snap.Arrays), true)
		if misfit := new(vqgan.OptionError); errors.As(err, &misfit) {
			return configErrorf("train.%s: is %s, but %s was trained with %s; choose another run.dir, or set it back", misfit.Key, misfit.Is, r.last, misfit.Was)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", r.last, err)
		}
	case o.Init != "":
		from, err := checkpoint.Load(o.Init)
		if err != nil {
			return configErrorf("train.init: %w", err)
		}
		if err := r.session.LoadWeights(weights.ToModel(from.Arrays), false); err != nil {
			return configErrorf("train.init: %s: %w", o.Init, err)
		}
	}
	return nil
}

// newLoop is the loop that goes on from a snapshot, nil for the beginning, up to a last step, 0 where that isn't known yet.
func (r *run) newLoop(snap *volume.Snapshot, o train.Options, total int, guard *train.Guard) *train.Loop {
	l := &train.Loop{Model: r.session, Guard: guard, MaxSteps: o.MaxSteps, Every: r.job.snapshotsEvery(), EveryVal: o.Validate.Every,
		Report: r.report, Meta: r.meta, Schedule: optim.Schedule{LR: o.LR, Warmup: o.Warmup, Steps: total, Cosine: o.Schedule == "cosine"}}
	if r.job.run.Hours > 0 {
		l.Hours = r.hoursLeft()
	}
	if snap != nil {
		l.Step, l.Cursor, l.Patches = snap.Step, snap.Cursor, r.job.trained(snap)
	}
	if r.validator != nil {
		l.Validate = r.validate
		l.Due = snap != nil && len(snap.Metrics) == 0 && l.Step > 0 && (l.Step%o.Validate.Every == 0 || total > 0 && l.Step >= total)
	}
	if d, ok := l.Model.(train.Delayer); ok && guard != nil && guard.GANStart > 0 {
		d.SetGANStart(guard.GANStart)
	}
	return l
}

// meta is what a checkpoint holds beside its arrays.
func (r *run) meta(l *train.Loop) (map[string]string, error) {
	meta, err := r.job.identity()
	if err != nil {
		return nil, err
	}
	scans, err := json.Marshal(r.data.all)
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, s := range r.data.held {
		names = append(names, s.ID)
	}
	held, err := json.Marshal(names)
	if err != nil {
		return nil, err
	}
	meta["scans"], meta["held"] = string(scans), string(held)
	if l.Guard != nil {
		if meta["guard"], err = l.Guard.Save(); err != nil {
			return nil, err
		}
	}
	if l := r.job.lpips; l != nil {
		meta[perceptualKey] = l.Digest()
	}
	meta["patches"] = strconv.Itoa(l.Patches)
	if r.job.run.Hours > 0 {
		if meta["clock"], err = r.clock(l).save(); err != nil {
			return nil, err
		}
	}
	meta["config"], meta["total"] = string(r.job.resolved), strconv.Itoa(l.Schedule.Steps)
	return meta, nil
}
