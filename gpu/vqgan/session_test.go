package vqgan

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/cpu"
	"github.com/flowrun/flowrun/gpu/nn"
)

func tiny() (Config, Options) {
	c := Config{Hidden: 4, Downsample: [3]int{4, 4, 2}, Embedding: 4, Codes: 16, Norm: "channel", Groups: 4, Padding: "replicate", Decoder: "lean"}
	o := Options{Patch: [3]int{16, 8, 8}, Batch: 2, MicroBatch: 2, Infer: 2, Loss: Loss{L1: 1, Commitment: 0.25},
		Codebook: CodebookOptions{Decay: 0.99, Restart: 1}, Clip: 1, EMA: 0.9, Beta1: 0.5, Beta2: 0.9, Seed: 1}
	return c, o
}

// smooth are n patches of a few waves each.
func smooth(patch [3]int, n int, seed uint64) []float32 {
	r := rand.New(rand.NewPCG(seed, 0))
	out := make([]float32, 0, n*patch[0]*patch[1]*patch[2])
	for range n {
		a, b, c := r.Float64(), r.Float64(), r.Float64()
		for z := range patch[2] {
			for y := range patch[1] {
				for x := range patch[0] {
					out = append(out, float32(0.8*math.Sin(a*float64(x)+3*b)*math.Cos(b*float64(y)+c*float64(z))))
				}
			}
		}
	}
	return out
}

