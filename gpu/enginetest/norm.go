package enginetest

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"pgregory.net/rapid"
)

func silu(u float64) float64 { return u / (1 + math.Exp(-u)) }

// refNormAct gives silu(γ·x̂ + β), or γ·x̂ + β, of x [N, voxels, C].
func refNormAct(n gpu.Norm, d gpu.Dims, x, gamma, beta []float64) []float64 {
	y := make([]float64, len(x))
	apply := func(i int, mean, rstd float64) {
		y[i] = gamma[i%d.C]*(x[i]-mean)*rstd + beta[i%d.C]
		if !n.Plain {
			y[i] = silu(y[i])
		}
	}
	if n.Groups == 0 && !n.Batch {
		for v := 0; v < len(x); v += d.C {
			var s float64
			for _, a := range x[v : v+d.C] {
				s += a * a
			}
			for c := range d.C {
				apply(v+c, 0, 1/math.Sqrt(s/float64(d.C)+float64(n.Eps)))
			}
		}
		return y
	}
	groups, sample := n.Groups, len(x)/d.N
	if n.Batch {
		groups, sample = d.C, len(x)
	}
	width := d.C / groups
	for s := 0; s < len(x); s += sample {
		for g := range groups {
			var members []int
			var sum, sq float64
			for v := s; v < s+sample; v += d.C {
				for c := g * width; c < (g+1)*width; c++ {
					members = append(members, v+c)
					sum += x[v+c]
				}
			}
			mean := sum / float64(len(members))
			for _, i := range members {
				sq += (x[i] - mean) * (x[i] - mean)
			}
			for _, i := range members {
				apply(i, mean, 1/math.Sqrt(sq/float64(len(members))+float64(n.Eps)))
			}
		}
	}
	return y
}

// slope gives the gradient of f with respect to v by central differences.
func slope(v []float64, f func() float64) []float64 {
	const h = 1e-5
	g := make([]float64, len(v))
	for i, x := range v {
		v[i] = x + h
		hi := f()
		v[i] = x - h
		g[i] = (hi - f()) / (2 * h)
		v[i] = x
	}
	return g
}

func dot(a, b []float64) float64 {
	var s float64
	for i, v := range a {
		s += v * b[i]
	}
	return s
}

func drawNorm(t *rapid.T) (gpu.Norm, int) {
	n := gpu.Norm{Eps: 1e-2} // x̂'s slope is up to 1/√Eps: that much do roundings grow
	channels := drawChannels(t, "c")
	n.Plain = rapid.Bool().Draw(t, "plain")
	switch rapid.IntRange(0, 2).Draw(t, "norm") {
	case 1:
		n.Batch, n.Plain = true, true
	case 2:
		n.Groups = rapid.SampledFrom([]int{1, 2, 4}).Draw(t, "groups")
		channels = (channels + n.Groups - 1) / n.Groups * n.Groups
	}
	return n, channels
}

func testNormAct(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		n, channels := drawNorm(t)
		d := drawDims(t, channels)
		for d.Len() > 600 { // finite differences take len² work
			d.W = (d.W + 1) / 2
			d.H = (d.H + 1) / 2
			if d.W == 1 && d.H == 1 {
				d.D, d.N = 1, 2
				break
			}
		}
		rng := seeded(t)
		x, gamma, beta := r.random(rng, d.Len()), r.random(rng, d.C), r.random(rng, d.C)
		dy, add := r.random(rng, d.Len()), r.random(rng, d.Len())
		halo, pad := rapid.IntRange(0, 2).Draw(t, "halo"), drawPad(t)
		r.normAct(t, n, d, x, gamma, beta, dy, add, halo, pad, rng)
	})
}

