package report

import (
	"errors"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// look shows a volume to a new WorstSlice.
func look(t interface{ Fatal(...any) }, orig, recon []float32, size [3]int) (o, r Cuts, at [3]int) {
	w, err := NewWorstSlice(size, -1)
	if err != nil {
		t.Fatal(err)
	}
	plane := size[0] * size[1]
	for z := range size[2] {
		if err := w.Slice(orig[z*plane:][:plane], recon[z*plane:][:plane]); err != nil {
			t.Fatal(err)
		}
	}
	if o, r, at, err = w.Cuts(); err != nil {
		t.Fatal(err)
	}
	return o, r, at
}

func TestWorstSliceMeetsTheWorstVoxel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// So few voxels that every plane is a candidate; one is far off, the others by less than it could outweigh.
		var size, want [3]int
		for a := range 3 {
			size[a] = rapid.IntRange(1, 9).Draw(t, "size")
			want[a] = rapid.IntRange(0, size[a]-1).Draw(t, "worst")
		}
		n := size[0] * size[1] * size[2]
		orig := make([]float32, n)
		for i := range orig {
			orig[i] = float32(i%50)/60 - 0.5
		}
		recon := slices.Clone(orig)
		recon[(want[2]*size[1]+want[1])*size[0]+want[0]] = rapid.SampledFrom([]float32{1, -1, 5, float32(math.NaN())}).Draw(t, "off")
		o, r, at := look(t, orig, recon, size)
		if at != want {
			t.Fatalf("at %v, want %v", at, want)
		}
		for i, vox := range [][]float32{orig, recon} {
			c := cut(t, vox, size, at)
			got := []Cuts{o, r}[i]
			for j, p := range [][2][]float32{{got.Axial, c.Axial}, {got.Coronal, c.Coronal}, {got.Sagittal, c.Sagittal}} {
				if len(p[0]) != len(p[1]) {
					t.Fatalf("plane %d has %d pixels, want %d", j, len(p[0]), len(p[1]))
				}
				for k, x := range p[1] {
					if x > 1 && j > 0 {
						x = 1 // 16 bits hold no more
					}
					if !(math.Abs(float64(p[0][k]-x)) < 2e-5) && !(x != x && p[0][k] != p[0][k]) {
						t.Fatalf("volume %d plane %d pixel %d: %v, want %v", i, j, k, p[0][k], x)
					}
				}
			}
		}
	})
}

func TestWorstSliceChoosesAmongCandidates(t *testing.T) {
	size := [3]int{160, 32, 2} // candidates: x = 5, 15, … and y = 1, 3, …
	orig := make([]float32, 160*32*2)
	recon := make([]float32, len(orig))
	for z := range 2 {
		for y := range 32 {
			recon[(z*32+y)*160+15] = 0.1
			recon[(z*32+y)*160+16] = 0.9 // larger, but not kept
		}
		recon[(z*32+7)*160+3] = 0.2
	}
	if _, _, at := look(t, orig, recon, size); at != [3]int{15, 7, 0} {
		t.Errorf("at %v", at)
	}
	if _, _, at := look(t, orig, orig, size); at != [3]int{5, 1, 0} { // nothing wrong: the first
		t.Errorf("at %v", at)
	}
}

func TestWorstSliceRefuses(t *testing.T) {
	_, err := NewWorstSlice([3]int{0, 1, 1}, -1)
	refuse(t, "[0 1 1]", err)
	w, err := NewWorstSlice([3]int{2, 1, 1}, -1)
	if err != nil {
		t.Fatal(err)
	}
	refuse(t, "want 1 slices of 2", w.Slice(make([]float32, 2), make([]float32, 1)))
	_, _, _, err = w.Cuts()
	refuse(t, "0 slices of 1", err)
	if err := w.Slice(make([]float32, 2), make([]float32, 2)); err != nil {
		t.Fatal(err)
	}
	refuse(t, "slice 1", w.Slice(make([]float32, 2), make([]float32, 2)))
}

func TestGridIsDrawnOverTheErrors(t *testing.T) {
	s := flat([3]int{40, 40, 40}, [3]float64{1, 1, 1}, -0.5, 0) // 10 pixels a voxel
	plain, err := Render(s)
	if err != nil {
		t.Fatal(err)
	}
	s.Grid = [3][]int{{10}, {30, 0, 40}, {-1}}
	drawn, err := Render(s)
	if err != nil {
		t.Fatal(err)
	}
	// Below the head: the axial picture has a column at x=10, 300 pixels from the left as x falls to the right, and a row
	// at y=30, 100 from the top; the coronal one the column, the sagittal one a column at y=30.
	left := drawn.Bounds().Dx() - margin - 400
	top := 0
	for plain.At(left, top) != magma(0) {
		top++
	}
	changed := map[image.Point]bool{}
	for y := top; y < top+3*400+2*gap; y++ {
		for x := range drawn.Bounds().Dx() {
			if drawn.At(x, y) != plain.At(x, y) {
				changed[image.Pt(x-left, y-top)] = true
			}
		}
	}
	if want := 400 + 399 + 400 + 400; len(changed) != want {
		t.Errorf("%d pixels differ, want %d", len(changed), want)
	}
	for _, p := range []image.Point{{300, 0}, {0, 100}, {399, 100}, {300, 400 + gap}, {100, 2*400 + 2*gap}} {
		if !changed[p] {
			t.Errorf("no line at %v", p)
		}
	}
}

func TestWriteDisplays(t *testing.T) {
	dir := t.TempDir()
	s := flat([3]int{8, 8, 8}, [3]float64{1, 1, 1}, 0, 0)
	paths, err := WriteDisplays(filepath.Join(dir, "a"), s)
	if err != nil || len(paths) != 3 {
		t.Fatal(paths, err)
	}
	names(t, dir, "a-lung.png", "a-soft-tissue.png", "a.png")
	for i, grey := range []uint8{128, 230, 102} { // 0 HU
		f, err := os.Open(paths[i])
		if err != nil {
			t.Fatal(err)
		}
		m, err := png.Decode(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		if r := box(m, color.RGBA{grey, grey, grey, 255}); r.Dx() < 2*380 || r.Dy() < 3*380 {
			t.Errorf("%s: grey %d only in %v", paths[i], grey, r)
		}
	}
	paths, err = WriteDisplays(filepath.Join(dir, "none", "a"), s)
	refuse(t, "a.png", err)
	if len(paths) != 0 {
		t.Errorf("%v", paths)
	}
}

// TestWorstSliceLooksAtTheBody: a small error in the body outweighs a large one in the air.
func TestWorstSliceLooksAtTheBody(t *testing.T) {
	w, err := NewWorstSlice([3]int{2, 1, 2}, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range [][2][]float32{{{-1, -1}, {1, 1}}, {{0.5, -1}, {0.4, -1}}} {
		if err := w.Slice(s[0], s[1]); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, at, err := w.Cuts(); err != nil || at != [3]int{0, 0, 1} {
		t.Errorf("planes meet at %v, %v (want 0 0 1)", at, err)
	}
}
