package write

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/flowrun/flowrun/stages/volume"
)

// BenchmarkInt16s is the conversion alone, a row of a CT at a time.
func BenchmarkInt16s(b *testing.B) {
	src, dst := make([]float32, 512), make([]int16, 512)
	for i := range src {
		src[i] = float32(i)/256 - 1
	}
	b.SetBytes(4 * int64(len(src)))
	s := newScale([2]float64{-1000, 1000})
	for b.Loop() {
		s.int16s(dst, src)
	}
}

// BenchmarkWrite writes a volume of 512×512×151, a quarter of a chest CT, slice by slice, in several orientations.
func BenchmarkWrite(b *testing.B) {
	dims := [3]int{512, 512, 151}
	r := rand.New(rand.NewPCG(1, 2))
	slice := make([]float32, dims[0]*dims[1])
	for i := range slice { // a ramp with noise of 20 HU, which deflates to about half
		slice[i] = float32(i%512)/400 - 0.6 + 0.02*float32(r.NormFloat64())
	}
	for _, c := range []struct {
		name string
		axes [3]int
		flip [3]bool
		gz   bool
	}{
		{"axial", [3]int{0, 1, 2}, [3]bool{}, false},
		{"axial LPS", [3]int{0, 1, 2}, [3]bool{true, true, false}, false},
		{"upside down", [3]int{0, 1, 2}, [3]bool{false, false, true}, false},
		{"coronal", [3]int{0, 2, 1}, [3]bool{}, false},
		{"sagittal", [3]int{2, 0, 1}, [3]bool{}, false},
		{"z fastest", [3]int{2, 1, 0}, [3]bool{}, false},
		{"axial gz", [3]int{0, 1, 2}, [3]bool{}, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "a.nii")
			if c.gz {
				path += ".gz"
			}
			b.SetBytes(2 * int64(len(slice)) * int64(dims[2]))
			b.ReportAllocs()
			for b.Loop() {
				v := &volume.Volume{Scan: &volume.Scan{ID: "a"}, Dims: dims, Window: [2]float64{-1000, 1000}}
				v.Geometry.Axes, v.Geometry.Flip = c.axes, c.flip
				for i, f := range c.axes {
					v.Geometry.Dims[f] = dims[i]
					v.Geometry.Source[i][f] = 1
				}
				v.Own(nil, nil)
				in := func(yield func(*volume.Slab) bool) {
					for z := range dims[2] {
						if !yield(&volume.Slab{Volume: v.Retain(), Z0: z, Z1: z + 1, Voxels: slice}) {
							return
						}
					}
				}
				for _, err := range Write(in, Options{Gz: c.gz}, map[string]string{"a": path}, nil, nil) {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
