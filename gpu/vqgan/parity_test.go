package vqgan

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu/nn"
	"github.com/flowrun/flowrun/stages/safetensors"
)

// The fixtures are what PyTorch makes of small models, written by integration/reference/generator.py, which says what they hold, and by
// quantisers.py: make fixtures. They are computed in float64, so what tolerances allow is float32's rounding: at least twice the most that was seen
// with AVX-512, AVX2 and plain Go.

// generators are the fixtures of generators alone.
func generators() []string {
	return []string{"full", "lean", "quantiser-cosine", "quantiser-fsq", "quantiser-residual"}
}

// fixture is one file's arrays by name, and what it says of itself.
type fixture struct {
	arrays  map[string]Array
	weights []Array // state dict and codebook
	model   Config
	options Options
}

func readFixture(t *testing.T, name string) *fixture {
	t.Helper()
	arrays, meta, err := safetensors.Read(filepath.Join("testdata", "parity-"+name+".safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{arrays: map[string]Array{}}
	for _, a := range arrays {
		f.arrays[a.Name] = Array(a)
		switch kind, _, _ := strings.Cut(a.Name, "."); kind {
		case "input", "target", "forced", "free", "places":
		default:
			f.weights = append(f.weights, Array(a))
		}
	}
	if f.model, err = ParseConfig(meta["model"]); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(meta["options"]), &f.options); err != nil {
		t.Fatal(err)
	}
	return f
}

// row is the i-th part of an array along its first axis.
func (f *fixture) row(t *testing.T, name string, i int) []float32 {
	t.Helper()
	a, ok := f.arrays[name]
	if !ok {
		t.Fatalf("the fixture has no %s", name)
	}
	n := len(a.Data) / a.Shape[0]
	return a.Data[i*n : (i+1)*n]
}

// names are those of the weights, sorted: the order of rows of probes.
func (f *fixture) names() []string {
	var names []string
	for _, a := range f.weights {
		if !strings.HasPrefix(a.Name, "codebook") {
			names = append(names, a.Name)
		}
	}
	slices.Sort(names)
	return names
}

// shelves are the names of the codebooks' arrays.
func (f *fixture) shelves() (names []string) {
	for i := range f.model.Books() {
		for _, suffix := range []string{suffixVectors, suffixN, suffixSum} {
			names = append(names, nameBook(i)+suffix)
		}
	}
	return names
}

// load opens a session at the fixture's weights.
func (f *fixture) load(t *testing.T, o Options) *Session {
	t.Helper()
	s := open(t, f.model, o, 2)
	if err := s.LoadWeights(f.weights, false); err != nil {
		t.Fatal(err)
	}
	return s
}

// forced is the state before the k-th forced step; all of it is exact in float32.
func (f *fixture) forced(t *testing.T, s *Session, k int) []Array {
	t.Helper()
	out := state(t, s)
	for _, a := range out {
		prefix := ""
		for _, p := range []string{prefixAverage, prefixFirst, prefixSecond} {
			if strings.HasPrefix(a.Name, p) {
				prefix = p
			}
		}
		from := f.arrays[strings.TrimPrefix(a.Name, prefix)].Data // none for counters and reservoir
		if f.model.Quantizer == Cosine && a.Name == nameVectors { // they keep their length
			copy(a.Data, from)
			continue
		}
		for i, x := range from {
			last := from[len(from)-1-i] * float32(k)
			switch prefix {
			case prefixAverage:
				a.Data[i] = x * float32(16+k) / 16
			case prefixFirst:
				a.Data[i] = last / 64
			case prefixSecond:
				a.Data[i] = (last / 32) * (last / 32)
			default:
				a.Data[i] = x * float32(16-k) / 16
			}
		}
		if a.Name == nameCounters {
			copy(a.Data, limbs(int64(f.row(t, "forced.step", k)[0])-1))
		}
	}
	return out
}

// probe is generator.py's probes of one tensor: its norm, its product with sin(1), sin(2), …, and some elements.
func probe(data []float64, n int) []float64 {
	out := make([]float64, 2, n)
	for i, x := range data {
		out[0] += x * x
		out[1] += x * math.Sin(float64(1+i))
	}
	out[0] = math.Sqrt(out[0])
	for i := range n - 2 {
		out = append(out, data[i*7919%len(data)])
	}
	return out
}

// worst is the largest error of each quantity, so that a fault is a few lines and not all that follows from it.
type worst map[string]struct {
	times float64 // the tolerance
	where string
}

// see notes an error. Where begins with the quantity.
func (w worst) see(tolerance, err float64, where string, args ...any) {
	where = fmt.Sprintf(where, args...)
	kind, _, _ := strings.Cut(where, " ")
	times := err / tolerance
	if math.IsNaN(times) {
		times = math.Inf(1)
	}
	if of, ok := w[kind]; !ok || times > of.times {
		of.times, of.where = times, where
		w[kind] = of
	}
}

func (w worst) report(t *testing.T) {
	t.Helper()
	for _, kind := range slices.Sorted(maps.Keys(w)) {
		of := w[kind]
		say := t.Logf
		if of.times > 1 {
			say = t.Errorf
		}
		say("%s: off by %.2g times its tolerance", of.where, of.times)
	}
}

// near compares with a tolerance that is a share of the largest element wanted.
func (w worst) near(share float64, got, want []float32, where string, args ...any) {
	if len(got) != len(want) {
		w.see(0, 1, where+fmt.Sprintf(": %d numbers (want %d)", len(got), len(want)), args...)
		return
	}
	var size, err float64
	for i, x := range want {
		size = max(size, math.Abs(float64(x)))
		err = max(err, math.Abs(float64(got[i])-float64(x)))
	}
	w.see(share, err/size, where, args...)
}

// probed compares a tensor with its probes: norm and product by shares of the norm, elements by one of the root mean square and the element.
func (w worst) probed(share float64, got []float64, want []float32, where string, args ...any) {
	norm := float64(want[0])
	for i, x := range probe(got, len(want)) {
		size := norm
		if i > 1 {
			size = norm/math.Sqrt(float64(len(got))) + math.Abs(float64(want[i]))
		}
		w.see(share, math.Abs(x-float64(want[i]))/size, where, args...)
	}
}

// losses compares what a step says.
func (w worst) losses(share float64, got Stats, want []float32, step int) {
	for i, x := range []float64{got.L1, got.L2, got.Clipped, got.Commitment, got.Total, got.GradNorm, got.Perplexity} {
		name := []string{"L1", "L2", "clipped", "commitment", "total", "norm", "perplexity"}[i]
		if name == "commitment" && x == 0 && want[i] == 0 { // of fsq
			continue
		}
		w.see(share, math.Abs(x/float64(want[i])-1), "%s of step %d", name, step)
	}
}

func table(arrays []Array) map[string][]float32 {
	out := map[string][]float32{}
	for _, a := range arrays {
		out[a.Name] = a.Data
	}
	return out
}

func double(x []float32) []float64 {
	out := make([]float64, len(x))
	for i := range x {
		out[i] = float64(x[i])
	}
	return out
}

func less(x, y []float32) []float64 {
	out := make([]float64, len(x))
	for i := range x {
		out[i] = float64(x[i]) - float64(y[i])
	}
	return out
}

// gradients are those of the last step, in the layout of files.
func gradients(t *testing.T, s *Session) map[string][]float32 {
	t.Helper()
	return byName(t, s, &s.params, s.grads, func(p *nn.Param) string { return p.Name })
}

// byName reads a block with a place for each parameter.
func byName(t *testing.T, s *Session, params *nn.Params, b *nn.Block, name func(*nn.Param) string) map[string][]float32 {
	t.Helper()
	host := make([]float32, params.Floats())
	s.e.Read(host, b.At)
	if err := s.e.Sync(); err != nil {
		t.Fatal(err)
	}
	out := map[string][]float32{}
	for _, p := range params.All() {
		out[name(p)] = make([]float32, p.Len())
		toFile(p, out[name(p)], host[p.Off/4:])
	}
	return out
}

func TestStateDictsGoBothWays(t *testing.T) {
	for _, name := range generators() {
		f := readFixture(t, name)
		var own []Array
		for _, a := range state(t, f.load(t, f.options)) {
			switch prefix, _, _ := strings.Cut(a.Name, "."); {
			case prefix == "ema", prefix == "adam", prefix == "session", strings.HasSuffix(a.Name, suffixPool), strings.HasSuffix(a.Name, suffixFar):
			default:
				own = append(own, a)
			}
		}
		byName := func(a, b Array) int { return strings.Compare(a.Name, b.Name) }
		slices.SortFunc(own, byName)
		slices.SortFunc(f.weights, byName)
		same(t, name, f.weights, own)
	}
}

func TestStepsAreThoseOfPyTorch(t *testing.T) {
	for _, name := range generators() {
		f := readFixture(t, name)
		names := f.names()
		for micro := 1; micro <= f.options.Batch; micro++ {
			t.Run(fmt.Sprintf("%s, micro-batches of %d", name, micro), func(t *testing.T) {
				o, w := f.options, worst{}
				o.MicroBatch = micro
				s := f.load(t, o)
				for k := range f.arrays["forced.step"].Data {
					arrays := f.forced(t, s, k)
					if err := s.SetState(arrays, true); err != nil {
						t.Fatal(err)
					}
					row := func(name string) []float32 { return f.row(t, "forced."+name, k) }
					input, target := f.row(t, "input", k), f.row(t, "target", k)

					y, codes := make([]float32, len(input)), make([]int32, len(row("codes")))
					if err := s.Reconstruct(y, input, o.Batch, false, codes); err != nil {
						t.Fatal(err)
					}
					w.near(1e-5, y, row("output"), "output of step %d", k)
					for i, c := range row("codes") {
						if codes[i] != int32(c) {
							t.Fatalf("step %d: latent %d has code %d (want %v)", k, i, codes[i], c)
						}
					}
					stats, err := s.Step(input, target, o.Batch, float64(row("lr")[0]))
					if err != nil {
						t.Fatal(err)
					}
					w.losses(5e-6, stats, row("losses"), k)
					before, after, grads := table(arrays), table(state(t, s)), gradients(t, s)
					for i, name := range names {
						probed := func(what string, share float64, got []float64) {
							all := row(what)
							n := len(all) / len(names)
							w.probed(share, got, all[i*n:(i+1)*n], "%s of %s in step %d", what, name, k)
						}
						average := prefixAverage + name
						probed("gradient", 1e-4, double(grads[name]))
						probed("first", 1e-4, double(after[prefixFirst+name]))
						probed("second", 1e-4, double(after[prefixSecond+name]))
						probed("change", 2e-3, less(after[name], before[name]))
						probed("average", 2e-3, less(after[average], before[average]))
					}
					for _, name := range f.shelves() {
						w.near(1e-6, after[name], row(name), "%s of step %d", name, k)
					}
				}
				w.report(t)
			})
		}
	}
}

func TestTenStepsInARowAreThoseOfPyTorch(t *testing.T) {
	for _, name := range generators() {
		t.Run(name, func(t *testing.T) {
			f, w := readFixture(t, name), worst{}
			s := f.load(t, f.options)
			before := table(state(t, s))
			for i := range f.arrays["free.losses"].Shape[0] {
				batch := i % f.arrays["input"].Shape[0]
				stats, err := s.Step(f.row(t, "input", batch), f.row(t, "target", batch), f.options.Batch, float64(f.row(t, "free.lr", i)[0]))
				if err != nil {
					t.Fatal(err)
				}
				w.losses(2e-5, stats, f.row(t, "free.losses", i), i)
			}
			after := table(state(t, s))
			for i, name := range f.names() {
				average := prefixAverage + name
				w.probed(5e-3, less(after[name], before[name]), f.row(t, "free.change", i), "change of %s", name)
				w.probed(5e-3, less(after[average], before[average]), f.row(t, "free.average", i), "average of %s", name)
			}
			for _, name := range f.shelves() {
				w.near(3e-6, after[name], f.arrays["free."+name].Data, "%s", name)
			}
			w.report(t)
		})
	}
}
