// Package nn turns a model into programs. A Graph is the model at one shape: values of static shape, and the ops between
// them. Compile derives the backward pass, decides what to recompute instead of keeping, gives every buffer its place in the
// arena for as long as it lives, and returns a Program: a list of ops that an Engine executes in order. A Layout puts what
// outlives a run (weights, moments) and all programs into one arena, and its Plan says what each byte is for.
//
// Reading order: graph.go, ops.go (what each op computes, forward and backward), lower.go (values to buffers), place.go
// (buffers to offsets), program.go, plan.go.
package nn

import (
	"errors"
	"fmt"

	"github.com/flowrun/flowrun/gpu"
)

// Graph is a model at one shape. Its methods add ops in the order in which they are to run. The first wrong shape is kept
// as the graph's error and returned by Compile; ops after it do nothing.
type Graph struct {
	params *Params
	ops    []op
	inputs []*Value
	values []*Value
	names  map[string]bool
	err    error
}

// NewGraph starts a graph whose ops take their parameters from a set.
func NewGraph(params *Params) *Graph {
	return &Graph{params: params, names: map[string]bool{}}
}

// Err is the first error of the building methods.
func (g *Graph) Err() error { return g.err }

// Value is what flows between ops: an activation of static shape. Its halo is the largest that an op reading it wants.
type Value struct {
	Name string
	gpu.Dims

	halo   int
	pad    gpu.Padding
	padded bool // an op has said what pad is
	by     op   // nil for an input
	uses   []op
	kept   bool // until the end of the program
	grad   bool // depends on a parameter
	wide   bool // float32 on any engine
}

// Halo is the number of columns in front of and behind each row, and what they hold.
func (v *Value) Halo() (columns int, holds gpu.Padding) { return v.halo, v.pad }

// Wide keeps values, and their gradients, float32 on engines whose activations are narrower.
func (g *Graph) Wide(vs ...*Value) {
	for _, v := range vs {
		if v != nil {
			v.wide = true
		}
	}
}

var errSkipped = errors.New("an operand is wrong")

// fail keeps the first error and returns a value that later ops recognise.
func (g *Graph) fail(name, format string, args ...any) *Value {
	if g.err == nil {
		g.err = fmt.Errorf("%s: %w", name, fmt.Errorf(format, args...))
	}
	return nil
}

// operands reports whether an op of this name can be added.
func (g *Graph) operands(name string, vs ...*Value) bool {
	if g.err != nil {
		return false
	}
	for _, v := range vs {
		if v == nil {
			g.fail(name, "%w", errSkipped)
			return false
		}
	}
	if g.names[name] {
		g.fail(name, "the name is used twice")
		return false
	}
	g.names[name] = true
	return true
}

func (g *Graph) value(name string, d gpu.Dims, by op, from ...*Value) *Value {
	v := &Value{Name: name, Dims: d, by: by, grad: by != nil}
	for _, f := range from {
		f.uses = append(f.uses, by)
	}
	g.values = append(g.values, v)
	if by != nil {
		g.ops = append(g.ops, by)
	}
	return v
}

// Input is a value that is written before each run. It is float32.
func (g *Graph) Input(name string, d gpu.Dims) *Value {
	if !g.operands(name) {
		return nil
	}
	if d.N < 1 || d.D < 1 || d.H < 1 || d.W < 1 || d.C < 1 {
		return g.fail(name, "dims %v (want at least 1)", d)
	}
	v := g.value(name, d, nil)
	v.wide = true
	g.inputs = append(g.inputs, v)
	return v
}

// Keep holds a value until the end of the program, so that it can be read after a run.
func (g *Graph) Keep(v *Value) {
	if v != nil {
		v.kept = true
	}
}

