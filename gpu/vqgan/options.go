package vqgan

import (
	"errors"
	"fmt"
	"slices"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/nn"
)

// Loss is the weights of what training minimises.
type Loss struct {
	L1         float64 `key:"l1" default:"1" min:"0" doc:"Weight of the mean absolute error, with intensities in [-1, 1]. The predecessor used 4."`
	L2         float64 `key:"l2" default:"0" min:"0" doc:"Weight of the mean squared error."`
	SSIM       float64 `key:"ssim" default:"0" min:"0" example:"0.5" doc:"Weight of 1 - multi-scale SSIM in 3D, over the whole window. The patch must be at least 11 voxels along each axis."`
	Commitment float64 `key:"commitment" default:"0.25" min:"0" doc:"Weight of the mean squared distance between latents and their codes, of both codebooks with model.quantizer: residual. fsq has none."`
}

// window is SSIM's, voxels; scaleWeights are MS-SSIM's exponents (Wang, Simoncelli and Bovik, 2003), from full resolution on.
const window = 11

var scaleWeights = []float64{0.0448, 0.2856, 0.3001, 0.2363, 0.1333}

// similarity has as many of the five scales as a patch has room for. Their exponents sum to 1.
func similarity(patch [3]int) gpu.Similarity {
	n, sum := 0, 0.0
	for side := min(patch[0], patch[1], patch[2]); n < len(scaleWeights) && side >= window; side /= 2 {
		sum += scaleWeights[n]
		n++
	}
	k := gpu.Similarity{Weights: slices.Clone(scaleWeights[:n])}
	for i := range k.Weights {
		k.Weights[i] /= sum
	}
	return k
}

// Check says whether there is anything to minimise.
func (l *Loss) Check() error {
	if l.L1 == 0 && l.L2 == 0 {
		return fmt.Errorf("l1: this and l2 are both 0: nothing would compare the reconstruction with the input")
	}
	return nil
}

// CodebookOptions say how codes follow the latents, where there are codebooks.
type CodebookOptions struct {
	Decay   float64 `key:"decay" default:"0.99" min:"0" max:"0.99999" doc:"Share of a code's running mean that one optimiser step keeps."`
	Restart float64 `key:"restart" default:"1" min:"0" doc:"A code whose running count of latents per optimiser step falls below this moves to a latent of a recent batch. Where a step has fewer than 4 latents per code the bound shrinks with them, so that no code is moved before it could be used. 0 is off."`
}

// Options are what a session needs beside the model's shape. Sizes are x, y, z, voxels.
type Options struct {
	Patch      [3]int
	Batch      int // patches per optimiser step, at most
	MicroBatch int // patches per pass; Batch where it is 0
	Infer      int // patches per pass of Reconstruct; MicroBatch where it is 0

	Loss     Loss
	Codebook CodebookOptions
	GAN      GAN

	Perceptual Perceptual
	LPIPS      *LPIPS // where Perceptual is on; planning does without

	Clip         float64 // largest global norm of the gradient; 0 is off
	EMA          float64 // decay of the running mean of the weights; 0 is off
	Beta1, Beta2 float64 // Adam's; the predecessor's are 0.5 and 0.9
	MemoryLimit  int64   // bytes of the arena; 0 is no limit
	Seed         uint64

	recompute nn.Recompute
}

// check fills defaults in and says whether options and model fit.
func (o *Options) check(c *Config) error {
	if err := c.complete(); err != nil {
		return fmt.Errorf("model: %w", err)
	}
	if o.MicroBatch == 0 {
		o.MicroBatch = o.Batch
	}
	if o.Infer == 0 {
		o.Infer = o.MicroBatch
	}
	if err := c.checkSize("patch", o.Patch); err != nil {
		return err
	}
	switch {
	case o.Batch < 1:
		return fmt.Errorf("batch: %d (want at least 1)", o.Batch)
	case o.MicroBatch < 1 || o.MicroBatch > o.Batch:
		return fmt.Errorf("micro_batch: %d (want 1 to the batch, %d)", o.MicroBatch, o.Batch)
	case o.Infer < 1:
		return fmt.Errorf("infer: %d (want at least 1)", o.Infer)
	case o.Beta1 < 0 || o.Beta1 >= 1 || o.Beta2 < 0 || o.Beta2 >= 1:
		return fmt.Errorf("betas: %v, %v (want 0 to below 1)", o.Beta1, o.Beta2)
	case o.EMA < 0 || o.EMA >= 1:
		return fmt.Errorf("ema: %v (want 0 to below 1)", o.EMA)
	case o.Clip < 0:
		return fmt.Errorf("clip: %v (want at least 0)", o.Clip)
	}
	if err := o.Loss.Check(); err != nil {
		return fmt.Errorf("loss.%w", err)
	}
	if a := slices.Index(o.Patch[:], min(o.Patch[0], o.Patch[1], o.Patch[2])); o.Loss.SSIM > 0 && o.Patch[a] < window {
		return fmt.Errorf("loss.ssim: a patch of %d voxels along %c has no room for SSIM's window of %d", o.Patch[a], "xyz"[a], window)
	}
	if err := o.GAN.Check(); err != nil {
		return fmt.Errorf("gan.%w", err)
	}
	if err := errors.Join(o.Perceptual.Check(), o.Perceptual.CheckPatch(o.Patch)); err != nil {
		return fmt.Errorf("perceptual.%w", err)
	}
	return nil
}

// MemoryError says that the arena is larger than the limit, and what would fit.
type MemoryError struct {
	Need, Limit int64
	Hint        string // ": micro_batch 1 needs 3.2 GiB", or ""
}

func (e *MemoryError) Error() string {
	return fmt.Sprintf("memory: the model needs %s, the limit is %s%s", gib(e.Need), gib(e.Limit), e.Hint)
}

func gib(n int64) string {
	if n < 1<<30 {
		return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

// OptionError says that a state is one of other options than the session's.
type OptionError struct{ Key, Is, Was string } // the key below train, and its values

func (e *OptionError) Error() string {
	return fmt.Sprintf("%s: is %s, but the state has %s", e.Key, e.Is, e.Was)
}

// NonFiniteError says that a step gave NaN or infinity. The step wasn't taken: nothing of the state changed, but that spectral norm is
// an iteration nearer to its singular values.
type NonFiniteError struct {
	Step int    // the step that failed, counted from 1
	What string // "the gradient"
}

func (e *NonFiniteError) Error() string {
	return fmt.Sprintf("step %d: %s isn't finite", e.Step, e.What)
}
