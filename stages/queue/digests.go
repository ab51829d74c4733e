package queue

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"
)

// Digests remembers the digests of files for as long as their size and time of modification stay. It is safe for concurrent
// use; a nil one remembers nothing.
type Digests struct {
	mu    sync.Mutex
	known map[string]known
}

type known struct {
	size   int64
	time   time.Time
	digest string
}

// Of is the digest of a file and its size.
func (d *Digests) Of(ctx context.Context, path string) (string, int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", 0, fmt.Errorf("%s: %w", path, plain(err))
	}
	if d != nil {
		d.mu.Lock()
		k, ok := d.known[path]
		d.mu.Unlock()
		if ok && k.size == info.Size() && k.time.Equal(info.ModTime()) {
			return k.digest, k.size, nil
		}
	}
	digest, n, err := Digest(ctx, path)
	if err == nil && d != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.known == nil {
			d.known = map[string]known{}
		}
		d.known[path] = known{n, info.ModTime(), digest}
	}
	return digest, n, err
}
