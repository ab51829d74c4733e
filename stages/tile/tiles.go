package tile

import (
	"fmt"
	"iter"
	"math/rand/v2"

	"github.com/flowrun/flowrun/stages/volume"
)

const (
	bodyHU    = -500 // above it is body
	bodyTries = 32   // places looked at before a patch is taken where it is
)

// Count is the number of patches that Tiles gives for a volume of these dims; 0 for options that CheckMultiple refuses.
func Count(dims [3]int, o Options, multiple [3]int) int {
	g, err := o.Grid(dims, multiple)
	if err != nil {
		return 0
	}
	return o.count(g)
}

func (o *Options) count(g volume.Grid) int {
	if o.Mode == ModeRandom && o.PerScan > 0 {
		return o.PerScan
	}
	return g.Len()
}

// Tiles gives the patches of v in v's epoch. Each holds a reference to v; the caller's own reference is released when the
// sequence ends or is broken off, so it is run exactly once.
//
// In mode random each origin is drawn from 0 to dims-patch by a generator of its own, keyed by seed, scan, epoch and
// tile. A dry volume gives as many patches with the same tags, apart from origins that depend on its samples.
func Tiles(v *volume.Volume, o Options, seed uint64, multiple [3]int) iter.Seq2[*volume.Patch, error] {
	return func(yield func(*volume.Patch, error) bool) {
		defer v.Release()
		g, err := o.Grid(v.Dims, multiple)
		if err != nil {
			yield(nil, fmt.Errorf("scan %s: %w", v.Scan.ID, err))
			return
		}
		var row []int16
		if o.Mode == ModeRandom && o.Body > 0 && !v.Dry() {
			row = make([]int16, v.Dims[0])
		}
		n := o.count(g)
		for i := range n {
			var origin [3]int
			if o.Mode == ModeRandom {
				r := volume.Rand(volume.Key(seed, "tile", v.Scan.ID, v.Epoch, i))
				if origin, err = place(r, v, o, row); err != nil {
					yield(nil, fmt.Errorf("scan %s: %w", v.Scan.ID, err))
					return
				}
			} else {
				origin = g.Tile(i)
			}
			p := &volume.Patch{Volume: v.Retain(), Tag: volume.Tag{
				Scan: v.Scan.ID, Index: v.Scan.Index, Epoch: v.Epoch, Tile: i, Tiles: n, Origin: origin, Size: o.Patch,
			}}
			if !yield(p, nil) {
				return
			}
		}
	}
}

// place draws the origin of one patch. For a share of them it draws again until the patch's centre is body; row is room
// for one row of v, or nil to draw once without looking.
func place(r *rand.Rand, v *volume.Volume, o Options, row []int16) ([3]int, error) {
	tries := 1
	if body := r.Float64() < o.Body; body && row != nil {
		tries = bodyTries
	}
	var origin, centre [3]int
	for try := range tries {
		for a := range origin {
			origin[a] = r.IntN(max(0, v.Dims[a]-o.Patch[a]) + 1)
			centre[a] = min(origin[a]+o.Patch[a]/2, v.Dims[a]-1)
		}
		if try == tries-1 {
			break
		}
		s, err := v.Rows(centre[2], centre[1], centre[1]+1, row)
		if err != nil {
			return origin, err
		}
		if v.Slope*float64(s[centre[0]])+v.Inter > bodyHU {
			break
		}
	}
	return origin, nil
}
