package report

import (
	"fmt"
	"image"
	"image/png"
	"io"
	"math"
	"slices"
	"strings"

	"golang.org/x/image/font"

	"github.com/flowrun/flowrun/stages/files"
)

// Plane is a picture of one plane, in display order (see Cuts), in [-1, 1].
type Plane struct {
	W, H        int
	Orig, Recon []float32  // H rows of W
	Spacing     [2]float64 // mm from column to column and from row to row
}

// Sample is one scan's pictures and what is written above them.
type Sample struct {
	Title                    string
	Lines                    []string
	Window                   [2]float64 // HU of -1 and 1
	Display                  [2]float64 // HU shown black and white; if both are 0, Window
	ErrorHU                  float64    // absolute error at the top of the colour scale; if 0, a tenth of Window's width
	Grid                     [3][]int   // tile borders drawn over the errors, along x, y, z: b lies between voxels b-1 and b
	Captions                 [3]string  // what is written in the planes, axial first; if empty, their names
	Axial, Coronal, Sagittal Plane
}

// Planes sets the three planes from cuts of a volume of size voxels with spacing mm, both x, y, z.
func (s *Sample) Planes(orig, recon Cuts, size [3]int, spacing [3]float64) {
	s.Axial = Plane{size[0], size[1], orig.Axial, recon.Axial, [2]float64{spacing[0], spacing[1]}}
	s.Coronal = Plane{size[0], size[2], orig.Coronal, recon.Coronal, [2]float64{spacing[0], spacing[2]}}
	s.Sagittal = Plane{size[1], size[2], orig.Sagittal, recon.Sagittal, [2]float64{spacing[1], spacing[2]}}
}

func (s *Sample) check() error {
	if !(s.Window[1] > s.Window[0]) {
		return fmt.Errorf("window %v HU is empty", s.Window)
	}
	if s.Display != [2]float64{} && !(s.Display[1] > s.Display[0]) {
		return fmt.Errorf("display window %v HU is empty", s.Display)
	}
	if !(s.ErrorHU >= 0) {
		return fmt.Errorf("error scale of %g HU", s.ErrorHU)
	}
	for _, p := range s.rows() {
		n := p.W * p.H
		if p.W < 1 || p.H < 1 || len(p.Orig) != n || len(p.Recon) != n {
			return fmt.Errorf("%s plane of %d×%d: %d and %d voxels", p.name, p.W, p.H, len(p.Orig), len(p.Recon))
		}
		for _, mm := range p.Spacing {
			if !(mm > 0) || math.IsInf(mm, 0) {
				return fmt.Errorf("%s plane: spacing %v mm", p.name, p.Spacing)
			}
		}
	}
	return nil
}

// row is a plane with its name, what lies at its left and top, and the volume's axes along its columns and rows.
type row struct {
	*Plane
	name, left, top string
	u, v            int
}

func (s *Sample) rows() [3]row {
	return [3]row{{&s.Axial, "axial", "R", "A", 0, 1}, {&s.Coronal, "coronal", "R", "S", 0, 2}, {&s.Sagittal, "sagittal", "A", "S", 1, 2}}
}

// Layout, in pixels. Pictures are enlarged by a whole factor until the widest is at least least wide, and all have one
// scale: so many mm a pixel.
const (
	margin = 28
	gap    = 14
	least  = 380
	most   = 1600 // a longer side is made smaller
	bar    = 14   // height of a scale bar
)

