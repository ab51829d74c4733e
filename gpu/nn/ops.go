package nn

import "github.com/flowrun/flowrun/gpu"

// op is a node of a graph. It emits instructions: forward once; backward once, after all that reads its output has added
// to that output's gradient; replay where its output is wanted again and wasn't kept.
type op interface {
	out() []*Value
	forward(l *lowering)
	backward(l *lowering)
	replay(l *lowering) // only of ops that a recompute policy names
}

// convOp is y = conv(x) + bias (+ add).
type convOp struct {
	id   string
	conv gpu.Conv
	x, y *Value
	add  *Value
	w, b *Param
}

func (o *convOp) out() []*Value { return []*Value{o.y} }

func (o *convOp) forward(l *lowering) { l.at[o.y] = o.emit(l, l.y(o.y)) }
func (o *convOp) replay(l *lowering)  { l.at[o.y] = o.emit(l, l.y(o.y)) }

func (o *convOp) emit(l *lowering, y *tensor) *tensor {
	p, x := l.pack(o), l.need(o.x)
	conv := l.conv(o)
	in := instr{kind: "conv", name: o.id, flops: o.conv.FLOPs(), out: y, reads: []*buffer{x.buf, p.forward}, writes: []*buffer{y.buf}}
	var add *gpu.Tensor
	if o.add != nil {
		a := l.need(o.add)
		add = &a.Tensor
		in.reads = append(in.reads, a.buf)
		in.over = []*tensor{a}
	}
	in.run = func(e gpu.Engine, _ *Call) { e.Conv(conv, x.Tensor, p.forward.at, o.b.weight(), add, y.Tensor) }
	l.emit(in)
	return y
}

func (o *convOp) backward(l *lowering) {
	dy := l.grad[o.y]
	if dy == nil {
		return
	}
	if o.add != nil && l.wants(o.add) {
		l.gradient(o.add, dy)
	}
	p := l.pack(o)
	conv := l.conv(o)
	if o.w.set == l.player {
		x := l.need(o.x)
		work := l.buffer(o.id+" workspace", Workspace, l.sizes.ConvSizes(conv).Workspace)
		l.emit(instr{kind: "conv.grad_weight", name: o.id, flops: o.conv.FLOPs(), reads: []*buffer{x.buf, dy.buf}, writes: []*buffer{work},
			run: func(e gpu.Engine, _ *Call) {
				e.ConvGradWeight(conv, x.Tensor, dy.Tensor, o.w.grad(), o.b.grad(), work.at)
			}})
	}
	if !l.wants(o.x) {
		return
	}
	dx, packed := l.dy(o.x), l.packBack(p)
	l.emit(instr{kind: "conv.grad_input", name: o.id, flops: o.conv.FLOPs(), out: dx,
		reads: []*buffer{dy.buf, packed}, writes: []*buffer{dx.buf},
		run: func(e gpu.Engine, _ *Call) { e.ConvGradInput(conv, dy.Tensor, packed.at, dx.Tensor) }})
	l.gradient(o.x, dx)
}

// normOp is y = silu(norm(x)).
type normOp struct {
	id          string
	norm        gpu.Norm
	x, y        *Value
	gain, shift *Param
	said        *Scalars // nil where nobody asks
}

func (o *normOp) out() []*Value { return []*Value{o.y} }

func (o *normOp) forward(l *lowering) {
	x, y := l.need(o.x), l.y(o.y)
	stats := l.buffer(o.id+" statistics", Activations, l.sizes.NormStats(o.norm, o.x.Dims))
	l.stats[o] = stats
	l.at[o.y] = y
	l.emit(instr{kind: "norm", name: o.id, out: y, reads: []*buffer{x.buf}, writes: []*buffer{y.buf, stats},
		run: func(e gpu.Engine, _ *Call) {
			e.NormAct(o.norm, x.Tensor, o.gain.weight(), o.shift.weight(), stats.at, y.Tensor)
		}})
	if o.said != nil {
		said := l.scalars(o.id+" batch", o.said)
		l.emit(instr{kind: "copy", name: o.id, reads: []*buffer{stats}, writes: []*buffer{said},
			run: func(e gpu.Engine, _ *Call) { e.Copy(said.at, stats.at, o.said.n) }})
	}
}

func (o *normOp) replay(l *lowering) {
	x, y, stats := l.need(o.x), l.y(o.y), l.stats[o]
	l.at[o.y] = y
	l.emit(instr{kind: "norm.apply", name: o.id, out: y, reads: []*buffer{x.buf, stats}, writes: []*buffer{y.buf},
		run: func(e gpu.Engine, _ *Call) {
			e.NormActApply(o.norm, x.Tensor, o.gain.weight(), o.shift.weight(), stats.at, y.Tensor)
		}})
}

