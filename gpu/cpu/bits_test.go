package cpu

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/flowrun/flowrun/gpu"
)

// TestThreadsKeepBits runs every op whose work is split with 1, 2, 3 and 7 threads: the whole arena must come out the same.
func TestThreadsKeepBits(t *testing.T) {
	for _, l := range levels() {
		t.Run(l.name, func(t *testing.T) {
			if !l.ok {
				t.Skip("this processor can't run it")
			}
			want := everything(t, open(l, 1))
			for _, threads := range []int{2, 3, 7} {
				got := everything(t, open(l, threads))
				for i := range want {
					if got[i] != want[i] {
						t.Fatalf("%d threads: word %d of the arena is %08x, with one thread %08x", threads, i, got[i], want[i])
					}
				}
			}
		})
	}
}

// everything runs the ops and gives the arena's bits.
func everything(t *testing.T, e *Engine) []uint32 {
	t.Helper()
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	const bytes = 96 << 20
	if err := e.Reserve(bytes); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(7, 7))
	var next gpu.Ptr
	alloc := func(n int64) gpu.Ptr {
		p := next
		next += gpu.Ptr(round(n, gpu.Align))
		return p
	}
	random := func(n int) gpu.Ptr {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(rng.NormFloat64())
		}
		p := alloc(4 * int64(n))
		e.Write(p, v)
		return p
	}
	tensor := func(d gpu.Dims, halo int, pad gpu.Padding) gpu.Tensor {
		x := gpu.Tensor{Dims: d, Halo: halo, Pad: pad, At: alloc(e.Bytes(d, halo, gpu.Float32))}
		v := make([]float32, d.Len())
		for i := range v {
			v[i] = float32(rng.NormFloat64())
		}
		e.WriteTensor(x, v)
		return x
	}
	for _, c := range []gpu.Conv{
		{In: gpu.Dims{N: 2, D: 5, H: 9, W: 33, C: 20}, Out: gpu.Dims{N: 2, D: 5, H: 9, W: 33, C: 36}, K: [3]int{3, 3, 3}, S: [3]int{1, 1, 1}, Lo: [3]int{1, 1, 1}, Pad: gpu.Replicate},
		{In: gpu.Dims{N: 1, D: 6, H: 8, W: 34, C: 16}, Out: gpu.Dims{N: 1, D: 3, H: 4, W: 17, C: 32}, K: [3]int{4, 4, 4}, S: [3]int{2, 2, 2}, Lo: [3]int{1, 1, 1}, Pad: gpu.Replicate},
		{In: gpu.Dims{N: 1, D: 3, H: 4, W: 17, C: 32}, Out: gpu.Dims{N: 1, D: 6, H: 8, W: 34, C: 16}, K: [3]int{4, 4, 4}, S: [3]int{2, 2, 2}, Lo: [3]int{1, 1, 1}, Transposed: true},
		{In: gpu.Dims{N: 3, D: 1, H: 9, W: 34, C: 20}, Out: gpu.Dims{N: 3, D: 1, H: 5, W: 18, C: 36}, K: [3]int{1, 4, 4}, S: [3]int{1, 2, 2}, Lo: [3]int{0, 2, 2}},
		{In: gpu.Dims{N: 2, D: 4, H: 5, W: 9, C: 36}, Out: gpu.Dims{N: 2, D: 5, H: 6, W: 10, C: 65}, K: [3]int{4, 4, 4}, S: [3]int{1, 1, 1}, Lo: [3]int{2, 2, 2}},
		{In: gpu.Dims{N: 2, D: 4, H: 8, W: 40, C: 16}, Out: gpu.Dims{N: 2, D: 4, H: 8, W: 40, C: 1}, K: [3]int{3, 3, 3}, S: [3]int{1, 1, 1}, Lo: [3]int{1, 1, 1}, Pad: gpu.Replicate},
	} {
		sizes := e.ConvSizes(c)
		packed, packedGrad, work := alloc(sizes.Packed), alloc(sizes.PackedGrad), alloc(sizes.Workspace)
		w, bias := random(c.Taps()*c.In.C*c.Out.C), random(c.Out.C)
		e.PackConv(c, w, packed, packedGrad)
		h := c.Halo()
		x, y, dy, dx := tensor(c.In, h, c.Pad), tensor(c.Out, h, gpu.Zero), tensor(c.Out, h, gpu.Zero), tensor(c.In, h, gpu.Zero)
		e.Conv(c, x, packed, bias, nil, y)
		e.ConvGradInput(c, dy, packedGrad, dx)
		e.ConvGradWeight(c, x, dy, random(c.Taps()*c.In.C*c.Out.C), random(c.Out.C), work)
	}
	d := gpu.Dims{N: 2, D: 6, H: 40, W: 24, C: 16}
	for _, n := range []gpu.Norm{{Eps: 1e-6}, {Groups: 4, Eps: 1e-6}, {Plain: true, Eps: 1e-6}, {Batch: true, Plain: true, Eps: 1e-6}} {
		x, y, dy, dx := tensor(d, 1, gpu.Replicate), tensor(d, 1, gpu.Replicate), tensor(d, 0, gpu.Zero), tensor(d, 1, gpu.Zero)
		gamma, beta, dgamma, dbeta, stats := random(d.C), random(d.C), random(d.C), random(d.C), alloc(e.NormStats(n, d))
		e.NormAct(n, x, gamma, beta, stats, y)
		e.NormActGrad(n, x, gamma, beta, stats, dy, &y, dx, dgamma, dbeta, alloc(e.NormWork(n, d)))
	}
	k := gpu.Quantizer{Codes: 100, Dim: 16}
	z, q := tensor(d, 0, gpu.Zero), tensor(d, 0, gpu.Zero)
	e.Quantize(k, z, random(k.Codes*k.Dim), alloc(4*int64(d.Voxels())), q, random(k.Codes), random(k.Codes*k.Dim), alloc(4), alloc(e.QuantizeWork(k, d)))
	dy := tensor(d, 1, gpu.Zero)
	e.ReconLoss(z, q, 1, 1, 1, &dy, alloc(16), alloc(e.LossWork(d)))
	one := d
	one.C = 1
	gan(e, d, one, tensor, random, alloc)
	const n = 100_000
	e.SumSquares(random(n), n, alloc(4), alloc(e.SumSquaresWork(n)))
	a := gpu.Adam{LR: 1e-3, Beta1: 0.5, Beta2: 0.9, Eps: 1e-8, GradScale: 0.5, EMADecay: 0.9, Step: 2}
	e.AdamStep(a, random(n), random(n), random(n), alloc(4*n), random(n), n)
	if int64(next) > bytes {
		t.Fatal("the arena is too small for this test")
	}
	out := make([]uint32, next/4)
	for i, v := range e.floats(0, len(out)) {
		out[i] = math.Float32bits(v)
	}
	return out
}

