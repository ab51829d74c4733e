package integration

import (
	"bytes"
	"flag"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// For an hour of steps: go test ./integration -run Soak -soak 1h -timeout 0 -v.
var soak = flag.Duration("soak", 0, "how long TestSoak trains; 0: not at all")

// measured is a quantity over a run.
type measured struct {
	name, unit    string
	allowed       float64   // growth over the whole run
	steps, values []float64 // steps in thousands
}

func (m *measured) add(step, value float64) {
	m.steps, m.values = append(m.steps, step/1000), append(m.values, value)
}

// slope is by least squares, per 1000 steps, of what lies behind the first quarter of them.
func (m *measured) slope() (slope, mean, steps float64) {
	var n, sx, sy, sxx, sxy float64
	last := m.steps[len(m.steps)-1]
	for i, x := range m.steps {
		if x < last/4 {
			continue
		}
		y := m.values[i]
		n, sx, sy, sxx, sxy = n+1, sx+x, sy+y, sxx+x*x, sxy+x*y
	}
	return (n*sxy - sx*sy) / (n*sxx - sx*sx), sy / n, last
}

// eighths are the means of as many parts of the samples.
func (m *measured) eighths() (means [8]float64) {
	for k := range means {
		part := m.values[k*len(m.values)/8 : (k+1)*len(m.values)/8]
		for _, v := range part {
			means[k] += v / float64(len(part))
		}
	}
	return means
}

// A slope is of the later steps alone, and per thousand.
func TestSlope(t *testing.T) {
	m := measured{}
	for step := range 4001 {
		m.add(float64(step), max(100, 100+float64(step-1000)/500)) // flat, then two more every 1000
	}
	if slope, _, steps := m.slope(); math.Abs(slope-2) > 1e-9 || steps != 4 {
		t.Errorf("%g every 1000 of %g thousand steps", slope, steps)
	}
}

// Memory, goroutines and open files of a run stay as they are, however long it goes on, validations, checkpoints, reports and
// scrapes included. The slopes are reported.
func TestSoak(t *testing.T) {
	if *soak <= 0 {
		t.Skip("make soak")
	}
	p := newPlace(t)
	r := p.execFor(*soak+limit, flowrun(), "train.yaml", "-q", "train.epochs=100000000", "train.max_steps=0", "observe.http=0", "observe.report=5", "checkpoint.every=50",
		"train.validate.every=100", "observe.log_size=64KiB")
	if !r.until(func() bool { return p.reached("run") >= 20 }) {
		t.Fatalf("over: %s", r.stderr.String())
	}
	url, _ := p.events("run", "serving")[0]["url"].(string)
	proc := filepath.Join("/proc", strconv.Itoa(r.cmd.Process.Pid))
	memory := &measured{name: "resident memory", unit: "MiB", allowed: 24}
	heap := &measured{name: "heap in use", unit: "MiB", allowed: 24}
	goroutines := &measured{name: "goroutines", allowed: 3}
	files := &measured{name: "open files", allowed: 3}
	start := time.Now()
	every := time.NewTicker(max(time.Second, *soak/2000))
	defer every.Stop()
	for time.Since(start) < *soak {
		select {
		case <-every.C:
		case <-r.over:
			t.Fatalf("over after %v: %s", time.Since(start), r.stderr.String())
		}
		values := map[string]float64{}
		statm, err := os.ReadFile(filepath.Join(proc, "statm"))
		p.check(err)
		pages, err := strconv.ParseFloat(string(bytes.Fields(statm)[1]), 64)
		p.check(err)
		open, err := os.ReadDir(filepath.Join(proc, "fd"))
		p.check(err)
		_, text := p.get(url + "metrics")
		for line := range strings.Lines(text) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			if n, err := strconv.ParseFloat(value, 64); err == nil {
				values[name] = n
			}
		}
		step := values["flowrun_train_step"]
		memory.add(step, pages*float64(os.Getpagesize())/(1<<20))
		heap.add(step, values["go_memstats_heap_inuse_bytes"]/(1<<20))
		goroutines.add(step, values["go_goroutines"])
		files.add(step, float64(len(open)))
	}
	r.signal(syscall.SIGTERM)
	if o := r.wait(); o.code != 75 {
		t.Errorf("exit %d", o.code)
	}
	t.Logf("%d steps in %v", p.final("run").Step, *soak)
	for _, m := range []*measured{memory, heap, goroutines, files} {
		slope, mean, steps := m.slope()
		t.Logf("%s: %.1f %s, %+.4f every 1000 steps, from %d samples; by eighths of the run %.1f", m.name, mean, m.unit, slope, len(m.values), m.eighths())
		if grew := slope * steps; grew > m.allowed {
			t.Errorf("%s grew by %.1f %s over the run (at most %g)", m.name, grew, m.unit, m.allowed)
		}
	}
}
