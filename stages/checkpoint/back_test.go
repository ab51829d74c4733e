package checkpoint

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// newest is the newest of kept of at most limit that no stop made, or -1.
func newest(kept []ranked, limit int) int {
	for _, r := range slices.Backward(kept) {
		if r.step <= limit && !r.stopped {
			return r.step
		}
	}
	return -1
}

// A run goes back to the same checkpoint however often it was stopped, and to one that isn't far back.
func TestRetainKeepsWhatTroubleGoesBackTo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		every, probation, best := rapid.IntRange(1, 12).Draw(t, "every"), rapid.IntRange(1, 30).Draw(t, "probation"), rapid.IntRange(1, 3).Draw(t, "best")
		var whole, stopped []ranked
		add := func(list []ranked, r ranked) []ranked {
			list = append(list, r)
			keep, _ := retain(list, r.step, best, probation)
			list = slices.DeleteFunc(list, func(r ranked) bool { return !keep[r.step] })
			if len(list) > best+5 || len(list) > 1 && r.step-list[len(list)-2].step > every {
				t.Fatalf("%d are kept: %v", len(list), list)
			}
			return list
		}
		for step := 1; step <= 60; step++ {
			if step%every == 0 {
				r := ranked{step, float64(rapid.IntRange(0, 3).Draw(t, "score")), rapid.Bool().Draw(t, "valid"), false, rapid.Bool().Draw(t, "late")}
				whole, stopped = add(whole, r), add(stopped, r)
			} else if rapid.IntRange(0, 4).Draw(t, "stop") == 0 {
				stopped = add(stopped, ranked{step: step, stopped: true})
			}
			for limit := step - probation; limit <= step; limit++ {
				got, want := newest(stopped, limit), newest(whole, limit)
				if got != want {
					t.Fatalf("step %d, limit %d: back to %d of %v, without stops to %d of %v", step, limit, got, stopped, want, whole)
				}
				if most := 2*probation + 2*every; limit >= every && (got < 0 || got < limit-most) {
					t.Fatalf("step %d, limit %d: back to %d of %v", step, limit, got, stopped)
				}
			}
		}
	})
}

func TestBefore(t *testing.T) {
	dir := t.TempDir()
	s := open1(t, dir, 9, "psnr")
	s.Probation = 100
	stopped := snap(5, 34)
	stopped.Reason = "stop"
	save(t, s, snap(0, 30), snap(2, 31), snap(4, 32), stopped, snap(6, 33))
	for limit, want := range map[int]int{-1: -1, 0: 0, 1: 0, 4: 4, 5: 4, 6: 6, 9: 6} {
		got, path, err := s.Before(limit)
		check(t, err)
		if want < 0 && got != nil || want >= 0 && (got.Step != want || path != filepath.Join(dir, Name(want))) {
			t.Errorf("of at most %d: %s", limit, path)
		}
	}
	check(t, os.Truncate(filepath.Join(dir, Name(4)), 3000))
	if got, _, err := s.Before(5); err != nil || got.Step != 2 {
		t.Errorf("4 is torn: %v, %v", got, err)
	}
}

func TestSuspect(t *testing.T) {
	dir := t.TempDir()
	s := open1(t, dir, 9, "psnr")
	save(t, s, snap(2, 31), snap(4, 32), snap(6, 33), snap(8, 34))
	check(t, s.Suspect(8))
	if got := list(t, dir); got != "best=8 last=8 2 4 6 8" {
		t.Error(got)
	}
	check(t, s.Suspect(4))
	if got := list(t, dir); got != "best=4 last=4 2 4 8.safetensors.suspect" {
		t.Error(got)
	}
	save(t, s, snap(8, -1)) // another state of that step: what was measured of the first isn't its
	if info, err := Peek(filepath.Join(dir, Name(8))); err != nil || info.Metrics != nil {
		t.Errorf("%v, %v", info.Metrics, err)
	}
	check(t, s.Suspect(4))
	save(t, s, snap(5, -1), snap(7, -1))
	check(t, s.Suspect(0))
	if got := list(t, dir); got != "7.safetensors.suspect" {
		t.Error(got)
	}
	if latest, _, skipped, err := s.Latest(); latest != nil || len(skipped) > 0 || err != nil {
		t.Errorf("%v, %v, %v", latest, skipped, err)
	}
	check(t, s.Suspect(0))
	if got := list(t, dir); got != "7.safetensors.suspect" {
		t.Error(got)
	}
}

// What a Save that was killed left undone, the next run does before it goes on.
func TestTidy(t *testing.T) {
	dir := t.TempDir()
	s := open1(t, dir, 1, "psnr")
	save(t, s, snap(1, 30), snap(2, 30), snap(3, 30))
	again := open1(t, t.TempDir(), 1, "psnr")
	save(t, again, snap(4, 30))
	b, err := os.ReadFile(filepath.Join(again.dir, Name(4)))
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, Name(4)), b, 0o666))
	s = open1(t, dir, 1, "psnr")
	s.Tidy()
	if got := list(t, dir); got != "best=1 last=4 1 3 4" {
		t.Error(got)
	}
}
