package merge

import (
	"fmt"

	"github.com/flowrun/flowrun/stages/volume"
)

// check says whether every voxel of a volume of dims is covered, so that the weights sum to one.
func check(g *volume.Grid, dims [3]int) error {
	if g.Dims != dims {
		return fmt.Errorf("grid of %v voxels for a volume of %v", g.Dims, dims)
	}
	for a := range 3 {
		at, p, axis := g.Origins[a], g.Patch[a], "xyz"[a:a+1]
		switch {
		case p < 1 || g.Dims[a] < 1:
			return fmt.Errorf("grid: patch %d of %d voxels along %s", p, g.Dims[a], axis)
		case len(at) != g.N[a] || len(at) == 0:
			return fmt.Errorf("grid: %d offsets for %d tiles along %s", len(at), g.N[a], axis)
		case at[0] != 0 || at[len(at)-1]+p != g.Padded[a] || g.Padded[a] < g.Dims[a]:
			return fmt.Errorf("grid: tiles of %d at %v along %s don't cover %d voxels padded to %d", p, at, axis, g.Dims[a], g.Padded[a])
		}
		for i := range at[1:] {
			if at[i+1] <= at[i] || at[i+1] > at[i]+p {
				return fmt.Errorf("grid: tiles of %d at %d and %d along %s are one, or leave a gap", p, at[i], at[i+1], axis)
			}
		}
	}
	return nil
}

// checkTag says whether a tag is one of the tiles.
func checkTag(g *volume.Grid, t *volume.Tag) error {
	switch n := g.Len(); {
	case t.Size != g.Patch:
		return fmt.Errorf("%s: wrong size: the grid's tiles have %v voxels", t, g.Patch)
	case t.Tiles != n || t.Tile < 0 || t.Tile >= n:
		return fmt.Errorf("%s: foreign: the grid has tiles 0 to %d", t, n-1)
	case t.Origin != g.Tile(t.Tile):
		return fmt.Errorf("%s: foreign: the grid has this tile at %v", t, g.Tile(t.Tile))
	}
	return nil
}

// Bytes is the most memory that Merge holds for a scan whose tiles arrive at most reorder places from their order in
// the grid: int32 for each voxel of the slices from the first that may still be touched to the last that was. reorder
// 0 is one tile's depth; with any order it is the whole volume, and never more.
func Bytes(g volume.Grid, o Options, reorder int) int64 {
	if check(&g, g.Dims) != nil {
		return 0
	}
	z, err := newAxis(o.Window, g.Patch[2], g.Origins[2])
	if err != nil {
		return 0
	}
	layer := g.N[0] * g.N[1]
	most := 0
	for k := range g.N[2] { // the first tile of layer k has arrived, but not the one reorder places before it
		first := max(k*layer-max(reorder, 0), 0) / layer
		top := min(g.Origins[2][k]+z[k].hi, g.Dims[2])
		most = max(most, top-(g.Origins[2][first]+z[first].lo))
	}
	return 4 * int64(most) * int64(g.Dims[0]) * int64(g.Dims[1])
}
