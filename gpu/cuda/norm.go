//go:build cuda

package cuda

import (
	"fmt"
	"slices"

	"github.com/flowrun/flowrun/gpu"
)

// normArgs is kernels/norm.cu's NormArgs.
type normArgs struct {
	X, Y, DY, Add                 view
	D                             dims
	_                             int32
	Gamma, Beta, Stats, Parts     uint64
	Means                         uint64
	Lanes, Groups, Measure, Plain int32
	Eps                           float32
	_                             int32
}

// groupArgs is kernels/norm.cu's GroupArgs.
type groupArgs struct {
	X                          view
	D                          dims
	_                          int32
	Parts, Out, Gamma, Moments uint64
	N, Groups                  int32
	Eps                        float32
	_                          int32
}

// lanes is how many lanes of a warp share a voxel.
func lanes(channels int) int {
	n := 1
	for n < 32 && n*8 < channels {
		n *= 2
	}
	return n
}

// normBlocks is how many blocks walk over voxels: few enough that each does many, with what it keeps, and enough for every multiprocessor.
func normBlocks(voxels, channels int) int {
	all := divUp(voxels*lanes(channels), 256)
	return max(min(all, 264), min(all/8, 2112))
}

// NormAct writes y and the statistics.
func (e *Engine) NormAct(n gpu.Norm, x gpu.Tensor, gamma, beta, stats gpu.Ptr, y gpu.Tensor) {
	e.normAct(n, x, gamma, beta, stats, y, true)
}

// NormActApply writes y with the statistics that are there.
func (e *Engine) NormActApply(n gpu.Norm, x gpu.Tensor, gamma, beta, stats gpu.Ptr, y gpu.Tensor) {
	e.normAct(n, x, gamma, beta, stats, y, false)
}

func (e *Engine) normAct(n gpu.Norm, x gpu.Tensor, gamma, beta, stats gpu.Ptr, y gpu.Tensor, measure bool) {
	same(x, &y)
	a := normArgs{X: e.view(x), Y: e.view(y), Gamma: e.at(gamma), Beta: e.at(beta), Stats: e.at(stats), Measure: yes(measure),
		Plain: yes(n.Plain), Lanes: int32(lanes(x.C)), Eps: n.Eps}
	if n.Groups == 0 && !n.Batch {
		a.D = dimsOf(x.Dims)
		kernel := "channelNorm"
		if x.C <= 8*lanes(x.C) && allWhole(x, y) {
			kernel += "8"
		}
		run(e, kernel, [3]int{normBlocks(x.Voxels(), x.C), 1, 1}, 256, a)
		return
	}
	n, d, front := grouped(n, x.Dims)
	a.D, a.Groups, a.Stats = dimsOf(d), int32(n.Groups), a.Stats+uint64(front)
	if measure {
		sums := "groupSums"
		if allWhole(x) {
			sums += "8"
		}
		a.Parts = a.Stats + uint64(aligned(8*int64(d.N*n.Groups)))
		parts := sumParts(d.Voxels() / d.N)
		g := groupArgs{X: a.X, D: a.D, Parts: a.Parts, Out: a.Stats, N: int32(parts), Groups: a.Groups, Eps: n.Eps}
		if n.Batch {
			g.Moments = e.at(stats)
		}
		run(e, sums, [3]int{parts, d.N, 1}, 256, a)
		run(e, "groupStats", [3]int{d.N * n.Groups, 1, 1}, 128, g)
	}
	kernel := "groupNorm"
	if allWhole(x, y) {
		kernel += "8"
	}
	run(e, kernel, [3]int{normBlocks(d.Voxels()/d.N, d.C), d.N, 1}, 256, a)
}

// allWhole says whether tensors are what kernels whose name ends in 8 take: bfloat16, of a multiple of eight channels.
func allWhole(ts ...gpu.Tensor) bool {
	return !slices.ContainsFunc(ts, func(t gpu.Tensor) bool { return t.Type != gpu.BFloat16 || t.C%8 != 0 })
}

