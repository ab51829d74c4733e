package report

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"math"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gobold"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
)

type lettering struct {
	title, head, body font.Face
}

func newLettering() (*lettering, error) {
	face := func(ttf []byte, size float64) (font.Face, error) {
		f, err := opentype.Parse(ttf)
		if err != nil {
			return nil, err
		}
		return opentype.NewFace(f, &opentype.FaceOptions{Size: size, DPI: 72, Hinting: font.HintingFull})
	}
	var l lettering
	for _, f := range []struct {
		face *font.Face
		ttf  []byte
		size float64
	}{{&l.title, gobold.TTF, 20}, {&l.head, gobold.TTF, 15}, {&l.body, goregular.TTF, 14}} {
		var err error
		if *f.face, err = face(f.ttf, f.size); err != nil {
			return nil, fmt.Errorf("font: %w", err)
		}
	}
	return &l, nil
}

type canvas struct {
	*image.RGBA
	*lettering
}

func newCanvas(w, h int, l *lettering) *canvas {
	c := &canvas{image.NewRGBA(image.Rect(0, 0, w, h)), l}
	draw.Draw(c, c.Bounds(), image.NewUniform(ground), image.Point{}, draw.Src)
	return c
}

// text writes s from x on the base line y, with a dark shadow so that it reads on any picture.
func (c *canvas) text(f font.Face, x, y int, s string, colour color.Color) {
	for _, d := range []struct {
		x, y   int
		colour color.Color
	}{{x + 1, y + 1, ground}, {x, y, colour}} {
		(&font.Drawer{Dst: c, Src: image.NewUniform(d.colour), Face: f, Dot: fixed.P(d.x, d.y)}).DrawString(s)
	}
}

// label is text on a picture, on a darkened ground.
func (c *canvas) label(x, y int, s string, colour color.Color) {
	box, _ := font.BoundString(c.body, s)
	r := image.Rect(x+box.Min.X.Floor()-4, y+box.Min.Y.Floor()-3, x+box.Max.X.Ceil()+4, y+box.Max.Y.Ceil()+3)
	draw.Draw(c, r.Intersect(c.Bounds()), image.NewUniform(color.RGBA{A: 0xa0}), image.Point{}, draw.Over)
	c.text(c.body, x, y, s, colour)
}

// fit cuts s to a width, with … at its end.
func (c *canvas) fit(f font.Face, s string, width int) string {
	if font.MeasureString(f, s).Ceil() <= width {
		return s
	}
	r := []rune(s)
	for len(r) > 0 && font.MeasureString(f, string(r)+"…").Ceil() > width {
		r = r[:len(r)-1]
	}
	return string(r) + "…"
}

func (c *canvas) grey(r image.Rectangle, w, h int, v []float32, s scale) {
	c.sample(r, w, h, func(x, y int) float64 { return s.level(v[y*w+x]) }, greyLevel)
}

// errors draws |recon-orig|, both clipped to the window, top HU being the end of the scale.
func (c *canvas) errors(r image.Rectangle, p *Plane, window [2]float64, top float64) {
	half := (window[1] - window[0]) / 2
	clip := func(v float32) float64 { return float64(max(-1, min(1, v))) }
	c.sample(r, p.W, p.H, func(x, y int) float64 {
		i := y*p.W + x
		return math.Abs(clip(p.Recon[i])-clip(p.Orig[i])) * half / top
	}, magma)
}

// grid draws tile borders over a plane of w×h voxels in r. Display order is the reverse of that of voxels.
func (c *canvas) grid(r image.Rectangle, w, h int, columns, rows []int) {
	for _, b := range columns {
		if 0 < b && b < w {
			x := r.Min.X + (w-b)*r.Dx()/w
			for y := r.Min.Y; y < r.Max.Y; y++ {
				c.tint(x, y)
			}
		}
	}
	for _, b := range rows {
		if 0 < b && b < h {
			y := r.Min.Y + (h-b)*r.Dy()/h
			for x := r.Min.X; x < r.Max.X; x++ {
				c.tint(x, y)
			}
		}
	}
}

// tint moves a pixel a quarter of the way to bright.
func (c *canvas) tint(x, y int) {
	p := c.RGBAAt(x, y)
	mix := func(a, b uint8) uint8 { return uint8((3*int(a) + int(b)) / 4) }
	c.SetRGBA(x, y, color.RGBA{mix(p.R, bright.R), mix(p.G, bright.G), mix(p.B, bright.B), 0xff})
}

// tap is the two voxels of a pixel and the weight of the second.
type tap struct {
	a, b int
	w    float64
}

// resample says where each of to pixels lies among from voxels. Whole factors repeat voxels, others interpolate.
func resample(from, to int) []tap {
	taps := make([]tap, to)
	for i := range taps {
		if to%from == 0 {
			taps[i] = tap{i * from / to, i * from / to, 0}
			continue
		}
		at := max(0, min(float64(from-1), (float64(i)+0.5)*float64(from)/float64(to)-0.5))
		a := int(at)
		taps[i] = tap{a, min(a+1, from-1), at - float64(a)}
	}
	return taps
}

// sample fills r with the colours of a plane of w×h levels.
func (c *canvas) sample(r image.Rectangle, w, h int, level func(x, y int) float64, colour func(float64) color.RGBA) {
	xs, ys := resample(w, r.Dx()), resample(h, r.Dy())
	for j, ty := range ys {
		for i, tx := range xs {
			v := level(tx.a, ty.a)
			if tx.w != 0 {
				v += tx.w * (level(tx.b, ty.a) - v)
			}
			if ty.w != 0 {
				b := level(tx.a, ty.b)
				if tx.w != 0 {
					b += tx.w * (level(tx.b, ty.b) - b)
				}
				v += ty.w * (b - v)
			}
			c.SetRGBA(r.Min.X+i, r.Min.Y+j, colour(v))
		}
	}
}

// bar draws a scale with its ends and its middle in HU.
func (c *canvas) bar(r image.Rectangle, colour func(float64) color.RGBA, hu [2]float64, low, high string) {
	for x := range r.Dx() {
		v := colour(float64(x) / float64(r.Dx()-1))
		for y := r.Min.Y; y < r.Max.Y; y++ {
			c.SetRGBA(r.Min.X+x, y, v)
		}
	}
	base := r.Max.Y + 18
	labels := [3]string{
		fmt.Sprintf("%s%.4g HU", low, hu[0]), fmt.Sprintf("%.4g", (hu[0]+hu[1])/2), fmt.Sprintf("%s%.4g HU", high, hu[1]),
	}
	for i, s := range labels {
		w := font.MeasureString(c.body, s).Ceil()
		c.text(c.body, r.Min.X+i*(r.Dx()-w)/2, base, s, dim)
	}
}
