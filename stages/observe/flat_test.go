package observe

import (
	"bytes"
	"encoding/json"
	"maps"
	"math"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

// decoded is what JSON says of a line: its numbers and words; nil where it isn't an object.
func decoded(line []byte) map[string]any {
	var all map[string]any
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	if !json.Valid(line) || d.Decode(&all) != nil || all == nil {
		return nil
	}
	maps.DeleteFunc(all, func(_ string, v any) bool {
		switch v.(type) {
		case json.Number, string:
			return false
		}
		return true
	})
	return all
}

func checkEntry(t interface{ Fatalf(string, ...any) }, line []byte) {
	var e entry
	want := decoded(line)
	if got := e.read(line); got != (want != nil) {
		t.Fatalf("%q is read: %v", line, got)
	} else if !got {
		return
	}
	got := map[string]any{}
	for _, p := range e.pairs {
		if p.quoted {
			got[string(p.name)] = string(p.value)
		} else {
			got[string(p.name)] = json.Number(p.value)
		}
	}
	if !maps.Equal(got, want) {
		t.Fatalf("%q: %v, want %v", line, got, want)
	}
}

// A line is read as JSON is, and one that object wrote is read the fast way.
func TestEntry(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Step{Step: rapid.Int().Draw(t, "step"), Recon: rapid.Float64().Draw(t, "recon"), LR: math.Inf(rapid.IntRange(-1, 1).Draw(t, "lr")),
			BoundBy: rapid.StringMatching("[a-z]* [0-9]*%").Draw(t, "bound"), More: map[string]float64{"train/r1": rapid.Float64().Draw(t, "r1")}}
		line := append(object(s.fields()), '\n')
		if !new(entry).flat(line) {
			t.Fatalf("%s isn't flat", line)
		}
		checkEntry(t, line)
	})
	for _, line := range []string{
		`{"a":01}`, `{"a":-}`, `{"a":1.}`, `{"a":.5}`, `{"a":1e}`, `{"a":0}`, `{"a":-0.0e-1}`, `{"a":1,}`, `{"a":1}}`, `{"a":1} `, `{ "a":1}`, `{"a":1,"a":2}`, `{}`, `{`, ``, `{"a"}`,
		`{"a":"b}`, `{"a":"b"`, `{"a":nul}`, `{"a":null}`, `{"a":nullx}`, `{"a":true}`, `{"a":[1]}`, `{"\u0061":1,"a":2}`, `{"a":"\n"}`, "{\"a\":\"\xff\"}", "{\"é\":1}", `null`, `[]`, `{"a":+1}`,
	} {
		checkEntry(t, []byte(line))
	}
}

func FuzzEntry(f *testing.F) {
	f.Add([]byte(`{"step":1,"lr":-1.5e-07,"bound_by":"a b","x":null}` + "\n"))
	f.Fuzz(func(t *testing.T, line []byte) { checkEntry(t, line) })
}

// A run's metrics are read back at a start: BenchmarkOpenMetrics' of 600,000 steps.
func BenchmarkOpenMetrics(b *testing.B) {
	dir := b.TempDir()
	var text []byte
	for i := range 600_000 {
		x := math.Sin(float64(i))
		text = append(append(text, object(Step{Step: i + 1, Epoch: i / 1000, Recon: x, Commitment: x / 3, Loss: 2 * x, Perplexity: 100 * x, PSNR: 30 * x, GradNorm: x, LR: 1e-4,
			Seconds: 0.1, VoxelsPerSecond: 1e6 * x, BoundBy: "train 97%", RSS: 1 << 30, Goroutines: 40}.fields())...), '\n')
	}
	if err := os.WriteFile(filepath.Join(dir, "metrics.jsonl"), text, 0o666); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		m, err := OpenMetrics(dir, 600_000)
		if err != nil {
			b.Fatal(err)
		}
		_ = m.Close()
	}
}
