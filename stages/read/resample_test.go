package read

import (
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/volume"
	"pgregory.net/rapid"
)

// One axis by hand: 4 voxels of 1 mm, at 0.5, 1.5, 2.5 and 3.5 mm. The first is clipped before anything else.
func TestResampleByHand(t *testing.T) {
	for _, c := range []struct {
		spacing float64
		want    []float64
	}{
		{1, []float64{-1000, -900, 100, 200}},
		{2, []float64{-950, 150}}, // at 1 and 3 mm
		{4, []float64{-400}},      // at 2 mm
		// At 0.25, 0.75 mm …: by quarters, and beyond the outermost centres the edge.
		{0.5, []float64{-1000, -975, -925, -650, -150, 125, 175, 200}},
		{100, []float64{200}}, // never less than one voxel
	} {
		path := filepath.Join(t.TempDir(), "a.nii")
		putReal(t, path, nifti.Int16, [3]int{4, 1, 1}, []float64{-2000, -900, 100, 200}, nil)
		o := defaults()
		o.Spacing = [3]float64{c.spacing, 1, 1}
		v, got := loaded(t, path, o)
		if len(got) != len(c.want) || !v.Geometry.Resample || v.Scan.Spacing != o.Spacing || v.Dims != v.Scan.Dims {
			t.Fatalf("%v mm: %v (want %v), %+v", c.spacing, got, c.want, v.Geometry)
		}
		for i := range got {
			if math.Abs(got[i]-c.want[i]) > 1./64 {
				t.Errorf("%v mm: %v (want %v)", c.spacing, got, c.want)
			}
		}
	}
}

// A scan of which resampling would leave nothing is bad, not a single voxel: its header's voxel size is wrong, or in metres.
func TestResampleToNothing(t *testing.T) {
	for dims, want := range map[[3]int]string{{4, 3, 1}: "spacing 1000 mm is more than 100 times the 1 mm of the header along axis 0", {1, 1, 1}: ""} {
		path := filepath.Join(t.TempDir(), "a.nii")
		putReal(t, path, nifti.Int16, dims, make([]float64, dims[0]*dims[1]*dims[2]), nil)
		o := defaults(path)
		o.Spacing = [3]float64{1000, 1000, 1000}
		if _, _, err := List(t.Context(), o); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", dims, err)
		}
	}
}

// A header's lengths may be in metres: spacing is in mm all the same.
func TestResampleMetres(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.nii")
	putReal(t, path, nifti.Int16, [3]int{4, 6, 8}, make([]float64, 192), func(h *nifti.Header) {
		*h = *nifti.New(nifti.Int16, [3]int{4, 6, 8}, volume.Affine{{1e-3, 0, 0, 0}, {0, 1e-3, 0, 0}, {0, 0, 2e-3, 0}})
		h.Units = 1
	})
	o := defaults(path)
	o.Spacing = [3]float64{2, 2, 2}
	if s := one(t, path, o); s.Dims != [3]int{2, 3, 8} {
		t.Errorf("%v", s.Dims)
	}
	o.Spacing = [3]float64{}
	if s := one(t, path, o); math.Abs(s.Spacing[2]-2) > 1e-6 {
		t.Errorf("spacing %v mm", s.Spacing)
	}
}

