package read

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/volume"
	"pgregory.net/rapid"
)

// Voxel (i, j, k) of the file is i + 10j + 100k; where it must be after turning follows by hand.
func TestLoadTurnsToCanonical(t *testing.T) {
	dims := [3]int{4, 3, 2}
	for _, c := range []struct {
		name    string
		a       volume.Affine
		dims    [3]int
		spacing [3]float64
		value   func(x, y, z int) int
	}{
		{"ras", identity, dims, [3]float64{1, 1, 1}, func(x, y, z int) int { return x + 10*y + 100*z }},
		{"lps", lps, dims, [3]float64{2, 2, 3}, func(x, y, z int) int { return (3 - x) + 10*(2-y) + 100*z }},
		{"sagittal", sagittal, [3]int{2, 4, 3}, [3]float64{3, 2, 2}, func(x, y, z int) int { return y + 10*(2-z) + 100*x }},
	} {
		for _, ext := range []string{".nii", ".nii.gz", ".hdr"} {
			path := filepath.Join(t.TempDir(), c.name+ext)
			put(t, path, dims, c.a, func(i, j, k int) int16 { return int16(i + 10*j + 100*k) })
			v, got := loaded(t, path, defaults())
			if v.Dims != c.dims || v.Scan.Dims != c.dims || v.Scan.Spacing != c.spacing || v.Epoch != 3 || v.Slope != 1 || v.Inter != 0 || v.Window != [2]float64{-1000, 1000} {
				t.Fatalf("%s: %+v of %+v", c.name, v, v.Scan)
			}
			for i, x := range got {
				if want := c.value(i%c.dims[0], i/c.dims[0]%c.dims[1], i/c.dims[0]/c.dims[1]); x != float64(want) {
					t.Fatalf("%s: voxel %d is %v (want %d)", c.name, i, x, want)
				}
			}
			g := v.Geometry
			if g.Source != c.a || g.Dims != dims || g.Spacing != c.spacing || g.Resample || len(g.Header) != 348 {
				t.Fatalf("%s: geometry %+v", c.name, g)
			}
			if back, d := nifti.Reorient(g.Affine, c.dims, first(nifti.Undo(g.Axes, g.Flip)), second(nifti.Undo(g.Axes, g.Flip))); back != c.a || d != dims {
				t.Fatalf("%s: undone to %v %v", c.name, back, d)
			}
			if rows, err := v.Rows(1, 1, 2, nil); err != nil || len(rows) != c.dims[0] || float64(rows[0]) != float64(c.value(0, 1, 1)) {
				t.Fatalf("%s: rows %v, %v", c.name, rows, err)
			}
		}
	}
}

func first[A, B any](a A, _ B) A  { return a }
func second[A, B any](_ A, b B) B { return b }

// Any size, in any of the 48 orientations, larger than a chunk too: every voxel is at its canonical place.
func TestLoadPlaces(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		dims := [3]int{rapid.IntRange(1, 60).Draw(rt, "x"), rapid.IntRange(1, 30).Draw(rt, "y"), rapid.IntRange(1, 30).Draw(rt, "z")}
		perm := rapid.Permutation([]int{0, 1, 2}).Draw(rt, "axes")
		var a volume.Affine
		for f, c := range perm {
			a[c][f] = 1
			if rapid.Bool().Draw(rt, "flip") {
				a[c][f] = -1
			}
		}
		value := func(i, j, k int) int16 { return int16(i + 61*j + 61*31*k) }
		samples := make([]int16, 0, dims[0]*dims[1]*dims[2])
		for k := range dims[2] {
			for j := range dims[1] {
				for i := range dims[0] {
					samples = append(samples, value(i, j, k))
				}
			}
		}
		w, err := nifti.Create(filepath.Join(dir, "a.nii"), nifti.New(nifti.Int16, dims, a))
		if err != nil {
			rt.Fatal(err)
		}
		if err := errors.Join(w.WriteInt16(samples), w.Close()); err != nil {
			rt.Fatal(err)
		}
		v, got := loaded(t, filepath.Join(dir, "a.nii"), defaults())
		i := 0
		for z := range v.Dims[2] {
			for y := range v.Dims[1] {
				for x := range v.Dims[0] {
					var at [3]int
					for f, c := range perm {
						at[f] = [3]int{x, y, z}[c]
						if a[c][f] < 0 {
							at[f] = dims[f] - 1 - at[f]
						}
					}
					if got[i] != float64(value(at[0], at[1], at[2])) {
						rt.Fatalf("voxel %d %d %d is %v", x, y, z, got[i])
					}
					i++
				}
			}
		}
	})
}

