//go:build cuda

package cuda

import (
	"math"

	"github.com/flowrun/flowrun/gpu"
)

// The arguments of kernels/similarity.cu.
type (
	volumeArgs struct {
		Y, T        view
		Dims        dims
		_           int32
		S, D, Scale uint64
		Sample, _   int32
	}
	scaleArgs struct {
		Fine, Coarse, Slope uint64
		Size, CoarseSize    [3]int32
	}
	blurArgs struct {
		In, Out          [4]uint64
		Size             [3]int32
		Axis, Taps, Back int32
		Squares          int32
		W                [windowTaps]float32
	}
	mapArgs struct {
		S, D, S2, D2            uint64
		SquareS, SquareD, Means uint64
		Parts, Grad             uint64
		N, Last                 int32
		Per                     float32
		_                       int32
	}
	factorsArgs struct {
		Parts              [mostScales]uint64
		Factors, Out       uint64
		Blocks, Voxels     [mostScales]int32
		Weights            [mostScales]float32
		N, Sample, Samples int32
		_                  int32
	}
)

// gaussian is the window along an axis, σ 1.5 voxels.
func gaussian(taps int) (w [windowTaps]float32) {
	var v [windowTaps]float64
	sum := 0.0
	for i := range taps {
		x := (float64(i) - float64(taps-1)/2) / 1.5
		v[i] = math.Exp(-x * x / 2)
		sum += v[i]
	}
	for i := range taps {
		w[i] = float32(v[i] / sum)
	}
	return w
}

func int32s(v [3]int) [3]int32 { return [3]int32{int32(v[0]), int32(v[1]), int32(v[2])} }

// SimilarityLoss writes 1 - MS-SSIM and its gradient, sample by sample.
func (e *Engine) SimilarityLoss(k gpu.Similarity, y, t gpu.Tensor, factor gpu.Ptr, dy *gpu.Tensor, out, workspace gpu.Ptr) {
	same(y, &t, dy)
	p := planSimilarity(k, y.Dims)
	base := e.at(workspace)
	last := len(p.scales) - 1
	f := factorsArgs{Factors: base + uint64(p.factors), Out: e.at(out), N: int32(len(p.scales)), Samples: int32(y.N)}
	for i, c := range p.scales {
		f.Parts[i], f.Blocks[i], f.Voxels[i] = base+uint64(c.parts), int32(sumParts(volume(c.valid))), int32(volume(c.valid))
		f.Weights[i] = float32(k.Weights[i])
	}
	var maps [8]uint64
	for i, at := range p.maps {
		maps[i] = base + uint64(at)
	}
	for n := range y.N {
		v := volumeArgs{Y: e.view(y), T: e.view(t), Dims: dimsOf(y.Dims), S: base + uint64(p.scales[0].s), D: base + uint64(p.scales[0].d), Sample: int32(n)}
		run(e, "volumes", blocks(volume(p.scales[0].size), 256), 256, v)
		for i, c := range p.scales {
			if i > 0 {
				from := p.scales[i-1]
				for _, m := range [][2]int64{{from.s, c.s}, {from.d, c.d}} {
					run(e, "halve", blocks(volume(c.size), 256), 256, scaleArgs{Fine: base + uint64(m[0]), Coarse: base + uint64(m[1]), Size: int32s(from.size), CoarseSize: int32s(c.size)})
				}
			}
			e.similarityScale(c, base, maps, i == last, dy != nil)
		}
		f.Sample = int32(n)
		run(e, "factors", [3]int{1, 1, 1}, 256, f)
		if dy == nil {
			continue
		}
		for i := last; i >= 0; i-- {
			c := p.scales[i]
			a := scaleArgs{Fine: base + uint64(c.grad), Slope: f.Factors + uint64(4*i), Size: int32s(c.size)}
			if i < last {
				a.Coarse, a.CoarseSize = base+uint64(p.scales[i+1].grad), int32s(p.scales[i+1].size)
			}
			run(e, "spread", blocks(volume(c.size), 256), 256, a)
		}
		v.Y, v.T, v.S, v.Scale = e.view(*dy), view{}, base+uint64(p.scales[0].grad), e.at(factor)
		run(e, "gradientOut", blocks(volume(p.scales[0].size), 256), 256, v)
	}
}

// similarityScale leaves shares of a scale's mean and, where it is wanted, the gradient of that mean.
func (e *Engine) similarityScale(c scale, base uint64, maps [8]uint64, last, grad bool) {
	here, there := [4]uint64(maps[:4]), [4]uint64(maps[4:])
	size := c.size
	blur := func(n, axis int, back bool, in, out [4]uint64, squares bool) {
		a := blurArgs{In: in, Out: out, Size: int32s(size), Axis: int32(axis), Taps: int32(c.taps[axis]), Back: yes(back), Squares: yes(squares), W: gaussian(c.taps[axis])}
		if grow := c.taps[axis] - 1; back {
			size[axis] += grow
		} else {
			size[axis] -= grow
		}
		grid := blocks(volume(size), 256)
		grid[1] = n
		run(e, "blur", grid, 256, a)
	}
	s, d := base+uint64(c.s), base+uint64(c.d)
	blur(4, 1, false, [4]uint64{s, d, s, d}, here, true)
	blur(4, 2, false, here, there, false)
	blur(4, 0, false, there, here, false)
	n := volume(c.valid)
	m := mapArgs{S: here[0], D: here[1], S2: here[2], D2: here[3], SquareS: there[0], SquareD: there[1], Means: there[2], Parts: base + uint64(c.parts), N: int32(n), Last: yes(last)}
	run(e, "similarityMap", [3]int{sumParts(n), 1, 1}, 256, m)
	if !grad {
		return
	}
	blur(3, 0, true, there, here, false)
	blur(3, 1, true, here, there, false)
	blur(3, 2, true, there, here, false)
	run(e, "gradientMap", blocks(volume(c.size), 256), 256, mapArgs{S: s, D: d, SquareS: here[0], SquareD: here[1], Means: here[2], Grad: base + uint64(c.grad), N: int32(volume(c.size)), Per: 1 / float32(n)})
}
