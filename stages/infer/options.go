package infer

import (
	"fmt"
	"regexp"
)

// IdentityName is the checkpoint of the model that gives back what it gets.
const IdentityName = "identity"

// Weights of Options.
const (
	WeightsEMA = "ema"
	WeightsRaw = "raw"
)

// Options are the keys of the infer stage.
type Options struct {
	Checkpoint string `key:"checkpoint" required:"true" example:"runs/ctpa/checkpoints/last.safetensors" doc:"Checkpoint of the model. identity gives back what it gets, for trying a flow."`
	Device     string `key:"device" default:"auto" doc:"What computes: auto (a GPU if there is one that this build can use, else the CPU), cpu, or cuda:N."`
	Weights    string `key:"weights" default:"ema" oneof:"ema raw" doc:"Which weights of the checkpoint: ema is their running mean, raw the weights of the last step."`
	Memory     int64  `key:"memory" default:"0" unit:"bytes" min:"0" doc:"Limit of the engine's arena. 0 is what the device has free."`
}

var cuda = regexp.MustCompile(`^cuda:\d+$`)

// Check finds devices that can't be.
func (o *Options) Check() error {
	if o.Device != "auto" && o.Device != "cpu" && !cuda.MatchString(o.Device) {
		return fmt.Errorf("device: unknown device %q (want auto, cpu or cuda:N)", o.Device)
	}
	return nil
}

// CodeOptions are the keys of the stages encode and decode.
type CodeOptions struct {
	Checkpoint string `key:"checkpoint" required:"true" example:"runs/ctpa/checkpoints/last.safetensors" doc:"Checkpoint of the model; decode wants the one that the codes were made with."`
	Device     string `key:"device" default:"auto" doc:"What computes: auto (a GPU if there is one that this build can use, else the CPU), cpu, or cuda:N."`
	Weights    string `key:"weights" default:"ema" oneof:"ema raw" doc:"Which weights of the checkpoint: ema is their running mean, raw the weights of the last step."`
	Memory     int64  `key:"memory" default:"0" unit:"bytes" min:"0" doc:"Limit of the engine's arena. 0 is what the device has free."`
	Patch      [3]int `key:"patch" default:"[0, 0, 0]" unit:"voxels x, y, z" min:"0" max:"8192" doc:"Largest tile that is computed at a time. Zeros take the patch that the model was trained with. With norm: channel the result doesn't depend on it."`
	Stride     [3]int `key:"stride" default:"[0, 0, 0]" unit:"voxels x, y, z" min:"0" doc:"Step between tiles, for a model with GroupNorm, whose codes are those of overlapping tiles. Zeros take three quarters of the patch."`
}

// Options are the keys that say which model and where.
func (o *CodeOptions) Options() Options {
	return Options{Checkpoint: o.Checkpoint, Device: o.Device, Weights: o.Weights, Memory: o.Memory}
}

// Check finds devices that can't be.
func (o *CodeOptions) Check() error {
	p := o.Options()
	return p.Check()
}