// 8 and 16 bits are exact with the file's scaling; the rest is clipped and exact at whole HU.
func TestLoadTypes(t *testing.T) {
	inf, nan := math.Inf(1), math.NaN()
	for _, c := range []struct {
		name         string
		t            nifti.Type
		slope, inter float64
		in, want     []float64
	}{
		{"uint8", nifti.Uint8, 2, -1024, []float64{0, 255}, []float64{-1024, -514}},
		{"int8", nifti.Int8, 0, 0, []float64{-128, 127}, []float64{-128, 127}},
		{"int16", nifti.Int16, 1, 0, []float64{-32768, 32767}, []float64{-32768, 32767}},
		{"int16, negative slope", nifti.Int16, -0.5, 3, []float64{-2000, 2000}, []float64{1003, -997}},
		{"uint16", nifti.Uint16, 1, -1024, []float64{0, 65535}, []float64{-1024, 64511}},
		{"uint16, scaled", nifti.Uint16, 0.5, 10, []float64{0, 65535}, []float64{10, 32777.5}},
		{"uint16, no slope", nifti.Uint16, 0, 9, []float64{24, 40000}, []float64{24, 40000}},
		{"int32", nifti.Int32, 1, 0, []float64{-100000, -999, 0, 77, 100000}, []float64{-1000, -999, 0, 77, 1000}},
		{"uint32", nifti.Uint32, 1, -1024, []float64{0, 1024, 4e9}, []float64{-1000, 0, 1000}},
		{"float32", nifti.Float32, 1, 0, []float64{-3024, -999.5, 0.03125, 3071}, []float64{-1000, -999.5, 0.03125, 1000}},
		{"float64, scaled", nifti.Float64, 1000, -500, []float64{0, 0.25, 1, -9}, []float64{-500, -250, 500, -1000}},
		{"not numbers", nifti.Float32, 1, 0, []float64{nan, inf, -inf, 5}, []float64{-1000, -1000, -1000, 5}},
	} {
		path := filepath.Join(t.TempDir(), "a.nii")
		putReal(t, path, c.t, [3]int{len(c.in), 1, 1}, c.in, func(h *nifti.Header) { h.SclSlope, h.SclInter = c.slope, c.inter })
		v, got := loaded(t, path, defaults())
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v (want %v)", c.name, got, c.want)
		}
		if c.name == "not numbers" && !slices.Contains(v.Warnings, "3 voxels are NaN or Inf; taken as -1000 HU") {
			t.Errorf("%s: %q", c.name, v.Warnings)
		}
	}
}

func TestQuantiser(t *testing.T) {
	for _, c := range []struct {
		window       [2]float64
		step, centre float64
	}{
		{[2]float64{-1000, 1000}, 1. / 32, 0}, {[2]float64{-1024, 3071}, 1. / 16, 1023.5}, {[2]float64{0, 1}, 1. / 32768, 0.5},
		{[2]float64{0, 65534}, 1, 32767}, {[2]float64{0, 65535}, 2, 32768}, {[2]float64{0, 131068}, 2, 65534},
	} {
		if q := newQuantiser(c.window); q.step != c.step || q.centre != c.centre {
			t.Errorf("%v: %+v", c.window, q)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		lo := rapid.Float64Range(-4000, 4000).Draw(t, "low")
		hi := lo + rapid.Float64Range(0.01, 60000).Draw(t, "width")
		q := newQuantiser([2]float64{lo, hi})
		x := rapid.Float64Range(-5000, 70000).Draw(t, "hu")
		if rapid.Bool().Draw(t, "near half") { // where rounding twice goes wrong
			x = math.Floor(x) + 0.5 - rapid.SampledFrom([]float64{0, 1e-9, 0.3, 0.5, 0.7}).Draw(t, "below")*q.step
		}
		got := q.step*float64(q.sample(x)) + q.centre
		want := min(max(x, lo), hi)
		near := q.step / 2
		if f := want - math.Floor(want); 0.5-q.step < f && f < 0.5 {
			near = q.step // down, where up would be half a HU
		}
		if top := q.sample(x) == math.MaxInt16; math.Abs(got-want) > near && !top || math.Abs(got-want) > q.step ||
			math.Floor(got+0.5) != math.Floor(want+0.5) && q.step <= 1 && !top {
			t.Fatalf("%v in [%v, %v] is held as %v", x, lo, hi, got)
		}
		if (hi-lo)/q.step > 65534 || (hi-lo)/(q.step/2) <= 65534 {
			t.Fatalf("[%v, %v] has steps of %v", lo, hi, q.step)
		}
		if whole := math.Floor(want); q.step <= 1 && whole > lo && q.step*float64(q.sample(whole))+q.centre != whole {
			t.Fatalf("%v HU isn't exact in [%v, %v]", whole, lo, hi)
		}
	})
}

func TestNotHounsfield(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want string
	}{
		{[]float64{-1024, 300}, ""}, {[]float64{-501, 300}, ""}, {[]float64{-500, 300}, "no voxel is below -500 (lowest -500)"}, {[]float64{0, 1}, "intensities lie in 0..1"},
		{[]float64{0, 255}, "no voxel is below -500 (lowest 0)"},
	} {
		for _, typ := range []nifti.Type{nifti.Int16, nifti.Float32} {
			for _, spacing := range []float64{0, 1} {
				path := filepath.Join(t.TempDir(), "a.nii")
				putReal(t, path, typ, [3]int{2, 1, 1}, c.in, nil)
				o := defaults()
				o.Spacing = [3]float64{spacing, spacing, spacing}
				v, _ := loaded(t, path, o)
				if text := strings.Join(v.Warnings, "; "); c.want == "" && text != "" || !strings.Contains(text, c.want) {
					t.Errorf("%v %v: %q", typ, c.in, text)
				}
			}
		}
	}
}

