//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"

	"github.com/flowrun/flowrun/gpu"
	"gorgonia.org/cu"
)

// hopperDriver is the CUDA version of the drivers that know the PTX of Hopper's own kernels, 8.0.
const hopperDriver = 12

// own is the target of the kernels for cards of this kind alone, "" where there are none or the driver is too old for them.
func (d Device) own() string {
	if d.Major == 9 && d.Minor == 0 && d.Driver[0] >= hopperDriver {
		return "sm_90a"
	}
	return ""
}

// withOwn adds the kernels of the card's own kind to an engine, if there are some and they prove right there: they can't be tried on each
// card before it is met. Otherwise the engine, or another where it is lost, goes on without, and Less says why.
func withOwn(e *Engine, dev cu.Device) (Card, error) {
	if e.device.own() == "" {
		if d := e.device; d.Major == 9 && d.Minor == 0 {
			e.less = fmt.Sprintf("the NVIDIA driver is for CUDA %d.%d: with one for %d.0 or later %s computes faster (update it)", d.Driver[0], d.Driver[1], hopperDriver, d.Name)
		}
		return e, nil
	}
	if os.Getenv(OwnKernels) == "off" {
		e.less = fmt.Sprintf("%s is off: kernels for %s aren't used", OwnKernels, e.device.own())
		return e, nil
	}
	err := e.prove()
	if err == nil {
		return e, nil
	}
	less := fmt.Sprintf("the kernels for %s aren't used on %s (driver for CUDA %d.%d): %v", e.device.own(), e.device.Name, e.device.Driver[0], e.device.Driver[1], err)
	if e.o.failure() != nil {
		_ = e.Close() // it was said
		if e, err = openOn(dev, e.device); err != nil {
			return nil, fmt.Errorf("%w; before that %s; set %s=off", err, less, OwnKernels)
		}
	}
	e.own, e.less = false, less
	return e, nil
}

// prove compiles the kernels and holds each against the one that every card runs.
func (e *Engine) prove() error {
	all, err := modules()
	if err != nil {
		return err
	}
	for _, m := range all {
		var failed error
		if m.target != e.device.own() {
			continue
		}
		if err := e.o.wait(func() error { failed = e.compile(m); return nil }); err != nil || failed != nil {
			return errors.Join(err, failed)
		}
	}
	if err := e.Reserve(proofBytes); err != nil {
		return err
	}
	for _, c := range proofs {
		for pass := range passes {
			if err := e.compare(c, pass); err != nil {
				return err
			}
		}
	}
	return e.Reserve(0)
}

// compare computes a pass of a proof with each kernel that serves it.
func (e *Engine) compare(c gpu.Conv, pass int) error {
	e.own = false
	want, err := e.proof(c, pass)
	if err != nil {
		return err
	}
	tiles := []tile{{}} // a weight gradient has one
	switch pass {
	case output:
		tiles = ownTiles[tileOf(c.Out.C).n]
	case gradInput:
		tiles = ownTiles[tileOf(c.In.C).n]
	}
	e.own = true
	defer func() { e.only = tile{} }()
	for _, e.only = range tiles {
		got, err := e.proof(c, pass)
		if err != nil {
			return err
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("a convolution of %v to %v gives other results (%s, tiles of %d)", c.In, c.Out, passNames[pass], e.only.m)
		}
	}
	return nil
}

// proofs are convolutions that meet each kernel in one of their passes, with runs of one, two and three taps, more stages than its ring holds,
// several strips and parts, and channels that don't fill it.
var proofs = []gpu.Conv{
	{In: gpu.Dims{N: 1, D: 2, H: 5, W: 33, C: 40}, Out: gpu.Dims{N: 1, D: 2, H: 5, W: 33, C: 72},
		K: [3]int{1, 3, 3}, S: [3]int{1, 1, 1}, Lo: [3]int{0, 1, 1}, Pad: gpu.Replicate, Type: gpu.BFloat16},
	{In: gpu.Dims{N: 1, D: 2, H: 3, W: 9, C: 72}, Out: gpu.Dims{N: 1, D: 2, H: 6, W: 18, C: 40},
		K: [3]int{1, 4, 4}, S: [3]int{1, 2, 2}, Lo: [3]int{0, 1, 1}, Transposed: true, Pad: gpu.Replicate, Type: gpu.BFloat16},
}

