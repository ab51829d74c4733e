package integration

import (
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/volume"
)

// entry is a line of metrics.jsonl or log.jsonl.
type entry map[string]any

func (e entry) step() int {
	step, ok := e["step"].(float64)
	if !ok {
		return -1
	}
	return int(step)
}

func (e entry) validation() bool { _, ok := e["val/psnr"]; return ok }

// lines reads the whole lines of a file of JSON lines; a file that isn't there has none.
func (p *place) lines(name ...string) []entry {
	p.Helper()
	b, err := os.ReadFile(p.path(name...))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	p.check(err)
	var list []entry
	for line := range strings.Lines(string(b)) {
		if !strings.HasSuffix(line, "\n") {
			break // being written
		}
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			p.Fatalf("%s: %v: %s", filepath.Join(name...), err, line)
		}
		list = append(list, e)
	}
	return list
}

// events are the log's lines of one event.
func (p *place) events(dir, event string) []entry {
	p.Helper()
	return slices.DeleteFunc(p.lines(dir, "log.jsonl"), func(e entry) bool { return e["event"] != event })
}

// reached is the last step in metrics.jsonl.
func (p *place) reached(dir string) int {
	p.Helper()
	m := p.lines(dir, "metrics.jsonl")
	if len(m) == 0 {
		return 0
	}
	return m[len(m)-1].step()
}

// steps checks that metrics.jsonl has each step once, in order, to the last; it gives steps and validations apart.
func (p *place) steps(dir string) (steps, validations []entry) {
	p.Helper()
	last := map[int]bool{}
	for _, e := range p.lines(dir, "metrics.jsonl") {
		switch {
		case !e.validation():
			steps = append(steps, e)
			if e.step() != len(steps) {
				p.Fatalf("%s/metrics.jsonl: step %d is line %d of the steps", dir, e.step(), len(steps))
			}
		case e.step() != len(steps) || last[e.step()]:
			p.Fatalf("%s/metrics.jsonl: a validation of step %d behind step %d, or for the second time", dir, e.step(), len(steps))
		default:
			last[e.step()] = true
			validations = append(validations, e)
		}
	}
	return steps, validations
}

// ran are a step's or validation's fields that the machine's speed has no part in.
func (e entry) ran() map[string]any {
	m := map[string]any{}
	for k, v := range e {
		if !slices.Contains([]string{"seconds", "voxels_per_second", "bound_by", "rss_bytes", "goroutines"}, k) {
			m[k] = v
		}
	}
	return m
}

// final loads a run's last checkpoint.
func (p *place) final(dir string) *volume.Snapshot {
	p.Helper()
	s, err := checkpoint.Load(p.path(dir, "checkpoints", checkpoint.LastName))
	p.check(err)
	return s
}

// sound checks that every checkpoint of a run verifies, and counts them.
func (p *place) sound(dir string) int {
	p.Helper()
	files, err := filepath.Glob(p.path(dir, "checkpoints", "step-*.safetensors"))
	p.check(err)
	for _, f := range files {
		p.check(checkpoint.Verify(f))
	}
	return len(files)
}

// sameEnd checks that two runs ended with the same bits.
func (p *place) sameEnd(a, b string) {
	p.Helper()
	p.sameBits(p.final(a), p.final(b))
}

func (p *place) sameBits(a, b *volume.Snapshot) {
	p.Helper()
	if a.Step != b.Step || a.Cursor != b.Cursor || len(a.Arrays) != len(b.Arrays) {
		p.Fatalf("step %d at %+v with %d arrays, step %d at %+v with %d", a.Step, a.Cursor, len(a.Arrays), b.Step, b.Cursor, len(b.Arrays))
	}
	for i, x := range a.Arrays {
		y := b.Arrays[i]
		if x.Name != y.Name || !slices.Equal(x.Shape, y.Shape) {
			p.Fatalf("array %d is %s %v and %s %v", i, x.Name, x.Shape, y.Name, y.Shape)
		}
		if n := differing(x.Data, y.Data); n > 0 {
			p.Errorf("%s: %d of %d values differ", x.Name, n, len(x.Data))
		}
	}
}

// differing counts the values whose bits differ.
func differing(a, b []float32) int {
	n := 0
	for i := range a {
		if math.Float32bits(a[i]) != math.Float32bits(b[i]) {
			n++
		}
	}
	return n
}

// sameRun checks that two runs took the same steps, measured the same and ended with the same bits.
func (p *place) sameRun(a, b string) {
	p.Helper()
	steps, vals := p.steps(a)
	others, otherVals := p.steps(b)
	p.sameEntries(steps, others)
	p.sameEntries(vals, otherVals)
	p.sameEnd(a, b)
}

func (p *place) sameEntries(a, b []entry) {
	p.Helper()
	if len(a) != len(b) {
		p.Fatalf("%d and %d lines", len(a), len(b))
	}
	for i := range a {
		x, y := a[i].ran(), b[i].ran()
		for k := range x {
			if x[k] != y[k] {
				p.Fatalf("step %d: %s is %v and %v", a[i].step(), k, x[k], y[k])
			}
		}
	}
}
