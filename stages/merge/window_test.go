package merge

import (
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestWindowsByHand(t *testing.T) {
	// Tiles of 4 at 0 and 2: one voxel alone on the outside of each, and two that both have.
	for window, want := range map[string][4]float64{
		Hann:     {1, 1, 0.853553390593, 0.146446609407}, // cos² of π/8 and 3π/8
		Linear:   {1, 1, 0.75, 0.25},
		Constant: {1, 1, 0.5, 0.5},
		Crop:     {1, 1, 1, 0},
		// σ = ½: e^-½ against e^-(3²/2), and the other way about.
		Gaussian: {1, 1, 0.982013790038, 0.017986209962},
	} {
		axis, err := newAxis(window, 4, []int{0, 2})
		if err != nil {
			t.Fatal(err)
		}
		for p := range 4 {
			if a, b := axis[0].w[p], axis[1].w[3-p]; math.Abs(a-want[p]) > 1e-11 || math.Abs(b-want[p]) > 1e-11 {
				t.Errorf("%s: weights %v and %v (want %v)", window, axis[0].w, axis[1].w, want)
				break
			}
		}
	}
	// A middle that is as near to two tiles is the lower one's; what a tile doesn't have isn't touched.
	axis, err := newAxis(Crop, 5, []int{0, 2, 6})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range [][2]int{{0, 4}, {2, 5}, {1, 5}} {
		if axis[i].lo != want[0] || axis[i].hi != want[1] {
			t.Errorf("crop: tile %d has voxels %d to %d (want %v)", i, axis[i].lo, axis[i].hi, want)
		}
	}
}

func TestWindowsSumToOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := draw(t, 60)
		window := rapid.SampledFrom(windows).Draw(t, "window")
		for a := range 3 {
			axis, err := newAxis(window, g.Patch[a], g.Origins[a])
			if err != nil {
				t.Fatal(err)
			}
			sum := make([]float64, g.Padded[a])
			for i, tile := range axis {
				for p, w := range tile.w {
					if w < 0 || (w > 0) != (p >= tile.lo && p < tile.hi) {
						t.Fatalf("%s: weight %v at %d of tile %d, touched from %d to %d", window, w, p, i, tile.lo, tile.hi)
					}
					sum[g.Origins[a][i]+p] += w
				}
			}
			for p, s := range sum {
				if math.Abs(s-1) > 1e-14 {
					t.Fatalf("%s: weights at %d of %v sum to %v", window, p, g.Origins[a], s)
				}
			}
		}
	})
}

func TestUnknownWindow(t *testing.T) {
	if _, err := newAxis("tukey", 4, []int{0}); err == nil || !strings.HasPrefix(err.Error(), `window: "tukey" isn't one`) {
		t.Error(err)
	}
}
