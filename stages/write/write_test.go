package write

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/merge"
	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/volume"
)

// A scan in any of the 48 orientations comes back as the same voxels on the same grid, with the same affine.
func TestEveryOrientation(t *testing.T) {
	dir := t.TempDir()
	dims := [3]int{5, 4, 37} // more slices than are turned at a time, along some axis
	hu := func(i int) int16 { return int16(i*7%2300 - 1100) }
	for n, a := range orientations() {
		path := filepath.Join(dir, fmt.Sprintf("%d.nii", n))
		put(t, path, nifti.New(nifti.Int16, dims, a), hu)
		for _, o := range []Options{{Dtype: Int16, Gz: n%8 == 0}, {Dtype: Float32}} {
			o.Dir = filepath.Join(dir, o.Dtype)
			v, freed := load(t, options(path))
			names := must(Names([]*volume.Scan{v.Scan}, o))
			if err := os.MkdirAll(o.Dir, 0o777); err != nil {
				t.Fatal(err)
			}
			written := all(t, Write(slabs(t, v, 1+n%3), o, names, nil, nil))
			info := must(os.Stat(names[v.Scan.ID]))
			if want := (Written{v.Scan.ID, names[v.Scan.ID], info.Size()}); !slices.Equal(written, []Written{want}) {
				t.Fatalf("wrote %v, want %v", written, want)
			}
			if !*freed {
				t.Fatal("the volume is still held")
			}
			h, voxels := get(t, written[0].Path)
			back, warnings := h.Affine()
			if g := must(h.Grid(-1, -1)); g.Dims != dims || !near(back, a) || len(warnings) > 0 || h.Datatype.String() != o.Dtype {
				t.Fatalf("%v: wrote %v of %v with %v, %v", a, g.Dims, h.Datatype, back, warnings)
			}
			for i, x := range voxels {
				if want := float64(min(max(hu(i), -1000), 1000)); x != want && (o.Dtype == Int16 || math.Abs(x-want) > 1e-4) {
					t.Fatalf("%v, %s: voxel %d is %v (want %v)", a, o.Dtype, i, x, want)
				}
			}
		}
	}
}

// The header is the scan's: byte order, codes, units and description; only type, dims and scaling are the result's.
func TestHeaderOfTheScan(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.nii")
	h := nifti.New(nifti.Int16, [3]int{3, 4, 5}, identity)
	h.Order = binary.BigEndian
	h.SclSlope, h.SclInter = 2, -10
	h.SformCode, h.QformCode = 0, 2
	h.Quatern = [3]float64{0.125, 0.25, -0.5} // oblique
	h.Qoffset = [3]float64{1, -2, 3}
	h.Pixdim = [8]float64{-1, 0.5, 0.75, 1.25, 0, 0, 0, 0}
	h.Units = 3 // micrometres
	copy(h.Descrip[:], "thorax")
	put(t, path, h, func(i int) int16 { return int16(i) })
	v, _ := load(t, options(path))
	source, _ := h.Affine()
	o := Options{Dir: dir, Suffix: "_out"}
	all(t, Write(slabs(t, v, 2), o, must(Names([]*volume.Scan{v.Scan}, o)), nil, nil))
	got, voxels := get(t, filepath.Join(dir, "a_out.nii"))
	a, _ := got.Affine()
	switch {
	case got.Order != h.Order, got.QformCode != 2, got.SformCode != 0, got.Descrip != h.Descrip, got.Units != h.Units, got.Pixdim[2] != 0.75:
		t.Errorf("%+v", got)
	case got.SclSlope != 1, got.SclInter != 0, got.Datatype != nifti.Int16:
		t.Errorf("scaling %v, %v of %v", got.SclSlope, got.SclInter, got.Datatype)
	case !near(a, source):
		t.Errorf("affine %v, the scan's is %v", a, source)
	}
	for i, x := range voxels {
		if x != float64(2*i-10) {
			t.Fatalf("voxel %d is %v HU (want %d)", i, x, 2*i-10)
		}
	}
}

