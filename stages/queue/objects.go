package queue

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Digest reads a file and gives "sha256:" and the hex digest of its bytes, and their number.
func Digest(ctx context.Context, path string) (digest string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, fmt.Errorf("%s: %w", path, plain(err))
	}
	defer func() { _ = f.Close() }() // it was only read
	sum := sha256.New()
	if size, err = io.CopyBuffer(sum, stoppable{ctx, f}, make([]byte, 1<<20)); err != nil {
		return "", 0, fmt.Errorf("%s: %w", path, plain(err))
	}
	return digestPrefix + hex.EncodeToString(sum.Sum(nil)), size, nil
}

// stoppable is a reader that ends with its context.
type stoppable struct {
	ctx context.Context
	r   io.Reader
}

func (s stoppable) Read(b []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(b)
}

// Upload puts a file's bytes into the run's object store, under their digest. What is there is never written over.
func (q *Queue) Upload(ctx context.Context, path, digest string) error {
	ctx, cancel := q.bind(ctx)
	defer cancel()
	store, err := q.js.ObjectStore(ctx, q.names.bucket())
	if err != nil {
		return q.explain(ctx, "object store (queue.objects makes one)", err)
	}
	name := strings.TrimPrefix(digest, digestPrefix)
	for try := range 3 {
		if info, err := store.GetInfo(ctx, name); err == nil {
			if sameDigest(info, digest) {
				return nil
			}
			if err := store.Delete(ctx, name); err != nil { // a Put that was cut off can leave this
				return q.explain(ctx, "object store", err)
			}
		} else if !errors.Is(err, jetstream.ErrObjectNotFound) {
			return q.explain(ctx, "object store", err)
		}
		info, err := q.put(ctx, store, name, path)
		switch {
		case err == nil && sameDigest(info, digest):
			if try > 0 { // a Put that was tried again can have stored some of it twice
				return q.Fetch(ctx, digest, int64(info.Size), io.Discard)
			}
			return nil
		case err == nil:
			return fmt.Errorf("%s: has changed while it was sent", path)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !retryable(err) || tooFull(err):
			return q.explain(ctx, "object store: "+path+": raise queue.objects or publish fewer scans as bytes", err)
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: couldn't be stored whole", path)
}

func tooFull(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && full(api)
}

func (q *Queue) put(ctx context.Context, store jetstream.ObjectStore, name, path string) (*jetstream.ObjectInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, plain(err))
	}
	defer func() { _ = f.Close() }() // it was only read
	return store.Put(ctx, jetstream.ObjectMeta{Name: name, Opts: &jetstream.ObjectMetaOptions{ChunkSize: 1 << 20}}, f)
}

func sameDigest(info *jetstream.ObjectInfo, digest string) bool {
	raw, err := base64.URLEncoding.DecodeString(strings.TrimPrefix(info.Digest, "SHA-256="))
	return err == nil && digestPrefix+hex.EncodeToString(raw) == digest
}

// stalled is how long an object's next bytes may take.
const stalled = 30 * time.Second

