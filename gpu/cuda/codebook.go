//go:build cuda

package cuda

import (
	"fmt"

	"github.com/flowrun/flowrun/gpu"
)

// The arguments of kernels/codebook.cu.
type (
	normsArgs struct {
		Codes, Half uint64
		Count, Dim  int32
	}
	nearestArgs struct {
		Z                       view
		D                       dims
		_                       int32
		Codes, Half, Idx, Parts uint64
		Count, _                int32
	}
	countArgs struct {
		Z            view
		D            dims
		_            int32
		Idx, Parts   uint64
		Count, Share int32
		Wide, _      int32
	}
	gatherArgs struct {
		Parts, Counts, Sums uint64
		N, Count, Dim, _    int32
	}
	lookupArgs struct {
		Q, Z, DQ          view
		D                 dims
		_                 int32
		Codes, Idx, Scale uint64
	}
)

// Quantize finds the nearest codes.
func (e *Engine) Quantize(k gpu.Quantizer, z gpu.Tensor, codebook, idx gpu.Ptr, q gpu.Tensor, counts, sums, loss, workspace gpu.Ptr) {
	checkCodes(k, z)
	same(z, &q)
	d, voxels := dimsOf(z.Dims), z.Voxels()
	half := e.at(workspace)
	parts := half + uint64(aligned(4*int64(k.Codes)))
	squares := parts + uint64(aligned(4*codeParts*int64(k.Codes)*int64(k.Dim+1)))
	n := sumParts(voxels)
	run(e, "codeNorms", [3]int{divUp(k.Codes, 128), 1, 1}, 128, normsArgs{e.at(codebook), half, int32(k.Codes), int32(k.Dim)})
	run(e, "nearest", [3]int{n, 1, 1}, 128, nearestArgs{Z: e.view(z), D: d, Codes: e.at(codebook), Half: half, Idx: e.at(idx), Parts: squares, Count: int32(k.Codes)})
	e.total(squares, e.at(loss), n, 1, float64(z.Len()), false)
	e.Lookup(k, codebook, idx, q)
	if counts < 0 && sums < 0 {
		return
	}
	share := divUp(divUp(voxels, codeParts), 32) * 32
	by := divUp(voxels, share)
	wide := 32
	for 4*wide*(k.Dim+1) > leastShared {
		wide /= 2
	}
	run(e, "countCodes", [3]int{divUp(k.Codes, wide), by, 1}, 32, countArgs{Z: e.view(z), D: d, Idx: e.at(idx), Parts: parts, Count: int32(k.Codes), Share: int32(share), Wide: int32(wide)})
	run(e, "gatherCodes", [3]int{divUp(k.Codes*(k.Dim+1), 128), 1, 1}, 128, gatherArgs{Parts: parts, Counts: e.at(counts), Sums: e.at(sums), N: int32(by), Count: int32(k.Codes), Dim: int32(k.Dim)})
}

func checkCodes(k gpu.Quantizer, z gpu.Tensor) {
	if z.C != k.Dim {
		panic(fmt.Sprintf("cuda: codes of %d floats for %d channels", k.Dim, z.C))
	}
}

// QuantizeGrad writes dz = dq + scale*(z - codebook[idx]).
func (e *Engine) QuantizeGrad(k gpu.Quantizer, z gpu.Tensor, codebook, idx gpu.Ptr, dq *gpu.Tensor, scale gpu.Ptr, dz gpu.Tensor) {
	checkCodes(k, z)
	same(z, dq, &dz)
	inPlace(dz, dq)
	run(e, "quantizeGrad", blocks(spots(z.Dims), 256), 256, lookupArgs{Q: e.view(dz), Z: e.view(z), DQ: e.viewOf(dq), D: dimsOf(z.Dims), Codes: e.at(codebook), Idx: e.at(idx), Scale: e.at(scale)})
}

// Gather copies rows.
func (e *Engine) Gather(dst, src gpu.Ptr, width int, at gpu.Ptr, n int) {
	if n > 0 {
		e.Lookup(gpu.Quantizer{Dim: width}, src, at, gpu.Tensor{Dims: gpu.Dims{N: 1, D: 1, H: 1, W: n, C: width}, At: dst})
	}
}

// Lookup writes q = codebook[idx].
func (e *Engine) Lookup(k gpu.Quantizer, codebook, idx gpu.Ptr, q gpu.Tensor) {
	checkCodes(k, q)
	run(e, "lookup", blocks(spots(q.Dims), 256), 256, lookupArgs{Q: e.view(q), D: dimsOf(q.Dims), Codes: e.at(codebook), Idx: e.at(idx)})
}
