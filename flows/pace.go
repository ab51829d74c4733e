package flows

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/train"
)

// lastStep is the step that a run ends at, 0 where only time will tell.
func (p *planner) lastStep(o train.Options) int {
	if p.run.Hours > 0 {
		return 0
	}
	return lastStep(p.data.steps(o.Epochs, p.sessionOptions(o, [3]int{}).Batch), o.MaxSteps)
}

// lastStep is the lesser of the steps in all epochs and those that are allowed, where 0 is no number.
func lastStep(epochs, most int) int {
	if most > 0 && (epochs == 0 || most < epochs) {
		return most
	}
	return epochs
}

// pace is the seconds that a step takes before and behind the discriminators' start.
type pace struct {
	plain, adversarial float64
	start              int
}

func (p pace) seconds(steps int) float64 {
	before := min(steps, p.start)
	return float64(before)*p.plain + float64(steps-before)*p.adversarial
}

// steps is how many steps fit into so many seconds.
func (p pace) steps(seconds float64) int {
	before := float64(p.start) * p.plain
	if seconds < before {
		return int(seconds / p.plain)
	}
	return p.start + int((seconds-before)/p.adversarial)
}

// affordable is the work of a step that plan times, in FLOPs; of a larger one it times a smaller patch and scales.
const affordable = 2e11

// time takes a few steps on noise and says how long the run will be.
func (p *planner) time(ctx context.Context, o train.Options, patch [3]int) error {
	e, err := p.engine(o.Device)
	if err != nil {
		return err
	}
	defer func() { _ = e.Close() }()
	timed := patch
	plan, err := p.plan(e, o, timed)
	if err != nil {
		return err
	}
	for float64(plan.Step) >= affordable {
		a, less := 0, timed
		for i := range timed {
			if timed[i] > timed[a] {
				a = i
			}
		}
		if timed[a]%(2*p.multiple()[a]) != 0 {
			break
		}
		less[a] /= 2
		small, err := p.plan(e, o, less)
		if err != nil { // too small for a loss
			break
		}
		plan, timed = small, less
	}
	took, err := p.clock(ctx, e, o, timed)
	if err != nil {
		return err
	}
	scale := float64(patch[0]*patch[1]*patch[2]) / float64(timed[0]*timed[1]*timed[2])
	took.plain, took.adversarial = took.plain*scale, took.adversarial*scale
	note := ""
	if timed != patch {
		note = fmt.Sprintf(" (estimated from patches of %s)", list(timed))
	}
	batch := p.sessionOptions(o, patch).Batch
	p.line("time\t%s s a step, %s steps and %s patches an hour, without reading and validation%s",
		figure(took.plain), figure(3600/took.plain), figure(3600/took.plain*float64(batch)), note)
	if o.GAN.Weight > 0 {
		p.line("  discriminators\t%s s a step behind step %d", figure(took.adversarial), o.GAN.Start)
	}
	total := p.data.steps(o.Epochs, batch)
	switch {
	case p.run.Hours > 0:
		fit := took.steps(p.run.Hours * 3600)
		p.line("  run.hours\t%g hours are about %d steps, %s epochs", p.run.Hours, fit, figure(float64(fit)/float64(max(1, p.data.steps(1, batch)))))
	case o.MaxSteps > 0 && o.MaxSteps < total:
		p.line("  to finish\t%d steps (train.max_steps): %s", o.MaxSteps, hours(took.seconds(o.MaxSteps)))
	default:
		p.line("  to finish\t%d steps of %d epochs: %s", total, o.Epochs, hours(took.seconds(total)))
	}
	return nil
}

// clock times steps on patches of a size.
func (p *planner) clock(ctx context.Context, e gpu.Engine, o train.Options, patch [3]int) (pace, error) {
	const untimed, timed = 2, 3
	took := pace{start: o.GAN.Start}
	options := p.sessionOptions(o, patch)
	options.GAN.Start = untimed + timed
	s, err := vqgan.Open(e, p.Job.model, options)
	if err != nil {
		return took, err
	}
	noise := make([]float32, patch[0]*patch[1]*patch[2]*options.Batch)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = r.Float32()*2 - 1
	}
	for _, phase := range []*float64{&took.plain, &took.adversarial} {
		var start time.Time
		for i := range untimed + timed {
			if i == untimed {
				start = time.Now()
			}
			if err := ctx.Err(); err != nil {
				return took, context.Cause(ctx)
			}
			if _, err := s.Step(noise, noise, options.Batch, 1e-6); err != nil {
				return took, err
			}
		}
		*phase = time.Since(start).Seconds() / timed
		if o.GAN.Weight == 0 {
			took.adversarial = took.plain
			break
		}
	}
	return took, nil
}
