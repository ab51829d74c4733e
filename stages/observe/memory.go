package observe

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Available is how much memory the machine, or the control group of this process or one above it where that has less, can still
// give, of how much; 0 of 0 where the system doesn't say. What the system has only cached counts as free.
func Available() (free, total int64) { return available("/") }

// available is Available of the system whose files are below root.
func available(root string) (free, total int64) {
	machine := counts(filepath.Join(root, "proc/meminfo"), 1<<10)
	free, total = machine["MemAvailable:"], machine["MemTotal:"]
	groups := filepath.Join(root, "sys/fs/cgroup")
	text, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		text = []byte("0::/\n0:memory:/\n")
	}
	if total == 0 {
		return 0, 0
	}
	for line := range strings.Lines(string(text)) { // hierarchy:controllers:path
		of := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(of) < 3 {
			continue
		}
		look, top := unified, groups
		switch {
		case strings.Contains(","+of[1]+",", ",memory,"):
			look, top = legacy, filepath.Join(groups, "memory")
		case of[1] != "":
			continue
		}
		for path := filepath.Clean("/" + of[2]); ; path = filepath.Dir(path) { // a container may show its own group at the top
			if left, limit, ok := look(filepath.Join(top, path)); ok && limit < total {
				free, total = min(free, left), limit
			} else if ok {
				free = min(free, left)
			}
			if path == "/" {
				break
			}
		}
	}
	return max(free, 0), total
}

// unified is what a group of cgroup v2 has left of its limit. Above memory.high it isn't ended, but slowed down to a crawl.
func unified(dir string) (left, limit int64, ok bool) {
	used, known := number(filepath.Join(dir, "memory.current"))
	hard, limited := number(filepath.Join(dir, "memory.max"))
	if soft, throttled := number(filepath.Join(dir, "memory.high")); throttled && (!limited || soft < hard) {
		hard, limited = soft, true
	}
	stat := counts(filepath.Join(dir, "memory.stat"), 1)
	used -= stat["inactive_file"] + stat["active_file"] + stat["slab_reclaimable"]
	return hard - max(used, 0), hard, known && limited
}

// legacy is unified for cgroup v1, where no limit is a number beyond all memory.
func legacy(dir string) (left, limit int64, ok bool) {
	used, known := number(filepath.Join(dir, "memory.usage_in_bytes"))
	limit, limited := number(filepath.Join(dir, "memory.limit_in_bytes"))
	stat := counts(filepath.Join(dir, "memory.stat"), 1)
	used -= stat["total_inactive_file"] + stat["total_active_file"]
	return limit - max(used, 0), limit, known && limited
}

// number is what a file holds, where it is a number.
func number(path string) (int64, bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n, err == nil
}

// counts are the numbers of a file of names and numbers, in units.
func counts(path string, unit int64) map[string]int64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	all := map[string]int64{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		if n, err := strconv.ParseInt(f[1], 10, 64); err == nil {
			all[f[0]] = n * unit
		}
	}
	return all
}
