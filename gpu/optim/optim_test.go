package optim_test

import (
	"math"
	"testing"

	"github.com/flowrun/flowrun/gpu/optim"
	"pgregory.net/rapid"
)

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 1e-12*max(1, math.Abs(want)) {
		t.Errorf("%s = %v, want %v", what, got, want)
	}
}

func TestScheduleByHand(t *testing.T) {
	cosine := optim.Schedule{LR: 2, Warmup: 4, Steps: 8, Cosine: true}
	for step, want := range map[int]float64{1: 0.5, 2: 1, 4: 2, 6: 1, 8: 0, 20: 0} {
		near(t, "cosine", cosine.At(step), want)
	}
	flat := optim.Schedule{LR: 2, Warmup: 4}
	for step, want := range map[int]float64{1: 0.5, 4: 2, 5: 2, 1000: 2} {
		near(t, "constant", flat.At(step), want)
	}
	near(t, "final", optim.Schedule{LR: 2, Steps: 10, Final: 0.1, Cosine: true}.At(10), 0.2)
	near(t, "no warm-up", optim.Schedule{LR: 2}.At(1), 2)
	near(t, "of unknown length", optim.Schedule{LR: 2, Warmup: 4, Cosine: true}.At(9), 2)
	near(t, "all warm-up", optim.Schedule{LR: 2, Warmup: 5, Steps: 5, Cosine: true}.At(5), 2)
}

func TestScheduleStaysBelowItsPeakAndFallsBehindTheWarmup(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := optim.Schedule{LR: rapid.Float64Range(1e-6, 1).Draw(t, "lr"), Warmup: rapid.IntRange(0, 50).Draw(t, "warm-up"),
			Steps: rapid.IntRange(1, 200).Draw(t, "steps"), Final: rapid.Float64Range(0, 1).Draw(t, "final"), Cosine: true}
		step := rapid.IntRange(1, 300).Draw(t, "step")
		lr, next := s.At(step), s.At(step+1)
		if lr <= 0 && s.Final > 0 || lr > s.LR*(1+1e-12) {
			t.Fatalf("lr %v at step %d of %+v", lr, step, s)
		}
		if step >= s.Warmup && next > lr*(1+1e-12) || step < s.Warmup && next < lr {
			t.Fatalf("lr goes %v → %v at step %d of %+v", lr, next, step, s)
		}
	})
}

func TestClipFactor(t *testing.T) {
	for _, c := range []struct{ squares, limit, factor, norm float64 }{
		{25, 0, 1, 5}, {25, 10, 1, 5}, {25, 5, 1, 5}, {25, 2.5, 0.5, 5}, {0, 1, 1, 0},
	} {
		factor, norm := optim.ClipFactor(c.squares, c.limit)
		near(t, "factor", factor, c.factor)
		near(t, "norm", norm, c.norm)
	}
}

func TestAverageDecayWarmsUp(t *testing.T) {
	near(t, "step 1", optim.AverageDecay(0.999, 1), 2.0/11)
	near(t, "step 90", optim.AverageDecay(0.999, 90), 0.91)
	near(t, "late", optim.AverageDecay(0.999, 1e6), 0.999)
}

func TestAdamCarriesItsConstants(t *testing.T) {
	a := optim.Adam(1e-4, 0.5, 0.9, 0.25, 0.99, 7)
	if a.LR != 1e-4 || a.Beta1 != 0.5 || a.Beta2 != 0.9 || a.Eps != 1e-8 || a.WeightDecay != 0 || a.GradScale != 0.25 ||
		a.EMADecay != 0.99 || a.Step != 7 {
		t.Fatalf("%+v", a)
	}
}