func (o *normOp) backward(l *lowering) {
	dy := l.grad[o.y]
	if dy == nil {
		return
	}
	x, stats, dx := l.need(o.x), l.stats[o], l.dy(o.x)
	work := l.buffer(o.id+" workspace", Workspace, l.sizes.NormWork(o.norm, o.x.Dims))
	in := instr{kind: "norm.grad", name: o.id, out: dx, reads: []*buffer{x.buf, stats, dy.buf}, writes: []*buffer{dx.buf, work}, over: []*tensor{dy}}
	dgain, dshift := o.gain.grad, o.shift.grad
	if o.gain.set != l.player { // the op adds them up all the same
		spare := l.buffer(o.id+" unwanted gradients", Workspace, 2*align(4*int64(o.x.C)))
		in.writes = append(in.writes, spare)
		dgain = func() gpu.Ptr { return spare.at }
		dshift = func() gpu.Ptr { return spare.at + gpu.Ptr(align(4*int64(o.x.C))) }
	}
	var add *gpu.Tensor
	if a := l.grad[o.x]; a != nil {
		add = &a.Tensor
		in.reads = append(in.reads, a.buf)
		in.over = []*tensor{a, dy}
		delete(l.grad, o.x)
	}
	in.run = func(e gpu.Engine, _ *Call) {
		e.NormActGrad(o.norm, x.Tensor, o.gain.weight(), o.shift.weight(), stats.at, dy.Tensor, add, dx.Tensor,
			dgain(), dshift(), work.at)
	}
	l.emit(in)
	l.gradient(o.x, dx)
}

// addOp is y = a + b.
type addOp struct {
	id      string
	a, b, y *Value
}

func (o *addOp) out() []*Value    { return []*Value{o.y} }
func (o *addOp) replay(*lowering) {}

func (o *addOp) forward(l *lowering) {
	y := l.y(o.y)
	l.sum(o.id, l.need(o.a), l.need(o.b), y)
	l.at[o.y] = y
}

func (o *addOp) backward(l *lowering) {
	dy := l.grad[o.y]
	if dy == nil {
		return
	}
	for _, v := range []*Value{o.a, o.b} {
		if l.wants(v) {
			l.gradient(v, dy)
		}
	}
}

// quantizeOp is q = the codes nearest to z.
type quantizeOp struct {
	id         string
	book       Codebook
	z, q       *Value
	commitment float64
	loss       *Scalars
}

func (o *quantizeOp) out() []*Value    { return []*Value{o.q} }
func (o *quantizeOp) replay(*lowering) {}

func (o *quantizeOp) forward(l *lowering) {
	k := o.book.Quantizer
	z, q := l.need(o.z), l.y(o.q)
	idx := l.buffer(o.id+" codes", Activations, 4*int64(o.z.Voxels()))
	idx.kept = true
	work := l.buffer(o.id+" workspace", Workspace, l.sizes.QuantizeWork(k, o.z.Dims))
	l.stats[o] = idx
	l.at[o.q] = q
	loss, count := l.scalars(o.id+" loss", o.loss), l.train && o.book.Counts != nil
	l.emit(instr{kind: "quantize", name: o.id, out: q, reads: []*buffer{z.buf}, writes: []*buffer{q.buf, idx, loss, work},
		run: func(e gpu.Engine, _ *Call) {
			counts, sums := gpu.Ptr(-1), gpu.Ptr(-1)
			if count {
				counts, sums = o.book.Counts.At, o.book.Sums.At
			}
			e.Quantize(k, z.Tensor, o.book.Codes.At, idx.at, q.Tensor, counts, sums, loss.at, work.at)
		}})
}

func (o *quantizeOp) backward(l *lowering) {
	dq := l.grad[o.q]
	if dq == nil || !l.wants(o.z) {
		return
	}
	z, idx, dz := l.need(o.z), l.stats[o], l.dy(o.z)
	in := instr{kind: "quantize.grad", name: o.id, out: dz, reads: []*buffer{z.buf, idx}, writes: []*buffer{dz.buf}}
	var through *gpu.Tensor
	if !o.book.Second {
		through = &dq.Tensor
		in.reads, in.over = append(in.reads, dq.buf), []*tensor{dq}
	}
	scale := l.number(number{constant: 2 * o.commitment / float64(o.z.Len()), shared: true})
	in.run = func(e gpu.Engine, _ *Call) {
		e.QuantizeGrad(o.book.Quantizer, z.Tensor, o.book.Codes.At, idx.at, through, scale(), dz.Tensor)
	}
	l.emit(in)
	l.gradient(o.z, dz)
}
