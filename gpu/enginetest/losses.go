package enginetest

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"pgregory.net/rapid"
)

func refPerceptual(d gpu.Dims, a, b, w []float64) float64 {
	var sum float64
	for v := 0; v < len(a); v += d.C {
		va, vb := a[v:v+d.C], b[v:v+d.C]
		na, nb := math.Sqrt(dot(va, va))+1e-10, math.Sqrt(dot(vb, vb))+1e-10
		for c := range d.C {
			e := va[c]/na - vb[c]/nb
			sum += w[c] * e * e
		}
	}
	return sum / float64(d.Voxels())
}

func testPerceptualLoss(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		d := drawDims(t, drawChannels(t, "c"))
		for d.Len() > 600 {
			d.N, d.D, d.H, d.W = 1, 1, (d.H+1)/2, (d.W+1)/2
		}
		rng := seeded(t)
		a, b, w, add := r.random(rng, d.Len()), r.random(rng, d.Len()), r.random(rng, d.C), r.random(rng, d.Len())
		const scale = 3
		da := slope(a, func() float64 { return scale * refPerceptual(d, a, b, w) })
		want := []float64{refPerceptual(d, a, b, w)}
		ta, tb, pw := r.put(d, 1, gpu.Zero, a), r.put(d, 0, gpu.Zero, b), r.floats(w)
		out, work, by := r.alloc(4), r.alloc(r.e.LossWork(d)), r.floats([]float64{scale})
		r.e.PerceptualLoss(ta, tb, pw, -1, nil, nil, out, work)
		near(t, "loss", r.read(out, 1), want, nil, 1e-5)
		r.addsUp(t, "da", d, da, add, nil, 3e-5, func(_ gpu.Tensor, add *gpu.Tensor, da gpu.Tensor) {
			r.e.PerceptualLoss(ta, tb, pw, by, add, &da, out, work)
			near(t, "loss with gradient", r.read(out, 1), want, nil, 1e-5)
		})
	})
}

// testPerceptualLossZero has vectors that are all zero, as a ReLU leaves them: they have no direction, and no gradient.
func testPerceptualLossZero(t *testing.T, r *rig) {
	d := gpu.Dims{N: 1, D: 1, H: 1, W: 3, C: 2}
	a, b := []float64{0, 0, 3, 4, 0, 0}, []float64{3, 4, 0, 0, 0, 0}
	ta, tda, out := r.put(d, 0, gpu.Zero, a), r.tensor(d, 0, gpu.Zero), r.alloc(4)
	r.e.PerceptualLoss(ta, r.put(d, 0, gpu.Zero, b), r.floats([]float64{1, 2}), r.floats([]float64{1}), nil, &tda, out, r.alloc(r.e.LossWork(d)))
	one := 0.36 + 2*0.64
	near(t, "loss", r.read(out, 1), []float64{2 * one / 3}, nil, 1e-6)
	// da = 2/3·(w·â - â·Σ w·â²)/‖a‖
	want := []float64{0, 0, 2. / 3 * (0.6 - 0.6*one) / 5, 2. / 3 * (1.6 - 0.8*one) / 5, 0, 0}
	r.close(t, "da", tda, want, nil, 1e-6)
}

// refSimilarity is 1 - MS-SSIM straight from the paper's formulas, over windows of at most 11 voxels.
func refSimilarity(k gpu.Similarity, d gpu.Dims, y, t []float64) float64 {
	const c1, c2 = 0.02 * 0.02, 0.06 * 0.06
	n := len(y) / d.N
	var sum float64
	for s := range d.N {
		a, b := y[s*n:(s+1)*n], t[s*n:(s+1)*n]
		size := [3]int{d.D, d.H, d.W}
		product := 1.0
		for scale, weight := range k.Weights {
			var mean, count float64
			eachWindow(size, func(at []int, w []float64) {
				var ma, mb, aa, bb, ab float64
				for i, j := range at {
					ma += w[i] * a[j]
					mb += w[i] * b[j]
					aa += w[i] * a[j] * a[j]
					bb += w[i] * b[j] * b[j]
					ab += w[i] * a[j] * b[j]
				}
				v := (2*(ab-ma*mb) + c2) / (aa - ma*ma + bb - mb*mb + c2)
				if scale == len(k.Weights)-1 {
					v *= (2*ma*mb + c1) / (ma*ma + mb*mb + c1)
				}
				mean += v
				count++
			})
			product *= math.Pow(max(mean/count, 1e-6), weight)
			a, _ = refHalve(a, size)
			b, size = refHalve(b, size)
		}
		sum += 1 - product
	}
	return sum / float64(d.N)
}

// eachWindow calls f for each place of the window: which voxels it covers, and their weights.
func eachWindow(size [3]int, f func(at []int, w []float64)) {
	var axis [3][]float64
	for a, n := range size {
		n = min(n, 11)
		var sum float64
		for i := range n {
			x := float64(i) - float64(n-1)/2
			axis[a] = append(axis[a], math.Exp(-x*x/(2*1.5*1.5)))
			sum += axis[a][i]
		}
		for i := range n {
			axis[a][i] /= sum
		}
	}
	for z := range size[0] - len(axis[0]) + 1 {
		for y := range size[1] - len(axis[1]) + 1 {
			for x := range size[2] - len(axis[2]) + 1 {
				var at []int
				var w []float64
				for i, wz := range axis[0] {
					for j, wy := range axis[1] {
						for k, wx := range axis[2] {
							at = append(at, ((z+i)*size[1]+y+j)*size[2]+x+k)
							w = append(w, wz*wy*wx)
						}
					}
				}
				f(at, w)
			}
		}
	}
}

