//go:build cuda

package cuda

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"pgregory.net/rapid"
)

// along is a kernel's size, step and first tap along an axis.
type along struct {
	k, s, lo   int
	transposed bool
}

var k1, k3, k4s2, k4, up, upk4 = along{1, 1, 0, false}, along{3, 1, 1, false}, along{4, 2, 1, false}, along{4, 1, 2, false}, along{4, 2, 1, true}, along{4, 1, 1, true}

// Tiles give what one thread a weight gives, to the bit where sums are exact: strips of points, parts and groups of taps meet each
// product once.
func TestWeightTiles(t *testing.T) { testWeightTiles(t) }

func TestOwnWeightTiles(t *testing.T) {
	asHopper(t)
	testWeightTiles(t)
}

func testWeightTiles(t *testing.T) {
	e := open(t)
	if err := e.Reserve(256 << 20); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		kernel      string
		axes        [3]along
		least, most int // channels of the straight operand
	}{
		{"weight9x64", [3]along{k3, k3, k3}, 33, 130},
		{"weight9x32", [3]along{k1, k3, k3}, 1, 32},
		{"weight4x128", [3]along{k4s2, k4s2, k4s2}, 65, 130},
		{"weight4x64", [3]along{k4, k4s2, k4}, 33, 64},
		{"weight4x32", [3]along{k4, k4, k4s2}, 1, 32},
		{"weight4x128", [3]along{up, up, up}, 65, 130},
		{"weight4x64", [3]along{up, up, up}, 33, 64},
		{"weight4x32", [3]along{up, upk4, up}, 1, 32},
		{"weight1x128", [3]along{k3, k1, k3}, 33, 130},
		{"weight1x32", [3]along{k1, k4s2, k3}, 1, 32},
	} {
		t.Run(fmt.Sprint(test.kernel, test.axes), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				c := drawLayer(t, test.axes, test.least, test.most)
				if w := weightGrid(c); w.tile.kernel() != test.kernel {
					t.Fatalf("%+v is computed by %s", c, w.tile.kernel())
				}
				rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
				x, dy, more := wholes(rng, c.In.Len()), wholes(rng, c.Out.Len()), rapid.IntRange(0, 1).Draw(t, "more halo")
				c.Type = gpu.Float32
				want := weightGradient(e, c, more, x, dy)
				c.Type = gpu.BFloat16
				for i, v := range weightGradient(e, c, more, x, dy) {
					if v != want[i] {
						t.Fatalf("%+v: weight %d of tap %d: %v, want %v", c, i%(c.In.C*c.Out.C), i/(c.In.C*c.Out.C), v, want[i])
					}
				}
			})
		})
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

// drawLayer gives a convolution with so many straight channels.
func drawLayer(t *rapid.T, axes [3]along, least, most int) gpu.Conv {
	c := gpu.Conv{Pad: rapid.SampledFrom([]gpu.Padding{gpu.Zero, gpu.Replicate}).Draw(t, "pad"), Transposed: axes[0].transposed}
	c.In = gpu.Dims{N: rapid.IntRange(1, 2).Draw(t, "n"), D: rapid.IntRange(1, 3).Draw(t, "d"), H: rapid.IntRange(1, 14).Draw(t, "h"), W: rapid.IntRange(1, 70).Draw(t, "w")}
	c.Out = c.In
	in, out := [3]*int{&c.In.D, &c.In.H, &c.In.W}, [3]*int{&c.Out.D, &c.Out.H, &c.Out.W}
	for i, a := range axes {
		c.K[i], c.S[i], c.Lo[i] = a.k, a.s, a.lo
		if a.transposed {
			*out[i] *= a.s
		} else {
			*in[i] *= a.s
		}
	}
	shifted, straight := &c.In.C, &c.Out.C
	if c.Transposed {
		shifted, straight = straight, shifted
	}
	*straight = rapid.IntRange(least, most).Draw(t, "straight")
	*shifted = rapid.SampledFrom([]int{1, 8, 20, 32, 65, 130}).Draw(t, "shifted")
	for c.FLOPs() > 20e6 && *shifted > 1 { // the stand-in is slow
		*shifted = divUp(*shifted, 2)
	}
	return c
}

// wholes are whole numbers so small that sums of products are exact in float32.
func wholes(rng *rand.Rand, n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(rng.IntN(9) - 4)
	}
	return v
}

// weightGradient gives the gradients of weights and bias.
func weightGradient(e Card, c gpu.Conv, more int, x, dy []float32) []float32 {
	next := gpu.Ptr(0)
	alloc := func(bytes int64) gpu.Ptr {
		p := next
		next += gpu.Ptr(aligned(bytes))
		return p
	}
	put := func(d gpu.Dims, pad gpu.Padding, v []float32) gpu.Tensor {
		halo := c.Halo() + more
		t := gpu.Tensor{Dims: d, Halo: halo, Pad: pad, Type: c.Type, At: alloc(e.Bytes(d, halo, c.Type))}
		e.WriteTensor(t, v)
		return t
	}
	tx, tdy := put(c.In, c.Pad, x), put(c.Out, gpu.Zero, dy)
	got := make([]float32, c.Taps()*c.In.C*c.Out.C+c.Out.C)
	dw := alloc(4 * int64(len(got)))
	e.Fill(dw, len(got), 1)
	e.ConvGradWeight(c, tx, tdy, dw, dw+gpu.Ptr(4*(len(got)-c.Out.C)), alloc(e.ConvSizes(c).Workspace))
	e.Read(got, dw)
	return got
}
