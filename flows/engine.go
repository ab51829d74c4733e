package flows

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/cpu"
	"github.com/flowrun/flowrun/gpu/cuda"
	"github.com/flowrun/flowrun/gpu/nn"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/infer"
	"github.com/flowrun/flowrun/stages/train"
)

// engine opens the device that a stage names: auto is the first GPU that can be used, else the CPU. The job divides memory accordingly.
func (j *Job) engine(device string) (gpu.Engine, error) {
	if e := j.ready; e != nil {
		j.ready = nil
		return e, nil
	}
	j.card, j.passed = nil, nil
	switch ordinal, named := cudaOrdinal(device); {
	case named:
		return j.open(ordinal)
	case device == "auto":
		ordinal, err := firstCard()
		if ordinal >= 0 {
			return j.open(ordinal)
		}
		j.passed = err
	}
	return cpu.New(j.workers()), nil
}

func (j *Job) open(ordinal int) (gpu.Engine, error) {
	card, err := cuda.Open(ordinal)
	if err != nil {
		return nil, fmt.Errorf("device: cuda:%d: %w", ordinal, err)
	}
	j.card = card
	return card, nil
}

// warnLess says why a GPU computes more slowly than it could, or not at all.
func (r *run) warnLess() {
	if err := r.job.passed; err != nil {
		r.log.Warn().Str("event", "device").Msgf("device: auto: the CPU computes: %v; see flowrun devices", err)
	}
	if c := r.job.card; c != nil && c.Less() != "" {
		r.log.Warn().Str("event", "device").Msg(c.Less())
	}
}

// cured adds to the failure of a GPU what can be done about it; false says that err is none.
func cured(err error) (error, bool) {
	if _, ok := errors.AsType[*cuda.Error](err); !ok {
		return err, false
	}
	cure := "nvidia-smi and the system's log may say why"
	switch {
	case errors.Is(err, cuda.ErrOutOfMemory):
		cure = "free the device's memory (nvidia-smi lists who holds it), or choose another device"
	case errors.Is(err, cuda.ErrCompile):
		cure = "update the NVIDIA driver, or set device to cpu"
	}
	return fmt.Errorf("%w; %s", err, cure), true
}

// planned is engine for a plan: of a GPU that can't be opened here it knows sizes, and missing says why.
func (j *Job) planned(device string) (e gpu.Engine, missing, err error) {
	e, err = j.engine(device)
	if ordinal, named := cudaOrdinal(device); named && err != nil {
		j.card = cuda.Plan(ordinal)
		return j.card, err, nil
	}
	return e, nil, err
}

// cudaOrdinal is N of cuda:N.
func cudaOrdinal(device string) (int, bool) {
	text, named := strings.CutPrefix(device, "cuda:")
	n, err := strconv.Atoi(text)
	return n, named && err == nil
}

// firstCard is the first GPU that the engine can use, -1 if there is none: err says why, where a driver promises one.
func firstCard() (ordinal int, err error) {
	devices, err := cuda.Devices()
	if errors.Is(err, cuda.ErrNoDriver) || errors.Is(err, cuda.ErrNotBuilt) {
		return -1, nil
	}
	for i, d := range devices {
		unfit := d.Usable()
		if unfit == nil {
			return i, nil
		}
		err = cmp.Or(err, fmt.Errorf("cuda:%d: %w", i, unfit))
	}
	return -1, err
}

// checkDevice refuses a GPU that can't be used here.
func (p *piece) checkDevice(device string) error {
	ordinal, named := cudaOrdinal(device)
	if !named {
		return nil
	}
	devices, err := cuda.Devices()
	if err == nil && ordinal >= len(devices) {
		err = fmt.Errorf("there is no such GPU, the last is cuda:%d", len(devices)-1)
	} else if err == nil {
		err = devices[ordinal].Usable()
	}
	if err != nil {
		return &ConfigError{p.file.Errorf("device", "%s: %v; set it to cpu or auto, or see flowrun devices", device, err)}
	}
	return nil
}

// checkDevices is checkDevice for each stage that computes.
func (j *Job) checkDevices() error {
	for _, p := range j.pieces {
		device := ""
		switch o := p.options.(type) {
		case *train.Options:
			device = o.Device
		case *infer.Options:
			device = o.Device
		case *infer.CodeOptions:
			device = o.Device
		}
		if err := p.checkDevice(device); err != nil {
			return err
		}
	}
	return nil
}

// onHost is the bytes that an arena takes of the host's memory.
func (j *Job) onHost(arena int64) int64 {
	if j.card != nil {
		return 0
	}
	return arena
}

