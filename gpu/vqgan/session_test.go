package vqgan

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/flowrun/flowrun/gpu/cpu"
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
