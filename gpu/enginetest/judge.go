package enginetest

import (
	"fmt"
	"math"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"pgregory.net/rapid"
)

// refJudge gives the mean loss as gpu.Judge's table has it; lecam nil or λ, a.
func refJudge(j gpu.Judge, x, lecam []float64) float64 {
	softplus := func(u float64) float64 { return math.Log(1 + math.Exp(u)) }
	table := map[gpu.Judge]func(l float64) float64{
		{Loss: gpu.Hinge, Side: gpu.OnReal}:        func(l float64) float64 { return max(0, 1-l) },
		{Loss: gpu.Hinge, Side: gpu.OnFake}:        func(l float64) float64 { return max(0, 1+l) },
		{Loss: gpu.Hinge, Side: gpu.OfGenerator}:   func(l float64) float64 { return -l },
		{Loss: gpu.Vanilla, Side: gpu.OnReal}:      func(l float64) float64 { return softplus(-l) },
		{Loss: gpu.Vanilla, Side: gpu.OnFake}:      softplus,
		{Loss: gpu.Vanilla, Side: gpu.OfGenerator}: func(l float64) float64 { return softplus(-l) },
		{Loss: gpu.Squares, Side: gpu.OnReal}:      func(l float64) float64 { return (l - 1) * (l - 1) },
		{Loss: gpu.Squares, Side: gpu.OnFake}:      func(l float64) float64 { return l * l },
		{Loss: gpu.Squares, Side: gpu.OfGenerator}: func(l float64) float64 { return (l - 1) * (l - 1) },
	}
	f := table[j]
	if j.Loss == gpu.Mean {
		f = func(l float64) float64 { return l }
	}
	var sum float64
	for _, l := range x {
		sum += f(l)
		if lecam != nil {
			d := max(0, l-lecam[1])
			if j.Side == gpu.OnFake {
				d = max(0, lecam[1]-l)
			}
			sum += lecam[0] * d * d
		}
	}
	return sum / float64(len(x))
}

func testJudgeLoss(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		d := drawDims(t, rapid.IntRange(1, 2).Draw(t, "c"))
		rng := seeded(t)
		x := r.random(rng, d.Len())
		for i := range x {
			x[i] *= 2
		}
		j := gpu.Judge{
			Loss: rapid.SampledFrom([]gpu.Adversary{gpu.Hinge, gpu.Vanilla, gpu.Squares, gpu.Mean}).Draw(t, "loss"),
			Side: rapid.SampledFrom([]gpu.Side{gpu.OnReal, gpu.OnFake, gpu.OfGenerator}).Draw(t, "side"),
		}
		var lecam []float64
		at := gpu.Ptr(-1)
		if j.Side != gpu.OfGenerator && rapid.Bool().Draw(t, "lecam") {
			lecam = []float64{0.25, float64(float32(rng.NormFloat64()))}
			at = r.floats(append([]float64{0}, lecam...)) + 4
		}
		const scale = 3
		dx := slope(x, func() float64 { return scale * refJudge(j, x, lecam) })
		want := []float64{refJudge(j, x, lecam), 0}
		for _, l := range x {
			want[1] += l / float64(len(x))
		}
		tx := r.put(d, 1, gpu.Zero, x)
		out, work, by := r.alloc(8), r.alloc(r.e.LossWork(d)), r.floats([]float64{scale})
		r.e.JudgeLoss(j, tx, -1, at, nil, out, work)
		near(t, "losses", r.read(out, 2), want, nil, 3e-6)
		tdx := r.tensor(d, 2, gpu.Zero)
		r.e.JudgeLoss(j, tx, by, at, &tdx, out, work)
		near(t, "losses with gradient", r.read(out, 2), want, nil, 3e-6)
		r.close(t, "dx", tdx, dx, nil, 1e-5)
		r.checkHalo(t, "dx", tdx)
		r.e.JudgeLoss(j, tx, by, at, &tx, out, work)
		equal(t, "dx over x", r.get(tx), r.get(tdx))
		r.checkHalo(t, "dx over x", tx)
	})
}

