package nn

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flowrun/flowrun/gpu"
	"pgregory.net/rapid"
)

var (
	k1, k3, k4 = [3]int{1, 1, 1}, [3]int{3, 3, 3}, [3]int{4, 4, 4}
	s1, s2     = [3]int{1, 1, 1}, [3]int{2, 2, 2}
)

// model is a random graph: convolutions of all kinds, norms, sums with earlier values, now and then a quantiser.
func model(t *rapid.T, params *Params, block func(n int) *Block) (*Graph, []*Value) {
	g := NewGraph(params)
	d := gpu.Dims{N: rapid.IntRange(1, 2).Draw(t, "n"), D: 8, H: 8, W: 8, C: 1}
	x, target := g.Input("input", d), g.Input("target", d)
	all := []*Value{g.Conv("first", x, Conv{Channels: 2, Kernel: k3, Stride: s1})}
	for i := range rapid.IntRange(1, 12).Draw(t, "ops") {
		v := all[len(all)-1]
		name := fmt.Sprint("op", i)
		pick := rapid.SampledFrom([]string{"norm", "conv", "residual", "down", "flat", "up", "add", "quantize"}).Draw(t, name)
		switch {
		case pick == "norm":
			v = g.NormAct(name, v, gpu.Norm{Eps: 1})
		case pick == "conv":
			v = g.Conv(name, v, Conv{Channels: 2, Kernel: k3, Stride: s1})
		case pick == "residual":
			h := g.NormAct(name+".norm1", v, gpu.Norm{Eps: 1})
			h = g.Conv(name+".conv1", h, Conv{Channels: v.C, Kernel: k3, Stride: s1})
			h = g.NormAct(name+".norm2", h, gpu.Norm{Eps: 1})
			h = g.Conv(name+".conv2", h, Conv{Channels: v.C, Kernel: k3, Stride: s1})
			v = g.Add(name, v, h)
		case pick == "down" && v.W > 2:
			v = g.Conv(name, v, Conv{Channels: v.C + 1, Kernel: k4, Stride: s2})
		case pick == "flat":
			v = g.Conv(name, v, Conv{Channels: 2, Kernel: k4, Stride: s1})
		case pick == "up" && v.W < 8:
			v = g.Conv(name, v, Conv{Channels: 2, Kernel: k4, Stride: s2, Transposed: true})
		case pick == "quantize":
			k := gpu.Quantizer{Codes: 3, Dim: v.C}
			v = g.Quantize(name, v, Codebook{Quantizer: k, Codes: block(3 * v.C)}, 0.25).Q
		case pick == "add":
			if j := slices.IndexFunc(all, func(a *Value) bool { return a.Dims == v.Dims }); j >= 0 {
				v = g.Add(name, all[j], v)
			}
		}
		if rapid.IntRange(0, 9).Draw(t, name+" kept") == 0 {
			g.Keep(v)
		}
		all = append(all, v)
	}
	v := all[len(all)-1]
	for i := 0; v.W < 8; i++ {
		v = g.Conv(fmt.Sprint("back", i), v, Conv{Channels: 2, Kernel: k4, Stride: s2, Transposed: true})
	}
	y := g.Conv("last", v, Conv{Channels: 1, Kernel: k3, Stride: s1})
	g.ReconLoss("loss", y, target, 1, 0)
	var kept []*Value
	for _, v := range g.values {
		if v.kept {
			kept = append(kept, v)
		}
	}
	return g, kept
}

func TestEveryOpFindsWhatItReads(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var params Params
		var layout Layout
		g, kept := model(t, &params, func(n int) *Block { return layout.Add("codes", Codes, 4*int64(n)) })
		o := Options{Train: rapid.Bool().Draw(t, "train"), Recompute: Recompute(rapid.IntRange(1, 3).Draw(t, "recompute"))}
		p, err := Compile(g, newLedger(0), o)
		if err != nil {
			t.Fatal(err)
		}
		layout.Bind(p)
		e := newLedger(layout.Bytes())
		p.Pack(e)
		for range 2 { // as micro-batches do, without packing again
			for _, v := range g.inputs {
				p.Write(e, v, nil)
			}
			p.Run(e, &Call{Share: 1})
			for _, v := range kept {
				e.expect("host", e.bytes(p.at[v].Tensor), e.tensor(p.at[v].Tensor), p.at[v].At)
			}
		}
		if len(e.faults) > 0 {
			t.Fatal(strings.Join(e.faults, "\n"))
		}
		noOverlap(t, p)
		plan := layout.Plan()
		var sum int64
		for _, k := range plan.Kinds {
			sum += k.Bytes
		}
		if sum != plan.Total || plan.Programs[0].Live > plan.Programs[0].Bytes {
			t.Fatalf("kinds sum to %d of %d; live %d of %d", sum, plan.Total, plan.Programs[0].Live, plan.Programs[0].Bytes)
		}
	})
}

