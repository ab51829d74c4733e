package cpu

import (
	"fmt"
	"math"

	"github.com/flowrun/flowrun/gpu"
)

// judgement gives a logit's loss and its slope.
func judgement(j gpu.Judge) func(l float64) (loss, slope float64) {
	sign := 1.0 // of the logit that is unwanted
	if j.Side != gpu.OnFake {
		sign = -1
	}
	switch j.Loss {
	case gpu.Mean:
		return func(l float64) (float64, float64) { return l, 1 }
	case gpu.Vanilla:
		return func(l float64) (float64, float64) {
			u := sign * l
			return max(u, 0) + math.Log1p(math.Exp(-math.Abs(u))), sign / (1 + math.Exp(-u))
		}
	case gpu.Squares:
		goal := 1.0
		if j.Side == gpu.OnFake {
			goal = 0
		}
		return func(l float64) (float64, float64) { return (l - goal) * (l - goal), 2 * (l - goal) }
	case gpu.Hinge:
		if j.Side == gpu.OfGenerator {
			return func(l float64) (float64, float64) { return -l, -1 }
		}
		return func(l float64) (float64, float64) {
			if u := 1 + sign*l; u > 0 || u != u {
				return u, sign
			}
			return 0, 0
		}
	}
	panic(fmt.Sprintf("cpu: adversarial loss %d", j.Loss))
}

// JudgeLoss judges logits.
func (e *Engine) JudgeLoss(j gpu.Judge, x gpu.Tensor, scale, lecam gpu.Ptr, dx *gpu.Tensor, out, workspace gpu.Ptr) {
	judge := judgement(j)
	var weight, anchor float64
	if lecam >= 0 {
		if j.Side == gpu.OfGenerator {
			panic("cpu: LeCam is a discriminator's")
		}
		v := e.floats(lecam, 2)
		weight, anchor = float64(v[0]), float64(v[1])
	}
	gx := e.grid(x)
	var gdx grid
	var per float64
	if dx != nil {
		same(x, *dx)
		inPlace(x, *dx)
		gdx = e.grid(*dx)
		per = float64(e.floats(scale, 1)[0]) / float64(x.Len())
	}
	parts := e.doubles(workspace, 2*e.rowChunks(x.Dims))
	e.eachRows(x.Dims, func(_ *scratch, chunk, r0, r1 int) {
		var sum, mean float64
		for r := r0; r < r1; r++ {
			for i, v := range gx.inner(r) {
				l := float64(v)
				loss, slope := judge(l)
				if lecam >= 0 {
					d := l - anchor
					if j.Side == gpu.OnReal {
						d = max(d, 0)
					} else {
						d = min(d, 0)
					}
					loss += weight * d * d
					slope += weight * 2 * d
				}
				sum += loss
				mean += l
				if dx != nil {
					gdx.inner(r)[i] = float32(per * slope)
				}
			}
			if dx != nil {
				gdx.fillHalo(r)
			}
		}
		parts[2*chunk], parts[2*chunk+1] = sum, mean
	})
	o := e.floats(out, 2)
	for i := range o {
		var s float64
		for p := i; p < len(parts); p += 2 {
			s += parts[p]
		}
		o[i] = float32(s / float64(x.Len()))
	}
}

// Balance writes the adaptive weight.
func (e *Engine) Balance(a, b gpu.Ptr, limit float32, factor, out gpu.Ptr) {
	of := func(p gpu.Ptr) float64 { return math.Sqrt(float64(e.floats(p, 1)[0])) }
	o, weight := e.floats(out, 2), min(of(a)/(of(b)+1e-4), float64(limit))
	o[0], o[1] = float32(weight), float32(weight*float64(e.floats(factor, 1)[0]))
}

// Nudge writes x + h·g/‖g‖.
func (e *Engine) Nudge(x, g gpu.Tensor, h float32, factor gpu.Ptr, y gpu.Tensor, out, workspace gpu.Ptr) {
	same(x, g)
	same(x, y)
	gg := e.grid(g)
	parts := e.doubles(workspace, e.rowChunks(g.Dims))
	e.eachRows(g.Dims, func(own *scratch, chunk, r0, r1 int) {
		var s float64
		for r := r0; r < r1; r++ {
			s += float64(e.level.sumSquares(own, gg.inner(r)))
		}
		parts[chunk] = s
	})
	norm := math.Sqrt(total(parts))
	f := float64(e.floats(factor, 1)[0])
	o := e.floats(out, 3)
	o[0], o[1], o[2] = float32(norm), float32(f*norm), float32(-f*norm)
	var by float32
	if norm != 0 {
		by = float32(float64(h) / norm)
	}
	e.pointwise(x, g, y, func(y, x, g []float32) { combineGo(y, x, g, by) })
}
