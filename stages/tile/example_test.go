package tile_test

import (
	"fmt"

	"github.com/flowrun/flowrun/stages/tile"
)

// A chest CT, cut for a model that downsamples by 8.
func ExampleNewGrid() {
	g, err := tile.NewGrid([3]int{512, 512, 604}, [3]int{256, 256, 128}, [3]int{192, 192, 96}, [3]int{8, 8, 8})
	if err != nil {
		panic(err)
	}
	fmt.Println(g.Len(), "tiles,", g.N, "of a volume padded to", g.Padded)
	fmt.Println("x and y:", g.Origins[0], "z:", g.Origins[2])
	// Output:
	// 54 tiles, [3 3 6] of a volume padded to [512 512 608]
	// x and y: [0 128 256] z: [0 96 192 288 384 480]
}
