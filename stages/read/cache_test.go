package read

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/volume"
)

func cacheFiles(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// inCache says where the samples of a volume come from.
func inCache(v *volume.Volume) bool {
	a, err := v.Rows(0, 0, 1, make([]int16, v.Dims[0]))
	b, err2 := v.Rows(0, 0, 1, make([]int16, v.Dims[0]))
	return err == nil && err2 == nil && &a[0] != &b[0]
}

// The copy gives the same samples, geometry, scaling and warnings as the file, of raw, quantised and resampled scans.
func TestCacheGivesTheSame(t *testing.T) {
	for _, typ := range []nifti.Type{nifti.Int16, nifti.Uint16, nifti.Float32} {
		for _, spacing := range []float64{0, 2} {
			dir := t.TempDir()
			path := filepath.Join(dir, "sub", "a.nii")
			if err := os.Mkdir(filepath.Dir(path), 0o777); err != nil {
				t.Fatal(err)
			}
			dims := [3]int{5, 4, 3}
			samples := make([]float64, 60)
			for i := range samples {
				samples[i] = float64(i) * 7
			}
			putReal(t, path, typ, dims, samples, func(h *nifti.Header) {
				h.SclSlope, h.SclInter = 0.1, 3
				h.SetAffine(lps, 1)
			})
			o := defaults()
			o.Spacing = [3]float64{spacing, spacing, spacing}
			o.Cache = filepath.Join(dir, "cache")
			scan := one(t, path, o)
			full := Cost(scan, o)
			a, want := loaded(t, path, o)
			if inCache(a) {
				t.Fatal("the first load is from the cache")
			}
			if c := Cost(scan, o); c >= full || c != 4<<20 {
				t.Errorf("cost %d, before %d", c, full)
			}
			b, got := loaded(t, path, o)
			if !inCache(b) || !slices.Equal(got, want) || a.Slope != b.Slope || a.Inter != b.Inter || a.Scan.Dims != b.Dims || !slices.Equal(a.Warnings, b.Warnings) {
				t.Errorf("%v: %+v, first %+v", typ, b, a)
			}
			ga, gb := a.Geometry, b.Geometry
			if string(ga.Header) != string(gb.Header) {
				t.Error("header differs")
			}
			if ga.Affine != gb.Affine || ga.Source != gb.Source || ga.Dims != gb.Dims || ga.Axes != gb.Axes || ga.Flip != gb.Flip || ga.Spacing != gb.Spacing || ga.Resample != gb.Resample {
				t.Errorf("geometry %+v, first %+v", gb, ga)
			}
			rows, err := b.Rows(1, 1, 3, make([]int16, 100))
			if err != nil || len(rows) != 2*b.Dims[0] || float64(rows[0])*b.Slope+b.Inter != want[b.Dims[0]*(b.Dims[1]+1)] {
				t.Error(rows, err)
			}
			// The copy is an image by itself: a viewer shows it in its place.
			c, plain := loaded(t, cacheFiles(t, o.Cache)[0], defaults())
			for i := range plain {
				if math.Abs(plain[i]-want[i]) > 1e-3 {
					t.Fatalf("as an image, voxel %d is %v (want %v)", i, plain[i], want[i])
				}
			}
			for i := range 3 {
				// Both grids begin at the same corner of the world.
				corner := func(a volume.Affine) float64 { return a[i][3] - (a[i][0]+a[i][1]+a[i][2])/2 }
				if math.Abs(c.Scan.Spacing[i]-scan.Spacing[i]) > 1e-6 || math.Abs(corner(c.Geometry.Affine)-corner(ga.Affine)) > 1e-5 {
					t.Error(c.Scan.Spacing, c.Geometry.Affine)
				}
			}
		}
	}
}

func TestCacheIsRebuilt(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.nii.gz")
	put(t, path, [3]int{20, 20, 20}, identity, func(i, j, k int) int16 { return int16(i + j + k) })
	o := defaults()
	o.Cache = filepath.Join(dir, "cache")
	_, want := loaded(t, path, o)
	copied := cacheFiles(t, o.Cache)[0]
	sound, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"cut":     sound[:len(sound)-1],
		"empty":   nil,
		"longer":  append(slices.Clone(sound), 0),
		"flipped": func() []byte { b := slices.Clone(sound); b[len(b)-3000] ^= 4; return b }(),
		"options": []byte(strings.Replace(string(sound), `"frame -1`, `"frame +1`, 1)),
		"record":  []byte(strings.Replace(string(sound), `"crc32c"`, `"crc32d"`, 1)),
	} {
		write(t, copied, string(b))
		v, got := loaded(t, path, o)
		if inCache(v) || !slices.Equal(got, want) {
			t.Errorf("%s: a broken copy is used", name)
		}
		if again, _ := os.ReadFile(copied); !slices.Equal(again, sound) {
			t.Errorf("%s: the copy isn't rewritten", name)
		}
	}
	// Another source under the same name takes its place; other options have copies of their own.
	put(t, path, [3]int{20, 20, 20}, identity, func(i, j, k int) int16 { return int16(i - j - k) })
	now := time.Now().Add(time.Minute)
	if err := os.Chtimes(path, now, now); err != nil {
		t.Fatal(err)
	}
	if v, got := loaded(t, path, o); inCache(v) || got[21] != 0 || len(cacheFiles(t, o.Cache)) != 1 {
		t.Error("a changed source has an old copy")
	}
	o.WindowHU[1] = 500 // doesn't matter to raw samples
	if v, _ := loaded(t, path, o); !inCache(v) {
		t.Error("a raw copy depends on the window")
	}
	o.Spacing = [3]float64{2, 2, 2}
	if v, _ := loaded(t, path, o); inCache(v) || len(cacheFiles(t, o.Cache)) != 2 {
		t.Error("a resampled copy is the raw one")
	}
	o.WindowHU[1] = 400
	if v, _ := loaded(t, path, o); inCache(v) || len(cacheFiles(t, o.Cache)) != 3 {
		t.Error("a resampled copy doesn't depend on the window")
	}
}

