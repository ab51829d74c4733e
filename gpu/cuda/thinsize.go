package cuda

import "github.com/flowrun/flowrun/gpu"

// thinGrad is the gradient of weights between one channel of float32 and many of bfloat16, as kernels/thin.cu computes it: it walks over
// voxels of the wide operand, in rows, and each part has a share of the rows.
type thinGrad struct {
	kernel         string
	last           bool   // the output is the thin operand
	from, count    [3]int // the wide operand's voxels
	lo             [3]int // voxel v meets the thin operand's v*s - lo and on
	planes         int    // of taps, that blocks share out
	lanes, segment int    // of a voxel; voxels of a row that follow each other
	columns        int    // of blocks, along channels
	channels       int    // of the wide operand
	share, parts   int    // rows
}

// thinPoints is what kernels/thin.cu's POINTS is, and thinBlocks how many blocks there are at most.
const thinPoints, thinBlocks = 288, 1056

// thinGradOf is nil where the kernels don't fit.
func thinGradOf(c gpu.Conv) *thinGrad {
	t := &thinGrad{last: c.Type == gpu.BFloat16, channels: c.Out.C, planes: c.K[0]}
	wide, thin := c.Out, c.In
	if t.last {
		wide, thin, t.channels = c.In, c.Out, c.In.C
	}
	each := 4 // channels of a thread
	switch {
	case c.Transposed || thin.C != 1 || t.last && c.S != [3]int{1, 1, 1}:
		return nil
	case c.K == [3]int{3, 3, 3} && c.S == [3]int{1, 1, 1}:
		t.kernel, t.planes, each = "weightThin3", 1, 2
	case c.K[1] == 4 && c.K[2] == 4 && c.S[1] == 1 && c.S[2] == 1:
		t.kernel = "weightThin4"
	case c.K[1] == 4 && c.K[2] == 4 && c.S[1] == 2 && c.S[2] == 2:
		t.kernel = "weightThin4by2"
	default:
		return nil
	}
	size, other := [3]int{wide.D, wide.H, wide.W}, [3]int{thin.D, thin.H, thin.W}
	for i := range 3 {
		t.lo[i], t.count[i] = c.Lo[i], size[i]
		if !t.last {
			continue
		}
		t.lo[i] = c.K[i] - 1 - c.Lo[i]
		if c.Pad == gpu.Replicate { // what lies beyond the ends is met too
			t.from[i], t.count[i] = -c.Lo[i], other[i]+c.K[i]-1
		}
	}
	for t.lanes = 1; t.lanes < 32 && t.lanes*each < t.channels; {
		t.lanes *= 2
	}
	t.columns = divUp(t.channels, t.lanes*each)
	segments := 256 / t.lanes
	t.segment = min(divUp(t.count[2], segments*divUp(t.count[2], thinPoints)), thinPoints/segments)
	rows := wide.N * t.count[0] * t.count[1]
	t.share = divUp(rows, max(1, thinBlocks/(t.columns*t.planes)))
	t.parts = divUp(rows, t.share)
	return t
}

// floats is the size of all parts: of each tap, and of the wide operand's sum.
func (t *thinGrad) floats(taps int) int { return t.parts * (taps + 1) * t.channels }
