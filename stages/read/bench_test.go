package read

import (
	"compress/gzip"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/flowrun/flowrun/stages/nifti"
)

// ct writes a noisy 512×512×n image, deflated at the level that most writers use.
func ct(b *testing.B, path string, n int) int64 {
	b.Helper()
	h := nifti.New(nifti.Int16, [3]int{512, 512, n}, lps)
	head, err := h.Encode()
	if err != nil {
		b.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	w, err := gzip.NewWriterLevel(f, 6)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := w.Write(head); err != nil {
		b.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	slice := make([]byte, 2*512*512)
	for k := range n {
		for i := range 512 * 512 {
			x, y := i%512-256, i/512-256
			v := -1024
			switch d := x*x + y*y; {
			case d < 100*100+k*10:
				v = -850 + int(r.NormFloat64()*35)
			case d < 200*200:
				v = 40 + int(r.NormFloat64()*25)
			case d < 250*250:
				v = -1000 + int(r.NormFloat64()*12)
			}
			slice[2*i], slice[2*i+1] = byte(v), byte(v>>8)
		}
		if _, err := w.Write(slice); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	return 2 * 512 * 512 * int64(n)
}

// BenchmarkLoad reads a scan that is stored as most CT is (x and y run the other way), beside compress/gzip, which only
// inflates it, and from the cache.
func BenchmarkLoad(b *testing.B) {
	dir := b.TempDir()
	path := filepath.Join(dir, "ct.nii.gz")
	size := ct(b, path, 60)
	o := defaults(path)
	run := func(b *testing.B, o Options) {
		scans, _, err := List(context.Background(), o)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(size)
		b.ReportAllocs()
		for b.Loop() {
			v, err := Load(context.Background(), scans[0], 0, o, nil)
			if err != nil {
				b.Fatal(err)
			}
			v.Release()
		}
	}
	b.Run("load", func(b *testing.B) { run(b, o) })
	b.Run("cached", func(b *testing.B) {
		o.Cache = filepath.Join(dir, "cache")
		run(b, o)
	})
	b.Run("compress-gzip", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			f, err := os.Open(path)
			if err != nil {
				b.Fatal(err)
			}
			r, err := gzip.NewReader(f)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				b.Fatal(err)
			}
			_ = f.Close()
		}
	})
}
