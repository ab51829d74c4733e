package nn

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/flowrun/flowrun/gpu"
)

// Recompute says what of the forward pass is computed again in the backward pass instead of being kept.
type Recompute uint8

// The policies. None of them changes a bit of any result.
const (
	Auto  Recompute = iota // as little as fits MemoryLimit; nothing where that is 0
	None                   // keep all
	Norms                  // outputs of all norms
	All                    // also the first convolution of residual blocks at full resolution
)

// Options say how a graph is compiled.
type Options struct {
	Train       bool // with a backward pass
	Recompute   Recompute
	MemoryLimit int64 // bytes of the program's region, for Auto; 0 is no limit
}

// Program is a graph compiled: instructions over buffers with fixed places in one region. It belongs to one graph and is not for
// concurrent use.
type Program struct {
	Name string // for plans: "train 2×128×256×256"

	ins        []instr
	convs      []*packs
	buffers    []*buffer
	tensors    []*tensor
	at         map[*Value]*tensor
	results    *buffer // floats that ops leave for the host; nil for none
	left       int     // how many
	codes      map[op]*buffer
	numbers    []number
	given      *buffer
	values     []float32 // of the numbers, in a run
	recomputed []string
	size       int64
	peakAt     int
	live       [kinds]int64
}

// Call is what may change from one run of a program to the next.
type Call struct {
	// Share multiplies the gradient of every loss: a micro-batch's part of the batch. It doesn't change the scalars.
	Share float64
	// After is called behind each op, if it isn't nil. It may read the op's output.
	After func(Op)
}

// Op is an executed op, for timing and dumps.
type Op struct {
	Index  int
	Kind   string      // conv, conv.grad_input, norm.apply, …
	Name   string      // of the graph's op
	FLOPs  int64       // of convolutions
	Bytes  int64       // read and written
	Output *gpu.Tensor // nil where it is none
}

// Compile turns a graph into a program. Where no recomputing makes an Auto program fit the limit, it returns the smallest; Bytes says so.
func Compile(g *Graph, s Sizes, o Options) (*Program, error) {
	if g.err != nil {
		return nil, g.err
	}
	fuse(g)
	var best *Program
	for _, again := range recomputations(g, o) {
		p := compile(g, s, o.Train, again)
		if best == nil || p.size < best.size {
			best = p
		}
		if o.MemoryLimit == 0 || best.size <= o.MemoryLimit {
			break
		}
	}
	return best, nil
}

// recomputations are the sets of values to try, in order.
func recomputations(g *Graph, o Options) []map[*Value]bool {
	if !o.Train || o.Recompute == None {
		return []map[*Value]bool{nil}
	}
	all := candidates(g)
	upTo := func(n int) map[*Value]bool {
		m := map[*Value]bool{}
		for _, v := range all[:n] {
			m[v] = true
		}
		return m
	}
	norms := slices.IndexFunc(all, func(v *Value) bool { _, conv := v.by.(*convOp); return conv })
	if norms < 0 {
		norms = len(all)
	}
	switch o.Recompute {
	case Norms:
		return []map[*Value]bool{upTo(norms)}
	case All:
		return []map[*Value]bool{upTo(len(all))}
	}
	var tries []map[*Value]bool
	for n := range len(all) + 1 {
		tries = append(tries, upTo(n))
	}
	return tries
}

func compile(g *Graph, s Sizes, train bool, again map[*Value]bool) *Program {
	l := lower(g, s, train, again)
	lives(l)
	reuse(l)
	p := &Program{ins: l.program, convs: l.convs, buffers: l.buffers, tensors: l.tensors, at: l.at,
		results: l.results, left: g.results, codes: l.stats, numbers: l.numbers, given: l.given, values: make([]float32, len(l.numbers)), size: place(l)}
	p.peakAt, p.live = peak(l)
	for v := range again {
		p.recomputed = append(p.recomputed, v.Name)
	}
	slices.Sort(p.recomputed)
	return p
}

// Bytes is the size of the region.
func (p *Program) Bytes() int64 { return p.size }

// Recomputed names the values that the backward pass computes again.
func (p *Program) Recomputed() []string { return p.recomputed }

// FLOPs is the work of the convolutions: of the forward pass, and of a whole run with what is recomputed.
func (p *Program) FLOPs() (forward, total int64) {
	for _, in := range p.ins {
		if !in.back {
			forward += in.flops
		}
		total += in.flops
	}
	return forward, total
}

// Bind puts the program's region at a place in the arena.
func (p *Program) Bind(region gpu.Ptr) {
	for _, b := range p.buffers {
		b.at = region + gpu.Ptr(b.root().off+b.part)
	}
	for _, t := range p.tensors {
		t.At = t.buf.at
	}
}

// Pack packs the weights of all convolutions. It is wanted after the weights changed or another program ran in the region. With sets it
// packs theirs only: those that changed while no other program ran.
func (p *Program) Pack(e gpu.Engine, sets ...*Params) {
	for _, c := range p.convs {
		if len(sets) > 0 && !slices.Contains(sets, c.w.set) {
			continue
		}
		backward := gpu.Ptr(-1)
		if c.backward != nil {
			backward = c.backward.at
		}
		e.PackConv(c.conv, c.w.weight(), c.forward.at, backward)
	}
}

// Store sets an input from dense data that was uploaded.
func (p *Program) Store(e gpu.Engine, v *Value, src gpu.Ptr) { e.Store(src, p.at[v].Tensor) }

// Write sets an input: dense [N, D, H, W, C].
func (p *Program) Write(e gpu.Engine, v *Value, src []float32) { e.WriteTensor(p.at[v].Tensor, src) }

