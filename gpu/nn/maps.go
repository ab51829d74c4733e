package nn

import "github.com/flowrun/flowrun/gpu"

// mapOp is y = f(x), with what its gradient reads besides.
type mapOp struct {
	id, kind string
	x, y     *Value
	with     *Value // another operand, without a gradient; or nil
	run      func(e gpu.Engine, x gpu.Tensor, with gpu.Ptr, y gpu.Tensor)
	grad     func(e gpu.Engine, saved gpu.Tensor, with gpu.Ptr, dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor)
	saved    func(o *mapOp) *Value // what grad reads of x and y; nil for neither
	over     bool                  // y may take x's memory
	overDy   bool                  // dx may take dy's memory
	adds     bool                  // grad adds what is known of dx already
}

func (o *mapOp) out() []*Value    { return []*Value{o.y} }
func (o *mapOp) replay(*lowering) {}

func (o *mapOp) forward(l *lowering) {
	x, y := l.need(o.x), l.y(o.y)
	in := instr{kind: o.kind, name: o.id, out: y, reads: []*buffer{x.buf}, writes: []*buffer{y.buf}}
	if o.over {
		in.over = []*tensor{x}
	}
	with := o.other(l, &in)
	in.run = func(e gpu.Engine, _ *Call) { o.run(e, x.Tensor, with(), y.Tensor) }
	l.emit(in)
	l.at[o.y] = y
}

// other adds the other operand to what an instruction reads.
func (o *mapOp) other(l *lowering, in *instr) func() gpu.Ptr {
	if o.with == nil {
		return func() gpu.Ptr { return -1 }
	}
	w := l.need(o.with)
	in.reads = append(in.reads, w.buf)
	return func() gpu.Ptr { return w.At }
}

func (o *mapOp) backward(l *lowering) {
	dy := l.grad[o.y]
	if dy == nil || !l.wants(o.x) {
		return
	}
	dx := l.dy(o.x)
	in := instr{kind: o.kind + ".grad", name: o.id, out: dx, reads: []*buffer{dy.buf}, writes: []*buffer{dx.buf}}
	var saved *tensor
	if o.saved != nil {
		saved = l.need(o.saved(o))
		in.reads = append(in.reads, saved.buf)
	} else {
		saved = &tensor{}
	}
	var add *gpu.Tensor
	if a := l.grad[o.x]; a != nil && o.adds {
		add = &a.Tensor
		in.reads, in.over = append(in.reads, a.buf), append(in.over, a)
		delete(l.grad, o.x)
	}
	if o.overDy {
		in.over = append(in.over, dy)
	}
	with := o.other(l, &in)
	in.run = func(e gpu.Engine, _ *Call) { o.grad(e, saved.Tensor, with(), dy.Tensor, add, dx.Tensor) }
	l.emit(in)
	l.gradient(o.x, dx)
}

func savedX(o *mapOp) *Value { return o.x }
func savedY(o *mapOp) *Value { return o.y }

// add adds an op that was checked, with an output of its dims.
func (g *Graph) addMap(name string, d gpu.Dims, o *mapOp) *Value {
	o.id = g.scope + name
	from := []*Value{o.x}
	if o.with != nil {
		from = append(from, o.with)
	}
	o.y = g.value(name, d, o, from...)
	return o.y
}

// Activate adds max(x, 0) + slope·min(x, 0).
func (g *Graph) Activate(name string, x *Value, slope float64) *Value {
	if !g.operands(name, x) {
		return nil
	}
	if slope < 0 || slope >= 1 {
		return g.fail(name, "slope %v (want 0 to below 1)", slope)
	}
	s := float32(slope)
	return g.addMap(name, x.Dims, &mapOp{kind: "activate", x: x, saved: savedY, over: true, overDy: true, adds: true,
		run: func(e gpu.Engine, x gpu.Tensor, _ gpu.Ptr, y gpu.Tensor) { e.Activate(s, x, y) },
		grad: func(e gpu.Engine, y gpu.Tensor, _ gpu.Ptr, dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor) {
			e.ActivateGrad(s, y, dy, add, dx)
		}})
}

// MaxPool adds the maxima of 2×2 voxels along y and x.
func (g *Graph) MaxPool(name string, x *Value) *Value {
	if !g.operands(name, x) {
		return nil
	}
	d := x.Dims
	if d.H, d.W = d.H/2, d.W/2; d.H < 1 || d.W < 1 {
		return g.fail(name, "%d×%d voxels (want at least 2×2)", x.W, x.H)
	}
	return g.addMap(name, d, &mapOp{kind: "pool", x: x, saved: savedX, adds: true,
		run: func(e gpu.Engine, x gpu.Tensor, _ gpu.Ptr, y gpu.Tensor) { e.MaxPool(x, y) },
		grad: func(e gpu.Engine, x gpu.Tensor, _ gpu.Ptr, dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor) {
			e.MaxPoolGrad(x, dy, add, dx)
		}})
}

// Slices adds the planes of x across an axis (0 is z) whose numbers at holds: at is an input [N·k, 1, 1, 1, 1] of whole numbers, k for each
// sample of x.
func (g *Graph) Slices(name string, x *Value, axis int, at *Value) *Value {
	if !g.operands(name, x, at) {
		return nil
	}
	if at.Len() != at.N || at.N%x.N != 0 || axis < 0 || axis > 2 {
		return g.fail(name, "planes %v of %v across axis %d", at.Dims, x.Dims, axis)
	}
	d := gpu.Dims{N: at.N, D: 1, H: x.H, W: x.W, C: x.C}
	switch axis {
	case 1:
		d.H = x.D
	case 2:
		d.H, d.W = x.D, x.H
	}
	y := g.addMap(name, d, &mapOp{kind: "slice", x: x, with: at, adds: true,
		run: func(e gpu.Engine, x gpu.Tensor, at gpu.Ptr, y gpu.Tensor) { e.Slice(axis, x, at, y) },
		grad: func(e gpu.Engine, _ gpu.Tensor, at gpu.Ptr, dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor) {
			e.SliceGrad(axis, dy, at, add, dx)
		}})
	g.Wide(y)
	return y
}

