package queue

import (
	"errors"
	"path/filepath"
	"testing"
)

// A publisher that is started again goes on behind what it published.
func TestPublishedIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "published.jsonl")
	p, err := OpenPublished(path)
	if err != nil {
		t.Fatal(err)
	}
	one, two := &Scan{Name: "a", Epoch: 1}, &Scan{Name: "a", Epoch: 2}
	if err := errors.Join(p.Add(one), p.Add(two)); err != nil {
		t.Fatal(err)
	}
	if p, err = OpenPublished(path); err != nil || len(p.done) != 2 || !p.Has(one) || p.Has(&Scan{Name: "b"}) {
		t.Fatal(p, err)
	}
}
