package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flowrun/flowrun/stages/files"
	"github.com/flowrun/flowrun/stages/volume"
	"pgregory.net/rapid"
)

// Child processes of the tests below save for as long as they live.
func TestMain(m *testing.M) {
	if dir := os.Getenv("CHECKPOINT_TEST_SAVE"); dir != "" {
		s, err := Open(dir, Options{Keep: 2, Best: "psnr"})
		if err != nil {
			panic(err)
		}
		next := 0
		latest, _, skipped, err := s.Latest()
		if err != nil || len(skipped) > 0 {
			panic(fmt.Sprint(skipped, err))
		}
		if latest != nil {
			next = latest.Step + 1
		}
		for step := next; ; step++ {
			if _, err := s.Save(context.Background(), big(step)); err != nil {
				panic(err)
			}
		}
	}
	os.Exit(m.Run())
}

// chunk is the size of the buffers between arrays and files.
const chunk = 1 << 18

// big is a snapshot of more than a few chunks.
func big(step int) *volume.Snapshot {
	s := snap(step, float64(step*7%13))
	data := make([]float32, 5*chunk/4)
	for i := range data {
		data[i] = float32(step + i)
	}
	s.Arrays = append(s.Arrays, volume.Array{Name: "w", Shape: []int{len(data)}, Data: data})
	return s
}

func TestKilledAtRandomMoments(t *testing.T) {
	dir := t.TempDir()
	reached, temps := -1, 0
	for i := range 12 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), "CHECKPOINT_TEST_SAVE="+dir)
		var stderr strings.Builder
		child.Stderr = &stderr
		check(t, child.Start())
		time.Sleep(time.Duration(60+rand.IntN(100)) * time.Millisecond)
		check(t, child.Process.Signal(syscall.SIGKILL))
		_ = child.Wait()
		if stderr.Len() > 0 {
			t.Fatalf("kill %d: %s", i, stderr.String())
		}
		left, err := filepath.Glob(filepath.Join(dir, "*.tmp"))
		check(t, err)
		temps += len(left)
		s := open1(t, dir, 2, "psnr")
		got, _, skipped, err := s.Latest()
		if err != nil || len(skipped) > 0 {
			t.Fatalf("kill %d: skipped %v, %v", i, skipped, err)
		}
		if got == nil {
			continue
		}
		if got.Step < reached {
			t.Fatalf("kill %d: step %d after %d", i, got.Step, reached)
		}
		if err := same(got.Arrays, big(got.Step).Arrays); err != nil {
			t.Fatalf("kill %d: %v", i, err)
		}
		reached = got.Step
		for _, link := range []string{LastName, BestName} {
			if err := Verify(filepath.Join(dir, link)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("kill %d: %v", i, err)
			}
		}
	}
	if reached < 1 {
		t.Errorf("the killed processes reached step %d", reached)
	}
	t.Logf("reached step %d, %d temporary files swept", reached, temps)
}

// file is a small checkpoint.
func file(t *testing.T) []byte {
	t.Helper()
	x := snap(1, 30)
	x.Tags = nil
	path, err := open1(t, t.TempDir(), 1, "psnr").Save(t.Context(), x)
	check(t, err)
	b, err := os.ReadFile(path)
	check(t, err)
	return b
}

// Every beginning of a checkpoint is refused, and so is one with anything after its end.
func TestTornAtEveryByte(t *testing.T) {
	whole := file(t)
	path := filepath.Join(t.TempDir(), "torn")
	for n := range whole {
		refused(t, path, whole[:n], fmt.Sprintf("cut at %d", n))
	}
	refused(t, path, append(whole, 0), "one byte more")
	// A file system may also give zeros for what was never written.
	for n := 0; n < len(whole)-8; n += 7 {
		b := make([]byte, len(whole))
		copy(b, whole[:n])
		refused(t, path, b, fmt.Sprintf("zeros from %d", n))
	}
}

func TestEveryFlippedBitIsNoticed(t *testing.T) {
	whole := file(t)
	path := filepath.Join(t.TempDir(), "flipped")
	for i := range whole {
		bit := byte(1) << (i % 8)
		whole[i] ^= bit
		refused(t, path, whole, fmt.Sprintf("bit of byte %d", i))
		whole[i] ^= bit
	}
}

func refused(t *testing.T, path string, b []byte, what string) {
	t.Helper()
	check(t, os.WriteFile(path, b, 0o666))
	if err := Verify(path); err == nil {
		t.Errorf("%s: verified", what)
	}
	if got, err := Load(path); err == nil || got != nil {
		t.Errorf("%s: loaded", what)
	} else if !strings.HasPrefix(err.Error(), path+": ") {
		t.Errorf("%s: %v", what, err)
	}
}

// full is a file that fails once so many bytes were written, or at a step after that.
type full struct {
	files.File
	room int
	at   string
	err  error
}

func (f *full) Write(b []byte) (int, error) {
	if f.at == "write" && len(b) > f.room {
		n, _ := f.File.Write(b[:f.room])
		f.room = 0
		return n, f.err
	}
	f.room -= len(b)
	return f.File.Write(b)
}

func (f *full) WriteAt(b []byte, off int64) (int, error) {
	if f.at == "seal" {
		return 0, f.err
	}
	return f.File.WriteAt(b, off)
}

func (f *full) Sync() error {
	if f.at == "sync" {
		return f.err
	}
	return f.File.Sync()
}

