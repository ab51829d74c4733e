//go:build cuda

package cuda

import "github.com/flowrun/flowrun/gpu"

// The arguments of kernels/thin.cu.
type (
	thinWeightArgs struct {
		Wide, Thin           view
		W, T                 dims
		Out                  uint64
		From, Count, Lo      [3]int32
		StepZ                int32
		ClampWide, ClampThin int32
		Least, Most          int32
		Planes, Flip         int32
		Lanes, Segment       int32
		Share, _             int32
	}
	thinConvArgs struct {
		Thin, Wide          view
		S, T                dims
		Weights, Bias       uint64
		First, Count        [3]int32
		At                  int32
		Padded, Tiled, Flip int32
		Lanes, Segment      int32
	}
)

// thinGradWeight adds to dw and db.
func (e *Engine) thinGradWeight(c gpu.Conv, t *thinGrad, x, dy gpu.Tensor, dw, db, workspace gpu.Ptr) {
	wide, thin := dy, x
	a := thinWeightArgs{StepZ: int32(c.S[0]), ClampThin: yes(c.Pad == gpu.Replicate), Least: int32(-x.Halo), Most: int32(x.W + x.Halo)}
	if t.last {
		wide, thin = x, dy
		a.ClampWide, a.ClampThin, a.Flip = a.ClampThin, 0, 1
		a.Least, a.Most = 0, int32(dy.W)
	}
	a.Wide, a.Thin, a.W, a.T, a.Out = e.view(wide), e.view(thin), dimsOf(wide.Dims), dimsOf(thin.Dims), e.at(workspace)
	a.From, a.Count, a.Lo = int32s(t.from), int32s(t.count), int32s(t.lo)
	a.Planes, a.Lanes, a.Segment, a.Share = int32(t.planes), int32(t.lanes), int32(t.segment), int32(t.share)
	run(e, t.kernel, [3]int{t.columns * t.planes, 1, t.parts}, 256, a)
	all := c.Taps() * t.channels
	stride := all + t.channels
	e.columns(a.Out, e.at(dw), t.parts, stride, all, 0, 1, true)
	if !t.last {
		e.columns(a.Out, e.at(db), t.parts, stride, t.channels, all, 1, true)
		return
	}
	e.biasGrad(dy, db, a.Out+uint64(aligned(4*int64(t.floats(c.Taps())))))
}

// thinBox is a box of targets that all taps of a k3 convolution reach, source by source.
type thinBox struct {
	first, count [3]int32
	at           int32 // stored voxel of the source that the first target meets at the first tap
	flip         bool  // taps count from the end
}

// thinBoxOf is nil where a box is another. Its taps are runs of length 1 over a source of rows of so many stored voxels, h of them a plane.
func thinBoxOf(b box, runs []tapRun, row, h int) *thinBox {
	one := [3]int32{1, 1, 1}
	if b.Runs != 27 || b.Length != 1 || b.Step != one || b.SrcStep != one {
		return nil
	}
	runs = runs[b.Run:][:27]
	t := &thinBox{first: b.First, count: b.Count, at: runs[0].At, flip: runs[0].Weight != 0}
	for i, r := range runs {
		tap := i
		if t.flip {
			tap = 26 - i
		}
		if int(r.At-t.at) != (i/9*h+i/3%3)*row+i%3 || int(r.Weight) != tap {
			return nil
		}
	}
	return t
}

// convThin writes a box of targets.
func (e *Engine) convThin(a convArgs, t *thinBox, samples int) {
	channels := int(a.T.C)
	each, lanes := 2, 1
	for lanes < 32 && lanes*each < channels {
		lanes *= 2
	}
	segments := 256 / lanes
	wide := int(t.count[2])
	segment := min(divUp(wide, segments*divUp(wide, thinPoints)), thinPoints/segments)
	columns := divUp(channels, lanes*each)
	rows := samples * int(t.count[0]*t.count[1])
	run(e, "convThin3", [3]int{min(rows, thinBlocks/columns), columns, 1}, 256, thinConvArgs{Thin: a.Src, Wide: a.Dst, S: a.S, T: a.T, Weights: a.Weights, Bias: a.Bias,
		First: t.first, Count: t.count, At: t.at, Padded: a.Padded, Tiled: a.Tiled, Flip: yes(t.flip), Lanes: int32(lanes), Segment: int32(segment)})
}
