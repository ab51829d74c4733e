package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/flowrun/flowrun/stages/files"
	"github.com/flowrun/flowrun/stages/safetensors"
	"github.com/flowrun/flowrun/stages/volume"
)

// Names of relative symlinks to the newest and to the best checkpoint.
const (
	LastName = "last.safetensors"
	BestName = "best.safetensors"
)

var stepName = regexp.MustCompile(`^step-(\d{8,18})\.safetensors$`)

// Name is the file name of the checkpoint of a step.
func Name(step int) string { return fmt.Sprintf("step-%08d.safetensors", step) }

// Store keeps the checkpoints of one run in a folder. One goroutine at a time may use it; others may read the files.
type Store struct {
	// Probation is how many steps a checkpoint must have behind it before nothing can be found that would make a run go back
	// beyond it. Of those that have passed it one is kept, and the one that passes it next. 0: nobody will go back.
	Probation int

	dir     string
	options Options
	disk    disk
	damaged map[int]bool       // steps whose file didn't verify: not counted, never removed
	saved   int                // the step of the last Save, or -1
	metrics map[string]float64 // of that Save
}

// Open makes the folder if it isn't there, and removes what a killed Save left behind. The caller holds the run's
// lock: another Save in the folder would lose its file.
func Open(dir string, o Options) (*Store, error) {
	s := &Store{dir: dir, options: o, disk: local(), damaged: make(map[int]bool), saved: -1}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, s.explain(dir, 0, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, s.explain(dir, 0, err)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), files.Temporary)
		if ok && (stepName.MatchString(name) || name == LastName || name == BestName) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, s.explain(filepath.Join(dir, e.Name()), 0, err)
			}
		}
	}
	return s, nil
}

func (s *Store) path(step int) string { return filepath.Join(s.dir, Name(step)) }

// files are the steps that have a checkpoint, ascending.
func (s *Store) files() ([]int, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.dir, files.Reason(err))
	}
	var steps []int
	for _, e := range entries {
		if m := stepName.FindStringSubmatch(e.Name()); m != nil && e.Type().IsRegular() {
			if step, err := strconv.Atoi(m[1]); err == nil && Name(step) == e.Name() {
				steps = append(steps, step)
			}
		}
	}
	slices.Sort(steps)
	return steps, nil
}

// Save makes a snapshot durable and returns its path; then it points best and last at their files and removes the
// checkpoints that are neither the newest two nor among the best. When it fails, the older ones are all still there.
// A snapshot of a step that was saved before takes that one's place; without metrics of its own it inherits those of
// the Save just before.
func (s *Store) Save(ctx context.Context, snapshot *volume.Snapshot) (string, error) {
	path := s.path(snapshot.Step)
	if snapshot.Step == s.saved && snapshot.Metrics == nil {
		again := *snapshot
		again.Metrics, again.Free = s.metrics, nil
		snapshot = &again
	}
	h, arrays, err := layOut(snapshot)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if err := safetensors.Save(ctx, s.disk.Disk, path, h, arrays); err != nil {
		return "", s.explain(path, h.Bytes(), err)
	}
	s.saved, s.metrics = snapshot.Step, snapshot.Metrics
	delete(s.damaged, snapshot.Step)
	s.tidy()
	return path, nil
}

// layOut is a snapshot's file: its header, and the arrays that follow it.
func layOut(s *volume.Snapshot) (*safetensors.Header, []safetensors.Array, error) {
	meta, err := encodeMeta(s)
	if err != nil {
		return nil, nil, err
	}
	arrays := safetensors.Floats(s.Arrays)
	h, err := safetensors.NewHeader(arrays, meta, true)
	return h, arrays, err
}

