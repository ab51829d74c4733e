package flows

import (
	"errors"
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

// trial is a convolution that suits an engine and, beside it, the tensors of a sum that no cache holds.
type trial struct {
	conv                     gpu.Conv
	sum                      gpu.Dims
	x, y, z, w, bias, packed gpu.Ptr
	bytes                    int64 // of a tensor of the sum
	arena                    gpu.Ptr
}

// newTrial lays the operands out from the arena's start.
func newTrial(e gpu.Engine, d gpu.Dims, samples int) trial {
	t := trial{conv: gpu.Conv{In: d, Out: d, K: [3]int{3, 3, 3}, S: [3]int{1, 1, 1}, Lo: [3]int{1, 1, 1}, Pad: gpu.Replicate, Type: e.Native()}, sum: d}
	t.sum.N = samples
	t.bytes = e.Bytes(t.sum, t.conv.Halo(), t.conv.Type)
	for _, p := range []struct {
		to    *gpu.Ptr
		bytes int64
	}{{&t.x, t.bytes}, {&t.y, t.bytes}, {&t.z, t.bytes}, {&t.w, 4 * int64(t.conv.Taps()*d.C*d.C)}, {&t.bias, 4 * int64(d.C)}, {&t.packed, e.ConvSizes(t.conv).Packed}} {
		*p.to = t.arena
		t.arena += gpu.Ptr((p.bytes + 255) &^ 255)
	}
	return t
}

// ceiling measures an engine that has no arena, each half for about so many seconds, and leaves it without. A card that has so many bytes free is tried with
// larger and larger convolutions, until one keeps it busy for long enough.
func ceiling(e gpu.Engine, card bool, free int64, seconds float64) (best Ceiling, err error) {
	trials := []trial{newTrial(e, gpu.Dims{N: 1, D: 16, H: 32, W: 32, C: 64}, 8)} // 3.6 GFLOP
	if card {
		trials = []trial{newTrial(e, gpu.Dims{N: 1, D: 16, H: 16, W: 16, C: 64}, 8)}                             // 0.9
		for _, d := range []gpu.Dims{{N: 1, D: 32, H: 64, W: 64, C: 128}, {N: 1, D: 64, H: 64, W: 64, C: 256}} { // 116, 930
			if t := newTrial(e, d, 2); free == 0 || int64(t.arena) <= free {
				trials = append(trials, t)
			}
		}
	}
	if err := e.Reserve(int64(trials[len(trials)-1].arena)); err != nil {
		return best, err
	}
	defer func() { err = errors.Join(err, e.Reserve(0)) }()
	for _, t := range trials {
		took, err := t.measure(e, seconds, &best)
		if err != nil || took > 1e-3 {
			return best, err
		}
	}
	return best, nil
}

// measure raises best to what a trial does. It returns the seconds of its convolution.
func (t *trial) measure(e gpu.Engine, seconds float64, best *Ceiling) (float64, error) {
	d := t.conv.In
	tensor := func(at gpu.Ptr, d gpu.Dims) gpu.Tensor {
		return gpu.Tensor{Dims: d, Halo: t.conv.Halo(), Pad: gpu.Replicate, Type: t.conv.Type, At: at}
	}
	r := rand.New(rand.NewPCG(1, 2))
	noise := func(x []float32) []float32 {
		for i := range x {
			x[i] = r.Float32() - 0.5
		}
		return x
	}
	weights := noise(make([]float32, t.conv.Taps()*d.C*d.C))
	values := make([]float32, t.sum.Len())
	e.WriteTensor(tensor(t.y, t.sum), values)
	noise(values[:d.Len()])
	e.WriteTensor(tensor(t.x, t.sum), values)
	e.Write(t.w, weights)
	e.Write(t.bias, weights[:d.C])
	e.PackConv(t.conv, t.w, t.packed, -1)
	conv, err := fastest(e, seconds, func() { e.Conv(t.conv, tensor(t.x, d), t.packed, t.bias, nil, tensor(t.y, d)) })
	if err != nil {
		return 0, err
	}
	add, err := fastest(e, seconds, func() { e.Add(tensor(t.x, t.sum), tensor(t.y, t.sum), tensor(t.z, t.sum)) })
	best.FLOPS = max(best.FLOPS, float64(t.conv.FLOPs())/conv)
	best.Bytes = max(best.Bytes, float64(3*t.bytes)/add)
	return conv, err
}

// fastest is the seconds of a call, the least of rounds of calls that each take long enough to be timed. They take so many seconds.
func fastest(e gpu.Engine, budget float64, f func()) (seconds float64, err error) {
	const enough = 10 * time.Millisecond
	begun := time.Now()
	for calls := 1; seconds == 0 || time.Since(begun).Seconds() < budget; {
		took, err := timed(e, func() {
			for range calls {
				f()
			}
		})
		if err != nil {
			return 0, err
		}
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

// timed is what f's ops take: by the device's clock where it has one, else by the host's, with a wait behind them.
func timed(e gpu.Engine, f func()) (time.Duration, error) {
	if clock, ok := e.(gpu.Clock); ok {
		clock.Mark(0)
		f()
		clock.Mark(1)
		return clock.Elapsed(0, 1)
	}
	start := time.Now()
	f()
	err := e.Sync()
	return time.Since(start), err
}
