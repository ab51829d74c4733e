package integration

import (
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// hang has every read of a scan wait, as those of a network file system do whose server is away, until back is called.
func (p *place) hang(g *gate) (back func()) {
	returns := make(chan struct{})
	g.watch(func(c call) error {
		if c.name == "read" && strings.HasPrefix(c.path, p.path("scans")+"/") {
			<-returns
		}
		return nil
	})
	return func() {
		g.watch(nil)
		close(returns)
	}
}

// A run whose scans can't be read any more says which stage holds it up, whoever asks, and goes on when they can, to the same
// end.
func TestStall(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	hook := listen(t)
	words := []string{"train.yaml", "shuffle.volumes=1", "read.ahead=1", "train.validate.every=1000", "train.epochs=6"}
	p.must(append(words, "run.dir=whole")...)
	words = append(words, "observe.stall=0.02", "observe.http=0", "observe.webhook="+hook.URL)
	r, g, _, err := p.startGated(words...)
	if err != nil {
		r.wait()
		t.Skip(err)
	}
	if !r.until(func() bool { return p.reached("run") >= 6 }) {
		t.Fatalf("over: %s", r.stderr.String())
	}
	url, _ := p.events("run", "serving")[0]["url"].(string)
	answers := func(path string, want int, word string) {
		t.Helper()
		if code, body := p.get(url + path); code != want || !strings.Contains(body, word) {
			t.Errorf("/%s: %d, without %q", path, code, word)
		}
	}
	back := p.hang(g)
	if !r.until(func() bool { return len(p.events("run", "stalled")) > 0 }) {
		t.Fatalf("over: %s", r.stderr.String())
	}
	told := p.events("run", "stalled")[0]
	dump, _ := told["goroutines"].(string)
	if told["stage"] != "read" || !strings.Contains(told["message"].(string), "read holds the graph up") || filepath.Dir(dump) != "run" {
		t.Errorf("it says %v", told)
	}
	if text := p.text(dump); !strings.Contains(text, "stages/read.Load") || !strings.Contains(text, "syscall") {
		t.Errorf("%s doesn't show who reads: %.400s", dump, text)
	}
	r.until(func() bool { names, _ := hook.events(); return names != "" })
	if names, last := hook.events(); names != "stalled" || !strings.Contains(last["text"].(string), "stalled in read") {
		t.Errorf("told of %s: %v", names, last)
	}
	answers("healthz", 503, "stalled")
	answers("readyz", 503, "stalled")
	answers("", 200, "stalled")
	answers("metrics", 200, `flowrun_run_state{state="stalled"} 1`)
	r.until(func() bool { return strings.Contains(p.text("run", "report.html"), "holds the graph up") })
	back()
	if o := r.wait(); o.code != 0 {
		t.Fatalf("exit %d: %s", o.code, o.said())
	}
	p.sameRun("whole", "run")
	p.reports("run", "Done: ", "holds the graph up", "the graph moves again")
	if names, _ := hook.events(); names != "stalled done" {
		t.Errorf("told of %s", names)
	}
}

// A run that is stalled ends when it is told to: it writes its checkpoint, and whoever hangs is left behind.
func TestStopWhileStalled(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	words := []string{"train.yaml", "shuffle.volumes=1", "read.ahead=1", "checkpoint.every=1000", "train.validate.every=1000"}
	p.must(append(words, "run.dir=whole")...)
	r, g, _, err := p.startGated(append(words, "observe.stall=0.02")...)
	if err != nil {
		r.wait()
		t.Skip(err)
	}
	if !r.until(func() bool { return p.reached("run") >= 6 }) {
		t.Fatalf("over: %s", r.stderr.String())
	}
	back := p.hang(g)
	defer back()
	if !r.until(func() bool { return len(p.events("run", "stalled")) > 0 }) {
		t.Fatalf("over: %s", r.stderr.String())
	}
	at := p.reached("run")
	r.signal(unix.SIGTERM)
	if o := r.wait(); o.code != 75 {
		t.Fatalf("exit %d: %s", o.code, o.said())
	}
	if left := p.events("run", "left behind"); len(left) != 1 || left[0]["stage"] != "read" {
		t.Errorf("left behind: %v", left)
	}
	if s := p.final("run"); s.Step != at || s.Reason != "stop" {
		t.Errorf("the checkpoint is of step %d (%s), the last one taken was %d", s.Step, s.Reason, at)
	}
	p.must(words...)
	p.sameRun("whole", "run")
}

// Nor does a stop wait for a validation that hangs: the loop that goes on makes it.
func TestStopWhileAValidationHangs(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	words := []string{"train.yaml", "checkpoint.every=1000", "train.validate.every=6"}
	p.must(append(words, "run.dir=whole")...)
	r, g, _, err := p.startGated(words...)
	if err != nil {
		r.wait()
		t.Skip(err)
	}
	hanging, back := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(hanging) })
	g.watch(func(c call) error {
		if c.name == "read" && strings.Contains(c.path, "0002") && p.reached("run") >= 6 {
			once()
			<-back
		}
		return nil
	})
	defer close(back)
	select {
	case <-hanging:
	case <-r.over:
		t.Fatalf("over: %s", r.stderr.String())
	}
	at := p.reached("run")
	r.signal(unix.SIGTERM)
	if o := r.wait(); o.code != 75 {
		t.Fatalf("exit %d: %s", o.code, o.said())
	}
	if s := p.final("run"); s.Step != at || s.Reason != "stop" {
		t.Errorf("the checkpoint is of step %d (%s), the last one taken was %d", s.Step, s.Reason, at)
	}
	p.must(words...)
	p.sameRun("whole", "run")
}
