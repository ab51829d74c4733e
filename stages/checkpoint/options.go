package checkpoint

import "math"

// Options are the keys of the checkpoint stage.
type Options struct {
	Every int    `key:"every" default:"500" unit:"steps" min:"1" doc:"Optimiser steps between checkpoints. A validation, a stop and the end of the run write one too."`
	Keep  int    `key:"keep" default:"3" unit:"checkpoints" min:"1" doc:"How many of the best checkpoints are kept, beside the last one and the one before it."`
	Best  string `key:"best" default:"psnr" oneof:"psnr ssim mae_hu" doc:"The validation metric that ranks checkpoints: that of the EMA weights where there are any, else that of the raw ones. mae_hu is better when lower. Once discriminators are in full (train.gan), checkpoints from before rank no more: theirs is another aim."`
}

// Adversarial is a metric above 0 where the weights were trained with discriminators at their full weight.
const Adversarial = "val/adversarial"

// Disk is the most that checkpoints of the given size take at once, in bytes: those kept, and the one being written. With a
// probation (Store) there are one of a stop, two that may be gone back to, and a suspect more.
func (o Options) Disk(checkpoint int64, probation bool) int64 {
	n := o.Keep + 3
	if probation {
		n += 4
	}
	return int64(n) * checkpoint
}

// score ranks a checkpoint by its metrics, higher first. A checkpoint without the metric, or with one that isn't a
// number, has no rank.
func (o Options) score(metrics map[string]float64) (float64, bool) {
	v, ok := metrics["val/ema_"+o.Best]
	if !ok {
		v, ok = metrics["val/"+o.Best]
	}
	if o.Best == "mae_hu" {
		v = -v
	}
	return v, ok && !math.IsNaN(v)
}
