// Package optim holds the arithmetic of an optimiser step that isn't per element: schedules, clipping, Adam's constants,
// the warm-up of running means. Plain functions of the step.
package optim

import (
	"math"

	"github.com/flowrun/flowrun/gpu"
)

// Schedule is a learning rate over optimiser steps.
type Schedule struct {
	LR     float64 // the highest
	Warmup int     // steps of a linear rise from LR/Warmup
	Steps  int     // steps in all, for Cosine; 0 while that isn't known: constant until then
	Final  float64 // where Cosine ends, as a share of LR
	Cosine bool    // falls by half a cosine behind the warm-up; else constant
}

// At is the learning rate of a step, counted from 1. Behind the last step it stays where it ended.
func (s Schedule) At(step int) float64 {
	if step <= s.Warmup {
		return s.LR * float64(max(step, 1)) / float64(s.Warmup)
	}
	if !s.Cosine || s.Steps == 0 {
		return s.LR
	}
	done := 1.0
	if n := s.Steps - s.Warmup; n > 0 {
		done = min(1, float64(step-s.Warmup)/float64(n))
	}
	return s.LR * (s.Final + (1-s.Final)*(1+math.Cos(math.Pi*done))/2)
}

// ClipFactor is what gradients are multiplied by so that their global norm is at most limit: min(1, limit/norm). A limit
// of 0 doesn't clip. The norm is the root of sumSquares.
func ClipFactor(sumSquares, limit float64) (factor, norm float64) {
	norm = math.Sqrt(sumSquares)
	if limit <= 0 || norm <= limit {
		return 1, norm
	}
	return limit / norm, norm
}

// AverageDecay is the decay of a running mean of the weights at a step counted from 1, min(d, (1+t)/(10+t)): early on the mean
// follows the weights instead of remembering how they started.
func AverageDecay(decay float64, step int) float64 {
	t := float64(step)
	return min(decay, (1+t)/(10+t))
}

// Adam is the constants of one step (Kingma and Ba, 2015) without weight decay, with PyTorch's ε of 1e-8.
func Adam(lr, beta1, beta2, clip, averageDecay float64, step int) gpu.Adam {
	return gpu.Adam{LR: float32(lr), Beta1: float32(beta1), Beta2: float32(beta2), Eps: 1e-8, GradScale: float32(clip),
		EMADecay: float32(averageDecay), Step: step}
}