// Conv describes a convolution whose output is the input's size divided by the stride, or times it when transposed: what
// PyTorch code calls "same" padding, K-S in all with the larger half in front. Or, with a Margin, one whose input has that
// much padding on both sides of each axis with a kernel above 1: Out = (In + 2·Margin - K)/S + 1.
type Conv struct {
	Channels   int    // of the output
	Kernel     [3]int // z, y, x
	Stride     [3]int // z, y, x
	Transposed bool
	Pad        gpu.Padding
	Margin     int // 0 is "same"; 2, of zeros, around kernels of 4
}

// lo is gpu.Conv's Lo along one axis. A transposed convolution's input is padded likewise and k-1 cut off its output.
func (c Conv) lo(axis int) int {
	k, s := c.Kernel[axis], c.Stride[axis]
	if c.Margin > 0 && k > 1 {
		return c.Margin
	}
	low := (k - s + 1) / 2
	if c.Transposed {
		return k - 1 - low*s
	}
	return low
}

func (c Conv) check() error {
	for a := range 3 {
		k, s := c.Kernel[a], c.Stride[a]
		switch {
		case c.Transposed && k == 4 && (s == 1 || s == 2):
		case !c.Transposed && (s == 1 && (k == 1 || k == 3 || k == 4) || s == 2 && k == 4):
		default:
			return fmt.Errorf("kernel %v stride %v (want k1 s1, k3 s1, k4 s1 or k4 s2; transposed k4)", c.Kernel, c.Stride)
		}
		if c.Margin != 0 && (c.Margin != 2 || k == 3 || c.Transposed || c.Pad != gpu.Zero) {
			return fmt.Errorf("margin %d around kernel %v (want 2, of zeros, around k4, not transposed)", c.Margin, c.Kernel)
		}
	}
	if c.Channels < 1 {
		return fmt.Errorf("%d channels (want at least 1)", c.Channels)
	}
	return nil
}

// size is the output's extent along one axis where the input's is n.
func (c Conv) size(axis, n int) (int, error) {
	k, s := c.Kernel[axis], c.Stride[axis]
	switch {
	case c.Transposed:
		return n * s, nil
	case c.Margin > 0 && k > 1:
		return (n+2*c.Margin-k)/s + 1, nil
	case n%s != 0:
		return 0, fmt.Errorf("%d along %c isn't a multiple of the stride %d", n, "zyx"[axis], s)
	}
	return n / s, nil
}

// Conv adds a convolution with parameters name.weight and name.bias.
func (g *Graph) Conv(name string, x *Value, c Conv) *Value {
	if !g.operands(name, x) {
		return nil
	}
	if err := c.check(); err != nil {
		return g.fail(name, "%w", err)
	}
	d := x.Dims
	role := ConvWeight
	for a, n := range [3]*int{&d.D, &d.H, &d.W} {
		var err error
		if *n, err = c.size(a, *n); err != nil {
			return g.fail(name, "%w", err)
		}
	}
	if c.Transposed {
		role = TransposedWeight
	}
	d.C = c.Channels
	k := gpu.Conv{In: x.Dims, Out: d, K: c.Kernel, S: c.Stride, Lo: [3]int{c.lo(0), c.lo(1), c.lo(2)},
		Transposed: c.Transposed, Pad: c.Pad}
	w, err := g.params.get(name+".weight", role, c.Kernel[0], c.Kernel[1], c.Kernel[2], x.C, d.C)
	if err != nil {
		return g.fail(name, "%w", err)
	}
	b, err := g.params.get(name+".bias", Bias, d.C)
	if err != nil {
		return g.fail(name, "%w", err)
	}
	if h := k.Halo(); h > 0 {
		if x.padded && x.pad != c.Pad {
			return g.fail(name, "%s is padded in two ways", x.Name)
		}
		x.padded, x.pad, x.halo = true, c.Pad, max(x.halo, h)
	}
	o := &convOp{id: name, conv: k, x: x, w: w, b: b}
	o.y = g.value(name, d, o, x)
	return o.y
}

