//go:build cuda

package cuda

import (
	"slices"

	"github.com/flowrun/flowrun/gpu"
)

// A convolution is, for each tap, a matrix product on a shifted window: target voxels by channels, from source voxels by
// channels. Targets fall into boxes that share their taps: one inside, others where a border folds taps or a stride has phases.
// A block of threads computes a tile of one box, so the kernel neither branches on borders nor clamps.

// box is a block of targets that share their taps, as the kernels read it. Axes are z, y, x.
type box struct {
	First, Step, Count, SrcStep [3]int32
	Tap, Taps                   int32 // the first of its taps, and how many
	Tile, _                     int32 // its first tile
}

// tap is where a source lies, in voxels from its sample's first stored one, and the tap of the weights that it meets.
type tap struct{ At, Weight int32 }

// boxes cuts a pass of n samples into boxes of tiles of m targets, largest first. The source's rows have halo columns at each end.
func boxes(c gpu.Conv, forward bool, n, halo, m int) (bs []box, taps []tap, tiles int) {
	src := c.In
	if !forward {
		src = c.Out
	}
	row := src.W + 2*halo
	spans := gpu.Axis.Forward
	if !forward {
		spans = gpu.Axis.Backward
	}
	for _, z := range spans(c.Axis(0)) {
		for _, y := range spans(c.Axis(1)) {
			for _, x := range spans(c.Axis(2)) {
				b := box{Tap: int32(len(taps))}
				for i, s := range []gpu.Span{z, y, x} {
					b.First[i], b.Step[i], b.Count[i], b.SrcStep[i] = int32(s.First), int32(s.Step), int32(s.Count), int32(s.SourceStep)
				}
				for _, pz := range z.Pairs {
					for _, py := range y.Pairs {
						for _, px := range x.Pairs {
							taps = append(taps, tap{
								At:     int32((pz.Source*src.H+py.Source)*row + px.Source + halo),
								Weight: int32((pz.Tap*c.K[1]+py.Tap)*c.K[2] + px.Tap),
							})
						}
					}
				}
				b.Taps = int32(len(taps)) - b.Tap
				bs = append(bs, b)
			}
		}
	}
	slices.SortStableFunc(bs, func(a, b box) int { return int(b.voxels() - a.voxels()) })
	for i := range bs {
		bs[i].Tile = int32(tiles)
		tiles += divUp(n*int(bs[i].voxels()), m)
	}
	return bs, taps, tiles
}

func (b *box) voxels() int32 { return b.Count[0] * b.Count[1] * b.Count[2] }
