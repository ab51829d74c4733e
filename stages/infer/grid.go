package infer

import (
	"errors"
	"fmt"

	"github.com/flowrun/flowrun/stages/volume"
)

func tag(g *volume.Grid, v *volume.Volume, i int) volume.Tag {
	return volume.Tag{Scan: v.Scan.ID, Index: v.Scan.Index, Epoch: v.Epoch, Tile: i, Tiles: g.Len(), Origin: g.Tile(i), Size: g.Patch}
}

// Tiling says how a volume is cut up for Encode and Decode. Tiles are the smaller of a patch and the padded volume along each axis, and
// neighbours overlap by at least twice what a code, or a voxel, sees to either side: cut in the middle of each overlap (merge's window
// crop), nothing has seen a border that isn't the volume's.
type Tiling struct {
	// Patch is the largest tile, voxels: a multiple of the downsampling and at most the model's patch, which zero stands for.
	Patch [3]int

	// Grid is the tiles for a model that isn't tileable; for others it may be nil.
	Grid func(dims [3]int) (volume.Grid, error)

	Latents   bool // Encode keeps latents before and after quantisation too
	Quantised bool // Decode goes from the codes' Quantised, not from their Index
}

func (o *Tiling) patch(m Model) [3]int {
	if o.Patch == ([3]int{}) {
		return m.Patch()
	}
	return o.Patch
}

// CheckPatch says what is wrong with o.Patch for the exact tiling of a volume of dims that is encoded, decoded, or both. It is nil
// for a model that isn't tileable: its tiles needn't overlap.
func CheckPatch(m Model, dims [3]int, o Tiling, encode, decode bool) error {
	if !m.Tileable() {
		return nil
	}
	var err error
	if encode {
		_, err = exactEncode(m, dims, o)
	}
	if err == nil && decode {
		_, err = exactDecode(m, dims, o)
	}
	return err
}

var errNotTileable = errors.New("the model can't be tiled exactly: with norm: group each voxel depends on its whole tile " +
	"(use merge mode blend, or a model with norm: channel)")

func exactEncode(m Model, dims [3]int, o Tiling) (volume.Grid, error) {
	if !m.Tileable() {
		return volume.Grid{}, errNotTileable
	}
	halo, _ := m.Fields()
	return overlapping(dims, o.patch(m), m.Downsample(), halo, "encoder")
}

func exactDecode(m Model, dims [3]int, o Tiling) (volume.Grid, error) {
	if !m.Tileable() {
		return volume.Grid{}, errNotTileable
	}
	_, halo := m.Fields()
	for a, f := range m.Downsample() {
		halo[a] *= f
	}
	return overlapping(dims, o.patch(m), m.Downsample(), halo, "decoder")
}

// overlapping lays the fewest tiles over a volume of which neighbours overlap by at least 2·halo, spread evenly and flush with
// both ends.
func overlapping(dims, patch, unit, halo [3]int, who string) (volume.Grid, error) {
	g := volume.Grid{Dims: dims}
	for a := range 3 {
		u, axis := unit[a], "xyz"[a]
		switch {
		case dims[a] < 1:
			return g, fmt.Errorf("volume has %d voxels along %c (want at least 1)", dims[a], axis)
		case patch[a] < 1 || patch[a]%u != 0:
			return g, fmt.Errorf("patch: %d along %c isn't a multiple of the downsampling %d", patch[a], axis, u)
		}
		padded := (dims[a] + u - 1) / u * u
		p := min(patch[a], padded)
		n, spare := 1, padded-p
		if spare > 0 {
			stride := p - 2*halo[a]
			if stride < u {
				return g, fmt.Errorf("patch: %d along %c is too small to tile %d voxels exactly: "+
					"the %s sees a halo of %d to either side (want a patch of at least %d)", p, axis, dims[a], who, halo[a], 2*halo[a]+u)
			}
			n += (spare + stride - 1) / stride
		}
		at := make([]int, n)
		for i := 1; i < n; i++ {
			at[i] = i * spare / (n - 1) / u * u // the stride is a multiple of u: no step is longer
		}
		g.Padded[a], g.Patch[a], g.N[a], g.Origins[a] = padded, p, n, at
	}
	return g, nil
}

// kept is what a tile's results are taken for, along one axis, in the tile's cells of unit voxels: from the middle of its
// overlap with the tile before it to the middle of that with the tile behind.
func kept(g *volume.Grid, axis, i, unit int) (from, to int) {
	at, p := g.Origins[axis], g.Patch[axis]
	to = p / unit
	middle := func(i int) int { return (at[i-1] + p + at[i]) / 2 / unit } // between i-1 and i, cells of the volume
	if i > 0 {
		from = middle(i) - at[i]/unit
	}
	if i < len(at)-1 {
		to = middle(i+1) - at[i]/unit
	}
	return from, to
}
