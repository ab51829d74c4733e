package integration

import (
	"bytes"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// For an hour of steps: go test ./integration -run Soak -soak 1h -timeout 2h -v.
var soak = flag.Duration("soak", 0, "how long TestSoak trains; 0: not at all")

// measured is a quantity over a run.
type measured struct {
	name, unit    string
	allowed       float64 // growth over the whole run
	hours, values []float64
}

func (m *measured) add(hours, value float64) {
	m.hours, m.values = append(m.hours, hours), append(m.values, value)
}

// slope is by least squares, per hour, of what lies behind the first quarter of the time.
func (m *measured) slope() (perHour, mean float64) {
	var n, sx, sy, sxx, sxy float64
	for i, x := range m.hours {
		if x < m.hours[len(m.hours)-1]/4 {
			continue
		}
		y := m.values[i]
		n, sx, sy, sxx, sxy = n+1, sx+x, sy+y, sxx+x*x, sxy+x*y
	}
	return (n*sxy - sx*sy) / (n*sxx - sx*sx), sy / n
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
		at := time.Since(start).Hours()
		statm, err := os.ReadFile(filepath.Join(proc, "statm"))
		p.check(err)
		pages, err := strconv.ParseFloat(string(bytes.Fields(statm)[1]), 64)
		p.check(err)
		memory.add(at, pages*float64(os.Getpagesize())/(1<<20))
		open, err := os.ReadDir(filepath.Join(proc, "fd"))
		p.check(err)
		files.add(at, float64(len(open)))
		answer, err := http.Get(url + "metrics")
		p.check(err)
		var text bytes.Buffer
		_, err = text.ReadFrom(answer.Body)
		p.check(err)
		p.check(answer.Body.Close())
		for line := range strings.Lines(text.String()) {
			var n float64
			if _, err := fmt.Sscanf(line, "go_goroutines %g", &n); err == nil {
				goroutines.add(at, n)
			}
		}
	}
	r.signal(syscall.SIGTERM)
	if o := r.wait(); o.code != 75 {
		t.Errorf("exit %d", o.code)
	}
	t.Logf("%d steps in %v", p.final("run").Step, *soak)
	for _, m := range []*measured{memory, goroutines, files} {
		perHour, mean := m.slope()
		t.Logf("%s: %.1f %s, %+.2f an hour", m.name, mean, m.unit, perHour)
		if grew := perHour * soak.Hours(); grew > m.allowed {
			t.Errorf("%s grew by %.1f %s", m.name, grew, m.unit)
		}
	}
}
