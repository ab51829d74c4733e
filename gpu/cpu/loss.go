package cpu

import (
	"math"

	"github.com/flowrun/flowrun/gpu"
)

// lossSums is one chunk's share of ReconLoss: Σ |y-t|, Σ (y-t)², Σ (clip(y)-clip(t))², and the count of y that aren't finite.
type lossSums [4]float64

// LossWork is the scratch of ReconLoss.
func (e *Engine) LossWork(d gpu.Dims) int64 { return bytesOf(2 * 4 * e.rowChunks(d)) }

// ReconLoss compares y with t.
func (e *Engine) ReconLoss(y, t gpu.Tensor, l1, l2 float32, scale gpu.Ptr, dy *gpu.Tensor, out, workspace gpu.Ptr) {
	same(y, t)
	gy, gt := e.grid(y), e.grid(t)
	var gdy grid
	if dy != nil {
		same(y, *dy)
		inPlace(y, *dy)
		gdy = e.grid(*dy)
	}
	var per float32
	if dy != nil {
		per = e.floats(scale, 1)[0] / float32(y.Len())
	}
	parts := e.doubles(workspace, 4*e.rowChunks(y.Dims))
	e.eachRows(y.Dims, func(own *scratch, chunk, r0, r1 int) {
		var s lossSums
		for r := r0; r < r1; r++ {
			var d []float32
			if dy != nil {
				d = gdy.inner(r)
			}
			e.level.loss(&own.loss, gy.inner(r), gt.inner(r), d, l1*per, 2*l2*per)
			for i, v := range own.loss {
				s[i] += float64(v)
			}
			if dy != nil {
				gdy.fillHalo(r)
			}
		}
		copy(parts[4*chunk:], s[:])
	})
	var s lossSums
	for i, p := range parts {
		s[i%4] += p
	}
	o := e.floats(out, 4)
	for i := range 3 {
		o[i] = float32(s[i] / float64(y.Len()))
	}
	o[3] = float32(s[3])
}

// lossGo writes the sums of one row and, where dy isn't nil, writes dy = l1*sign(y-t) + l2*(y-t).
func lossGo(s *[4]float32, y, t, dy []float32, l1, l2 float32) {
	*s = [4]float32{}
	for i, v := range y {
		u := t[i]
		d := v - u
		s[0] += float32(math.Abs(float64(d)))
		s[1] += d * d
		c := min(max(v, -1), 1) - min(max(u, -1), 1)
		s[2] += c * c
		if v-v != 0 {
			s[3]++
		}
		if dy != nil {
			g := l2 * d
			switch {
			case d > 0:
				g += l1
			case d < 0:
				g -= l1
			}
			dy[i] = g
		}
	}
}
