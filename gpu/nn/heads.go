package nn

import "github.com/flowrun/flowrun/gpu"

// lossOp is a loss of some values, for one set. Where it trains, it runs in that set's backward pass, for it writes the gradient
// with respect to the first of them too.
type lossOp struct {
	id, kind string
	of       *Params
	reads    []*Value
	scale    number
	anchor   []number // two, or none
	scaleBy  *Scalars // where the scale is what another op left; at is which of its floats
	at       int
	work     func(s Sizes) int64
	over     bool // the gradient may take the value's memory
	adds     bool
	result   *Scalars
	run      func(e gpu.Engine, at []gpu.Tensor, c lossCall)
}

// lossCall is what a lossOp's run gets besides its operands.
type lossCall struct {
	scale, anchor, out, work gpu.Ptr
	add, dy                  *gpu.Tensor // nil for none
}

func (o *lossOp) out() []*Value    { return nil }
func (o *lossOp) replay(*lowering) {}
func (o *lossOp) loses() *Params   { return o.of }

func (o *lossOp) trains(l *lowering) bool { return l.train && o.reads[0].depends(o.of) }

func (o *lossOp) forward(l *lowering) {
	if !o.trains(l) {
		o.emit(l, nil)
	}
}

func (o *lossOp) backward(l *lowering) {
	if o.of != l.player || !o.trains(l) {
		return
	}
	dy := l.dy(o.reads[0])
	o.emit(l, dy)
	l.gradient(o.reads[0], dy)
}

func (o *lossOp) emit(l *lowering, dy *tensor) {
	result := l.scalars(o.id, o.result)
	work := l.buffer(o.id+" workspace", Workspace, o.work(l.sizes))
	in := instr{kind: o.kind, name: o.id, writes: []*buffer{result, work}}
	var at []*tensor
	for _, v := range o.reads {
		t := l.need(v)
		at = append(at, t)
		in.reads = append(in.reads, t.buf)
	}
	none := func() gpu.Ptr { return -1 }
	scale, anchor := none, none
	var add, grad *gpu.Tensor
	if dy != nil {
		grad, in.out = &dy.Tensor, dy
		in.writes = append(in.writes, dy.buf)
		if o.over {
			in.over = append(in.over, at[0])
		}
		if a := l.grad[o.reads[0]]; a != nil && o.adds {
			add = &a.Tensor
			in.reads, in.over = append(in.reads, a.buf), append(in.over, a)
			delete(l.grad, o.reads[0])
		}
		if o.scaleBy != nil {
			from := l.left[o.scaleBy]
			in.reads = append(in.reads, from)
			scale = func() gpu.Ptr { return from.at + gpu.Ptr(4*o.at) }
		} else {
			scale = l.number(o.scale)
		}
	}
	if o.anchor != nil {
		anchor = l.number(o.anchor[0])
		l.number(o.anchor[1])
	}
	tensors := make([]gpu.Tensor, len(at))
	in.run = func(e gpu.Engine, _ *Call) {
		for i, t := range at {
			tensors[i] = t.Tensor
		}
		o.run(e, tensors, lossCall{scale(), anchor(), result.at, work.at, add, grad})
	}
	l.emit(in)
}

// Weight is what a loss is multiplied by: a constant times a factor, which may be nil.
type Weight struct {
	Constant float64
	By       *Factor
}

func (w Weight) number() number { return number{constant: w.Constant, by: w.By, shared: true} }

// Lecam is LeCam's regularisation of a discriminator: a weight, and the running mean of the other side's logits.
type Lecam struct {
	Weight float64
	Anchor *Factor
}

// Judge adds an adversarial loss on logits to what a set minimises. The scalars are the mean loss and the mean logit.
func (g *Graph) Judge(name string, of *Params, logits *Value, j gpu.Judge, w Weight, lecam *Lecam) *Scalars {
	if !g.operands(name, logits) {
		return nil
	}
	o := &lossOp{id: g.scope + name, kind: "judge", of: of, reads: []*Value{logits}, scale: w.number(), work: lossWork(logits), over: true,
		result: g.scalars(2)}
	if lecam != nil {
		o.anchor = []number{{constant: lecam.Weight}, {constant: 1, by: lecam.Anchor}}
	}
	o.run = func(e gpu.Engine, at []gpu.Tensor, c lossCall) {
		e.JudgeLoss(j, at[0], c.scale, c.anchor, c.dy, c.out, c.work)
	}
	g.loss(o, logits)
	return o.result
}

func lossWork(v *Value) func(Sizes) int64 {
	return func(s Sizes) int64 { return s.LossWork(v.Dims) }
}

