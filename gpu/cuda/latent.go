//go:build cuda

package cuda

import (
	"fmt"
	"math"

	"github.com/flowrun/flowrun/gpu"
)

// mostLevels is how many channels a scalar quantiser may have.
const mostLevels = 32

// The arguments of kernels/latent.cu.
type (
	unitArgs struct {
		X, DY, Y view
		D        dims
		Lanes    int32
	}
	roundArgs struct {
		Z, DQ, Q    view
		D           dims
		_           int32
		Idx         uint64
		Levels      [mostLevels]int32
		Half, Shift [mostLevels]float32
	}
	tallyArgs struct {
		Idx, Counts   uint64
		Voxels, Codes int32
	}
)

// tallied is the codes of a block of tally.
const tallied = 4096

// Unit writes y = x/max(‖x‖, 1e-12).
func (e *Engine) Unit(x, y gpu.Tensor) {
	same(x, &y)
	run(e, "unit", blocks(x.Voxels()*lanes(x.C), 256), 256, unitArgs{X: e.view(x), Y: e.view(y), D: dimsOf(x.Dims), Lanes: int32(lanes(x.C))})
}

// UnitGrad writes dx = (dy - y·<dy, y>)/‖x‖.
func (e *Engine) UnitGrad(x, dy, dx gpu.Tensor) {
	same(x, &dy, &dx)
	inPlace(dx, &dy)
	run(e, "unitGrad", blocks(x.Voxels()*lanes(x.C), 256), 256, unitArgs{X: e.view(x), DY: e.view(dy), Y: e.view(dx), D: dimsOf(x.Dims), Lanes: int32(lanes(x.C))})
}

// Round quantises channels to levels.
func (e *Engine) Round(k gpu.Scalar, z gpu.Tensor, idx gpu.Ptr, q gpu.Tensor, counts gpu.Ptr) {
	same(z, &q)
	a := e.scalar(k, z)
	a.Q, a.Idx = e.view(q), e.at(idx)
	run(e, "roundCodes", blocks(z.Voxels(), 128), 128, a)
	if counts < 0 {
		return
	}
	codes := 1
	for _, l := range k.Levels {
		codes *= l
	}
	run(e, "tally", [3]int{divUp(codes, tallied), 1, 1}, 256, tallyArgs{Idx: a.Idx, Counts: e.at(counts), Voxels: int32(z.Voxels()), Codes: int32(codes)})
}

// RoundGrad writes dz = dq·db/dz/(L div 2).
func (e *Engine) RoundGrad(k gpu.Scalar, z, dq, dz gpu.Tensor) {
	same(z, &dq, &dz)
	inPlace(dz, &dq)
	a := e.scalar(k, z)
	a.DQ, a.Q = e.view(dq), e.view(dz)
	run(e, "roundGrad", blocks(z.Voxels(), 128), 128, a)
}

// scalar works out gpu.Scalar's half and shift of each channel.
func (e *Engine) scalar(k gpu.Scalar, z gpu.Tensor) roundArgs {
	if len(k.Levels) != z.C || z.C > mostLevels {
		panic(fmt.Sprintf("cuda: %d levels for %d channels (at most %d)", len(k.Levels), z.C, mostLevels))
	}
	a := roundArgs{Z: e.view(z), D: dimsOf(z.Dims)}
	for i, l := range k.Levels {
		half := float64(l-1) * 1.001 / 2
		a.Levels[i], a.Half[i] = int32(l), float32(half)
		if l%2 == 0 {
			a.Shift[i] = float32(math.Atanh(0.5 / half))
		}
	}
	return a
}
