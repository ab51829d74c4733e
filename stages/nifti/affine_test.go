package nifti

import (
	"math"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/volume"
	"pgregory.net/rapid"
)

func TestAffineChoice(t *testing.T) {
	sform := volume.Affine{{-2, 0, 0, 10}, {0, 3, 0, 20}, {0, 0, 4, 30}}
	singular := volume.Affine{{2, 2, 0, 0}, {2, 2, 0, 0}, {0, 0, 4, 0}}
	flat := volume.Affine{{2, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 4, 0}}
	broken := sform
	broken[1][1] = math.NaN()
	// Half a turn about z: x and y reversed.
	turned := volume.Affine{{-2, 0, 0, 1}, {0, -3, 0, 2}, {0, 0, 4, 3}}
	mirrored := turned
	mirrored[2][2] = -4
	plain := volume.Affine{{2, 0, 0, 0}, {0, 3, 0, 0}, {0, 0, 4, 0}}
	sheared := volume.Affine{{2, 1.5, 0, 0}, {0.5, 3, 0, 0}, {0, 0.3, 4, 7}}
	for _, c := range []struct {
		name         string
		sform        volume.Affine
		scode, qcode int64
		qfac         float64
		want         volume.Affine
		warn         string // part of a warning; none if empty
	}{
		{"sform", sform, 1, 0, 1, sform, ""},
		{"sform and qform differ", sform, 1, 1, 1, sform, "sform and qform differ"},
		{"sform and qform agree", turned, 2, 1, 1, turned, ""},
		{"sform not set", sform, 0, 1, 1, turned, ""},
		{"qfac -1", sform, 0, 1, -1, mirrored, ""},
		{"qfac 0 means 1", sform, 0, 1, 0, turned, ""},
		{"neither", sform, 0, 0, 1, plain, "no orientation"},
		{"singular sform", singular, 1, 1, 1, turned, "sform can't be inverted"},
		{"flat sform", flat, 1, 0, 1, plain, "sform can't be inverted"},
		{"NaN in sform", broken, 1, 1, 1, turned, "sform can't be inverted"},
		{"zeros", volume.Affine{}, 1, 0, 1, plain, "sform can't be inverted"},
		{"sheared", sheared, 1, 0, 1, sheared, ""},
	} {
		h := &Header{Pixdim: [8]float64{c.qfac, 2, 3, 4}, Srow: c.sform, SformCode: c.scode, QformCode: c.qcode,
			Quatern: [3]float64{0, 0, 1}, Qoffset: [3]float64{1, 2, 3}}
		a, warnings := h.Affine()
		text := strings.Join(warnings, "; ")
		if !close(a, c.want) || c.warn == "" && text != "" || !strings.Contains(text, c.warn) {
			t.Errorf("%s: %v, %q", c.name, a, text)
		}
	}
	h := &Header{Pixdim: [8]float64{1, 0, math.NaN(), 3}, Units: 3}
	if a, w := h.Affine(); !close(a, volume.Affine{{1, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 3e-3, 0}}) || len(w) != 4 {
		t.Errorf("no voxel size: %v, %q", a, w)
	}
}

// Lengths in metres and micrometres become mm, wherever the map comes from.
func TestUnits(t *testing.T) {
	want := volume.Affine{{-0.5, 0, 0, 100}, {0, -0.5, 0, 200}, {0, 0, 3, 300}}
	for units, c := range map[int64]struct {
		length float64 // of a mm
		warn   string
	}{0: {1, ""}, 1: {1e-3, "metres; converted to mm"}, 2: {1, ""}, 3: {1e3, "micrometres; converted to mm"}, 7: {1, ""}, 8 + 1: {1e-3, "metres; converted to mm"}} {
		for codes := range int64(3) {
			h := &Header{Units: units, Pixdim: [8]float64{1, 0.5 * c.length, 0.5 * c.length, 3 * c.length}, SformCode: codes & 1, QformCode: codes >> 1,
				Srow: scaled(want, c.length), Quatern: [3]float64{0, 0, 1}, Qoffset: [3]float64{100 * c.length, 200 * c.length, 300 * c.length}}
			expected := want
			if codes == 0 {
				expected = volume.Affine{{0.5, 0, 0, 0}, {0, 0.5, 0, 0}, {0, 0, 3, 0}}
			}
			a, warnings := h.Affine()
			text := strings.Join(warnings, "; ")
			if !close(a, expected) || strings.Contains(text, "mm") != (c.warn != "") || !strings.Contains(text, c.warn) {
				t.Errorf("units %d, codes %d: %v, %q", units, codes, a, text)
			}
		}
	}
}

func close(a, b volume.Affine) bool {
	for i := range 3 {
		for j := range 4 {
			if math.Abs(a[i][j]-b[i][j]) > 1e-6 {
				return false
			}
		}
	}
	return true
}

