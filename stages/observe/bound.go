package observe

import (
	"fmt"
	"slices"
	"time"

	"github.com/flowrun/flowrun/stages/pipe"
)

// noticed is the share of the time that a stage must wait for input before the wait is blamed on a stage above it.
const noticed = 0.1

// BoundBy names the stage that bounds a run between two readings of its graph's Stats, and how busy it was: "read 71%".
// A reading of nil is that of a graph not yet started. With names, only those stages are blamed.
//
// The rule: a stage can be the bound only if all stages below it waited for input at least a tenth of the time, for
// then nothing below is what holds the run up; among these the busiest is the bound. (The busiest of all won't do: a
// reader that waits for memory counts as busy.) Shares are of the time that passed, over all workers of a stage.
func BoundBy(prev, now []pipe.Stat, names ...string) string {
	delta := make([]pipe.Stat, len(now))
	var passed time.Duration
	for i, s := range now {
		if i < len(prev) && prev[i].Stage == s.Stage {
			p := prev[i]
			s.Busy, s.BlockedIn, s.BlockedOut = s.Busy-p.Busy, s.BlockedIn-p.BlockedIn, s.BlockedOut-p.BlockedOut
		}
		s.Workers = max(1, s.Workers)
		delta[i] = s
		passed = max(passed, (s.Busy+s.BlockedIn+s.BlockedOut)/time.Duration(s.Workers))
	}
	if passed <= 0 {
		return ""
	}
	share := func(d time.Duration, workers int) float64 { return float64(d) / float64(passed) / float64(workers) }
	bound, most := "", 0.0
	for _, s := range slices.Backward(delta) {
		busy := share(s.Busy, s.Workers)
		if busy > most && (len(names) == 0 || slices.Contains(names, s.Stage)) {
			bound, most = s.Stage, busy
		}
		if share(s.BlockedIn, s.Workers) < noticed {
			break
		}
	}
	if bound == "" {
		return ""
	}
	return fmt.Sprintf("%s %.0f%%", bound, 100*most)
}
