package observe

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/gofrs/flock"
)

// LockRun takes a run's folder for this process; two runs in one folder would overwrite each other. The lock ends with
// unlock or with the process, however it ends; the file .lock stays.
func LockRun(dir string) (unlock func(), err error) {
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
	return func() {
		_ = os.Truncate(path, 0)
		_ = lock.Unlock()
	}, nil
}