// The rotation of a quaternion, against the turn by an angle about an axis (Rodrigues' formula).
func TestQform(t *testing.T) {
	// Half a turn, of which rounding made the quaternion longer than 1.
	h := &Header{Pixdim: [8]float64{1, 1, 1, 1}, Quatern: [3]float64{0, 0, 1.0001}}
	if a, ok := h.qform(); !ok || !close(a, volume.Affine{{-1, 0, 0, 0}, {0, -1, 0, 0}, {0, 0, 1, 0}}) {
		t.Error(a, ok)
	}
	rapid.Check(t, func(t *rapid.T) {
		angle := rapid.Float64Range(0, math.Pi).Draw(t, "angle") // a = cos(angle/2) ≥ 0
		n := [3]float64{rapid.Float64Range(-1, 1).Draw(t, "x"), rapid.Float64Range(-1, 1).Draw(t, "y"), 1}
		s := math.Hypot(math.Hypot(n[0], n[1]), n[2])
		h := &Header{Pixdim: [8]float64{1, 1, 1, 1}}
		for i := range n {
			n[i] /= s
			h.Quatern[i] = n[i] * math.Sin(angle/2)
		}
		a, ok := h.qform()
		cross := [3][3]float64{{0, -n[2], n[1]}, {n[2], 0, -n[0]}, {-n[1], n[0], 0}}
		for i := range 3 {
			for j := range 3 {
				want := (1-math.Cos(angle))*n[i]*n[j] + math.Sin(angle)*cross[i][j]
				if i == j {
					want += math.Cos(angle)
				}
				if !ok || math.Abs(a[i][j]-want) > 1e-3 {
					t.Fatalf("angle %v about %v: %v", angle, n, a)
				}
			}
		}
	})
}

var anyAffine = rapid.Custom(func(t *rapid.T) volume.Affine {
	x := rapid.Float64Range(-3, 3)
	for {
		var a volume.Affine
		for i := range 3 {
			for j := range 4 {
				a[i][j] = x.Draw(t, "a")
			}
		}
		a[0][rapid.IntRange(0, 2).Draw(t, "main")] += 4
		if invertible(a) {
			return a
		}
	}
})

// After Reorient the axes run along the world's as well as they can, each voxel keeps its place in the world, and
// Undo leads back.
func TestReorient(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := anyAffine.Draw(t, "affine")
		dims := [3]int{rapid.IntRange(1, 5).Draw(t, "x"), rapid.IntRange(1, 5).Draw(t, "y"), rapid.IntRange(1, 5).Draw(t, "z")}
		axes, flip := Canonical(a)
		b, out := Reorient(a, dims, axes, flip)
		if p, f := Canonical(b); p != [3]int{0, 1, 2} || f != [3]bool{} {
			t.Fatalf("%v turns to %v, still %v %v", a, b, p, f)
		}
		start, step := Place(dims, axes, flip)
		seen := map[int]bool{}
		for k := range dims[2] {
			for j := range dims[1] {
				for i := range dims[0] {
					at := start + i*step[0] + j*step[1] + k*step[2]
					c := [3]int{at % out[0], at / out[0] % out[1], at / out[0] / out[1]}
					seen[at] = true
					for w := range 3 {
						p := a[w][0]*float64(i) + a[w][1]*float64(j) + a[w][2]*float64(k) + a[w][3]
						q := b[w][0]*float64(c[0]) + b[w][1]*float64(c[1]) + b[w][2]*float64(c[2]) + b[w][3]
						if math.Abs(p-q) > 1e-9 {
							t.Fatalf("voxel %d %d %d moves in the world", i, j, k)
						}
					}
				}
			}
		}
		if len(seen) != dims[0]*dims[1]*dims[2] {
			t.Fatal("two voxels in one place")
		}
		p, f := Undo(axes, flip)
		if back, d := Reorient(b, out, p, f); !close(back, a) || d != dims {
			t.Fatalf("back to %v %v from %v %v", back, d, a, dims)
		}
	})
}

// LPS, as most CT is stored; a sagittal series; one turned by more than half of a right angle.
func TestCanonical(t *testing.T) {
	for _, c := range []struct {
		a    volume.Affine
		axes [3]int
		flip [3]bool
	}{
		{volume.Affine{{-1, 0, 0, 0}, {0, -1, 0, 0}, {0, 0, 3, 0}}, [3]int{0, 1, 2}, [3]bool{true, true, false}},
		{volume.Affine{{0, 0, 2, 0}, {1, 0, 0, 0}, {0, -1, 0, 0}}, [3]int{2, 0, 1}, [3]bool{false, false, true}},
		{volume.Affine{{0.6, -0.8, 0, 0}, {0.8, 0.6, 0, 0}, {0, 0, 1, 0}}, [3]int{1, 0, 2}, [3]bool{true, false, false}},
	} {
		if axes, flip := Canonical(c.a); axes != c.axes || flip != c.flip {
			t.Errorf("%v: %v %v", c.a, axes, flip)
		}
	}
}
