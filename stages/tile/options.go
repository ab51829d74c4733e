package tile

import (
	"fmt"

	"github.com/flowrun/flowrun/stages/volume"
)

// Modes of Options.
const (
	ModeRandom = "random"
	ModeGrid   = "grid"
)

// Options says where a scan's patches lie.
type Options struct {
	Mode    string  `key:"mode" default:"random" oneof:"random grid" doc:"Where patches lie: random draws new places in every epoch, grid covers every voxel with the same overlapping tiles."`
	Patch   [3]int  `key:"patch" default:"[128, 128, 64]" unit:"voxels x, y, z" min:"1" max:"8192" example:"[256, 256, 128]" doc:"Size of a patch, a multiple of the model's downsampling along each axis. A scan smaller than a patch is padded by repeating its edge."`
	Stride  [3]int  `key:"stride" default:"[0, 0, 0]" unit:"voxels x, y, z" min:"0" example:"[192, 192, 96]" doc:"Largest step between neighbouring tiles of the grid. 0 takes three quarters of the patch, rounded down to a multiple of the downsampling."`
	PerScan int     `key:"per_scan" default:"0" unit:"patches" min:"0" doc:"Random patches of each scan in each epoch. 0 takes as many as the grid would have tiles."`
	Body    float64 `key:"body" default:"0" min:"0" max:"1" doc:"Share of the random patches whose centre is drawn inside the body, that is where the scan is above -500 HU. The others are drawn anywhere."`
}

// Check finds strides that would leave gaps.
func (o *Options) Check() error {
	for a := range 3 {
		if o.Stride[a] > o.Patch[a] {
			return fmt.Errorf("stride: %d is larger than patch %d along %s (voxels between tiles would be lost)", o.Stride[a], o.Patch[a], axis(a))
		}
	}
	return nil
}

// CheckMultiple says whether patches of these options suit a model that downsamples by multiple.
func (o *Options) CheckMultiple(multiple [3]int) error {
	_, err := o.Grid(o.Patch, multiple)
	return err
}

// Grid is the regular grid of these options over a volume of dims.
func (o *Options) Grid(dims, multiple [3]int) (volume.Grid, error) {
	return NewGrid(dims, o.Patch, o.stride(multiple), multiple)
}

// stride is the grid's stride: where 0, ¾ of the patch rounded down to the multiple, and at least the multiple.
func (o *Options) stride(multiple [3]int) [3]int {
	s := o.Stride
	for a := range s {
		if m := max(1, multiple[a]); s[a] == 0 {
			s[a] = max(o.Patch[a]*3/4/m*m, m)
		}
	}
	return s
}

func axis(a int) string { return "xyz"[a : a+1] }
