package tile

import (
	"fmt"

	"github.com/flowrun/flowrun/stages/volume"
)

// NewGrid lays tiles over a volume. Along each axis they are spread evenly, the first flush with the low end and the last with the high
// end of the volume padded to a multiple of the downsampling and at least one patch, so that every voxel is in at least one. There are n = 1 + ⌈(padded-patch)/stride⌉ of them, at
// i·(padded-patch)/(n-1) rounded down to a multiple of multiple, the network's downsampling.
//
// It is an error if stride is larger than patch, if patch isn't divisible by multiple or if stride is smaller than
// multiple (two tiles would be one).
func NewGrid(dims, patch, stride, multiple [3]int) (volume.Grid, error) {
	g := volume.Grid{Dims: dims, Patch: patch}
	for a := range 3 {
		size, p, s, m := dims[a], patch[a], stride[a], multiple[a]
		switch {
		case size < 1:
			return volume.Grid{}, fmt.Errorf("volume has %d voxels along %s (want at least 1)", size, axis(a))
		case m < 1:
			return volume.Grid{}, fmt.Errorf("downsampling %d along %s (want at least 1)", m, axis(a))
		case p < 1:
			return volume.Grid{}, fmt.Errorf("patch: %d along %s (want at least 1)", p, axis(a))
		case p%m != 0:
			return volume.Grid{}, fmt.Errorf("patch: %d along %s is not divisible by the model's downsampling %d", p, axis(a), m)
		case s > p:
			return volume.Grid{}, fmt.Errorf("stride: %d is larger than patch %d along %s (voxels between tiles would be lost)", s, p, axis(a))
		case s < m:
			return volume.Grid{}, fmt.Errorf("stride: %d along %s is smaller than the model's downsampling %d", s, axis(a), m)
		}
		padded := max((size+m-1)/m*m, p)
		n := 1 + (padded-p+s-1)/s
		at := make([]int, n)
		for i := 1; i < n; i++ {
			at[i] = i * (padded - p) / (n - 1) / m * m
		}
		g.Padded[a], g.N[a], g.Origins[a] = padded, n, at
	}
	return g, nil
}
