//go:build cuda

package cuda

import "github.com/flowrun/flowrun/gpu"

// The arguments of kernels/adversary.cu.
type (
	judgeArgs struct {
		X, DX               view
		D                   dims
		_                   int32
		Scale, LeCam, Parts uint64
		Loss, Side          int32
	}
	perceptualArgs struct {
		A, B, Add, DA   view
		D               dims
		_               int32
		W, Scale, Parts uint64
		Lanes, _        int32
	}
	balanceArgs struct {
		A, B, Factor, Out uint64
		Limit             float32
		_                 int32
	}
	nudgeArgs struct {
		X, G, Y            view
		D                  dims
		_                  int32
		Factor, Out, Parts uint64
		N                  int32
		H                  float32
	}
)

// JudgeLoss judges logits.
func (e *Engine) JudgeLoss(j gpu.Judge, x gpu.Tensor, scale, lecam gpu.Ptr, dx *gpu.Tensor, out, workspace gpu.Ptr) {
	same(x, dx)
	if dx != nil {
		inPlace(*dx, &x)
	}
	parts := sumParts(x.Voxels())
	run(e, "judge", [3]int{parts, 1, 1}, 256, judgeArgs{X: e.view(x), DX: e.viewOf(dx), D: dimsOf(x.Dims), Scale: e.at(scale), LeCam: e.at(lecam), Parts: e.at(workspace), Loss: int32(j.Loss), Side: int32(j.Side)})
	e.total(e.at(workspace), e.at(out), parts, 2, float64(x.Len()), false)
}

// PerceptualLoss compares features.
func (e *Engine) PerceptualLoss(a, b gpu.Tensor, w, scale gpu.Ptr, add, da *gpu.Tensor, out, workspace gpu.Ptr) {
	same(a, &b, add, da)
	if da != nil {
		inPlace(*da, add)
	}
	parts := sumParts(a.Voxels())
	run(e, "perceptual", [3]int{parts, 1, 1}, 256, perceptualArgs{A: e.view(a), B: e.view(b), Add: e.viewOf(add), DA: e.viewOf(da), D: dimsOf(a.Dims), W: e.at(w), Scale: e.at(scale), Parts: e.at(workspace), Lanes: int32(lanes(a.C))})
	e.total(e.at(workspace), e.at(out), parts, 1, float64(a.Voxels()), false)
}

// Balance writes w = min(√a/(√b + 1e-4), limit) and f·w.
func (e *Engine) Balance(a, b gpu.Ptr, limit float32, factor, out gpu.Ptr) {
	run(e, "balance", [3]int{1, 1, 1}, 32, balanceArgs{A: e.at(a), B: e.at(b), Factor: e.at(factor), Out: e.at(out), Limit: limit})
}

// Nudge writes y = x + h·g/‖g‖.
func (e *Engine) Nudge(x, g gpu.Tensor, h float32, factor gpu.Ptr, y gpu.Tensor, out, workspace gpu.Ptr) {
	same(x, &g, &y)
	parts := sumParts(x.Voxels())
	a := nudgeArgs{X: e.view(x), G: e.view(g), Y: e.view(y), D: dimsOf(x.Dims), Factor: e.at(factor), Out: e.at(out), Parts: e.at(workspace), N: int32(parts), H: h}
	run(e, "squaresOf", [3]int{parts, 1, 1}, 256, a)
	run(e, "nudgeNorm", [3]int{1, 1, 1}, 256, a)
	run(e, "nudge", blocks(spots(x.Dims), 256), 256, a)
}
