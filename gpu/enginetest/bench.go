package enginetest

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/flowrun/flowrun/gpu"
)

// benchBytes is the arena of benchmarks.
const benchBytes = 1 << 30

// The axes of benchConvs.
var (
	k1, k3   = axisKind{k: 1, s: 1}, axisKind{k: 3, s: 1, lo: 1}
	down, up = axisKind{k: 4, s: 2, lo: 1}, axisKind{k: 4, s: 2, lo: 1, transposed: true}
	// of discriminators
	halve, widen = axisKind{k: 4, s: 2, lo: 2, margin: 2}, axisKind{k: 4, s: 1, lo: 2, margin: 1}
)

// benchConvs are the convolutions that a training step spends its time in: of the generator, of discriminators of volumes (3D)
// and images (2D), and of VGG; and their thin first and last layers.
var benchConvs = []struct {
	name string
	in   gpu.Dims
	co   int
	axis axisKind // where D is 1, of H and W only
	pad  gpu.Padding
}{
	{"c16", gpu.Dims{N: 2, D: 32, H: 64, W: 64, C: 16}, 16, k3, gpu.Replicate},
	{"c32", gpu.Dims{N: 1, D: 32, H: 64, W: 64, C: 32}, 32, k3, gpu.Replicate},
	{"c64", gpu.Dims{N: 1, D: 32, H: 64, W: 64, C: 64}, 64, k3, gpu.Replicate},
	{"c128", gpu.Dims{N: 1, D: 32, H: 32, W: 32, C: 128}, 128, k3, gpu.Replicate},
	{"k4s2", gpu.Dims{N: 1, D: 32, H: 64, W: 64, C: 32}, 64, down, gpu.Replicate},
	{"t4s2", gpu.Dims{N: 1, D: 16, H: 32, W: 32, C: 64}, 32, up, gpu.Replicate},
	{"first", gpu.Dims{N: 2, D: 32, H: 64, W: 64, C: 1}, 16, k3, gpu.Replicate},
	{"last", gpu.Dims{N: 2, D: 32, H: 64, W: 64, C: 16}, 1, k3, gpu.Replicate},
	{"k1", gpu.Dims{N: 1, D: 32, H: 64, W: 64, C: 64}, 8, k1, gpu.Replicate},
	{"disc3d/first", gpu.Dims{N: 2, D: 32, H: 64, W: 64, C: 1}, 32, halve, gpu.Zero},
	{"disc3d/s2", gpu.Dims{N: 2, D: 17, H: 33, W: 33, C: 32}, 64, halve, gpu.Zero},
	{"disc3d/s1", gpu.Dims{N: 2, D: 5, H: 9, W: 9, C: 128}, 256, widen, gpu.Zero},
	{"disc3d/last", gpu.Dims{N: 2, D: 6, H: 10, W: 10, C: 256}, 1, widen, gpu.Zero},
	{"disc2d/first", gpu.Dims{N: 4, D: 1, H: 128, W: 128, C: 1}, 64, halve, gpu.Zero},
	{"disc2d/s2", gpu.Dims{N: 4, D: 1, H: 65, W: 65, C: 64}, 128, halve, gpu.Zero},
	{"disc2d/s1", gpu.Dims{N: 4, D: 1, H: 17, W: 17, C: 256}, 512, widen, gpu.Zero},
	{"disc2d/last", gpu.Dims{N: 4, D: 1, H: 18, W: 18, C: 512}, 1, widen, gpu.Zero},
	{"vgg/first", gpu.Dims{N: 6, D: 1, H: 64, W: 64, C: 3}, 64, k3, gpu.Zero},
	{"vgg/64", gpu.Dims{N: 6, D: 1, H: 64, W: 64, C: 64}, 64, k3, gpu.Zero},
	{"vgg/256", gpu.Dims{N: 6, D: 1, H: 16, W: 16, C: 256}, 256, k3, gpu.Zero},
}

// timed times an op that setup makes on a fresh engine; work is its FLOPs or bytes.
type timed func(name, unit string, work int64, setup func(r *rig) func())