// Runs that share a cache, all at once.
func TestCacheIsShared(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.nii.gz")
	put(t, path, [3]int{16, 16, 16}, lps, func(i, j, k int) int16 { return int16(i * j * k) })
	_, want := loaded(t, path, defaults())
	o := defaults()
	o.Cache = filepath.Join(dir, "cache")
	scan := one(t, path, o)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 3 {
				v, err := Load(context.Background(), scan, 0, o, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if got := hu(t, v); !slices.Equal(got, want) || len(v.Warnings) != 1 {
					t.Error("samples differ", v.Warnings)
				}
				v.Release()
			}
		})
	}
	wg.Wait()
	if list, _ := os.ReadDir(o.Cache); len(list) != 1 {
		t.Errorf("left in the folder: %v", list)
	}
}

// A cache that can't be written costs a warning, not the scan; what killed runs left is swept after a day.
func TestCacheCantBeWritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.nii")
	small(t, path)
	o := defaults()
	scan := one(t, path, o)
	o.Cache = filepath.Join(path, "cache")
	v, err := Load(context.Background(), scan, 0, o, nil)
	if err != nil || len(v.Warnings) != 1 || !strings.Contains(v.Warnings[0], "not a directory; the scan is used without it") {
		t.Fatal(err, v)
	}
	v.Release()

	o.Cache = filepath.Join(dir, "cache")
	_, _ = loaded(t, path, o)
	copied := cacheFiles(t, o.Cache)[0]
	left := filepath.Join(o.Cache, "."+filepath.Base(copied)+".0123456789abcdef.tmp")
	fresh := filepath.Join(o.Cache, "."+filepath.Base(copied)+".fresh.tmp")
	write(t, left, "half")
	write(t, fresh, "half")
	old := time.Now().Add(-25 * time.Hour)
	if err := os.Chtimes(left, old, old); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(copied); err != nil {
		t.Fatal(err)
	}
	_, _ = loaded(t, path, o)
	if _, err := os.Stat(left); err == nil {
		t.Error("an old temporary file stays")
	}
	if _, err := os.Stat(fresh); err != nil {
		t.Error("another run's temporary file is gone")
	}
}