const proofBytes = 8 << 20 // is enough for each of them

// What a convolution computes.
const (
	output = iota
	gradInput
	gradWeight
	passes
)

var passNames = [passes]string{"output", "gradient of the input", "gradient of the weights"}

// proof is what a pass of a convolution makes of whole numbers so small that no order of sums rounds.
func (e *Engine) proof(c gpu.Conv, pass int) ([]float32, error) {
	var bytes int64
	take := func(n int64) gpu.Ptr {
		bytes += aligned(n)
		return gpu.Ptr(bytes - aligned(n))
	}
	tensor := func(d gpu.Dims, t gpu.Type) gpu.Tensor {
		return gpu.Tensor{At: take(e.Bytes(d, c.Halo(), t)), Dims: d, Halo: c.Halo(), Type: t, Pad: c.Pad}
	}
	from, to := c.In, c.Out
	if pass == gradInput {
		from, to = to, from
	}
	sizes, weights := e.ConvSizes(c), numbers(c.Taps()*c.In.C*c.Out.C)
	x, y := tensor(from, gpu.BFloat16), tensor(to, gpu.Float32)
	w, bias, packed, packedGrad := take(int64(4*len(weights))), take(int64(4*to.C)), take(sizes.Packed), take(sizes.PackedGrad)
	dy, work := tensor(to, gpu.BFloat16), gpu.Ptr(0)
	if pass == gradWeight {
		work = take(sizes.Workspace)
	}
	if bytes > e.bytes {
		return nil, fmt.Errorf("proof of %d bytes", bytes)
	}
	e.Write(w, weights)
	e.Write(bias, numbers(to.C))
	e.PackConv(c, w, packed, packedGrad)
	e.WriteTensor(x, numbers(from.Len()))
	e.Fill(y.At, int(e.Bytes(to, y.Halo, y.Type)/4), float32(math.NaN())) // who writes nothing is found out
	switch pass {
	case output:
		e.Conv(c, x, packed, bias, nil, y)
	case gradInput:
		e.ConvGradInput(c, x, packedGrad, y)
	case gradWeight:
		e.WriteTensor(dy, numbers(to.Len()))
		e.Fill(work, int(sizes.Workspace/4), float32(math.NaN()))
		e.ConvGradWeight(c, x, dy, w, bias, work)
		e.Read(weights, w)
		return weights, e.Sync()
	}
	out := make([]float32, to.Len())
	e.ReadTensor(out, y)
	return out, e.Sync()
}

// numbers are n from -3 to 3.
func numbers(n int) []float32 {
	out, state := make([]float32, n), uint32(1)
	for i := range out {
		state = state*1664525 + 1013904223
		out[i] = float32(state>>16%7) - 3
	}
	return out
}

// ownTiles are the tiles of the card's own kernels, by target channels.
var ownTiles = map[int][]tile{128: {{256, 128}, {384, 128}}, 64: {{512, 64}, {768, 64}}}

// ownTile is the tile of n channels with which all blocks of a convolution should be done first. It doesn't change what is summed up, nor
// in which order.
func (e *Engine) ownTile(key planKey, n, columns, chunks int) tile {
	if e.only.n == n {
		return e.only
	}
	key.per = n
	if t, ok := e.tables.tiles[key]; ok {
		return t
	}
	bs, _, _ := boxes(key.c, key.forward, key.samples, key.halo, 1, key.inRuns)
	best, least := tile{}, 0
	for _, t := range ownTiles[n] {
		blocks := 0
		for i := range bs {
			blocks += bs[i].tiles(key.samples, t.m)
		}
		if clocks := divUp(blocks*columns, max(1, e.device.Processors)) * ownClocks(t, int(bs[0].Runs)*chunks, int(bs[0].Length)); best.n == 0 || clocks < least {
			best, least = t, clocks
		}
	}
	e.tables.tiles[key] = best
	return best
}

// ownClocks is how long a block takes for stages of length taps, as reckoned in docs/cuda.md: its products or the bytes that it asks of the L2
// cache, the first stage and the sums' way out.
func ownClocks(t tile, stages, length int) int {
	products, bytes := length*t.m*t.n/64, (t.m+8*(length-1)+length*t.n)*depth*2
	return stages*max(products, bytes/24) + 2500 + t.m*t.n/6
}
