package flows

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/read"
)

// names are the files in a folder, hidden ones too.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func content(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(path, ".gz") {
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if b, err = io.ReadAll(z); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// TestPhantoms: a seed is a patient, on any number of cores, packed or not, alone or with others.
func TestPhantoms(t *testing.T) {
	o := PhantomOptions{Count: 2, Size: [3]int{12, 10, 8}, Spacing: [3]float64{20, 0, 25}, Seed: 9998, Noise: 12}
	dir := filepath.Join(t.TempDir(), "deep", "scans")
	if err := Phantoms(t.Context(), dir, o); err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, dir), []string{"phantom-9998.nii", "phantom-9999.nii"}; !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	a, b := content(t, filepath.Join(dir, "phantom-9998.nii")), content(t, filepath.Join(dir, "phantom-9999.nii"))
	if bytes.Equal(a, b) {
		t.Error("two patients are one")
	}
	scans, bad, err := read.List(t.Context(), read.Options{Scans: []string{dir}, WindowHU: [2]float64{-1000, 1000}, MaxBytes: 1 << 20, Frame: -1, ChannelDim: -1})
	if err != nil || len(bad) > 0 || len(scans) != 2 || scans[0].Dims != o.Size || scans[0].Spacing[0] != 20 || scans[0].Spacing[2] != 25 {
		t.Errorf("%+v, %v, %v", scans, bad, err)
	}

	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	again := t.TempDir()
	o.Count, o.Seed, o.Gzip = 2, 9999, true
	if err := Phantoms(t.Context(), again, o); err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, again), []string{"phantom-10000.nii.gz", "phantom-9999.nii.gz"}; !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	if !bytes.Equal(content(t, filepath.Join(again, "phantom-9999.nii.gz")), b) {
		t.Error("the same patient differs")
	}
}

// lately is a context that ends when it has been asked so many times.
type lately struct {
	context.Context
	n int
}

func (l *lately) Err() error {
	if l.n--; l.n < 0 {
		return context.Canceled
	}
	return nil
}

// TestPhantomsCancelled: a phantom is there whole or not at all, and the one that was there before stays.
func TestPhantomsCancelled(t *testing.T) {
	o := PhantomOptions{Count: 2, Size: [3]int{6, 6, 6}, Seed: 1}
	dir := t.TempDir()
	old := filepath.Join(dir, "phantom-0002.nii")
	if err := os.WriteFile(old, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	// 6 slices of the first phantom are written, and 3 of the second.
	if err := Phantoms(&lately{context.Background(), 9}, dir, o); !errors.Is(err, context.Canceled) || ExitCode(err) != ExitInterrupted {
		t.Error(err)
	}
	if got, want := names(t, dir), []string{"phantom-0001.nii", "phantom-0002.nii"}; !slices.Equal(got, want) || string(content(t, old)) != "old" {
		t.Errorf("got %v, want %v and the old one", got, want)
	}
	if err := Phantoms(t.Context(), dir, o); err != nil || len(content(t, old)) != len(content(t, filepath.Join(dir, "phantom-0001.nii"))) {
		t.Error(err)
	}
}

func TestPhantomsRefused(t *testing.T) {
	good := PhantomOptions{Count: 1, Size: [3]int{6, 6, 6}}
	for want, change := range map[string]func(*PhantomOptions){
		"phantom: count 0 (want at least 1)":                       func(o *PhantomOptions) { o.Count = 0 },
		"phantom: size: want 4 to 2048 (voxels x, y, z), got 3":    func(o *PhantomOptions) { o.Size[1] = 3 },
		"phantom: size: want 4 to 2048 (voxels x, y, z), got 9999": func(o *PhantomOptions) { o.Size[2] = 9999 },
		"phantom: spacing: want 0 to 50 (mm x, y, z), got -1":      func(o *PhantomOptions) { o.Spacing[0] = -1 },
		"phantom: noise: want 0 to 500 (HU), got 1000":             func(o *PhantomOptions) { o.Noise = 1000 },
	} {
		o, dir := good, t.TempDir()
		change(&o)
		if err := Phantoms(t.Context(), dir, o); ExitCode(err) != ExitUsage || err.Error() != want || len(names(t, dir)) > 0 {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Phantoms(t.Context(), file, good); ExitCode(err) != ExitUsage || !strings.Contains(err.Error(), file+": not a directory; choose a folder") {
		t.Error(err)
	}
}
