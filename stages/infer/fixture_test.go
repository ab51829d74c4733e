package infer

import (
	"context"
	"iter"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/flowrun/flowrun/gpu/cpu"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/merge"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/volume"
)

var _ Model = (*vqgan.Coder)(nil)

// scan is a volume of waves and noise, and whether it was let go. The test's own reference goes when it ends.
func scan(t testing.TB, dims [3]int, seed uint64) (v *volume.Volume, freed *bool) {
	r := rand.New(rand.NewPCG(seed, 1))
	data := make([]int16, product(dims))
	for i := range data {
		x, y, z := i%dims[0], i/dims[0]%dims[1], i/dims[0]/dims[1]
		data[i] = int16(700*math.Sin(0.3*float64(x)+0.2*float64(y))*math.Cos(0.25*float64(z)) + 500*r.Float64() - 250)
	}
	freed = new(bool)
	v = &volume.Volume{Scan: &volume.Scan{ID: "a/b.nii", Index: 3, Dims: dims}, Epoch: 2, Dims: dims, Window: [2]float64{-1000, 1000}, Slope: 1,
		Geometry: volume.Geometry{Spacing: [3]float64{0.7, 0.7, 1.25}}}
	v.Own(&volume.Memory{Data: data, Dims: dims}, func() { *freed = true })
	t.Cleanup(func() {
		if v.Release(); !*freed {
			t.Error("somebody still holds the volume")
		}
	})
	return v, freed
}

// cutter cuts patches as flows do.
func cutter() func(dst []float32, p *volume.Patch) error {
	s := batch.NewScratch(1)
	return func(dst []float32, p *volume.Patch) error { return batch.Cut(dst, p, s) }
}

// padded is the whole volume, its high edges repeated to multiples of unit.
func padded(t testing.TB, v *volume.Volume, unit [3]int) ([]float32, [3]int) {
	t.Helper()
	var size [3]int
	for a, u := range unit {
		size[a] = (v.Dims[a] + u - 1) / u * u
	}
	out := make([]float32, product(size))
	if err := cutter()(out, &volume.Patch{Tag: volume.Tag{Size: size}, Volume: v}); err != nil {
		t.Fatal(err)
	}
	return out, size
}

// weights are those of a model that was never trained, but whose codes are latents of its own.
func weights(t testing.TB, c vqgan.Config, seed uint64) []vqgan.Array {
	t.Helper()
	e := cpu.New(1)
	defer func() { _ = e.Close() }()
	s, err := vqgan.Open(e, c, vqgan.Options{Patch: c.Downsample, Batch: 1, Loss: vqgan.Loss{L1: 1}, Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	arrays, err := s.State()
	if err != nil {
		t.Fatal(err)
	}
	size := [3]int{16, 16, 16}
	first := coder(t, c, arrays, size, 0)
	n := product(cells(size, c.Downsample))
	idx, src := make([]int32, n*c.Depth()), make([]float32, product(size))
	r := rand.New(rand.NewPCG(seed, 9))
	for i := range src {
		src[i] = float32(2*r.Float64() - 1)
	}
	latents := make([]float32, n*c.Embedding)
	if c.Quantizer == vqgan.FSQ {
		for _, a := range arrays {
			if a.Name == "pre_vq_conv.conv.weight" {
				for i := range a.Data {
					a.Data[i] *= 8 // so that all levels are used
				}
			}
		}
		return arrays
	}
	if err := first.Encode(idx, latents, nil, src, size); err != nil {
		t.Fatal(err)
	}
	for _, a := range arrays {
		if a.Name == "codebook.embeddings" {
			copy(a.Data, latents)
		}
		if a.Name == "codebook2.embeddings" {
			for i := range a.Data {
				a.Data[i] = float32(0.03 * r.NormFloat64())
			}
		}
	}
	return arrays
}

func coder(t testing.TB, c vqgan.Config, weights []vqgan.Array, patch [3]int, batch int) *vqgan.Coder {
	t.Helper()
	e := cpu.New(1)
	t.Cleanup(func() { _ = e.Close() })
	m, err := vqgan.OpenCoder(e, c, weights, false, vqgan.CoderOptions{Patch: patch, Batch: batch})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func tiny(norm string) vqgan.Config {
	return vqgan.Config{Hidden: 4, Downsample: [3]int{2, 2, 2}, Embedding: 3, Codes: 24, Norm: norm, Groups: 2, Padding: "replicate", Decoder: "lean"}
}

// regular is tile's grid, which doesn't look at fields.
func regular(patch, stride, unit [3]int) func([3]int) (volume.Grid, error) {
	return func(dims [3]int) (volume.Grid, error) {
		g, err := tile.NewGrid(dims, patch, stride, unit)
		return g, err
	}
}

func encode(t testing.TB, v *volume.Volume, m Model, o Tiling) *volume.Codes {
	t.Helper()
	c, err := Encode(context.Background(), v, m, o, cutter())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// merged is what merge makes of outputs.
func merged(t testing.TB, v *volume.Volume, g volume.Grid, window string, outs iter.Seq2[*volume.Output, error]) []float32 {
	t.Helper()
	in := func(yield func(*volume.Output) bool) {
		for out, err := range outs {
			if err != nil {
				t.Fatal(err)
			}
			if !yield(out) {
				return
			}
		}
	}
	var voxels []float32
	grid := func(*volume.Volume) (volume.Grid, error) { return g, nil }
	for s, err := range merge.Merge(in, merge.Options{Window: window}, grid, nil) {
		if err != nil {
			t.Fatal(err)
		}
		voxels = append(voxels, s.Voxels...)
		s.Release()
	}
	if len(voxels) != product(v.Dims) {
		t.Fatalf("%d voxels of %d", len(voxels), product(v.Dims))
	}
	return voxels
}

func decoded(t testing.TB, c *volume.Codes, v *volume.Volume, m Model, o Tiling) []float32 {
	t.Helper()
	g, err := DecodeGrid(c, m, o)
	if err != nil {
		t.Fatal(err)
	}
	return merged(t, v, g, merge.Crop, Decode(context.Background(), c, v, m, o))
}

func same(a, b []float32) bool {
	return slices.EqualFunc(a, b, func(x, y float32) bool { return math.Float32bits(x) == math.Float32bits(y) })
}

// block copies a block out of an array [z, y, x].
func block(src []float32, of, from, size [3]int) []float32 {
	out := make([]float32, product(size))
	paste(out, size, [3]int{}, src, of, from, size, 1)
	return out
}
