package vqgan

import (
	"fmt"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/nn"
)

// network is a discriminator: PatchGAN's NLayerDiscriminator (Isola et al., 2017), in 2D or 3D, as TATS has it by name and shape:
//
//	model0          conv k4 s2, LeakyReLU 0.2
//	model1 …        conv k4 s2, norm, LeakyReLU 0.2; the last of them at stride 1
//	the last model  conv k4 s1 to one channel: a logit for each place that it looks at
//
// with a margin of 2 zeros on both sides of each axis. All outputs but the logits are features.
type network struct {
	prefix     string // of its names in files
	volume     bool
	o          *GAN
	buffers    []*runningStats // of batch norms, by layer
	real, fake nn.Factor       // running means of its logits, LeCam's anchors
	heard      [2]float64      // its mean logits of this step: of scans, of reconstructions
}

// judgement is what one run of a network makes.
type judgement struct {
	logits   *nn.Value
	features []*nn.Value
	batches  []batchNorm
}

// batchNorm is what a batch norm took of the batch, and over how many voxels.
type batchNorm struct {
	said   *nn.Scalars
	voxels int
}

const leak = 0.2

// build adds a run of the network on x.
func (n *network) build(g *nn.Graph, params *nn.Params, scope string, x *nn.Value) (out judgement) {
	kernel, two := [3]int{4, 4, 4}, [3]int{2, 2, 2}
	if !n.volume {
		kernel[0], two[0] = 1, 1
	}
	g.With(params, scope, func() {
		h, channels := x, n.o.Channels
		for i := range n.o.Layers + 1 {
			stride := two
			if i == n.o.Layers {
				stride = unit
			}
			layer := fmt.Sprintf("%s.model%d", n.prefix, i)
			h = g.Conv(layer+".0", h, nn.Conv{Channels: channels, Kernel: kernel, Stride: stride, Margin: 2, Planar: !n.volume})
			if i > 0 && n.o.Norm == "batch" {
				h = g.NormAct(layer+".1", h, gpu.Norm{Batch: true, Plain: true, Eps: 1e-5})
				if h != nil {
					out.batches = append(out.batches, batchNorm{g.Statistics(h), h.Voxels()})
				}
			}
			h = g.Activate(layer+".activation", h, leak)
			out.features = append(out.features, h)
			channels = min(2*channels, 512)
		}
		out.logits = g.Conv(fmt.Sprintf("%s.model%d.0", n.prefix, n.o.Layers+1), h, nn.Conv{Channels: 1, Kernel: kernel, Stride: unit, Margin: 2, Planar: !n.volume})
		g.Wide(out.logits)
	})
	return out
}

// runningStats are a batch norm's buffers: PyTorch's running mean and variance, which nothing here uses but that a state dict has.
type runningStats struct {
	name           string
	mean, variance []float32
	batches        int64
}

// momentum is PyTorch's share of the new.
const momentum = 0.1

// take updates the buffers by what a run took of its batch, mean and variance, over so many voxels.
func (b *runningStats) take(said []float32, voxels int) {
	n := float64(voxels)
	c := len(b.mean)
	for i := range c {
		b.mean[i] += momentum * (said[i] - b.mean[i])
		b.variance[i] += momentum * (said[c+i]*float32(n/max(1, n-1)) - b.variance[i])
	}
	b.batches++
}