// A volume that came without a header has its geometry.
func TestWithoutHeader(t *testing.T) {
	v, _ := blank("a", [3]int{2, 3, 4})
	v.Geometry.Source[0][3] = 17
	path := filepath.Join(t.TempDir(), "a.nii")
	all(t, Write(slabs(t, v, 4), Options{}, map[string]string{"a": path}, nil, nil))
	h, _ := get(t, path)
	if a, _ := h.Affine(); !near(a, v.Geometry.Source) {
		t.Error(a)
	}
}

// What was resampled comes back on the scan's grid: a ramp stays that ramp, away from the faces.
func TestRestore(t *testing.T) {
	dir := t.TempDir()
	back := func(v *volume.Volume) Restorer { return read.Restore(v.Scan, v.Geometry) }
	for n, a := range orientations() {
		if n%5 != 0 {
			continue
		}
		dims := [3]int{9, 8, 7}
		ramp := func(i int) int16 { return int16(10*(i%9) - 20*(i/9%8) + 30*(i/72)) }
		path := filepath.Join(dir, "a.nii")
		put(t, path, nifti.New(nifti.Int16, dims, a), ramp)
		ro := options(path)
		ro.Spacing = [3]float64{0.5, 0.6, 0.7}
		v, freed := load(t, ro)
		o := Options{Dir: dir, Dtype: Float32, Suffix: "_out"}
		all(t, Write(slabs(t, v, 3), o, must(Names([]*volume.Scan{v.Scan}, o)), back, nil))
		h, voxels := get(t, filepath.Join(dir, "a_out.nii"))
		if b, _ := h.Affine(); !near(a, b) || !*freed {
			t.Fatal(b, *freed)
		}
		for i, x := range voxels {
			p := [3]int{i % 9, i / 9 % 8, i / 72}
			inside := true
			for c, d := range dims {
				inside = inside && p[c] > 1 && p[c] < d-2
			}
			// Linear interpolation leaves a ramp but for rounding to steps of 1/32 HU on the way.
			if want := float64(ramp(i)); inside && math.Abs(x-want) > 0.1 {
				t.Fatalf("%v: voxel %v is %v HU (want %v)", a, p, x, want)
			}
		}
	}
}

// The whole way: read, tile, cut, merge, write. What a model leaves alone is the scan, clipped to the window.
func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	all48 := orientations()
	rapid.Check(t, func(t *rapid.T) {
		dims := [3]int{rapid.IntRange(1, 12).Draw(t, "x"), rapid.IntRange(1, 12).Draw(t, "y"), rapid.IntRange(1, 40).Draw(t, "z")}
		path := filepath.Join(dir, "a.nii")
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "voxels"), 0))
		data := make([]int16, dims[0]*dims[1]*dims[2])
		h := nifti.New(nifti.Int16, dims, rapid.SampledFrom(all48).Draw(t, "affine"))
		h.SclSlope = rapid.SampledFrom([]float64{1, 0.5}).Draw(t, "slope") // halves are rounded up
		put(t, path, h, func(i int) int16 { data[i] = int16(r.IntN(8000) - 4000); return data[i] })
		ro := options(path)
		ro.WindowHU = [2]float64{float64(rapid.IntRange(-3000, 0).Draw(t, "low")), 0}
		ro.WindowHU[1] = ro.WindowHU[0] + float64(rapid.IntRange(2000, 9000).Draw(t, "width"))
		v, freed := load(t, ro)
		to := tile.Options{Mode: tile.ModeGrid}
		var multiple [3]int
		for a := range 3 {
			multiple[a] = rapid.SampledFrom([]int{1, 2, 4}).Draw(t, "multiple")
			to.Patch[a] = multiple[a] * rapid.IntRange(2, 4).Draw(t, "patch")
		}
		scratch := batch.NewScratch(1)
		outs := func(yield func(*volume.Output) bool) {
			for p, err := range tile.Tiles(v, to, 0, multiple) {
				if err != nil {
					t.Fatal(err)
				}
				out := &volume.Output{Tag: p.Tag, Volume: p.Volume, Voxels: make([]float32, p.Size[0]*p.Size[1]*p.Size[2])}
				if err := batch.Cut(out.Voxels, p, scratch); err != nil {
					t.Fatal(err)
				}
				if !yield(out) {
					return
				}
			}
		}
		grid := func(v *volume.Volume) (volume.Grid, error) {
			return to.Grid(v.Dims, multiple)
		}
		merged := func(yield func(*volume.Slab) bool) {
			for s, err := range merge.Merge(outs, merge.Options{Window: merge.Hann}, grid, nil) {
				if err != nil {
					t.Fatal(err)
				}
				if !yield(s) {
					return
				}
			}
		}
		o := Options{Dir: dir, Dtype: Int16, Suffix: "_out"}
		all(t, Write(merged, o, must(Names([]*volume.Scan{v.Scan}, o)), nil, nil))
		if !*freed {
			t.Fatal("the volume is still held")
		}
		_, voxels := get(t, filepath.Join(dir, "a_out.nii"))
		for i, x := range voxels {
			hu := min(max(h.SclSlope*float64(data[i]), ro.WindowHU[0]), ro.WindowHU[1])
			if want := math.Floor(hu + 0.5); x != want {
				t.Fatalf("voxel %d is %v (want %v of %v)", i, x, want, hu)
			}
		}
	})
}