// NormAct adds a norm with parameters name.weight and name.bias, and SiLU after it.
func (g *Graph) NormAct(name string, x *Value, n gpu.Norm) *Value {
	if !g.operands(name, x) {
		return nil
	}
	if n.Groups < 0 || n.Groups > 0 && x.C%n.Groups != 0 {
		return g.fail(name, "%d groups don't divide %d channels", n.Groups, x.C)
	}
	gain, err := g.params.get(name+".weight", Gain, x.C)
	if err != nil {
		return g.fail(name, "%w", err)
	}
	shift, err := g.params.get(name+".bias", Shift, x.C)
	if err != nil {
		return g.fail(name, "%w", err)
	}
	o := &normOp{id: name, norm: n, x: x, gain: gain, shift: shift}
	o.y = g.value(name, x.Dims, o, x)
	return o.y
}

// Add adds a sum of two values of one shape. Where one of them is a convolution's output that nothing else reads, the
// convolution adds the other as it writes.
func (g *Graph) Add(name string, a, b *Value) *Value {
	if !g.operands(name, a, b) {
		return nil
	}
	if a.Dims != b.Dims {
		return g.fail(name, "sum of %v and %v", a.Dims, b.Dims)
	}
	o := &addOp{id: name, a: a, b: b}
	o.y = g.value(name, a.Dims, o, a, b)
	o.y.grad = a.grad || b.grad
	return o.y
}

// Codebook is a quantiser's state in the arena. Counts and Sums may be nil: then usage isn't counted.
type Codebook struct {
	gpu.Quantizer
	Codes  *Block // [Codes, Dim]
	Counts *Block // [Codes]
	Sums   *Block // [Codes, Dim]
}

// Quantized is what quantising a value gives.
type Quantized struct {
	Q    *Value // the codes' vectors
	Loss *Scalars
	op   *quantizeOp
}

// Quantize adds the replacement of each voxel's vector by the nearest code. Its gradient is straight-through, plus that of
// commitment times the mean of (z-q)² (the codes themselves get none). Loss is that mean, without the factor.
func (g *Graph) Quantize(name string, z *Value, k Codebook, commitment float64) Quantized {
	if !g.operands(name, z) {
		return Quantized{}
	}
	if k.Codes == nil || k.Quantizer.Codes < 1 || k.Dim != z.C || k.Codes.Bytes < 4*int64(k.Quantizer.Codes)*int64(k.Dim) {
		g.fail(name, "codebook of %d codes × %d for %d channels", k.Quantizer.Codes, k.Dim, z.C)
		return Quantized{}
	}
	if (k.Counts == nil) != (k.Sums == nil) {
		g.fail(name, "counts and sums come together")
		return Quantized{}
	}
	o := &quantizeOp{id: name, book: k, z: z, commitment: commitment, loss: &Scalars{n: 1}}
	o.q = g.value(name, z.Dims, o, z)
	o.q.grad, o.q.wide = z.grad, z.wide
	return Quantized{Q: o.q, Loss: o.loss, op: o}
}

// ReconLoss adds l1*mean|y-t| + l2*mean(y-t)² to what is minimised. The scalars are the four of gpu.Engine's ReconLoss,
// without the factors.
func (g *Graph) ReconLoss(name string, y, t *Value, l1, l2 float64) *Scalars {
	if !g.operands(name, y, t) {
		return nil
	}
	if y.Dims != t.Dims {
		g.fail(name, "loss between %v and %v", y.Dims, t.Dims)
		return nil
	}
	o := &reconOp{id: name, y: y, t: t, l1: l1, l2: l2, result: &Scalars{n: 4}}
	y.uses, t.uses = append(y.uses, o), append(t.uses, o)
	g.ops = append(g.ops, o)
	return o.result
}

// Factor is a number that a loss is multiplied by and that may change from run to run: the weight of a loss that ramps up.
type Factor struct{ Value float64 }

// number is what a run writes for its ops: a constant, times a factor, times the run's share of the batch.
type number struct {
	constant float64
	by       *Factor // nil is 1
	shared   bool
}

// Scalars are floats that an op leaves for the host.
type Scalars struct{ n int }
