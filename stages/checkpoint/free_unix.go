//go:build linux || darwin || freebsd

package checkpoint

import "golang.org/x/sys/unix"

// free is how many bytes a user may still write where dir is.
func free(dir string) (int64, bool) {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0, false
	}
	return int64(st.Bavail) * int64(st.Bsize), true //nolint:unconvert // not an int64 everywhere
}
