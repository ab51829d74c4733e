package report

import (
	"fmt"

	"github.com/flowrun/flowrun/stages/volume"
)

// Cuts is the three planes of a volume through one voxel, in display order: rows from the top, columns from the left.
type Cuts struct {
	Axial    []float32 // nx columns (right to left of the patient), ny rows (front to back)
	Coronal  []float32 // nx columns, nz rows (head to feet)
	Sagittal []float32 // ny columns (front to back), nz rows
}

// cutter takes the planes out of a volume that comes slice by slice.
type cutter struct {
	size, at [3]int
	cuts     Cuts
}

// newCutter cuts a volume of size x, y, z through the voxel at; Centre gives the middle one. It fails if at lies outside.
func newCutter(size, at [3]int) (*cutter, error) {
	for a := range 3 {
		if at[a] < 0 || at[a] >= size[a] {
			return nil, fmt.Errorf("planes through voxel %v of a volume of %v", at, size)
		}
	}
	return &cutter{size, at, Cuts{
		Axial:    make([]float32, size[0]*size[1]),
		Coronal:  make([]float32, size[0]*size[2]),
		Sagittal: make([]float32, size[1]*size[2]),
	}}, nil
}

// slice takes slice z: at gives its voxels, x fastest. Slices may come in any order.
func (c *cutter) slice(z int, at func(int) float32) {
	nx, ny := c.size[0], c.size[1]
	down := c.size[2] - 1 - z
	for x := range nx {
		c.cuts.Coronal[down*nx+nx-1-x] = at(c.at[1]*nx + x)
	}
	for y := range ny {
		c.cuts.Sagittal[down*ny+ny-1-y] = at(y*nx + c.at[0])
	}
	if z == c.at[2] {
		for i := range nx * ny {
			c.cuts.Axial[nx*ny-1-i] = at(i)
		}
	}
}

// Centre is the middle voxel.
func Centre(size [3]int) [3]int { return [3]int{size[0] / 2, size[1] / 2, size[2] / 2} }

// CutVolume takes the planes out of a volume of samples, scaled by its window to [-1, 1] and clipped. It holds a slice.
func CutVolume(v *volume.Volume, at [3]int) (Cuts, error) {
	c, err := newCutter(v.Dims, at)
	if err != nil {
		return Cuts{}, err
	}
	buf := make([]int16, v.Dims[0]*v.Dims[1])
	for z := range v.Dims[2] {
		rows, err := v.Rows(z, 0, v.Dims[1], buf)
		if err != nil {
			return Cuts{}, err
		}
		c.slice(z, func(i int) float32 {
			hu := v.Slope*float64(rows[i]) + v.Inter
			return float32(max(-1, min(1, 2*(hu-v.Window[0])/(v.Window[1]-v.Window[0])-1)))
		})
	}
	return c.cuts, nil
}