// usualCard is what a card of 24 GB leaves an arena: what a plan assumes of a card that isn't here.
const usualCard = 22 << 30

// arenaLimit is the bytes that an engine's arena may take, at most memory where that isn't 0.
func (j *Job) arenaLimit(memory int64) int64 {
	limit := j.hostLimit() - j.reserved
	if j.card != nil {
		if limit = j.card.Free(); limit == 0 && memory == 0 {
			return usualCard
		}
	}
	if memory == 0 || limit > 0 && limit < memory {
		return limit
	}
	return memory
}

// sessionOptions is what a session needs to know of the job's stages.
func (j *Job) sessionOptions(o train.Options, patch [3]int) vqgan.Options {
	b, _ := option[batch.Options](j)
	return vqgan.Options{Patch: patch, Batch: b.Size, MicroBatch: o.MicroBatch, Infer: 1, Loss: o.Loss, Codebook: o.Codebook, GAN: o.GAN,
		Perceptual: o.Perceptual, LPIPS: j.lpips, Clip: o.Clip, EMA: o.EMA, Beta1: 0.5, Beta2: 0.9, MemoryLimit: j.arenaLimit(o.Memory), Seed: j.run.Seed}
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
	e, err := j.engine(o.Device)
	if err != nil {
		return nil, nil, err
	}
	j.reserve(e, d, o, patch)
	s, err := vqgan.Open(e, j.model, j.sessionOptions(o, patch))
	if err != nil {
		return nil, nil, errors.Join(j.misfit(e, o, patch, err), e.Close())
	}
	if j.lpips != nil {
		j.lpips.Forget()
	}
	return s, e, nil
}

// limitOf says what arenaLimit is.
func (j *Job) limitOf(memory int64) string {
	switch {
	case memory > 0 && j.arenaLimit(memory) == memory:
		return "train.memory"
	case j.card != nil && j.card.Free() > 0:
		return "what the device has free"
	case j.card != nil:
		return "what a card of 24 GB has free"
	}
	return "what run.memory leaves"
}

// misfit explains an arena that is larger than the limit by a patch that would fit, or, where it is the discriminators' fault, by
// their channels.
func (j *Job) misfit(e gpu.Engine, o train.Options, patch [3]int, err error) error {
	if _, ok := errors.AsType[*cuda.Error](err); ok {
		return err
	}
	var tight *vqgan.MemoryError
	if !errors.As(err, &tight) {
		return configErrorf("%s: %w", j.path, err)
	}
	limit := j.limitOf(o.Memory)
	alone := o
	if alone.GAN.Weight = 0; o.GAN.Weight > 0 {
		if _, err := j.plan(e, alone, patch); err == nil {
			return j.tooWide(e, o, patch, tight, limit)
		}
	}
	for small := patch; ; {
		a := 0
		for i := range small {
			if small[i] >= small[a] {
				a = i
			}
		}
		if small[a]%(2*j.multiple()[a]) != 0 {
			return configErrorf("%s: %w; the limit is %s; no patch fits: raise the limit, or choose a smaller model", j.path, err, limit)
		}
		small[a] /= 2
		if _, err := j.plan(e, o, small); err == nil {
			return configErrorf("%s: tile.patch: %s: %w; the limit is %s; %s would fit", j.path, list(patch), tight, limit, list(small))
		}
	}
}

// tooWide explains an arena that fits without discriminators.
func (j *Job) tooWide(e gpu.Engine, o train.Options, patch [3]int, tight *vqgan.MemoryError, limit string) error {
	for few := o; few.GAN.Channels > 1; {
		few.GAN.Channels /= 2
		if _, err := j.plan(e, few, patch); err == nil {
			return configErrorf("%s: train.gan.channels: %d: memory: with its discriminators the model needs %s, and %s would be enough without; the limit is %s; %d channels would fit",
				j.path, o.GAN.Channels, size(tight.Need), size(j.without(e, o, patch)), limit, few.GAN.Channels)
		}
	}
	return configErrorf("%s: train.gan.weight: memory: with discriminators the model needs %s, and %s would be enough without; the limit is %s; no number of channels fits",
		j.path, size(tight.Need), size(j.without(e, o, patch)), limit)
}

// without is what the model needs without discriminators.
func (j *Job) without(e gpu.Engine, o train.Options, patch [3]int) int64 {
	o.GAN.Weight = 0
	plan, err := j.plan(e, o, patch)
	if err != nil {
		return 0
	}
	return plan.Total
}

// plan is the arena of the job's model for a patch size.
func (j *Job) plan(e gpu.Engine, o train.Options, patch [3]int) (*nn.Plan, error) {
	return vqgan.PlanFor(e, j.model, j.sessionOptions(o, patch))
}
