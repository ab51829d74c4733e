package observe

import (
	"os"
	"path/filepath"
	"testing"
)

// What is left is the least of the machine's and of every group's above the process; caches are free.
func TestAvailable(t *testing.T) {
	const meminfo = "MemTotal:        1000 kB\nMemFree:          100 kB\nMemAvailable:     600 kB\nHugePages_Total:       0\n"
	for _, c := range []struct {
		name        string
		files       map[string]string
		free, total int64
	}{
		{"no word", map[string]string{}, 0, 0},
		{"a machine", map[string]string{"proc/meminfo": meminfo}, 600 << 10, 1000 << 10},
		{"no limits", map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n",
			"sys/fs/cgroup/a/memory.high": "max\n", "sys/fs/cgroup/a/memory.current": "5000\n"}, 600 << 10, 1000 << 10},
		{"a group", map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "50000\n",
			"sys/fs/cgroup/a/b/memory.current": "45000\n", "sys/fs/cgroup/a/b/memory.stat": "anon 30000\ninactive_file 3000\nactive_file 2000\nslab_reclaimable 100\n"},
			50000 - (45000 - 5100), 50000},
		{"the group above it", map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "50000\n",
			"sys/fs/cgroup/a/b/memory.current": "1000\n", "sys/fs/cgroup/a/memory.max": "60000\n", "sys/fs/cgroup/a/memory.current": "59000\n"}, 1000, 50000},
		{"throttled first", map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "50000\n",
			"sys/fs/cgroup/memory.high": "40000", "sys/fs/cgroup/memory.current": "39000\n"}, 1000, 40000},
		{"a container that sees its group at the top", map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/system.slice/c.scope\n",
			"sys/fs/cgroup/memory.max": "50000\n", "sys/fs/cgroup/memory.current": "20000\n"}, 30000, 50000},
		{"v1", map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/c\n0::/\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n", "sys/fs/cgroup/memory/memory.usage_in_bytes": "700000\n",
			"sys/fs/cgroup/memory/c/memory.limit_in_bytes": "50000\n", "sys/fs/cgroup/memory/c/memory.usage_in_bytes": "45000\n",
			"sys/fs/cgroup/memory/c/memory.stat": "inactive_file 1\ntotal_inactive_file 3000\ntotal_active_file 1000\n"}, 9000, 50000},
		{"above its limit", map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "50000\n",
			"sys/fs/cgroup/memory.current": "59000\n"}, 0, 50000},
	} {
		root := t.TempDir()
		for name, text := range c.files {
			path := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		if free, total := available(root); free != c.free || total != c.total {
			t.Errorf("%s: %d of %d bytes (want %d of %d)", c.name, free, total, c.free, c.total)
		}
	}
}
