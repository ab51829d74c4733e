package observe

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flowrun/flowrun/stages/pipe"
)

func TestStall(t *testing.T) {
	const limit = 10 * time.Minute
	type look struct {
		after         time.Duration // in steps of a second
		moves         int64         // at its end
		busy          float64       // share of a core
		stalled, news bool
	}
	for _, c := range []struct {
		name  string
		looks []look
	}{
		{"nothing moves", []look{{time.Minute, 5, 0, false, false}, {limit - time.Minute, 5, 0, false, false}, {2 * time.Minute, 5, 0, true, false}, {limit, 6, 0, false, true}}},
		{"at work, it may take longer", []look{{time.Minute, 5, 0, false, false}, {5 * limit, 5, 0.9, false, false}, {6 * limit, 5, 0.9, true, false}}},
		{"as long as a pause before", []look{{time.Minute, 5, 0, false, false}, {limit - time.Minute, 6, 0, false, false}, {5 * limit, 6, 0, false, false}, {6 * limit, 6, 0, true, false}}},
	} {
		s, now, cpu, said := Stall{Limit: limit}, time.Unix(1e9, 0), time.Duration(0), false
		moves := int64(1)
		for i, l := range c.looks {
			var stalled, news bool
			for range int(l.after / time.Second) {
				now, cpu = now.Add(time.Second), cpu+time.Duration(l.busy*float64(time.Second))
				if stalled, news = s.Look(now, moves, cpu); news {
					if !stalled || said {
						t.Errorf("%s, look %d: stalled %v is news", c.name, i, stalled)
					}
					said = true
				}
			}
			if l.moves != moves {
				moves = l.moves
				now = now.Add(time.Second)
				stalled, news = s.Look(now, moves, cpu)
				said = said && !news
			}
			if stalled != l.stalled || l.news && !news {
				t.Errorf("%s, look %d: stalled %v, news %v; want %v, %v", c.name, i, stalled, news, l.stalled, l.news)
			}
		}
	}
}

// A process that was stopped, or slept with its machine, hasn't stalled; one without a limit never does.
func TestStallAsleep(t *testing.T) {
	s, now := Stall{Limit: time.Minute}, time.Unix(1e9, 0)
	s.Look(now, 1, 0)
	if stalled, news := s.Look(now.Add(time.Hour), 1, 0); stalled || news {
		t.Error("asleep isn't stalled")
	}
	never := Stall{}
	for i := range 100000 {
		if stalled, news := never.Look(now.Add(time.Duration(i)*time.Second), 1, 0); stalled || news {
			t.Fatal("stalled without a limit")
		}
	}
}

func TestCulprit(t *testing.T) {
	for _, c := range []struct{ states, want string }{
		{"working,out,out,out", "0"}, {"out,working,in,in", "1"}, {"working,out,working,in", "2"}, {"out,out,in,in", "1"}, {"in,in", "1"}, {"done,done", ""},
	} {
		var stats []pipe.Stat
		for i, s := range strings.Split(c.states, ",") {
			state := map[string]string{"working": pipe.Working, "in": pipe.WaitingIn, "out": pipe.WaitingOut, "done": pipe.Finished}[s]
			stats = append(stats, pipe.Stat{Stage: strconv.Itoa(i), State: state, In: 1, Out: 2})
		}
		if got := Culprit(stats); got != c.want {
			t.Errorf("%s: %q, want %q", c.states, got, c.want)
		}
		if Moves(stats) != int64(3*len(stats)) {
			t.Errorf("%d moves", Moves(stats))
		}
	}
}

func TestDumpGoroutines(t *testing.T) {
	dir := t.TempDir()
	path, err := DumpGoroutines(dir, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	check(t, err)
	if path != filepath.Join(dir, "stall-20260102-030405.txt") || !strings.Contains(read(t, dir, filepath.Base(path)), "TestDumpGoroutines") {
		t.Errorf("%s", path)
	}
	for minute := range 20 { // those of a bad week don't pile up
		_, err := DumpGoroutines(dir, time.Date(2026, 1, 2, 4, minute, 0, 0, time.UTC))
		check(t, err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	check(t, err)
	if len(left) != dumps || filepath.Base(left[0]) != "stall-20260102-041000.txt" {
		t.Errorf("%d are left: %v", len(left), left)
	}
	if _, err := DumpGoroutines(filepath.Join(dir, "none"), time.Now()); err == nil {
		t.Error("no folder, no error")
	}
}

func TestSystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Skip("no such sockets here: ", err)
	}
	defer func() { _ = c.Close() }()
	env := map[string]string{"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "30000000"}
	getenv := func(name string) string { return env[name] }
	s := NewSystemd(getenv)
	if s.Watchdog() != 30*time.Second {
		t.Errorf("watchdog %v", s.Watchdog())
	}
	check(t, s.Tell("READY=1"))
	check(t, s.Tell("STATUS=step 1"))
	for _, want := range []string{"READY=1", "STATUS=step 1"} {
		var b [64]byte
		n, err := c.Read(b[:])
		if err != nil || string(b[:n]) != want {
			t.Errorf("%q, %v; want %q", b[:n], err, want)
		}
	}
	env["WATCHDOG_PID"] = strconv.Itoa(os.Getpid() + 1)
	if NewSystemd(getenv).Watchdog() != 0 {
		t.Error("the watchdog is another process's")
	}
	delete(env, "NOTIFY_SOCKET")
	if s := NewSystemd(getenv); s.Tell("READY=1") != nil || s.Watchdog() != 0 {
		t.Error("without a service manager nothing is told")
	}
	env["NOTIFY_SOCKET"] = path + ".none"
	if NewSystemd(getenv).Tell("READY=1") == nil {
		t.Error("nobody listens, and no error")
	}
}