// Match adds the mean |y - t| to what a set minimises: of features, say. The scalars are the four of gpu.Engine's ReconLoss.
func (g *Graph) Match(name string, of *Params, y, t *Value, w Weight) *Scalars {
	if !g.pair(name, "loss between %v and %v", y, t) {
		return nil
	}
	o := &lossOp{id: g.scope + name, kind: "loss", of: of, reads: []*Value{y, t}, scale: w.number(), work: lossWork(y), over: true,
		result: g.scalars(4)}
	o.run = func(e gpu.Engine, at []gpu.Tensor, c lossCall) {
		e.ReconLoss(at[0], at[1], 1, 0, c.scale, c.dy, c.out, c.work)
	}
	g.loss(o, y, t)
	return o.result
}

// Perceptual adds LPIPS' distance between features of one layer, with parameter name.weight [channels], to what a set minimises. The
// scalar is the distance.
func (g *Graph) Perceptual(name string, of *Params, y, t *Value, w Weight) *Scalars {
	if !g.pair(name, "loss between %v and %v", y, t) {
		return nil
	}
	lin, err := g.params.get(name+".weight", Gain, y.C)
	if err != nil {
		g.fail(name, "%w", err)
		return nil
	}
	o := &lossOp{id: g.scope + name, kind: "perceptual", of: of, reads: []*Value{y, t}, scale: w.number(), work: lossWork(y), adds: true,
		result: g.scalars(1)}
	o.run = func(e gpu.Engine, at []gpu.Tensor, c lossCall) {
		e.PerceptualLoss(at[0], at[1], lin.weight(), c.scale, c.add, c.dy, c.out, c.work)
	}
	g.loss(o, y, t)
	return o.result
}

// Similarity adds 1 - MS-SSIM to what a set minimises; the scalar is that.
func (g *Graph) Similarity(name string, of *Params, y, t *Value, k gpu.Similarity, w Weight) *Scalars {
	if !g.operands(name, y, t) {
		return nil
	}
	if y.Dims != t.Dims || y.C != 1 || len(k.Weights) == 0 {
		g.fail(name, "similarity of %v and %v over %d scales", y.Dims, t.Dims, len(k.Weights))
		return nil
	}
	o := &lossOp{id: g.scope + name, kind: "similarity", of: of, reads: []*Value{y, t}, scale: w.number(), result: g.scalars(1),
		work: func(s Sizes) int64 { return s.SimilarityWork(k, y.Dims) }}
	o.run = func(e gpu.Engine, at []gpu.Tensor, c lossCall) {
		e.SimilarityLoss(k, at[0], at[1], c.scale, c.dy, c.out, c.work)
	}
	g.loss(o, y, t)
	return o.result
}

// Nudged are a value moved along a direction, both ways.
type Nudged struct {
	Ahead, Behind *Value
	Norm          *Scalars // of the direction, and what Judge along it is scaled by
}

// Nudge adds x ± h·slope/‖slope‖. With JudgeAlong, losses on what is made of the two give the gradient of w/2·‖slope‖² with respect to the
// parameters, by central differences.
func (g *Graph) Nudge(name string, x, slope *Value, h float64, w Weight) Nudged {
	if !g.operands(name, x, slope) {
		return Nudged{}
	}
	w.Constant /= 2 * h
	n := Nudged{Norm: g.scalars(3)}
	n.Ahead = g.nudge(name+".ahead", x, slope, h, w, n.Norm)
	n.Behind = g.nudge(name+".behind", x, slope, -h, w, g.scalars(3))
	return n
}

func (g *Graph) nudge(name string, x, slope *Value, h float64, w Weight, result *Scalars) *Value {
	o := &nudgeOp{id: g.scope + name, x: x, slope: slope, h: float32(h), factor: w.number(), result: result}
	o.y = g.value(name, x.Dims, o, x, slope)
	o.y.on, o.y.wide = nil, x.wide
	return o.y
}

type nudgeOp struct {
	id          string
	x, slope, y *Value
	h           float32
	factor      number
	result      *Scalars
}

func (o *nudgeOp) out() []*Value      { return []*Value{o.y} }
func (o *nudgeOp) replay(*lowering)   {}
func (o *nudgeOp) backward(*lowering) {}

func (o *nudgeOp) forward(l *lowering) {
	if !l.train {
		return
	}
	x, slope, y := l.need(o.x), l.need(o.slope), l.y(o.y)
	factor, result := l.number(o.factor), l.scalars(o.id, o.result)
	work := l.buffer(o.id+" workspace", Workspace, l.sizes.LossWork(o.x.Dims))
	l.at[o.y] = y
	l.emit(instr{kind: "nudge", name: o.id, out: y, reads: []*buffer{x.buf, slope.buf}, writes: []*buffer{y.buf, result, work},
		run: func(e gpu.Engine, _ *Call) {
			e.Nudge(x.Tensor, slope.Tensor, o.h, factor(), y.Tensor, result.at, work.at)
		}})
}