func TestLoadFrame(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.nii")
	putReal(t, path, nifti.Int16, [3]int{2, 1, 1}, []float64{1, 2, 3, 4, 5, 6}, func(h *nifti.Header) { h.Dim[0], h.Dim[4] = 4, 3 })
	if _, bad, err := List(context.Background(), defaults(path)); err == nil || !strings.Contains(bad[0].Reason, "3 frames (set frame: 0") {
		t.Error(bad, err)
	}
	o := defaults()
	o.Frame = 1
	if _, got := loaded(t, path, o); !slices.Equal(got, []float64{3, 4}) {
		t.Error(got)
	}
}

// Air anywhere in a scan shows that it is CT, past the first chunk too.
func TestAirAtTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.nii")
	samples := make([]float64, 3*chunk)
	samples[len(samples)-1] = -1000
	putReal(t, path, nifti.Int16, [3]int{len(samples) / 8, 4, 2}, samples, nil)
	if v, _ := loaded(t, path, defaults()); len(v.Warnings) > 0 {
		t.Errorf("%q", v.Warnings)
	}
}

// Whatever fails, free runs once, and the error names the file.
func TestLoadFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.nii.gz")
	for name, harm := range map[string]func(t *testing.T) (context.Context, Options){
		"file has changed": func(t *testing.T) (context.Context, Options) {
			put(t, path, [3]int{2, 2, 2}, identity, func(i, j, k int) int16 { return 7 })
			now := time.Now().Add(time.Hour)
			if err := os.Chtimes(path, now, now); err != nil {
				t.Fatal(err)
			}
			return context.Background(), defaults()
		},
		"no such file": func(t *testing.T) (context.Context, Options) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			return context.Background(), defaults()
		},
		"checksum": func(t *testing.T) (context.Context, Options) {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)-7] ^= 1
			write(t, path, string(b))
			if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
				t.Fatal(err)
			}
			return context.Background(), defaults()
		},
		"spacing changed": func(*testing.T) (context.Context, Options) {
			o := defaults()
			o.Spacing = [3]float64{3, 3, 3}
			return context.Background(), o
		},
		"canceled": func(*testing.T) (context.Context, Options) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			return ctx, defaults()
		},
	} {
		small(t, path)
		scan := one(t, path, defaults())
		ctx, o := harm(t)
		freed := 0
		v, err := Load(ctx, scan, 0, o, func() { freed++ })
		if v != nil || err == nil || freed != 1 {
			t.Errorf("%s: %v, freed %d times", name, err, freed)
			continue
		}
		if name == "canceled" {
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		} else if name != "spacing changed" && !strings.Contains(err.Error(), name) || !strings.HasPrefix(err.Error(), path+": ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
	small(t, path)
	freed := 0
	v, err := Load(context.Background(), one(t, path, defaults()), 0, defaults(), func() { freed++ })
	if err != nil || freed != 0 {
		t.Fatal(err, freed)
	}
	if v.Release(); freed != 1 {
		t.Error("not freed by Release")
	}
}

func TestDry(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.nii")
	small(t, path)
	scan := one(t, path, defaults())
	v := Dry(scan, 7, defaults())
	if !v.Dry() || v.Epoch != 7 || v.Dims != scan.Dims || v.Scan != scan {
		t.Errorf("%+v", v)
	}
	v.Release()
}

// Load allocates the int16 volume and small buffers, never a float copy, and no more than Cost says.
func TestCost(t *testing.T) {
	dir := t.TempDir()
	dims := [3]int{128, 128, 100}
	path := filepath.Join(dir, "a.nii.gz")
	w, err := nifti.Create(path, nifti.New(nifti.Float32, dims, lps))
	if err != nil {
		t.Fatal(err)
	}
	for k := range dims[2] {
		slice := make([]float32, dims[0]*dims[1])
		for i := range slice {
			slice[i] = float32(i%1000 - k)
		}
		if err := w.WriteFloat32(slice); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, spacing := range [][3]float64{{}, {2.5, 2.5, 2.5}} {
		o := defaults()
		o.Spacing = spacing
		scan := one(t, path, o)
		cost := Cost(scan, o)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		v, err := Load(context.Background(), scan, 0, o, nil)
		runtime.ReadMemStats(&after)
		if err != nil {
			t.Fatal(err)
		}
		v.Release()
		if used := int64(after.TotalAlloc - before.TotalAlloc); used > cost || cost > 2*scan.Voxels()+8<<20 {
			t.Errorf("spacing %v: %d bytes allocated, cost %d, volume %d", spacing, used, cost, 2*scan.Voxels())
		}
	}
}
