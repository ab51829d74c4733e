package volume

// Grid is the tiles of one volume, all of one size, along each axis from the low end to the high one without gaps.
type Grid struct {
	Dims    [3]int   // of the volume
	Padded  [3]int   // of what the tiles cover: beyond Dims its high edges are repeated
	Patch   [3]int   // of each tile
	N       [3]int   // tiles along each axis
	Origins [3][]int // offsets along each axis, rising
}

// Len is the number of tiles.
func (g Grid) Len() int { return g.N[0] * g.N[1] * g.N[2] }

// Place is tile i's place along each axis, 0 ≤ i < Len. x runs fastest and z slowest: tiles come slab by slab.
func (g Grid) Place(i int) [3]int {
	return [3]int{i % g.N[0], i / g.N[0] % g.N[1], i / g.N[0] / g.N[1]}
}

// Tile is the origin of tile i.
func (g Grid) Tile(i int) [3]int {
	p := g.Place(i)
	return [3]int{g.Origins[0][p[0]], g.Origins[1][p[1]], g.Origins[2][p[2]]}
}
