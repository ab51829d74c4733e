package integration

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flowrun/flowrun/stages/volume"
)

// changes are what may happen to a scan before its first patch.
var changes = []struct {
	name string
	do   func(n *night, path string)
}{
	{"replaced", func(n *night, path string) {
		b, err := os.ReadFile(n.path("scans", plain)) // a good scan, but another
		n.check(err)
		n.check(os.WriteFile(path+".new", b, 0o666))
		n.check(os.Rename(path+".new", path))
	}},
	{"truncated", func(n *night, path string) {
		info, err := os.Stat(path)
		n.check(err)
		n.check(os.Truncate(path, n.random.Int64N(info.Size())))
	}},
	{"truncated while it is opened", func(n *night, path string) {
		f, err := lease(path)
		if err != nil {
			n.check(os.Truncate(path, 400))
			return
		}
		n.r.until(func() bool { return wanted(f) })
		info, err := f.Stat()
		n.check(err)
		n.check(f.Truncate(n.random.Int64N(info.Size())))
		n.check(f.Close())
	}},
	{"truncated while it is read", func(n *night, path string) {
		n.whenRead(path, func() error {
			info, err := os.Stat(path)
			if err == nil {
				err = os.Truncate(path, n.random.Int64N(info.Size()))
			}
			return err
		})
	}},
	{"replaced while it is read", func(n *night, path string) {
		n.whenRead(path, func() error {
			b, err := os.ReadFile(n.path("scans", plain))
			if err == nil {
				err = os.WriteFile(path+".new", b, 0o666)
			}
			if err == nil {
				err = os.Rename(path+".new", path)
			}
			return err
		})
	}},
	{"unreadable", func(n *night, path string) { n.whenRead(path, func() error { return unix.EIO }) }},
	{"removed", func(n *night, path string) { n.check(os.Remove(path)) }},
	{"overwritten", func(n *night, path string) { n.spoil(filepath.Base(path)) }},
}

// whenRead has one of the calls by which a scan is read wait for do; where its error is a system call's, that call fails with it
// and so do all after it. It waits for that.
func (n *night) whenRead(path string, do func() error) {
	n.Helper()
	if n.gate == nil {
		n.Skip("no gate here")
	}
	var mu sync.Mutex
	var failing syscall.Errno
	left, done := n.random.IntN(3), make(chan error, 1)
	n.gate.watch(func(c call) error {
		if c.name != "read" || c.path != path {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if failing != 0 {
			return failing
		}
		if left--; left != -1 {
			return nil
		}
		err := do()
		if errno, ok := errors.AsType[syscall.Errno](err); ok {
			failing, err = errno, nil
		}
		done <- err
		if failing != 0 {
			return failing
		}
		return nil
	})
	select {
	case err := <-done:
		n.check(err)
	case <-n.r.over:
	}
	mu.Lock()
	defer mu.Unlock()
	if failing == 0 {
		n.gate.watch(nil)
	}
}

// A scan that changes before a patch of it was trained might as well have been bad from the start, whatever else happens.
// Later its places stay, no patch of it is trained any more, and those of other scans are trained as ever.
func TestScansChange(t *testing.T) {
	t.Parallel()
	for round := range nights(2) {
		change := changes[(round+int(*seed%uint64(len(changes))))%len(changes)]
		t.Run(fmt.Sprintf("%s %d", change.name, round), func(t *testing.T) {
			n := newNight(t, round, "shuffle.volumes=1", "read.ahead=1", "read.cache=")
			n.must(append(n.words, "run.dir=whole", "train.epochs=1")...)
			n.look("whole")
			order := slices.Concat(slices.SortedFunc(maps.Values(n.tags), func(a, b []volume.Tag) int { return a[0].Seq - b[0].Seq })...)
			clear(n.tags)
			slices.Reverse(order)
			victim := order[slices.IndexFunc(order, func(t volume.Tag) bool { return t.Scan != plain })].Scan // a checksum ends it
			tiles := 0                                                                                        // of both epochs
			for _, tag := range order {
				if tag.Scan == victim {
					tiles += 2
				}
			}
			before := n.file("scans", victim)
			n.spoil(victim)
			n.must(append(n.words, "run.dir=without")...)
			if why := n.reasons("without"); len(why) != 1 || why[victim] == "" {
				t.Fatalf("quarantined: %v (want %s)", why, victim)
			}
			without := n.trained("without")
			n.write(filepath.Join("scans", victim), string(before))

			n.begin()
			goal := 1 + n.random.IntN(4)
			n.r.until(func() bool { return n.reached(run) >= goal })
			change.do(n, n.path("scans", victim))
			// A scan that isn't there at a resume is none of the run's (TestScansThatMoved), and without a checkpoint a run begins anew.
			if change.name != "removed" && n.sound(run) > 0 && n.random.IntN(2) == 0 && n.moment() {
				n.r.signal(unix.SIGKILL)
				n.r.wait()
				n.look(run)
				n.begin()
			}
			if o := n.r.wait(); o.code != 0 {
				t.Fatalf("exit %d: %s", o.code, o.said())
			}
			n.swept(run)
			trained := n.trained(run)
			ofVictim := 0
			for key := range trained {
				if strings.HasPrefix(key, victim+" ") {
					ofVictim++
					delete(trained, key)
				}
			}
			n.sameTrained(without, trained)
			why := n.reasons(run)
			if len(why) == 0 && ofVictim == tiles {
				t.Skip("it had been read for the last time")
			}
			if len(why) != 1 || why[victim] == "" {
				t.Fatalf("quarantined: %v (want %s)", why, victim)
			}
			if change.name == "unreadable" && !strings.Contains(why[victim], "input/output error") {
				t.Errorf("it says %s", why[victim])
			}
			t.Logf("after step %d: %s; %d of its patches had been trained", goal, n.reasons(run)[victim], ofVictim)
			if ofVictim == 0 {
				n.sameRun("without", run)
			}
		})
	}
}
