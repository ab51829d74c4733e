// Package augment decides what is to be done to a patch: flips, quarter turns, intensity. It only writes the decision down as
// an operation on the patch; batch carries it out while it cuts the voxels.
package augment

import (
	"fmt"
	"slices"

	"github.com/flowrun/flowrun/stages/volume"
)

// Options says what may happen to a patch.
type Options struct {
	Flip     []string `key:"flip" default:"[]" oneof:"x y z" example:"[x, y]" doc:"Axes along which half of the patches are mirrored."`
	Rotate90 bool     `key:"rotate90" default:"false" doc:"Turn patches by 0, 90, 180 or 270 degrees in the x-y plane. The patch must be square in that plane."`
	Scale    float64  `key:"scale" default:"0" min:"0" max:"0.9" doc:"Multiply HU by a factor drawn from 1 - scale to 1 + scale, input and target alike."`
	ShiftHU  float64  `key:"shift_hu" default:"0" unit:"HU" min:"0" doc:"Add a value drawn from -shift_hu to shift_hu, input and target alike."`
	NoiseHU  float64  `key:"noise_hu" default:"0" unit:"HU" min:"0" doc:"Add Gaussian noise to the input only, with a standard deviation drawn for each patch from 0 to noise_hu. 0 is off."`
}

// Check finds an axis that is named twice or is none.
func (o *Options) Check() error {
	for i, a := range o.Flip {
		if !slices.Contains([]string{"x", "y", "z"}, a) {
			return fmt.Errorf("flip: %q is not an axis (want x, y or z)", a)
		}
		if slices.Contains(o.Flip[:i], a) {
			return fmt.Errorf("flip: %s is given twice", a)
		}
	}
	return nil
}

// CheckPatch says whether patches of this size (x, y, z) can be turned as the options ask.
func (o *Options) CheckPatch(patch [3]int) error {
	if o.Rotate90 && patch[0] != patch[1] {
		return fmt.Errorf("rotate90: patch %d × %d is not square in the x-y plane (switch rotate90 off or make tile.patch square)", patch[0], patch[1])
	}
	return nil
}

// Apply appends one operation to p, drawn by a generator keyed by seed, p's scan, epoch and tile, and stage, the
// position of this augment among others in the graph. What one option draws doesn't depend on whether another is on.
func Apply(p *volume.Patch, o Options, seed uint64, stage int) {
	r := volume.Rand(volume.Key(seed, "augment", p.Scan, p.Epoch, p.Tile, stage))
	op := volume.Op{Scale: 1}
	for a, name := range []string{"x", "y", "z"} {
		heads := r.IntN(2) == 1
		op.Flip[a] = heads && slices.Contains(o.Flip, name)
	}
	if turns := r.IntN(4); o.Rotate90 {
		op.Turns = turns
	}
	op.Scale += o.Scale * (2*r.Float64() - 1)
	op.Shift = o.ShiftHU * (2*r.Float64() - 1)
	op.Noise = o.NoiseHU * r.Float64()
	op.Key = r.Uint64()
	p.Ops = append(p.Ops, op)
}
