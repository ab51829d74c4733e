package flows

import (
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flowrun/flowrun/gpu/optim"
	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

// TestTotal: a run of 15 patches an epoch in batches of 4.
func TestTotal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := mustLoad(t, "flow: [read: {scans: [x]}, tile: {patch: [4, 4, 4]}, batch: {size: 4}, train: {epochs: 2}]")
		r := &run{job: j, began: time.Now(), data: &data{train: []*volume.Scan{{}}, tiles: func(*volume.Scan) int { return 15 }}}
		at := func(step int, patches string) *volume.Snapshot {
			return &volume.Snapshot{Step: step, Meta: map[string]string{"patches": patches}}
		}
		for _, c := range []struct {
			name         string
			snap         *volume.Snapshot
			epochs, most int
			hours        float64
			pace, want   int // seconds, steps
		}{
			{"new", nil, 2, 0, 0, 0, 8},
			{"new, few steps", nil, 2, 5, 0, 0, 5},
			{"stopped", at(3, "12"), 2, 0, 0, 0, 8},
			{"ended", at(8, "30"), 2, 0, 0, 0, 8},
			{"two epochs more", at(8, "30"), 4, 0, 0, 0, 16}, // 30 patches are left
			{"of which two steps are done", at(10, "38"), 4, 0, 0, 0, 16},
			{"a checkpoint that doesn't tell", at(8, ""), 4, 0, 0, 0, 15},
			{"hours, no pace", at(8, "30"), 2, 0, 2, 0, 0},
			{"hours", at(8, "30"), 2, 0, 2, 9, 8 + 300}, // of 2 hours 45 minutes are left
			{"hours that are over", at(8, "30"), 2, 0, 1, 9, 9},
		} {
			j.run.Hours, r.before, r.began = c.hours, time.Hour, time.Now()
			time.Sleep(15 * time.Minute)
			got := r.total(c.snap, train.Options{Epochs: c.epochs, MaxSteps: c.most}, time.Duration(c.pace)*time.Second)
			if got != c.want {
				t.Errorf("%s: %d steps, want %d", c.name, got, c.want)
			}
		}
	})
}

// A run that was stopped keeps its last step, one that is given other hours gets another; the time before counts.
func TestHoursAreKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	end := func(words ...string) (*volume.Snapshot, clock) {
		t.Helper()
		snap, err := do(t, t.Context(), nil, tiny(t, dir, append(words, "checkpoint.every=1")...))
		if err != nil {
			t.Fatal(err)
		}
		c, err := clockOf(snap)
		if err != nil {
			t.Fatal(err)
		}
		return snap, c
	}
	first, was := end("run.hours=1e-9", "train.max_steps=20") // over before it began: a step behind the pace's
	if first.Step != 13 || first.Meta["total"] != "13" || was.Hours != 1e-9 || was.Pace <= 0 || was.Spent <= 0 {
		t.Fatalf("step %d of %s: %+v", first.Step, first.Meta["total"], was)
	}
	if again, _ := end("run.hours=1e-9", "train.max_steps=20"); again.Step != 13 {
		t.Errorf("the same again ended at step %d", again.Step)
	}
	more, now := end("run.hours=2e-9", "train.max_steps=20")
	if more.Step != 14 || now.Hours != 2e-9 || now.Pace != was.Pace || now.Spent <= was.Spent {
		t.Errorf("with other hours it ended at step %d: %+v, behind %+v", more.Step, now, was)
	}
	if _, err := clockOf(&volume.Snapshot{Meta: map[string]string{"clock": `{"pace":-1}`}}); err == nil {
		t.Error("time that goes backwards")
	}
}

// A run that goes on slower than run.hours was worked out for says by how much it will be late, once.
func TestLate(t *testing.T) {
	for _, c := range []struct {
		name    string
		seconds float64
		told    string
	}{
		{"as fast", 2, ""},
		{"a little slower", 2.1, ""},
		{"half as fast", 4, "a step takes 4 s here, and took 2 s when run.hours was turned into 3600 steps: the run will end about 1 h 0 min behind it"},
	} {
		synctest.Test(t, func(t *testing.T) {
			r, log := watched(t, nil, observe.Options{})
			r.job.run.Hours, r.before, r.began = 2, time.Hour, time.Now()
			r.loop = &train.Loop{Step: 1800, Pace: 2 * time.Second, Schedule: optim.Schedule{Steps: 3600}} // half of both is done
			for range 100 {
				r.late(train.Step{Seconds: c.seconds})
			}
			if n := strings.Count(log.String(), "\n"); n != min(1, len(c.told)) || !strings.Contains(log.String(), c.told) {
				t.Errorf("%s: it says %s", c.name, log)
			}
		})
	}
}
