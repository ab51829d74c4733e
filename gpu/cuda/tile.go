package cuda

import (
	"slices"

	"github.com/flowrun/flowrun/gpu"
)

// tile is what a block of threads computes: m targets × n channels.
type tile struct{ m, n int }

// depth is the channels that one stage of the kernels' pipeline holds.
const depth = 32

// tileOf is the tile of a convolution to n channels: of eight warps, that compute 64 × 64 each (64 × 32 in the narrowest).
func tileOf(n int) tile {
	switch {
	case n > 64:
		return tile{256, 128}
	case n > 32:
		return tile{512, 64}
	}
	return tile{512, 32}
}

// strip is the points that one stage of a weight gradient holds.
const strip = 32

// weightTile is what a block of eight warps computes of a weight gradient: m rows × n columns, each row for all taps of a group.
// Taps along y and x that lie one step of the grid apart are a group: they meet the same points, which are loaded once.
type weightTile struct {
	group [2]int // taps along y and x
	m, n  int
}

func (t weightTile) taps() int { return t.group[0] * t.group[1] }

// The tiles: k3; k4, whose taps are groups of two along an axis with any step; and what else there is, tap by tap.
var (
	weight9x64  = weightTile{[2]int{3, 3}, 64, 64}
	weight9x32  = weightTile{[2]int{3, 3}, 128, 32}
	weight4x128 = weightTile{[2]int{2, 2}, 64, 128}
	weight4x64  = weightTile{[2]int{2, 2}, 128, 64}
	weight4x32  = weightTile{[2]int{2, 2}, 256, 32}
	weight1x128 = weightTile{[2]int{1, 1}, 256, 128}
	weight1x32  = weightTile{[2]int{1, 1}, 256, 32}
)

// weightTileOf is the tile of a weight gradient of n columns.
func weightTileOf(c gpu.Conv, n int) weightTile {
	tiles := []weightTile{weight1x32, weight1x128}
	switch groupOf(c, 1) * groupOf(c, 2) {
	case 9:
		tiles = []weightTile{weight9x32, weight9x64}
	case 4:
		tiles = []weightTile{weight4x32, weight4x64, weight4x128}
	}
	i := slices.IndexFunc(tiles, func(t weightTile) bool { return n <= t.n })
	if i < 0 {
		return tiles[len(tiles)-1]
	}
	return tiles[i]
}

// groupOf is how many taps along an axis can be a group: three of a k3, two of a k4.
func groupOf(c gpu.Conv, axis int) int {
	switch k, s := c.K[axis], c.S[axis]; {
	case k == 3 && s == 1:
		return 3
	case k == 4 && (s == 1 || s == 2):
		return 2
	}
	return 1
}

// weights is how a weight gradient is computed. One operand lies on the coarse grid (the output's gradient; the input of a
// transposed convolution), the other is met at shifts of it, one for each tap. Rows of the product are groups of taps × channels of the
// shifted operand, each for the taps of a group, columns the channels of the other, and the sum is over grid points, in parts.
type weights struct {
	tile        weightTile
	tiles       [2]int // along rows and columns
	parts       int
	directParts int    // of the kernel for float32 operands
	from, count [3]int // grid points; along a border that replicates, the grid of a transposed convolution is larger than its input
}

// rows of one tap of each group
func (w *weights) rows() int    { return w.tiles[0] * w.tile.m }
func (w *weights) columns() int { return w.tiles[1] * w.tile.n }

// floats of a part
func (w *weights) floats() int { return w.tile.taps() * w.rows() * w.columns() }

// A part is a block for each tile. weightBlocks is how many blocks there are at most: four for each of an H100's 132 multiprocessors,
// nearly five for each of an A100's 108. leastShare is the steps below which a part doesn't pay.
const weightBlocks, leastShare = 528, 8

func weightGrid(c gpu.Conv) weights {
	grid, shifted, straight := c.Out, c.In.C, c.Out.C
	if c.Transposed {
		grid, shifted, straight = c.In, c.Out.C, c.In.C
	}
	w := weights{tile: weightTileOf(c, straight), count: [3]int{grid.D, grid.H, grid.W}}
	if c.Transposed && c.Pad == gpu.Replicate {
		for i := range 3 {
			beyond := 1
			if c.S[i] == 1 {
				beyond = 2
			}
			w.from[i] = -beyond
			w.count[i] += 2 * beyond
		}
	}
	w.tiles = [2]int{divUp(c.Taps()/w.tile.taps()*roundUp(shifted, 8), w.tile.m), divUp(straight, w.tile.n)}
	rows := grid.N * w.count[0] * w.count[1]
	steps := rows * divUp(w.count[2], strip)
	w.parts = min(max(weightBlocks/(w.tiles[0]*w.tiles[1]), 1), divUp(steps, leastShare))
	w.directParts = min(max((1<<18)/(c.Taps()*c.In.C*c.Out.C), 1), rows, 512)
	return w
}
