package observe

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

func TestDivergences(t *testing.T) {
	dir := t.TempDir()
	if list, err := Divergences(dir); list != nil || err != nil {
		t.Errorf("of no file: %v, %v", list, err)
	}
	add := func(number, step int) Divergence {
		t.Helper()
		d := Divergence{Number: number, Time: time.Date(2026, 1, 2, 3, 4, step, 0, time.UTC), Step: step, Since: step - 2, Kind: "spike", What: "high",
			Measured: map[string]float64{"train/loss": 0.5}, Scans: []string{"a", "b"}, Action: "lower_lr", LR: 1e-3, LRScale: 0.3}
		if err := AddDivergence(dir, d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	one := add(1, 10)
	add(2, 20)
	add(3, 30)
	two := add(2, 21) // a run that was killed and goes through it once more
	path := filepath.Join(dir, "incidents.jsonl")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("no JSON\n{\"number\":3,\"torn"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if list, err := Divergences(dir); err != nil || !reflect.DeepEqual(list, []Divergence{one, two}) {
		t.Errorf("%+v, %v", list, err)
	}
	three := add(3, 31)
	if list, err := Divergences(dir); err != nil || !reflect.DeepEqual(list, []Divergence{one, two, three}) {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestMetricsGoBack takes steps back that were recorded, in the files and in the history.
func TestMetricsGoBack(t *testing.T) {
	dir, straight := t.TempDir(), t.TempDir()
	open := func(dir string) *Metrics {
		t.Helper()
		m, err := OpenMetrics(dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	take := func(m *Metrics, from, to int, loss float64) {
		t.Helper()
		for step := from; step <= to; step++ {
			if err := m.Train(Step{Step: step, Loss: loss, BoundBy: "train 90%"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	m, want := open(dir), open(straight)
	history := m.History()
	take(m, 1, 9, 1)
	if err := m.Back(4); err != nil {
		t.Fatal(err)
	}
	take(m, 5, 6, 0.5)
	take(want, 1, 4, 1)
	take(want, 5, 6, 0.5)
	for _, m := range []*Metrics{m, want} {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"metrics.jsonl", "metrics.csv"} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if want, err := os.ReadFile(filepath.Join(straight, name)); err != nil || string(got) != string(want) {
			t.Errorf("%s: %s\nwant %s (%v)", name, got, want, err)
		}
	}
	if history != m.History() || history.Sum("train/loss") != 5 || !reflect.DeepEqual(history.Bounds(), map[string]int{"train": 6}) {
		t.Errorf("history: %g, %v", history.Sum("train/loss"), history.Bounds())
	}
}