// Tint adds channels scale[c]·x + shift[c] of one channel, with parameters name.scale and name.shift that nothing trains.
func (g *Graph) Tint(name string, x *Value, channels int) *Value {
	if !g.operands(name, x) {
		return nil
	}
	scale, err := g.params.get(name+".scale", Gain, channels)
	if err != nil || x.C != 1 {
		return g.fail(name, "of %d channels: %w", x.C, err)
	}
	shift, err := g.params.get(name+".shift", Shift, channels)
	if err != nil {
		return g.fail(name, "%w", err)
	}
	d := x.Dims
	d.C = channels
	y := g.addMap(name, d, &mapOp{kind: "tint", x: x,
		run: func(e gpu.Engine, x gpu.Tensor, _ gpu.Ptr, y gpu.Tensor) {
			e.Tint(x, scale.weight(), shift.weight(), y)
		},
		grad: func(e gpu.Engine, _ gpu.Tensor, _ gpu.Ptr, dy gpu.Tensor, _ *gpu.Tensor, dx gpu.Tensor) {
			e.TintGrad(dy, scale.weight(), dx)
		}})
	g.Wide(y)
	return y
}

// Unit adds x divided by its norm over channels.
func (g *Graph) Unit(name string, x *Value) *Value {
	if !g.operands(name, x) {
		return nil
	}
	y := g.addMap(name, x.Dims, &mapOp{kind: "unit", x: x, saved: savedX, overDy: true,
		run: func(e gpu.Engine, x gpu.Tensor, _ gpu.Ptr, y gpu.Tensor) { e.Unit(x, y) },
		grad: func(e gpu.Engine, x gpu.Tensor, _ gpu.Ptr, dy gpu.Tensor, _ *gpu.Tensor, dx gpu.Tensor) {
			e.UnitGrad(x, dy, dx)
		}})
	if y != nil {
		y.wide = x.wide
	}
	return y
}

// Residue adds z - q, with q taken for a constant: what a second quantiser has still to say.
func (g *Graph) Residue(name string, z, q *Value) *Value {
	if !g.pair(name, "difference of %v and %v", z, q) {
		return nil
	}
	o := &residueOp{id: g.scope + name, z: z, q: q}
	o.y = g.value(name, z.Dims, o, z, q)
	o.y.on, o.y.wide = z.on, z.wide
	return o.y
}

type residueOp struct {
	id      string
	z, q, y *Value
}

func (o *residueOp) out() []*Value    { return []*Value{o.y} }
func (o *residueOp) replay(*lowering) {}

func (o *residueOp) forward(l *lowering) {
	z, q, y := l.need(o.z), l.need(o.q), l.y(o.y)
	l.at[o.y] = y
	l.emit(instr{kind: "subtract", name: o.id, out: y, reads: []*buffer{z.buf, q.buf}, writes: []*buffer{y.buf}, over: []*tensor{z, q},
		run: func(e gpu.Engine, _ *Call) { e.Subtract(z.Tensor, q.Tensor, y.Tensor) }})
}

func (o *residueOp) backward(l *lowering) {
	if dy := l.grad[o.y]; dy != nil && l.wants(o.z) {
		l.gradient(o.z, dy)
	}
}

// Round adds finite scalar quantisation. Loss is nil: there is nothing to commit to. counts [codes] may be nil.
func (g *Graph) Round(name string, z *Value, k gpu.Scalar, counts *Block) Quantized {
	if !g.operands(name, z) {
		return Quantized{}
	}
	if len(k.Levels) != z.C {
		g.fail(name, "%d levels for %d channels", len(k.Levels), z.C)
		return Quantized{}
	}
	o := &roundOp{id: g.scope + name, k: k, counts: counts, z: z}
	o.q = g.value(name, z.Dims, o, z)
	o.q.wide = z.wide
	return Quantized{Q: o.q, op: o}
}

type roundOp struct {
	id     string
	k      gpu.Scalar
	counts *Block
	z, q   *Value
}

func (o *roundOp) out() []*Value    { return []*Value{o.q} }
func (o *roundOp) replay(*lowering) {}

func (o *roundOp) forward(l *lowering) {
	z, q := l.need(o.z), l.y(o.q)
	idx := l.buffer(o.id+" codes", Activations, 4*int64(o.z.Voxels()))
	idx.kept = true
	l.stats[o] = idx
	l.at[o.q] = q
	count := l.train && o.counts != nil
	l.emit(instr{kind: "round", name: o.id, out: q, reads: []*buffer{z.buf}, writes: []*buffer{q.buf, idx},
		run: func(e gpu.Engine, _ *Call) {
			counts := gpu.Ptr(-1)
			if count {
				counts = o.counts.At
			}
			e.Round(o.k, z.Tensor, idx.at, q.Tensor, counts)
		}})
}

func (o *roundOp) backward(l *lowering) {
	dq := l.grad[o.q]
	if dq == nil || !l.wants(o.z) {
		return
	}
	z, dz := l.need(o.z), l.dy(o.z)
	l.emit(instr{kind: "round.grad", name: o.id, out: dz, reads: []*buffer{z.buf, dq.buf}, writes: []*buffer{dz.buf}, over: []*tensor{dq},
		run: func(e gpu.Engine, _ *Call) { e.RoundGrad(o.k, z.Tensor, dq.Tensor, dz.Tensor) }})
	l.gradient(o.z, dz)
}
