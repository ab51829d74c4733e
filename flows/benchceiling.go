package flows

import (
	"math/rand/v2"
	"time"

	"github.com/flowrun/flowrun/gpu"
)

// Ceiling is what an engine does at best, measured: a single convolution of a shape that suits it, and a sum of two tensors that
// no cache holds.
type Ceiling struct {
	FLOPS float64 `json:"flops"`            // a second
	Bytes float64 `json:"bytes_per_second"` // read and written
}

// ceiling measures an engine that has no arena yet, each half for about so many seconds.
func ceiling(e gpu.Engine, card bool, seconds float64) (Ceiling, error) {
	d := gpu.Dims{N: 1, D: 16, H: 32, W: 32, C: 64} // 3.6 GFLOP
	if card {
		d = gpu.Dims{N: 1, D: 64, H: 64, W: 64, C: 256} // 930
	}
	large := d
	large.N = 8
	c := gpu.Conv{In: d, Out: d, K: [3]int{3, 3, 3}, S: [3]int{1, 1, 1}, Lo: [3]int{1, 1, 1}, Pad: gpu.Replicate, Type: e.Native()}
	var arena gpu.Ptr
	take := func(bytes int64) gpu.Ptr {
		at := arena
		arena += gpu.Ptr((bytes + 255) &^ 255)
		return at
	}
	bytes := e.Bytes(large, c.Halo(), c.Type)
	tensor := func(at gpu.Ptr, d gpu.Dims) gpu.Tensor {
		return gpu.Tensor{Dims: d, Halo: c.Halo(), Pad: gpu.Replicate, Type: c.Type, At: at}
	}
	x, y, sum := take(bytes), take(bytes), take(bytes)
	weights := make([]float32, c.Taps()*d.C*d.C)
	w, bias, packed := take(4*int64(len(weights))), take(4*int64(d.C)), take(e.ConvSizes(c).Packed)
	if err := e.Reserve(int64(arena)); err != nil {
		return Ceiling{}, err
	}
	r := rand.New(rand.NewPCG(1, 2))
	noise := func(x []float32) []float32 {
		for i := range x {
			x[i] = r.Float32() - 0.5
		}
		return x
	}
	values := make([]float32, large.Len())
	e.WriteTensor(tensor(y, large), values)
	noise(values[:d.Len()])
	e.WriteTensor(tensor(x, large), values)
	e.Write(w, noise(weights))
	e.Write(bias, weights[:d.C])
	e.PackConv(c, w, packed, -1)
	conv, err := fastest(e, seconds, func() { e.Conv(c, tensor(x, d), packed, bias, nil, tensor(y, d)) })
	if err != nil {
		return Ceiling{}, err
	}
	add, err := fastest(e, seconds, func() { e.Add(tensor(x, large), tensor(y, large), tensor(sum, large)) })
	return Ceiling{FLOPS: float64(c.FLOPs()) / conv, Bytes: float64(3*bytes) / add}, err
}

// fastest is the seconds of a call, the least of rounds of calls that each take long enough to be timed. They take so many seconds.
func fastest(e gpu.Engine, budget float64, f func()) (seconds float64, err error) {
	const enough = 10 * time.Millisecond
	begun := time.Now()
	for calls := 1; seconds == 0 || time.Since(begun).Seconds() < budget; {
		start := time.Now()
		for range calls {
			f()
		}
		if err := e.Sync(); err != nil {
			return 0, err
		}
		took := time.Since(start)
		if took < enough && calls < 1<<16 {
			calls *= 2
			continue
		}
		if each := took.Seconds() / float64(calls); seconds == 0 || each < seconds {
			seconds = each
		}
	}
	return seconds, nil
}