// noOverlap says that no two buffers that live at once share a byte.
func noOverlap(t *rapid.T, p *Program) {
	for i, a := range p.buffers {
		for _, b := range p.buffers[:i] {
			if a.into != nil || b.into != nil || a.last < b.first || b.last < a.first {
				continue
			}
			if a.off < b.off+b.bytes && b.off < a.off+a.bytes {
				t.Fatalf("%s [%d, %d] and %s [%d, %d] share memory", a.name, a.first, a.last, b.name, b.first, b.last)
			}
		}
	}
}

// TestBranches holds the cases that the models don't have and random graphs rarely draw.
func TestBranches(t *testing.T) {
	conv := func(k [3]int) Conv { return Conv{Channels: 1, Kernel: k, Stride: s1} }
	for name, build := range map[string]func(g *Graph, x *Value) *Value{
		"a convolution adds its own input": func(g *Graph, x *Value) *Value {
			a := g.Conv("a", x, conv(k3))
			return g.Add("s", a, g.Conv("b", a, conv(k3)))
		},
		"the sum has a halo, the operand none, and both take one aligned piece": func(g *Graph, x *Value) *Value {
			return g.Add("s", g.Conv("a", x, conv(k1)), g.Conv("b", x, conv(k1)))
		},
		"the added operand's gradient wants the larger halo": func(g *Graph, x *Value) *Value {
			f := g.Conv("f", x, conv(k3))
			return g.Add("s", g.Conv("a", f, conv(k4)), g.Conv("b", f, conv(k3)))
		},
		"the convolution's output is read by another, too": func(g *Graph, x *Value) *Value {
			a := g.Conv("a", x, conv(k3))
			c := g.Conv("c", a, conv(k3))
			return g.Add("t", g.Add("s", a, c), g.NormAct("n", c, gpu.Norm{Eps: 1}))
		},
		"two readers want different halos": func(g *Graph, x *Value) *Value {
			a := g.Conv("a", x, conv(k1))
			return g.Add("s", g.Conv("b", a, conv(k4)), g.Conv("c", a, conv(k3)))
		},
		"a value is added to itself": func(g *Graph, x *Value) *Value {
			a := g.Conv("a", x, conv(k3))
			return g.Add("s", a, a)
		},
	} {
		for _, o := range []Options{{}, {Train: true}, {Train: true, Recompute: All}} {
			g := NewGraph(&Params{})
			d := gpu.Dims{N: 1, D: 1, H: 1, W: 2, C: 1}
			x, target := g.Input("x", d), g.Input("target", d)
			g.ReconLoss("loss", g.Conv("last", build(g, x), conv(k3)), target, 1, 0)
			p, err := Compile(g, newLedger(0), o)
			if err != nil {
				t.Fatal(err)
			}
			if e := books(p, g); len(e.faults) > 0 {
				t.Errorf("%s, %+v: %s", name, o, strings.Join(e.faults, "\n"))
			}
		}
	}
}

// books runs a program on a ledger.
func books(p *Program, g *Graph) *ledger {
	p.Bind(0)
	e := newLedger(p.Bytes())
	p.Pack(e)
	for _, v := range g.inputs {
		p.Write(e, v, nil)
	}
	p.Run(e, &Call{Share: 1})
	return e
}

