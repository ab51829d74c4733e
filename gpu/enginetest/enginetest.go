// Package enginetest holds every gpu.Engine to the same answers. Run compares each op with a float64 reference on random
// odd shapes, gradients with the reference's adjoint or its finite differences, and checks what the contract says of
// halos, of operands that share memory and of bits. Bench times the ops that a training step spends its time in.
//
// An engine's own test is one line:
//
//	enginetest.Run(t, func() gpu.Engine { return cpu.New(0) })
//
// Reading order: enginetest.go (the list of tests, and how an op is tried), ops.go, conv.go, norm.go, losses.go, pointwise.go and
// latent.go; judge.go, planes.go and spectral.go (what a GAN adds); bench.go and benchgan.go.
package enginetest

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"pgregory.net/rapid"
)

// arenaBytes is the arena of every test: shapes are small.
const arenaBytes = 128 << 20

// Run runs the suite on engines that open gives; each is closed. Where the engine's own type isn't float32, what it stores activations in
// is tested with that type too: operands are rounded to it before references see them, and results may be off by a rounding.
func Run(t *testing.T, open func() gpu.Engine) {
	tests := []test{
		{"Memory", testMemory, true},
		{"Upload", testUpload, true},
		{"Copies", testCopies, false},
		{"Conv", testConv, true},
		{"ConvThin", testConvThin, true},
		{"ConvExtent", testConvExtent, true},
		{"NormAct", testNormAct, true},
		{"NormLargeMean", testNormLargeMean, true},
		{"Quantize", testQuantize, true},
		{"QuantizeTies", testQuantizeTies, false},
		{"ReconLoss", testReconLoss, true},
		{"ReconLossNotFinite", testReconLossNotFinite, false},
		{"Pointwise", testPointwise, true},
		{"Activate", testActivate, true},
		{"MaxPool", testMaxPool, true},
		{"MaxPoolTies", testMaxPoolTies, true},
		{"Slice", testSlice, true},
		{"Tint", testTint, true},
		{"JudgeLoss", testJudgeLoss, false},
		{"JudgeLossEdges", testJudgeLossEdges, false},
		{"Balance", testBalance, false},
		{"Nudge", testNudge, false},
		{"PerceptualLoss", testPerceptualLoss, true},
		{"PerceptualLossZero", testPerceptualLossZero, false},
		{"SimilarityLoss", testSimilarityLoss, false},
		{"SimilarityLossKnown", testSimilarityLossKnown, false},
		{"Unit", testUnit, false},
		{"Round", testRound, false},
		{"Spectral", testSpectral, false},
		{"SpectralConverges", testSpectralConverges, false},
		{"SpectralZero", testSpectralZero, false},
		{"SumSquares", testSumSquares, false},
		{"Adam", testAdam, false},
	}
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) { c.run(t, open, gpu.Float32) })
	}
	t.Run("Reserve", func(t *testing.T) { testReserve(t, open()) })
	e := open()
	native := e.Native()
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if native == gpu.Float32 {
		return
	}
	for _, c := range tests {
		if c.native {
			t.Run(native.String()+"/"+c.name, func(t *testing.T) { c.run(t, open, native) })
		}
	}
}

// Convolutions is what Run asks of them, for an engine that has several kernels for them.
func Convolutions(t *testing.T, open func() gpu.Engine) {
	e := open()
	native := e.Native()
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range []test{{"Conv", testConv, true}, {"ConvExtent", testConvExtent, true}} {
		t.Run(c.name, func(t *testing.T) { c.run(t, open, native) })
	}
}

// test is a part of the suite.
type test struct {
	name   string
	f      func(*testing.T, *rig)
	native bool // its tensors may be of the engine's own type
}

func (c test) run(t *testing.T, open func() gpu.Engine, kind gpu.Type) {
	e := open()
	defer func() { // what a device says comes behind wrong results too
		if err := errors.Join(e.Sync(), e.Close()); err != nil {
			t.Error(err)
		}
	}()
	if err := e.Reserve(arenaBytes); err != nil {
		t.Fatal(err)
	}
	c.f(t, &rig{e: e, kind: kind})
}

// rig is an engine, how much of its arena is taken, and what tensors are stored in.
type rig struct {
	e    gpu.Engine
	next gpu.Ptr
	gaps []gpu.Ptr // of gpu.Align bytes
	kind gpu.Type
}

