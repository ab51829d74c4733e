package batch_test

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/flowrun/flowrun/stages/augment"
	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/volume"
)

// The work of the peers' pipeline after loading: 54 patches of 256×256×128 of one 512×512×604 volume in memory, in
// batches of 2.
func BenchmarkBatches(b *testing.B) {
	dims := [3]int{512, 512, 604}
	data := make([]int16, dims[0]*dims[1]*dims[2])
	r := rand.New(rand.NewPCG(1, 2))
	for z := range dims[2] {
		for y := range dims[1] {
			for x := range dims[0] {
				hu := -1000 // air, and a body with lungs in it
				if dx, dy := x-256, y-256; dx*dx+dy*dy < 200*200 {
					hu = 40
					if dx*dx/2+dy*dy < 100*100 {
						hu = -850
					}
				}
				data[(z*dims[1]+y)*dims[0]+x] = int16(hu + int(r.Uint32()%64) + int(r.Uint32()%64) - 64)
			}
		}
	}
	for _, c := range []struct {
		name    string
		augment augment.Options
	}{
		{"plain", augment.Options{}},
		{"flips", augment.Options{Flip: []string{"x", "y", "z"}}},
		{"turns", augment.Options{Flip: []string{"x", "y"}, Rotate90: true}},
		{"intensity", augment.Options{Flip: []string{"x", "y"}, Scale: 0.1, ShiftHU: 20}},
		{"noise", augment.Options{NoiseHU: 30}},
	} {
		b.Run(c.name, func(b *testing.B) {
			o := tile.Options{Mode: tile.ModeGrid, Patch: [3]int{256, 256, 128}, Stride: [3]int{192, 192, 96}}
			m := batch.New(batch.Options{Size: 2}, o.Patch, 1)
			m.Noise = c.augment.NoiseHU > 0
			patches := 0
			pass := func() {
				v := &volume.Volume{Scan: &volume.Scan{ID: "a", Dims: dims}, Dims: dims, Window: [2]float64{-1000, 1000}, Slope: 1}
				v.Own(&volume.Memory{Data: data, Dims: dims}, nil)
				in := func(yield func(*volume.Patch) bool) {
					for p, err := range tile.Tiles(v, o, 1, [3]int{4, 4, 4}) {
						if err != nil {
							b.Fatal(err)
						}
						augment.Apply(p, c.augment, 1, 0)
						if !yield(p) {
							return
						}
					}
				}
				for x, err := range m.Batches(context.Background(), in) {
					if err != nil {
						b.Fatal(err)
					}
					patches += len(x.Tags)
					x.Release()
				}
			}
			pass()
			patches = 0
			b.ReportAllocs()
			for b.Loop() {
				pass()
			}
			b.ReportMetric(float64(patches)*256*256*128/b.Elapsed().Seconds()/1e6, "Mvoxels/s")
		})
	}
}
