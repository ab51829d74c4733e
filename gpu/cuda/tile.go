package cuda

import "github.com/flowrun/flowrun/gpu"

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

// weightTileOf is the tile of a weight gradient of n columns, of eight or four such warps.
func weightTileOf(n int) tile {
	switch {
	case n > 64:
		return tile{256, 128}
	case n > 32:
		return tile{256, 64}
	}
	return tile{256, 32}
}

// weights is how a weight gradient is computed. One operand lies on the coarse grid (the output's gradient; the input of a
// transposed convolution), the other is met at shifts of it, one for each tap. Rows of the product are taps × channels of the
// shifted operand, columns the channels of the other, and the sum is over grid points, in parts.
type weights struct {
	tile        tile
	tiles       [2]int // along rows and columns
	parts       int
	directParts int    // of the kernel for float32 operands
	from, count [3]int // grid points; along a border that replicates, the grid of a transposed convolution is larger than its input
}

func (w *weights) rows() int    { return w.tiles[0] * w.tile.m }
func (w *weights) columns() int { return w.tiles[1] * w.tile.n }

func weightGrid(c gpu.Conv) weights {
	grid, shifted, straight := c.Out, c.In.C, c.Out.C
	if c.Transposed {
		grid, shifted, straight = c.In, c.Out.C, c.In.C
	}
	w := weights{tile: weightTileOf(straight), count: [3]int{grid.D, grid.H, grid.W}}
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
	w.tiles = [2]int{divUp(c.Taps()*roundUp(shifted, 8), w.tile.m), divUp(straight, w.tile.n)}
	rows := grid.N * w.count[0] * w.count[1]
	steps := rows * divUp(w.count[2], depth)
	w.parts = min(max(512/(w.tiles[0]*w.tiles[1]), 1), steps)
	w.directParts = min(max((1<<18)/(c.Taps()*c.In.C*c.Out.C), 1), rows, 512)
	return w
}
