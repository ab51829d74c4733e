package cuda

import (
	"errors"
	"fmt"

	"github.com/flowrun/flowrun/gpu"
)

// Sizes is what tensors and ops take on the engine: it needs no device.
//
// A tensor is N*D*H rows of W + 2*halo voxels. A bfloat16 voxel takes a multiple of eight channels, so that each begins at 16
// bytes; what lies in the channels that fill it up counts for nothing.
type Sizes struct{}

// Native is gpu.BFloat16.
func (Sizes) Native() gpu.Type { return gpu.BFloat16 }

// Bytes is the storage of a tensor.
func (Sizes) Bytes(d gpu.Dims, halo int, t gpu.Type) int64 {
	return aligned(int64(d.N) * int64(d.D) * int64(d.H) * int64(d.W+2*halo) * int64(pitch(d.C, t)) * width(t))
}

// width is the bytes of an element.
func width(t gpu.Type) int64 {
	if t == gpu.BFloat16 {
		return 2
	}
	return 4
}

// pitch is the elements of a voxel.
func pitch(channels int, t gpu.Type) int {
	if t == gpu.BFloat16 {
		return roundUp(channels, 8)
	}
	return channels
}

// ConvSizes is the memory that a convolution wants. bfloat16 weights are packed into tiles, float32 ones copied.
func (Sizes) ConvSizes(c gpu.Conv) gpu.ConvSizes {
	taps, ci, co := c.Taps(), c.In.C, c.Out.C
	s := gpu.ConvSizes{Packed: packedBytes(c.Type, taps, ci, co), PackedGrad: packedBytes(c.Type, taps, co, ci)}
	w := weightGrid(c)
	floats := w.directParts * taps * ci * co
	if c.Type == gpu.BFloat16 {
		floats = max(floats, w.parts*w.floats())
	}
	if t := thinGradOf(c); t != nil {
		floats = max(floats, t.floats(taps))
	}
	s.Workspace = aligned(4*int64(floats)) + aligned(4*int64(max(sumParts(c.Out.Voxels())*co, w.parts*w.columns())))
	return s
}

// packedBytes is the size of weights from k to n channels.
func packedBytes(t gpu.Type, taps, k, n int) int64 {
	if t == gpu.Float32 {
		return aligned(4 * int64(taps) * int64(k) * int64(n))
	}
	return aligned(2 * int64(taps) * int64(roundUp(k, depth)) * int64(roundUp(n, tileOf(n).n)))
}

// NormStats is 1/√(mean x² + ε) of each voxel, or mean and 1/√(var + ε) of each sample and group and scratch behind them; of
// BatchNorm mean and variance of each channel before that.
func (Sizes) NormStats(n gpu.Norm, d gpu.Dims) int64 {
	if n.Groups == 0 && !n.Batch {
		return aligned(4 * int64(d.Voxels()))
	}
	n, d, front := grouped(n, d)
	return front + aligned(8*int64(d.N*n.Groups)) + aligned(8*int64(d.N*sumParts(d.Voxels()/d.N)*d.C))
}

// NormWork is the sums of parts of the voxels for γ and β and, with statistics of groups, those of samples and groups.
func (Sizes) NormWork(n gpu.Norm, d gpu.Dims) int64 {
	if n.Groups == 0 && !n.Batch {
		return aligned(8 * int64(sumParts(d.Voxels())*d.C))
	}
	n, d, _ = grouped(n, d)
	return aligned(8*int64(d.N*sumParts(d.Voxels()/d.N)*d.C)) + aligned(8*int64(d.N*d.C)) + aligned(8*int64(d.N*n.Groups))
}

// grouped turns BatchNorm into GroupNorm, of one sample and a group for each channel. front is what its statistics have before
// GroupNorm's.
func grouped(n gpu.Norm, d gpu.Dims) (gpu.Norm, gpu.Dims, int64) {
	if !n.Batch {
		return n, d, 0
	}
	n.Groups, d.D, d.N = d.C, d.D*d.N, 1
	return n, d, aligned(8 * int64(d.C))
}

// QuantizeWork is ½‖c‖² of each code, counts and sums of parts of the voxels, and the loss of blocks of them.
func (Sizes) QuantizeWork(k gpu.Quantizer, d gpu.Dims) int64 {
	return aligned(4*int64(k.Codes)) + aligned(4*codeParts*int64(k.Codes)*int64(k.Dim+1)) + aligned(8*int64(sumParts(d.Voxels())))
}

// LossWork is four sums of each part of the voxels.
func (Sizes) LossWork(d gpu.Dims) int64 { return aligned(32 * int64(sumParts(d.Voxels()))) }

// SumSquaresWork is one sum of each part.
func (Sizes) SumSquaresWork(n int) int64 { return aligned(8 * int64(sumParts(n))) }

