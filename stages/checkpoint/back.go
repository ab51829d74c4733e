package checkpoint

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/flowrun/flowrun/stages/volume"
)

// stop is the reason of a checkpoint that isn't there because of its step.
const stop = "stop"

// Before loads the newest checkpoint of at most a step that verifies and that the run has made whether it was stopped or not.
// The snapshot is nil where there is none.
func (s *Store) Before(step int) (snapshot *volume.Snapshot, path string, err error) {
	files, err := s.files()
	if err != nil {
		return nil, "", err
	}
	for _, f := range slices.Backward(files) {
		path := s.path(f)
		if f > step {
			continue
		}
		if info, err := Peek(path); err != nil || !info.Checkpoint || info.Step != f || info.Reason == stop {
			continue
		}
		if snapshot, err := Load(path); err == nil {
			return snapshot, path, nil
		}
	}
	return nil, "", nil
}

// Suspect takes the checkpoints after a step out of the run, damaged ones included, for it goes back there because of what it
// found behind: the newest of them is renamed step-….safetensors.suspect, for whoever wants to look at it, and the others,
// and suspects of an earlier time, are removed.
func (s *Store) Suspect(step int) error {
	files, err := s.files()
	if err != nil {
		return err
	}
	later, _ := slices.BinarySearch(files, step+1)
	if files = files[later:]; len(files) == 0 {
		return nil
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return s.explain(s.dir, 0, err)
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suspect); ok && stepName.MatchString(name) {
			path := filepath.Join(s.dir, e.Name())
			if err := os.Remove(path); err != nil {
				return s.explain(path, 0, err)
			}
		}
	}
	newest := files[len(files)-1]
	for _, f := range files {
		path := s.path(f)
		if f == newest {
			err = os.Rename(path, path+suspect)
		} else {
			err = os.Remove(path)
		}
		if err != nil {
			return s.explain(path, 0, err)
		}
		delete(s.damaged, f)
	}
	s.saved = -1
	s.tidy()
	return nil
}

// suspect is what follows the name of a checkpoint that a run took back.
const suspect = ".suspect"

// SetAside renames the checkpoints after a step, damaged ones included, so that a run that goes on from that step
// neither counts nor finds them: step-….safetensors.aside, .aside2 and so on. Nothing is removed. It returns the new
// paths.
func (s *Store) SetAside(step int) ([]string, error) {
	files, err := s.files()
	if err != nil {
		return nil, err
	}
	var moved []string
	for _, f := range files {
		if f <= step {
			continue
		}
		path := s.path(f)
		to := path + ".aside"
		for n := 2; ; n++ {
			if _, err := os.Lstat(to); errors.Is(err, fs.ErrNotExist) {
				break
			} else if err != nil {
				return moved, s.explain(path, 0, err)
			}
			to = path + ".aside" + strconv.Itoa(n)
		}
		if err := os.Rename(path, to); err != nil {
			return moved, s.explain(path, 0, err)
		}
		delete(s.damaged, f)
		moved = append(moved, to)
	}
	if len(moved) > 0 {
		s.tidy()
	}
	return moved, nil
}
