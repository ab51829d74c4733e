package observe

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"time"

	"github.com/flowrun/flowrun/stages/pipe"
)

// Stall finds out when nothing moves any more. Ask it about every second; it knows no clock of its own.
type Stall struct {
	Limit time.Duration // without movement; 0: never

	moves   int64
	since   time.Time     // the last movement
	asked   time.Time     // the last question
	cpu     time.Duration // of the process, at since
	longest time.Duration // between two movements
	stalled bool
}

const (
	// patience is how much longer than any pause before a stall must be, and how many limits a pause may last in which
	// the process is at work.
	patience = 10
	// idle is the share of a core below which a process isn't at work.
	idle = 0.1
	// asleep is the time between two questions from which on the process was stopped, or the machine was.
	asleep = 30 * time.Second
)

// Look says whether the run is stalled, and whether that is news. moves is a number that changes when anything moves;
// cpu is the processor time that the process has used, or 0 where that isn't known.
func (s *Stall) Look(now time.Time, moves int64, cpu time.Duration) (stalled, news bool) {
	slept := !s.asked.IsZero() && now.Sub(s.asked) > asleep
	if s.since.IsZero() || moves != s.moves || slept {
		if !s.since.IsZero() && !slept {
			s.longest = max(s.longest, now.Sub(s.since))
		}
		news = s.stalled
		s.moves, s.since, s.cpu, s.asked, s.stalled = moves, now, cpu, now, false
		return false, news
	}
	s.asked = now
	still := now.Sub(s.since)
	limit := s.Limit
	if !s.stalled {
		limit = max(limit, patience*s.longest)
	}
	if works := cpu-s.cpu > time.Duration(idle*float64(still)); works && !s.stalled {
		limit = max(limit, patience*s.Limit)
	}
	if s.Limit <= 0 || s.stalled || still < limit {
		return s.stalled, false
	}
	s.stalled = true
	return true, true
}

// Since is when anything last moved.
func (s *Stall) Since() time.Time { return s.since }

// Moves is a number that grows whenever an element enters or leaves a stage.
func Moves(stats []pipe.Stat) (n int64) {
	for _, s := range stats {
		n += s.In + s.Out
	}
	return n
}

// Culprit is the stage that holds up a graph in which nothing moves: the last that works, all behind it waiting for
// input. Where none works, it is the last that waits for output; a source that waits for memory counts as working.
func Culprit(stats []pipe.Stat) string {
	for _, state := range []string{pipe.Working, pipe.WaitingOut, pipe.WaitingIn} {
		for _, s := range slices.Backward(stats) {
			if s.State == state {
				return s.Stage
			}
		}
	}
	return ""
}

// dumps is how many of DumpGoroutines' files stay.
const dumps = 10

// DumpGoroutines writes what every goroutine does to a file in dir, named after the time, and returns its path. The oldest of
// such files go.
func DumpGoroutines(dir string, now time.Time) (path string, err error) {
	path = filepath.Join(dir, "stall-"+now.Format("20060102-150405")+".txt")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	if _, err := fmt.Fprintf(f, "flowrun, pid %d, %s: every goroutine\n\n", os.Getpid(), now.Format(time.RFC3339)); err != nil {
		return "", err
	}
	if err := pprof.Lookup("goroutine").WriteTo(f, 2); err != nil {
		return "", err
	}
	files, err := filepath.Glob(filepath.Join(filepath.Dir(path), "stall-*.txt"))
	for len(files) > dumps && err == nil {
		err = os.Remove(files[0])
		files = files[1:]
	}
	return path, err
}
