package observe

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/gofrs/flock"
)

// RunLock is a process's hold of a run's folder.
type RunLock struct {
	dir, path string
	lock      *flock.Flock
	file      os.FileInfo
}

// LockRun takes a run's folder for this process; two runs in one folder would overwrite each other. The lock ends with
// Unlock or with the process, however it ends; the file .lock stays.
func LockRun(dir string) (*RunLock, error) {
	path := filepath.Join(dir, ".lock")
	lock := flock.New(path, flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o666))
	ok, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if !ok {
		who := ""
		if b, err := os.ReadFile(path); err == nil {
			if pid, err := strconv.Atoi(string(bytes.TrimSpace(b))); err == nil {
				who = fmt.Sprintf(" (pid %d)", pid)
			}
		}
		return nil, fmt.Errorf("another flowrun%s is running in %s: choose another folder or stop it", who, dir)
	}
	// Who holds it is only told to people: a folder that can't be written to fails where it matters.
	_ = os.WriteFile(path, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o666)
	l := &RunLock{dir: dir, path: path, lock: lock}
	if l.file, err = os.Stat(path); err != nil {
		_ = lock.Unlock()
		return nil, fmt.Errorf("lock: %w", err)
	}
	return l, nil
}

// Held is an error once the folder isn't the one that was locked: somebody has removed it, and another run may be in what has its
// name. Nothing should be written there then. No lock is held for ever.
func (l *RunLock) Held() error {
	if l == nil {
		return nil
	}
	file, err := os.Stat(l.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil // the folder may be away for a moment
	}
	if err != nil || !os.SameFile(file, l.file) {
		return fmt.Errorf("%s was removed or replaced while the run was in it; nothing more is written there: begin anew", l.dir)
	}
	return nil
}

// Unlock ends the hold.
func (l *RunLock) Unlock() {
	if l.Held() == nil {
		_ = os.Truncate(l.path, 0)
	}
	_ = l.lock.Unlock()
}
