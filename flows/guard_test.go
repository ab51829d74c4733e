package flows

import (
	"context"
	"io"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

// A run that goes back over and over leaves nothing behind each time: no goroutine (do looks for those), no memory, no buffer.
func TestGoingBackLeaksNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("goes back forty times")
	}
	measure := func(tries string) uint64 {
		dir := filepath.Join(t.TempDir(), "run")
		_, err := do(t, t.Context(), nil, tiny(t, dir, validated, "train.lr=1e30", "train.guard.lower=0.99", "train.guard.tries="+tries))
		if ExitCode(err) != ExitDiverged {
			t.Fatal(err)
		}
		if list, err := observe.Divergences(dir); err != nil || list[len(list)-1].Action != "stop" {
			t.Fatalf("%v, %+v", err, list)
		}
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	few, many := measure("3"), measure("40")
	if many > few+1<<20 {
		t.Errorf("the heap has %d bytes after 3 times, %d after 40", few, many)
	}
}

// Without a checkpoint stage a run that goes wrong begins anew; with train.init from those weights.
func TestGoingBackToTheBeginning(t *testing.T) {
	from := filepath.Join(t.TempDir(), "from")
	if _, err := do(t, t.Context(), nil, tiny(t, from, "train.max_steps=2")); err != nil {
		t.Fatal(err)
	}
	first := func(words ...string) (loss, lr float64, incidents int) {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "run")
		j := tiny(t, dir, append(words, "train.max_steps=3", "train.init="+filepath.Join(from, "checkpoints", "last.safetensors"))...)
		j.pieces = slices.DeleteFunc(j.pieces, func(p *piece) bool { return p.name == "checkpoint" })
		if _, err := do(t, t.Context(), nil, j); err != nil {
			t.Fatal(err)
		}
		steps := lines(t, filepath.Join(dir, "metrics.jsonl"))
		if len(steps) != 3 {
			t.Errorf("%d steps are recorded", len(steps))
		}
		list, err := observe.Divergences(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range list {
			if i.BackTo != 0 || i.Checkpoint != "" {
				t.Errorf("%+v", i)
			}
		}
		return steps[0]["train/loss"].(float64), steps[0]["lr"].(float64), len(list)
	}
	loss, lr, n := first("train.lr=1e30", "train.guard.lower=0.001", "train.guard.tries=12")
	want, right, none := first("train.lr=1e-3")
	if loss != want || n < 9 || none != 0 || lr >= 1e15 || right != 5e-4 {
		t.Errorf("the first loss is %g after %d incidents at a rate of %g, %g after %d at %g", loss, n, lr, want, none, right)
	}
}

// A run that goes back again and again can be stopped, softly and at once, and goes on.
func TestStopWhileGoingBack(t *testing.T) {
	for _, hard := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), "run")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stop, over := make(chan struct{}), make(chan struct{})
		var waiting sync.WaitGroup
		waiting.Go(func() {
			for {
				select {
				case <-over:
					return
				case <-time.After(time.Millisecond):
				}
				if list, err := observe.Divergences(dir); err == nil && len(list) > 3 {
					if hard {
						cancel()
					} else {
						close(stop)
					}
					return
				}
			}
		})
		err := tiny(t, dir, "train.lr=1e30", "train.guard.lower=0.99", "train.guard.tries=100000").Run(ctx, stop, UI{Out: io.Discard, Err: io.Discard})
		close(over)
		waiting.Wait()
		if ExitCode(err) != ExitInterrupted {
			t.Fatalf("hard %v: %v", hard, err)
		}
		if last, err := do(t, t.Context(), nil, tiny(t, dir)); err != nil || last.Step != 10 {
			t.Errorf("hard %v: going on: %v", hard, err)
		}
	}
}

// A checkpoint whose guard makes no sense is named.
func TestGuardOfAnotherWorld(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	last, err := do(t, t.Context(), nil, tiny(t, dir, "train.max_steps=2"))
	if err != nil {
		t.Fatal(err)
	}
	r := &run{job: tiny(t, dir), last: "x"}
	o, _ := option[train.Options](r.job)
	tr := *o
	snap := &volume.Snapshot{Meta: map[string]string{"guard": "{"}}
	if _, err := r.openGuard(snap, tr); err == nil || !strings.HasPrefix(err.Error(), "x: guard: ") {
		t.Error(err)
	}
	if guard, err := r.openGuard(last, tr); err != nil || guard.Scale != 1 {
		t.Errorf("%+v, %v", guard, err)
	}
	tr.Guard.Tries = 0
	if guard, err := r.openGuard(last, tr); err != nil || guard != nil {
		t.Errorf("%+v, %v", guard, err)
	}
}
