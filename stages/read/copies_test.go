package read

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flowrun/flowrun/stages/volume"
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

// A compressed scan that was copied, whenever, is the scan that was listed; one of other voxels isn't.
func TestContent(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.nii")
	put(t, path, [3]int{4, 4, 9}, identity, func(i, j, k int) int16 { return int16(i+j+k) - 1000 })
	text := must(os.ReadFile(path))
	pack := func(members ...[]byte) string {
		var b bytes.Buffer
		for _, m := range members {
			w := gzip.NewWriter(&b)
			_ = must(w.Write(m))
			_ = w.Close()
		}
		return b.String()
	}
	other := bytes.Clone(text)
	other[len(other)-1] ^= 1
	longAgo := time.Unix(1e9, 0)
	for _, c := range []struct {
		name, was, is string
		same          bool
	}{
		{"copied", pack(text), pack(text), true},
		{"compressed anew", pack(text), pack(text, nil), false}, // its last member says nothing of it
		{"changed", pack(text), pack(other), false},
		{"two members", pack(text[:400], text[400:]), pack(text[:400], text[400:]), false},
		{"plain", string(text), string(text), false},
	} {
		path := filepath.Join(dir, "b.nii")
		write(t, path, c.was)
		o := defaults(path)
		var frozen volume.Scan // as a checkpoint keeps it
		if err := json.Unmarshal(must(json.Marshal(one(t, path, o))), &frozen); err != nil {
			t.Fatal(err)
		}
		write(t, path, c.is)
		if err := os.Chtimes(path, longAgo, longAgo); err != nil {
			t.Fatal(err)
		}
		v, err := Load(t.Context(), &frozen, 0, o, nil)
		if c.same {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			v.Release()
		} else if err == nil || !strings.Contains(err.Error(), "the file has changed since the run began: another header, size or time") {
			t.Errorf("%s: %v", c.name, err)
		}
		if v, err = Stream(t.Context(), &frozen, 0, o, 2, Tell{}, nil); (err == nil) != c.same {
			t.Errorf("%s: streamed: %v", c.name, err)
		} else if err == nil {
			v.Release()
		}
	}
}
