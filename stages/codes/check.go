package codes

import (
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"github.com/flowrun/flowrun/stages/volume"
)

// Bounds on what a file may say, so that no sum or product of them overflows.
const (
	maxSize     = 1 << 20 // voxels along an axis
	maxFactor   = 1 << 8
	maxChannels = 1 << 16
	maxDepth    = 1 << 4
	maxTiles    = 1 << 20
	maxText     = 1 << 12
	maxHeader   = 1 << 20 // bytes of a scan's header
)

// check says what is wrong with codes, but for their arrays.
func check(c *volume.Codes) error {
	switch {
	case c.Scan.ID == "" || len(c.Scan.ID) > maxText || !utf8.ValidString(c.Scan.ID):
		return fmt.Errorf("scan.id: %.100q is no name", c.Scan.ID)
	case c.Scan.Dims != c.Dims:
		return fmt.Errorf("dims: %v, but the scan has %v", c.Dims, c.Scan.Dims)
	case len(c.Scan.Digest) > maxText || !utf8.ValidString(c.Scan.Digest):
		return fmt.Errorf("scan.digest: %.100q is no digest", c.Scan.Digest)
	case len(c.Model) > maxText || !utf8.ValidString(c.Model):
		return fmt.Errorf("model: %.100q is no fingerprint", c.Model)
	case c.Count < 1 || c.Count > math.MaxInt32:
		return fmt.Errorf("codebook: %d codes (want 1 to %d)", c.Count, math.MaxInt32)
	case c.Depth < 1 || c.Depth > maxDepth:
		return fmt.Errorf("depth: %d codes of a cell (want 1 to %d)", c.Depth, maxDepth)
	case c.Channels < 0 || c.Channels > maxChannels:
		return fmt.Errorf("channels: %d (want 0 to %d)", c.Channels, maxChannels)
	case len(c.Tiles) < 1 || len(c.Tiles) > maxTiles:
		return fmt.Errorf("tiles: %d (want 1 to %d)", len(c.Tiles), maxTiles)
	}
	for a := range 3 {
		switch axis, f := "xyz"[a:a+1], c.Factor[a]; {
		case f < 1 || f > maxFactor:
			return fmt.Errorf("factor: %d along %s (want 1 to %d)", f, axis, maxFactor)
		case c.Padded[a] < 1 || c.Padded[a] > maxSize || c.Padded[a]%f != 0:
			return fmt.Errorf("padded: %d along %s (want 1 to %d, a multiple of the factor %d)", c.Padded[a], axis, maxSize, f)
		case c.Dims[a] < 1 || c.Dims[a] > c.Padded[a]:
			return fmt.Errorf("dims: %d along %s (want 1 to %d, which it was padded to)", c.Dims[a], axis, c.Padded[a])
		case c.Tile[a] < 1 || c.Tile[a] > c.Padded[a] || c.Tile[a]%f != 0:
			return fmt.Errorf("tile: %d along %s (want 1 to %d, a multiple of the factor %d)", c.Tile[a], axis, c.Padded[a], f)
		}
	}
	if err := volume.CheckWindow(c.Window); err != nil {
		return fmt.Errorf("window_hu: %w", err)
	}
	if err := checkGeometry(c); err != nil {
		return fmt.Errorf("geometry.%w", err)
	}
	return checkTiles(c)
}

func checkGeometry(c *volume.Codes) error {
	g := &c.Geometry
	axes := [3]bool{}
	for a := range 3 {
		switch axis := "xyz"[a : a+1]; {
		case g.Dims[a] < 1 || g.Dims[a] > maxSize:
			return fmt.Errorf("source_dims: %v (want 1 to %d)", g.Dims, maxSize)
		case g.Axes[a] < 0 || g.Axes[a] > 2 || axes[g.Axes[a]]:
			return fmt.Errorf("axes: %v isn't an order of 0, 1, 2", g.Axes)
		case !finite(g.Spacing[a]) || g.Spacing[a] <= 0:
			return fmt.Errorf("spacing: %v along %s isn't a voxel size", g.Spacing[a], axis)
		case !finite(c.Scan.Spacing[a]) || c.Scan.Spacing[a] <= 0:
			return fmt.Errorf("spacing: the scan's %v along %s isn't a voxel size", c.Scan.Spacing[a], axis)
		case !finite(g.Affine[a][:]...) || !finite(g.Source[a][:]...):
			return errors.New("affine: not finite")
		}
		axes[g.Axes[a]] = true
	}
	for a := range 3 {
		if !g.Resample && g.Dims[g.Axes[a]] != c.Dims[a] {
			return fmt.Errorf("source_dims: %v in the order %v aren't the volume's %v", g.Dims, g.Axes, c.Dims)
		}
	}
	if len(g.Header) > maxHeader {
		return fmt.Errorf("source_header: %d bytes (at most %d)", len(g.Header), maxHeader)
	}
	return nil
}

// checkTiles says which tile doesn't lie on the grid, or which cell of the volume is in none.
func checkTiles(c *volume.Codes) error {
	cells := c.Cells()
	var size [3]int
	for a := range 3 {
		size[a] = c.Padded[a] / c.Factor[a]
	}
	// No more cells than codes: what follows takes time and memory in proportion to the arrays.
	if (volumeOf(size)-1)/volumeOf(cells) >= int64(len(c.Tiles)) {
		return fmt.Errorf("tiles: %d of %v voxels don't cover %v", len(c.Tiles), c.Tile, c.Padded)
	}
	seen := make(map[[3]int]bool, len(c.Tiles))
	for _, origin := range c.Tiles {
		for a := range 3 {
			if o := origin[a]; o < 0 || o > c.Padded[a]-c.Tile[a] || o%c.Factor[a] != 0 {
				return fmt.Errorf("tiles: origin %v (want 0 to %d along %s, a multiple of the factor %d)", origin, c.Padded[a]-c.Tile[a], "xyz"[a:a+1], c.Factor[a])
			}
		}
		if seen[origin] {
			return fmt.Errorf("tiles: origin %v twice", origin)
		}
		seen[origin] = true
	}
	return nil
}

// checkCover says which part of the padded volume is in no tile. c passed check, and has its codes.
func checkCover(c *volume.Codes) error {
	if len(c.Tiles) == 1 { // which is as large as the volume
		return nil
	}
	cells := c.Cells()
	var size [3]int
	for a := range 3 {
		size[a] = c.Padded[a] / c.Factor[a]
	}
	covered := make([]bool, volumeOf(size))
	for _, origin := range c.Tiles {
		for z := range cells[2] {
			for y := range cells[1] {
				at := ((origin[2]/c.Factor[2]+z)*size[1]+origin[1]/c.Factor[1]+y)*size[0] + origin[0]/c.Factor[0]
				row := covered[at : at+cells[0]]
				for x := range row {
					row[x] = true
				}
			}
		}
	}
	for at, ok := range covered {
		if !ok {
			x, y, z := at%size[0]*c.Factor[0], at/size[0]%size[1]*c.Factor[1], at/size[0]/size[1]*c.Factor[2]
			return fmt.Errorf("tiles: the voxels from [%d %d %d] on are in none", x, y, z)
		}
	}
	return nil
}

// volumeOf is a product that can't overflow: sizes are at most maxSize.
func volumeOf(n [3]int) int64 { return int64(n[0]) * int64(n[1]) * int64(n[2]) }

func finite(list ...float64) bool {
	for _, x := range list {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return false
		}
	}
	return true
}
