package volume

// Codes is a scan after the encoder: a code for each cell of the latent grid, or several (Depth), and the latents where they were asked
// for. Arrays are [z, y, x] (and depth, or channel), the last fastest.
//
// A model whose norm doesn't look beyond its receptive field gives one grid for the whole scan: Tiles is then one tile at the
// origin, of the size of Padded. Other models are encoded tile by tile, and the grids lie one after the other in the order of
// Tiles.
type Codes struct {
	Scan     *Scan
	Geometry Geometry
	Window   [2]float64 // HU of -1 and 1
	Dims     [3]int     // voxels of the canonical volume
	Padded   [3]int     // the same, edge-padded at the high ends to what the model takes
	Factor   [3]int     // voxels a cell along each axis
	Tiles    [][3]int   // origins, voxels
	Tile     [3]int     // size of a tile, voxels
	Model    string     // hex SHA-256 of the weights and the codebook
	Count    int        // codes in the codebook
	Depth    int        // codes of a cell: 2 of a residual quantiser

	Index     []int32   // the codes
	Channels  int       // of a latent
	Latents   []float32 // before quantisation; nil if not asked for
	Quantised []float32 // after it; nil if not asked for
}

// Cells is the size of a tile's code grid.
func (c *Codes) Cells() [3]int {
	var n [3]int
	for a := range n {
		n[a] = c.Tile[a] / c.Factor[a]
	}
	return n
}

// Release does nothing: codes are small and the garbage collector's.
func (c *Codes) Release() {}