// tower is a conv, two residual blocks at one resolution and a last conv.
func tower(g *Graph, channels int) {
	d := gpu.Dims{N: 1, D: 8, H: 8, W: 8, C: 1}
	x, target := g.Input("input", d), g.Input("target", d)
	h := g.Conv("first", x, Conv{Channels: channels, Kernel: k3, Stride: s1})
	for i := range 2 {
		n := fmt.Sprint("res", i)
		r := g.NormAct(n+".norm1", h, gpu.Norm{Eps: 1})
		r = g.Conv(n+".conv1", r, Conv{Channels: channels, Kernel: k3, Stride: s1})
		r = g.NormAct(n+".norm2", r, gpu.Norm{Eps: 1})
		r = g.Conv(n+".conv2", r, Conv{Channels: channels, Kernel: k3, Stride: s1})
		h = g.Add(n, h, r)
	}
	y := g.Conv("last", h, Conv{Channels: 1, Kernel: k3, Stride: s1})
	g.ReconLoss("loss", y, target, 1, 0)
}

func compileTower(t *testing.T, o Options) (*Program, *ledger) {
	t.Helper()
	g := NewGraph(&Params{})
	tower(g, 4)
	p, err := Compile(g, newLedger(0), o)
	if err != nil {
		t.Fatal(err)
	}
	e := books(p, g)
	if len(e.faults) > 0 {
		t.Fatal(strings.Join(e.faults, "\n"))
	}
	return p, e
}

func TestResidualSumsAreFused(t *testing.T) {
	_, e := compileTower(t, Options{Train: true, Recompute: None})
	for op, want := range map[string]int{"conv": 6, "conv add": 2, "add": 0, "norm": 4, "norm apply": 0, "norm grad": 4,
		"norm grad add": 2, "grad weight": 6, "grad input": 5, "loss": 1} {
		if e.calls[op] != want {
			t.Errorf("%d × %s, want %d", e.calls[op], op, want)
		}
	}
}

func TestRecomputeSavesMemoryAndCostsWork(t *testing.T) {
	none, _ := compileTower(t, Options{Train: true, Recompute: None})
	norms, en := compileTower(t, Options{Train: true, Recompute: Norms})
	all, ea := compileTower(t, Options{Train: true, Recompute: All})
	// Of one size T each: none keeps first, 2 × (norm1, conv1, norm2, res); norms keeps first and 2 × (conv1, res); all keeps first and
	// 2 × res; each has one or two gradients beside.
	if all.Bytes() >= norms.Bytes() || norms.Bytes() >= none.Bytes() {
		t.Errorf("%d bytes, recomputing norms %d, all %d", none.Bytes(), norms.Bytes(), all.Bytes())
	}
	if en.calls["norm apply"] != 4 || en.calls["conv"] != 6 {
		t.Errorf("norms: %v", en.calls)
	}
	if ea.calls["conv"] != 8 || ea.calls["norm apply"] != 6 { // norm1 once for conv1's replay, once for its weights
		t.Errorf("all: %v", ea.calls)
	}
	forward, total := all.FLOPs()
	if f, n := none.FLOPs(); f != forward || n >= total {
		t.Errorf("%d and %d FLOPs forward, %d and %d in all", f, forward, n, total)
	}
	if got := len(all.Recomputed()); got != 6 {
		t.Errorf("recomputes %v", all.Recomputed())
	}
}

func TestAutoRecomputesAsLittleAsFits(t *testing.T) {
	none, _ := compileTower(t, Options{Train: true, Recompute: None})
	all, _ := compileTower(t, Options{Train: true, Recompute: All})
	for limit := all.Bytes() - 1; limit <= none.Bytes(); limit += (none.Bytes() - all.Bytes()) / 4 {
		p, _ := compileTower(t, Options{Train: true, MemoryLimit: limit})
		if limit >= all.Bytes() && p.Bytes() > limit {
			t.Errorf("%d bytes for a limit of %d", p.Bytes(), limit)
		}
	}
	free, _ := compileTower(t, Options{Train: true})
	tight, _ := compileTower(t, Options{Train: true, MemoryLimit: 1})
	if len(free.Recomputed()) != 0 || tight.Bytes() != all.Bytes() {
		t.Errorf("free recomputes %v, tight has %d bytes (want %d)", free.Recomputed(), tight.Bytes(), all.Bytes())
	}
}