func TestErrors(t *testing.T) {
	dims := [3]int{3, 2, 6}
	for _, c := range []struct {
		name string
		o    Options
		poke func(v *volume.Volume, s []*volume.Slab) []*volume.Slab
		want string
	}{
		{"gap", Options{}, func(_ *volume.Volume, s []*volume.Slab) []*volume.Slab {
			s[1].Release()
			return slices.Delete(s, 1, 2)
		}, "scan a: slices 4 to 5 of 6 came where 2 is next"},
		{"twice", Options{}, func(v *volume.Volume, s []*volume.Slab) []*volume.Slab { s[1].Z0, s[1].Z1 = 0, 2; return s },
			"scan a: slices 0 to 1 of 6 came where 2 is next"},
		{"past the end", Options{}, func(v *volume.Volume, s []*volume.Slab) []*volume.Slab { s[2].Z1 = 7; return s },
			"scan a: slices 4 to 6 of 6 came where 4 is next"},
		{"too few voxels", Options{}, func(v *volume.Volume, s []*volume.Slab) []*volume.Slab { s[1].Voxels = s[1].Voxels[1:]; return s },
			"scan a: slices 2 to 3 have 11 voxels (want 12)"},
		{"missing", Options{}, func(_ *volume.Volume, s []*volume.Slab) []*volume.Slab { s[2].Release(); return s[:2] },
			"missing: scan b: slices 3 to 5 of 6; scan a: slices 4 to 5 of 6"},
		{"after the last", Options{}, func(v *volume.Volume, s []*volume.Slab) []*volume.Slab {
			return append(s, &volume.Slab{Volume: v.Retain(), Z0: 0, Z1: 2, Voxels: make([]float32, 12)})
		}, "scan a: slabs after its last one"},
		{"another epoch", Options{}, func(v *volume.Volume, s []*volume.Slab) []*volume.Slab {
			other, _ := blank("a", dims)
			other.Epoch = 3
			s[1].Volume.Release()
			s[1].Volume = other
			return s
		}, "scan a: a slab of [3 2 6] voxels in epoch 3 among those of [3 2 6] in epoch 0"},
		{"NaN", Options{}, func(v *volume.Volume, s []*volume.Slab) []*volume.Slab {
			s[1].Voxels[8] = float32(math.NaN())
			return s
		}, "scan a: slice 3: a voxel isn't a number"},
		{"a window that int16 can't hold", Options{Dtype: Int16}, func(v *volume.Volume, s []*volume.Slab) []*volume.Slab {
			v.Window[1] = 40000
			return s
		}, "scan a: dtype: int16 can't hold the HU of the window [-1000, 40000] (want float32)"},
		{"a name", Options{}, func(v *volume.Volume, s []*volume.Slab) []*volume.Slab { v.Scan.ID = "c"; return s },
			"scan c: no name to write it to"},
		{"no way back", Options{}, func(v *volume.Volume, s []*volume.Slab) []*volume.Slab { v.Geometry.Resample = true; return s },
			"scan a: it was resampled, and there is no way back"},
		{"another grid", Options{}, func(v *volume.Volume, s []*volume.Slab) []*volume.Slab { v.Geometry.Dims[1] = 3; return s },
			"scan a: geometry: a file of [3 3 6] voxels for a volume of [3 2 6]"},
		{"axes", Options{}, func(v *volume.Volume, s []*volume.Slab) []*volume.Slab { v.Geometry.Axes[1] = 0; return s },
			"scan a: geometry: axes [0 0 2] aren't an order of three"},
		{"no grid", Options{}, func(v *volume.Volume, s []*volume.Slab) []*volume.Slab { v.Geometry.Dims = [3]int{}; return s },
			"scan a: geometry: a file of [0 0 0] voxels"},
		{"header", Options{}, func(v *volume.Volume, s []*volume.Slab) []*volume.Slab { v.Geometry.Header = make([]byte, 9); return s },
			"scan a: header: not NIfTI: sizeof_hdr=0 (want 348 or 540 in either byte order)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			v, freed := blank("a", dims)
			b, freedB := blank("b", dims)
			list := slices.Collect(slabs(t, v.Retain(), 2))
			list = c.poke(v, list)
			v.Release()
			list = slices.Insert(list, 0, slices.Collect(slabs(t, b, 3))...) // another scan, under way
			list[1].Release()
			list = slices.Delete(list, 1, 2)
			names := map[string]string{"a": filepath.Join(dir, "x", "a.nii"), "b": filepath.Join(dir, "b.nii.gz")}
			taken := 0
			var in iter.Seq[*volume.Slab] = func(yield func(*volume.Slab) bool) {
				for _, s := range list {
					taken++
					if !yield(s) {
						return
					}
				}
			}
			var got error
			for _, err := range Write(in, c.o, names, nil, nil) {
				got = err
			}
			if got == nil || !strings.Contains(got.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", got, c.want)
			}
			for _, s := range list[taken:] {
				s.Release()
			}
			if !*freed || !*freedB {
				t.Error("the volume is still held")
			}
			var want []string
			if c.name == "after the last" {
				want = []string{"x/a.nii"} // it was whole
			}
			if left := inFolder(t, dir); !slices.Equal(left, want) {
				t.Errorf("left: %v (want %v)", left, want)
			}
		})
	}
}

