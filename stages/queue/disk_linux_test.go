package queue

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flowrun/flowrun/stages/volume"
)

// 12: the disk of the store fills up in the middle of a run: that is said, everybody waits, and with room again they go on by
// themselves. Nothing that was stored is lost.
func TestDiskFillsUp(t *testing.T) {
	t.Parallel()
	disk := t.TempDir()
	if err := unix.Mount("none", disk, "tmpfs", 0, "size=160m"); errors.Is(err, unix.EPERM) {
		t.Skip("no right to mount a small disk")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	b := newBench(t, func(o *Options) { o.Server.Dir, o.Server.Disk, o.Bytes = filepath.Join(disk, "store"), 120<<20, 8<<20 })
	q, tq := b.open(Worker), b.open(Trainer)
	in := b.trainer(tq, 8)
	const n = 9
	s := ref("a", 0, 1, 1)
	b.send(q, s, n, 0, 1, 2)

	ballast, err := os.Create(filepath.Join(disk, "ballast"))
	b.check(err)
	free, _ := freeBytes(disk)
	b.check(ballast.Truncate(free))
	b.check(unix.Fallocate(int(ballast.Fd()), 0, 0, free))
	b.check(ballast.Close())
	sent := make(chan error, 1)
	go func() {
		for i := 3; i < n; i++ {
			p := patch(s, i, n)
			p.Size = [3]int{64, 64, 8}
			p.Samples = make([]int16, 64*64*8)
			if err := q.PublishPatch(b.ctx, p); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	b.eventually("it is said", func() bool { return strings.Contains(b.words(), "no space left") })
	if len(sent) > 0 || !strings.Contains(b.words(), disk) {
		t.Errorf("%v; said:\n%s", sent, b.words())
	}
	b.check(os.Remove(ballast.Name()))
	seen := map[int]bool{}
	for range n {
		tag, ok := b.next(in, 20*time.Second)
		if !ok || seen[tag.Tile] {
			t.Fatalf("%v, %v after %v; said:\n%s", tag, ok, seen, b.words())
		}
		seen[tag.Tile] = true
		b.check(in.Durable(b.ctx, []volume.Tag{tag}))
	}
	b.check(<-sent)
	b.eventually("nothing is left", func() bool {
		_, err := tq.Sweep(b.ctx) // as the trainer does from time to time
		b.check(err)
		return b.stored(tq) == 0
	})
}
