package observe

import (
	"os"
	"strconv"
	"strings"
)

// Available is how much memory the machine, or the container where that has less, can still give, of how much; 0 of 0
// where the system doesn't say.
func Available() (free, total int64) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			continue
		}
		switch f[0] {
		case "MemTotal:":
			total = kib << 10
		case "MemAvailable:":
			free = kib << 10
		}
	}
	number := func(path string) (int64, bool) {
		text, err := os.ReadFile(path)
		if err != nil {
			return 0, false
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		return n, err == nil
	}
	limit, limited := number("/sys/fs/cgroup/memory.max")
	used, known := number("/sys/fs/cgroup/memory.current")
	if stat, err := os.ReadFile("/sys/fs/cgroup/memory.stat"); err == nil && known {
		for line := range strings.Lines(string(stat)) {
			if n, ok := strings.CutPrefix(line, "inactive_file "); ok { // the system's cache: given back when asked for
				cache, _ := strconv.ParseInt(strings.TrimSpace(n), 10, 64)
				used = max(0, used-cache)
			}
		}
	}
	if limited && known && limit < total {
		free, total = min(free, limit-used), limit
	}
	return free, total
}
