package nn

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/flowrun/flowrun/gpu"
)

// Sizes is what planning asks of an engine; every gpu.Engine answers it before anything is reserved.
type Sizes interface {
	Native() gpu.Type
	Bytes(d gpu.Dims, halo int, t gpu.Type) int64
	ConvSizes(c gpu.Conv) gpu.ConvSizes
	NormStats(n gpu.Norm, d gpu.Dims) int64
	NormWork(n gpu.Norm, d gpu.Dims) int64
	QuantizeWork(k gpu.Quantizer, d gpu.Dims) int64
	LossWork(d gpu.Dims) int64
	SimilarityWork(s gpu.Similarity, d gpu.Dims) int64
	SumSquaresWork(n int) int64
}

// buffer is a stretch of the program's region for the instructions from first to last.
type buffer struct {
	name        string
	kind        Kind
	bytes       int64
	first, last int // instructions; -1 is before the first, len(program) after the last
	kept        bool
	whole       bool // lives through the whole program
	off         int64
	at          gpu.Ptr // once bound
	into        *buffer // the buffer whose memory this one took over, or is part of
	part        int64   // where in it
}

func (b *buffer) root() *buffer {
	for b.into != nil {
		b = b.into
	}
	return b
}

// tensor is a value's or a gradient's place. A value that is recomputed has several in turn.
type tensor struct {
	gpu.Tensor
	buf *buffer
}

// instr is one call of the engine.
type instr struct {
	kind, name    string
	back          bool
	flops         int64
	out           *tensor
	reads, writes []*buffer
	over          []*tensor // operands whose memory out may take if they die here
	run           func(e gpu.Engine, c *Call)
}

// packs are packed weights, for all convolutions of one kind with them.
type packs struct {
	conv              gpu.Conv // of the first, with its type
	w                 *Param
	forward, backward *buffer // backward is nil where no input gradient is wanted
}

// packing is what packed weights depend on.
type packing struct {
	w    *Param
	kind gpu.Conv // without the extent
}

type lowering struct {
	sizes   Sizes
	train   bool
	program []instr
	buffers []*buffer
	tensors []*tensor
	at      map[*Value]*tensor // where a value is now
	grad    map[*Value]*tensor // its gradient, as far as it is known
	left    map[*Scalars]*buffer
	results *buffer        // of which those are parts; nil where ops leave nothing
	stats   map[op]*buffer // what an op's forward leaves for its backward
	packed  map[packing]*packs
	convs   []*packs
	halos   map[*Value]int  // of gradients
	again   map[*Value]bool // recomputed in the backward pass
	player  *Params         // whose loss the backward pass is of
	back    bool            // what is emitted now belongs to a backward pass
	numbers []number        // what a run writes to given
	given   *buffer         // nil where there are none
}

// lower emits the instructions of a graph.
func lower(g *Graph, s Sizes, train bool, again map[*Value]bool) *lowering {
	l := &lowering{sizes: s, train: train, again: again, at: map[*Value]*tensor{}, grad: map[*Value]*tensor{},
		left: map[*Scalars]*buffer{}, stats: map[op]*buffer{}, packed: map[packing]*packs{}, player: g.main,
		halos: map[*Value]int{}}
	if g.results > 0 {
		l.results = l.buffer("results", Activations, 4*int64(g.results))
		l.results.whole = true
	}
	for _, v := range g.inputs {
		t := l.tensor(v.Name, Inputs, gpu.Tensor{Dims: v.Dims, Halo: v.halo, Pad: v.pad, Type: l.kind(v)})
		t.buf.first = -1
		l.at[v] = t
	}
	for _, o := range g.ops {
		o.forward(l)
	}
	if train {
		for v := range again {
			delete(l.at, v)
		}
		l.sweep(g.main, g.ops)
	}
	for _, v := range g.values {
		if t := l.at[v]; t != nil && v.kept {
			t.buf.kept = true
		}
	}
	return l
}