// refHalve averages pairs along each axis longer than 1.
func refHalve(v []float64, size [3]int) ([]float64, [3]int) {
	to, step := size, [3]int{1, 1, 1}
	for a, n := range size {
		if n > 1 {
			to[a], step[a] = n/2, 2
		}
	}
	out := make([]float64, to[0]*to[1]*to[2])
	for z := range to[0] * step[0] {
		for y := range to[1] * step[1] {
			for x := range to[2] * step[2] {
				out[(z/step[0]*to[1]+y/step[1])*to[2]+x/step[2]] += v[(z*size[1]+y)*size[2]+x] / float64(step[0]*step[1]*step[2])
			}
		}
	}
	return out, to
}

func testSimilarityLoss(t *testing.T, r *rig) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, c := range []struct {
		d       gpu.Dims
		weights []float64
		noise   float64
	}{
		{gpu.Dims{N: 1, D: 1, H: 12, W: 13, C: 1}, []float64{1}, 0.2},
		{gpu.Dims{N: 2, D: 3, H: 5, W: 13, C: 1}, []float64{0.4, 0.6}, 0.3},
		{gpu.Dims{N: 1, D: 12, H: 2, W: 7, C: 1}, []float64{0.3, 0.3, 0.4}, 0.1},
		{gpu.Dims{N: 1, D: 22, H: 1, W: 12, C: 1}, []float64{0.5, 0.5}, 0.3},
		{gpu.Dims{N: 1, D: 1, H: 23, W: 3, C: 1}, []float64{1}, 0.3},
		{gpu.Dims{N: 1, D: 2, H: 3, W: 15, C: 1}, []float64{0.05, 0.05}, 2}, // contrary: factors are clipped
	} {
		d := c.d
		x, y := r.random(rng, d.Len()), r.random(rng, d.Len())
		for i := range x {
			x[i] = float64(float32(math.Tanh(x[i] / 2)))
			y[i] = float64(float32(x[i] + c.noise*y[i]))
			if c.noise > 1 {
				y[i] = -x[i]
			}
		}
		k := gpu.Similarity{Weights: c.weights}
		want := []float64{refSimilarity(k, d, y, x)}
		const scale = 3
		dy := slope(y, func() float64 { return scale * refSimilarity(k, d, y, x) })
		ty, tx, tdy := r.put(d, 1, gpu.Replicate, y), r.put(d, 0, gpu.Zero, x), r.tensor(d, 2, gpu.Zero)
		out, work := r.alloc(4), r.alloc(r.e.SimilarityWork(k, d))
		r.e.SimilarityLoss(k, ty, tx, -1, nil, out, work)
		near(t, "loss", r.read(out, 1), want, nil, 1e-5)
		r.e.SimilarityLoss(k, ty, tx, r.floats([]float64{scale}), &tdy, out, work)
		near(t, "loss with gradient", r.read(out, 1), want, nil, 1e-5)
		r.close(t, "dy", tdy, dy, nil, 3e-5)
		r.checkHalo(t, "dy", tdy)
	}
}

// testSimilarityLossKnown has answers that need no reference: equal volumes have no loss and no gradient; of two flat ones only the
// last scale's luminance is left.
func testSimilarityLossKnown(t *testing.T, r *rig) {
	d := gpu.Dims{N: 1, D: 8, H: 16, W: 24, C: 1}
	k := gpu.Similarity{Weights: []float64{0.25, 0.5}}
	x := r.random(rand.New(rand.NewPCG(5, 6)), d.Len())
	loss := func(y, x []float64) (float64, []float64) {
		out, tdy := r.alloc(4), r.tensor(d, 0, gpu.Zero)
		r.e.SimilarityLoss(k, r.put(d, 0, gpu.Zero, y), r.put(d, 0, gpu.Zero, x), r.floats([]float64{1}), &tdy, out, r.alloc(r.e.SimilarityWork(k, d)))
		return r.read(out, 1)[0], r.get(tdy)
	}
	got, dy := loss(x, x)
	near(t, "loss of equals", []float64{got}, []float64{0}, nil, 1e-6)
	near(t, "its gradient", dy, make([]float64, len(dy)), nil, 1e-6)
	a, b := make([]float64, d.Len()), make([]float64, d.Len())
	for i := range a {
		a[i], b[i] = 0.5, -0.25
	}
	for i := range a {
		b[i] = 0.25
	}
	got, _ = loss(a, b)
	l := (2*0.5*0.25 + 4e-4) / (0.5*0.5 + 0.25*0.25 + 4e-4)
	near(t, "loss of flat volumes", []float64{got}, []float64{1 - math.Sqrt(l)}, nil, 1e-4)
}
