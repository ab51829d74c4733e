package merge_test

import (
	"fmt"

	"github.com/flowrun/flowrun/stages/merge"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/volume"
)

// Two tiles of a row of six voxels overlap by two. The second comes first.
func ExampleMerge() {
	v := &volume.Volume{Scan: &volume.Scan{ID: "a"}, Dims: [3]int{6, 1, 1}}
	v.Own(nil, nil)
	grid := func(v *volume.Volume) (volume.Grid, error) {
		g, err := tile.NewGrid(v.Dims, [3]int{4, 1, 1}, [3]int{2, 1, 1}, [3]int{1, 1, 1})
		return g, err
	}
	in := func(yield func(*volume.Output) bool) {
		defer v.Release()
		for _, i := range []int{1, 0} {
			x := float32(i)
			tag := volume.Tag{Scan: "a", Tile: i, Tiles: 2, Origin: [3]int{2 * i}, Size: [3]int{4, 1, 1}}
			if !yield(&volume.Output{Tag: tag, Volume: v.Retain(), Voxels: []float32{x, x, x, x}}) {
				return
			}
		}
	}
	for s, err := range merge.Merge(in, merge.Options{Window: merge.Linear}, grid, nil) {
		if err != nil {
			panic(err)
		}
		fmt.Println(s.Z0, s.Voxels)
		s.Release()
	}
	// Output: 0 [0 0 0.25 0.75 1 1]
}
