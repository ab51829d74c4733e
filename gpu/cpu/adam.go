package cpu

import (
	"math"

	"github.com/flowrun/flowrun/gpu"
)

// SumSquaresWork is the scratch of SumSquares.
func (e *Engine) SumSquaresWork(n int) int64 { return bytesOf(2 * chunks(n, chunkFloats)) }

// SumSquares writes Σ x².
func (e *Engine) SumSquares(x gpu.Ptr, n int, out, workspace gpu.Ptr) {
	v, parts := e.floats(x, n), e.doubles(workspace, chunks(n, chunkFloats))
	e.pool.runOn(len(parts), func(thread, i int) {
		parts[i] = float64(e.level.sumSquares(&e.scratch[thread], v[i*chunkFloats:min((i+1)*chunkFloats, n)]))
	})
	e.floats(out, 1)[0] = float32(total(parts))
}

func sumSquaresGo(_ *scratch, x []float32) float32 {
	var s float64
	for _, v := range x {
		s += float64(v) * float64(v)
	}
	return float32(s)
}

// adamStep is one chunk's share of AdamStep, with the constants worked out:
//
//	g = gradScale·grad;  m = beta1·m + (1-beta1)·g;  v = beta2·v + (1-beta2)·g²
//	p = p - decay·p - rate·m/(√v·root + eps);  ema = ema + (p - ema)·blend
type adamStep struct {
	p, grad, m, v, ema                  []float32 // ema may be nil
	gradScale, beta1, beta2, one1, one2 float32
	rate, root, eps, decay, blend       float32
}

// AdamStep updates n parameters.
func (e *Engine) AdamStep(a gpu.Adam, p, grad, m, v, ema gpu.Ptr, n int) {
	c1 := 1 - math.Pow(float64(a.Beta1), float64(a.Step))
	c2 := 1 - math.Pow(float64(a.Beta2), float64(a.Step))
	all := adamStep{
		p: e.floats(p, n), grad: e.floats(grad, n), m: e.floats(m, n), v: e.floats(v, n),
		gradScale: a.GradScale, beta1: a.Beta1, beta2: a.Beta2, one1: 1 - a.Beta1, one2: 1 - a.Beta2,
		rate: float32(float64(a.LR) / c1), root: float32(1 / math.Sqrt(c2)), eps: a.Eps,
		decay: a.LR * a.WeightDecay, blend: 1 - a.EMADecay,
	}
	if ema >= 0 {
		all.ema = e.floats(ema, n)
	}
	e.pool.runOn(chunks(n, chunkFloats), func(thread, i int) {
		from, to := i*chunkFloats, min((i+1)*chunkFloats, n)
		s := &e.scratch[thread].adam
		*s = all
		s.p, s.grad, s.m, s.v = s.p[from:to], s.grad[from:to], s.m[from:to], s.v[from:to]
		if s.ema != nil {
			s.ema = s.ema[from:to]
		}
		e.level.adam(s)
	})
}

func adamGo(s *adamStep) {
	for i, p := range s.p {
		g := s.gradScale * s.grad[i]
		m := s.beta1*s.m[i] + s.one1*g
		v := s.beta2*s.v[i] + s.one2*(g*g)
		s.m[i], s.v[i] = m, v
		p -= s.decay * p
		p -= s.rate * m / (float32(math.Sqrt(float64(v)))*s.root + s.eps)
		s.p[i] = p
		if s.ema != nil {
			s.ema[i] += (p - s.ema[i]) * s.blend
		}
	}
}
