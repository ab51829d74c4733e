//go:build cuda

package cuda

import (
	"math"

	"github.com/flowrun/flowrun/gpu"
)

// The arguments of kernels/optim.cu and kernels/elementwise.cu.
type (
	sumArgs struct {
		X, Out uint64
		N      int64
	}
	totalArgs struct {
		Parts, Out           uint64
		N, Columns, Plain, _ int32
		Divisor              float64
	}
	adamArgs struct {
		P, Grad, M, V, EMA                  uint64
		N                                   int64
		GradScale, Beta1, Beta2, One1, One2 float32
		Rate, Root, Eps, Decay, Blend       float32
	}
	lossArgs struct {
		Y, T, DY     view
		D            dims
		_            int32
		Scale, Parts uint64
		L1, L2       float32
	}
)

// total adds up columns of n parts and divides, the last column only where plain is false.
func (e *Engine) total(parts, out uint64, n, columns int, divisor float64, plain bool) {
	run(e, "total", [3]int{1, 1, 1}, 256, totalArgs{Parts: parts, Out: out, N: int32(n), Columns: int32(columns), Plain: yes(plain), Divisor: divisor})
}

// SumSquares writes Σ x².
func (e *Engine) SumSquares(x gpu.Ptr, n int, out, workspace gpu.Ptr) {
	parts := sumParts(n)
	run(e, "sumSquares", [3]int{parts, 1, 1}, 256, sumArgs{e.at(x), e.at(workspace), int64(n)})
	e.total(e.at(workspace), e.at(out), parts, 1, 1, false)
}

// AdamStep updates n parameters.
func (e *Engine) AdamStep(a gpu.Adam, p, grad, m, v, ema gpu.Ptr, n int) {
	c1 := 1 - math.Pow(float64(a.Beta1), float64(a.Step))
	c2 := 1 - math.Pow(float64(a.Beta2), float64(a.Step))
	run(e, "adam", blocks(n, 256), 256, adamArgs{
		P: e.at(p), Grad: e.at(grad), M: e.at(m), V: e.at(v), EMA: e.at(ema), N: int64(n),
		GradScale: a.GradScale, Beta1: a.Beta1, Beta2: a.Beta2, One1: 1 - a.Beta1, One2: 1 - a.Beta2,
		Rate: float32(float64(a.LR) / c1), Root: float32(1 / math.Sqrt(c2)), Eps: a.Eps, Decay: a.LR * a.WeightDecay, Blend: 1 - a.EMADecay,
	})
}

// ReconLoss compares y with t.
func (e *Engine) ReconLoss(y, t gpu.Tensor, l1, l2 float32, scale gpu.Ptr, dy *gpu.Tensor, out, workspace gpu.Ptr) {
	same(y, &t, dy)
	if dy != nil {
		inPlace(*dy, &y)
	}
	parts := sumParts(y.Voxels())
	run(e, "loss", [3]int{parts, 1, 1}, 256, lossArgs{Y: e.view(y), T: e.view(t), DY: e.viewOf(dy), D: dimsOf(y.Dims), Scale: e.at(scale), Parts: e.at(workspace), L1: l1, L2: l2})
	e.total(e.at(workspace), e.at(out), parts, 4, float64(y.Len()), true)
}
