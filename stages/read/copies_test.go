package read

import (
	"bytes"
	"compress/gzip"
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// Files that are one under several names are known, compressed or not; those with the same header alone aren't.
func TestCopies(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	value := func(seed int) func(i, j, k int) int16 {
		return func(i, j, k int) int16 {
			if k < 8 {
				return -1000 // as where a scan is padded
			}
			return int16(seed * (i + 3*j + 7*k) % 999)
		}
	}
	zip := func(name string, level int, text []byte) {
		var b bytes.Buffer
		w := must(gzip.NewWriterLevel(&b, level))
		_ = must(w.Write(text))
		_ = w.Close()
		write(t, at(name), b.String())
	}
	for i, name := range []string{"a.nii", "b.nii", "m.nii"} {
		put(t, at(name), [3]int{40, 40, 40}, identity, value(i+1))
	}
	a, b := must(os.ReadFile(at("a.nii"))), must(os.ReadFile(at("b.nii")))
	write(t, at("c.nii"), string(b))
	if err := os.Link(at("b.nii"), at("d.nii")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("b.nii", at("e.nii")); err != nil {
		t.Fatal(err)
	}
	copies := func(want map[string]string) {
		t.Helper()
		scans, bad, err := List(t.Context(), defaults(dir))
		if err != nil || len(bad) > 0 {
			t.Fatal(bad, err)
		}
		got := map[string]string{}
		for _, s := range scans {
			if s.Copy != "" {
				got[s.ID] = s.Copy
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	copies(map[string]string{"c.nii": "b.nii", "d.nii": "b.nii", "e.nii": "b.nii"})
	zip("f.nii.gz", 1, a)
	zip("g.nii.gz", 9, a)
	b[len(b)/2+1]++ // where no piece may have been looked at
	zip("h.nii.gz", 6, b)
	zip("i.nii", 6, b)
	copies(map[string]string{"c.nii": "b.nii", "d.nii": "b.nii", "e.nii": "b.nii", "f.nii.gz": "a.nii", "g.nii.gz": "a.nii", "i.nii": "h.nii.gz"})
}
