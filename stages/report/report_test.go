package report

import (
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/volume"
	"pgregory.net/rapid"
)

// ramp is a volume whose voxels are 100x + 10y + z.
func ramp(size [3]int) (v []float32) {
	for z := range size[2] {
		for y := range size[1] {
			for x := range size[0] {
				v = append(v, float32(100*x+10*y+z))
			}
		}
	}
	return v
}

// cut takes the planes out of a volume held whole.
func cut(t interface {
	Helper()
	Fatal(...any)
}, vox []float32, size, at [3]int) Cuts {
	t.Helper()
	c, err := newCutter(size, at)
	if err != nil {
		t.Fatal(err)
	}
	for z := range size[2] {
		c.slice(z, func(i int) float32 { return vox[z*size[0]*size[1]+i] })
	}
	return c.cuts
}

func TestCutsAreInDisplayOrder(t *testing.T) {
	c := cut(t, ramp([3]int{3, 2, 2}), [3]int{3, 2, 2}, [3]int{1, 0, 1})
	for _, p := range []struct {
		name      string
		got, want []float32
	}{
		{"axial: right on the left, front up", c.Axial, []float32{211, 111, 11, 201, 101, 1}},
		{"coronal: right on the left, head up", c.Coronal, []float32{201, 101, 1, 200, 100, 0}},
		{"sagittal: front on the left, head up", c.Sagittal, []float32{111, 101, 110, 100}},
	} {
		if !slices.Equal(p.got, p.want) {
			t.Errorf("%s: got %v, want %v", p.name, p.got, p.want)
		}
	}
}

func TestCutVolumeIsTheCutOfItsScaledSamples(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var size, at [3]int
		for a := range 3 {
			size[a] = rapid.IntRange(1, 6).Draw(t, "size")
			at[a] = rapid.IntRange(0, size[a]-1).Draw(t, "at")
		}
		n := size[0] * size[1] * size[2]
		data := rapid.SliceOfN(rapid.Int16(), n, n).Draw(t, "samples")
		v := (&volume.Volume{Scan: &volume.Scan{ID: "a"}, Dims: size, Window: [2]float64{-1000, 600}, Slope: 0.5, Inter: -24}).
			Own(&volume.Memory{Data: data, Dims: size}, nil)
		defer v.Release()
		scaled := make([]float32, n)
		for i, s := range data {
			hu := max(-1000, min(600, 0.5*float64(s)-24))
			scaled[i] = float32(2*(hu+1000)/1600 - 1)
		}
		got, err := CutVolume(v, at)
		if err != nil {
			t.Fatal(err)
		}
		want := cut(t, scaled, size, at)
		for i, p := range [][2][]float32{{got.Axial, want.Axial}, {got.Coronal, want.Coronal}, {got.Sagittal, want.Sagittal}} {
			for j := range p[1] {
				if math.Abs(float64(p[0][j]-p[1][j])) > 1e-6 {
					t.Fatalf("plane %d, pixel %d: %v, want %v", i, j, p[0][j], p[1][j])
				}
			}
		}
	})
}

func TestCutRefuses(t *testing.T) {
	size := [3]int{2, 2, 2}
	dry := (&volume.Volume{Scan: &volume.Scan{ID: "a"}, Dims: size}).Own(nil, nil)
	_, err := CutVolume(dry, [3]int{0, 2, 0})
	refuse(t, "[0 2 0]", err)
	_, err = CutVolume(dry, Centre(size))
	refuse(t, "dry", err)
}

func refuse(t *testing.T, text string, err error) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want an error with %q", err, text)
	}
}

// flat is a sample of one grey, whose reconstruction is off by hu.
func flat(size [3]int, spacing [3]float64, grey, hu float32) Sample {
	fill := func(v float32) Cuts {
		return Cuts{
			slices.Repeat([]float32{v}, size[0]*size[1]), slices.Repeat([]float32{v}, size[0]*size[2]), slices.Repeat([]float32{v}, size[1]*size[2]),
		}
	}
	s := Sample{Title: "a", Lines: []string{"b"}, Window: [2]float64{-1000, 1000}}
	s.Planes(fill(grey), fill(grey+hu/1000), size, spacing)
	return s
}

// boxes finds, in columns input and error, the extent of a colour.
func box(m image.Image, want color.RGBA) (r image.Rectangle) {
	for y := range m.Bounds().Dy() {
		for x := range m.Bounds().Dx() {
			if m.At(x, y) == want {
				r = r.Union(image.Rect(x, y, x+1, y+1))
			}
		}
	}
	return r
}