// testJudgeLossEdges has logits on hinge's corner, whose slope is 0, and logits so large that exp overflows.
func testJudgeLossEdges(t *testing.T, r *rig) {
	x := []float64{1, -1, 1000, -1000}
	d := gpu.Dims{N: 1, D: 1, H: 1, W: len(x), C: 1}
	for _, c := range []struct {
		j        gpu.Judge
		loss, dx [4]float64
	}{
		{gpu.Judge{Loss: gpu.Hinge, Side: gpu.OnReal}, [4]float64{0, 2, 0, 1001}, [4]float64{0, -1, 0, -1}},
		{gpu.Judge{Loss: gpu.Hinge, Side: gpu.OnFake}, [4]float64{2, 0, 1001, 0}, [4]float64{1, 0, 1, 0}},
		{gpu.Judge{Loss: gpu.Vanilla, Side: gpu.OnReal},
			[4]float64{math.Log1p(math.Exp(-1)), math.Log1p(math.E), 0, 1000}, [4]float64{-1 / (1 + math.E), -math.E / (1 + math.E), 0, -1}},
	} {
		for i, l := range x {
			one := gpu.Dims{N: 1, D: 1, H: 1, W: 1, C: 1}
			out := r.alloc(8)
			r.e.JudgeLoss(c.j, r.put(one, 0, gpu.Zero, []float64{l}), -1, -1, nil, out, r.alloc(r.e.LossWork(one)))
			near(t, fmt.Sprintf("%+v: loss and logit %v", c.j, l), r.read(out, 2), []float64{c.loss[i], l}, nil, 1e-6)
		}
		tdx := r.tensor(d, 0, gpu.Zero)
		r.e.JudgeLoss(c.j, r.put(d, 0, gpu.Zero, x), r.floats([]float64{4}), -1, &tdx, r.alloc(8), r.alloc(r.e.LossWork(d)))
		near(t, fmt.Sprintf("%+v: dx", c.j), r.get(tdx), c.dx[:], nil, 1e-6)
	}
}

func testBalance(t *testing.T, r *rig) {
	const limit = 100
	for _, c := range []struct{ a, b, want float64 }{
		{4, 9, 2 / (3 + 1e-4)},
		{0, 9, 0},
		{1e6, 1, limit},
		{1, 0, limit},
		{0, 0, 0},
		{math.NaN(), 1, math.NaN()},
	} {
		in, out := r.floats([]float64{0.25, c.a, c.b}), r.alloc(12)
		r.e.Balance(in+4, in+8, limit, in, out+4)
		got := r.read(out, 3)[1:]
		if math.IsNaN(c.want) && math.IsNaN(got[0]) && math.IsNaN(got[1]) {
			continue
		}
		near(t, fmt.Sprintf("balance of %v and %v", c.a, c.b), got, []float64{c.want, c.want / 4}, nil, 1e-6)
	}
}

func testNudge(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		d := drawDims(t, rapid.IntRange(1, 3).Draw(t, "c"))
		rng := seeded(t)
		x, g := r.random(rng, d.Len()), r.random(rng, d.Len())
		if rapid.Bool().Draw(t, "no gradient") {
			clear(g)
		}
		const h, f = 0.5, 3
		norm := math.Sqrt(dot(g, g))
		y := make([]float64, d.Len())
		for i := range y {
			y[i] = x[i]
			if norm > 0 {
				y[i] += h * g[i] / norm
			}
		}
		tx, tg := r.put(d, 0, gpu.Zero, x), r.put(d, rapid.IntRange(0, 2).Draw(t, "halo"), gpu.Replicate, g)
		ty, out := r.tensor(d, 1, drawPad(t)), r.alloc(12)
		r.e.Nudge(tx, tg, h, r.floats([]float64{f}), ty, out, r.alloc(r.e.LossWork(d)))
		r.close(t, "y", ty, y, nil, 1e-6)
		r.checkHalo(t, "y", ty)
		near(t, "norm, f·norm, -f·norm", r.read(out, 3), []float64{norm, f * norm, -f * norm}, nil, 2e-6)
	})
}