// NormActGrad writes dx and adds to dgamma and dbeta.
func (e *Engine) NormActGrad(n gpu.Norm, x gpu.Tensor, gamma, beta, stats gpu.Ptr, dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor, dgamma, dbeta, workspace gpu.Ptr) {
	same(x, &dy, &dx, add)
	inPlace(dx, &dy, add)
	a := normArgs{X: e.view(x), Y: e.view(dx), DY: e.view(dy), Add: e.viewOf(add), Gamma: e.at(gamma), Beta: e.at(beta), Stats: e.at(stats),
		Parts: e.at(workspace), Plain: yes(n.Plain), Lanes: int32(lanes(x.C)), Eps: n.Eps}
	c, whole := x.C, allWhole(x, dy, dx) && (add == nil || allWhole(*add))
	if n.Groups == 0 && !n.Batch {
		a.D = dimsOf(x.Dims)
		parts := sumParts(x.Voxels())
		if whole && c <= 8*lanes(c) {
			run(e, "channelNormGrad8", [3]int{parts, 1, 1}, 256, a)
		} else { // sums first: dx may be dy's memory
			one := a
			one.D.N, one.D.D = 1, one.D.N*one.D.D
			run(e, "channelGradSums", [3]int{parts, 1, 1}, 256, one)
			run(e, "channelNormGrad", [3]int{normBlocks(x.Voxels(), c), 1, 1}, 256, a)
		}
		e.columns(a.Parts, e.at(dgamma), parts, 2*c, c, 0, 1, true)
		e.columns(a.Parts, e.at(dbeta), parts, 2*c, c, c, 1, true)
		return
	}
	n, d, front := grouped(n, x.Dims)
	a.D, a.Groups, a.Stats = dimsOf(d), int32(n.Groups), a.Stats+uint64(front)
	parts := sumParts(d.Voxels() / d.N)
	sums := a.Parts + uint64(aligned(8*int64(d.N*parts*c)))
	a.Means = sums + uint64(aligned(8*int64(d.N*c)))
	sumKernel, kernel := "groupGradSums", "groupGrad"
	if whole {
		sumKernel, kernel = "groupGradSums8", "groupGrad8"
	}
	run(e, sumKernel, [3]int{parts, d.N, 1}, 256, a)
	e.columns(a.Parts, sums, parts, 2*c, 2*c, 0, d.N, false)
	run(e, "groupMeans", blocks(d.N*n.Groups, 128), 128, groupArgs{D: a.D, Parts: sums, Out: a.Means, Gamma: a.Gamma, Groups: a.Groups})
	e.columns(sums, e.at(dgamma), 1, 2*c, c, 0, d.N, true)
	e.columns(sums, e.at(dbeta), 1, 2*c, c, c, d.N, true)
	run(e, kernel, [3]int{normBlocks(d.Voxels()/d.N, d.C), d.N, 1}, 256, a)
}

// inPlace holds ops that may write over an operand to its layout.
func inPlace(dst gpu.Tensor, operands ...*gpu.Tensor) {
	for _, t := range operands {
		if t != nil && t.At == dst.At && (t.Halo != dst.Halo || t.Type != dst.Type) {
			panic(fmt.Sprintf("cuda: in place, but halos %d and %d or types %v and %v differ", t.Halo, dst.Halo, t.Type, dst.Type))
		}
	}
}

// columnsArgs is kernels/optim.cu's ColumnsArgs.
type columnsArgs struct {
	Parts, Out                 uint64
	N, Stride, Columns, Offset int32
	Add, Groups                int32
}

// columns adds up columns of n parts for each group, or adds those of all groups to out.
func (e *Engine) columns(parts, out uint64, n, stride, columns, offset, groups int, add bool) {
	all := columns * groups
	if add {
		all = columns
	}
	run(e, "columns", [3]int{divUp(all, 8), 1, 1}, 256, columnsArgs{parts, out, int32(n), int32(stride), int32(columns), int32(offset), yes(add), int32(groups)})
}
