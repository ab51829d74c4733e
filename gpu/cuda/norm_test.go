//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/flowrun/flowrun/gpu"
)

// The kernels for wholes, which have several voxels on their way, say what those for any tensor say of the same numbers in float32.
func TestNormOfWholes(t *testing.T) {
	for _, c := range []struct {
		norm gpu.Norm
		d    gpu.Dims
	}{
		{gpu.Norm{Eps: 1e-3}, gpu.Dims{N: 2, D: 5, H: 31, W: 23, C: 200}},
		{gpu.Norm{Eps: 1e-3, Plain: true}, gpu.Dims{N: 1, D: 3, H: 2, W: 1, C: 24}},
		{gpu.Norm{Groups: 5, Eps: 1e-3}, gpu.Dims{N: 2, D: 7, H: 31, W: 41, C: 120}},
		{gpu.Norm{Groups: 8, Eps: 1e-3}, gpu.Dims{N: 1, D: 1, H: 3, W: 2, C: 264}},
		{gpu.Norm{Batch: true, Plain: true, Eps: 1e-3}, gpu.Dims{N: 3, D: 1, H: 60, W: 61, C: 64}},
	} {
		t.Run(fmt.Sprintf("%v of %v", c.norm, c.d), func(t *testing.T) {
			e := open(t)
			defer func() { _ = e.Close() }()
			if err := e.Reserve(128 << 20); err != nil {
				t.Fatal(err)
			}
			rng := rand.New(rand.NewPCG(1, 2))
			numbers := func(n int) []float32 {
				v := make([]float32, n)
				for i := range v {
					v[i] = math.Float32frombits(math.Float32bits(float32(rng.NormFloat64())) &^ 0xffff)
				}
				return v
			}
			x, dy, add := numbers(c.d.Len()), numbers(c.d.Len()), numbers(c.d.Len())
			gamma, beta := numbers(c.d.C), numbers(c.d.C)
			compute := func(kind gpu.Type) (y, dx, plain, sums []float32) {
				next := gpu.Ptr(0)
				alloc := func(bytes int64) gpu.Ptr {
					p := next
					next += gpu.Ptr(aligned(bytes))
					return p
				}
				tensor := func(halo int, v []float32) gpu.Tensor {
					p := gpu.Tensor{Dims: c.d, Halo: halo, Pad: gpu.Replicate, Type: kind, At: alloc(e.Bytes(c.d, halo, kind))}
					if v != nil {
						e.WriteTensor(p, v)
					}
					return p
				}
				read := func(p gpu.Tensor) []float32 {
					v := make([]float32, c.d.Len())
					e.ReadTensor(v, p)
					return v
				}
				tx, tdy, tadd, ty := tensor(0, x), tensor(1, dy), tensor(1, add), tensor(2, nil)
				pg, pb, stats, work := alloc(4*int64(c.d.C)), alloc(4*int64(c.d.C)), alloc(e.NormStats(c.norm, c.d)), alloc(e.NormWork(c.norm, c.d))
				grads := alloc(8 * int64(c.d.C))
				e.Write(pg, gamma)
				e.Write(pb, beta)
				e.NormAct(c.norm, tx, pg, pb, stats, ty)
				y = read(ty)
				grad := func(add *gpu.Tensor, dx gpu.Tensor) []float32 {
					e.Fill(grads, 2*c.d.C, 0)
					e.NormActGrad(c.norm, tx, pg, pb, stats, tdy, add, dx, grads, grads+gpu.Ptr(4*c.d.C), work)
					return read(dx)
				}
				dx, plain = grad(&tadd, ty), grad(nil, tdy)
				sums = make([]float32, 2*c.d.C)
				e.Read(sums, grads)
				return y, dx, plain, sums
			}
			y, dx, plain, sums := compute(gpu.BFloat16)
			y32, dx32, plain32, sums32 := compute(gpu.Float32)
			for _, p := range []struct {
				what      string
				got, want []float32
				off       float64
			}{{"y", y, y32, 1. / 250}, {"dx", dx, dx32, 1. / 250}, {"dx without add", plain, plain32, 1. / 250}, {"dgamma, dbeta", sums, sums32, 1e-4}} {
				for i, v := range p.got {
					if w := p.want[i]; !(math.Abs(float64(v-w)) <= p.off*(math.Abs(float64(w))+0.1)) {
						t.Fatalf("%s[%d] = %v, of float32 %v", p.what, i, v, w)
					}
				}
			}
			if err := e.Sync(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
