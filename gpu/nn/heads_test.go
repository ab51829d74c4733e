package nn

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"pgregory.net/rapid"
)

// judge is a small discriminator.
func judge(g *Graph, params *Params, scope string, x *Value, volume, batch bool) (logits *Value, features []*Value) {
	kernel, two := [3]int{1, 4, 4}, [3]int{1, 2, 2}
	if volume {
		kernel, two = k4, s2
	}
	name := map[bool]string{false: "image.", true: "volume."}[volume]
	g.With(params, scope, func() {
		h := g.Activate("activation0", g.Conv(name+"conv0", x, Conv{Channels: 2, Kernel: kernel, Stride: two, Margin: 2, Planar: !volume}), 0.2)
		features = append(features, h)
		h = g.Conv(name+"conv1", h, Conv{Channels: 3, Kernel: kernel, Stride: s1, Margin: 2, Planar: !volume})
		if batch {
			h = g.NormAct(name+"norm1", h, gpu.Norm{Batch: true, Plain: true, Eps: 1})
			g.Statistics(h)
		}
		h = g.Activate("activation1", h, 0.2)
		features = append(features, h)
		logits = g.Conv(name+"conv2", h, Conv{Channels: 1, Kernel: kernel, Stride: s1, Margin: 2, Planar: !volume})
	})
	return logits, features
}

// heads are the losses of a GAN, each there or not.
func heads(t *rapid.T, g *Graph, params, judges, frozen *Params, y, target *Value) {
	draw := func(name string) bool { return rapid.Bool().Draw(t, name) }
	var ramp Factor
	own, weighted := y, y
	if draw("balance") {
		b := g.Balance("balance", y, 10, Weight{Constant: 1, By: &ramp})
		own, weighted = b.Plain, b.Weighted
	}
	g.ReconLoss("loss", own, target, 1, 0)
	if draw("similarity") {
		g.Segment(func() {
			g.Similarity("similarity", params, own, target, gpu.Similarity{Weights: []float64{1}}, Weight{Constant: 1})
		})
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "chunks") {
		at := g.Input(fmt.Sprint("chunk", i), gpu.Dims{N: 2 * y.N, D: 1, H: 1, W: 1, C: 1})
		g.Segment(func() {
			features := func(scope string, x *Value) (out []*Value) {
				g.With(frozen, fmt.Sprint(scope, i, " "), func() {
					h := g.Tint("tint", g.Slices("slices", x, i, at), 3)
					h = g.Activate("relu0", g.Conv("vgg0", h, Conv{Channels: 2, Kernel: [3]int{1, 3, 3}, Stride: s1, Planar: true}), 0)
					h2 := g.MaxPool("pool", h)
					out = append(out, h, g.Activate("relu1", g.Conv("vgg1", h2, Conv{Channels: 2, Kernel: [3]int{1, 3, 3}, Stride: s1, Planar: true}), 0))
				})
				return out
			}
			of, on := features("of", own), features("on", target)
			g.With(frozen, fmt.Sprint("distance", i, " "), func() {
				for k := range of {
					g.Perceptual(fmt.Sprint("lin", k), params, of[k], on[k], Weight{Constant: 1, By: &ramp})
				}
			})
		})
	}
	for _, volume := range []bool{false, true} {
		name := fmt.Sprint("volume ", volume, " ")
		if !draw(name) {
			continue
		}
		batch, r1, lecam := draw(name+"batch"), draw(name+"r1"), draw(name+"lecam")
		at := g.Input(name+"at", gpu.Dims{N: 3 * y.N, D: 1, H: 1, W: 1, C: 1})
		g.Segment(func() {
			fake, real := weighted, target
			if !volume {
				fake, real = g.Slices(name+"fake", weighted, 0, at), g.Slices(name+"real", target, 0, at)
			}
			leaf := g.Leaf(real)
			onReal, featuresOfReal := judge(g, judges, name+"on real ", real, volume, batch)
			onFake, features := judge(g, judges, name+"on fake ", fake, volume, batch)
			var anchor *Lecam
			if lecam {
				anchor = &Lecam{Weight: 1, Anchor: &ramp}
			}
			g.Judge(name+"real loss", judges, onReal, gpu.Judge{Side: gpu.OnReal}, Weight{Constant: 1}, anchor)
			g.Judge(name+"fake loss", judges, onFake, gpu.Judge{Side: gpu.OnFake}, Weight{Constant: 1}, anchor)
			if r1 {
				slope := g.Slope(name+"slope", onReal, real, leaf)
				n := g.Nudge(name+"nudge", real, slope, 1, Weight{Constant: 1})
				ahead, _ := judge(g, judges, name+"ahead ", n.Ahead, volume, batch)
				behind, _ := judge(g, judges, name+"behind ", n.Behind, volume, batch)
				g.JudgeAlong(name+"along", judges, ahead, behind, n)
			}
			g.Judge(name+"deceived", params, onFake, gpu.Judge{Side: gpu.OfGenerator}, Weight{Constant: 1, By: &ramp}, nil)
			for i := range features {
				g.Match(fmt.Sprint(name, "features", i), params, features[i], featuresOfReal[i], Weight{Constant: 1})
			}
		})
	}
}

func TestHeadsFindWhatTheyRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var params, judges, frozen Params
		var layout Layout
		g := NewGraph(&params)
		d := gpu.Dims{N: rapid.IntRange(1, 2).Draw(t, "n"), D: 4, H: 6, W: 5, C: 1}
		x, target := g.Input("input", d), g.Input("target", d)
		h := g.Conv("first", x, Conv{Channels: 2, Kernel: k3, Stride: s1})
		switch rapid.IntRange(0, 3).Draw(t, "quantiser") {
		case 1:
			u := g.Unit("unit", h)
			k := gpu.Quantizer{Codes: 3, Dim: 2}
			one := g.Quantize("one", u, Codebook{Quantizer: k, Codes: layout.Add("codes", Codes, 24)}, 0.25)
			two := g.Quantize("two", g.Residue("rest", u, one.Q), Codebook{Quantizer: k, Codes: layout.Add("more codes", Codes, 24), Second: true}, 0.25)
			h = g.Add("both", one.Q, two.Q)
		case 2:
			h = g.Round("round", h, gpu.Scalar{Levels: []int{3, 4}}, nil).Q
		}
		h = g.NormAct("norm", h, gpu.Norm{Eps: 1})
		y := g.Conv("last", h, Conv{Channels: 1, Kernel: k3, Stride: s1})
		if rapid.Bool().Draw(t, "kept") {
			g.Keep(y)
		}
		heads(t, g, &params, &judges, &frozen, y, target)
		p, err := Compile(g, newLedger(0), Options{Train: true, Recompute: Recompute(rapid.IntRange(1, 3).Draw(t, "recompute"))})
		if err != nil {
			t.Fatal(err)
		}
		layout.Bind(p)
		e := newLedger(layout.Bytes())
		p.Pack(e)
		for range 2 {
			for _, v := range g.inputs {
				p.Write(e, v, nil)
			}
			p.Run(e, &Call{Share: 1})
		}
		if len(e.faults) > 0 {
			t.Fatal(strings.Join(e.faults, "\n"))
		}
		noOverlap(t, p)
	})
}

// TestWhoTrains counts the work of a discriminator on its own: its input's gradient is taken for the generator alone, its weights' for
// itself alone, and of a scan neither.
func TestWhoTrains(t *testing.T) {
	var params, judges Params
	g := NewGraph(&params)
	d := gpu.Dims{N: 1, D: 4, H: 4, W: 4, C: 1}
	x, target := g.Input("input", d), g.Input("target", d)
	y := g.Conv("last", x, Conv{Channels: 1, Kernel: k3, Stride: s1})
	g.Segment(func() {
		onReal, _ := judge(g, &judges, "real ", target, true, false)
		onFake, _ := judge(g, &judges, "fake ", y, true, false)
		g.Judge("real loss", &judges, onReal, gpu.Judge{Side: gpu.OnReal}, Weight{Constant: 1}, nil)
		g.Judge("fake loss", &judges, onFake, gpu.Judge{Side: gpu.OnFake}, Weight{Constant: 1}, nil)
		g.Judge("deceived", &params, onFake, gpu.Judge{Side: gpu.OfGenerator}, Weight{Constant: 1}, nil)
	})
	p, err := Compile(g, newLedger(0), Options{Train: true})
	if err != nil {
		t.Fatal(err)
	}
	e := books(p, g)
	if len(e.faults) > 0 {
		t.Fatal(strings.Join(e.faults, "\n"))
	}
	// 3 convolutions a pass. Weights: 2 × 3 of the discriminator, 1 of the generator. Inputs: 2 × 2 within the discriminator's own
	// backward passes, 3 for the generator.
	for op, want := range map[string]int{"conv": 7, "grad weight": 7, "grad input": 7, "judge": 3} {
		if e.calls[op] != want {
			t.Errorf("%d × %s, want %d", e.calls[op], op, want)
		}
	}
	if n := len(p.convs); n != 4 {
		t.Errorf("%d packed weights, want 4: both passes share them", n)
	}
}

// TestSegmentsAreFreeAfterwards says that two heads in a row take the memory of one, and a gradient.
func TestSegmentsAreFreeAfterwards(t *testing.T) {
	size := func(heads int) int64 {
		var params Params
		g := NewGraph(&params)
		d := gpu.Dims{N: 1, D: 8, H: 16, W: 16, C: 1}
		x, target := g.Input("input", d), g.Input("target", d)
		y := g.Conv("last", x, Conv{Channels: 1, Kernel: k3, Stride: s1})
		var judges []*Params
		for i := range heads {
			judges = append(judges, &Params{})
			g.Segment(func() {
				logits, _ := judge(g, judges[i], fmt.Sprint(i, " "), y, true, false)
				g.Judge(fmt.Sprint("deceived", i), &params, logits, gpu.Judge{Side: gpu.OfGenerator}, Weight{Constant: 1}, nil)
			})
		}
		g.ReconLoss("loss", y, target, 1, 0)
		p, err := Compile(g, newLedger(0), Options{Train: true})
		if err != nil {
			t.Fatal(err)
		}
		var packed int64
		for _, b := range p.buffers {
			if b.kind == Packed {
				packed += b.bytes
			}
		}
		return p.Bytes() - packed
	}
	gradient := newLedger(0).Bytes(gpu.Dims{N: 1, D: 8, H: 16, W: 16, C: 1}, 2, gpu.Float32) // the first head's, while the second runs
	if one, two := size(1), size(2); two > one+gradient {
		t.Errorf("%d bytes with one head, %d with two", one, two)
	}
}

func TestSegmentsKeepToThemselves(t *testing.T) {
	var params Params
	g := NewGraph(&params)
	var inner *Value
	x := g.Input("x", gpu.Dims{N: 1, D: 4, H: 4, W: 4, C: 1})
	g.Segment(func() { inner = g.Activate("a", x, 0) })
	if g.Activate("b", inner, 0); g.Err() == nil || !strings.Contains(g.Err().Error(), "b: a belongs to another segment") {
		t.Errorf("error %v", g.Err())
	}
	if !slices.Contains(g.inputs, x) {
		t.Error("the input is lost")
	}
}