func TestWrongShapesAreErrors(t *testing.T) {
	d := gpu.Dims{N: 1, D: 8, H: 6, W: 5, C: 4}
	book := &Block{Bytes: 1 << 10}
	for _, c := range []struct {
		want  string
		build func(g *Graph, x *Value)
	}{
		{"c: 5 along x isn't a multiple of the stride 2", func(g *Graph, x *Value) { g.Conv("c", x, Conv{Channels: 1, Kernel: k4, Stride: s2}) }},
		{"c: kernel [5 5 5] stride [1 1 1]", func(g *Graph, x *Value) {
			g.Conv("c", x, Conv{Channels: 1, Kernel: [3]int{5, 5, 5}, Stride: s1})
		}},
		{"c: kernel [3 3 3] stride [1 1 1]", func(g *Graph, x *Value) {
			g.Conv("c", x, Conv{Channels: 1, Kernel: k3, Stride: s1, Transposed: true})
		}},
		{"c: 0 channels", func(g *Graph, x *Value) { g.Conv("c", x, Conv{Kernel: k1, Stride: s1}) }},
		{"n: 3 groups don't divide 4 channels", func(g *Graph, x *Value) { g.NormAct("n", x, gpu.Norm{Groups: 3}) }},
		{"a: sum of", func(g *Graph, x *Value) { g.Add("a", x, g.Conv("c", x, Conv{Channels: 1, Kernel: k1, Stride: s1})) }},
		{"c: the name is used twice", func(g *Graph, x *Value) {
			g.Conv("c", x, Conv{Channels: 1, Kernel: k1, Stride: s1})
			g.Conv("c", x, Conv{Channels: 1, Kernel: k1, Stride: s1})
		}},
		{"d: x is padded in two ways", func(g *Graph, x *Value) {
			g.Conv("c", x, Conv{Channels: 1, Kernel: k3, Stride: s1})
			g.Conv("d", x, Conv{Channels: 1, Kernel: k3, Stride: s1, Pad: gpu.Replicate})
		}},
		{"q: codebook of 3 codes × 5 for 4 channels", func(g *Graph, x *Value) {
			g.Quantize("q", x, Codebook{Quantizer: gpu.Quantizer{Codes: 3, Dim: 5}, Codes: book}, 0)
		}},
		{"q: counts and sums come together", func(g *Graph, x *Value) {
			g.Quantize("q", x, Codebook{Quantizer: gpu.Quantizer{Codes: 3, Dim: 4}, Codes: book, Counts: book}, 0)
		}},
		{"l: loss between", func(g *Graph, x *Value) {
			g.ReconLoss("l", x, g.Conv("c", x, Conv{Channels: 1, Kernel: k1, Stride: s1}), 1, 0)
		}},
		{"y: dims", func(g *Graph, x *Value) { g.Input("y", gpu.Dims{N: 1}) }},
		// The first fault is the one that is told, and what comes after it doesn't panic.
		{"c: 0 channels", func(g *Graph, x *Value) {
			y := g.Conv("c", x, Conv{Kernel: k1, Stride: s1})
			z := g.NormAct("n", g.Add("a", y, y), gpu.Norm{})
			g.Keep(z)
			g.ReconLoss("l", z, g.Quantize("q", z, Codebook{}, 0).Q, 1, 0)
		}},
	} {
		g := NewGraph(&Params{})
		c.build(g, g.Input("x", d))
		if _, err := Compile(g, newLedger(0), Options{}); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("error %v, want %s…", err, c.want)
		}
	}
}

func TestParametersAreSharedByNameAndShape(t *testing.T) {
	var params Params
	for n := range 2 {
		g := NewGraph(&params)
		g.Conv("c", g.Input("x", gpu.Dims{N: n + 1, D: 4, H: 4, W: 4, C: 3}), Conv{Channels: 5, Kernel: k3, Stride: s1})
		if g.Err() != nil {
			t.Fatal(g.Err())
		}
	}
	if len(params.All()) != 2 || params.Count() != 27*15+5 || params.Floats() != 448+64 {
		t.Errorf("%d parameters of %d elements in %d floats", len(params.All()), params.Count(), params.Floats())
	}
	g := NewGraph(&params)
	g.Conv("c", g.Input("x", gpu.Dims{N: 1, D: 4, H: 4, W: 4, C: 2}), Conv{Channels: 5, Kernel: k3, Stride: s1})
	if g.Err() == nil {
		t.Error("another shape under one name is accepted")
	}
}

