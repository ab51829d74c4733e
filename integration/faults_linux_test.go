package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// faults are what may happen to a running process. Each waits until it is through, and says whether it hit.
var faults = []struct {
	name string
	hit  func(n *night) bool
}{
	{"killed", func(n *night) bool {
		n.r.signal(unix.SIGKILL)
		return n.r.wait().code < 0
	}},
	{"stopped", func(n *night) bool {
		n.r.signal([]os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP}[n.random.IntN(3)])
		o := n.r.wait()
		if o.code > 0 && o.code != 75 { // -1: it didn't listen yet
			n.Fatalf("exit %d: %s", o.code, o.said())
		}
		return o.code != 0
	}},
	{"frozen", func(n *night) bool {
		n.r.signal(unix.SIGSTOP)
		n.sleep(300)
		n.r.signal(unix.SIGCONT)
		return true
	}},
	{"disk full", (*night).fullDisk},
	{"disk full for good", (*night).noSpace},
	{"folder read-only", (*night).readOnly},
	{"clock jumps", func(n *night) bool {
		if n.clock == nil {
			return false
		}
		err := n.clock.jump(n.sometime()) // fails where the process is over
		return err == nil
	}},
	{"clock jumps while frozen", func(n *night) bool {
		if n.clock == nil {
			return false
		}
		n.r.signal(unix.SIGSTOP)
		n.sleep(30)
		err := n.clock.jump(n.sometime())
		n.r.signal(unix.SIGCONT)
		return err == nil
	}},
	{"scans slow to open", (*night).slowScans},
	{"disk slow", (*night).slowDisk},
	{"disk stands still", (*night).deadDisk},
	{"disk fails", (*night).badDisk},
	{"scan unreadable for a moment", (*night).badMoment},
}

// size sets how much the disk holds: 0 bytes more than it does, or plenty.
func (n *night) size(plenty bool) {
	n.Helper()
	bytes := int64(1 << 30)
	if !plenty {
		var s unix.Statfs_t
		n.check(unix.Statfs(n.path("disk"), &s))
		bytes = max(1, int64(s.Blocks-s.Bfree)) * s.Bsize
	}
	n.check(unix.Mount("none", n.path("disk"), "tmpfs", unix.MS_REMOUNT, "size="+strconv.FormatInt(bytes, 10)))
}

// paused counts how often the process has said that it waits for room.
func (n *night) paused() int { return strings.Count(n.r.stderr.String(), `"event":"paused"`) }

func (n *night) fullDisk() bool {
	if !n.small {
		return false
	}
	before := n.paused()
	n.size(false)
	hit := n.r.until(func() bool { return n.paused() > before })
	n.sleep(100)
	n.size(true)
	return hit
}

// noSpace ends a run that waits for room.
func (n *night) noSpace() bool {
	if !n.small {
		return false
	}
	defer n.size(true)
	before := n.paused()
	n.size(false)
	if !n.r.until(func() bool { return n.paused() > before }) {
		return false
	}
	n.sleep(100)
	n.r.signal(unix.SIGTERM)
	o := n.r.wait()
	if o.code != 1 || !strings.Contains(strings.Join(o.said(), "\n"), "no space left on device") {
		n.Fatalf("exit %d: %s", o.code, o.said())
	}
	return true
}