func (f *full) Close() error {
	if err := f.File.Close(); f.at != "close" {
		return err
	}
	return f.err
}

func failing(d disk, room int, at string, err error) disk {
	create, rename := d.Create, d.Rename
	d.Create = func(path string) (files.File, error) {
		if at == "create" {
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		f, e := create(path)
		return &full{f, room, at, &fs.PathError{Op: "write", Path: path, Err: err}}, e
	}
	d.Rename = func(from, to string) error {
		if at == "rename" {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
		return rename(from, to)
	}
	return d
}

func TestAFailedSaveChangesNothing(t *testing.T) {
	dir := t.TempDir()
	s := open1(t, dir, 1, "psnr")
	save(t, s, snap(1, 33), snap(2, 31), snap(3, 32))
	before := list(t, dir)
	room := int(dataBytes(big(4).Arrays))
	rapid.Check(t, func(t *rapid.T) {
		s := *s
		at := rapid.SampledFrom([]string{"create", "write", "seal", "sync", "close", "rename"}).Draw(t, "at")
		step := rapid.IntRange(1, 4).Draw(t, "step")
		s.disk = failing(local(), rapid.IntRange(0, room).Draw(t, "room"), at, syscall.EIO)
		path, err := s.Save(context.Background(), big(step))
		if !errors.Is(err, syscall.EIO) || path != "" {
			t.Fatalf("saved %q, %v", path, err)
		}
		if want := filepath.Join(dir, Name(step)) + ": input/output error"; err.Error() != want {
			t.Fatalf("got %q, want %q", err, want)
		}
	})
	if got := list(t, dir); got != before {
		t.Errorf("folder was %s, is %s", before, got)
	}
	for step := 1; step <= 3; step++ {
		check(t, Verify(filepath.Join(dir, Name(step))))
	}
}

func TestTheErrorSaysWhatToDo(t *testing.T) {
	for _, c := range []struct {
		err  error
		at   string
		want string
	}{
		{syscall.ENOSPC, "write", "no space left on device: needs 1.3 MiB, 5000 bytes free; make room or lower checkpoint.keep, then run again to resume from the checkpoint before it"},
		{syscall.EDQUOT, "sync", "disk quota exceeded: needs 1.3 MiB, 5000 bytes free; make room or lower checkpoint.keep, then run again to resume from the checkpoint before it"},
		{syscall.EFBIG, "write", "file too large: needs 1.3 MiB; raise the limit on file sizes (ulimit -f) or choose a run.dir on another disk"},
		{syscall.EACCES, "create", "permission denied: make the folder writable or choose another run.dir"},
		{syscall.EROFS, "rename", "read-only file system: make the folder writable or choose another run.dir"},
	} {
		dir := t.TempDir()
		s := open1(t, dir, 1, "psnr")
		save(t, s, snap(1, 30))
		s.disk = failing(s.disk, 1000, c.at, c.err)
		s.disk.free = func(string) (int64, bool) { return 5000, true }
		_, err := s.Save(t.Context(), big(2))
		if want := filepath.Join(dir, Name(2)) + ": " + c.want; err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		if got := list(t, dir); got != "best=1 last=1 1" {
			t.Errorf("%v: %s", c.err, got)
		}
	}
}

func TestReadOnlyFolder(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write anywhere")
	}
	dir := t.TempDir()
	s := open1(t, dir, 1, "psnr")
	check(t, os.Chmod(dir, 0o555))
	defer func() { _ = os.Chmod(dir, 0o755) }()
	const advice = ": permission denied: make the folder writable or choose another run.dir"
	if _, err := s.Save(t.Context(), snap(1, 30)); err == nil || !strings.HasSuffix(err.Error(), advice) {
		t.Errorf("save: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "new"), Options{}); err == nil || !strings.HasSuffix(err.Error(), advice) {
		t.Errorf("open: %v", err)
	}
}

func TestOpenWhereAFileIs(t *testing.T) {
	path := put(t, "format", "pt")
	if _, err := Open(path, Options{}); err == nil || err.Error() != path+": not a directory" {
		t.Errorf("got %v", err)
	}
}

func TestCancelledSave(t *testing.T) {
	dir := t.TempDir()
	s := open1(t, dir, 1, "psnr")
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("second signal")
	create := s.disk.Create
	s.disk.Create = func(path string) (files.File, error) {
		cancel(why) // while it saves
		return create(path)
	}
	if _, err := s.Save(ctx, big(1)); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	if got := list(t, dir); got != "" {
		t.Errorf("left behind: %s", got)
	}
}

// Readers beside a run see whole checkpoints, whatever is saved, replaced and removed meanwhile.
func TestReadersBesideSaves(t *testing.T) {
	dir := t.TempDir()
	s := open1(t, dir, 1, "psnr")
	save(t, s, big(0))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for _, link := range []string{LastName, BestName} {
		wg.Go(func() {
			for n := 0; ; n++ {
				got, err := Load(filepath.Join(dir, link))
				if err != nil {
					t.Errorf("%s, read %d: %v", link, n, err)
					return
				}
				if err := same(got.Arrays, big(got.Step).Arrays); err != nil {
					t.Errorf("%s, read %d: %v", link, n, err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for step := 1; step < 12; step++ {
		save(t, s, big(step))
	}
	close(done)
	wg.Wait()
}
