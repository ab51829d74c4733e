package merge

import (
	"testing"

	"github.com/flowrun/flowrun/stages/volume"
)

// A chest CT of 512×512×604 from 54 patches of 256×256×128, in the grid's order.
func BenchmarkMerge(b *testing.B) {
	g := mustGrid(b, [3]int{512, 512, 604}, [3]int{256, 256, 128}, [3]int{192, 192, 96})
	// A few tiles' voxels for all of them: more than the caches hold.
	few := g
	few.N = [3]int{4, 1, 1}
	voxels := noise(few, 1)
	for _, tile := range voxels {
		for i := range tile {
			tile[i] /= 1.25 // a model's voxels are seldom clipped
		}
	}
	for _, window := range windows {
		b.Run(window, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(4 * int64(g.Len()) * int64(len(voxels[0])))
			for b.Loop() {
				v, _ := scan("a", g.Dims)
				in := func(yield func(*volume.Output) bool) {
					defer v.Release()
					for i := range g.Len() {
						if !yield(output(v, g, i, voxels[i%len(voxels)])) {
							return
						}
					}
				}
				for s, err := range Merge(in, Options{Window: window}, same(g), nil) {
					if err != nil {
						b.Fatal(err)
					}
					s.Release()
				}
			}
		})
	}
}