// readOnly ends a run at its next checkpoint, and refuses to begin.
func (n *night) readOnly() bool {
	if !n.small {
		return false
	}
	dir := n.path(run)
	n.check(os.MkdirAll(dir, 0o777)) // it may not have come so far
	n.check(unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	defer func() { n.check(unix.Unmount(dir, unix.MNT_DETACH)) }()
	n.check(unix.Mount("none", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	o := n.r.wait()
	if o.code == 0 {
		return false // its last checkpoint was written
	}
	if o.code == 2 { // it had hardly begun
		n.tells(o, 2, "run.dir", "read-only file system")
	} else {
		n.tells(o, 1, "read-only file system")
	}
	n.tells(n.run(n.words...), 2, "run.dir", "read-only file system", "choose a folder")
	return true
}

// slowScans has whoever opens a scan wait, by a lease, for as long as a disk takes that has gone to sleep.
func (n *night) slowScans() bool {
	end := time.After(2 * time.Second)
	var held []*os.File
	defer func() {
		for _, f := range held {
			_ = f.Close() // which ends the lease
		}
	}()
	for _, path := range n.scans() {
		if f, err := lease(path); err == nil {
			held = append(held, f)
		}
	}
	hit := false
	for len(held) > 0 {
		i := slices.IndexFunc(held, wanted)
		if i >= 0 {
			hit = true
			n.sleep(150)
			n.check(held[i].Close())
			held = slices.Delete(held, i, i+1)
		}
		select {
		case <-end:
			return hit
		case <-n.r.over:
			return hit
		case <-time.After(time.Millisecond):
		}
	}
	return hit
}

// own says that a call is about one of the night's files.
func (n *night) own(c call) bool { return strings.HasPrefix(c.path, n.dir+"/") }

// slowDisk has each call wait for a while, for some time.
func (n *night) slowDisk() bool {
	if n.gate == nil {
		return false
	}
	var mu sync.Mutex
	hits := 0
	n.gate.watch(func(c call) error {
		if n.own(c) {
			mu.Lock()
			hits++
			wait := time.Duration(n.random.IntN(8000)) * time.Microsecond
			mu.Unlock()
			time.Sleep(wait)
		}
		return nil
	})
	select {
	case <-n.r.over:
	case <-time.After(time.Second):
	}
	n.gate.watch(nil)
	mu.Lock()
	defer mu.Unlock()
	return hits > 0
}

// deadDisk has every call wait until the disk is back, and often ends the process before that.
func (n *night) deadDisk() bool {
	if n.gate == nil {
		return false
	}
	back, hit, told := make(chan struct{}), make(chan struct{}), false
	once := sync.OnceFunc(func() { close(hit) })
	n.gate.watch(func(c call) error {
		if n.own(c) {
			once()
			<-back
		}
		return nil
	})
	select {
	case <-hit:
		n.sleep(100)
		switch n.random.IntN(3) {
		case 0:
			n.r.signal(unix.SIGKILL)
			n.r.wait()
		case 1:
			n.r.signal(unix.SIGTERM)
			told = true
		}
	case <-n.r.over:
	case <-time.After(2 * time.Second):
	}
	n.gate.watch(nil)
	close(back)
	if told {
		if o := n.r.wait(); o.code > 0 && o.code != 75 {
			n.Fatalf("exit %d: %s", o.code, o.said())
		}
	}
	select {
	case <-hit:
		return true
	default:
		return false
	}
}

// badDisk has a write, a sync or a rename in the run's folder fail. It may end the run, and no more than that.
func (n *night) badDisk() bool {
	if n.gate == nil {
		return false
	}
	var mu sync.Mutex
	failed := ""
	after := n.random.IntN(12)
	dir := n.path(run) + "/"
	n.gate.watch(func(c call) error {
		mu.Lock()
		defer mu.Unlock()
		if !strings.HasPrefix(c.path, dir) || c.name == "read" || c.name == "open" || failed != "" {
			return nil
		}
		if after--; after >= 0 {
			return nil
		}
		failed = c.name + " " + filepath.Base(c.path)
		return unix.EIO
	})
	told := func() string {
		mu.Lock()
		defer mu.Unlock()
		return failed
	}
	n.r.until(func() bool { return told() != "" })
	n.gate.watch(nil)
	n.sleep(300) // it may go on
	n.r.signal(unix.SIGTERM)
	if o := n.r.wait(); o.code > 1 && o.code != 75 {
		n.Fatalf("exit %d: %s", o.code, o.said())
	}
	n.Log(told())
	return told() != ""
}

// badMoment has one read of a scan fail, as where a network folder is away for a moment. Nothing is lost by it.
func (n *night) badMoment() bool {
	if n.gate == nil {
		return false
	}
	why := []unix.Errno{unix.EIO, unix.ESTALE, unix.ETIMEDOUT}[n.random.IntN(3)]
	hit := make(chan struct{})
	var once sync.Once
	dir := n.path("scans") + "/"
	n.gate.watch(func(c call) (err error) {
		if c.name == "read" && strings.HasPrefix(c.path, dir) {
			once.Do(func() {
				close(hit)
				err = why
			})
		}
		return err
	})
	defer n.gate.watch(nil)
	select {
	case <-hit:
		return true
	case <-n.r.over:
		return false
	}
}

func (n *night) scans() []string {
	n.Helper()
	files, err := filepath.Glob(n.path("scans", "*.nii*"))
	n.check(err)
	return files
}

// lease opens a file that nobody else has open, and has others wait who want to open it. It ends with the file.
func lease(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// wanted says whether somebody waits for the end of a lease.
func wanted(f *os.File) bool {
	kind, err := unix.FcntlInt(f.Fd(), unix.F_GETLEASE, 0)
	return err == nil && kind != unix.F_WRLCK
}
