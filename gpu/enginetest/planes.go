package enginetest

import (
	"math"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"pgregory.net/rapid"
)

// index is where voxel z, y, x of sample n has its channels.
func index(d gpu.Dims, n, z, y, x int) int { return (((n*d.D+z)*d.H+y)*d.W + x) * d.C }

// refMaxPool gives the pooled dims and, for each pooled value, where the first maximum is.
func refMaxPool(d gpu.Dims, x []float64) (gpu.Dims, []int) {
	p := gpu.Dims{N: d.N, D: d.D, H: d.H / 2, W: d.W / 2, C: d.C}
	at := make([]int, 0, p.Len())
	for i := range p.Len() {
		c, v := i%p.C, i/p.C
		w, h, plane := v%p.W, v/p.W%p.H, v/p.W/p.H
		best := -1
		for _, k := range [][2]int{{0, 0}, {0, 1}, {1, 0}, {1, 1}} {
			j := ((plane*d.H+2*h+k[0])*d.W+2*w+k[1])*d.C + c
			if best < 0 || x[j] > x[best] {
				best = j
			}
		}
		at = append(at, best)
	}
	return p, at
}

func testMaxPool(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		d := drawDims(t, drawChannels(t, "c"))
		d.H, d.W = max(2, d.H), max(2, d.W)
		rng := seeded(t)
		r.maxPool(t, d, r.random(rng, d.Len()), r.random(rng, d.Len()), r.random(rng, d.Len()))
	})
}

// testMaxPoolTies has few values, so that most maxima have equals, as behind a ReLU; -0 equals 0.
func testMaxPoolTies(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		d := drawDims(t, rapid.IntRange(1, 20).Draw(t, "c"))
		d.H, d.W = max(2, d.H), max(2, d.W)
		rng := seeded(t)
		x := make([]float64, d.Len())
		for i := range x {
			x[i] = []float64{-1, 0, math.Copysign(0, -1)}[rng.IntN(3)]
		}
		r.maxPool(t, d, x, r.random(rng, d.Len()), r.random(rng, d.Len()))
	})
}

func (r *rig) maxPool(t *rapid.T, d gpu.Dims, x, dy, add []float64) {
	t.Helper()
	p, at := refMaxPool(d, x)
	y, dx := make([]float64, p.Len()), make([]float64, d.Len())
	dy = dy[:p.Len()]
	for i, j := range at {
		y[i] = x[j]
		dx[j] = dy[i]
	}
	tx, ty := r.put(d, rapid.IntRange(0, 2).Draw(t, "halo"), gpu.Zero, x), r.tensor(p, 1, drawPad(t))
	r.e.MaxPool(tx, ty)
	r.exact(t, "y", ty, y)
	r.checkHalo(t, "y", ty)
	tdy := r.put(p, 1, gpu.Zero, dy)
	r.addsUp(t, "dx", d, dx, add, nil, 1e-6, func(_ gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor) { r.e.MaxPoolGrad(tx, tdy, add, dx) })
}

func testSlice(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		d := drawDims(t, drawChannels(t, "c"))
		rng := seeded(t)
		axis, k := rapid.IntRange(0, 2).Draw(t, "axis"), rapid.IntRange(1, 4).Draw(t, "planes of a sample")
		size := [3]int{d.D, d.H, d.W}
		at := make([]float64, d.N*k)
		for i := range at {
			at[i] = float64(rapid.IntRange(0, size[axis]-1).Draw(t, "plane")) // often one of them twice
		}
		left := append(append([]int(nil), size[:axis]...), size[axis+1:]...)
		p := gpu.Dims{N: d.N * k, D: 1, H: left[0], W: left[1], C: d.C}
		x, dy, add := r.random(rng, d.Len()), r.random(rng, p.Len()), r.random(rng, d.Len())
		y, dx := make([]float64, p.Len()), make([]float64, d.Len())
		for i := range p.N {
			for a := range left[0] {
				for b := range left[1] {
					at := int(at[i])
					from := [][3]int{{at, a, b}, {a, at, b}, {a, b, at}}[axis]
					to, of := index(p, i, 0, a, b), index(d, i/k, from[0], from[1], from[2])
					for c := range d.C {
						y[to+c] = x[of+c]
						dx[of+c] += dy[to+c]
					}
				}
			}
		}
		tx, ty, pat := r.put(d, rapid.IntRange(0, 2).Draw(t, "halo"), gpu.Zero, x), r.tensor(p, 1, drawPad(t)), r.floats(at)
		r.e.Slice(axis, tx, pat, ty)
		r.exact(t, "y", ty, y)
		r.checkHalo(t, "y", ty)
		tdy := r.put(p, 1, gpu.Zero, dy)
		r.addsUp(t, "dx", d, dx, add, nil, 1e-6, func(_ gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor) {
			r.e.SliceGrad(axis, tdy, pat, add, dx)
		})
	})
}

func testTint(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		one := drawDims(t, 1)
		many := one
		many.C = rapid.IntRange(1, 5).Draw(t, "c")
		rng := seeded(t)
		x, scale, shift, dy := r.random(rng, one.Len()), r.random(rng, many.C), r.random(rng, many.C), r.random(rng, many.Len())
		y, dx := make([]float64, many.Len()), make([]float64, one.Len())
		for i := range y {
			y[i] = scale[i%many.C]*x[i/many.C] + shift[i%many.C]
			dx[i/many.C] += scale[i%many.C] * dy[i]
		}
		tx, ty := r.put(one, rapid.IntRange(0, 2).Draw(t, "halo"), gpu.Zero, x), r.tensor(many, 1, drawPad(t))
		ps := r.floats(scale)
		r.e.Tint(tx, ps, r.floats(shift), ty)
		r.close(t, "y", ty, y, nil, 1e-6)
		r.checkHalo(t, "y", ty)
		tdx := r.tensor(one, 1, gpu.Zero)
		r.e.TintGrad(r.put(many, 1, gpu.Zero, dy), ps, tdx)
		r.close(t, "dx", tdx, dx, nil, 3e-6)
		r.checkHalo(t, "dx", tdx)
	})
}
