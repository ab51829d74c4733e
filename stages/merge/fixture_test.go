package merge

import (
	"iter"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/volume"
)

var windows = []string{Hann, Gaussian, Linear, Crop, Constant}

// scan is a volume without samples, and what says whether it was let go.
func scan(id string, dims [3]int) (*volume.Volume, *bool) {
	freed := new(bool)
	v := &volume.Volume{Scan: &volume.Scan{ID: id, Dims: dims}, Epoch: 2, Dims: dims, Window: [2]float64{-1000, 1000}}
	return v.Own(nil, func() { *freed = true }), freed
}

// draw is the grid of a volume of any size.
func draw(t *rapid.T, largest int) volume.Grid {
	var dims, patch, stride, multiple [3]int
	for a := range 3 {
		multiple[a] = rapid.IntRange(1, 4).Draw(t, "multiple")
		patch[a] = multiple[a] * rapid.IntRange(1, 6).Draw(t, "patch")
		stride[a] = rapid.IntRange(max(multiple[a], patch[a]/4), patch[a]).Draw(t, "stride")
		dims[a] = rapid.IntRange(1, largest).Draw(t, "dims")
	}
	g, err := tile.NewGrid(dims, patch, stride, multiple)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// same gives every volume the grid g.
func same(g volume.Grid) func(*volume.Volume) (volume.Grid, error) {
	return func(*volume.Volume) (volume.Grid, error) { return g, nil }
}

// output is one tile of v. It holds a reference of its own.
func output(v *volume.Volume, g volume.Grid, i int, voxels []float32) *volume.Output {
	return &volume.Output{Volume: v.Retain(), Voxels: voxels, Tag: volume.Tag{
		Scan: v.Scan.ID, Epoch: v.Epoch, Tile: i, Tiles: g.Len(), Origin: g.Tile(i), Size: g.Patch,
	}}
}

// noise is the voxels of every tile, in [-1.2, 1.2].
func noise(g volume.Grid, seed uint64) [][]float32 {
	r := rand.New(rand.NewPCG(seed, 0))
	tiles := make([][]float32, g.Len())
	for i := range tiles {
		tiles[i] = make([]float32, g.Patch[0]*g.Patch[1]*g.Patch[2])
		for j := range tiles[i] {
			tiles[i][j] = float32(2.4*r.Float64() - 1.2)
		}
	}
	return tiles
}

// stream gives the tiles in an order, and lets the caller's reference to v go.
func stream(v *volume.Volume, g volume.Grid, tiles [][]float32, order []int) iter.Seq[*volume.Output] {
	return func(yield func(*volume.Output) bool) {
		defer v.Release()
		for _, i := range order {
			if !yield(output(v, g, i, tiles[i])) {
				return
			}
		}
	}
}

func upTo(n int) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	return order
}

type fataler interface{ Fatal(...any) }

// whole puts the slabs of each scan together and checks that they come in order.
func whole(t fataler, seq iter.Seq2[*volume.Slab, error]) map[string][]float32 {
	out := map[string][]float32{}
	next := map[string]int{}
	for s, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		id, d := s.Volume.Scan.ID, s.Volume.Dims
		if s.Z0 != next[id] || s.Z1 <= s.Z0 || len(s.Voxels) != (s.Z1-s.Z0)*d[0]*d[1] || s.Last() != (s.Z1 == d[2]) {
			t.Fatal("slab", s.Z0, s.Z1, "after", next[id])
		}
		next[id] = s.Z1
		out[id] = append(out[id], s.Voxels...)
		s.Release()
	}
	return out
}

// reference blends in float64, dividing by the sum of weights at each voxel.
func reference(g volume.Grid, window string, tiles [][]float32) []float64 {
	n := g.Dims[0] * g.Dims[1] * g.Dims[2]
	sum, weight := make([]float64, n), make([]float64, n)
	var shapes [3]func(i, p int) float64
	for a := range 3 {
		shapes[a], _ = shapeOf(window, g.Patch[a], g.Origins[a])
	}
	for i, voxels := range tiles {
		o := g.Tile(i)
		at := g.Place(i)
		for z := range min(g.Patch[2], g.Dims[2]-o[2]) {
			for y := range min(g.Patch[1], g.Dims[1]-o[1]) {
				for x := range min(g.Patch[0], g.Dims[0]-o[0]) {
					w := shapes[0](at[0], x) * shapes[1](at[1], y) * shapes[2](at[2], z)
					to := ((o[2]+z)*g.Dims[1]+o[1]+y)*g.Dims[0] + o[0] + x
					sum[to] += w * min(max(float64(voxels[(z*g.Patch[1]+y)*g.Patch[0]+x]), -1), 1)
					weight[to] += w
				}
			}
		}
	}
	for i := range sum {
		sum[i] /= weight[i]
	}
	return sum
}

// cover is the most tiles that one voxel lies in.
func cover(g volume.Grid) int {
	n := 1
	for a := range 3 {
		most := 0
		for p := range g.Padded[a] {
			c := 0
			for _, o := range g.Origins[a] {
				if p >= o && p < o+g.Patch[a] {
					c++
				}
			}
			most = max(most, c)
		}
		n *= most
	}
	return n
}

func bits(x []float32) []uint32 {
	b := make([]uint32, len(x))
	for i := range x {
		b[i] = math.Float32bits(x[i])
	}
	return b
}

func equal(a, b []float32) bool { return slices.Equal(bits(a), bits(b)) }

func mustGrid(t testing.TB, dims, patch, stride [3]int) volume.Grid {
	t.Helper()
	g, err := tile.NewGrid(dims, patch, stride, [3]int{1, 1, 1})
	if err != nil {
		t.Fatal(err)
	}
	return g
}
