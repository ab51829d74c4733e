package cpu

import (
	"fmt"
	"math"

	"github.com/flowrun/flowrun/gpu"
)

// unitEps is the least norm that Unit divides by.
const unitEps = 1e-12

// Unit writes x/‖x‖.
func (e *Engine) Unit(x, y gpu.Tensor) {
	same(x, y)
	gx, gy := e.grid(x), e.grid(y)
	e.eachRows(x.Dims, func(_ *scratch, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			from, to := gx.inner(r), gy.inner(r)
			for at := 0; at < len(from); at += x.C {
				v := from[at:][:x.C]
				by := 1 / max(norm(v), unitEps)
				for i, o := range v {
					to[at+i] = float32(float64(o) * by)
				}
			}
			gy.fillHalo(r)
		}
	})
}

// UnitGrad writes dx = (dy - x̂·<dy, x̂>)/‖x‖.
func (e *Engine) UnitGrad(x, dy, dx gpu.Tensor) {
	same(x, dy)
	same(x, dx)
	inPlace(dy, dx)
	gx, gdy, gdx := e.grid(x), e.grid(dy), e.grid(dx)
	e.eachRows(x.Dims, func(_ *scratch, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			from, grad, to := gx.inner(r), gdy.inner(r), gdx.inner(r)
			for at := 0; at < len(from); at += x.C {
				v, g, o := from[at:][:x.C], grad[at:][:x.C], to[at:][:x.C]
				n := norm(v)
				if n <= unitEps {
					clear(o)
					continue
				}
				var along float64
				for i, a := range v {
					along += float64(a) * float64(g[i])
				}
				along /= n * n
				for i, a := range v {
					o[i] = float32((float64(g[i]) - float64(a)*along) / n)
				}
			}
			gdx.fillHalo(r)
		}
	})
}

func norm(v []float32) float64 {
	var s float64
	for _, x := range v {
		s += float64(x) * float64(x)
	}
	return math.Sqrt(s)
}

// scalarLevel is one channel of a gpu.Scalar.
type scalarLevel struct {
	half, offset, shift float64
	low, high, middle   float64 // of whole numbers; what they are divided by
	step                int     // of the code
}

func scalarLevels(k gpu.Scalar, channels int) []scalarLevel {
	if len(k.Levels) != channels {
		panic(fmt.Sprintf("cpu: scalar quantiser of %d channels for %d", len(k.Levels), channels))
	}
	l, step := make([]scalarLevel, channels), 1
	for i, n := range k.Levels {
		if n < 2 || step > math.MaxInt32/n {
			panic(fmt.Sprintf("cpu: scalar quantiser of levels %v", k.Levels))
		}
		c := scalarLevel{half: float64(n-1) * 1.001 / 2, middle: float64(n / 2), step: step}
		if n%2 == 0 {
			c.offset = 0.5
			c.shift = math.Atanh(0.5 / c.half)
		}
		c.low, c.high = -c.middle, float64(n-1)-c.middle
		l[i] = c
		step *= n
	}
	return l
}

// Round quantises channel by channel.
func (e *Engine) Round(k gpu.Scalar, z gpu.Tensor, idx gpu.Ptr, q gpu.Tensor, counts gpu.Ptr) {
	same(z, q)
	levels := scalarLevels(k, z.C)
	gz, gq, index := e.grid(z), e.grid(q), e.ints(idx, z.Voxels())
	e.eachRows(z.Dims, func(_ *scratch, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			from, to := gz.inner(r), gq.inner(r)
			for w := range z.W {
				code := 0
				for c, l := range levels {
					at := w*z.C + c
					b := math.Tanh(float64(from[at])+l.shift)*l.half - l.offset
					b = min(max(math.RoundToEven(b), l.low), l.high)
					to[at] = float32(b / l.middle)
					if b == b {
						code += int(b+l.middle) * l.step
					}
				}
				index[r*z.W+w] = int32(code)
			}
			gq.fillHalo(r)
		}
	})
	if counts < 0 {
		return
	}
	codes := 1
	for _, n := range k.Levels {
		codes *= n
	}
	n := e.floats(counts, codes)
	for _, i := range index {
		n[i]++
	}
}

// RoundGrad writes dz = dq·db/dz/(L div 2).
func (e *Engine) RoundGrad(k gpu.Scalar, z, dq, dz gpu.Tensor) {
	same(z, dq)
	same(z, dz)
	inPlace(dq, dz)
	levels := scalarLevels(k, z.C)
	gz, gdq, gdz := e.grid(z), e.grid(dq), e.grid(dz)
	e.eachRows(z.Dims, func(_ *scratch, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			from, grad, to := gz.inner(r), gdq.inner(r), gdz.inner(r)
			for w := range z.W {
				for c, l := range levels {
					at := w*z.C + c
					t := math.Tanh(float64(from[at]) + l.shift)
					to[at] = float32(float64(grad[at]) * (1 - t*t) * l.half / l.middle)
				}
			}
			gdz.fillHalo(r)
		}
	})
}