// Fetch writes an object to w and checks it: it has to be of this size and digest, to its end.
func (q *Queue) Fetch(ctx context.Context, digest string, bytes int64, w io.Writer) error {
	ctx, cancel := q.bind(ctx)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	watch := time.AfterFunc(stalled, func() {
		stop(fmt.Errorf("object %s: no bytes for %v: is it cut off?", digest, stalled))
	})
	defer watch.Stop()
	err := q.fetch(ctx, digest, bytes, w, func() { watch.Reset(stalled) })
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (q *Queue) fetch(ctx context.Context, digest string, bytes int64, w io.Writer, alive func()) error {
	store, err := q.js.ObjectStore(ctx, q.names.bucket())
	if err != nil {
		return q.explain(ctx, "object store", err)
	}
	r, err := store.Get(ctx, strings.TrimPrefix(digest, digestPrefix))
	if err != nil {
		return fmt.Errorf("object %s: %w", digest, err)
	}
	defer func() { _ = r.Close() }() // it was only read
	sum, n := sha256.New(), int64(0)
	buf := make([]byte, 1<<20)
	for {
		k, err := r.Read(buf)
		alive()
		if n += int64(k); n > bytes {
			return fmt.Errorf("object %s: more than %d bytes", digest, bytes)
		}
		_, _ = sum.Write(buf[:k]) // never fails
		if _, err := w.Write(buf[:k]); err != nil {
			return plain(err)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("object %s: after %d bytes: %w", digest, n, err)
		}
	}
	if got := digestPrefix + hex.EncodeToString(sum.Sum(nil)); n != bytes || got != digest {
		return fmt.Errorf("object %s: holds %d bytes of digest %s (want %d)", digest, n, got, bytes)
	}
	return nil
}

// Tidy removes what publishers left that ended inside Upload: chunks that belong to no object and haven't grown for so long.
func (q *Queue) Tidy(ctx context.Context, olderThan time.Duration) (objects int, err error) {
	ctx, cancel := q.bind(ctx)
	defer cancel()
	s, err := q.js.Stream(ctx, "OBJ_"+q.names.bucket())
	if err != nil {
		return 0, q.explain(ctx, "object store", err)
	}
	// Chunks first, objects second: one that is completed in between is seen.
	chunks, err := s.Info(ctx, jetstream.WithSubjectFilter("$O."+q.names.bucket()+".C.>"))
	if err != nil {
		return 0, q.explain(ctx, "object store", err)
	}
	store, err := q.js.ObjectStore(ctx, q.names.bucket())
	if err != nil {
		return 0, q.explain(ctx, "object store", err)
	}
	list, err := store.List(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
		return 0, q.explain(ctx, "object store", err)
	}
	live := map[string]bool{}
	for _, info := range list {
		live["$O."+q.names.bucket()+".C."+info.NUID] = true
	}
	for subject := range chunks.State.Subjects {
		if live[subject] {
			continue
		}
		last, err := s.GetLastMsgForSubject(ctx, subject)
		if err != nil || time.Since(last.Time) < olderThan {
			continue
		}
		if err := s.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
			return objects, q.explain(ctx, "object store", err)
		}
		objects++
	}
	return objects, nil
}

// Place gives the file of a scan on this machine: its path, or its name below one of roots, where a reference is allowed
// below roots only; or, of one that came as bytes, a copy in dir. The file has the scan's size and digest. known keeps
// digests of files that haven't changed since; it may be nil.
func (q *Queue) Place(ctx context.Context, s *Scan, roots []string, dir string, known *Digests) (string, error) {
	if s.Object {
		return q.download(ctx, s, dir)
	}
	path, err := below(s, roots)
	if err != nil {
		return "", err
	}
	digest, n, err := known.Of(ctx, path)
	if err != nil {
		return "", err
	}
	if n != s.Size || digest != s.Digest {
		return "", fmt.Errorf("%s: isn't the file that was published: %d bytes, %s (want %d, %s)", path, n, digest, s.Size, s.Digest)
	}
	return path, nil
}

// below finds a scan's file below one of roots.
func below(s *Scan, roots []string) (string, error) {
	if len(roots) == 0 {
		return "", fmt.Errorf("%s: subscribe.roots names no folder that scans may be read from", s.Path)
	}
	outside := false
	for _, root := range roots {
		top, err := filepath.Abs(root)
		if err == nil {
			top, err = filepath.EvalSymlinks(top)
		}
		if err != nil {
			continue // the folder isn't there (now)
		}
		for _, path := range []string{s.Path, filepath.Join(top, filepath.FromSlash(s.Name))} {
			real, err := filepath.EvalSymlinks(path)
			if err != nil || !filepath.IsAbs(real) {
				continue
			}
			if real == top || strings.HasPrefix(real, strings.TrimSuffix(top, string(filepath.Separator))+string(filepath.Separator)) {
				return real, nil
			}
			outside = true
		}
	}
	if outside {
		return "", fmt.Errorf("%s: lies outside subscribe.roots %s", s.Path, strings.Join(roots, ", "))
	}
	return "", fmt.Errorf("%s: no such file, nor %s below subscribe.roots %s", s.Path, s.Name, strings.Join(roots, ", "))
}

// download brings a scan's bytes to dir, unless they are there, whole.
func (q *Queue) download(ctx context.Context, s *Scan, dir string) (string, error) {
	ending := ".nii"
	if strings.HasSuffix(strings.ToLower(s.Name), ".gz") {
		ending = ".nii.gz"
	}
	path := filepath.Join(dir, strings.TrimPrefix(s.Digest, digestPrefix)+"-"+strconv.Itoa(s.Epoch)+ending)
	if info, err := os.Stat(path); err == nil && info.Size() == s.Size {
		return path, nil // it was checked before it got this name
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("%s: %w", dir, plain(err))
	}
	f, err := os.CreateTemp(dir, ".scan-*.tmp")
	if err != nil {
		return "", fmt.Errorf("%s: %w", dir, plain(err))
	}
	err = q.Fetch(ctx, s.Digest, s.Size, f)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return path, nil
}
