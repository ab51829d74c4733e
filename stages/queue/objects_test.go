package queue

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The bytes of scans go through the object store, whole or not at all.
func TestObjects(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) { o.Objects = 8 << 20 })
	tq := b.open(Trainer)
	b.check(tq.Ensure(b.ctx, bounds(8)))
	q := b.open(Publisher)
	path := filepath.Join(b.dir, "a.nii.gz")
	text := strings.Repeat("some bytes of a scan\n", 100000)
	b.check(os.WriteFile(path, []byte(text), 0o600))
	digest, n, err := Digest(b.ctx, path)
	b.check(err)
	for range 2 {
		b.check(q.Upload(b.ctx, path, digest))
	}
	s := &Scan{Name: "deep/a.nii.gz", Object: true, Digest: digest, Size: n}
	place := filepath.Join(b.dir, "work")
	for range 2 {
		got, err := q.Place(b.ctx, s, nil, place, nil)
		b.check(err)
		if copied, err := os.ReadFile(got); err != nil || string(copied) != text || !strings.HasSuffix(got, ".nii.gz") {
			t.Fatal(got, err)
		}
	}
	missing := *s
	missing.Digest = digestOf([]byte("nothing"))
	if _, err := q.Place(b.ctx, &missing, nil, place, nil); err == nil {
		t.Error("a missing object is found")
	}
	short := *s
	short.Size++
	b.check(os.RemoveAll(place))
	if _, err := q.Place(b.ctx, &short, nil, place, nil); err == nil {
		t.Error("an object of another size is taken")
	}
	if left, err := filepath.Glob(filepath.Join(place, "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	// 11: a publisher that ends inside Upload leaves chunks that no object names; one that is whole stays.
	_, err = q.js.Publish(b.ctx, "$O."+q.names.bucket()+".C.orphan", make([]byte, 1000))
	b.check(err)
	if n, err := q.Tidy(b.ctx, time.Hour); n != 0 || err != nil {
		t.Errorf("a chunk that may grow is removed: %d, %v", n, err)
	}
	if n, err := q.Tidy(b.ctx, 0); n != 1 || err != nil {
		t.Errorf("tidied %d, %v", n, err)
	}
	if err := q.Fetch(b.ctx, digest, s.Size, io.Discard); err != nil {
		t.Error(err)
	}
	// An object whose bytes were spoilt: the first chunk is gone.
	store, err := q.js.ObjectStore(b.ctx, q.names.bucket())
	b.check(err)
	info, err := store.GetInfo(b.ctx, strings.TrimPrefix(digest, digestPrefix))
	b.check(err)
	st, err := q.js.Stream(b.ctx, "OBJ_"+q.names.bucket())
	b.check(err)
	last, err := st.GetLastMsgForSubject(b.ctx, "$O."+q.names.bucket()+".C."+info.NUID)
	b.check(err)
	b.check(st.DeleteMsg(b.ctx, last.Sequence))
	ctx, cancel := context.WithTimeout(b.ctx, 3*time.Second)
	defer cancel()
	if err := q.Fetch(ctx, digest, s.Size, io.Discard); err == nil {
		t.Error("a truncated object is taken")
	}
	// No room: said, not tried for ever.
	big := filepath.Join(b.dir, "big.nii")
	b.check(os.WriteFile(big, make([]byte, 9<<20), 0o600))
	digest, _, err = Digest(b.ctx, big)
	b.check(err)
	if err := q.Upload(b.ctx, big, digest); err == nil || !strings.Contains(err.Error(), "queue.objects") {
		t.Errorf("%v", err)
	}
}

// References are followed below the roots only, and to the file that was published.
func TestPlaceBelowRoots(t *testing.T) {
	dir := t.TempDir()
	root, other := filepath.Join(dir, "data"), filepath.Join(dir, "other")
	for path, text := range map[string]string{filepath.Join(root, "p/a.nii"): "aaaa", filepath.Join(other, "b.nii"): "bbbb"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(other, "b.nii"), filepath.Join(root, "link.nii")); err != nil {
		t.Fatal(err)
	}
	q, known := &Queue{}, new(Digests)
	scan := func(name, path, text string) *Scan {
		return &Scan{Name: name, Path: path, Digest: digestOf([]byte(text)), Size: int64(len(text))}
	}
	for _, c := range []struct {
		s     *Scan
		roots []string
		words string // of the error; "" for none
	}{
		{scan("p/a.nii", filepath.Join(root, "p/a.nii"), "aaaa"), []string{root}, ""},
		{scan("p/a.nii", "/mnt/elsewhere/p/a.nii", "aaaa"), []string{other, root}, ""},
		{scan("p/a.nii", filepath.Join(root, "p/a.nii"), "aaab"), []string{root}, "isn't the file"},
		{scan("b.nii", filepath.Join(other, "b.nii"), "bbbb"), []string{root}, "outside"},
		{scan("b.nii", filepath.Join(root, "..", "other", "b.nii"), "bbbb"), []string{root}, "outside"},
		{scan("link.nii", filepath.Join(root, "link.nii"), "bbbb"), []string{root}, "outside"},
		{scan("../other/b.nii", "/no", "bbbb"), []string{root}, "outside"},
		{scan("c.nii", "/no", "c"), []string{root}, "no such file"},
		{scan("p/a.nii", filepath.Join(root, "p/a.nii"), "aaaa"), nil, "roots"},
	} {
		for range 2 {
			_, err := q.Place(context.Background(), c.s, c.roots, dir, known)
			if (err == nil) != (c.words == "") || err != nil && !strings.Contains(err.Error(), c.words) {
				t.Errorf("%s: %v (want %q)", c.s.Path, err, c.words)
			}
		}
	}
}
