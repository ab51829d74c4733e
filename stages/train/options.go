package train

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/flowrun/flowrun/gpu/vqgan"
)

// Options are the keys of the train stage.
type Options struct {
	Device     string                `key:"device" default:"auto" doc:"What computes: auto (a GPU if there is one that this build can use, else the CPU), cpu, or cuda:N."`
	Memory     int64                 `key:"memory" default:"0" unit:"bytes" min:"0" doc:"Limit of the engine's arena; the planner recomputes activations to stay below it. 0 is what the device has free."`
	Epochs     int                   `key:"epochs" default:"30" min:"1" doc:"Passes over the training scans."`
	MaxSteps   int                   `key:"max_steps" default:"0" unit:"optimiser steps" min:"0" doc:"End after this many steps even if epochs are left; 0 is no limit."`
	MicroBatch int                   `key:"micro_batch" default:"0" unit:"patches" min:"0" doc:"Patches computed at a time; gradients of a batch are summed over its micro-batches. 0 is the whole batch. 1024 at most."`
	LR         float64               `key:"lr" default:"3e-4" min:"0" doc:"Peak learning rate of Adam (betas 0.5 and 0.9)."`
	Warmup     int                   `key:"warmup" default:"100" unit:"optimiser steps" min:"0" doc:"Steps over which the learning rate rises linearly from 0."`
	Schedule   string                `key:"schedule" default:"cosine" oneof:"cosine constant" doc:"Learning rate after the warm-up: cosine falls to 0 at the last step."`
	Clip       float64               `key:"clip" default:"1" min:"0" doc:"Largest global norm of the gradient; 0 doesn't clip."`
	EMA        float64               `key:"ema" default:"0.999" min:"0" max:"0.999999" doc:"Decay of the running mean of the weights that evaluation uses, warmed up; 0 keeps none."`
	Init       string                `key:"init" doc:"Checkpoint whose weights and codebook a new run starts from, without its optimiser."`
	Loss       vqgan.Loss            `key:"loss" doc:"Weights of the loss's terms."`
	Codebook   vqgan.CodebookOptions `key:"codebook" doc:"How the codebook is learnt."`
	GAN        vqgan.GAN             `key:"gan" doc:"Adversarial training. Off unless gan.weight is given."`
	Guard      GuardOptions          `key:"guard" doc:"What is done where training goes wrong: the run goes back to a sound checkpoint and changes its course. incidents.jsonl in the run's folder tells."`
	Perceptual vqgan.Perceptual      `key:"perceptual" doc:"LPIPS as a loss. Off unless perceptual.weight is given."`
	Validate   Validate              `key:"validate" doc:"Which scans are held out, and when they are measured."`
}

// Validate are the keys of the validate block.
type Validate struct {
	Share   float64  `key:"share" default:"0.1" min:"0" max:"0.9" doc:"Share of the patients held out, chosen by a stable hash of each. At least one patient is held out where there are two or more; 0 holds none."`
	Scans   []string `key:"scans" default:"[]" doc:"Held-out scans by name: path patterns in which * matches any characters, or a list file (.txt) of them. Replaces share."`
	Group   string   `key:"group" doc:"What tells patients apart, so that scans of one never cross the split: a regular expression on the scan's path whose first group (or whole match) is the patient, or FILE.csv#COLUMN, a table with a column scan. Empty: every scan is a patient. Copies of a file stay together in any case."`
	Every   int      `key:"every" default:"500" unit:"optimiser steps" min:"1" doc:"Steps between validations; one more at the end."`
	Patches int      `key:"patches" default:"64" min:"0" doc:"Patches measured at most in one validation, spread evenly over the held-out scans' grids; 0 is all."`
	Whole   int      `key:"whole" default:"0" unit:"scans" min:"0" doc:"Held-out scans that are also reconstructed whole, from overlapping tiles blended by a Hann window, and measured so: val/whole_psnr, val/whole_ssim, val/whole_mae_hu, val/whole_hfen, val/whole_hf_ratio. With the EMA weights where there are any."`
}

// Check finds what no single key shows.
func (o *Options) Check() error {
	if o.LR == 0 {
		return errors.New("lr: 0 never learns (want more than 0)")
	}
	if o.Device != "auto" && o.Device != "cpu" && !regexp.MustCompile(`^cuda:\d+$`).MatchString(o.Device) {
		return fmt.Errorf("device: unknown device %q (want auto, cpu or cuda:N)", o.Device)
	}
	return nil
}

// Check compiles the patterns.
func (v *Validate) Check() error {
	if v.Group == "" || strings.Contains(v.Group, ".csv#") {
		return nil
	}
	if _, err := regexp.Compile(v.Group); err != nil {
		return fmt.Errorf("group: %w", err)
	}
	return nil
}
