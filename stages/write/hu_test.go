package write

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

func TestRoundingByHand(t *testing.T) {
	s := newScale([2]float64{-1000, 1000})
	src := []float32{-1, -0.9996, -0.0015, -0.0005, 0, 0.0004, 0.0005, 0.0015, 1}
	want := []int16{-1000, -1000, -1, 0, 0, 0, 1, 2, 1000}
	got := make([]int16, len(src))
	s.int16s(got, src)
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%v is %d (want %d)", src[i], got[i], want[i])
		}
	}
}

// Rounding is of the HU that were meant, halves up, for any window that int16 holds, whole and half HU alike.
func TestRounding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lo := float64(rapid.IntRange(-32768, 32000).Draw(t, "low"))
		hi := float64(rapid.IntRange(int(lo)+1, 32767).Draw(t, "high"))
		if err := (&Options{}).CheckWindow([2]float64{lo, hi}); err != nil {
			t.Fatal(err)
		}
		hu := float64(rapid.IntRange(int(2*lo), int(2*hi)).Draw(t, "half HU")) / 2
		x := float32((hu - (lo+hi)/2) / ((hi - lo) / 2))
		for range rapid.IntRange(0, 1).Draw(t, "a rounding more") {
			x = math.Nextafter32(x, -2*x)
		}
		dst := make([]int16, 5)
		newScale([2]float64{lo, hi}).int16s(dst, []float32{x, x, x, x, x})
		if want := int16(math.Floor(hu + 0.5)); dst[0] != want || dst[4] != want {
			t.Fatalf("%v HU of [%v, %v], %v: %d (want %d)", hu, lo, hi, x, dst[0], want)
		}
		f := make([]float32, 1)
		newScale([2]float64{lo, hi}).float32s(f, []float32{x})
		if math.Abs(float64(f[0])-hu) > (hi-lo)*0x1p-22 {
			t.Fatalf("%v HU: %v", hu, f[0])
		}
	})
}

func TestClean(t *testing.T) {
	tmp := make([]float32, 3)
	src := []float32{1, -1, 0.5}
	if got, ok := clean(src, tmp); !ok || &got[0] != &src[0] {
		t.Error(got, ok)
	}
	if got, ok := clean([]float32{1.5, float32(math.Inf(-1)), 0.5}, tmp); !ok || got[0] != 1 || got[1] != -1 || got[2] != 0.5 {
		t.Error(got, ok)
	}
	if _, ok := clean([]float32{0, float32(math.NaN())}, tmp); ok {
		t.Error("NaN is taken")
	}
}

func TestCheckWindow(t *testing.T) {
	for _, c := range []struct {
		dtype  string
		lo, hi float64
		ok     bool
	}{
		{Int16, -1000, 1000, true}, {Int16, -32768.5, 32767.4, true}, {Int16, -32768.6, 0, false}, {Int16, 0, 32767.5, false},
		{Float32, -1e6, 1e6, true}, {Float32, 1, 1, false}, {Float32, math.NaN(), 1, false}, {Float32, math.Inf(-1), 1, false},
	} {
		if err := (&Options{Dtype: c.dtype}).CheckWindow([2]float64{c.lo, c.hi}); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
