package pipe

import (
	"sync"
	"time"
)

// What a stage is doing, in Stat.State.
const (
	Working    = "working"
	WaitingIn  = "waiting for input"
	WaitingOut = "waiting for output"
	Finished   = "done"
)

// Stat is what a stage has done since it was wired. The three durations are summed over the workers and include what is
// going on right now: until the stage is done they add up to Workers times its age. A worker whose element waits for
// its turn (Map keeps order) or for the next stage to take it is blocked on output.
type Stat struct {
	Stage      string
	In, Out    int64 // elements
	Busy       time.Duration
	BlockedIn  time.Duration // waiting for an element to come
	BlockedOut time.Duration // waiting for the next stage to take one
	Bytes      int64         // inside now, of the elements that have Bytes
	Workers    int
	State      string // Working if any worker is, else WaitingOut, else WaitingIn; Finished in the end
}

// doing is what a worker does.
type doing int

const (
	working doing = iota
	starved
	blocked
	kinds int = iota
)

// meter keeps a stage's Stat.
type meter struct {
	stage   string
	workers int

	mu      sync.Mutex
	in, out int64
	bytes   int64
	count   [kinds]int           // workers by what they do
	spent   [kinds]time.Duration // worker time, until since
	since   time.Time
	done    bool
}

func newMeter(stage string, workers int, at doing) *meter {
	m := &meter{stage: stage, workers: workers, since: time.Now()}
	m.count[at] = workers
	return m
}

// note counts elements and bytes that came in and went out, and moves one worker between doings.
func (m *meter) note(from, to doing, in, out, bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.in += in
	m.out += out
	m.bytes += bytes
	if from != to {
		m.tick()
		m.count[from]--
		m.count[to]++
	}
}

func (m *meter) tick() {
	now := time.Now()
	d := now.Sub(m.since)
	for i, n := range m.count {
		m.spent[i] += d * time.Duration(n)
	}
	m.since = now
}

// finish stops the clock.
func (m *meter) finish() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tick()
	m.count = [kinds]int{}
	m.bytes = 0
	m.done = true
}

func (m *meter) stat() Stat {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tick()
	s := Stat{
		Stage: m.stage, In: m.in, Out: m.out, Workers: m.workers, Bytes: max(m.bytes, 0),
		Busy: m.spent[working], BlockedIn: m.spent[starved], BlockedOut: m.spent[blocked],
	}
	switch {
	case m.done:
		s.State = Finished
	case m.count[working] > 0:
		s.State = Working
	case m.count[blocked] > 0:
		s.State = WaitingOut
	default:
		s.State = WaitingIn
	}
	return s
}