// sweep emits the backward pass of ops for a set's losses. What it finds of the gradients of values from before the ops
// stays in l.grad.
func (l *lowering) sweep(player *Params, ops []op) {
	was, back := l.player, l.back
	l.player, l.back = player, true
	for _, o := range slices.Backward(ops) {
		o.backward(l)
		for _, v := range o.out() {
			delete(l.grad, v)
		}
	}
	l.player, l.back = was, back
}

// wants reports whether the losses that are being served have a gradient with respect to a value.
func (l *lowering) wants(v *Value) bool { return v.depends(l.player) }

func (l *lowering) emit(in instr) {
	in.back = l.back
	l.program = append(l.program, in)
}

func (l *lowering) buffer(name string, kind Kind, bytes int64) *buffer {
	b := &buffer{name: name, kind: kind, bytes: align(bytes), first: len(l.program), last: len(l.program)}
	l.buffers = append(l.buffers, b)
	return b
}

// scalars is the place of what an op leaves for the host.
func (l *lowering) scalars(name string, s *Scalars) *buffer {
	b := l.buffer(name, Activations, 4*int64(s.n))
	b.into, b.part = l.results, 4*int64(s.at)
	l.left[s] = b
	return b
}

func (l *lowering) tensor(name string, kind Kind, t gpu.Tensor) *tensor {
	r := &tensor{Tensor: t, buf: l.buffer(name, kind, l.sizes.Bytes(t.Dims, t.Halo, t.Type))}
	l.tensors = append(l.tensors, r)
	return r
}

// kind is the type that a value and its gradient are stored in.
func (l *lowering) kind(v *Value) gpu.Type {
	if v.wide {
		return gpu.Float32
	}
	return l.sizes.Native()
}

// number is the place of a number that a run writes before its first instruction.
func (l *lowering) number(n number) func() gpu.Ptr {
	if l.given == nil {
		l.given = l.buffer("numbers", Inputs, 0)
		l.given.whole = true
	}
	at := gpu.Ptr(4 * len(l.numbers))
	l.numbers = append(l.numbers, n)
	l.given.bytes = align(4 * int64(len(l.numbers)))
	return func() gpu.Ptr { return l.given.at + at }
}

// y is a new place for a value.
func (l *lowering) y(v *Value) *tensor {
	return l.tensor(v.Name, Activations, gpu.Tensor{Dims: v.Dims, Halo: v.halo, Pad: v.pad, Type: l.kind(v)})
}

// dy is a new place for a value's gradient.
func (l *lowering) dy(v *Value) *tensor {
	return l.tensor("∇"+v.Name, Deltas, gpu.Tensor{Dims: v.Dims, Halo: l.reach(v), Pad: gpu.Zero, Type: l.kind(v)})
}

// reach is the halo of a value's gradient: what the input gradient of the convolution that made the value wants. A sum hands
// its gradient on to what it added; and where a norm or a quantiser has the halo of its input's gradient, that can be
// written over it.
func (l *lowering) reach(v *Value) int {
	if h, ok := l.halos[v]; ok {
		return h
	}
	h := 0
	switch o := v.by.(type) {
	case *convOp:
		if h = o.conv.Halo(); o.add != nil {
			h = max(h, l.reach(o.add))
		}
	case *normOp:
		h = l.reach(o.x)
	case *quantizeOp:
		h = l.reach(o.z)
	case *roundOp:
		h = l.reach(o.z)
	case *addOp:
		h = max(l.reach(o.a), l.reach(o.b))
	case *residueOp:
		h = l.reach(o.z)
	case *mapOp:
		if o.overDy || o.adds {
			h = l.reach(o.x)
		}
	case *balanceOp:
		h = l.reach(o.y)
	}
	l.halos[v] = h
	return h
}

// need is where a value is, recomputed if it wasn't kept.
func (l *lowering) need(v *Value) *tensor {
	if t := l.at[v]; t != nil {
		return t
	}
	c, conv := v.by.(*convOp)
	had := conv && l.at[c.x] != nil
	v.by.replay(l)
	if conv && !had && l.again[c.x] {
		// What the convolution read is cheaper to recompute once more than to hold until its weights' gradient wants it.
		delete(l.at, c.x)
	}
	return l.at[v]
}

