//go:build cuda

package cuda

import "github.com/flowrun/flowrun/gpu"

// The arguments of kernels/pointwise.cu.
type (
	pointArgs struct {
		A, B, Y view
		D       dims
		_       int32
		Scale   uint64
		By      float32
		_       int32
	}
	gradArgs struct {
		X, DY, Add, DX view
		D              dims
		Slope          float32
	}
	sliceArgs struct {
		X, Plane, Add view
		D, P          dims
		At            uint64
		Axis, Each    int32
	}
	tintArgs struct {
		One, Many    view
		D            dims
		_            int32
		Scale, Shift uint64
	}
)

// Add writes y = a + b.
func (e *Engine) Add(a, b, y gpu.Tensor) { e.combine(a, b, y, pointArgs{By: 1}) }

// Subtract writes y = a - b.
func (e *Engine) Subtract(a, b, y gpu.Tensor) { e.combine(a, b, y, pointArgs{By: -1}) }

// Combine writes y = a + s·b.
func (e *Engine) Combine(a, b gpu.Tensor, scale gpu.Ptr, y gpu.Tensor) {
	e.combine(a, b, y, pointArgs{Scale: e.at(scale), By: 1})
}

func (e *Engine) combine(a, b, y gpu.Tensor, args pointArgs) {
	same(y, &a, &b)
	inPlace(y, &a, &b)
	args.A, args.B, args.Y, args.D = e.view(a), e.view(b), e.view(y), dimsOf(y.Dims)
	run(e, "combine", blocks(spots(y.Dims), 256), 256, args)
}

// Activate writes y = max(x, 0) + slope·min(x, 0).
func (e *Engine) Activate(slope float32, x, y gpu.Tensor) {
	same(y, &x)
	inPlace(y, &x)
	run(e, "activate", blocks(spots(y.Dims), 256), 256, pointArgs{A: e.view(x), Y: e.view(y), D: dimsOf(y.Dims), By: slope})
}

// ActivateGrad writes dx = dy where y > 0, slope·dy elsewhere, + add.
func (e *Engine) ActivateGrad(slope float32, y, dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor) {
	same(dx, &y, &dy, add)
	inPlace(dx, &dy, add)
	run(e, "activateGrad", blocks(spots(dx.Dims), 256), 256, gradArgs{X: e.view(y), DY: e.view(dy), Add: e.viewOf(add), DX: e.view(dx), D: dimsOf(dx.Dims), Slope: slope})
}

// MaxPool writes maxima of 2×2 voxels along H and W.
func (e *Engine) MaxPool(x, y gpu.Tensor) {
	run(e, "maxPool", blocks(spots(y.Dims), 256), 256, pointArgs{A: e.view(x), Y: e.view(y), D: dimsOf(x.Dims)})
}

// MaxPoolGrad gives each dy to the first of its maxima, + add.
func (e *Engine) MaxPoolGrad(x, dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor) {
	same(dx, &x, add)
	inPlace(dx, add)
	run(e, "maxPoolGrad", blocks(spots(dx.Dims), 256), 256, gradArgs{X: e.view(x), DY: e.view(dy), Add: e.viewOf(add), DX: e.view(dx), D: dimsOf(dx.Dims)})
}

// Slice cuts planes out of volumes.
func (e *Engine) Slice(axis int, x gpu.Tensor, at gpu.Ptr, y gpu.Tensor) {
	run(e, "slice", blocks(spots(y.Dims), 256), 256, sliceArgs{X: e.view(x), Plane: e.view(y), D: dimsOf(x.Dims), P: dimsOf(y.Dims), At: e.at(at), Axis: int32(axis), Each: int32(y.N / x.N)})
}

// SliceGrad writes dx = add + the dy of each plane that a voxel is in.
func (e *Engine) SliceGrad(axis int, dy gpu.Tensor, at gpu.Ptr, add *gpu.Tensor, dx gpu.Tensor) {
	same(dx, add)
	inPlace(dx, add)
	run(e, "sliceGrad", blocks(spots(dx.Dims), 256), 256, sliceArgs{X: e.view(dx), Plane: e.view(dy), Add: e.viewOf(add), D: dimsOf(dx.Dims), P: dimsOf(dy.Dims), At: e.at(at), Axis: int32(axis), Each: int32(dy.N / dx.N)})
}

// Tint makes channels of one.
func (e *Engine) Tint(x gpu.Tensor, scale, shift gpu.Ptr, y gpu.Tensor) {
	run(e, "tint", blocks(spots(y.Dims), 256), 256, tintArgs{One: e.view(x), Many: e.view(y), D: dimsOf(y.Dims), Scale: e.at(scale), Shift: e.at(shift)})
}

// TintGrad writes dx = Σ over c of scale[c]·dy[c].
func (e *Engine) TintGrad(dy gpu.Tensor, scale gpu.Ptr, dx gpu.Tensor) {
	run(e, "tintGrad", blocks(spots(dx.Dims), 256), 256, tintArgs{One: e.view(dx), Many: e.view(dy), D: dimsOf(dy.Dims), Scale: e.at(scale)})
}