func TestPicturesHaveTheProportionsOfTheirSpacing(t *testing.T) {
	// 64 × 48 × 20 voxels of 1 × 1 × 2.5 mm: enlarged 6 times.
	s := flat([3]int{64, 48, 20}, [3]float64{1, 1, 2.5}, -1, 150)
	m, err := Render(s)
	if err != nil {
		t.Fatal(err)
	}
	// An error of 150 HU on a scale to 200 is one colour, of all three error pictures and a pixel or so of the scale.
	want := magma(0.75)
	var heights, widths []int
	left := m.Bounds().Dx() - margin - 384
	for y := 0; y < m.Bounds().Dy(); y++ {
		n := 0
		for x := left; x < left+384; x++ {
			c := m.At(x, y).(color.RGBA)
			if near(c, want) {
				n++
			}
		}
		switch {
		case n < 100:
		case len(widths) > 0 && widths[len(widths)-1] == n:
			heights[len(heights)-1]++
		default:
			widths, heights = append(widths, n), append(heights, 1)
		}
	}
	// Axial and coronal are as wide as each other, and lie apart.
	if !slices.Equal(widths, []int{384, 288}) || !slices.Equal(heights, []int{288 + 300, 300}) {
		t.Errorf("widths %v, heights %v", widths, heights)
	}
}

func near(a, b color.RGBA) bool {
	d := func(x, y uint8) bool { return max(x, y)-min(x, y) <= 2 }
	return d(a.R, b.R) && d(a.G, b.G) && d(a.B, b.B)
}

func TestNaNIsMagenta(t *testing.T) {
	s := flat([3]int{20, 20, 20}, [3]float64{1, 1, 1}, 0, 0)
	s.Axial.Recon[0] = float32(math.NaN())
	m, err := Render(s)
	if err != nil {
		t.Fatal(err)
	}
	// The top left voxel of the reconstruction and of the error.
	if r := box(m, broken); r.Dy() != 380/20 || r.Dx() != 380+gap+380/20 {
		t.Errorf("magenta in %v", r)
	}
}

func TestDisplayWindow(t *testing.T) {
	s := flat([3]int{40, 40, 40}, [3]float64{1, 1, 1}, -0.975, 0) // -975 HU: a quarter up a lung window
	s.Display = [2]float64{-1350, 150}
	m, err := Render(s)
	if err != nil {
		t.Fatal(err)
	}
	if r := box(m, color.RGBA{64, 64, 64, 255}); r.Dx() < 2*400 || r.Dy() < 3*400 {
		t.Errorf("dark grey only in %v", r)
	}
}

func TestEveryShapeIsDrawn(t *testing.T) {
	for _, c := range []struct {
		size    [3]int
		spacing [3]float64
	}{
		{[3]int{1, 1, 1}, [3]float64{1, 1, 1}},
		{[3]int{90, 2, 1}, [3]float64{0.7, 0.7, 5}},
		{[3]int{1, 1, 300}, [3]float64{0.7, 0.7, 10}}, // a thread of 3 m
		{[3]int{7, 33, 5}, [3]float64{3, 0.4, 1}},
	} {
		m, err := Render(flat(c.size, c.spacing, 0, 10))
		if err != nil {
			t.Fatal(err)
		}
		if b := m.Bounds(); b.Dx() < 3*200 || b.Dx() > 3*most+200 || b.Dy() > 3*most+400 {
			t.Errorf("size %v, spacing %v: picture of %v", c.size, c.spacing, b)
		}
	}
}

func TestRenderRefuses(t *testing.T) {
	for text, spoil := range map[string]func(*Sample){
		"window":         func(s *Sample) { s.Window = [2]float64{} },
		"display window": func(s *Sample) { s.Display = [2]float64{1, 1} },
		"error scale":    func(s *Sample) { s.ErrorHU = -1 },
		"axial plane":    func(s *Sample) { s.Axial.Recon = nil },
		"coronal plane":  func(s *Sample) { s.Coronal.W = 0 },
		"sagittal plane": func(s *Sample) { s.Sagittal.Spacing[1] = 0 },
	} {
		s := flat([3]int{4, 4, 4}, [3]float64{1, 1, 1}, 0, 0)
		spoil(&s)
		_, err := Render(s)
		refuse(t, text, err)
	}
}

func TestWriteSampleIsWholeOrNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.png")
	s := flat([3]int{8, 8, 8}, [3]float64{1, 1, 1}, 0, 0)
	s.Title = strings.Repeat("a long name ", 100)
	for range 2 { // the second replaces the first
		if err := WriteSample(path, s); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := png.Decode(f); err != nil {
		t.Error(err)
	}
	_ = f.Close()
	names(t, dir, "a.png")

	// What can't be renamed leaves nothing behind.
	folder := filepath.Join(dir, "b.png")
	if err := os.MkdirAll(filepath.Join(folder, "full"), 0o777); err != nil {
		t.Fatal(err)
	}
	refuse(t, "b.png", WriteSample(folder, s))
	names(t, dir, "a.png", "b.png")
	refuse(t, "c.png", WriteSample(filepath.Join(dir, "none", "c.png"), s))
}

func names(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("folder holds %v, want %v", got, want)
	}
}

func TestMagmaRisesInLightness(t *testing.T) {
	last := -1.0
	for i := range 256 {
		c := magma(float64(i) / 255)
		l := 0.2126*float64(c.R) + 0.7152*float64(c.G) + 0.0722*float64(c.B)
		if l < last {
			t.Fatalf("darker at %d/255", i)
		}
		last = l
	}
	if magma(-1) != magma(0) || magma(9) != magma(1) || magma(math.NaN()) != broken {
		t.Error("outside the scale")
	}
}
