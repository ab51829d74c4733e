package report

import (
	"image/color"
	"math"
)

var (
	ground = color.RGBA{0x12, 0x14, 0x18, 0xff}
	bright = color.RGBA{0xec, 0xee, 0xf0, 0xff}
	dim    = color.RGBA{0xa6, 0xad, 0xb5, 0xff}
	broken = color.RGBA{0xff, 0x00, 0xff, 0xff} // NaN
)

// anchors are nine even steps of matplotlib's magma (CC0), a perceptually uniform map from black over purple to cream.
var anchors = [9][3]float64{
	{0, 0, 4}, {28, 16, 68}, {79, 18, 123}, {129, 37, 129}, {181, 54, 122}, {229, 80, 100}, {251, 135, 97}, {254, 194, 135}, {252, 253, 191},
}

// magma is the colour of t in [0, 1]; what lies outside has the colour of the end.
func magma(t float64) color.RGBA {
	if math.IsNaN(t) {
		return broken
	}
	t = max(0, min(1, t)) * float64(len(anchors)-1)
	i := min(int(t), len(anchors)-2)
	w := t - float64(i)
	at := func(k int) uint8 { return uint8(math.Round(anchors[i][k] + w*(anchors[i+1][k]-anchors[i][k]))) }
	return color.RGBA{at(0), at(1), at(2), 0xff}
}

func greyLevel(t float64) color.RGBA {
	if math.IsNaN(t) {
		return broken
	}
	g := uint8(math.Round(255 * max(0, min(1, t))))
	return color.RGBA{g, g, g, 0xff}
}

// scale brings [-1, 1] to a grey level in [0, 1] by way of HU.
type scale struct {
	window, display [2]float64
}

func (s scale) level(v float32) float64 {
	hu := s.window[0] + (float64(v)+1)/2*(s.window[1]-s.window[0])
	return (hu - s.display[0]) / (s.display[1] - s.display[0])
}
