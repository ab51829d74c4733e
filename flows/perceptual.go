package flows

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/volume"
	"github.com/flowrun/flowrun/stages/weights"
)

// fitPerceptual checks train.perceptual against the patch and reads its weights. Without a weight it does nothing.
func (j *Job) fitPerceptual(p *piece, o *vqgan.Perceptual, patch [3]int) error {
	if !o.On() {
		return nil
	}
	if err := o.CheckPatch(patch); err != nil {
		return p.blame(fmt.Errorf("perceptual.%w", err))
	}
	var err error
	if j.lpips, err = readLPIPS(o.File); err != nil {
		return p.file.Errorf("perceptual.file", "%v (docs/perceptual.md says where the weights come from; perceptual.weight: 0 does without)", err)
	}
	return nil
}

// readLPIPS reads the perceptual network from a file of weights. Errors begin with the path.
func readLPIPS(path string) (*vqgan.LPIPS, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: no such file", path)
	}
	src, err := openWeights(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = src.Close() }() // it was only read
	shapes := map[string][]int{}
	for name, t := range src.Tensors {
		shapes[name] = t.Shape
	}
	names, err := vqgan.FindLPIPS(shapes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, name := range names {
		if t := src.Tensors[name]; !t.IsFloat() {
			return nil, fmt.Errorf("%s: %s is of type %s (want float32, float16, bfloat16 or float64)", path, name, t.DType)
		}
	}
	arrays, err := src.Read(names)
	if err != nil {
		return nil, err
	}
	l, err := vqgan.NewLPIPS(weights.ToModel(arrays))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return l, nil
}

// perceptualKey is a checkpoint's entry of the digest of the perceptual network that its loss was taken with.
const perceptualKey = "perceptual"

// samePerceptual warns where a run goes on with another perceptual network than it began with.
func (r *run) samePerceptual(snap *volume.Snapshot) {
	was := snap.Meta[perceptualKey]
	if l := r.job.lpips; l != nil && was != "" && was != l.Digest() {
		r.log.Warn().Str("was", was).Str("is", l.Digest()).
			Msgf("train.perceptual.file holds other weights than %s was trained with: the loss is another one from here on", r.last)
	}
}