// Render draws the picture: rows axial, coronal, sagittal; columns input, reconstruction, absolute error; scales in HU
// below. Each plane has the proportions that its spacing gives it. NaN is magenta, tile borders are thin lines.
func Render(s Sample) (image.Image, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if s.Display == [2]float64{} {
		s.Display = s.Window
	}
	if s.ErrorHU == 0 {
		s.ErrorHU = (s.Window[1] - s.Window[0]) / 10
	}
	rows := s.rows()
	pitch, wide, long := math.Inf(1), 0.0, 0.0 // mm
	for _, p := range rows {
		w, h := float64(p.W)*p.Spacing[0], float64(p.H)*p.Spacing[1]
		pitch, wide, long = min(pitch, p.Spacing[0], p.Spacing[1]), max(wide, w), max(long, w, h)
	}
	pitch /= max(1, math.Ceil(least*pitch/wide))
	pitch = max(pitch, long/most)
	pixels := func(n int, mm float64) int { return max(1, int(math.Round(float64(n)*mm/pitch))) }

	text, err := newLettering()
	if err != nil {
		return nil, err
	}
	column := 200
	for _, p := range rows {
		column = max(column, pixels(p.W, p.Spacing[0]))
	}
	width := 2*margin + 3*column + 2*gap
	height := margin + 30 + 20*len(s.Lines) + 36 + 24 + bar + 24 + margin
	for _, p := range rows {
		height += pixels(p.H, p.Spacing[1]) + gap
	}

	c := newCanvas(width, height, text)
	y := margin + 20
	c.text(text.title, margin, y, c.fit(text.title, s.Title, width-2*margin), bright)
	y += 8
	for _, line := range s.Lines {
		y += 20
		c.text(text.body, margin, y, c.fit(text.body, line, width-2*margin), dim)
	}
	left := func(i int) int { return margin + i*(column+gap) }
	y += 28
	errors := "absolute error"
	if slices.ContainsFunc(s.Grid[:], func(b []int) bool { return len(b) > 0 }) {
		errors += ", tile borders"
	}
	for i, name := range []string{"input", "reconstruction", errors} {
		c.text(text.head, left(i), y, name, bright)
	}
	y += 10
	grey := scale{s.Window, s.Display}
	for i, p := range rows {
		w, h := pixels(p.W, p.Spacing[0]), pixels(p.H, p.Spacing[1])
		centred := func(i int) int { return left(i) + (column-w)/2 }
		c.grey(image.Rect(centred(0), y, centred(0)+w, y+h), p.W, p.H, p.Orig, grey)
		c.grey(image.Rect(centred(1), y, centred(1)+w, y+h), p.W, p.H, p.Recon, grey)
		r := image.Rect(centred(2), y, centred(2)+w, y+h)
		c.errors(r, p.Plane, s.Window, s.ErrorHU)
		c.grid(r, p.W, p.H, s.Grid[p.u], s.Grid[p.v])
		caption := p.name
		if s.Captions[i] != "" {
			caption = s.Captions[i]
		}
		caption = c.fit(text.body, caption, column-12)
		c.label(centred(0)+6, y+18, caption, bright)
		c.label(centred(0)+6, y+h/2+5, p.left, dim)
		if 6+font.MeasureString(text.body, caption).Ceil() < w/2-12 {
			c.label(centred(0)+w/2-4, y+18, p.top, dim)
		}
		y += h + gap
	}
	y += 4
	c.bar(image.Rect(left(0), y, left(0)+column, y+bar), greyLevel, s.Display, "", "")
	c.bar(image.Rect(left(2), y, left(2)+column, y+bar), magma, [2]float64{0, s.ErrorHU}, "", "≥ ")
	return c, nil
}

// WriteSample renders a sample into a PNG file at path, whose folder exists. The file appears whole or not at all.
func WriteSample(path string, s Sample) error {
	m, err := Render(s)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return files.Write(path, func(f io.Writer) error { return png.Encode(f, m) })
}

// Display is a window that radiologists look through.
type Display struct {
	Name string
	HU   [2]float64 // shown black and white
}

// Displays returns the windows for lung and for soft tissue.
func Displays() []Display {
	return []Display{{"lung", [2]float64{-1350, 150}}, {"soft tissue", [2]float64{-160, 240}}}
}

// WriteDisplays writes a sample as it is to base.png and seen through each of Displays to base-lung.png and
// base-soft-tissue.png. The errors are the same in all. It returns the paths written.
func WriteDisplays(base string, s Sample) (paths []string, err error) {
	write := func(path string, s Sample) {
		if err == nil {
			err = WriteSample(path, s)
		}
		if err == nil {
			paths = append(paths, path)
		}
	}
	write(base+".png", s)
	title := s.Title
	for _, d := range Displays() {
		s.Title, s.Display = title+", "+d.Name+" window", d.HU
		write(base+"-"+strings.ReplaceAll(d.Name, " ", "-")+".png", s)
	}
	return paths, err
}
