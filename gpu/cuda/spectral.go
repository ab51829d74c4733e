//go:build cuda

package cuda

import "github.com/flowrun/flowrun/gpu"

// spectralArgs is kernels/spectral.cu's SpectralArgs.
type spectralArgs struct {
	W, U, V, Out, Sigma            uint64
	Products, Shares, Sums, Length uint64
	Rows, Columns, Parts, N        int32
}

func (e *Engine) spectral(w gpu.Ptr, rows, columns int, u, v, out, sigma, workspace gpu.Ptr) spectralArgs {
	a := spectralArgs{W: e.at(w), U: e.at(u), V: e.at(v), Out: e.at(out), Sigma: e.at(sigma), Products: e.at(workspace),
		Rows: int32(rows), Columns: int32(columns), Parts: int32(spectralParts(rows)), N: int32(sumParts(rows * columns))}
	a.Shares = a.Products + uint64(aligned(4*int64(rows)))
	a.Sums = a.Shares + uint64(aligned(4*int64(a.Parts)*int64(columns)))
	a.Length = a.Sums + uint64(aligned(8*int64(a.N)))
	return a
}

// Spectral divides w by its largest singular value.
func (e *Engine) Spectral(w gpu.Ptr, rows, columns int, u, v, out, sigma, workspace gpu.Ptr) {
	a := e.spectral(w, rows, columns, u, v, out, sigma, workspace)
	run(e, "spectralRows", [3]int{rows, 1, 1}, 128, a)
	run(e, "spectralLeft", [3]int{1, 1, 1}, 256, a)
	run(e, "spectralColumns", [3]int{divUp(columns, 128), int(a.Parts), 1}, 128, a)
	run(e, "spectralRight", [3]int{1, 1, 1}, 256, a)
	run(e, "spectralDivide", blocks(rows*columns, 256), 256, a)
}

// SpectralGrad turns the gradient of w̄ into that of w.
func (e *Engine) SpectralGrad(g, out gpu.Ptr, rows, columns int, u, v, sigma, workspace gpu.Ptr) {
	a := e.spectral(g, rows, columns, u, v, out, sigma, workspace)
	run(e, "spectralAlong", [3]int{int(a.N), 1, 1}, 256, a)
	run(e, "spectralGrad", blocks(rows*columns, 256), 256, a)
}