// gradient adds t to a value's gradient. t may be another value's gradient too: nothing is written in place while it lives.
func (l *lowering) gradient(v *Value, t *tensor) {
	old := l.grad[v]
	if old == nil {
		l.grad[v] = t
		return
	}
	sum := l.dy(v)
	l.sum("∇"+v.Name, old, t, sum)
	l.grad[v] = sum
}

func (l *lowering) sum(name string, a, b, y *tensor) {
	l.emit(instr{kind: "add", name: name, out: y, reads: []*buffer{a.buf, b.buf}, writes: []*buffer{y.buf}, over: []*tensor{a, b},
		run: func(e gpu.Engine, _ *Call) { e.Add(a.Tensor, b.Tensor, y.Tensor) }})
}

// pack is the place of a convolution's packed weights. They stay for the whole program: weights are packed once a step.
func (l *lowering) pack(o *convOp) *packs {
	key := packing{o.w, l.conv(o)}
	key.kind.In, key.kind.Out = gpu.Dims{C: o.conv.In.C}, gpu.Dims{C: o.conv.Out.C}
	if p := l.packed[key]; p != nil {
		return p
	}
	c := l.conv(o)
	p := &packs{conv: c, w: o.w, forward: l.buffer(o.w.Name+" packed", Packed, l.sizes.ConvSizes(c).Packed)}
	p.forward.whole = true
	l.packed[key] = p
	l.convs = append(l.convs, p)
	return p
}

// packBack is the place of the weights packed for the input gradient.
func (l *lowering) packBack(p *packs) *buffer {
	if p.backward == nil {
		p.backward = l.buffer(p.w.Name+" packed for the input gradient", Packed, l.sizes.ConvSizes(p.conv).PackedGrad)
		p.backward.whole = true
	}
	return p.backward
}

// conv is an op's convolution with the type that its input has on the engine.
func (l *lowering) conv(o *convOp) gpu.Conv {
	c := o.conv
	c.Type = l.kind(o.x)
	return c
}

// fuse turns a sum with a convolution's output into the convolution's own addition.
func fuse(g *Graph) {
	defined := map[*Value]int{}
	for i, o := range g.ops {
		for _, v := range o.out() {
			defined[v] = i
		}
	}
	g.ops = slices.DeleteFunc(g.ops, func(o op) bool {
		sum, ok := o.(*addOp)
		if !ok {
			return false
		}
		for _, pair := range [][2]*Value{{sum.b, sum.a}, {sum.a, sum.b}} {
			v, other := pair[0], pair[1]
			c, ok := v.by.(*convOp)
			if !ok || c.add != nil || len(v.uses) != 1 || v.kept || v == other || other.by != nil && defined[other] > defined[v] {
				continue
			}
			c.add, c.y, sum.y.by = other, sum.y, c
			defined[sum.y] = defined[v]
			other.uses[slices.Index(other.uses, o)] = c
			return true
		}
		return false
	})
}

// candidates are the values that a backward pass can recompute, what saves most for the least work first: outputs of norms,
// largest first; then the largest convolutions between two norms (the first ones of residual blocks at full resolution).
func candidates(g *Graph) []*Value {
	var norms, convs []*Value
	largest := 0
	for _, o := range g.ops {
		switch o := o.(type) {
		case *normOp:
			if !o.y.kept {
				norms = append(norms, o.y)
			}
		case *convOp:
			largest = max(largest, o.y.Voxels())
			if _, after := o.x.by.(*normOp); after && o.add == nil && !o.y.kept && !o.x.kept && len(o.y.uses) == 1 {
				if _, before := o.y.uses[0].(*normOp); before {
					convs = append(convs, o.y)
				}
			}
		}
	}
	convs = slices.DeleteFunc(convs, func(v *Value) bool { return v.Voxels() < largest })
	bySize := func(a, b *Value) int { return cmp.Compare(b.Len(), a.Len()) }
	slices.SortStableFunc(norms, bySize)
	return append(norms, convs...)
}

func (in *instr) String() string { return fmt.Sprintf("%s %s", in.kind, in.name) }
