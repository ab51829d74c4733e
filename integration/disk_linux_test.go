package integration

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A disk that fills up in the middle of a checkpoint ends the run; the checkpoints before stay whole, and with room again
// the run goes on from them.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	words := []string{"train.yaml", "train.max_steps=40"}
	p.must(append(words, "run.dir=whole")...)
	disk := p.path("disk")
	p.check(os.Mkdir(disk, 0o777))
	if err := unix.Mount("none", disk, "tmpfs", 0, "size=700k"); errors.Is(err, unix.EPERM) {
		t.Skip("no right to mount a small disk")
	} else {
		p.check(err)
	}
	defer func() { _ = unix.Unmount(disk, unix.MNT_DETACH) }()
	words = append(words, "run.dir=disk/run")
	p.refused(1, words, "checkpoint: disk/run/checkpoints/step-", "no space left on device", "make room", "run again to resume")
	n := p.sound("disk/run")
	if n == 0 {
		t.Fatal("no checkpoint was left")
	}
	p.swept("disk/run")
	p.refused(1, words, "no space left on device") // as long as it is full
	p.sound("disk/run")
	p.check(unix.Mount("none", disk, "tmpfs", unix.MS_REMOUNT, "size=100m"))
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
	if p.sound("run") == 0 {
		t.Error("the checkpoints are gone")
	}
	p.must("train.yaml")
}
