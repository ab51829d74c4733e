package report

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
)

// Chart is curves over one axis. It is drawn as SVG, in colours that the page's style sheet names.
type Chart struct {
	Title string
	Unit  string // of y; "" for none
	X     string // what x is: "step", "hours"
	Log   bool   // y grows by factors; values that aren't positive are left out
	Zero  bool   // y begins at zero
	Lines []Line
}

// Line is one curve of a Chart.
type Line struct {
	Name   string
	Points []Point // by X, ascending
	Colour int     // 0 to 4; 4 is for what others are compared with
	Dashed bool
	Steps  bool // filled, as a histogram
}

// Point is a value, and the least and the most of all that it stands for. Without a spread all three are the same.
type Point struct{ X, Y, Low, High float64 }

// Size of a chart, in SVG units; letters are 11 high.
const (
	chartW, chartH         = 400, 220
	left, right, top, base = 46, 12, 10, 190
)

// axis maps values to places.
type axis struct {
	low, high float64
	from, to  float64 // places
	log       bool
}

func (a axis) at(v float64) float64 {
	low, high := a.low, a.high
	if a.log {
		v, low, high = math.Log10(v), math.Log10(low), math.Log10(high)
	}
	return a.from + (v-low)/(high-low)*(a.to-a.from)
}

// shows says whether a value has a place.
func (a axis) shows(v float64) bool {
	return !math.IsNaN(v) && !math.IsInf(v, 0) && (!a.log || v > 0)
}

// Empty says that there is nothing to draw.
func (c *Chart) Empty() bool {
	for _, l := range c.Lines {
		for _, p := range l.Points {
			if (axis{log: c.Log}).shows(p.Y) {
				return false
			}
		}
	}
	return true
}

// Last is the newest value of a line, for the legend.
func (l Line) Last() string {
	if len(l.Points) == 0 || l.Steps {
		return ""
	}
	return figure(l.Points[len(l.Points)-1].Y)
}

// axes finds the ranges of x and y.
func (c *Chart) axes() (x, y axis) {
	x = axis{low: math.Inf(1), high: math.Inf(-1), from: left, to: chartW - right}
	y = axis{low: math.Inf(1), high: math.Inf(-1), from: base, to: top, log: c.Log}
	for _, l := range c.Lines {
		for _, p := range l.Points {
			if !y.shows(p.Y) {
				continue
			}
			x.low, x.high = min(x.low, p.X), max(x.high, p.X)
			y.low, y.high = min(y.low, p.Y), max(y.high, p.Y)
		}
	}
	if x.high == x.low {
		x.low, x.high = x.low-1, x.high+1
	}
	switch {
	case c.Log:
		if y.high < 1.5*y.low {
			y.low, y.high = y.low/1.2, y.high*1.2
		}
		y.low, y.high = y.low/1.05, y.high*1.05
	default:
		if c.Zero {
			y.low, y.high = min(0, y.low), max(0, y.high)
		}
		pad := 0.06 * (y.high - y.low)
		if pad == 0 {
			pad = max(math.Abs(y.high)*0.1, 1e-12)
		}
		y.high += pad
		if !c.Zero || y.low < 0 {
			y.low -= pad
		}
	}
	return x, y
}

// ticks are round numbers between low and high, about n of them.
func (a axis) ticks(n int) []float64 {
	var at []float64
	if a.log {
		steps := []float64{1}
		switch decades := math.Log10(a.high / a.low); {
		case decades < 0.7:
			return axis{low: a.low, high: a.high}.ticks(n)
		case decades < 2.2:
			steps = []float64{1, 2, 5}
		}
		skip := max(1, int(math.Log10(a.high/a.low))/n)
		for e := int(math.Floor(math.Log10(a.low))); e <= int(math.Ceil(math.Log10(a.high))); e += skip {
			for _, s := range steps {
				if v := s * math.Pow10(e); v >= a.low && v <= a.high {
					at = append(at, v)
				}
			}
		}
		return at
	}
	raw := (a.high - a.low) / float64(n)
	unit := math.Pow10(int(math.Floor(math.Log10(raw))))
	step := 10 * unit
	for _, s := range []float64{1, 2, 2.5, 5} {
		if s*unit >= raw {
			step = s * unit
			break
		}
	}
	for i := math.Ceil(a.low / step); i*step <= a.high; i++ {
		v := i * step
		if v == 0 {
			v = 0 // not minus zero
		}
		at = append(at, v)
	}
	return at
}

