// Package nn turns a model into programs. A Graph is the model at one shape: values of static shape, and the ops between
// them. Compile derives the backward pass, decides what to recompute instead of keeping, gives every buffer its place in the
// arena for as long as it lives, and returns a Program: a list of ops that an Engine executes in order. A Layout puts what
// outlives a run (weights, moments) and all programs into one arena, and its Plan says what each byte is for.
//
// Reading order: graph.go, params.go, ops.go, maps.go and heads.go (what each op computes, forward and backward: layers, what needs no
// parameters, losses), segment.go (ops whose backward pass runs right behind them), lower.go (values to buffers), place.go (buffers
// to offsets), program.go, plan.go.
package nn

import (
	"errors"
	"fmt"
	"slices"

	"github.com/flowrun/flowrun/gpu"
)

// Graph is a model at one shape. Its methods add ops in the order in which they are to run. The first wrong shape is kept
// as the graph's error and returned by Compile; ops after it do nothing.
type Graph struct {
	main   *Params // whose losses are ReconLoss and Quantize
	params *Params // where ops take their parameters from
	scope  string
	within *segment // that ops are added to; nil outside
	ops    []op
	inputs []*Value
	values []*Value
	names  map[string]bool

	results int // floats that ops leave for the host
	err     error
}

// NewGraph starts a graph whose ops take their parameters from a set, and whose losses train that set.
func NewGraph(params *Params) *Graph {
	return &Graph{main: params, params: params, names: map[string]bool{}}
}

// With adds ops that take their parameters from another set. Their names begin with a scope, those of their parameters don't:
// so one network can be run twice. Who a loss trains is the loss's to say.
func (g *Graph) With(params *Params, scope string, build func()) {
	was, outer := g.params, g.scope
	g.params, g.scope = params, outer+scope
	build()
	g.params, g.scope = was, outer
}

// Segment adds ops whose backward pass runs right behind their forward pass, so that their buffers are free again before the
// rest of the backward pass: nothing outside may read what they make. The losses of all sets are served, one set after the other.
func (g *Graph) Segment(build func()) {
	outer, within, s := g.ops, g.within, &segment{}
	g.ops, g.within = nil, s
	build()
	s.ops = g.ops
	g.ops, g.within = append(outer, s), within
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
	kept   bool      // until the end of the program
	on     []*Params // sets that it depends on
	within *segment  // whose it is; nil for what all may read
	wide   bool      // float32 on any engine
}

// stored is the value whose memory this one is a name for: its own, unless Balance made it.
func (v *Value) stored() *Value {
	if b, ok := v.by.(*balanceOp); ok {
		return b.y
	}
	return v
}

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
		if v.within != nil && v.within != g.within {
			g.fail(name, "%s belongs to another segment", v.Name)
			return false
		}
	}
	if name = g.scope + name; g.names[name] {
		g.fail(name, "the name is used twice")
		return false
	}
	g.names[name] = true
	return true
}

// pair is operands for two values of one shape; odd tells of two that aren't.
func (g *Graph) pair(name, odd string, a, b *Value) bool {
	if !g.operands(name, a, b) {
		return false
	}
	if a.Dims != b.Dims {
		g.fail(name, odd, a.Dims, b.Dims)
		return false
	}
	return true
}

