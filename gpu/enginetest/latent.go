package enginetest

import (
	"math"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"pgregory.net/rapid"
)

func testUnit(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		d := drawDims(t, rapid.IntRange(1, 17).Draw(t, "c"))
		for d.Len() > 600 {
			d.N, d.D, d.H, d.W = 1, 1, (d.H+1)/2, (d.W+1)/2
		}
		rng := seeded(t)
		x, dy := r.random(rng, d.Len()), r.random(rng, d.Len())
		ref := func() []float64 {
			y := make([]float64, len(x))
			for v := 0; v < len(x); v += d.C {
				n := max(math.Sqrt(dot(x[v:v+d.C], x[v:v+d.C])), 1e-12)
				for c := v; c < v+d.C; c++ {
					y[c] = x[c] / n
				}
			}
			return y
		}
		dx, size := slope(x, func() float64 { return dot(ref(), dy) }), make([]float64, d.Len())
		for v := 0; v < len(x); v += d.C { // differences of terms of up to ‖dy‖/‖x‖
			s := math.Sqrt(dot(dy[v:v+d.C], dy[v:v+d.C]) / dot(x[v:v+d.C], x[v:v+d.C]))
			for c := v; c < v+d.C; c++ {
				size[c] = s
			}
		}
		if rapid.Bool().Draw(t, "a vector without direction") {
			clear(x[:d.C])
			clear(dx[:d.C])
			clear(size[:d.C])
		}
		tx, ty := r.put(d, rapid.IntRange(0, 2).Draw(t, "halo"), gpu.Zero, x), r.tensor(d, 1, drawPad(t))
		r.e.Unit(tx, ty)
		r.close(t, "y", ty, ref(), nil, 1e-6)
		r.checkHalo(t, "y", ty)
		tdy, tdx := r.put(d, 1, gpu.Zero, dy), r.tensor(d, 2, gpu.Zero)
		r.e.UnitGrad(tx, tdy, tdx)
		r.close(t, "dx", tdx, dx, size, 1e-5)
		r.checkHalo(t, "dx", tdx)
		r.e.UnitGrad(tx, tdy, tdy)
		equal(t, "dx over dy", r.get(tdy), r.get(tdx))
	})
}

// bounded is gpu.Scalar's b.
func bounded(levels int, z float64) float64 {
	half, offset, shift := float64(levels-1)*1.001/2, 0.0, 0.0
	if levels%2 == 0 {
		offset = 0.5
		shift = math.Atanh(offset / half)
	}
	return math.Tanh(z+shift)*half - offset
}

func testRound(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		k := gpu.Scalar{Levels: rapid.SliceOfN(rapid.IntRange(2, 9), 1, 6).Draw(t, "levels")}
		d := drawDims(t, len(k.Levels))
		rng := seeded(t)
		z, dq := r.random(rng, d.Len()), r.random(rng, d.Len())
		for i := range z {
			z[i] *= 2
		}
		for c, v := range []float64{0, 50, -50} { // the middle and both ends
			for i := range min(d.C, d.Len()) {
				if at := c*d.C + i; at < len(z) {
					z[at] = v
				}
			}
		}
		codes := 1
		for _, l := range k.Levels {
			codes *= l
		}
		tz, tq, idx := r.put(d, 1, gpu.Zero, z), r.tensor(d, 1, drawPad(t)), r.alloc(4*int64(d.Voxels()))
		counts0 := make([]float64, min(codes, 40000))
		counts := gpu.Ptr(-1)
		if codes == len(counts0) {
			for i := range counts0 {
				counts0[i] = float64(i % 3)
			}
			counts = r.floats(counts0)
		}
		r.e.Round(k, tz, idx, tq, counts)
		q, got := r.get(tq), make([]int32, d.Voxels())
		r.e.Codes(got, idx)
		r.checkHalo(t, "q", tq)
		want, dz := make([]float64, d.Len()), make([]float64, d.Len())
		for v, code := range got {
			rest := int(code)
			for c, l := range k.Levels {
				i := v*d.C + c
				whole := float64(rest%l - l/2)
				rest /= l
				// What lies half-way, as nearly as float32 can tell, may go either way.
				if b := bounded(l, z[i]); math.Abs(whole-b) > 0.5+1e-5 {
					t.Fatalf("voxel %d, channel %d: %v to %v of %d levels", v, c, b, whole, l)
				}
				want[i] = whole / float64(l/2)
				const h = 1e-5
				dz[i] = dq[i] * (bounded(l, z[i]+h) - bounded(l, z[i]-h)) / (2 * h) / float64(l/2)
			}
			if rest != 0 {
				t.Fatalf("code %d of %d", code, codes)
			}
			if counts >= 0 {
				counts0[code]++
			}
		}
		near(t, "q", q, want, nil, 1e-6)
		if counts >= 0 {
			equal(t, "counts", r.read(counts, codes), counts0)
		}
		r.e.Round(k, tz, idx, tq, -1)
		r.exact(t, "q again", tq, q)
		tdq, tdz := r.put(d, 1, gpu.Zero, dq), r.tensor(d, 2, gpu.Zero)
		r.e.RoundGrad(k, tz, tdq, tdz)
		r.close(t, "dz", tdz, dz, nil, 1e-5)
		r.checkHalo(t, "dz", tdz)
		r.e.RoundGrad(k, tz, tdq, tdq)
		equal(t, "dz over dq", r.get(tdq), r.get(tdz))
	})
}