// check runs a property, each time with an empty arena that holds NaN where the last run wrote. Nothing may be written between what was
// allocated.
func (r *rig) check(t *testing.T, f func(*rapid.T)) {
	t.Helper()
	rapid.Check(t, func(rt *rapid.T) {
		r.e.Fill(0, int(r.next)/4, float32(math.NaN()))
		r.next, r.gaps = 0, nil
		f(rt)
		var gap [gpu.Align / 4]float32
		for _, at := range r.gaps {
			r.e.Read(gap[:], at)
			for i, v := range gap {
				if v == v {
					rt.Fatalf("%v was written %d bytes behind an operand that ends at %d", v, 4*i, at)
				}
			}
		}
	})
}

// alloc takes memory, with a gap of NaN behind it.
func (r *rig) alloc(bytes int64) gpu.Ptr {
	p := r.next
	r.next += gpu.Ptr((max(bytes, 1) + gpu.Align - 1) / gpu.Align * gpu.Align)
	r.gaps = append(r.gaps, r.next)
	r.next += gpu.Align
	if r.next > arenaBytes {
		panic("enginetest: the arena is full")
	}
	r.e.Fill(r.next-gpu.Align, gpu.Align/4, float32(math.NaN()))
	return p
}

// floats stores dense data.
func (r *rig) floats(v []float64) gpu.Ptr {
	p := r.alloc(4 * int64(len(v)))
	r.e.Write(p, float32s(v))
	return p
}

func (r *rig) read(p gpu.Ptr, n int) []float64 {
	v := make([]float32, n)
	r.e.Read(v, p)
	return float64s(v)
}

// tensor allocates a tensor.
func (r *rig) tensor(d gpu.Dims, halo int, pad gpu.Padding) gpu.Tensor {
	return r.typed(d, halo, pad, r.kind)
}

// typed allocates a tensor of a type.
func (r *rig) typed(d gpu.Dims, halo int, pad gpu.Padding, t gpu.Type) gpu.Tensor {
	return gpu.Tensor{Dims: d, Halo: halo, Pad: pad, Type: t, At: r.alloc(r.e.Bytes(d, halo, t))}
}

// draw gives a type that tensors may have: the rig's or float32.
func (r *rig) draw(t *rapid.T, what string) gpu.Type {
	if r.kind == gpu.Float32 {
		return gpu.Float32
	}
	return rapid.SampledFrom([]gpu.Type{r.kind, gpu.Float32}).Draw(t, "type of "+what)
}

// put allocates a tensor and stores v.
func (r *rig) put(d gpu.Dims, halo int, pad gpu.Padding, v []float64) gpu.Tensor {
	return r.putTyped(d, halo, pad, r.kind, v)
}

// putTyped allocates a tensor of a type and stores v.
func (r *rig) putTyped(d gpu.Dims, halo int, pad gpu.Padding, k gpu.Type, v []float64) gpu.Tensor {
	t := r.typed(d, halo, pad, k)
	r.e.WriteTensor(t, float32s(v))
	return t
}

func (r *rig) get(t gpu.Tensor) []float64 {
	v := make([]float32, t.Len())
	r.e.ReadTensor(v, t)
	return float64s(v)
}

// random gives n normal numbers, rounded to what tensors hold so that references see what engines see.
func (r *rig) random(rng *rand.Rand, n int) []float64 {
	v := make([]float64, n)
	for i := range v {
		v[i] = rounded(rng.NormFloat64(), r.kind)
	}
	return v
}

// rounded is the number of a type that is nearest to v.
func rounded(v float64, t gpu.Type) float64 {
	f := float32(v)
	if t == gpu.BFloat16 && f-f == 0 {
		bits := math.Float32bits(f)
		f = math.Float32frombits((bits + 0x7fff + bits>>16&1) &^ 0xffff)
	}
	return float64(f)
}

// close is near for a tensor, whose values may be off by the rounding of its type too.
func (r *rig) close(t fataler, what string, got gpu.Tensor, want, size []float64, tol float64) {
	t.Helper()
	values := r.get(got)
	if got.Type == gpu.BFloat16 {
		const half = 1. / 256 // of a unit in the last place, relative; sums may fall on the other side of a tie
		for i := range min(len(values), len(want)) {
			values[i] -= max(-half*math.Abs(want[i]), min(half*math.Abs(want[i]), values[i]-want[i]))
		}
	}
	near(t, what, values, want, size, tol)
}

