package integration

import (
	"testing"
	"time"
)

// A wall clock that jumps is seen in the log, and by nothing else.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.must("train.yaml", "run.dir=whole")
	r, c, err := p.startWarped("train.yaml")
	if err != nil {
		t.Skip("the clock of another process can't be set here: ", err)
	}
	const years = 10 * 365 * 24 * time.Hour
	for k, by := range []time.Duration{-years, years, -time.Hour} {
		if !r.until(func() bool { return p.reached("run") >= 4*k+2 }) {
			t.Fatal(r.stderr.String())
		}
		p.check(c.jump(by))
	}
	if o := r.wait(); o.code != 0 {
		t.Fatalf("exit %d: %s", o.code, o.stderr)
	}
	p.sameRun("whole", "run")
	done := p.events("run", "done")
	if len(done) != 1 {
		t.Fatalf("done: %v", done)
	}
	at, err := time.Parse(time.RFC3339, done[0]["time"].(string))
	p.check(err)
	if off := time.Until(at) + time.Hour; off.Abs() > time.Minute {
		t.Errorf("the log is %v off (want an hour): the clock didn't jump", off)
	}
	if seconds, _ := done[0]["seconds"].(float64); seconds < 0 || seconds > 600 {
		t.Errorf("it took %g s: %v", seconds, done[0])
	}
	for _, e := range p.lines("run", "metrics.jsonl") {
		if s, ok := e["seconds"].(float64); ok && (s < 0 || s > 600) {
			t.Errorf("step %d took %g s", e.step(), s)
		}
	}
	p.reports("run", "Done: ")
}
