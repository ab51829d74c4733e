package observe

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

// However long a run gets, a curve has few points, which stand for all of its values in their order.
func TestHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Float64Range(-5, 5), 1, 3000).Draw(t, "values")
		first := rapid.IntRange(1, 5000).Draw(t, "first step")
		h := newHistory()
		sum, low, high := 0.0, math.Inf(1), math.Inf(-1)
		for i, x := range values {
			h.add(first+i, []field{{"step", first + i}, {"x", x}, {"nothing", nil}, {"nan", math.NaN()}, {"bound_by", "read 71%"}})
			sum, low, high = sum+x, min(low, x), max(high, x)
		}
		points := h.Curve("x")
		if len(points) > resolution || len(values) <= resolution && len(points) != len(values) {
			t.Fatalf("%d points of %d values", len(points), len(values))
		}
		least, most := math.Inf(1), math.Inf(-1)
		for i, p := range points {
			if i > 0 && p.Step <= points[i-1].Step || p.Mean < p.Low || p.Mean > p.High {
				t.Fatalf("point %d is %+v behind %+v", i, p, points[max(0, i-1)])
			}
			least, most = min(least, p.Low), max(most, p.High)
		}
		last, ok := h.Last("x")
		if least != low || most != high || !ok || last != values[len(values)-1] || math.Abs(h.Sum("x")-sum) > 1e-9 {
			t.Fatalf("from %g to %g (want %g to %g), last %g, sum %g (want %g)", least, most, low, high, last, h.Sum("x"), sum)
		}
		if n := h.Names(); len(n) != 1 || h.Bounds()["read"] != len(values) {
			t.Fatalf("names %q, bounds %v", n, h.Bounds())
		}
	})
}

// Of two values a point has the mean: the buckets' arithmetic by hand.
func TestHistoryMeans(t *testing.T) {
	h := newHistory()
	for step := 1; step <= resolution+1; step++ {
		h.add(step, []field{{"x", float64(step)}})
	}
	points := h.Curve("x")
	if len(points) != resolution/2+1 || points[0] != (Point{1, 1, 1, 1}) || points[1] != (Point{2.5, 2.5, 2, 3}) {
		t.Errorf("%d points: %+v, …", len(points), points[:2])
	}
}

// A week at a step a second takes no more than an hour does.
func TestHistoryOfAWeek(t *testing.T) {
	h := newHistory()
	for step := range 7 * 24 * 3600 {
		h.add(step, []field{{"x", float64(step)}, {"bound_by", "train 90%"}})
	}
	points := h.Curve("x")
	if n := cap(h.curves["x"].buckets); len(points) > resolution || len(points) < resolution/2 || n > 2*resolution || len(h.bounds) != 1 {
		t.Errorf("%d points in room for %d", len(points), n)
	}
}

// A run that goes on has the history of what it goes on from, and of no later steps.
func TestHistoryOfARecord(t *testing.T) {
	dir := t.TempDir()
	m, err := OpenMetrics(dir, 0)
	check(t, err)
	for step := 1; step <= 5; step++ {
		check(t, m.Train(Step{Step: step, Loss: float64(step), BoundBy: "train 90%"}))
	}
	check(t, m.Validation(Val{Step: 3, Metrics: map[string]float64{"val/psnr": 20}}))
	check(t, m.Close())
	f, err := os.OpenFile(filepath.Join(dir, "metrics.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	check(t, err)
	_, err = f.WriteString("{\"step\":3,\"torn")
	check(t, err)
	check(t, f.Close())
	m, err = OpenMetrics(dir, 3)
	check(t, err)
	check(t, m.Train(Step{Step: 4, Loss: 40}))
	loss := m.History().Curve("train/loss")
	if len(loss) != 4 || loss[2].Mean != 3 || loss[3].Mean != 40 || m.History().Bounds()["train"] != 3 {
		t.Errorf("loss %v, bounds %v", loss, m.History().Bounds())
	}
	if psnr, ok := m.History().Last("val/psnr"); !ok || psnr != 20 {
		t.Errorf("psnr %g, %v", psnr, ok)
	}
	check(t, m.Close())
}