// A ramp in world coordinates stays that ramp, in any orientation and at any spacing, away from the faces; and Restore
// brings it back to the file's grid.
func TestResampleKeepsPlaces(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		dims := [3]int{rapid.IntRange(3, 14).Draw(rt, "x"), rapid.IntRange(3, 14).Draw(rt, "y"), rapid.IntRange(3, 14).Draw(rt, "z")}
		perm := rapid.Permutation([]int{0, 1, 2}).Draw(rt, "axes")
		mm := rapid.Float64Range(0.4, 3)
		var a volume.Affine
		for f, c := range perm {
			a[c][f] = mm.Draw(rt, "mm")
			if rapid.Bool().Draw(rt, "flip") {
				a[c][f] = -a[c][f]
			}
		}
		ramp := func(p [3]float64) float64 { return 3*p[0] - 5*p[1] + 7*p[2] }
		world := func(a volume.Affine, v [3]float64) (p [3]float64) {
			for i := range 3 {
				p[i] = a[i][0]*v[0] + a[i][1]*v[1] + a[i][2]*v[2] + a[i][3]
			}
			return p
		}
		var samples []float64
		for k := range dims[2] {
			for j := range dims[1] {
				for i := range dims[0] {
					samples = append(samples, ramp(world(a, [3]float64{float64(i), float64(j), float64(k)})))
				}
			}
		}
		path := filepath.Join(dir, "a.nii")
		putReal(t, path, nifti.Float64, dims, samples, func(h *nifti.Header) { h.Version = 2; h.SetAffine(a, 1) })
		o := defaults()
		o.Spacing = [3]float64{mm.Draw(rt, "to x"), mm.Draw(rt, "to y"), mm.Draw(rt, "to z")}
		v, got := loaded(t, path, o)
		g := v.Geometry
		// Voxel o of the result, in voxels of the canonical grid.
		place := func(c int, o, size float64) float64 { return (o+0.5)*size/g.Spacing[c] - 0.5 }
		canonical := [3]int{dims[g.Axes[0]], dims[g.Axes[1]], dims[g.Axes[2]]}
		i := 0
		for z := range v.Dims[2] {
			for y := range v.Dims[1] {
				for x := range v.Dims[0] {
					p := [3]float64{place(0, float64(x), o.Spacing[0]), place(1, float64(y), o.Spacing[1]), place(2, float64(z), o.Spacing[2])}
					for c := range p {
						p[c] = min(max(p[c], 0), float64(canonical[c]-1))
					}
					if want := ramp(world(g.Affine, p)); math.Abs(got[i]-want) > 0.05 {
						rt.Fatalf("voxel %d %d %d: %v (want %v)", x, y, z, got[i], want)
					}
					i++
				}
			}
		}
		r := Restore(v.Scan, g)
		slices := 0
		for z := range v.Dims[2] {
			slice := make([]float32, v.Dims[0]*v.Dims[1])
			for i := range slice {
				slice[i] = float32(got[z*len(slice)+i])
			}
			err := r.Push(slice, func(z int, slice []float32) error {
				if z != slices || len(slice) != canonical[0]*canonical[1] {
					rt.Fatalf("slice %d of %d voxels (want %d)", z, len(slice), slices)
				}
				slices++
				for i, x := range slice {
					p := [3]int{i % canonical[0], i / canonical[0], z}
					inside := true
					for c := range 3 { // between the centres of the outermost voxels of both grids
						at := (float64(p[c])+0.5)*g.Spacing[c]/o.Spacing[c] - 0.5
						lo, hi := place(c, math.Max(math.Floor(at), 0), o.Spacing[c]), place(c, math.Floor(at)+1, o.Spacing[c])
						inside = inside && at >= 0 && at <= float64(v.Dims[c]-1) && lo >= 0 && hi <= float64(canonical[c]-1)
					}
					if want := ramp(world(g.Affine, [3]float64{float64(p[0]), float64(p[1]), float64(p[2])})); inside && math.Abs(float64(x)-want) > 0.1 {
						rt.Fatalf("restored voxel %v: %v (want %v)", p, x, want)
					}
				}
				return nil
			})
			if err != nil {
				rt.Fatal(err)
			}
		}
		if slices != canonical[2] {
			rt.Fatalf("%d of %d slices restored", slices, canonical[2])
		}
		if err := r.Push(make([]float32, v.Dims[0]*v.Dims[1]), nil); err == nil {
			rt.Fatal("a slice too many")
		}
	})
}

// A volume that wasn't resampled is restored as it is.
func TestRestoreOfTheSameGrid(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.nii")
	put(t, path, [3]int{3, 4, 5}, lps, func(i, j, k int) int16 { return int16(i + 10*j + 100*k) })
	v, got := loaded(t, path, defaults())
	r := Restore(v.Scan, v.Geometry)
	n := 0
	for z := range 5 {
		slice := make([]float32, 12)
		for i := range slice {
			slice[i] = float32(got[12*z+i])
		}
		if err := r.Push(slice, func(at int, out []float32) error {
			for i := range out {
				if at != z || out[i] != slice[i] {
					t.Fatal(at, z, out, slice)
				}
			}
			n++
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if n != 5 {
		t.Error(n)
	}
}

func TestSpacingIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.nii")
	small(t, path)
	for _, s := range []float64{1e-12, 1e-4} {
		o := defaults(path)
		o.Spacing = [3]float64{s, s, s}
		if _, _, err := List(t.Context(), o); err == nil {
			t.Errorf("spacing %v is accepted", s)
		}
	}
}