// JudgeAlong adds the mean logits of what Nudge moved ahead and behind, so that their difference over 2h is what the set minimises.
func (g *Graph) JudgeAlong(name string, of *Params, ahead, behind *Value, n Nudged) {
	for i, v := range []*Value{ahead, behind} {
		id := name + [...]string{".ahead", ".behind"}[i]
		if !g.operands(id, v) {
			return
		}
		o := &lossOp{id: g.scope + id, kind: "judge", of: of, reads: []*Value{v}, scaleBy: n.Norm, at: 1 + i, work: lossWork(v), over: true,
			result: g.scalars(2)}
		o.run = func(e gpu.Engine, at []gpu.Tensor, c lossCall) {
			e.JudgeLoss(gpu.Judge{Loss: gpu.Mean, Side: gpu.OfGenerator}, at[0], c.scale, -1, c.dy, c.out, c.work)
		}
		g.loss(o, v)
	}
}

// Balanced are two names for one value: what reads Plain has its gradient taken as it is, what reads Weighted has it multiplied by an adaptive
// weight first.
type Balanced struct {
	Plain, Weighted *Value
	Lambda          *Scalars
}

// Balance adds the adaptive weight of taming-transformers to a convolution's output: the norm of the convolution's weight gradient from Plain
// over that from Weighted, at most limit; w multiplies it in turn, and Lambda is what it was before.
func (g *Graph) Balance(name string, y *Value, limit float64, w Weight) Balanced {
	if !g.operands(name, y) {
		return Balanced{}
	}
	c, ok := y.by.(*convOp)
	if !ok {
		g.fail(name, "%s isn't a convolution's output", y.Name)
		return Balanced{}
	}
	o := &balanceOp{id: g.scope + name, conv: c, y: y, limit: float32(limit), factor: number{constant: w.Constant, by: w.By}, lambda: g.scalars(2)}
	o.plain = g.value(name+".plain", y.Dims, o, y)
	o.weighted = &Value{Name: g.scope + name + ".weighted", Dims: y.Dims, by: o, within: g.within, on: o.plain.on, wide: y.wide}
	o.plain.wide = y.wide
	g.values = append(g.values, o.weighted)
	return Balanced{o.plain, o.weighted, o.lambda}
}

type balanceOp struct {
	id                 string
	conv               *convOp
	y, plain, weighted *Value
	limit              float32
	factor             number
	lambda             *Scalars
}

func (o *balanceOp) out() []*Value    { return []*Value{o.plain, o.weighted} }
func (o *balanceOp) replay(*lowering) {}

func (o *balanceOp) forward(l *lowering) {
	t := l.need(o.y)
	l.at[o.plain], l.at[o.weighted] = t, t
}

func (o *balanceOp) backward(l *lowering) {
	a, b := l.grad[o.plain], l.grad[o.weighted]
	if !l.wants(o.y) || a == nil {
		return
	}
	if b == nil {
		l.gradient(o.y, a)
		return
	}
	conv, x := l.conv(o.conv), l.need(o.conv.x)
	n := o.conv.w.Len()
	trial := l.buffer(o.id+" trial gradients", Workspace, align(4*int64(n))+4*int64(conv.Out.C))
	work := l.buffer(o.id+" workspace", Workspace, max(l.sizes.ConvSizes(conv).Workspace, l.sizes.SumSquaresWork(n)))
	lambda := l.scalars(o.id, o.lambda)
	var sizes [2]*buffer
	for i, d := range []*tensor{a, b} {
		sizes[i] = l.buffer(o.id+" squares", Activations, 4)
		l.emit(instr{kind: "balance", name: o.id, flops: o.conv.conv.FLOPs(), reads: []*buffer{x.buf, d.buf}, writes: []*buffer{trial, work, sizes[i]},
			run: func(e gpu.Engine, _ *Call) {
				e.Fill(trial.at, int(trial.bytes/4), 0)
				e.ConvGradWeight(conv, x.Tensor, d.Tensor, trial.at, trial.at+gpu.Ptr(align(4*int64(n))), work.at)
				e.SumSquares(trial.at, n, sizes[i].at, work.at)
			}})
	}
	dy, factor := l.dy(o.y), l.number(o.factor)
	l.emit(instr{kind: "balance", name: o.id, out: dy, reads: []*buffer{a.buf, b.buf, sizes[0], sizes[1]}, writes: []*buffer{dy.buf, lambda},
		over: []*tensor{a, b},
		run: func(e gpu.Engine, _ *Call) {
			e.Balance(sizes[0].at, sizes[1].at, o.limit, factor(), lambda.at)
			e.Combine(a.Tensor, b.Tensor, lambda.at+4, dy.Tensor)
		}})
	l.gradient(o.y, dy)
}