// sumParts is into how many parts a sum over n voxels (or floats) falls.
func sumParts(n int) int { return min(1024, divUp(n, 256)) }

// codeParts is into how many parts the voxels fall that are counted and summed by code.
const codeParts = 16

func aligned(n int64) int64 { return (max(n, 1) + gpu.Align - 1) / gpu.Align * gpu.Align }

func divUp(n, by int) int { return (n + by - 1) / by }

func roundUp(n, to int) int { return divUp(n, to) * to }

// Overhead is device memory that an engine takes beside its arena and the driver's context: slots for copies, and the tables of
// convolutions.
const Overhead = stagingBytes*stagingSlots + smallBytes*smallSlots + tableBytes

// Spare is device memory that is left to the driver, for what it takes as it goes: graphs, events, pinned memory's tables.
const Spare = 128 << 20

const (
	stagingBytes = 8 << 20 // of a slot, here and in pinned host memory
	stagingSlots = 4
	smallBytes   = 64 << 10
	smallSlots   = 32
	tableBytes   = 8 << 20
)

// Card is an engine on a GPU, or the plan of one.
type Card interface {
	gpu.Engine
	// Free is the device memory that an arena may take, in bytes, with Overhead and Spare left; 0 where that isn't known.
	Free() int64
	// Used is the device memory in use, by this process and others, in bytes; 0 where that isn't known.
	Used() int64
	// Less says why the device computes more slowly than it could, if it does.
	Less() string
}

// plan is an engine that knows sizes only. Its ops panic.
type plan struct {
	Sizes
	none
	name string
}

type none struct{ gpu.Engine }

// Plan is an engine without a device, for planning: it answers sizes, and Reserve fails.
func Plan(ordinal int) Card { return &plan{name: fmt.Sprintf("cuda:%d (bfloat16)", ordinal)} }

func (p *plan) Name() string { return p.name }

func (p *plan) Reserve(int64) error { return errors.New("cuda: no device is open, only a plan") }

func (p *plan) Free() int64 { return 0 }

func (p *plan) Used() int64 { return 0 }

func (p *plan) Less() string { return "" }

func (p *plan) Sync() error { return nil }

func (p *plan) Close() error { return nil }

// SpectralWork is w·u, shares of wᵀ·v by part of the rows, and shares of a sum.
func (Sizes) SpectralWork(rows, columns int) int64 {
	return aligned(4*int64(rows)) + aligned(4*int64(spectralParts(rows))*int64(columns)) + aligned(8*int64(sumParts(rows*columns))) + gpu.Align
}

func spectralParts(rows int) int { return min(128, rows) }

// SimilarityWork is the scratch of SimilarityLoss, for one sample at a time.
func (Sizes) SimilarityWork(k gpu.Similarity, d gpu.Dims) int64 { return planSimilarity(k, d).bytes }

// scale is one scale of MS-SSIM: dense volumes z, y, x, and how many places the window has along each axis. What is at an offset
// of the workspace: sum and difference of the volumes, the gradient, and shares of the mean.
type scale struct {
	size, valid, taps [3]int
	s, d, grad, parts int64
}

// similarity is where the scales are, and eight maps as large as the first, that they share.
type similarity struct {
	scales         []scale
	maps           [8]int64
	factors, bytes int64 // slope of each scale, and the sum over samples
}

const (
	windowTaps = 11
	mostScales = 8
)

func planSimilarity(k gpu.Similarity, d gpu.Dims) similarity {
	if len(k.Weights) == 0 || len(k.Weights) > mostScales || d.C != 1 {
		panic(fmt.Sprintf("cuda: similarity of %v over %d scales (want 1 channel, 1 to %d scales)", d, len(k.Weights), mostScales))
	}
	var p similarity
	take := func(bytes int) int64 {
		at := p.bytes
		p.bytes += aligned(int64(bytes))
		return at
	}
	size := [3]int{d.D, d.H, d.W}
	p.scales = make([]scale, len(k.Weights))
	for i := range p.scales {
		c := &p.scales[i]
		c.size = size
		for a, n := range size {
			c.taps[a] = min(windowTaps, n)
			c.valid[a] = n - c.taps[a] + 1
			size[a] = max(1, n/2)
		}
		bytes := 4 * volume(c.size)
		c.s, c.d, c.grad, c.parts = take(bytes), take(bytes), take(bytes), take(8*sumParts(volume(c.valid)))
	}
	for i := range p.maps {
		p.maps[i] = take(4 * volume(p.scales[0].size))
	}
	p.factors = take(8 * (mostScales + 1))
	return p
}

func volume(size [3]int) int { return size[0] * size[1] * size[2] }