// Where the data was cut short, what is unfinished goes, without an error; and so it does when a consumer has enough.
func TestStopsLeaveNoPartialFiles(t *testing.T) {
	dims := [3]int{3, 2, 6}
	for n := range 7 {
		dir := t.TempDir()
		names := map[string]string{"a": filepath.Join(dir, "a.nii.gz"), "b": filepath.Join(dir, "b.nii")}
		var freed [2]*bool
		in := func(yield func(*volume.Slab) bool) {
			for i, id := range []string{"a", "b"} {
				var v *volume.Volume
				v, freed[i] = blank(id, dims)
				k := 0
				for s := range slabs(t, v, 1) {
					if i == 1 && k == n {
						s.Release()
						break
					}
					if k++; !yield(s) {
						return
					}
				}
			}
		}
		written := all(t, Write(in, Options{}, names, nil, func() bool { return true }))
		want := []string{"a.nii.gz", "b.nii"}[:1+n/6]
		if got := inFolder(t, dir); len(written) != len(want) || !slices.Equal(got, want) || !*freed[0] || !*freed[1] {
			t.Errorf("stopped after %d slabs: wrote %v, left %v", n, written, got)
		}
		for w, err := range Write(in, Options{}, map[string]string{"a": names["a"] + "2.nii", "b": names["b"]}, nil, nil) {
			if w.Scan != "a" || err != nil {
				t.Error(w, err)
			}
			break
		}
		if got := inFolder(t, dir); len(got) != len(want)+1 || !*freed[0] {
			t.Errorf("broken off: left %v", got)
		}
	}
}