func (r *rig) normAct(t fataler, n gpu.Norm, d gpu.Dims, x, gamma, beta, dy, add []float64, halo int, pad gpu.Padding, rng *rand.Rand) {
	t.Helper()
	tx, pg, pb := r.put(d, halo, pad, x), r.floats(gamma), r.floats(beta)
	stats := r.alloc(r.e.NormStats(n, d))
	ty, again := r.tensor(d, halo, pad), r.tensor(d, halo, pad)
	r.e.NormAct(n, tx, pg, pb, stats, ty)
	tolY := 4e-6
	if n.Groups > 0 || n.Batch { // sums of a group in float32, about a voxel that may lie some deviations from its mean
		tolY = 3e-5
	}
	r.close(t, "y", ty, refNormAct(n, d, x, gamma, beta), nil, tolY)
	r.checkHalo(t, "y", ty)
	if n.Batch {
		r.batchStats(t, d, x, stats)
	}
	r.e.NormActApply(n, tx, pg, pb, stats, again)
	equal(t, "y recomputed", r.get(again), r.get(ty))

	loss := func() float64 { return dot(dy, refNormAct(n, d, x, gamma, beta)) }
	dx, dgamma, dbeta := slope(x, loss), slope(gamma, loss), slope(beta, loss)
	// A gradient can be the small difference of large terms where the variance is small: allow for the largest.
	size := func(v []float64) []float64 {
		m := 1 / math.Sqrt(float64(n.Eps))
		for _, a := range v {
			m = max(m, math.Abs(a))
		}
		s := make([]float64, len(v))
		for i := range s {
			s[i] = m
		}
		return s
	}
	const tol = 2e-5
	g0, b0 := r.random(rng, d.C), r.random(rng, d.C)
	grad := func(what string, dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor, want []float64) {
		t.Helper()
		dg, db, work := r.floats(g0), r.floats(b0), r.alloc(r.e.NormWork(n, d))
		r.e.NormActGrad(n, tx, pg, pb, stats, dy, add, dx, dg, db, work)
		r.close(t, what+": dx", dx, want, size(want), tol)
		near(t, what+": dgamma", minus(r.read(dg, d.C), g0), dgamma, size(dgamma), tol)
		near(t, what+": dbeta", minus(r.read(db, d.C), b0), dbeta, size(dbeta), tol)
	}
	tdy, tdx := r.put(d, halo, gpu.Zero, dy), r.tensor(d, halo, gpu.Zero)
	grad("grad", tdy, nil, tdx, dx)
	r.checkHalo(t, "dx", tdx)
	both := make([]float64, len(dx))
	for i := range both {
		both[i] = dx[i] + add[i]
	}
	ta := r.put(d, halo, gpu.Zero, add)
	grad("grad with add", tdy, &ta, tdx, both)
	grad("grad over add", tdy, &ta, ta, both)
	grad("grad over dy", tdy, nil, tdy, dx)
}

func minus(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] - b[i]
	}
	return out
}

// batchStats holds what BatchNorm leaves to the mean and the biased variance of each channel.
func (r *rig) batchStats(t fataler, d gpu.Dims, x []float64, stats gpu.Ptr) {
	t.Helper()
	want := make([]float64, 2*d.C)
	count := float64(d.Voxels())
	for i, v := range x {
		want[i%d.C] += v / count
	}
	for i, v := range x {
		e := v - want[i%d.C]
		want[d.C+i%d.C] += e * e / count
	}
	near(t, "mean and variance", r.read(stats, 2*d.C), want, nil, 1e-5)
}

// testNormLargeMean gives GroupNorm and BatchNorm a mean of 300 standard deviations.
func testNormLargeMean(t *testing.T, r *rig) {
	rng := rand.New(rand.NewPCG(1, 2))
	d := gpu.Dims{N: 2, D: 4, H: 8, W: 16, C: 8}
	x := r.random(rng, d.Len())
	for i := range x {
		x[i] = rounded(300+x[i], r.kind)
	}
	gamma, beta := r.random(rng, d.C), r.random(rng, d.C)
	for _, n := range []gpu.Norm{{Groups: 2, Eps: 1e-6}, {Batch: true, Plain: true, Eps: 1e-6}} {
		tx, ty := r.put(d, 0, gpu.Zero, x), r.tensor(d, 0, gpu.Zero)
		r.e.NormAct(n, tx, r.floats(gamma), r.floats(beta), r.alloc(r.e.NormStats(n, d)), ty)
		r.close(t, "y", ty, refNormAct(n, d, x, gamma, beta), nil, 3e-4)
	}
}
