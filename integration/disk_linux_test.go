package integration

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A disk that fills up makes a run wait: with room again it goes on by itself, to the same end. A stop while it waits ends it;
// the checkpoints before stay whole, and the run goes on from them.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	words := []string{"train.yaml", "train.max_steps=40"}
	p.must(append(words, "run.dir=whole")...)
	resize := p.disk("700k")
	words = append(words, "run.dir=disk/run")
	paused := func(r *process) {
		t.Helper()
		if !r.until(func() bool { return strings.Contains(r.stderr.String(), `"event":"paused"`) }) {
			t.Fatalf("it didn't wait: %s", r.stderr.String())
		}
	}
	r := p.start(words...)
	paused(r)
	n := p.sound("disk/run")
	if n == 0 {
		t.Fatal("no checkpoint was left")
	}
	resize("100m")
	if o := r.wait(); o.code != 0 || !strings.Contains(o.stderr, `"event":"resumed"`) {
		t.Fatalf("exit %d: %s", o.code, o.stderr)
	}
	p.sameRun("whole", "disk/run")
	if got := p.events("disk/run", "paused"); len(got) != 1 || !strings.Contains(fmt.Sprint(got[0]["error"]), "no space left on device") {
		t.Errorf("the log says %v", got)
	}

	p.check(os.RemoveAll(p.path("disk", "run")))
	resize("700k")
	r = p.start(words...)
	paused(r)
	r.signal(unix.SIGTERM)
	p.tells(r.wait(), 1, "no space left on device", "make room")
	p.sound("disk/run")
	p.swept("disk/run")
	resize("100m")
	p.must(words...)
	p.sameRun("whole", "disk/run")
}

// A limit on the size of files ends a run likewise, and needs no rights.
func TestFileSizeLimit(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.must("train.yaml", "train.max_steps=9")
	r := p.exec("sh", "-c", "ulimit -f 64; exec "+flowrun()+" train.yaml")
	p.tells(r.wait(), 1, "checkpoint: run/checkpoints/step-", "file too large", "ulimit -f")
	r = p.exec("sh", "-c", "ulimit -n 8; exec "+flowrun()+" train.yaml run.dir=few")
	p.tells(r.wait(), 2, "too many open files", "ulimit -n")
	if p.sound("run") == 0 {
		t.Error("the checkpoints are gone")
	}
	p.must("train.yaml")
}

// disk makes the folder disk a small one, until the test ends. Without the right to, the test is skipped.
func (p *place) disk(size string) (resize func(string)) {
	p.Helper()
	disk := p.path("disk")
	p.check(os.Mkdir(disk, 0o777))
	if err := unix.Mount("none", disk, "tmpfs", 0, "size="+size); errors.Is(err, unix.EPERM) {
		p.Skip("no right to mount a small disk")
	} else {
		p.check(err)
	}
	p.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	return func(size string) {
		p.Helper()
		p.check(unix.Mount("none", disk, "tmpfs", unix.MS_REMOUNT, "size="+size))
	}
}