// Bench times convolutions (GFLOP/s) and the memory-bound ops (GB/s of what an op must read and write).
func Bench(b *testing.B, open func() gpu.Engine) {
	run := func(name, unit string, work int64, setup func(r *rig) func()) {
		b.Run(name, func(b *testing.B) {
			e := open()
			defer func() { _ = e.Close() }()
			if err := e.Reserve(benchBytes); err != nil {
				b.Fatal(err)
			}
			f := setup(&rig{e: e})
			f()
			if err := e.Sync(); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				f()
				_ = e.Sync()
			}
			b.ReportMetric(float64(work)*float64(b.N)/b.Elapsed().Seconds()/1e9, unit)
		})
	}
	benchConv(run)
	benchNorm(run)
	benchRest(run)
	benchGAN(run)
}

func benchConv(run timed) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, s := range benchConvs {
		c := gpu.Conv{In: s.in, Out: gpu.Dims{N: s.in.N, C: s.co}, Pad: s.pad, Transposed: s.axis.transposed}
		in, out := [3]int{s.in.D, s.in.H, s.in.W}, [3]*int{&c.Out.D, &c.Out.H, &c.Out.W}
		for i, n := range in {
			a := s.axis
			if i == 0 && n == 1 {
				a = k1
			}
			c.K[i], c.S[i], c.Lo[i], *out[i] = a.k, a.s, a.lo, a.size(n)
		}
		layer := func(r *rig, f func(x, y gpu.Tensor, packed, packedGrad, w, bias, work gpu.Ptr)) {
			sizes := r.e.ConvSizes(c)
			packed, packedGrad, work := r.alloc(sizes.Packed), r.alloc(sizes.PackedGrad), r.alloc(sizes.Workspace)
			w, bias := r.floats(r.random(rng, c.Taps()*c.In.C*c.Out.C)), r.floats(r.random(rng, c.Out.C))
			r.e.PackConv(c, w, packed, packedGrad)
			x := r.put(c.In, c.Halo(), c.Pad, r.random(rng, c.In.Len()))
			y := r.put(c.Out, c.Halo(), gpu.Zero, r.random(rng, c.Out.Len()))
			f(x, y, packed, packedGrad, w, bias, work)
		}
		run("Conv/"+s.name+"/Forward", "GFLOP/s", c.FLOPs(), func(r *rig) (op func()) {
			layer(r, func(x, y gpu.Tensor, packed, _, _, bias, _ gpu.Ptr) {
				op = func() { r.e.Conv(c, x, packed, bias, nil, y) }
			})
			return op
		})
		run("Conv/"+s.name+"/GradInput", "GFLOP/s", c.FLOPs(), func(r *rig) (op func()) {
			layer(r, func(x, y gpu.Tensor, _, packedGrad, _, _, _ gpu.Ptr) {
				op = func() { r.e.ConvGradInput(c, y, packedGrad, x) }
			})
			return op
		})
		run("Conv/"+s.name+"/GradWeight", "GFLOP/s", c.FLOPs(), func(r *rig) (op func()) {
			layer(r, func(x, y gpu.Tensor, _, _, w, bias, work gpu.Ptr) {
				op = func() { r.e.ConvGradWeight(c, x, y, w, bias, work) }
			})
			return op
		})
	}
}

// benchDims is the size of the tensors of memory-bound ops.
var benchDims = gpu.Dims{N: 2, D: 32, H: 64, W: 64, C: 16}

// benchTensors are n tensors of benchDims.
func benchTensors(r *rig, rng *rand.Rand, n int) []gpu.Tensor {
	ts := make([]gpu.Tensor, n)
	for i := range ts {
		ts[i] = r.put(benchDims, 1, gpu.Replicate, r.random(rng, benchDims.Len()))
	}
	return ts
}

