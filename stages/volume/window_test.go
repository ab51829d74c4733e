package volume

import (
	"math"
	"testing"
)

func TestCheckWindow(t *testing.T) {
	inf, nan := math.Inf(1), math.NaN()
	for _, w := range [][2]float64{{-1000, 1000}, {0, 1}, {0, 0.001}, {1, 1.001}, {-999999.999, -999999.998}, {-1e9, 1e9}, {399, 400}} {
		if err := CheckWindow(w); err != nil {
			t.Error(err)
		}
	}
	for _, w := range [][2]float64{{1, 0}, {1, 1}, {0, 1e-4}, {0, 1e-300}, {0, 1e10}, {-1e300, 0}, {0, inf}, {-inf, 0}, {-inf, inf}, {nan, 0}, {0, nan}} {
		if CheckWindow(w) == nil {
			t.Errorf("%v is taken for a window", w)
		}
	}
}
