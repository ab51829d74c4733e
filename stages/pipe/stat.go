package pipe

import (
	"slices"
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
// its turn (Map keeps order) or for the next stage to take it is blocked on output. While a stage has something to deliver
// (Graph.Owes) all its workers are busy, and those it keeps waiting wait for input.
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
	owing   int // times that this stage has something to deliver
	owed    int // times that it waits for a stage above it to deliver
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
	for i, n := range m.workersBy() {
		m.spent[i] += d * time.Duration(n)
	}
	m.since = now
}

// workersBy counts workers by what they do.
func (m *meter) workersBy() [kinds]int {
	switch {
	case m.owing > 0:
		return [kinds]int{working: m.workers}
	case m.owed > 0:
		return [kinds]int{starved: m.workers}
	}
	return m.count
}

// owe counts what this stage has to deliver and what it waits for.
func (m *meter) owe(owing, owed int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tick()
	m.owing += owing
	m.owed += owed
}

// Owes says that until paid is called the stage taker waits, within an element, for what the stage giver has still to deliver
// of it: an element that is handed on before it is whole. Giver is busy meanwhile, even if it has ended, and all behind it up to
// taker wait for input. Of stages that aren't there nothing is said.
func (g *Graph) Owes(giver, taker string) (paid func()) {
	g.mu.Lock()
	named := func(stage string) int {
		return slices.IndexFunc(g.meters, func(m *meter) bool { return m.stage == stage })
	}
	var chain []*meter
	if from, to := named(giver), named(taker); from >= 0 && from < to {
		chain = g.meters[from : to+1 : to+1]
	}
	g.mu.Unlock()
	owe := func(n int) {
		for i, m := range chain {
			if i == 0 {
				m.owe(n, 0)
			} else {
				m.owe(0, n)
			}
		}
	}
	owe(1)
	return func() { owe(-1) }
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
	switch by := m.workersBy(); {
	case by[working] > 0:
		s.State = Working
	case by[blocked] > 0:
		s.State = WaitingOut
	case by[starved] > 0 || !m.done:
		s.State = WaitingIn
	default:
		s.State = Finished
	}
	return s
}
