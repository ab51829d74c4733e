//go:build !(linux || darwin || freebsd)

package queue

// freeBytes isn't known here.
func freeBytes(string) (int64, bool) { return 0, false }
