package merge

import (
	"fmt"
	"math"
)

// weights of one tile along one axis. Those outside lo ≤ p < hi are zero.
type weights struct {
	w      []float64
	lo, hi int
}

// newAxis gives the weights of each tile along an axis: at every voxel that tiles cover they sum to 1, but for rounding
// in float64. Where a window is zero, its tile isn't touched.
func newAxis(window string, patch int, origins []int) ([]weights, error) {
	shape, err := shapeOf(window, patch, origins)
	if err != nil {
		return nil, err
	}
	axis := make([]weights, len(origins))
	sum := make([]float64, origins[len(origins)-1]+patch)
	for i, o := range origins {
		axis[i].w = make([]float64, patch)
		for p := range patch {
			axis[i].w[p] = shape(i, p)
			sum[o+p] += axis[i].w[p]
		}
	}
	for i, o := range origins {
		t := &axis[i]
		t.lo, t.hi = patch, 0
		for p := range patch {
			if t.w[p] /= sum[o+p]; t.w[p] > 0 {
				t.lo, t.hi = min(t.lo, p), p+1
			}
		}
	}
	return axis, nil
}

// shapeOf gives a window before it is normalised: the weight of tile i at its voxel p. Voxels lie at p+½.
func shapeOf(window string, patch int, origins []int) (func(i, p int) float64, error) {
	// ramp falls from 1 to 0 over the overlap with the neighbour on either side, at f(0 < t < 1) of it.
	ramp := func(f func(t float64) float64) func(i, p int) float64 {
		return func(i, p int) float64 {
			w := 1.0
			if i > 0 {
				if l := origins[i-1] + patch - origins[i]; p < l {
					w *= f((float64(p) + 0.5) / float64(l))
				}
			}
			if i < len(origins)-1 {
				if l := origins[i] + patch - origins[i+1]; patch-1-p < l {
					w *= f((float64(patch-1-p) + 0.5) / float64(l))
				}
			}
			return w
		}
	}
	switch window {
	case Hann:
		return ramp(func(t float64) float64 {
			s := math.Sin(math.Pi / 2 * t)
			return s * s
		}), nil
	case Linear:
		return ramp(func(t float64) float64 { return t }), nil
	case Gaussian:
		middle, sigma := float64(patch-1)/2, float64(patch)/8
		return func(_, p int) float64 {
			d := (float64(p) - middle) / sigma
			return math.Exp(-d * d / 2)
		}, nil
	case Constant:
		return func(int, int) float64 { return 1 }, nil
	case Crop:
		return func(i, p int) float64 {
			// In half voxels from the middle; a tie is the lower tile's.
			distance := func(j int) int {
				d := 2*(origins[i]+p-origins[j]) + 1 - patch
				return max(d, -d)
			}
			if i > 0 && distance(i-1) <= distance(i) || i < len(origins)-1 && distance(i+1) < distance(i) {
				return 0
			}
			return 1
		}, nil
	}
	return nil, fmt.Errorf("window: %q isn't one (want hann, gaussian, linear, crop or constant)", window)
}
