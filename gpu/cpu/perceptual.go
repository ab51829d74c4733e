package cpu

import (
	"math"

	"github.com/flowrun/flowrun/gpu"
)

// PerceptualLoss compares features.
func (e *Engine) PerceptualLoss(a, b gpu.Tensor, w, scale gpu.Ptr, add, da *gpu.Tensor, out, workspace gpu.Ptr) {
	same(a, b)
	ga, gb, weights := e.grid(a), e.grid(b), e.floats(w, a.C)
	var gda grid
	var plus func(int) []float32
	var per float32
	if da != nil {
		same(a, *da)
		gda, plus = e.grid(*da), e.plus(add, *da)
		per = 2 * e.floats(scale, 1)[0] / float32(a.Voxels())
	}
	parts := e.doubles(workspace, e.rowChunks(a.Dims))
	e.eachRows(a.Dims, func(own *scratch, chunk, r0, r1 int) {
		var sum float64
		for r := r0; r < r1; r++ {
			ra, rb := ga.inner(r), gb.inner(r)
			var to, more []float32
			if da != nil {
				to, more = gda.inner(r), plus(r)
			}
			for at := 0; at < len(ra); at += a.C {
				va, vb := ra[at:][:a.C], rb[at:][:a.C]
				norm := math.Sqrt(float64(e.level.sumSquares(own, va)))
				ia := float32(1 / (norm + perceptualEps))
				ib := float32(1 / (math.Sqrt(float64(e.level.sumSquares(own, vb))) + perceptualEps))
				loss, dot := perceptualGo(va, vb, weights, ia, ib)
				sum += float64(loss)
				if da == nil {
					continue
				}
				by, along := per*ia, float32(0) // along a: what dividing by its norm takes away
				if norm > 0 {
					along = float32(float64(dot) * float64(ia) / norm)
				} else {
					by = 0 // no direction, no gradient
				}
				if more != nil {
					perceptualAddGradGo(to[at:][:a.C], va, vb, weights, more[at:], ia, ib, along, by)
				} else {
					perceptualGradGo(to[at:][:a.C], va, vb, weights, ia, ib, along, by)
				}
			}
			if da != nil {
				gda.fillHalo(r)
			}
		}
		parts[chunk] = sum
	})
	e.floats(out, 1)[0] = float32(total(parts) / float64(a.Voxels()))
}

const perceptualEps = 1e-10

// perceptualGo gives Σ w·d² and Σ w·d·a with d = a·ia - b·ib.
func perceptualGo(a, b, w []float32, ia, ib float32) (loss, dot float32) {
	var loss1, dot1 float32 // of every other channel: sums wait for one another
	for len(a) >= 2 && len(b) >= 2 && len(w) >= 2 {
		d, d1 := a[0]*ia-b[0]*ib, a[1]*ia-b[1]*ib
		wd, wd1 := w[0]*d, w[1]*d1
		loss += wd * d
		loss1 += wd1 * d1
		dot += wd * a[0]
		dot1 += wd1 * a[1]
		a, b, w = a[2:], b[2:], w[2:]
	}
	if len(a) > 0 {
		d := a[0]*ia - b[0]*ib
		loss += w[0] * d * d
		dot += w[0] * d * a[0]
	}
	return loss + loss1, dot + dot1
}

// perceptualGradGo writes by·(w·d - a·along).
func perceptualGradGo(o, a, b, w []float32, ia, ib, along, by float32) {
	a, b, w = a[:len(o)], b[:len(o)], w[:len(o)]
	for i := range o {
		o[i] = by * (w[i]*(a[i]*ia-b[i]*ib) - a[i]*along)
	}
}

// perceptualAddGradGo is perceptualGradGo with add, which may be o.
func perceptualAddGradGo(o, a, b, w, add []float32, ia, ib, along, by float32) {
	a, b, w, add = a[:len(o)], b[:len(o)], w[:len(o)], add[:len(o)]
	for i := range o {
		o[i] = by*(w[i]*(a[i]*ia-b[i]*ib)-a[i]*along) + add[i]
	}
}
