package observe

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
)

// Resources is the resident memory of the process in bytes, 0 where the system doesn't say, and the number of
// goroutines.
func Resources() (rss int64, goroutines int) {
	goroutines = runtime.NumGoroutine()
	b, err := os.ReadFile("/proc/self/statm") // pages: size, resident, …
	if err != nil {
		return 0, goroutines
	}
	if f := bytes.Fields(b); len(f) > 1 {
		pages, _ := strconv.ParseInt(string(f[1]), 10, 64)
		rss = pages * int64(os.Getpagesize())
	}
	return rss, goroutines
}
