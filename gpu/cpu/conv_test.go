package cpu

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/flowrun/flowrun/gpu"
)

// TestBatchesAndBlocksKeepBits holds convolutions to the same bits however samples and blocks of output channels are grouped: a batch
// against its samples alone, each with 32 output channels at a time.
func TestBatchesAndBlocksKeepBits(t *testing.T) {
	for name, c := range map[string]gpu.Conv{
		"samples too large to share items": {
			In: gpu.Dims{N: 2, D: 1, H: 65, W: 65, C: 2}, Out: gpu.Dims{N: 2, D: 1, H: 65, W: 65, C: 3},
			K: [3]int{1, 3, 3}, S: [3]int{1, 1, 1}, Lo: [3]int{0, 1, 1},
		},
		"weights that stay while sources go by": {
			In: gpu.Dims{N: 3, D: 1, H: 15, W: 15, C: 128}, Out: gpu.Dims{N: 3, D: 1, H: 16, W: 16, C: 160},
			K: [3]int{1, 4, 4}, S: [3]int{1, 1, 1}, Lo: [3]int{0, 2, 2},
		},
	} {
		for _, l := range levels() {
			t.Run(name+"/"+l.name, func(t *testing.T) {
				if !l.ok {
					t.Skip("this processor can't run it")
				}
				rng := rand.New(rand.NewPCG(1, 2))
				x, w, bias := normal(rng, c.In.Len()), normal(rng, c.Taps()*c.In.C*c.Out.C), normal(rng, c.Out.C)
				want := convolve(t, l, c, x, w, bias)
				each := c.In.Len() / c.In.N
				for n := range c.In.N {
					for first := 0; first < c.Out.C; first += 32 {
						part := c
						part.In.N, part.Out.N, part.Out.C = 1, 1, min(32, c.Out.C-first)
						var some []float32
						for row := range slices.Chunk(w, c.Out.C) {
							some = append(some, row[first:first+part.Out.C]...)
						}
						got := convolve(t, l, part, x[n*each:(n+1)*each], some, bias[first:])
						for i, v := range got {
							voxel, channel := n*c.Out.Voxels()/c.Out.N+i/part.Out.C, first+i%part.Out.C
							if u := want[voxel*c.Out.C+channel]; u != v {
								t.Fatalf("voxel %d, channel %d: %v in the batch, %v alone", voxel, channel, u, v)
							}
						}
					}
				}
			})
		}
	}
}

func TestPlansAreBounded(t *testing.T) {
	e := New(1)
	defer func() { _ = e.Close() }()
	e.plans.limit = 50_000
	shape := func(w int) (gpu.Conv, grid) {
		d := gpu.Dims{N: 1, D: 9, H: 100, W: w, C: 16}
		return gpu.Conv{In: d, Out: d, K: [3]int{3, 3, 3}, S: [3]int{1, 1, 1}, Lo: [3]int{1, 1, 1}}, grid{Tensor: gpu.Tensor{Dims: d, Halo: 1}}
	}
	plan := func(w int) *plan {
		c, g := shape(w)
		return e.plan(c, g, g, true)
	}
	first, second := plan(300), plan(301)
	for w := 302; w < 400; w++ {
		plan(w)
		if plan(300) != first {
			t.Fatalf("after width %d the plan in use was made again", w)
		}
		size := 0
		for _, p := range e.plans.by {
			size += p.size()
		}
		if size != e.plans.size || size > e.plans.limit {
			t.Fatalf("after width %d: plans of %d, counted as %d, limit %d", w, size, e.plans.size, e.plans.limit)
		}
	}
	if plan(301) == second || len(e.plans.by) < 3 {
		t.Errorf("the oldest plan is among the %d kept", len(e.plans.by))
	}
	e.plans.limit = 1
	if p := plan(500); plan(500) != p || len(e.plans.by) != 1 {
		t.Errorf("%d plans beside one that is larger than the limit", len(e.plans.by)-1)
	}
}

func normal(rng *rand.Rand, n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(rng.NormFloat64())
	}
	return v
}

// convolve gives conv(x) + bias.
func convolve(t *testing.T, l *level, c gpu.Conv, x, w, bias []float32) []float32 {
	t.Helper()
	e := open(l, 2)
	defer func() { _ = e.Close() }()
	if err := e.Reserve(16 << 20); err != nil {
		t.Fatal(err)
	}
	var next gpu.Ptr
	alloc := func(bytes int64) gpu.Ptr {
		p := next
		next += gpu.Ptr(round(bytes, gpu.Align))
		return p
	}
	packed, at, bat := alloc(e.ConvSizes(c).Packed), alloc(bytesOf(len(w))), alloc(bytesOf(c.Out.C))
	e.Write(at, w)
	e.Write(bat, bias[:c.Out.C])
	e.PackConv(c, at, packed, -1)
	tx := gpu.Tensor{Dims: c.In, Halo: c.Halo(), Pad: c.Pad, At: alloc(e.Bytes(c.In, c.Halo(), gpu.Float32))}
	ty := gpu.Tensor{Dims: c.Out, At: alloc(e.Bytes(c.Out, 0, gpu.Float32))}
	e.WriteTensor(tx, x)
	e.Conv(c, tx, packed, bat, nil, ty)
	y := make([]float32, c.Out.Len())
	e.ReadTensor(y, ty)
	return y
}
