package flows

import (
	"errors"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/cpu"
	"github.com/flowrun/flowrun/gpu/nn"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/train"
)

// engine opens the device that a stage names. Load has refused those that this build doesn't have.
func (j *Job) engine(string) gpu.Engine { return cpu.New(j.workers()) }

// sessionOptions is what a session needs to know of the job's stages.
func (j *Job) sessionOptions(o train.Options, patch [3]int) vqgan.Options {
	b, _ := option[batch.Options](j)
	limit := o.Memory
	if host := j.hostLimit() - j.reserved; limit == 0 || limit > host {
		limit = host
	}
	return vqgan.Options{Patch: patch, Batch: b.Size, MicroBatch: o.MicroBatch, Infer: 1, Loss: o.Loss, Codebook: o.Codebook, GAN: o.GAN,
		Clip: o.Clip, EMA: o.EMA, Beta1: 0.5, Beta2: 0.9, MemoryLimit: limit, Seed: j.run.Seed}
}

// hostLimit is the memory that the run may use.
func (j *Job) hostLimit() int64 {
	if j.run.Memory > 0 {
		return j.run.Memory
	}
	return hostMemory() / 4 * 3
}

// openSession opens the model on its device.
func (j *Job) openSession(d *data, o train.Options, patch [3]int) (*vqgan.Session, gpu.Engine, error) {
	e := j.engine(o.Device)
	j.reserve(e, d, o, patch)
	s, err := vqgan.Open(e, j.model, j.sessionOptions(o, patch))
	if err != nil {
		return nil, nil, errors.Join(j.misfit(e, o, patch, err), e.Close())
	}
	return s, e, nil
}

// misfit explains an arena that is larger than the limit by a patch that would fit.
func (j *Job) misfit(e gpu.Engine, o train.Options, patch [3]int, err error) error {
	var tight *vqgan.MemoryError
	if !errors.As(err, &tight) {
		return configErrorf("%s: %w", j.path, err)
	}
	for small := patch; ; {
		a := 0
		for i := range small {
			if small[i] >= small[a] {
				a = i
			}
		}
		if small[a]%(2*j.multiple()[a]) != 0 {
			return configErrorf("%s: %w; no patch fits: choose a smaller model", j.path, err)
		}
		small[a] /= 2
		if _, err := j.plan(e, o, small); err == nil {
			return configErrorf("%s: tile.patch: %s: %w; %s would fit", j.path, list(patch), tight, list(small))
		}
	}
}

// plan is the arena of the job's model for a patch size.
func (j *Job) plan(e gpu.Engine, o train.Options, patch [3]int) (*nn.Plan, error) {
	return vqgan.PlanFor(e, j.model, j.sessionOptions(o, patch))
}