// Read reads a kept value after a run: dense [N, D, H, W, C].
func (p *Program) Read(e gpu.Engine, v *Value, dst []float32) { e.ReadTensor(dst, p.at[v].Tensor) }

// Results copies to dst in the arena, where there is room for so many floats, what a run left for the host: the graph's Results.
func (p *Program) Results(e gpu.Engine, dst gpu.Ptr, room int) {
	if p.left > room {
		panic(fmt.Sprintf("nn: %s leaves %d floats where there is room for %d", p.Name, p.left, room))
	}
	if p.results != nil {
		e.Copy(dst, p.results.at, p.left)
	}
}

// Pick copies rows of channels of a kept value, which is float32 and has no halo, to dst in the arena: those of the n voxels, counted through
// the value, whose numbers (int32) lie at at.
func (p *Program) Pick(e gpu.Engine, v *Value, dst, at gpu.Ptr, n int) {
	t := p.at[v]
	if t.Halo != 0 || t.Type != gpu.Float32 {
		panic(fmt.Sprintf("nn: rows of %s, which has a halo of %d and is %v", v.Name, t.Halo, t.Type))
	}
	e.Gather(dst, t.At, t.C, at, n)
}

// PickCodes likewise copies the index of those voxels' codes.
func (p *Program) PickCodes(e gpu.Engine, q Quantized, dst, at gpu.Ptr, n int) {
	e.Gather(dst, p.codes[q.op].at, 1, at, n)
}

// Codes reads the index of each voxel's code: [N, D, H, W].
func (p *Program) Codes(e gpu.Engine, q Quantized, dst []int32) { e.Codes(dst, p.codes[q.op].at) }

// Run executes the program.
func (p *Program) Run(e gpu.Engine, c *Call) { p.run(e, c, len(p.ins)) }

// RunTo executes the program until a value of the forward pass is known.
func (p *Program) RunTo(e gpu.Engine, c *Call, v *Value) {
	for i, in := range p.ins {
		if in.out == p.at[v] {
			p.run(e, c, i+1)
			return
		}
	}
}

func (p *Program) run(e gpu.Engine, c *Call, n int) {
	p.give(e, c)
	if r, ok := e.(gpu.Recorder); ok && c.After == nil {
		r.Replay(recordingKey{p, n}, func() { p.ops(e, c, n) })
		return
	}
	p.ops(e, c, n)
}

// recordingKey tells an engine which calls may be those of the last time: the first n ops of a program.
type recordingKey struct {
	p *Program
	n int
}

func (p *Program) ops(e gpu.Engine, c *Call, n int) {
	for i := range n {
		p.ins[i].run(e, c)
		if c.After != nil {
			c.After(p.op(i))
		}
	}
}

// give writes the run's numbers.
func (p *Program) give(e gpu.Engine, c *Call) {
	if p.given == nil {
		return
	}
	for i, n := range p.numbers {
		x := n.constant
		if n.by != nil {
			x *= n.by.Value
		}
		if n.shared {
			x *= c.Share
		}
		p.values[i] = float32(x)
	}
	e.Write(p.given.at, p.values)
}

func (p *Program) op(i int) Op {
	in := &p.ins[i]
	o := Op{Index: i, Kind: in.kind, Name: in.name, FLOPs: in.flops}
	for _, b := range in.reads {
		o.Bytes += b.bytes
	}
	for _, b := range in.writes {
		o.Bytes += b.bytes
	}
	if in.out != nil {
		o.Output = &in.out.Tensor
	}
	return o
}

// Timing is what an op took in a run, or, without a name, what all of a kind took.
type Timing struct {
	Kind, Name string
	Calls      int
	Took       time.Duration
	FLOPs      int64
	Bytes      int64
}

// Profile runs the program and returns what each op took, in order: by the device's clock, where the engine has one, from the end of the op
// before it; else by the host's, with a wait behind each op.
func (p *Program) Profile(e gpu.Engine, c Call) ([]Timing, error) {
	if err := e.Sync(); err != nil {
		return nil, err
	}
	out := make([]Timing, 0, len(p.ins))
	note := func(o Op, took time.Duration) {
		out = append(out, Timing{o.Kind, o.Name, 1, took, o.FLOPs, o.Bytes})
	}
	clock, ticks := e.(gpu.Clock)
	if ticks {
		clock.Mark(0)
	}
	start := time.Now()
	c.After = func(o Op) {
		if ticks {
			note(o, 0)
			clock.Mark(len(out))
			return
		}
		if err := e.Sync(); err != nil {
			return // Sync says it again below
		}
		now := time.Now()
		note(o, now.Sub(start))
		start = now
	}
	p.Run(e, &c)
	if err := e.Sync(); err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	for i := range out {
		if !ticks {
			break
		}
		var err error
		if out[i].Took, err = clock.Elapsed(i, i+1); err != nil {
			return nil, fmt.Errorf("profile: %w", err)
		}
	}
	return out, nil
}

// ByKind sums timings up by kind, longest first.
func ByKind(list []Timing) []Timing {
	by := map[string]*Timing{}
	for _, one := range list {
		t := by[one.Kind]
		if t == nil {
			t = &Timing{Kind: one.Kind}
			by[one.Kind] = t
		}
		t.Calls, t.Took, t.FLOPs, t.Bytes = t.Calls+one.Calls, t.Took+one.Took, t.FLOPs+one.FLOPs, t.Bytes+one.Bytes
	}
	out := make([]Timing, 0, len(by))
	for _, t := range slices.SortedFunc(maps.Values(by), func(a, b *Timing) int { return cmp.Compare(b.Took, a.Took) }) {
		out = append(out, *t)
	}
	return out
}
