package flows

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/report"
)

// A writer waits for room on a full disk, until there is room, a stop, or another error.
func TestPatiently(t *testing.T) {
	noRoom := fmt.Errorf("a/b: %w", &os.PathError{Op: "write", Path: "a/b", Err: syscall.ENOSPC})
	boom := errors.New("boom")
	for _, c := range []struct {
		name    string
		answers []error // of the writes; the last one again and again
		stop    string
		want    error
		writes  int
		waited  time.Duration
	}{
		{"room", []error{nil}, "", nil, 1, 0},
		{"another error", []error{boom}, "", boom, 1, 0},
		{"room in time", []error{noRoom, noRoom, noRoom, nil}, "", nil, 4, 3 * retryEvery},
		{"another error in time", []error{noRoom, boom}, "", boom, 2, retryEvery},
		{"a soft stop", []error{noRoom}, "soft", noRoom, 4, 2*retryEvery + retryEvery/2},
		{"a soft stop, with room by then", []error{noRoom, noRoom, noRoom, nil}, "soft", nil, 4, 2*retryEvery + retryEvery/2},
		{"a hard stop", []error{noRoom}, "hard", noRoom, 3, 2*retryEvery + retryEvery/2},
	} {
		synctest.Test(t, func(t *testing.T) {
			r, log := watched(t, nil, observe.Options{})
			soft, hard := make(chan struct{}), make(chan struct{})
			r.stopping, r.hard = soft, hard
			if c.stop != "" {
				time.AfterFunc(2*retryEvery+retryEvery/2, func() {
					r.watch.mu.Lock()
					defer r.watch.mu.Unlock()
					if r.watch.state != report.Paused {
						t.Errorf("%s: %s", c.name, r.watch.state)
					}
					close(map[string]chan struct{}{"soft": soft, "hard": hard}[c.stop])
				})
			}
			writes, began := 0, time.Now()
			err := r.patiently(func() error {
				writes++
				return c.answers[min(writes, len(c.answers))-1]
			})
			if !errors.Is(err, c.want) || writes != c.writes || time.Since(began) != c.waited {
				t.Errorf("%s: %v after %d writes and %v; want %v, %d, %v", c.name, err, writes, time.Since(began), c.want, c.writes, c.waited)
			}
			if paused := strings.Contains(log.String(), "paused"); paused != (c.waited > 0) || r.watch.state != report.Running {
				t.Errorf("%s: %s, %s", c.name, r.watch.state, log)
			}
			if again := strings.Contains(log.String(), "room again"); again != (c.waited > 0 && !errors.Is(err, noRoom)) {
				t.Errorf("%s: %s", c.name, log)
			}
		})
	}
	r := &run{}
	if err := r.patiently(func() error { return noRoom }); !errors.Is(err, noRoom) {
		t.Errorf("before the graph runs nobody waits: %v", err)
	}
}

// Whoever needs memory waits until the machine has it to spare, or for a stop; then a checkpoint is wanted, once, as soon as
// there is room for it.
func TestAwait(t *testing.T) {
	const total, need = 1 << 30, 100 << 20 // of which a fortieth is for others
	for _, c := range []struct {
		name   string
		free   func(after time.Duration) int64
		stop   time.Duration // 0: none
		waited time.Duration
	}{
		{"enough", func(time.Duration) int64 { return need + total/40 }, 0, 0},
		{"a byte too few, for a while", func(after time.Duration) int64 {
			if after < 3*retryEvery {
				return need + total/40 - 1
			}
			return need + total/40
		}, 0, 3 * retryEvery},
		{"too little until a stop", func(time.Duration) int64 { return 0 }, 5 * time.Minute, 5 * time.Minute},
	} {
		synctest.Test(t, func(t *testing.T) {
			r, log := watched(t, nil, observe.Options{})
			soft, began := make(chan struct{}), time.Now()
			r.stopping, r.parts.snapshot = soft, 20<<20
			r.available = func() (int64, int64) { return c.free(time.Since(began)), total }
			if c.stop > 0 {
				time.AfterFunc(c.stop, func() { close(soft) })
			}
			if c.waited > 0 {
				time.AfterFunc(c.waited-time.Second, func() {
					r.watch.mu.Lock()
					defer r.watch.mu.Unlock()
					if outcome, _, _ := r.watch.sentence(time.Now()); r.watch.state != report.Paused || !strings.Contains(outcome, "memory is nearly full: a.nii takes 100 MiB") {
						t.Errorf("%s: %s: %s", c.name, r.watch.state, outcome)
					}
				})
			}
			r.await(t.Context(), need, "a.nii")
			if w := time.Since(began); w != c.waited {
				t.Errorf("%s: waited %v (want %v)", c.name, w, c.waited)
			}
			if r.watch.state != report.Running || strings.Contains(log.String(), "paused") != (c.waited > 0) || strings.Contains(log.String(), "resumed") != (c.waited > 0 && c.stop == 0) {
				t.Errorf("%s: %s: %s", c.name, r.watch.state, log)
			}
			want := map[bool]string{true: "stop"}[c.waited > 0 && c.stop == 0]
			if none, why, again := r.wanted(0), r.wanted(1), r.wanted(1); none != "" || why != want || again != "" {
				t.Errorf("%s: wanted %q, %q and %q (want none, %q, none)", c.name, none, why, again, want)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		r, _ := watched(t, nil, observe.Options{})
		r.stopping, r.available = make(chan struct{}), func() (int64, int64) { return 0, total }
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		if r.await(ctx, need, "a.nii"); time.Since(began) != time.Minute {
			t.Errorf("waited %v for what nobody wants any more", time.Since(began))
		}
	})
}

// The garbage collector keeps to what is planned, unless the user has said otherwise.
func TestLimitMemory(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	r := &run{parts: memory{limit: 40 << 30, engine: 10 << 30}}
	r.limitMemory(func(string) string { return "1GiB" })
	if n := debug.SetMemoryLimit(-1); n != before {
		t.Errorf("GOMEMLIMIT was replaced by %s", size(n))
	}
	r.limitMemory(func(string) string { return "" })
	if n := debug.SetMemoryLimit(-1); n != 30<<30+128<<20 {
		t.Errorf("the limit is %s", size(n))
	}
}
