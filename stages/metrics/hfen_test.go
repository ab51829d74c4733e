package metrics

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// fine is HFEN of volumes held whole.
func fine(orig, recon []float32, size [3]int, workers int) *HFEN {
	h := NewHFEN(size, workers)
	plane := size[0] * size[1]
	for z := range size[2] {
		h.Add(orig[z*plane:][:plane], recon[z*plane:][:plane])
	}
	return h
}

func TestHFENIsThatOfSciPy(t *testing.T) {
	for _, c := range loadReference(t).HFEN {
		h := fine(image(c.Size, 0), image(c.Size, 1), c.Size, 2)
		near(t, "norm", h.Norm(), c.Norm, 1e-9)
		near(t, "ratio", h.Ratio(), c.Ratio, 1e-9)
	}
}

func TestHFENBitsDoNotDependOnWorkers(t *testing.T) {
	size := [3]int{17, 2*chunk + 31, 16} // several chunks of rows
	a, b := image(size, 0), image(size, 1)
	want := fine(a, b, size, 1).sum
	for _, workers := range []int{0, 2, 5} {
		if got := fine(a, b, size, workers).sum; got != want {
			t.Errorf("%d workers: %v, want %v", workers, got, want)
		}
	}
}

// The original in place of its reconstruction has all of the fine structure; half of its contrast has half of the amplitude, and
// shifts that the filter doesn't see change nothing; a constant has none.
func TestHFENByHand(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := drawSize(t, 12)
		for a := range size {
			size[a] += 8
		}
		orig := image(size, 0)
		half, constant := make([]float32, len(orig)), make([]float32, len(orig))
		for i := range orig {
			orig[i] /= 2 // away from the clip
			half[i] = orig[i]/2 + 0.25
			constant[i] = 0.75
		}
		for _, c := range []struct {
			recon       []float32
			norm, ratio float64
		}{{orig, 0, 1}, {half, 0.5, 0.25}, {constant, 1, 0}} {
			h := fine(orig, c.recon, size, 1)
			if math.Abs(h.Norm()-c.norm) > 1e-3 || math.Abs(h.Ratio()-c.ratio) > 1e-3 {
				t.Fatalf("%v: %v, %v (want %v, %v)", size, h.Norm(), h.Ratio(), c.norm, c.ratio)
			}
		}
		if h := fine(constant, orig, size, 1); !math.IsNaN(h.Norm()) || !math.IsNaN(h.Ratio()) {
			t.Fatalf("beside a constant: %v, %v", h.Norm(), h.Ratio())
		}
	})
}

// A smoothed image has less fine structure, one with noise has more, and both err.
func TestHFENTellsSmoothFromNoisy(t *testing.T) {
	size := [3]int{20, 18, 16}
	orig, noise := image(size, 1), image(size, 3)
	smooth, noisy := make([]float32, len(orig)), make([]float32, len(orig))
	check(t, Trilinear(smooth, orig, size, [3]int{4, 4, 4}))
	for i := range orig {
		noisy[i] = orig[i] + noise[i]/4
	}
	s, n := fine(orig, smooth, size, 1), fine(orig, noisy, size, 1)
	if !(s.Ratio() < 0.5) || !(n.Ratio() > 1.05) || !(s.Norm() > 0.3) || !(n.Norm() > 0.05) {
		t.Errorf("smooth: %v, %v; noisy: %v, %v", s.Norm(), s.Ratio(), n.Norm(), n.Ratio())
	}
}

func BenchmarkHFEN(b *testing.B) {
	size := [3]int{256, 256, 40}
	x, y := image(size, 0), image(size, 1)
	b.SetBytes(int64(4 * len(x)))
	for b.Loop() {
		fine(x, y, size, 1)
	}
}
