package report

import (
	"fmt"
	"math"
)

// candidates is how many coronal and how many sagittal planes WorstSlice keeps.
const candidates = 16

// WorstSlice finds planes with a large error in a volume that comes slice by slice, once, in order. The axial plane is
// the slice with the largest mean absolute error. Coronal and sagittal planes grow through all slices, so which is worst
// shows only at the end, when the volume is gone: it keeps 16 of each, spread evenly, and gives the worst of them. Of
// planes with the same error it gives the first. Outside the body errors count a hundredth: nobody wants to see the
// table.
//
// It holds two slices, and 16 planes each way of both volumes at 16 bits: 2·2·16·(nx+ny)·nz bytes.
type WorstSlice struct {
	size  [3]int
	body  float32 // originals from here on are body
	next  int
	at    [2][]int      // columns x and rows y of the candidates
	sums  [2][]float64  // of their errors
	kept  [2][][]sample // their planes, slice by slice
	axial struct {
		z           int
		sum         float64
		orig, recon []float32
	}
}

// sample is a voxel of original and reconstruction, [-1, 1] in 65534 steps, or nan.
type sample struct{ orig, recon int16 }

const (
	steps = math.MaxInt16
	nan   = math.MinInt16
)

func pack(x float32) int16 {
	if x != x {
		return nan
	}
	return int16(math.Round(float64(max(-1, min(1, x))) * steps))
}

func unpack(s int16) float32 {
	if s == nan {
		return float32(math.NaN())
	}
	return float32(s) / steps
}

// NewWorstSlice looks at a volume of size x, y, z, in which voxels whose original is body or more, in [-1, 1], are the
// body; -1 is all.
func NewWorstSlice(size [3]int, body float32) (*WorstSlice, error) {
	if min(size[0], size[1], size[2]) < 1 {
		return nil, fmt.Errorf("planes of a volume of %v", size)
	}
	w := &WorstSlice{size: size, body: body}
	for a := range w.at {
		n := min(candidates, size[a])
		w.at[a], w.sums[a], w.kept[a] = make([]int, n), make([]float64, n), make([][]sample, n)
		for i := range n {
			w.at[a][i] = (2*i + 1) * size[a] / (2 * n)
			w.kept[a][i] = make([]sample, 0, size[1-a]*size[2])
		}
	}
	w.axial.sum = -1
	w.axial.orig, w.axial.recon = make([]float32, size[0]*size[1]), make([]float32, size[0]*size[1])
	return w, nil
}

// Slice takes the next slice of original and reconstruction in [-1, 1], x fastest, and keeps neither.
func (w *WorstSlice) Slice(orig, recon []float32) error {
	nx, ny := w.size[0], w.size[1]
	if len(orig) != nx*ny || len(recon) != nx*ny || w.next == w.size[2] {
		return fmt.Errorf("slice %d: %d and %d voxels (want %d slices of %d)", w.next, len(orig), len(recon), w.size[2], nx*ny)
	}
	var sum float64
	for i, o := range orig {
		sum += w.error(o, recon[i])
	}
	if worse(sum, w.axial.sum) {
		w.axial.z, w.axial.sum = w.next, sum
		copy(w.axial.orig, orig)
		copy(w.axial.recon, recon)
	}
	keep := func(a, i, from, step, n int) {
		for j := range n {
			o, r := orig[from+j*step], recon[from+j*step]
			w.sums[a][i] += w.error(o, r)
			w.kept[a][i] = append(w.kept[a][i], sample{pack(o), pack(r)})
		}
	}
	for i, x := range w.at[0] {
		keep(0, i, x, nx, ny)
	}
	for i, y := range w.at[1] {
		keep(1, i, y*nx, 1, nx)
	}
	w.next++
	return nil
}

// Cuts returns the planes of both volumes and the voxel in which they meet; it fails before the last slice has come.
func (w *WorstSlice) Cuts() (orig, recon Cuts, at [3]int, err error) {
	if w.next != w.size[2] {
		return Cuts{}, Cuts{}, at, fmt.Errorf("%d slices of %d", w.next, w.size[2])
	}
	var planes [2][]sample
	for a := range planes {
		worst := 0
		for i, e := range w.sums[a] {
			if worse(e, w.sums[a][worst]) {
				worst = i
			}
		}
		at[a], planes[a] = w.at[a][worst], w.kept[a][worst]
	}
	at[2] = w.axial.z
	// Display order is the reverse of that of voxels.
	reverse := func(plane []sample, of func(sample) int16) []float32 {
		v := make([]float32, len(plane))
		for i, s := range plane {
			v[len(v)-1-i] = unpack(of(s))
		}
		return v
	}
	cuts := func(axial []float32, of func(sample) int16) Cuts {
		c := Cuts{make([]float32, len(axial)), reverse(planes[1], of), reverse(planes[0], of)}
		for i, x := range axial {
			c.Axial[len(axial)-1-i] = x
		}
		return c
	}
	orig = cuts(w.axial.orig, func(s sample) int16 { return s.orig })
	recon = cuts(w.axial.recon, func(s sample) int16 { return s.recon })
	return orig, recon, at, nil
}

// error is what the difference of two voxels counts.
func (w *WorstSlice) error(orig, recon float32) float64 {
	d := difference(orig, recon)
	if orig < w.body {
		return d / 100
	}
	return d
}

// difference is the absolute error of two voxels, clipped.
func difference(a, b float32) float64 {
	return math.Abs(float64(max(-1, min(1, a))) - float64(max(-1, min(1, b))))
}

// worse says whether error a is larger than b; NaN is larger than any number.
func worse(a, b float64) bool { return a > b || a != a && b == b }
