package vqgan

import (
	"fmt"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/nn"
)

// The network is medicaldiffusion's (after TATS), by name and shape:
//
//	encoder   conv_first k3 · per level: down k4, res · final_block (norm, SiLU)
//	          pre_vq_conv k1 · quantiser · post_vq_conv k1
//	decoder   final_block (norm, SiLU) · per level: up k4 transposed, res1, res2 · conv_last k3
//	res       x + conv2(silu(norm2(conv1(silu(norm1(x))))))
//
// Levels halve an axis as long as its downsampling asks for it; the axes that are done keep kernel 4 at stride 1.

var (
	k1   = [3]int{1, 1, 1}
	k3   = [3]int{3, 3, 3}
	k4   = [3]int{4, 4, 4}
	unit = [3]int{1, 1, 1}
)

// encoder adds the layers from voxels [N, D, H, W, 1] to latents, before the quantiser.
func encoder(g *nn.Graph, c *Config, x *nn.Value) *nn.Value {
	h := g.Conv("encoder.conv_first.conv", x, nn.Conv{Channels: c.Hidden, Kernel: k3, Stride: unit, Pad: c.pad()})
	for i := range c.Halvings() {
		block := fmt.Sprintf("encoder.conv_blocks.%d", i)
		h = g.Conv(block+".down.conv", h, nn.Conv{Channels: c.Hidden << (i + 1), Kernel: k4, Stride: c.stride(i), Pad: c.pad()})
		h = residual(g, c, block+".res", h)
	}
	h = g.NormAct("encoder.final_block.0", h, c.norm())
	z := g.Conv("pre_vq_conv.conv", h, nn.Conv{Channels: c.Embedding, Kernel: k1, Stride: unit, Pad: c.pad()})
	g.Wide(h, z) // codes are chosen in float32
	return z
}

// decoder adds the layers from quantised latents to voxels.
func decoder(g *nn.Graph, c *Config, q *nn.Value) *nn.Value {
	top := c.Halvings()
	h := g.Conv("post_vq_conv.conv", q, nn.Conv{Channels: c.Hidden << top, Kernel: k1, Stride: unit, Pad: c.pad()})
	h = g.NormAct("decoder.final_block.0", h, c.norm())
	for i := range top {
		block := fmt.Sprintf("decoder.conv_blocks.%d", i)
		channels := c.Hidden << (top - i)
		if c.Decoder == "lean" {
			channels /= 2
		}
		// The first level up doubles the axes that the first level down halves, as in the predecessor: where axes differ
		// it isn't the mirror image.
		h = g.Conv(block+".up.convt", h, nn.Conv{Channels: channels, Kernel: k4, Stride: c.stride(i), Transposed: true, Pad: c.pad()})
		h = residual(g, c, block+".res1", h)
		h = residual(g, c, block+".res2", h)
	}
	y := g.Conv("decoder.conv_last.conv", h, nn.Conv{Channels: 1, Kernel: k3, Stride: unit, Pad: c.pad()})
	g.Wide(y)
	return y
}

func residual(g *nn.Graph, c *Config, name string, x *nn.Value) *nn.Value {
	if x == nil {
		return nil
	}
	same := nn.Conv{Channels: x.C, Kernel: k3, Stride: unit, Pad: c.pad()}
	h := g.NormAct(name+".norm1", x, c.norm())
	h = g.Conv(name+".conv1.conv", h, same)
	h = g.NormAct(name+".norm2", h, c.norm())
	h = g.Conv(name+".conv2.conv", h, same)
	return g.Add(name, x, h)
}

// program is the model at one batch.
type program struct {
	*nn.Program
	title         string
	n             int
	input, target *nn.Value // target in training only
	quantised     quantised
	y             *nn.Value
	loss          *nn.Scalars
	ssim          *nn.Scalars // nil without
	lambda        *nn.Scalars // adaptive weight; nil without
	planes        []plan
	critics       []critic
	views         []view
}

// training describes a phase's program of a micro-batch of n patches, to be compiled.
func (s *Session) training(n int, ph phase) (*program, *nn.Graph) {
	g := nn.NewGraph(&s.params)
	d := s.dims(n)
	p := &program{n: n, title: title([phases]string{"train", "train with discriminators", "train with R1"}[ph], n, s.o.Patch), input: g.Input("input", d), target: g.Input("target", d)}
	p.quantised = quantise(g, &s.c, encoder(g, &s.c, p.input), s.codebooks(), s.o.Loss.Commitment)
	p.quantised.keep(g)
	p.y = decoder(g, &s.c, p.quantised.q)
	s.heads(g, p, ph)
	return p, g
}

// compile makes the program of its graph.
func (p *program) compile(g *nn.Graph, e nn.Sizes, o nn.Options) (err error) {
	if p.Program, err = nn.Compile(g, e, o); err == nil {
		p.Name = p.title
	}
	return err
}

// inference builds the program that reconstructs n patches.
func (s *Session) inference(n int) (*program, error) {
	return reconstruction(s.e, &s.params, &s.c, s.codebooks(), n, s.o.Patch)
}

// reconstruction builds the program from n patches to what the model makes of them.
func reconstruction(e nn.Sizes, params *nn.Params, c *Config, books []nn.Codebook, n int, patch [3]int) (*program, error) {
	g := nn.NewGraph(params)
	p := &program{n: n, title: title("reconstruct", n, patch), input: g.Input("input", dims(n, patch, 1))}
	p.quantised = quantise(g, c, encoder(g, c, p.input), books, 0)
	p.y = decoder(g, c, p.quantised.q)
	g.Keep(p.y)
	return p, p.compile(g, e, nn.Options{})
}

func dims(n int, size [3]int, channels int) gpu.Dims {
	return gpu.Dims{N: n, D: size[2], H: size[1], W: size[0], C: channels}
}

func (s *Session) dims(n int) gpu.Dims { return dims(n, s.o.Patch, 1) }

func title(what string, n int, patch [3]int) string {
	return fmt.Sprintf("%s %d patches of %d×%d×%d", what, n, patch[0], patch[1], patch[2])
}
