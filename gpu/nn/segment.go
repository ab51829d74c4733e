package nn

import (
	"slices"

	"github.com/flowrun/flowrun/gpu"
)

// segment is a stretch of ops with losses of its own: each is forward and, in training, backward at once.
type segment struct{ ops []op }

func (s *segment) out() []*Value      { return nil }
func (s *segment) replay(*lowering)   {}
func (s *segment) backward(*lowering) {} // it was, behind forward

func (s *segment) forward(l *lowering) {
	for _, o := range s.ops {
		o.forward(l)
	}
	if !l.train {
		return
	}
	for _, player := range s.players() {
		l.sweep(player, s.ops)
	}
}

// loser is an op that is a loss.
type loser interface{ loses() *Params }

// players are the sets that the segment's losses train, in the order in which those were added.
func (s *segment) players() []*Params {
	var ps []*Params
	for _, o := range s.ops {
		if l, ok := o.(loser); ok && !slices.Contains(ps, l.loses()) {
			ps = append(ps, l.loses())
		}
	}
	return ps
}

// slopeOp is the gradient of a discriminator's mean logit with respect to its input, as a value: the backward pass of all
// ops between them, run in mid segment.
type slopeOp struct {
	id        string
	logits, x *Value
	ops       []op
	marker    *Params // what x depends on, so that the sweep finds its way
	slope     *Value
	result    *Scalars
}

// Slope adds the gradient with respect to x of the sum over samples of their mean logits. x was given to
// Leaf before anything read it. Nothing of it has a gradient in turn.
func (g *Graph) Slope(name string, logits, x *Value, leaf *Leaf) *Value {
	if !g.operands(name, logits, x) {
		return nil
	}
	if g.within == nil || !logits.depends(&leaf.marker) {
		return g.fail(name, "%s doesn't depend on %s within a segment", logits.Name, x.Name)
	}
	from := slices.Index(g.ops, x.by) + 1 // what makes x keeps its gradient
	o := &slopeOp{id: g.scope + name, logits: logits, x: x, ops: slices.Clone(g.ops[from:]), marker: &leaf.marker, result: g.scalars(2)}
	o.slope = g.value(name, x.Dims, o, logits)
	o.slope.on, o.slope.wide = nil, x.wide
	return o.slope
}

// Leaf marks a value whose Slope will be asked for.
type Leaf struct{ marker Params }

// Leaf marks x, before anything reads it.
func (g *Graph) Leaf(x *Value) *Leaf {
	leaf := &Leaf{}
	if x != nil {
		x.dependsOn(&leaf.marker)
	}
	return leaf
}

func (o *slopeOp) out() []*Value      { return []*Value{o.slope} }
func (o *slopeOp) replay(*lowering)   {}
func (o *slopeOp) backward(*lowering) {}

func (o *slopeOp) forward(l *lowering) {
	if !l.train {
		return
	}
	l.sweep(o.marker, append(slices.Clip(o.ops), &seedOp{o}))
	l.at[o.slope] = l.grad[o.x]
	delete(l.grad, o.x)
}

// seedOp begins the sweep of a slopeOp.
type seedOp struct{ *slopeOp }

func (o *seedOp) out() []*Value     { return nil }
func (o *seedOp) forward(*lowering) {}

func (o *seedOp) backward(l *lowering) {
	logits, dx := l.need(o.logits), l.dy(o.logits)
	samples := l.number(number{constant: float64(o.logits.N)})
	result := l.scalars(o.id, o.result)
	work := l.buffer(o.id+" workspace", Workspace, l.sizes.LossWork(o.logits.Dims))
	l.emit(instr{kind: "judge", name: o.id, out: dx, reads: []*buffer{logits.buf}, writes: []*buffer{dx.buf, result, work},
		run: func(e gpu.Engine, _ *Call) {
			e.JudgeLoss(gpu.Judge{Loss: gpu.Mean, Side: gpu.OfGenerator}, logits.Tensor, samples(), -1, &dx.Tensor, result.at, work.at)
		}})
	l.gradient(o.logits, dx)
}