func TestSamePadding(t *testing.T) {
	for _, c := range []struct {
		k, s       int
		transposed bool
		lo         int
	}{{1, 1, false, 0}, {3, 1, false, 1}, {4, 2, false, 1}, {4, 1, false, 2}, {4, 2, true, 1}, {4, 1, true, 1}} {
		if got := (Conv{Kernel: [3]int{c.k}, Stride: [3]int{c.s}, Transposed: c.transposed}).lo(0); got != c.lo {
			t.Errorf("%+v: Lo %d", c, got)
		}
	}
}

// idle is a ledger that keeps no books.
type idle struct{ *ledger }

func (idle) Conv(gpu.Conv, gpu.Tensor, gpu.Ptr, gpu.Ptr, *gpu.Tensor, gpu.Tensor)            {}
func (idle) ConvGradInput(gpu.Conv, gpu.Tensor, gpu.Ptr, gpu.Tensor)                         {}
func (idle) ConvGradWeight(gpu.Conv, gpu.Tensor, gpu.Tensor, gpu.Ptr, gpu.Ptr, gpu.Ptr)      {}
func (idle) NormAct(gpu.Norm, gpu.Tensor, gpu.Ptr, gpu.Ptr, gpu.Ptr, gpu.Tensor)             {}
func (idle) NormActApply(gpu.Norm, gpu.Tensor, gpu.Ptr, gpu.Ptr, gpu.Ptr, gpu.Tensor)        {}
func (idle) ReconLoss(_, _ gpu.Tensor, _, _ float32, _ gpu.Ptr, _ *gpu.Tensor, _, _ gpu.Ptr) {}
func (idle) Write(gpu.Ptr, []float32)                                                        {}
func (idle) Add(_, _, _ gpu.Tensor)                                                          {}
func (idle) NormActGrad(_ gpu.Norm, _ gpu.Tensor, _, _, _ gpu.Ptr, _ gpu.Tensor, _ *gpu.Tensor, _ gpu.Tensor, _, _, _ gpu.Ptr) {
}

func TestRunAllocatesNothing(t *testing.T) {
	p, e := compileTower(t, Options{Train: true, Recompute: All})
	call := &Call{Share: 1}
	var engine gpu.Engine = idle{e}
	if n := testing.AllocsPerRun(10, func() { p.Run(engine, call) }); n != 0 {
		t.Errorf("%v allocations a run", n)
	}
}

func TestAfterSeesEveryOp(t *testing.T) {
	p, e := compileTower(t, Options{Train: true, Recompute: Norms})
	var flops int64
	n := 0
	p.Run(e, &Call{Share: 1, After: func(o Op) {
		if o.Index != n || o.Kind == "" || o.Name == "" || o.Bytes <= 0 {
			t.Errorf("op %d: %+v", n, o)
		}
		n++
		flops += o.FLOPs
	}})
	if _, total := p.FLOPs(); n != len(p.ins) || flops != total {
		t.Errorf("saw %d of %d ops, %d of %d FLOPs", n, len(p.ins), flops, total)
	}
	var last time.Duration
	timings, err := p.Profile(e, Call{Share: 1})
	if err != nil {
		t.Fatal(err)
	}
	if len(timings) != n {
		t.Errorf("profile has %d of %d ops", len(timings), n)
	}
	calls, kinds := 0, map[string]bool{}
	for i, x := range ByKind(timings) {
		if kinds[x.Kind] || x.Name != "" || i > 0 && x.Took > last {
			t.Errorf("%+v is there twice, or behind one that took %v", x, last)
		}
		calls, kinds[x.Kind], last = calls+x.Calls, true, x.Took
	}
	if calls != n {
		t.Errorf("by kind there are %d of %d ops", calls, n)
	}
}

func TestPlanIsTheArena(t *testing.T) {
	var layout Layout
	var params Params
	g := NewGraph(&params)
	tower(g, 4)
	p, err := Compile(g, newLedger(0), Options{Train: true})
	if err != nil {
		t.Fatal(err)
	}
	p.Name = "train"
	layout.Add("weights", Parameters, params.Bytes())
	layout.Bind(p)
	plan := layout.Plan()
	if plan.Total != params.Bytes()+p.Bytes() || plan.Of(Parameters) != params.Bytes() || plan.Of(Packed) == 0 {
		t.Errorf("%+v", plan)
	}
	var text strings.Builder
	if err := plan.Write(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"arena", "parameters", "activations", "train", "peak at"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("plan without %q:\n%s", want, text.String())
		}
	}
}