// exact is equal for a tensor, with want rounded to its type.
func (r *rig) exact(t fataler, what string, got gpu.Tensor, want []float64) {
	t.Helper()
	stored := make([]float64, len(want))
	for i, v := range want {
		stored[i] = rounded(v, got.Type)
	}
	equal(t, what, r.get(got), stored)
}

func float32s(v []float64) []float32 {
	out := make([]float32, len(v))
	for i, x := range v {
		out[i] = float32(x)
	}
	return out
}

func float64s(v []float32) []float64 {
	out := make([]float64, len(v))
	for i, x := range v {
		out[i] = float64(x)
	}
	return out
}

// seeded gives the generator of one property run.
func seeded(t *rapid.T) *rand.Rand {
	return rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
}

// fataler is testing.TB or rapid.T.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// near fails unless |got-want| ≤ tol*(1 + size) at every index; size is the magnitude of what was summed, nil for |want|.
func near(t fataler, what string, got, want, size []float64, tol float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	for i, w := range want {
		s := math.Abs(w)
		if size != nil {
			s = size[i]
		}
		if d := math.Abs(got[i] - w); !(d <= tol*(1+s)) {
			t.Fatalf("%s[%d] = %g, want %g (off by %.2g, sum of magnitudes %.3g)", what, i, got[i], w, d, s)
		}
	}
}

// equal fails unless the bits agree.
func equal(t fataler, what string, got, want []float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	for i, w := range want {
		if got[i] != w && !(math.IsNaN(got[i]) && math.IsNaN(w)) {
			t.Fatalf("%s[%d] = %v, want exactly %v", what, i, got[i], w)
		}
	}
}

// checkHalo holds a tensor's halo to its padding, by a convolution that reads it.
func (r *rig) checkHalo(t fataler, what string, x gpu.Tensor) {
	t.Helper()
	if x.Halo == 0 {
		return
	}
	c := gpu.Conv{In: x.Dims, Out: x.Dims, K: [3]int{1, 1, 3}, S: [3]int{1, 1, 1}, Lo: [3]int{0, 0, 1}, Pad: x.Pad, Type: x.Type}
	if x.Halo >= 2 {
		c.K[2], c.Lo[2] = 4, 2
	}
	c.Out.C = 2
	w := make([]float64, c.Taps()*c.In.C*c.Out.C)
	for i := range w {
		w[i] = float64(i%7 - 3)
	}
	y, size := refConv(c, r.get(x), w, make([]float64, 2))
	r.close(t, what+": convolution that reads the halo", r.conv(c, x, w, make([]float64, 2), nil), y, size, 1e-5)
}

// conv packs weights and convolves into a fresh tensor.
func (r *rig) conv(c gpu.Conv, x gpu.Tensor, w, bias []float64, add *gpu.Tensor) gpu.Tensor {
	s := r.e.ConvSizes(c)
	packed := r.alloc(s.Packed)
	r.e.PackConv(c, r.floats(w), packed, -1)
	y := r.tensor(c.Out, 0, gpu.Zero)
	r.e.Conv(c, x, packed, r.floats(bias), add, y)
	return y
}

// drawDims gives small extents with C channels.
func drawDims(t *rapid.T, channels int) gpu.Dims {
	return gpu.Dims{
		N: rapid.IntRange(1, 2).Draw(t, "n"),
		D: rapid.IntRange(1, 5).Draw(t, "d"),
		H: rapid.IntRange(1, 6).Draw(t, "h"),
		W: rapid.IntRange(1, 19).Draw(t, "w"),
		C: channels,
	}
}

func drawChannels(t *rapid.T, name string) int {
	return rapid.SampledFrom([]int{1, 2, 3, 5, 8, 16, 17, 20, 24, 32, 33, 48, 64}).Draw(t, name)
}

func drawPad(t *rapid.T) gpu.Padding {
	return rapid.SampledFrom([]gpu.Padding{gpu.Zero, gpu.Replicate}).Draw(t, "pad")
}
