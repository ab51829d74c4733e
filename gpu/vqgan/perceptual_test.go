package vqgan

import (
	"fmt"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/cpu"
	"github.com/flowrun/flowrun/gpu/nn"
	"github.com/flowrun/flowrun/stages/safetensors"
)

// hashed is lpips.py's: a number in [0, 1), of 24 bits.
func hashed(seed, i int) float64 {
	h := uint32(i)*0x9E3779B1 + uint32(seed)*0x85EBCA6B
	h = (h ^ h>>16) * 0x7FEB352D
	h = (h ^ h>>15) * 0x846CA68B
	return float64((h^h>>16)>>8) / (1 << 24)
}

// formula are VGG16's and the heads' weights as lpips.py makes them of their places, in NewLPIPS' order.
func formula() []Array {
	var out []Array
	for seed, t := range lpipsTensors() {
		a := Array{Name: t.names[0], Shape: t.shape, Data: make([]float32, volumeOf(t.shape))}
		scale, offset := 1.0, 0.0
		switch {
		case len(t.shape) == 1:
			scale, offset = 0.2, 0.5
		case t.shape[2] == 3:
			scale, offset = 2*math.Sqrt(6/float64(t.shape[1]*9)), 0.5
		}
		for i := range a.Data {
			a.Data[i] = float32((hashed(seed, i) - offset) * scale)
		}
		out = append(out, a)
	}
	return out
}

// few are the formula's tensors with four elements each: NewLPIPS looks at values, not at shapes.
func few() []Array {
	var out []Array
	for _, t := range lpipsTensors() {
		out = append(out, Array{Name: t.names[0], Shape: []int{4}, Data: []float32{0, 1, 2, 3}})
	}
	return out
}