// Write makes a snapshot durable as a file of any name, outside a Store, and returns its size. A file that was there is
// replaced; after an error it is still there. Errors start with the path.
func Write(ctx context.Context, path string, snapshot *volume.Snapshot) (bytes int64, err error) {
	h, arrays, err := layOut(snapshot)
	if err == nil {
		err = safetensors.Save(ctx, files.Local(), path, h, arrays)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return h.Bytes(), nil
}

// ranked is a checkpoint as retention sees it.
type ranked struct {
	step    int
	score   float64 // higher is better
	valid   bool    // it has a score
	stopped bool    // it is there because the run was stopped
	late    bool    // discriminators were in full
}

// Tidy does what a Save that was killed had still to do for the links and the files that aren't kept.
func (s *Store) Tidy() { s.tidy() }

// tidy points the links at their files and removes what isn't kept. What can't be removed is tried again next time.
func (s *Store) tidy() {
	files, err := s.files()
	if err != nil {
		return
	}
	var list []ranked
	for _, step := range files {
		if s.damaged[step] {
			continue
		}
		info, err := Peek(s.path(step))
		if err != nil || !info.Checkpoint || info.Step != step {
			continue // Latest will say what is wrong with it
		}
		score, ok := s.options.score(info.Metrics)
		list = append(list, ranked{step, score, ok, info.Reason == stop, info.Metrics[Adversarial] > 0})
	}
	keep, best := retain(list, s.saved, s.options.Keep, s.Probation)
	switch {
	case len(list) > 0:
		s.link(LastName, list[len(list)-1].step)
	case len(files) == 0:
		s.link(LastName, -1)
	}
	s.link(BestName, best)
	for _, r := range list {
		if !keep[r.step] {
			_ = os.Remove(s.path(r.step))
		}
	}
}

// retain says which of list, ascending by step, are kept: the last two, the one just saved, and the n with the highest
// scores, the earlier of two equals; where some of those are late, of the late ones. best is the first of those, or -1. With a probation it is the last one, and of those that
// no stop made the last two, the last one that has passed it, and the first that hasn't.
func retain(list []ranked, saved, n, probation int) (keep map[int]bool, best int) {
	keep, best = map[int]bool{saved: true}, -1
	last := 2
	if probation > 0 {
		last = 1
	}
	for _, r := range list[max(0, len(list)-last):] {
		keep[r.step] = true
	}
	if probation > 0 {
		due := slices.DeleteFunc(slices.Clone(list), func(r ranked) bool { return r.stopped })
		for i, r := range due {
			next := due[min(i+1, len(due)-1)].step
			passed := due[len(due)-1].step - probation
			if i >= len(due)-2 || r.step <= passed && next > passed || r.step > passed && (i == 0 || due[i-1].step <= passed) {
				keep[r.step] = true
			}
		}
	}
	scored := slices.DeleteFunc(slices.Clone(list), func(r ranked) bool { return !r.valid })
	if slices.ContainsFunc(scored, func(r ranked) bool { return r.late }) {
		scored = slices.DeleteFunc(scored, func(r ranked) bool { return !r.late })
	}
	slices.SortStableFunc(scored, func(a, b ranked) int {
		switch {
		case a.score > b.score:
			return -1
		case a.score < b.score:
			return 1
		}
		return 0
	})
	for i, r := range scored[:min(n, len(scored))] {
		keep[r.step] = true
		if i == 0 {
			best = r.step
		}
	}
	return keep, best
}

// link makes name a relative symlink to the checkpoint of a step, or removes it if step < 0. A file of that name that
// isn't a link is left alone. Where there are no symlinks there is no link.
func (s *Store) link(name string, step int) {
	path := filepath.Join(s.dir, name)
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink == 0 {
		return
	}
	if step < 0 {
		_ = os.Remove(path)
		return
	}
	if to, err := os.Readlink(path); err == nil && to == Name(step) {
		return
	}
	_ = os.Remove(path + files.Temporary)
	if os.Symlink(Name(step), path+files.Temporary) != nil {
		return
	}
	if os.Rename(path+files.Temporary, path) != nil {
		_ = os.Remove(path + files.Temporary)
	}
}

// explain says what to do about an error of the disk. need is the size of the file that was to be written.
func (s *Store) explain(path string, need int64, err error) error {
	err = files.Reason(err)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		space := ""
		if free, ok := s.disk.free(s.dir); ok {
			space = fmt.Sprintf(", %s free", size(free))
		}
		return fmt.Errorf("%s: %w: needs %s%s; make room or lower checkpoint.keep, then run again to resume from the checkpoint before it",
			path, err, size(need), space)
	case errors.Is(err, syscall.EFBIG):
		return fmt.Errorf("%s: %w: needs %s; raise the limit on file sizes (ulimit -f) or choose a run.dir on another disk", path, err, size(need))
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%s: %w: make the folder writable or choose another run.dir", path, err)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// size is a number of bytes for people.
func size(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}
