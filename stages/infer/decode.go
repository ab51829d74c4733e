package infer

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/flowrun/flowrun/stages/volume"
)

// DecodeGrid is the tiles that Decode gives for codes. Where the codes are one grid for the whole volume, and the model is tileable,
// they are Exact's, for merge's window crop; else the tiles that the codes were made of, for any window.
func DecodeGrid(c *volume.Codes, m Model, o Tiling) (volume.Grid, error) {
	if err := check(c, m, o); err != nil {
		return volume.Grid{}, err
	}
	if m.Tileable() && len(c.Tiles) == 1 {
		g, err := exactDecode(m, c.Dims, o)
		if err == nil && (g.Padded != c.Padded || c.Tile != c.Padded || c.Tiles[0] != [3]int{}) {
			err = fmt.Errorf("codes: one tile of %v at %v for %v voxels padded to %v (want all of %v)", c.Tile, c.Tiles[0], c.Dims, c.Padded, g.Padded)
		}
		return g, err
	}
	return tilesOf(c)
}

// tilesOf is the grid that the tiles of codes lie on.
func tilesOf(c *volume.Codes) (volume.Grid, error) {
	g := volume.Grid{Dims: c.Dims, Padded: c.Padded, Patch: c.Tile}
	n := len(c.Tiles)
	// x runs until it falls back to the first, then y does, then z.
	for a, every := 0, 1; a < 3; a++ {
		for i := 0; i < n && (i == 0 || c.Tiles[i][a] > c.Tiles[i-every][a]); i += every {
			g.Origins[a] = append(g.Origins[a], c.Tiles[i][a])
		}
		g.N[a] = len(g.Origins[a])
		every *= g.N[a]
	}
	odd := func() error {
		return fmt.Errorf("codes: %d tiles of %v don't make a grid over %v voxels", n, c.Tile, c.Padded)
	}
	if g.Len() != n {
		return g, odd()
	}
	for i, at := range c.Tiles {
		if at != g.Tile(i) {
			return g, odd()
		}
	}
	return g, nil
}

// check says whether codes fit themselves and the model.
func check(c *volume.Codes, m Model, o Tiling) error {
	switch {
	case c.Model != "" && c.Model != m.Fingerprint():
		return fmt.Errorf("codes: they are of model %.12s, not %.12s (want the checkpoint and weights that they were made with)", c.Model, m.Fingerprint())
	case c.Factor != m.Downsample():
		return fmt.Errorf("codes: %v voxels a code (the model has %v)", c.Factor, m.Downsample())
	case c.Count > m.Codes():
		return fmt.Errorf("codes: of a codebook of %d (the model's has %d)", c.Count, m.Codes())
	case c.Depth != m.Depth():
		return fmt.Errorf("codes: %d of each latent (the model's have %d)", c.Depth, m.Depth())
	case len(c.Tiles) == 0:
		return errors.New("codes: there are no tiles")
	}
	for a, f := range c.Factor {
		if c.Tile[a] < 1 || c.Tile[a]%f != 0 {
			return fmt.Errorf("codes: a tile of %d voxels along %c isn't a multiple of the downsampling %d", c.Tile[a], "xyz"[a], f)
		}
	}
	n := len(c.Tiles) * product(c.Cells())
	switch {
	case o.Quantised && c.Channels != m.Channels():
		return fmt.Errorf("codes: latents of %d channels (the model has %d)", c.Channels, m.Channels())
	case o.Quantised && len(c.Quantised) != n*c.Channels:
		return fmt.Errorf("codes: %d floats of quantised latents (want %d)", len(c.Quantised), n*c.Channels)
	case !o.Quantised && len(c.Index) != n*c.Depth:
		return fmt.Errorf("codes: there are %d (want %d for %d tiles of %v voxels)", len(c.Index), n*c.Depth, len(c.Tiles), c.Tile)
	}
	return nil
}

// outputs is how many outputs of Decode exist at a time: one is computed while another is merged.
const outputs = 2

// Decode gives back what codes stand for: an output for each tile of DecodeGrid, in order. v is the volume of the codes; it is for
// geometry and may be dry. Each output holds a reference to it; the caller's own stays the caller's.
//
// At most two outputs exist at a time: the next one waits until one is released, which any goroutine may do. The sequence ends
// with an error if the codes don't suit the model or the volume, if the model fails, and when ctx ends.
func Decode(ctx context.Context, c *volume.Codes, v *volume.Volume, m Model, o Tiling) iter.Seq2[*volume.Output, error] {
	return func(yield func(*volume.Output, error) bool) {
		g, err := DecodeGrid(c, m, o)
		if err == nil && v.Dims != c.Dims {
			err = fmt.Errorf("codes: of %v voxels, the volume has %v", c.Dims, v.Dims)
		}
		if err != nil {
			yield(nil, fmt.Errorf("scan %s: %w", v.Scan.ID, err))
			return
		}
		free := make(chan []float32, outputs)
		for range outputs {
			free <- nil
		}
		t := newTaker(c, &g, o.Quantised)
		for i := range g.Len() {
			var voxels []float32
			select {
			case voxels = <-free:
			case <-ctx.Done():
			}
			if ctx.Err() != nil {
				yield(nil, context.Cause(ctx))
				return
			}
			voxels = resize(voxels, product(g.Patch))
			tag := tag(&g, v, i)
			idx, quantised := t.take(i)
			if err := m.Decode(voxels, idx, quantised, g.Patch); err != nil {
				yield(nil, fmt.Errorf("%s: %w", tag, err))
				return
			}
			out := &volume.Output{Tag: tag, Volume: v.Retain(), Voxels: voxels, Free: func() { free <- voxels }}
			if !yield(out, nil) {
				return
			}
		}
	}
}

// taker takes the cells of a tile out of codes.
type taker struct {
	c         *volume.Codes
	g         *volume.Grid
	size      [3]int    // of a tile, cells
	apart     bool      // codes are kept tile by tile: tiles are views of them
	idx       []int32   // else room for a tile, of either
	quantised []float32 // where these are decoded
	latents   bool      // they are
}

func newTaker(c *volume.Codes, g *volume.Grid, latents bool) *taker {
	t := &taker{c: c, g: g, size: cells(g.Patch, c.Factor), apart: len(c.Tiles) == g.Len() && c.Tile == g.Patch, latents: latents}
	switch n := product(t.size); {
	case t.apart:
	case latents:
		t.quantised = make([]float32, n*c.Channels)
	default:
		t.idx = make([]int32, n*c.Depth)
	}
	return t
}

// take gives codes or quantised latents of tile i, until it is called again. They mustn't be written to.
func (t *taker) take(i int) (idx []int32, quantised []float32) {
	c, n := t.c, product(t.size)
	from := cells(t.g.Tile(i), c.Factor)
	switch {
	case t.apart && t.latents:
		return nil, c.Quantised[i*n*c.Channels : (i+1)*n*c.Channels]
	case t.apart:
		return c.Index[i*n*c.Depth : (i+1)*n*c.Depth], nil
	case t.latents:
		paste(t.quantised, t.size, [3]int{}, c.Quantised, c.Cells(), from, t.size, c.Channels)
	default:
		paste(t.idx, t.size, [3]int{}, c.Index, c.Cells(), from, t.size, c.Depth)
	}
	return t.idx, t.quantised
}
