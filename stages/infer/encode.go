package infer

import (
	"context"
	"errors"
	"fmt"

	"github.com/flowrun/flowrun/stages/volume"
)

// Encode finds the codes of a volume: one grid for all of it where the model is tileable (Exact), else one for each tile of
// o.Grid. cut writes a patch's voxels [D, H, W], scaled to [-1, 1], those beyond the volume repeating its edge; it doesn't
// release the patch. Encode doesn't release v.
//
// It is an error if the tiles can't be (Exact says why), if a patch can't be cut, if the model fails, and when ctx ends.
func Encode(ctx context.Context, v *volume.Volume, m Model, o Tiling, cut func(dst []float32, p *volume.Patch) error) (*volume.Codes, error) {
	g, err := encodeGrid(m, v.Dims, o)
	if err != nil {
		return nil, fmt.Errorf("scan %s: %w", v.Scan.ID, err)
	}
	c := &volume.Codes{Scan: v.Scan, Geometry: v.Geometry, Window: v.Window, Dims: v.Dims, Padded: g.Padded, Factor: m.Downsample(),
		Model: m.Fingerprint(), Count: m.Codes(), Depth: m.Depth(), Channels: m.Channels()}
	if c.Tile = g.Patch; m.Tileable() {
		c.Tile = g.Padded
		c.Tiles = [][3]int{{}}
	} else {
		for i := range g.Len() {
			c.Tiles = append(c.Tiles, g.Tile(i))
		}
	}
	n := len(c.Tiles) * product(c.Cells())
	c.Index = make([]int32, n*c.Depth)
	if o.Latents {
		c.Latents, c.Quantised = make([]float32, n*c.Channels), make([]float32, n*c.Channels)
	}

	size := cells(g.Patch, c.Factor)
	each := product(size)
	voxels, idx := make([]float32, product(g.Patch)), make([]int32, each*c.Depth)
	var latents, quantised []float32
	if o.Latents {
		latents, quantised = make([]float32, each*c.Channels), make([]float32, each*c.Channels)
	}
	for i := range g.Len() {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		p := &volume.Patch{Tag: tag(&g, v, i), Volume: v}
		if err := cut(voxels, p); err != nil {
			return nil, err
		}
		if err := m.Encode(idx, latents, quantised, voxels, g.Patch); err != nil {
			return nil, fmt.Errorf("%s: %w", p.Tag, err)
		}
		// Where the block of this tile's cells that are taken lies, in the tile and in the codes.
		var from, to, n [3]int
		n = size
		whole := [3]int{size[0], size[1], size[2] * len(c.Tiles)}
		if to[2] = i * size[2]; m.Tileable() {
			whole = c.Cells()
			for a, k := range g.Place(i) {
				lo, hi := kept(&g, a, k, c.Factor[a])
				from[a], to[a], n[a] = lo, g.Origins[a][k]/c.Factor[a]+lo, hi-lo
			}
		}
		paste(c.Index, whole, to, idx, size, from, n, c.Depth)
		if o.Latents {
			paste(c.Latents, whole, to, latents, size, from, n, c.Channels)
			paste(c.Quantised, whole, to, quantised, size, from, n, c.Channels)
		}
	}
	return c, nil
}

func encodeGrid(m Model, dims [3]int, o Tiling) (volume.Grid, error) {
	if m.Tileable() {
		return exactEncode(m, dims, o)
	}
	if o.Grid == nil {
		return volume.Grid{}, errors.New("the model's codes depend on the tile, and there is no grid of tiles")
	}
	return o.Grid(dims)
}

// paste copies a block of n cells of per elements each between arrays [z, y, x].
func paste[T any](dst []T, dstSize, to [3]int, src []T, srcSize, from, n [3]int, per int) {
	for z := range n[2] {
		for y := range n[1] {
			i := ((to[2]+z)*dstSize[1]+to[1]+y)*dstSize[0] + to[0]
			j := ((from[2]+z)*srcSize[1]+from[1]+y)*srcSize[0] + from[0]
			copy(dst[i*per:(i+n[0])*per], src[j*per:])
		}
	}
}
