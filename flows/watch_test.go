package flows

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/report"
	"github.com/flowrun/flowrun/stages/train"
)

// watched is a run that does nothing, its watch, and its log.
func watched(t *testing.T, stats []pipe.Stat, options observe.Options) (*run, *strings.Builder) {
	t.Helper()
	log := new(strings.Builder)
	r := &run{job: &Job{run: RunOptions{Dir: t.TempDir()}, observe: options, again: []string{"flowrun", "a.yaml"}},
		available: func() (int64, int64) { return 0, 0 }, log: zerolog.New(log), budget: pipe.NewBudget(1 << 30), progress: observe.NewProgress(io.Discard, observe.ProgressOptions{})}
	w, err := newWatch(t.Context(), r, new(observe.Incidents))
	if err != nil {
		t.Fatal(err)
	}
	r.watch, w.stats = w, func() []pipe.Stat { return stats }
	return r, log
}

// A graph in which nothing moves is stalled: the log, the goroutines, the report and the hooks say where.
func TestStalls(t *testing.T) {
	said := filepath.Join(t.TempDir(), "said")
	stats := []pipe.Stat{{Stage: "admit", In: 1, State: pipe.WaitingOut}, {Stage: "read", In: 1, State: pipe.Working}, {Stage: "train", State: pipe.WaitingIn}}
	r, log := watched(t, stats, observe.Options{Stall: 1, Command: []string{"sh", "-c", "echo $FLOWRUN_TEXT >" + said}, On: []string{"stalled"}})
	w := r.watch
	now := time.Now()
	look := func(d time.Duration) {
		for range int(d / time.Second) {
			now = now.Add(time.Second)
			w.stalls(now)
		}
	}
	look(59 * time.Second)
	if w.state != report.Running || log.Len() > 0 {
		t.Fatalf("%s: %s", w.state, log)
	}
	look(20 * time.Minute)
	w.done.Wait()
	if w.state != report.Stalled || strings.Count(log.String(), `"event":"stalled","stage":"read"`) != 1 {
		t.Errorf("%s: %s", w.state, log)
	}
	if b, err := os.ReadFile(said); err != nil || !strings.Contains(string(b), "stalled in read") {
		t.Errorf("the hook was told %q, %v", b, err)
	}
	dumps, _ := filepath.Glob(r.file("stall-*.txt"))
	if len(dumps) != 1 {
		t.Errorf("dumps %v", dumps)
	}
	if b, err := os.ReadFile(r.file("report.html")); err != nil || !strings.Contains(string(b), `class="badge stalled"`) {
		t.Errorf("report: %v", err)
	}
	stats[1].Out++
	look(2 * time.Second)
	if w.state != report.Running || !strings.Contains(log.String(), `"event":"moving"`) {
		t.Errorf("%s: %s", w.state, log)
	}
}

// A validation gives signs of life, though no element moves.
func TestSignsOfLife(t *testing.T) {
	r, log := watched(t, []pipe.Stat{{Stage: "train", State: pipe.Working}}, observe.Options{Stall: 1})
	now := time.Now()
	for i := range 300 {
		now = now.Add(time.Second)
		if i%50 == 0 {
			r.status("validating")
		}
		r.watch.stalls(now)
	}
	if r.watch.state != report.Running || log.Len() > 0 {
		t.Errorf("%s: %s", r.watch.state, log)
	}
}

func TestOutcome(t *testing.T) {
	for _, c := range []struct {
		err  error
		want report.State
	}{
		{nil, report.Done}, {fmt.Errorf("%w; the last checkpoint is a", ErrInterrupted), report.Interrupted}, {context.Canceled, report.Interrupted},
		{&train.DivergedError{Err: &vqgan.NonFiniteError{}}, report.Diverged}, {dataErrorf("none"), report.Failed}, {configErrorf("none"), report.Failed}, {errors.New("x"), report.Failed},
	} {
		if got := outcome(c.err); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		words, more []string
		want        string
	}{
		{nil, []string{"train.lr=1"}, ""},
		{[]string{"flowrun", "a b.yaml", "augment[1].flip=[x]", "run.dir="}, nil, `flowrun 'a b.yaml' 'augment[1].flip=[x]' run.dir=`},
		{[]string{"flowrun", "a.yaml", "train.lr=1", "train.l=2", "run.dir=it's"}, []string{"train.lr=0.5"}, `flowrun a.yaml train.l=2 'run.dir=it'\''s' train.lr=0.5`},
		{[]string{"flowrun", "$(x)", ""}, nil, `flowrun '$(x)' ''`},
	} {
		if got := commandLine(c.words, c.more...); got != c.want {
			t.Errorf("got %s\nwant %s", got, c.want)
		}
	}
}