// What a process that was killed left of the files that are written goes; what else ends in .tmp is somebody else's.
func TestKilledRunsLeaveNothing(t *testing.T) {
	dir := t.TempDir()
	v, _ := blank("a.nii", [3]int{3, 2, 4})
	o := Options{Dir: dir, Suffix: "_out"}
	names := must(Names([]*volume.Scan{v.Scan}, o))
	target := names["a.nii"]
	h := nifti.New(nifti.Int16, [3]int{3, 2, 4}, identity)
	must(nifti.Create(target, h)) // and never closed
	others := []string{".b_out.nii.0123456789abcdef.tmp", "a_out.nii.0123456789abcdef.tmp", ".a_out.nii.0123456789abcdex.tmp", ".a_out.nii.tmp", ".tmp"}
	for _, name := range others {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	all(t, Write(slabs(t, v, 1), o, names, nil, nil))
	want := append(slices.Clone(others), filepath.Base(target))
	slices.Sort(want)
	if got := inFolder(t, dir); !slices.Equal(got, want) {
		t.Errorf("left are %q (want %q)", got, want)
	}
}

// A scan is never written over, not even by another name.
func TestTheScanIsSafe(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.nii")
	put(t, path, nifti.New(nifti.Int16, [3]int{2, 2, 2}, identity), func(i int) int16 { return int16(i) })
	link := filepath.Join(dir, "b.nii")
	if err := os.Link(path, link); err != nil {
		t.Skip(err)
	}
	v, _ := load(t, options(path))
	for _, err := range Write(slabs(t, v, 1), Options{}, map[string]string{v.Scan.ID: link}, nil, nil) {
		if err == nil || !strings.HasSuffix(err.Error(), "b.nii is the scan itself") {
			t.Error(err)
		}
	}
}

func TestBytes(t *testing.T) {
	dims := [3]int{512, 500, 600}
	const slice, fixed = 512 * 500, 1 << 20
	g := volume.Geometry{Dims: dims, Axes: [3]int{0, 1, 2}}
	upsideDown, coronal, sagittal := g, g, g
	upsideDown.Flip[2] = true
	coronal.Axes = [3]int{0, 2, 1}
	sagittal.Axes = [3]int{1, 2, 0}
	for _, c := range []struct {
		g    volume.Geometry
		o    Options
		want int64
	}{
		{g, Options{}, fixed + 2*slice},
		{g, Options{Dtype: Float32}, fixed + 4*slice},
		{upsideDown, Options{Dtype: Int16}, fixed + 2*600*slice},
		{coronal, Options{Dtype: Float32}, fixed + 4*600*slice},
		{sagittal, Options{}, fixed + 2*600*slice + 2*32*500*600},
	} {
		if got := Bytes(c.g, c.o); got != c.want {
			t.Errorf("%+v, %+v: %d bytes (want %d)", c.g, c.o, got, c.want)
		}
	}
	if Bytes(g, Options{Gz: true}) <= Bytes(g, Options{}) {
		t.Error("compression is said to take nothing")
	}
}

// torn is Samples that can't be read.
type torn struct{ volume.Memory }

func (*torn) Rows(int, int, int, []int16) ([]int16, error) { return nil, errors.New("torn") }

// Of a scan that is lost in the middle nothing stays, whoever found that out; others are written.
func TestLostScansAreNotWritten(t *testing.T) {
	dims := [3]int{4, 3, 6}
	for _, at := range []int{0, 2, 5, 6} { // 6: when all of its slabs but the last one have come
		dir := t.TempDir()
		lost, freed := blank("lost", dims)
		lost.Own(&torn{}, func() { *freed = true })
		good, goodFreed := blank("good", dims)
		slab := func(v *volume.Volume, z int) *volume.Slab {
			return &volume.Slab{Volume: v.Retain(), Z0: z, Z1: z + 1, Voxels: make([]float32, 12)}
		}
		in := func(yield func(*volume.Slab) bool) {
			defer lost.Release()
			defer good.Release()
			for z := range dims[2] {
				if z == at {
					_, _ = lost.Rows(0, 0, 1, nil)
				}
				if (z < 5 || at < 5) && !yield(slab(lost, z)) || !yield(slab(good, z)) {
					return
				}
				if at > 0 && z == at && slices.ContainsFunc(inFolder(t, dir), func(f string) bool { return strings.Contains(f, "lost") }) {
					t.Error("what was written of it is still there")
				}
			}
			if at == dims[2] {
				_, _ = lost.Rows(0, 0, 1, nil)
			}
		}
		names := map[string]string{"lost": filepath.Join(dir, "lost.nii"), "good": filepath.Join(dir, "good.nii")}
		list := all(t, Write(in, Options{Dir: dir}, names, nil, nil))
		if len(list) != 1 || list[0].Scan != "good" || !slices.Equal(inFolder(t, dir), []string{"good.nii"}) || !*freed || !*goodFreed {
			t.Errorf("lost at %d: %v, %v", at, list, inFolder(t, dir))
		}
	}
}