func open(t testing.TB, c Config, o Options, threads int) *Session {
	t.Helper()
	e := cpu.New(threads)
	t.Cleanup(func() { _ = e.Close() })
	s, err := Open(e, c, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func step(t testing.TB, s *Session, seed uint64, n int) Stats {
	t.Helper()
	x := smooth(s.o.Patch, n, seed)
	stats, err := s.Step(x, x, n, 3e-3)
	if err != nil {
		t.Fatal(err)
	}
	return stats
}

func state(t testing.TB, s *Session) []Array {
	t.Helper()
	a, err := s.State()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func same(t testing.TB, what string, a, b []Array) {
	t.Helper()
	if len(a) != len(b) {
		t.Fatalf("%s: %d arrays and %d", what, len(a), len(b))
	}
	for i := range a {
		if a[i].Name != b[i].Name || !slices.Equal(a[i].Shape, b[i].Shape) || !slices.EqualFunc(a[i].Data, b[i].Data, func(x, y float32) bool {
			return math.Float32bits(x) == math.Float32bits(y)
		}) {
			t.Fatalf("%s: %s differs", what, a[i].Name)
		}
	}
}

func TestLossFallsAndCodesAreUsed(t *testing.T) {
	c, o := tiny()
	s := open(t, c, o, 2)
	x := smooth(o.Patch, 2, 7)
	var first, last Stats
	for i := range 60 {
		stats, err := s.Step(x, x, 2, 3e-3)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = stats
		}
		last = stats
	}
	t.Logf("first %+v\nlast %+v", first, last)
	if last.L1 > first.L1/2 {
		t.Errorf("L1 goes %.3f → %.3f (want half)", first.L1, last.L1)
	}
	if last.Used < c.Codes/2 {
		t.Errorf("%d of %d codes used", last.Used, c.Codes)
	}
}

func TestRecomputingChangesNoBit(t *testing.T) {
	for _, norm := range []string{"channel", "group"} {
		c, o := tiny()
		c.Norm, c.Decoder = norm, "full"
		var want []Array
		var bytes int64
		for _, r := range []nn.Recompute{nn.None, nn.Norms, nn.All} {
			o.recompute = r
			s := open(t, c, o, 2)
			for i := range 3 {
				step(t, s, uint64(i), 2)
			}
			got := state(t, s)
			if want == nil {
				want, bytes = got, s.layout.Bytes()
				continue
			}
			same(t, norm, want, got)
			if s.layout.Bytes() > bytes || len(s.train[plain][1].Recomputed()) == 0 { // at this size workspace may decide
				t.Errorf("%s: recompute %d needs %d bytes, less of it %d", norm, r, s.layout.Bytes(), bytes)
			}
			bytes = s.layout.Bytes()
		}
	}
}

func TestThreadsChangeNoBit(t *testing.T) {
	c, o := tiny()
	var want []Array
	for _, threads := range []int{1, 2, 3} {
		s := open(t, c, o, threads)
		for i := range 3 {
			step(t, s, uint64(i), 2)
		}
		if got := state(t, s); want == nil {
			want = got
		} else {
			same(t, "threads", want, got)
		}
	}
}

// gradient is that of a batch, by parameter.
func gradient(t *testing.T, s *Session, x []float32, n int) (map[string][]float32, Stats) {
	t.Helper()
	if err := s.Feed(x, x, n); err != nil {
		t.Fatal(err)
	}
	s.Launch()
	f := s.flight
	s.flight = nil
	stats, err := s.hearken(f)
	if err != nil {
		t.Fatal(err)
	}
	host := make([]float32, s.params.Floats())
	s.e.Read(host, s.grads.At)
	out := map[string][]float32{}
	for _, p := range s.params.All() {
		out[p.Name] = host[p.Off/4:][:p.Len()]
	}
	return out, stats
}

func norm(x []float32) float64 {
	var sum float64
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	return math.Sqrt(sum)
}

func TestMicroBatchesGiveTheGradientOfTheBatch(t *testing.T) {
	c, o := tiny()
	o.Batch = 5
	x := smooth(o.Patch, 5, 3)
	for _, n := range []int{5, 4} { // of the whole batch and of a partial one, with and without a smaller micro-batch at the end
		var want map[string][]float32
		var whole Stats
		for _, micro := range []int{5, 2, 1} {
			o.MicroBatch = micro
			s := open(t, c, o, 2)
			got, stats := gradient(t, s, x[:n*s.voxels()], n)
			if want == nil {
				want, whole = got, stats
				continue
			}
			for name, g := range want {
				diff := make([]float32, len(g))
				for i := range g {
					diff[i] = g[i] - got[name][i]
				}
				if norm(diff) > 1e-4*norm(g)+1e-7 {
					t.Errorf("%d in parts of %d: %s is off by %g of %g", n, micro, name, norm(diff), norm(g))
				}
			}
			if math.Abs(stats.Total-whole.Total) > 1e-6 || math.Abs(stats.Clipped-whole.Clipped) > 1e-6 || stats.Used != whole.Used ||
				math.Abs(stats.Perplexity-whole.Perplexity) > 1e-9 {
				t.Errorf("%d in parts of %d: %+v, whole %+v", n, micro, stats, whole)
			}
		}
	}
}

// TestGradientIsThatOfTheLoss compares each parameter's gradient with a finite difference along it. Codes are frozen: straight-through, the
// decoder sees z + (q₀-z₀), and commitment is the distance to q₀. So the encoder and the decoder run as programs of their own.
func TestGradientIsThatOfTheLoss(t *testing.T) {
	for _, variant := range []struct{ norm, padding, decoder string }{{"channel", "replicate", "lean"}, {"group", "zero", "full"}} {
		c, o := tiny()
		c.Norm, c.Padding, c.Decoder = variant.norm, variant.padding, variant.decoder
		c.Hidden, c.Groups, o.Patch = 4, 2, [3]int{8, 8, 4}
		o.Loss = Loss{L2: 1, Commitment: 20} // |y-t| has kinks
		s := open(t, c, o, 2)
		// Away from the start: norms with gains of 1 and shifts of 0 would hide a mistake.
		r := rand.New(rand.NewPCG(1, 2))
		weights := make([]float32, s.params.Floats())
		s.e.Read(weights, s.weights.At)
		for _, p := range s.params.All() {
			for i := range p.Len() {
				weights[int(p.Off/4)+i] += float32(0.1 * r.NormFloat64())
			}
		}
		s.e.Write(s.weights.At, weights)
		x := smooth(o.Patch, 2, 5)
		got, stats := gradient(t, s, x, 2)

		z0, q0 := make([]float32, 2*s.cells()*c.Embedding), make([]float32, 2*s.cells()*c.Embedding)
		codes := make([]int32, 2*s.codesLen())
		if err := s.Reconstruct(make([]float32, len(x)), x, 2, false, codes); err != nil {
			t.Fatal(err)
		}
		for i, k := range codes {
			copy(q0[i*c.Embedding:][:c.Embedding], s.levels[0].book.vectors[int(k)*c.Embedding:])
		}
		half := newHalves(t, s)
		half.encode(x, z0)
		loss := func() float64 {
			z := make([]float32, len(z0))
			half.encode(x, z)
			q, commitment := make([]float32, len(z)), 0.0
			for i := range z {
				q[i] = q0[i] + z[i] - z0[i]
				d := float64(z[i] - q0[i])
				commitment += d * d / float64(len(z))
			}
			y, l2 := half.decode(q, len(x)), 0.0
			for i := range y {
				d := float64(y[i] - x[i])
				l2 += d * d / float64(len(x))
			}
			return l2 + 20*commitment
		}
		if l := loss(); math.Abs(l-stats.Total) > 1e-5*l {
			t.Fatalf("%v: loss %g, by halves %g", variant, stats.Total, l)
		}
		for _, p := range s.params.All() {
			g := got[p.Name]
			size := norm(g)
			if size < 1e-6 {
				t.Errorf("%v: %s has no gradient", variant, p.Name)
				continue
			}
			at := func(h float64) float64 {
				w := slices.Clone(weights)
				for i, v := range g {
					w[int(p.Off/4)+i] += float32(h * float64(v) / size)
				}
				half.s.e.Write(s.weights.At, w)
				half.s.packed = nil
				return loss()
			}
			const h = 2e-3
			// Fourth order, because float32 forbids a small h.
			slope := (8*(at(h)-at(-h)) - (at(2*h) - at(-2*h))) / (12 * h)
			if math.Abs(slope-size) > 0.02*size+1e-4 {
				t.Errorf("%v: %s: slope %.6f, gradient %.6f", variant, p.Name, slope, size)
			}
		}
	}
}

// halves runs encoder and decoder of a session's weights apart, on an engine of its own.
type halves struct {
	t          *testing.T
	s          *Session // of the parameters
	enc, dec   *nn.Program
	x, z, q, y *nn.Value
}

func newHalves(t *testing.T, s *Session) *halves {
	t.Helper()
	e := cpu.New(2)
	t.Cleanup(func() { _ = e.Close() })
	h := &halves{t: t, s: &Session{e: e, c: s.c, o: s.o}}
	h.s.params.Weights = s.weights.At
	g := nn.NewGraph(&h.s.params)
	h.x = g.Input("input", s.dims(2))
	h.z = encoder(g, &s.c, h.x)
	g.Keep(h.z)
	var err error
	if h.enc, err = nn.Compile(g, e, nn.Options{}); err != nil {
		t.Fatal(err)
	}
	g = nn.NewGraph(&h.s.params)
	h.q = g.Input("q", h.z.Dims)
	h.y = decoder(g, &s.c, h.q)
	g.Keep(h.y)
	if h.dec, err = nn.Compile(g, e, nn.Options{}); err != nil {
		t.Fatal(err)
	}
	region := s.weights.At + gpu.Ptr(s.weights.Bytes)
	h.enc.Bind(region)
	h.dec.Bind(region)
	if err := e.Reserve(int64(region) + max(h.enc.Bytes(), h.dec.Bytes())); err != nil {
		t.Fatal(err)
	}
	w := make([]float32, s.params.Floats())
	s.e.Read(w, s.weights.At)
	e.Write(s.weights.At, w)
	return h
}

func (h *halves) encode(x, z []float32) {
	h.enc.Pack(h.s.e)
	h.enc.Write(h.s.e, h.x, x)
	h.enc.Run(h.s.e, &nn.Call{})
	h.enc.Read(h.s.e, h.z, z)
}

func (h *halves) decode(q []float32, n int) []float32 {
	y := make([]float32, n)
	h.dec.Pack(h.s.e)
	h.dec.Write(h.s.e, h.q, q)
	h.dec.Run(h.s.e, &nn.Call{})
	h.dec.Read(h.s.e, h.y, y)
	return y
}

func TestAStepThatIsNotFiniteIsNotTaken(t *testing.T) {
	c, o := tiny()
	s := open(t, c, o, 2)
	good := smooth(o.Patch, 2, 1)
	bad := slices.Clone(good)
	bad[len(bad)-1] = float32(math.NaN())
	for i := range 3 {
		before := state(t, s)
		for _, x := range []struct {
			input, target []float32
			what          string
		}{{bad, good, "the loss"}, {good, bad, "the loss"}} { // quantising hides NaN from the decoder, not from the loss
			_, err := s.Step(x.input, x.target, 2, 1e-3)
			var wrong *NonFiniteError
			if !errors.As(err, &wrong) || wrong.Step != i+1 || i > 0 && !strings.HasPrefix(wrong.What, x.what) {
				t.Fatalf("error %v at step %d", err, i+1)
			}
			same(t, "after NaN", before, state(t, s))
		}
		step(t, s, uint64(i), 2)
	}
	// And it goes on as if nothing had been.
	calm := open(t, c, o, 2)
	for i := range 3 {
		step(t, calm, uint64(i), 2)
	}
	same(t, "calm", state(t, calm), state(t, s))

	broken := state(t, s)
	for _, a := range broken {
		if a.Name == "decoder.conv_last.conv.bias" {
			a.Data[0] = float32(math.Inf(1))
		}
	}
	if err := s.SetState(broken, true); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Step(good, good, 2, 1e-3); err == nil || err.Error() != "step 4: the reconstruction (2048 of 2048 voxels) isn't finite" {
		t.Errorf("error %v", err)
	}
}

func TestReconstructLeavesTheStateAlone(t *testing.T) {
	c, o := tiny()
	o.Infer = 3
	s, calm := open(t, c, o, 2), open(t, c, o, 2)
	x := smooth(o.Patch, 5, 8)
	for i := range 12 {
		step(t, s, uint64(i), 2)
		step(t, calm, uint64(i), 2)
		for _, ema := range []bool{false, true} {
			y, codes := make([]float32, len(x)), make([]int32, 5*s.codesLen())
			if err := s.Reconstruct(y, x, 5, ema, codes); err != nil {
				t.Fatal(err)
			}
			if i < 11 {
				continue
			}
			for k := range 5 { // alone as in a batch
				one, own := make([]float32, s.voxels()), make([]int32, s.codesLen())
				if err := s.Reconstruct(one, x[k*s.voxels():][:s.voxels()], 1, ema, own); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(one, y[k*s.voxels():][:s.voxels()]) || !slices.Equal(own, codes[k*s.codesLen():][:s.codesLen()]) {
					t.Fatalf("patch %d depends on its batch", k)
				}
			}
		}
	}
	same(t, "after Reconstruct", state(t, calm), state(t, s))
	if err := s.Reconstruct(x, x[1:], 5, false, nil); err == nil {
		t.Error("a wrong length is accepted")
	}
	o.EMA = 0
	if err := open(t, c, o, 1).Reconstruct(x, x, 5, true, nil); err == nil {
		t.Error("running means that aren't there are used")
	}
}

func TestEveryShapeTrains(t *testing.T) {
	for _, down := range [][3]int{{2, 2, 2}, {4, 2, 1}, {1, 1, 2}, {2, 4, 8}} {
		for _, decoder := range []string{"lean", "full"} {
			for _, norm := range []string{"channel", "group"} {
				c, o := tiny()
				c.Downsample, c.Decoder, c.Norm, c.Hidden, c.Groups = down, decoder, norm, 2, 2
				o.Patch, o.Batch, o.MicroBatch, o.Infer = [3]int{8, 8, 8}, 1, 1, 1
				s := open(t, c, o, 2)
				want := [3]int{8 / down[0], 8 / down[1], 8 / down[2]}
				if s.Latents() != want {
					t.Errorf("%v: latents %v", down, s.Latents())
				}
				if stats := step(t, s, 1, 1); stats.L1 <= 0 || stats.GradNorm <= 0 || stats.Used == 0 {
					t.Errorf("%v %s %s: %+v", down, decoder, norm, stats)
				}
			}
		}
	}
}
