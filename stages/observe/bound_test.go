package observe

import (
	"testing"
	"time"

	"github.com/flowrun/flowrun/stages/pipe"
)

// stat is a stage of n workers that over 10 s was busy and blocked for these shares of them, in percent.
func stat(stage string, n, busy, in int) pipe.Stat {
	t := func(percent int) time.Duration { return time.Duration(n*percent) * 100 * time.Millisecond }
	return pipe.Stat{Stage: stage, Workers: n, Busy: t(busy), BlockedIn: t(in), BlockedOut: t(100 - busy - in)}
}

func TestBoundBy(t *testing.T) {
	for _, c := range []struct {
		name  string
		stats []pipe.Stat
		want  string
	}{
		{"train computes, all above wait to hand over",
			[]pipe.Stat{stat("read", 2, 30, 0), stat("tile", 1, 1, 10), stat("batch", 1, 8, 5), stat("train", 1, 97, 3), stat("checkpoint", 1, 1, 99)}, "train 97%"},
		{"train waits for a slow reader",
			[]pipe.Stat{stat("read", 2, 98, 0), stat("tile", 1, 1, 99), stat("batch", 1, 5, 95), stat("train", 1, 60, 40), stat("checkpoint", 1, 1, 99)}, "read 98%"},
		{"a reader that waits for memory counts as busy, but nobody waits for it",
			[]pipe.Stat{stat("read", 1, 100, 0), stat("tile", 1, 1, 99), stat("batch", 1, 3, 95), stat("train", 1, 96, 4), stat("checkpoint", 1, 0, 100)}, "train 96%"},
		{"in the middle",
			[]pipe.Stat{stat("read", 1, 20, 0), stat("batch", 4, 100, 0), stat("train", 1, 50, 50), stat("checkpoint", 1, 0, 100)}, "batch 100%"},
		{"the disk",
			[]pipe.Stat{stat("read", 1, 20, 0), stat("train", 1, 40, 0), stat("checkpoint", 1, 95, 5)}, "checkpoint 95%"},
		{"one of four workers",
			[]pipe.Stat{stat("read", 4, 25, 0), stat("train", 1, 10, 90)}, "read 25%"},
		{"nothing was done", []pipe.Stat{stat("read", 1, 0, 0), stat("train", 1, 0, 100)}, ""},
		{"no time passed", []pipe.Stat{{Stage: "read"}}, ""},
		{"no stages", nil, ""},
	} {
		if got := BoundBy(nil, c.stats); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestBoundByIsOfTheInterval(t *testing.T) {
	before := []pipe.Stat{stat("read", 2, 98, 0), stat("train", 1, 20, 80)}
	now := []pipe.Stat{stat("read", 2, 10, 0), stat("train", 1, 95, 5)}
	for i := range now {
		now[i].Busy += before[i].Busy
		now[i].BlockedIn += before[i].BlockedIn
		now[i].BlockedOut += before[i].BlockedOut
	}
	if got := BoundBy(nil, before); got != "read 98%" {
		t.Errorf("first interval: %q", got)
	}
	if got := BoundBy(before, now); got != "train 95%" {
		t.Errorf("second interval: %q", got)
	}
	if got := BoundBy(now, now); got != "" {
		t.Errorf("no interval: %q", got)
	}
}

// A stage that is done has stopped its clock: what it did is measured against the time that passed.
func TestBoundByAfterTheSourceEnded(t *testing.T) {
	read := pipe.Stat{Stage: "read", Workers: 1, Busy: time.Millisecond, State: pipe.Finished}
	tile := pipe.Stat{Stage: "tile", Workers: 1, BlockedIn: time.Millisecond, State: pipe.Finished}
	if got := BoundBy(nil, []pipe.Stat{read, tile, stat("train", 1, 90, 10)}); got != "train 90%" {
		t.Errorf("got %q", got)
	}
}

func TestBoundByBlamesOnlyTheNamed(t *testing.T) {
	stats := []pipe.Stat{stat("read", 1, 90, 0), stat("batch", 1, 40, 50), stat("train", 1, 50, 50)}
	if got := BoundBy(nil, stats, "train", "batch"); got != "train 50%" {
		t.Errorf("got %q", got)
	}
}
