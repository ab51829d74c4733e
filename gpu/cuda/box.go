//go:build cuda

package cuda

import (
	"cmp"
	"slices"

	"github.com/flowrun/flowrun/gpu"
)

// A convolution is, for each tap, a matrix product on a shifted window: target voxels by channels, from source voxels by
// channels. Targets fall into boxes that share their taps: one inside, others where a border folds taps or a stride has phases.
// A block of threads computes a tile of one box, so the kernel neither branches on borders nor clamps.

// box is a block of targets that share their taps, as the kernels read it. Axes are z, y, x. Taps along x whose sources lie one
// step apart are runs of one length: a kernel loads what a run's taps share once, for Wide positions of a row, of which the first
// Count[2] are targets.
type box struct {
	First, Step, Count, SrcStep [3]int32
	Run, Runs                   int32 // the first of its runs, and how many
	Tile                        int32 // its first tile
	Length, Wide                int32
	_                           [3]int32
}

// tapRun is where the source of its first tap lies, in voxels from its sample's first stored one, and the taps of the weights that
// it meets: Weight, Weight + Next and so on.
type tapRun struct{ At, Weight, Next, _ int32 }

// longest is what kernels have room for in a run, and narrow the targets along x below which a run doesn't pay.
const longest, narrow = 3, 8

// boxes cuts a pass of n samples into boxes of tiles of m positions, largest first; without runs positions are targets and each
// tap is a run. The source's rows have halo columns at each end.
func boxes(c gpu.Conv, forward bool, n, halo, m int, inRuns bool) (bs []box, runs []tapRun, tiles int) {
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
				most := 1
				if inRuns && x.Count >= narrow {
					most = longest
				}
				along, length := runsOf(x.Pairs, x.SourceStep, most)
				b := box{Run: int32(len(runs)), Length: int32(length), Wide: int32(x.Count + length - 1)}
				for i, s := range []gpu.Span{z, y, x} {
					b.First[i], b.Step[i], b.Count[i], b.SrcStep[i] = int32(s.First), int32(s.Step), int32(s.Count), int32(s.SourceStep)
				}
				for _, pz := range z.Pairs {
					for _, py := range y.Pairs {
						for _, r := range along {
							r.At += int32((pz.Source*src.H+py.Source)*row + halo)
							r.Weight += int32((pz.Tap*c.K[1] + py.Tap) * c.K[2])
							runs = append(runs, r)
						}
					}
				}
				b.Runs = int32(len(runs)) - b.Run
				bs = append(bs, b)
			}
		}
	}
	slices.SortStableFunc(bs, func(a, b box) int { return int(b.positions() - a.positions()) })
	for i := range bs {
		bs[i].Tile = int32(tiles)
		tiles += bs[i].tiles(n, m)
	}
	return bs, runs, tiles
}

// tiles is how many of m positions it has, of n samples.
func (b *box) tiles(n, m int) int { return divUp(n*int(b.positions()), m) }

func (b *box) positions() int32 { return b.Count[0] * b.Count[1] * b.Wide }

// runsOf orders the pairs of an axis by phase of the step and source, whatever runs they fall into, and cuts them into runs of one
// length, at most that long.
func runsOf(pairs []gpu.Pair, step, most int) (runs []tapRun, length int) {
	pairs = slices.Clone(pairs)
	phase := func(p gpu.Pair) int { return (p.Source%step + step) % step }
	slices.SortStableFunc(pairs, func(p, q gpu.Pair) int { return cmp.Or(phase(p)-phase(q), p.Source-q.Source) })
	for length = most; length > 1; length-- {
		if runs = cut(pairs, step, length); runs != nil {
			return runs, length
		}
	}
	return cut(pairs, step, 1), 1
}

// cut gives nil where pairs don't fall into runs of that length.
func cut(pairs []gpu.Pair, step, length int) []tapRun {
	var runs []tapRun
	for r := range slices.Chunk(pairs, length) {
		if len(r) < length {
			return nil
		}
		next := 0
		if length > 1 {
			next = r[1].Tap - r[0].Tap
		}
		for i, p := range r {
			if p.Source != r[0].Source+i*step || p.Tap != r[0].Tap+i*next {
				return nil
			}
		}
		runs = append(runs, tapRun{At: int32(r[0].Source), Weight: int32(r[0].Tap), Next: int32(next)})
	}
	return runs
}
