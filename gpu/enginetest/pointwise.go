package enginetest

import (
	"math"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"pgregory.net/rapid"
)

// testPointwise checks Add, Subtract and Combine, into a tensor of their own and over either operand.
func testPointwise(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		d := drawDims(t, drawChannels(t, "c"))
		rng := seeded(t)
		a, b := r.random(rng, d.Len()), r.random(rng, d.Len())
		s := float64(float32(rng.NormFloat64()))
		halo, scale := rapid.IntRange(0, 2).Draw(t, "halo"), r.floats([]float64{0, s})+4
		for _, op := range []struct {
			name string
			f    func(a, b, y gpu.Tensor)
			want func(a, b float64) float64
			tol  float64
		}{
			{"a + b", r.e.Add, func(a, b float64) float64 { return float64(float32(a + b)) }, 0},
			{"a - b", r.e.Subtract, func(a, b float64) float64 { return float64(float32(a - b)) }, 0},
			{"a + s·b", func(a, b, y gpu.Tensor) { r.e.Combine(a, b, scale, y) }, func(a, b float64) float64 { return a + s*b }, 1e-6},
		} {
			want, size := make([]float64, d.Len()), make([]float64, d.Len())
			for i := range want {
				want[i] = op.want(a[i], b[i])
				size[i] = math.Abs(a[i]) + math.Abs(s*b[i])
			}
			ta, tb, ty := r.put(d, halo, gpu.Zero, a), r.put(d, halo, gpu.Zero, b), r.tensor(d, halo, gpu.Replicate)
			op.f(ta, tb, ty)
			r.close(t, op.name, ty, want, size, op.tol)
			r.checkHalo(t, op.name, ty)
			op.f(ta, tb, tb)
			equal(t, op.name+" over b", r.get(tb), r.get(ty))
			op.f(ta, r.put(d, halo+1, gpu.Zero, b), ta)
			equal(t, op.name+" over a", r.get(ta), r.get(ty))
			r.checkHalo(t, op.name+" over a", ta)
		}
	})
}

func testActivate(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		d := drawDims(t, drawChannels(t, "c"))
		rng := seeded(t)
		slope := rapid.SampledFrom([]float32{0, 0.2, 0.25}).Draw(t, "slope")
		x, dy, add := r.random(rng, d.Len()), r.random(rng, d.Len()), r.random(rng, d.Len())
		x[0] = 0 // its slope is that of what is below
		y, dx, both := make([]float64, d.Len()), make([]float64, d.Len()), make([]float64, d.Len())
		for i, v := range x {
			y[i], dx[i] = v, dy[i]
			if v <= 0 {
				y[i] *= float64(slope)
				dx[i] *= float64(slope)
			}
			both[i] = dx[i] + add[i]
		}
		halo := rapid.IntRange(0, 2).Draw(t, "halo")
		tx, ty := r.put(d, halo, gpu.Zero, x), r.tensor(d, 1, drawPad(t))
		r.e.Activate(slope, tx, ty)
		r.close(t, "y", ty, y, nil, 1e-7)
		r.checkHalo(t, "y", ty)
		r.e.Activate(slope, tx, tx)
		equal(t, "y over x", r.get(tx), r.get(ty))
		r.checkHalo(t, "y over x", tx)

		r.addsUp(t, "dx", d, dx, add, dy, 1e-6, func(dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor) {
			r.e.ActivateGrad(slope, ty, dy, add, dx)
		})
	})
}

// addsUp checks a gradient dx that an op may have added to something: alone, with add, and over add. Where dy has d's size, its
// memory may be dx's, too; else it is nil.
func (r *rig) addsUp(t fataler, what string, d gpu.Dims, want, add, dy []float64, tol float64, op func(dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor)) {
	t.Helper()
	both := make([]float64, len(want))
	for i := range both {
		both[i] = want[i] + add[i]
	}
	put := func() (tdy gpu.Tensor) {
		if dy != nil {
			tdy = r.put(d, 1, gpu.Zero, dy)
		}
		return tdy
	}
	alone, sum := r.tensor(d, 1, gpu.Zero), r.tensor(d, 2, gpu.Zero)
	op(put(), nil, alone)
	r.close(t, what, alone, want, nil, tol)
	r.checkHalo(t, what, alone)
	plus := r.put(d, 1, gpu.Zero, add)
	op(put(), &plus, sum)
	r.close(t, what+" with add", sum, both, nil, tol)
	r.checkHalo(t, what+" with add", sum)
	op(put(), &plus, plus)
	equal(t, what+" over add", r.get(plus), r.get(sum))
	r.checkHalo(t, what+" over add", plus)
	if dy != nil {
		over := put()
		op(over, nil, over)
		equal(t, what+" over dy", r.get(over), r.get(alone))
	}
}