// gan runs what a GAN adds.
func gan(e *Engine, d, one gpu.Dims, tensor func(gpu.Dims, int, gpu.Padding) gpu.Tensor, random func(int) gpu.Ptr, alloc func(int64) gpu.Ptr) {
	in := func(d gpu.Dims) gpu.Tensor { return tensor(d, 1, gpu.Zero) }
	number := func(v ...float32) gpu.Ptr {
		p := alloc(4 * int64(len(v)))
		e.Write(p, v)
		return p
	}
	x, y, dx := in(d), in(d), in(d)
	e.Combine(x, y, number(0.5), dx)
	e.Subtract(dx, y, dx)
	e.Activate(0.2, x, y)
	e.ActivateGrad(0.2, y, dx, &dx, dx)
	half := d
	half.H, half.W = d.H/2, d.W/2
	pooled := in(half)
	e.MaxPool(x, pooled)
	e.MaxPoolGrad(x, pooled, &y, in(d))
	plane := gpu.Dims{N: 3 * d.N, D: 1, H: d.D, W: d.H, C: d.C}
	cut, at := in(plane), number(1, 5, 5, 0, 23, 7)
	e.Slice(2, x, at, cut)
	e.SliceGrad(2, cut, at, &y, in(d))
	a, b := in(one), in(one)
	e.Tint(a, random(d.C), random(d.C), y)
	e.TintGrad(y, random(d.C), b)
	work := alloc(e.LossWork(d))
	e.JudgeLoss(gpu.Judge{Loss: gpu.Vanilla}, a, number(2), number(0.5, 0.25), &b, alloc(8), work)
	e.PerceptualLoss(x, y, random(d.C), number(2), &dx, &dx, alloc(4), work)
	e.Nudge(x, y, 0.5, number(3), in(d), alloc(12), work)
	s := gpu.Similarity{Weights: []float64{0.5, 0.5}}
	e.SimilarityLoss(s, a, b, number(2), new(in(one)), alloc(4), alloc(e.SimilarityWork(s, one)))
	e.Unit(x, y)
	e.UnitGrad(x, dx, y)
	k := gpu.Scalar{Levels: []int{8, 5, 5, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2}}
	e.Round(k, x, alloc(4*int64(d.Voxels())), y, -1)
	e.RoundGrad(k, x, dx, y)
	const rows, columns = 3000, 70
	u, v, bar, sigma := random(columns), random(rows), alloc(4*rows*columns), alloc(4)
	scratch := alloc(e.SpectralWork(rows, columns))
	e.Spectral(random(rows*columns), rows, columns, u, v, bar, sigma, scratch)
	e.SpectralGrad(random(rows*columns), bar, rows, columns, u, v, sigma, scratch)
}