func (g *Graph) value(name string, d gpu.Dims, by op, from ...*Value) *Value {
	v := &Value{Name: g.scope + name, Dims: d, by: by, within: g.within}
	for _, f := range from {
		f.uses = append(f.uses, by)
		v.dependsOn(f.on...)
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
	v.wide, v.within = true, nil
	g.inputs = append(g.inputs, v)
	return v
}

// depends reports whether a loss of a value has a gradient with respect to a set.
func (v *Value) depends(on *Params) bool { return slices.Contains(v.on, on) }

func (v *Value) dependsOn(sets ...*Params) {
	for _, s := range sets {
		if !v.depends(s) {
			v.on = append(v.on, s)
		}
	}
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
	Margin     int  // 0 is "same"; 2, of zeros, around kernels of 4
	Planar     bool // of images, with k1 along z: its weight has no such axis in files
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
	switch {
	case c.Transposed:
		role = TransposedWeight
	case c.Planar:
		role = PlaneWeight
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
		v := x.stored()
		if v.padded && v.pad != c.Pad {
			return g.fail(name, "%s is padded in two ways", x.Name)
		}
		v.padded, v.pad, v.halo = true, c.Pad, max(v.halo, h)
	}
	o := &convOp{id: g.scope + name, conv: k, x: x, w: w, b: b}
	o.y = g.value(name, d, o, x)
	o.y.dependsOn(g.params)
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
	o := &normOp{id: g.scope + name, norm: n, x: x, gain: gain, shift: shift}
	o.y = g.value(name, x.Dims, o, x)
	o.y.dependsOn(g.params)
	return o.y
}

// Statistics are the mean [C] and biased variance [C] that a batch norm took over the batch.
func (g *Graph) Statistics(v *Value) *Scalars {
	if v == nil {
		return nil
	}
	o, ok := v.by.(*normOp)
	if !ok || !o.norm.Batch {
		g.fail(v.Name, "isn't a batch norm's output")
		return nil
	}
	if o.said == nil {
		o.said = g.scalars(2 * v.C)
	}
	return o.said
}

// Add adds a sum of two values of one shape. Where one of them is a convolution's output that nothing else reads, the
// convolution adds the other as it writes.
func (g *Graph) Add(name string, a, b *Value) *Value {
	if !g.pair(name, "sum of %v and %v", a, b) {
		return nil
	}
	o := &addOp{id: g.scope + name, a: a, b: b}
	o.y = g.value(name, a.Dims, o, a, b)
	return o.y
}

// Codebook is a quantiser's state in the arena. Counts and Sums may be nil: then usage isn't counted.
type Codebook struct {
	gpu.Quantizer
	Codes  *Block // [Codes, Dim]
	Counts *Block // [Codes]
	Sums   *Block // [Codes, Dim]
	Second bool   // of a residue: the straight-through gradient is the first quantiser's alone
}

// Quantized is what quantising a value gives.
type Quantized struct {
	Q    *Value   // the codes' vectors
	Loss *Scalars // nil where there is none
	op   op
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
	o := &quantizeOp{id: g.scope + name, book: k, z: z, commitment: commitment, loss: g.scalars(1)}
	o.q = g.value(name, z.Dims, o, z)
	o.q.wide = z.wide
	return Quantized{Q: o.q, Loss: o.loss, op: o}
}

// ReconLoss adds l1*mean|y-t| + l2*mean(y-t)² to what is minimised. The scalars are the four of gpu.Engine's ReconLoss,
// without the factors.
func (g *Graph) ReconLoss(name string, y, t *Value, l1, l2 float64) *Scalars {
	if !g.pair(name, "loss between %v and %v", y, t) {
		return nil
	}
	o := &lossOp{id: g.scope + name, kind: "loss", of: g.main, reads: []*Value{y, t}, scale: Weight{Constant: 1}.number(), work: lossWork(y), over: true,
		result: g.scalars(4)}
	o.run = func(e gpu.Engine, at []gpu.Tensor, c lossCall) {
		e.ReconLoss(at[0], at[1], float32(l1), float32(l2), c.scale, c.dy, c.out, c.work)
	}
	g.loss(o, y, t)
	return o.result
}

// loss adds an op that makes no value.
func (g *Graph) loss(o op, reads ...*Value) {
	for _, v := range reads {
		v.uses = append(v.uses, o)
	}
	g.ops = append(g.ops, o)
}

// Factor is a number that a loss is multiplied by and that may change from run to run: the weight of a loss that ramps up.
type Factor struct{ Value float64 }

// number is what a run writes for its ops: a constant, times a factor, times the run's share of the batch.
type number struct {
	constant float64
	by       *Factor // nil is 1
	shared   bool
}

// Scalars are floats that an op leaves for the host, among the results of its program.
type Scalars struct{ at, n int }

// Of are the scalars, of all results of a run of their program.
func (s *Scalars) Of(results []float32) []float32 { return results[s.at : s.at+s.n] }

// scalars takes a place among the results; each lies at 16 bytes.
func (g *Graph) scalars(n int) *Scalars {
	s := &Scalars{g.results, n}
	g.results += (n + 3) / 4 * 4
	return s
}

// Results is how many floats a run of the graph leaves for the host.
func (g *Graph) Results() int { return g.results }