func volumeOf(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

// frozen is a network with the weights of the formula.
func frozen(t testing.TB) *LPIPS {
	t.Helper()
	l, err := NewLPIPS(formula())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// perceived is a program whose model is one voxel wide, so that the gradient of LPIPS reaches an image.
func perceived(t testing.TB, o Options, n, threads int) (*Session, *program) {
	t.Helper()
	e := cpu.New(threads)
	t.Cleanup(func() { _ = e.Close() })
	s := &Session{e: e, o: o}
	g := nn.NewGraph(&s.params)
	p := &program{n: n, input: g.Input("input", s.dims(n)), target: g.Input("target", s.dims(n))}
	p.y = g.Conv("image", p.input, nn.Conv{Channels: 1, Kernel: k1, Stride: unit})
	if err := s.assemblePerceptual(); err != nil {
		t.Fatal(err)
	}
	s.perceive(g, p, p.y)
	var err error
	if p.Program, err = nn.Compile(g, e, nn.Options{Train: true}); err != nil {
		t.Fatal(err)
	}
	s.weights, s.grads = s.layout.Add("weights", nn.Parameters, s.params.Bytes()), s.layout.Add("gradients", nn.Gradients, s.params.Bytes())
	s.params.Weights, s.params.Grads = s.weights.At, s.grads.At
	s.result.block = s.layout.Add("results", nn.Scratch, 4*int64(g.Results()))
	s.layout.Bind(p.Program)
	if err := e.Reserve(s.layout.Bytes()); err != nil {
		t.Fatal(err)
	}
	if o.LPIPS != nil {
		if err := s.fillPerceptual(); err != nil {
			t.Fatal(err)
		}
	}
	e.Fill(s.grads.At, s.params.Floats(), 0)
	e.Fill(s.weights.At, s.params.Floats(), 0)
	weight, _ := s.params.Lookup("image.weight")
	e.Fill(s.weights.At+gpu.Ptr(weight.Off), 1, 1)
	p.Pack(e)
	return s, p
}

// channelsFirst turns [n, y, x, c] into [n, c, y, x].
func channelsFirst(d gpu.Dims, x []float32) []float64 {
	out := make([]float64, len(x))
	for n := range d.N {
		for v := range d.H * d.W {
			for c := range d.C {
				out[(n*d.C+c)*d.H*d.W+v] = float64(x[(n*d.H*d.W+v)*d.C+c])
			}
		}
	}
	return out
}

// TestLPIPSIsThatOfPyTorch compares each layer, each plane's distances and the gradient with lpips.py's fixture.
func TestLPIPSIsThatOfPyTorch(t *testing.T) {
	arrays, _, err := safetensors.Read("testdata/lpips.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{arrays: map[string]Array{}}
	for _, a := range arrays {
		f.arrays[a.Name] = Array(a)
	}
	shape, by := f.arrays["input"].Shape, f.arrays["distances"]
	n := shape[0]
	// Two slices of each patch across x, one across y and z; a chunk holds one of each patch.
	o := Options{Patch: [3]int{shape[3], shape[2], shape[1]}, LPIPS: frozen(t), Perceptual: Perceptual{Weight: 0.5, Share: 0.07, Planes: []string{"x", "y", "z"}, Chunk: 3}}
	s, p := perceived(t, o, n, 2)
	if len(p.views) != 4 {
		t.Fatalf("%d chunks (want 2, 1 and 1)", len(p.views))
	}
	p.Write(s.e, p.input, f.arrays["input"].Data)
	p.Write(s.e, p.target, f.arrays["target"].Data)
	for _, v := range p.views {
		all := f.arrays["places."+"zyx"[v.axis:v.axis+1]]
		var where []float32
		for i := range n {
			where = append(where, all.Data[i*all.Shape[1]+v.first:][:v.per]...)
		}
		p.Write(s.e, v.at, where)
	}
	w, layers := worst{}, 0
	gradient := make([]float32, volumeOf(shape))
	p.Run(s.e, &nn.Call{Share: 1, After: func(op nn.Op) {
		if op.Kind == "slice.grad" { // the last has all chunks'
			s.e.ReadTensor(gradient, *op.Output)
		}
		if name, ok := strings.CutPrefix(op.Name, "perceptual z 0 reconstruction relu"); ok && op.Kind == "activate" {
			x := make([]float32, op.Output.Len())
			s.e.ReadTensor(x, *op.Output)
			w.probed(2e-5, channelsFirst(op.Output.Dims, x), f.row(t, "features", layers), "features of relu%s", name)
			layers++
		}
	}})
	if layers != 13 {
		t.Errorf("%d layers", layers)
	}
	p.Results(s.e, s.result.at(0), int(s.result.block.Bytes/4))
	left := make([]float32, s.result.block.Bytes/4)
	s.e.Read(left, s.result.at(0))
	want := 0.0
	for i, plane := range o.Perceptual.Planes {
		got := make([]float32, 5)
		for _, v := range p.views {
			if "zyx"[v.axis:v.axis+1] != plane {
				continue
			}
			for k, said := range v.said {
				got[k] += said.Of(left)[0] * float32(v.share) * 3
			}
		}
		w.near(1e-5, got, by.Data[i*5:][:5], "distances across %s", plane)
		for _, x := range by.Data[i*5:][:5] {
			want += float64(x) / 3
		}
	}
	w.see(1e-5, math.Abs(p.distances(left)/want-1), "loss")
	for i := range gradient {
		gradient[i] *= 2 // of the weight
	}
	w.probed(5e-5, double(gradient), probed32(f.arrays["gradient"].Data), "gradient")
	w.near(1e-4, gradient, f.arrays["gradient"].Data, "gradient's largest")
	w.report(t)
}

func probed32(x []float32) []float32 {
	var out []float32
	for _, v := range probe(double(x), 12) {
		out = append(out, float32(v))
	}
	return out
}

// shapes are those of a file.
func shapes(prefix string, rename func(t lpipsTensor) string) map[string][]int {
	out := map[string][]int{}
	for _, t := range lpipsTensors() {
		out[prefix+rename(t)] = t.shape
	}
	return out
}

func theirs(t lpipsTensor) string  { return t.names[0] }
func inLPIPS(t lpipsTensor) string { return t.names[1] }

func TestPerceptualNetworksAreFound(t *testing.T) {
	for _, name := range []string{"net.slice1.2.bias", "net.slice2.5.weight", "net.slice3.14.weight", "net.slice4.17.bias", "net.slice5.28.weight"} {
		if shapes("", inLPIPS)[name] == nil {
			t.Errorf("lpips' %s isn't among the names", name)
		}
	}
	scaled := shapes("perceptual_model.", inLPIPS)
	scaled["perceptual_model."+nameShift], scaled["perceptual_model."+nameScale] = []int{1, 3, 1, 1}, []int{1, 3, 1, 1}
	for name, c := range map[string]struct {
		of   map[string][]int
		want int
	}{"torchvision": {shapes("", theirs), 31}, "lpips": {shapes("", inLPIPS), 31}, "medicaldiffusion": {shapes("state_dict.perceptual_model.", inLPIPS), 31},
		"with a scaling": {scaled, 33}} {
		c.of["classifier.0.weight"] = []int{4096, 25088}
		names, err := FindLPIPS(c.of)
		if err != nil || len(names) != c.want {
			t.Fatalf("%s: %d names: %v", name, len(names), err)
		}
		for i, want := range lpipsTensors() {
			if !slices.Equal(c.of[names[i]], want.shape) {
				t.Errorf("%s: %s in place of %s", name, names[i], want.param)
			}
		}
	}
}

func TestOtherNetworksAreRefused(t *testing.T) {
	change := func(f func(map[string][]int)) map[string][]int {
		of := shapes("net.", theirs)
		f(of)
		return of
	}
	for want, of := range map[string]map[string][]int{
		"net.features.28.bias is missing":                       change(func(m map[string][]int) { delete(m, "net.features.28.bias") }),
		"net.lin4.model.1.weight is missing":                    change(func(m map[string][]int) { delete(m, "net.lin4.model.1.weight") }),
		"net.features.5.weight is [128 64 5 5] (want [128 64 3": change(func(m map[string][]int) { m["net.features.5.weight"] = []int{128, 64, 5, 5} }),
		"net.scaling_layer.scale is missing":                    change(func(m map[string][]int) { m["net.scaling_layer.shift"] = []int{1, 3, 1, 1} }),
		`several networks, under "net." and "other."`:           change(func(m map[string][]int) { m["other.features.0.weight"] = []int{64, 3, 3, 3} }),
		"LPIPS' linear heads alone, without VGG16":              {"lin0.model.1.weight": {1, 64, 1, 1}},
		"not VGG16": {"encoder.conv_first.conv.weight": {1}},
	} {
		if _, err := FindLPIPS(of); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v (want %s)", err, want)
		}
	}
	for want, spoil := range map[string]func([]Array){
		"features.0.bias: element 3 is NaN":                       func(a []Array) { a[1].Data[3] = float32(math.NaN()) },
		"features.2.weight: element 0 is +Inf":                    func(a []Array) { a[2].Data[0] = float32(math.Inf(1)) },
		"lin0.model.1.weight: element 2 is -0.5 (want at least 0": func(a []Array) { a[4].Data[2] = -0.5 },
	} {
		a := few()
		spoil(a)
		if _, err := NewLPIPS(a); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v (want %s)", err, want)
		}
	}
}

func TestLPIPSScalingOfTheFileHolds(t *testing.T) {
	a := few()
	standard, err := NewLPIPS(a)
	if err != nil {
		t.Fatal(err)
	}
	scaled := slices.Concat(a, []Array{{Name: nameShift, Data: lpipsShift}, {Name: nameScale, Data: lpipsScale}})
	if l, err := NewLPIPS(scaled); err != nil || l.Digest() != standard.Digest() {
		t.Errorf("lpips' own scaling makes another network: %v", err)
	}
	scaled[len(a)+1].Data = []float32{1, 1, 1}
	if l, err := NewLPIPS(scaled); err != nil || l.Digest() == standard.Digest() {
		t.Errorf("another scaling makes the same network: %v", err)
	}
	scaled[len(a)+1].Data = []float32{1, 0, 1}
	if _, err := NewLPIPS(scaled); err == nil {
		t.Error("a scale of 0 is taken")
	}
}

// TestWithoutLPIPSNothingIsPlanned holds weight 0 to its promise, and shows what another costs.
func TestWithoutLPIPSNothingIsPlanned(t *testing.T) {
	c, o := tiny()
	o.Patch = [3]int{16, 16, 16}
	e := cpu.New(1)
	defer func() { _ = e.Close() }()
	plan := func(p Perceptual) *nn.Plan {
		o.Perceptual = p
		plan, err := PlanFor(e, c, o)
		if err != nil {
			t.Fatal(err)
		}
		return plan
	}
	none := plan(Perceptual{})
	off := plan(Perceptual{File: "gone", Share: 1, Planes: []string{"z"}, Chunk: 1})
	if none.Total != off.Total || none.Step != off.Step {
		t.Errorf("%d bytes and %d FLOPs, with weight 0 %d and %d", none.Total, none.Step, off.Total, off.Step)
	}
	few, many := plan(Perceptual{Weight: 1, Share: 0.125, Planes: []string{"z"}, Chunk: 2}), plan(Perceptual{Weight: 1, Share: 1, Planes: []string{"z"}, Chunk: 2})
	if few.Step <= none.Step || few.Of(nn.Parameters) <= none.Of(nn.Parameters)+50<<20 || (many.Step-none.Step) != 8*(few.Step-none.Step) {
		t.Errorf("%d FLOPs, with two slices %d, with sixteen %d", none.Step, few.Step, many.Step)
	}
	if d := many.Total - few.Total; d > 32<<10 {
		t.Errorf("sixteen slices take %d bytes more than two", d)
	}
}

// TestPerceptualSteps trains with LPIPS: it is in what is minimised, whatever the micro-batch, and LPIPS falls.
func TestPerceptualSteps(t *testing.T) {
	c, o := tiny()
	o.Patch = [3]int{16, 16, 16}
	o.Perceptual, o.LPIPS = Perceptual{Weight: 2, Share: 0.1, Planes: []string{"z", "x"}, Chunk: 2}, frozen(t)
	x := smooth(o.Patch, 2, 1)
	gan := GAN{Weight: 0.5, Volume: 1, Channels: 4, Layers: 1, Loss: "hinge", Norm: "none", LR: 1, Beta1: 0.5, Beta2: 0.9, Slices: 1, Adaptive: 1e6, R1Every: 1}
	for name, gan := range map[string]GAN{"plain": {}, "gan": gan} {
		o.GAN = gan
		whole := open(t, c, o, 2)
		a, err := whole.Step(x, x, 2, 1e-3)
		if err != nil {
			t.Fatal(err)
		}
		if a.Perceptual <= 0 {
			t.Errorf("%s: LPIPS %v", name, a.Perceptual)
		}
		want := o.Loss.L1*a.L1 + o.Loss.Commitment*a.Commitment + 2*a.Perceptual + o.GAN.Weight*a.GAN.Weight*a.GAN.Ramp*(a.GAN.Generator+o.GAN.Features*a.GAN.Features)
		if math.Abs(a.Total-want) > 1e-6*want {
			t.Errorf("%s: minimised %v, its terms sum to %v", name, a.Total, want)
		}
		if name == "gan" {
			if !a.GAN.Active {
				t.Error("the discriminators don't learn")
			}
			heavy := o
			heavy.Perceptual.Weight = 200
			b, err := open(t, c, heavy, 2).Step(x, x, 2, 1e-3)
			if err != nil || b.GAN.Weight < 2*a.GAN.Weight {
				t.Errorf("the adaptive weight is %v, with a hundred times as much LPIPS %v: %v", a.GAN.Weight, b.GAN.Weight, err)
			}
			continue
		}
		parts := o
		parts.MicroBatch = 1
		micro := open(t, c, parts, 2)
		b, err := micro.Step(x, x, 2, 1e-3)
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(a.Perceptual-b.Perceptual) > 1e-5*a.Perceptual {
			t.Errorf("LPIPS %v, in micro-batches %v", a.Perceptual, b.Perceptual)
		}
		if math.Abs(a.GradNorm-b.GradNorm) > 1e-4*a.GradNorm {
			t.Errorf("gradient %v, in micro-batches %v", a.GradNorm, b.GradNorm)
		}
		first, last := a.Perceptual, 0.0
		if err := micro.Reconstruct(make([]float32, len(x)), x, 2, false, nil); err != nil { // which leaves nothing of the packed network
			t.Fatal(err)
		}
		if a, err = whole.Step(x, x, 2, 1e-3); err != nil {
			t.Fatal(err)
		}
		if b, err = micro.Step(x, x, 2, 1e-3); err != nil || math.Abs(a.Perceptual-b.Perceptual) > 1e-3*a.Perceptual {
			t.Errorf("LPIPS of step 2 is %v, behind a reconstruction %v: %v", a.Perceptual, b.Perceptual, err)
		}
		for range 12 {
			s, err := whole.Step(x, x, 2, 3e-3)
			if err != nil {
				t.Fatal(err)
			}
			last = s.Perceptual
		}
		if last > 0.9*first {
			t.Errorf("LPIPS goes from %v to %v in 12 steps", first, last)
		}
		if slices.ContainsFunc(state(t, whole), func(a Array) bool { return strings.Contains(a.Name, "features.") || strings.Contains(a.Name, "lin0") }) {
			t.Error("the frozen network is in the state")
		}
	}
}

// TestSlicesAreDrawnByPatch says where slices are cut: at distinct places, each patch's its own whatever the micro-batch, others in
// the next step.
func TestSlicesAreDrawnByPatch(t *testing.T) {
	o := Options{Patch: [3]int{16, 18, 24}, Seed: 3, Perceptual: Perceptual{Weight: 1, Share: 0.25, Planes: []string{"x", "y", "z"}, Chunk: 3}}
	drawn := func(n, at, step int) map[string][]float32 { // by plane and patch
		s, p := perceived(t, o, n, 1)
		s.step = step
		s.look(p, at)
		out := map[string][]float32{}
		for _, v := range p.views {
			where := make([]float32, v.at.N)
			p.Read(s.e, v.at, where)
			for i, x := range where {
				key := fmt.Sprint("zyx"[v.axis:v.axis+1], at+i/v.per)
				out[key] = append(out[key], x)
			}
		}
		return out
	}
	both, second, next := drawn(2, 0, 5), drawn(1, 1, 5), drawn(1, 1, 6)
	for _, k := range slices.Sorted(maps.Keys(both)) {
		sides := map[byte]int{'x': 16, 'y': 18, 'z': 24}
		d := sides[k[0]]
		if n := o.Perceptual.slices(d); len(both[k]) != n || n != (d+2)/4 {
			t.Errorf("%s: %d of %d slices", k, len(both[k]), d)
		}
		if !slices.IsSorted(both[k]) || len(slices.Compact(slices.Clone(both[k]))) != len(both[k]) || both[k][0] < 0 || both[k][len(both[k])-1] >= float32(d) {
			t.Errorf("%s: at %v of %d", k, both[k], d)
		}
	}
	for k := range second {
		if !slices.Equal(second[k], both[k]) {
			t.Errorf("%s: at %v alone, at %v in a micro-batch", k, second[k], both[k])
		}
		if first := k[:1] + "0"; slices.Equal(both[first], both[k]) {
			t.Errorf("%s: both patches are cut at %v", k, both[k])
		}
		if slices.Equal(second[k], next[k]) {
			t.Errorf("%s: the next step cuts at %v too", k, next[k])
		}
	}
}

func TestPerceptualOptionsThatDontFit(t *testing.T) {
	good := Perceptual{Weight: 1, File: "f", Share: 0.1, Planes: []string{"z"}, Chunk: 1}
	for want, o := range map[string]struct {
		change func(*Perceptual)
		patch  [3]int
	}{
		"":                                      {func(*Perceptual) {}, [3]int{16, 16, 1}},
		"slices across z are 12 voxels along y": {func(*Perceptual) {}, [3]int{16, 12, 16}},
		"slices across y are 8 voxels along z":  {func(p *Perceptual) { p.Planes = []string{"z", "y"} }, [3]int{16, 16, 8}},
		"planes: z is there twice":              {func(p *Perceptual) { p.Planes = []string{"z", "z"} }, [3]int{16, 16, 16}},
		"planes: []":                            {func(p *Perceptual) { p.Planes = nil }, [3]int{16, 16, 16}},
	} {
		p := good
		o.change(&p)
		err := p.Check()
		if err == nil {
			err = p.CheckPatch(o.patch)
		}
		if got := fmt.Sprint(err); want == "" && err != nil || want != "" && !strings.Contains(got, want) {
			t.Errorf("%s (want %s)", got, want)
		}
	}
}

// BenchmarkLPIPS is one chunk: four slices of 128×128, forward and backward.
func BenchmarkLPIPS(b *testing.B) {
	o := Options{Patch: [3]int{128, 128, 16}, LPIPS: frozen(b), Perceptual: Perceptual{Weight: 1, Share: 0.25, Planes: []string{"z"}, Chunk: 4}}
	s, p := perceived(b, o, 1, runtime.GOMAXPROCS(0))
	x := smooth(o.Patch, 2, 1)
	b.ReportAllocs()
	for b.Loop() {
		p.Write(s.e, p.input, x[:len(x)/2])
		p.Write(s.e, p.target, x[len(x)/2:])
		s.look(p, 0)
		p.Run(s.e, &nn.Call{Share: 1})
		if err := s.e.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	_, work := p.FLOPs()
	b.ReportMetric(float64(work)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GF/s")
	b.ReportMetric(float64(p.Bytes())/(1<<20), "MiB")
}
