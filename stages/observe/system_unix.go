//go:build linux || darwin || freebsd

package observe

import (
	"time"

	"golang.org/x/sys/unix"
)

// FreeSpace is how many bytes a user may still write where dir is.
func FreeSpace(dir string) (int64, bool) {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0, false
	}
	return int64(st.Bavail) * int64(st.Bsize), true //nolint:unconvert // not an int64 everywhere
}

// ProcessorTime is what this process has used of all processors; 0 where that isn't known.
func ProcessorTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(unix.TimevalToNsec(u.Utime) + unix.TimevalToNsec(u.Stime))
}