func benchNorm(run timed) {
	rng, d := rand.New(rand.NewPCG(1, 1)), benchDims
	size := 4 * int64(d.Len())
	for _, n := range []gpu.Norm{{Eps: 1e-6}, {Groups: 4, Eps: 1e-6}} {
		name := fmt.Sprintf("NormAct/%d groups", n.Groups)
		setup := func(r *rig, f func(ts []gpu.Tensor, gamma, beta, stats, work gpu.Ptr)) {
			gamma, beta := r.floats(r.random(rng, d.C)), r.floats(r.random(rng, d.C))
			stats, work := r.alloc(r.e.NormStats(n, d)), r.alloc(r.e.NormWork(n, d))
			ts := benchTensors(r, rng, 3)
			r.e.NormAct(n, ts[0], gamma, beta, stats, ts[1])
			f(ts, gamma, beta, stats, work)
		}
		run(name+"/Forward", "GB/s", 2*size, func(r *rig) (op func()) {
			setup(r, func(ts []gpu.Tensor, gamma, beta, stats, _ gpu.Ptr) {
				op = func() { r.e.NormAct(n, ts[0], gamma, beta, stats, ts[1]) }
			})
			return op
		})
		run(name+"/Grad", "GB/s", 3*size, func(r *rig) (op func()) {
			setup(r, func(ts []gpu.Tensor, gamma, beta, stats, work gpu.Ptr) {
				dgamma, dbeta := r.alloc(int64(4*d.C)), r.alloc(int64(4*d.C))
				op = func() { r.e.NormActGrad(n, ts[0], gamma, beta, stats, ts[1], nil, ts[2], dgamma, dbeta, work) }
			})
			return op
		})
	}
}

func benchRest(run timed) {
	rng := rand.New(rand.NewPCG(1, 1))
	size := 4 * int64(benchDims.Len())
	run("Add", "GB/s", 3*size, func(r *rig) func() {
		ts := benchTensors(r, rng, 3)
		return func() { r.e.Add(ts[0], ts[1], ts[2]) }
	})
	one := gpu.Dims{N: 16, D: 32, H: 64, W: 64, C: 1}
	run("ReconLoss", "GB/s", 3*4*int64(one.Len()), func(r *rig) func() {
		y, t, dy := r.put(one, 1, gpu.Zero, r.random(rng, one.Len())), r.put(one, 1, gpu.Zero, r.random(rng, one.Len())), r.tensor(one, 1, gpu.Zero)
		out, work, scale := r.alloc(16), r.alloc(r.e.LossWork(one)), r.floats([]float64{1})
		return func() { r.e.ReconLoss(y, t, 1, 1, scale, &dy, out, work) }
	})
	const params = 4 << 20
	run("Adam", "GB/s", 9*4*params, func(r *rig) func() {
		v := r.random(rng, params)
		for i := range v {
			v[i] *= v[i]
		}
		p, g, m, s, ema := r.floats(v), r.floats(v), r.floats(v), r.floats(v), r.floats(v)
		a := gpu.Adam{LR: 1e-4, Beta1: 0.5, Beta2: 0.9, Eps: 1e-8, GradScale: 1, EMADecay: 0.999, Step: 3}
		return func() { r.e.AdamStep(a, p, g, m, s, ema, params) }
	})
	run("SumSquares", "GB/s", 4*params, func(r *rig) func() {
		p, out, work := r.floats(r.random(rng, params)), r.alloc(4), r.alloc(r.e.SumSquaresWork(params))
		return func() { r.e.SumSquares(p, params, out, work) }
	})
	k := gpu.Quantizer{Codes: 16384, Dim: 8}
	z := gpu.Dims{N: 2, D: 8, H: 16, W: 16, C: k.Dim}
	run("Quantize", "GFLOP/s", 2*int64(z.Voxels())*int64(k.Codes*k.Dim), func(r *rig) func() {
		tz, tq := r.put(z, 0, gpu.Zero, r.random(rng, z.Len())), r.tensor(z, 0, gpu.Zero)
		book, idx := r.floats(r.random(rng, k.Codes*k.Dim)), r.alloc(4*int64(z.Voxels()))
		counts, sums := r.floats(make([]float64, k.Codes)), r.floats(make([]float64, k.Codes*k.Dim))
		loss, work := r.alloc(4), r.alloc(r.e.QuantizeWork(k, z))
		return func() { r.e.Quantize(k, tz, book, idx, tq, counts, sums, loss, work) }
	})
}