// TestNothingAllocatedPerRow holds ops to a few allocations each, whatever their size.
func TestNothingAllocatedPerRow(t *testing.T) {
	e := New(1)
	defer func() { _ = e.Close() }()
	if err := e.Reserve(64 << 20); err != nil {
		t.Fatal(err)
	}
	c := gpu.Conv{In: gpu.Dims{N: 1, D: 8, H: 128, W: 16, C: 16}, Out: gpu.Dims{N: 1, D: 8, H: 128, W: 16, C: 16}, K: [3]int{3, 3, 3}, S: [3]int{1, 1, 1}, Lo: [3]int{1, 1, 1}}
	d := c.In
	at := func(i int) gpu.Ptr { return gpu.Ptr(i) * 4 << 20 }
	x := func(i int) gpu.Tensor { return gpu.Tensor{Dims: d, Halo: 1, At: at(i)} }
	norm := gpu.Norm{Eps: 1e-6}
	add := x(3)
	one := x(3)
	one.C = 1
	small := gpu.Tensor{Dims: gpu.Dims{N: 1, D: 8, H: 64, W: 8, C: 16}, At: at(4)}
	judged, similar := gpu.Judge{}, gpu.Similarity{Weights: []float64{0.5, 0.5}}
	for _, op := range []struct {
		name string
		f    func()
	}{
		{"Conv", func() { e.Conv(c, x(0), at(5), at(6), nil, x(1)) }},
		{"ConvGradInput", func() { e.ConvGradInput(c, x(0), at(5), x(1)) }},
		{"ConvGradWeight", func() { e.ConvGradWeight(c, x(0), x(1), at(5), at(6), at(7)) }},
		{"NormAct", func() { e.NormAct(norm, x(0), at(5), at(6), at(7), x(1)) }},
		{"NormActGrad", func() { e.NormActGrad(norm, x(0), at(5), at(6), at(7), x(1), &add, x(2), at(8), at(9), at(10)) }},
		{"Add", func() { e.Add(x(0), x(1), x(2)) }},
		{"ReconLoss", func() { e.ReconLoss(x(0), x(1), 1, 1, 1, &add, at(5), at(6)) }},
		{"Quantize", func() {
			e.Quantize(gpu.Quantizer{Codes: 64, Dim: 16}, x(0), at(5), at(6), x(1), at(7), at(8), at(9), at(10))
		}},
		{"NormAct, batch", func() { e.NormAct(gpu.Norm{Batch: true, Plain: true}, x(0), at(5), at(6), at(7), x(1)) }},
		{"Combine", func() { e.Combine(x(0), x(1), 0, x(2)) }},
		{"Activate", func() { e.Activate(0.2, x(0), x(1)) }},
		{"ActivateGrad", func() { e.ActivateGrad(0.2, x(0), x(1), &add, x(2)) }},
		{"MaxPool", func() { e.MaxPool(x(0), small) }},
		{"MaxPoolGrad", func() { e.MaxPoolGrad(x(0), small, &add, x(2)) }},
		{"JudgeLoss", func() { e.JudgeLoss(judged, x(0), 0, -1, &add, at(5), at(6)) }},
		{"PerceptualLoss", func() { e.PerceptualLoss(x(0), x(1), at(5), 0, &add, &add, at(6), at(7)) }},
		{"SimilarityLoss", func() { e.SimilarityLoss(similar, one, one, 0, nil, at(5), at(6)) }},
		{"Unit", func() { e.Unit(x(0), x(1)) }},
		{"Spectral", func() { e.Spectral(at(0), 4096, 64, at(1), at(2), at(3), at(4), at(5)) }},
		{"SumSquares", func() { e.SumSquares(at(0), 1<<20, at(5), at(6)) }},
		{"AdamStep", func() { e.AdamStep(gpu.Adam{Step: 1}, at(0), at(1), at(2), at(3), -1, 1<<20) }},
	} {
		op.f() // plans are made once
		if n := testing.AllocsPerRun(2, op.f); n > 60 {
			t.Errorf("%s allocates %v times for %d rows", op.name, n, d.D*d.H)
		}
	}
}

func TestPanicOfAWorkerReachesTheCaller(t *testing.T) {
	p := newPool(3)
	defer p.close()
	defer func() {
		if recover() == nil {
			t.Error("the panic was lost")
		}
		var ran [100]bool // and the pool still works
		p.run(len(ran), func(i int) { ran[i] = true })
		if slices.Contains(ran[:], false) {
			t.Error("a chunk didn't run after the panic")
		}
	}()
	p.run(1000, func(i int) {
		if i == 500 {
			panic("one chunk fails")
		}
	})
}

func TestNewWith(t *testing.T) {
	if _, err := NewWith("sse", 1); err == nil {
		t.Error("no error for kernels that don't exist")
	}
	e, err := NewWith("go", 3)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := e.Name(), "cpu (Go, 3 threads)"; got != want {
		t.Errorf("Name is %q, want %q", got, want)
	}
	if err := e.Reserve(1 << 20); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}