// SVG draws the chart. It has no text but numbers and the axis's name, so nothing of it comes from outside.
func (c *Chart) SVG() template.HTML {
	var b strings.Builder
	if c.Empty() {
		return ""
	}
	x, y := c.axes()
	scale := ""
	if c.Log {
		scale = ` data-log="1"`
	}
	fmt.Fprintf(&b, `<svg class="chart" viewBox="0 0 %d %d" role="img" aria-label="%s" data-x="%s %s" data-y="%s %s"%s>`, chartW, chartH,
		template.HTMLEscapeString(c.Title), plain(x.low), plain(x.high), plain(y.low), plain(y.high), scale)
	b.WriteString(`<g class="grid">`)
	for _, v := range y.ticks(4) {
		at := y.at(v)
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d"/><text x="%d" y="%.1f" class="y">%s</text>`, left, at, chartW-right, left-6, at+3.5, figure(v))
	}
	for _, v := range x.ticks(5) {
		at := x.at(v)
		fmt.Fprintf(&b, `<path d="M%.1f %dv4"/><text x="%.1f" y="%d" class="x">%s</text>`, at, base, at, base+15, figure(v))
	}
	fmt.Fprintf(&b, `<path class="base" d="M%d %dH%d"/></g><text class="name" x="%d" y="%d">%s</text>`,
		left, base, chartW-right, chartW-right, chartH-2, template.HTMLEscapeString(c.X))
	for _, l := range c.Lines {
		b.WriteString(l.path(x, y))
	}
	b.WriteString(`</svg>`)
	return template.HTML(b.String()) //nolint:gosec // numbers, and two texts that are escaped
}

// path draws a curve, and behind it the spread of what its points stand for.
func (l Line) path(x, y axis) string {
	var line, low, high strings.Builder
	var spread bool
	n := 0
	clamp := func(v float64) float64 { return max(y.low, min(y.high, v)) }
	var back []string
	for _, p := range l.Points {
		if !y.shows(p.Y) {
			continue
		}
		command := byte('L')
		if n == 0 {
			command = 'M'
		}
		px := x.at(p.X)
		fmt.Fprintf(&line, "%c%.1f %.1f", command, px, y.at(p.Y))
		fmt.Fprintf(&high, "%c%.1f %.1f", command, px, y.at(clamp(p.High)))
		back = append(back, fmt.Sprintf("L%.1f %.1f", px, y.at(clamp(p.Low))))
		spread = spread || p.High > p.Low
		n++
	}
	for i := range back {
		low.WriteString(back[len(back)-1-i])
	}
	if n == 0 {
		return ""
	}
	class := fmt.Sprintf("c%d", l.Colour)
	if l.Steps {
		return fmt.Sprintf(`<path class="fill %s" d="%sV%dH%dZ"/><path class="line %s" data-name="%s" d="%s"/>`, class, line.String(), base, left,
			class, template.HTMLEscapeString(l.Name), line.String())
	}
	if l.Dashed {
		class += " dashed"
	}
	var out strings.Builder
	if spread && n > 1 {
		fmt.Fprintf(&out, `<path class="band %s" d="%s%sZ"/>`, class, high.String(), low.String())
	}
	fmt.Fprintf(&out, `<path class="line %s" data-name="%s" d="%s"/>`, class, template.HTMLEscapeString(l.Name), line.String())
	if n == 1 {
		p := l.Points[len(l.Points)-1]
		fmt.Fprintf(&out, `<circle class="%s" cx="%.1f" cy="%.1f" r="2.5"/>`, class, x.at(p.X), y.at(p.Y))
	}
	return out.String()
}

// plain is a number for a script.
func plain(v float64) string { return strconv.FormatFloat(v, 'g', 9, 64) }

// figure is a number for people: four places at most, thousands as k, millions as M.
func figure(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "–"
	case a == 0:
		return "0"
	case a >= 1e9:
		return trim(v/1e9, 4) + "G"
	case a >= 1e6:
		return trim(v/1e6, 4) + "M"
	case a >= 1e4:
		return trim(v/1e3, 4) + "k"
	case a < 1e-3:
		mantissa, exponent, _ := strings.Cut(strconv.FormatFloat(v, 'e', 2, 64), "e")
		if strings.Contains(mantissa, ".") {
			mantissa = strings.TrimRight(strings.TrimRight(mantissa, "0"), ".")
		}
		power, _ := strconv.Atoi(exponent) // FormatFloat wrote it
		return fmt.Sprintf("%se%d", mantissa, power)
	}
	return trim(v, 4)
}

// trim writes v to so many significant places, without zeros at its end.
func trim(v float64, places int) string {
	whole := len(strconv.FormatFloat(math.Trunc(math.Abs(v)), 'f', 0, 64))
	if math.Abs(v) < 1 {
		whole = int(math.Floor(math.Log10(math.Abs(v)))) + 1
	}
	s := strconv.FormatFloat(v, 'f', max(0, places-whole), 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}
