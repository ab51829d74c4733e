package vqgan

import (
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/cpu"
	"github.com/flowrun/flowrun/gpu/nn"
)

// vqgan3d is the predecessor's model at full size.
func vqgan3d() Config {
	return Config{Preset: "vqgan3d", Hidden: 64, Downsample: [3]int{4, 4, 4}, Embedding: 8, Codes: 16384, Norm: "group", Groups: 32,
		Padding: "replicate", Decoder: "full"}
}

func TestPresetHasThePredecessorsParameters(t *testing.T) {
	e := cpu.New(1)
	defer func() { _ = e.Close() }()
	o := Options{Patch: [3]int{256, 256, 128}, Batch: 1, Loss: Loss{L1: 4, Commitment: 0.25}, EMA: 0.999, MemoryLimit: 48 << 30}
	p, err := PlanFor(e, vqgan3d(), o)
	if err != nil {
		t.Fatal(err)
	}
	// By hand: encoder 7,048,768, pre and post 2056 + 2304, decoder 15,152,001 with its norms.
	if p.Parameters < 22_150_000 || p.Parameters > 22_250_000 {
		t.Errorf("%d parameters, want 22.2M", p.Parameters)
	}
	// 54 TFLOP forward, 163 in all.
	if f, all := float64(p.Forward)/1e12, float64(p.Programs[0].Total)/1e12; f < 53 || f > 55 || all < 160 {
		t.Errorf("%.1f TFLOP forward, %.1f in all", f, all)
	}
	if testing.Verbose() {
		if err := p.Write(os.Stdout); err != nil {
			t.Fatal(err)
		}
	}
}

// reserved is an engine that notes what is asked of it.
type reserved struct {
	*cpu.Engine
	bytes []int64
}

func (r *reserved) Reserve(n int64) error {
	r.bytes = append(r.bytes, n)
	return r.Engine.Reserve(n)
}

func TestPlanIsWhatIsReserved(t *testing.T) {
	c, o := tiny()
	o.Batch, o.MicroBatch, o.Infer = 5, 3, 2
	e := &reserved{Engine: cpu.New(1)}
	defer func() { _ = e.Close() }()
	p, err := PlanFor(e, c, o)
	if err != nil || len(e.bytes) != 0 {
		t.Fatalf("planning reserves %v, %v", e.bytes, err)
	}
	s, err := Open(e, c, o)
	if err != nil {
		t.Fatal(err)
	}
	step(t, s, 1, 5)
	var sum int64
	for _, k := range p.Kinds {
		sum += k.Bytes
	}
	if len(e.bytes) != 1 || e.bytes[0] != p.Total || sum != p.Total {
		t.Errorf("plan %d, kinds %d, reserved %v", p.Total, sum, e.bytes)
	}
	if !reflect.DeepEqual(p, s.Plan()) {
		t.Error("the session's plan is another")
	}
	var got int64
	for _, a := range state(t, s) {
		got += 4 * int64(len(a.Data))
	}
	if got != s.StateBytes() {
		t.Errorf("a state of %d bytes, said %d", got, s.StateBytes())
	}
}

func TestMemoryLimit(t *testing.T) {
	c, o := tiny()
	o.Batch, o.MicroBatch, o.Infer, o.Patch = 4, 4, 4, [3]int{32, 32, 32}
	e := cpu.New(1)
	defer func() { _ = e.Close() }()
	plan := func(limit int64) (*nn.Plan, error) {
		o.MemoryLimit = limit
		return PlanFor(e, c, o)
	}
	free, err := plan(0)
	if err != nil {
		t.Fatal(err)
	}
	snug, err := plan(free.Total * 8 / 10)
	if err != nil || snug.Total > free.Total*8/10 || len(snug.Programs[0].Recomputed) == 0 {
		t.Errorf("%d bytes of %d, recomputes %v: %v", snug.Total, free.Total, snug.Programs[0].Recomputed, err)
	}
	small, err := plan(free.Total / 3)
	var tight *MemoryError
	if !errors.As(err, &tight) || small == nil || tight.Need != small.Total || tight.Limit != free.Total/3 || !strings.Contains(err.Error(), "micro_batch: 1 needs") {
		t.Errorf("error %v", err)
	}
	// Nothing else is compiled where a micro-batch doesn't fit: of a large one all its parts would take hours.
	names := map[string]bool{}
	for _, p := range small.Programs {
		names[p.Name] = true
	}
	if !names["train 4 patches of 32×32×32"] || names["train 3 patches of 32×32×32"] {
		t.Errorf("programs %v", names)
	}
}

func TestConfigChecks(t *testing.T) {
	for _, c := range []struct {
		want string
		set  func(c *Config, o *Options)
	}{
		{"model: downsample: 3 along y isn't a power of two", func(c *Config, o *Options) { c.Downsample[1] = 3 }},
		{"model: downsample: [1 1 1] leaves the resolution as it is", func(c *Config, o *Options) { c.Downsample = [3]int{1, 1, 1} }},
		{"model: groups: 3 don't divide the 4 channels", func(c *Config, o *Options) { c.Norm, c.Groups = "group", 3 }},
		{"patch: 18 along x isn't a multiple of the downsampling 4", func(c *Config, o *Options) { o.Patch[0] = 18 }},
		{"batch: 0", func(c *Config, o *Options) { o.Batch = 0 }},
		{"micro_batch: 3 (want 1 to the batch, 2)", func(c *Config, o *Options) { o.MicroBatch = 3 }},
		{"loss.l1: this and l2 are both 0", func(c *Config, o *Options) { o.Loss = Loss{} }},
		{"ema: 1 ", func(c *Config, o *Options) { o.EMA = 1 }},
	} {
		config, o := tiny()
		c.set(&config, &o)
		e := cpu.New(1)
		if _, err := PlanFor(e, config, o); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("error %v, want %s…", err, c.want)
		}
		_ = e.Close()
	}
}

func TestConfigAsJSON(t *testing.T) {
	c := vqgan3d()
	text, err := c.JSON()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseConfig(text)
	if c.Preset, c.Quantizer = "", EMA; err != nil || !got.Equal(&c) || got.Preset != "" {
		t.Errorf("%+v of %s: %v", got, text, err)
	}
	for _, bad := range []string{"", "{", `{"hidden":16,"downsample":[3,1,1]}`} {
		if _, err := ParseConfig(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestNamesAndLayoutsAreThePredecessors(t *testing.T) {
	c, o := tiny()
	c.Decoder = "full"
	s := open(t, c, o, 1)
	got := map[string][]int{}
	for _, a := range state(t, s) {
		got[a.Name] = a.Shape
	}
	for name, shape := range map[string][]int{
		"encoder.conv_first.conv.weight":              {4, 1, 3, 3, 3},
		"encoder.conv_first.conv.bias":                {4},
		"encoder.conv_blocks.0.down.conv.weight":      {8, 4, 4, 4, 4},
		"encoder.conv_blocks.0.res.norm1.weight":      {8},
		"encoder.conv_blocks.1.res.norm2.bias":        {16},
		"encoder.conv_blocks.1.res.conv1.conv.weight": {16, 16, 3, 3, 3},
		"encoder.conv_blocks.1.res.conv2.conv.bias":   {16},
		"encoder.final_block.0.weight":                {16},
		"pre_vq_conv.conv.weight":                     {4, 16, 1, 1, 1},
		"post_vq_conv.conv.weight":                    {16, 4, 1, 1, 1},
		"decoder.final_block.0.bias":                  {16},
		"decoder.conv_blocks.0.up.convt.weight":       {16, 16, 4, 4, 4},
		"decoder.conv_blocks.1.up.convt.weight":       {16, 8, 4, 4, 4}, // [I, O, …]
		"decoder.conv_blocks.1.up.convt.bias":         {8},
		"decoder.conv_blocks.1.res1.norm1.weight":     {8},
		"decoder.conv_blocks.1.res2.conv2.conv.bias":  {8},
		"decoder.conv_last.conv.weight":               {1, 8, 3, 3, 3},
		"codebook.embeddings":                         {16, 4},
		"codebook.N":                                  {16},
		"codebook.z_avg":                              {16, 4},
		"ema.decoder.conv_last.conv.bias":             {1},
		"adam.m.pre_vq_conv.conv.bias":                {4},
		"adam.v.pre_vq_conv.conv.bias":                {4},
	} {
		if !slices.Equal(got[name], shape) {
			t.Errorf("%s is %v, want %v", name, got[name], shape)
		}
	}
	// The axes of a file's kernel are z, y, x.
	for role, at := range map[nn.Role]func(z, y, x, i, o int) int{
		nn.ConvWeight:       func(z, y, x, i, o int) int { return (((o*2+i)*3+z)*3+y)*3 + x },
		nn.TransposedWeight: func(z, y, x, i, o int) int { return (((i*5+o)*3+z)*3+y)*3 + x },
	} {
		p := &nn.Param{Role: role, Shape: []int{3, 3, 3, 2, 5}}
		src, file, back := make([]float32, p.Len()), make([]float32, p.Len()), make([]float32, p.Len())
		for i := range src {
			src[i] = float32(i)
		}
		toFile(p, file, src)
		fromFile(p, back, file)
		if z, y, x, i, o := 2, 0, 1, 1, 3; file[at(z, y, x, i, o)] != src[(((z*3+y)*3+x)*2+i)*5+o] || !slices.Equal(back, src) {
			t.Errorf("role %d: layout differs", role)
		}
	}
}

func TestStridesBelongToTheirAxes(t *testing.T) {
	c := Config{Downsample: [3]int{8, 1, 2}}                             // x, y, z
	for level, want := range [][3]int{{2, 1, 2}, {1, 1, 2}, {1, 1, 2}} { // z, y, x
		if got := c.stride(level); got != want {
			t.Errorf("level %d: stride %v, want %v", level, got, want)
		}
	}
}

func TestStartIsPyTorchs(t *testing.T) {
	c, o := tiny()
	s := open(t, c, o, 1)
	other := o
	other.Seed++
	var first []float32
	for _, a := range state(t, s) {
		switch a.Name {
		case "encoder.conv_blocks.1.res.conv1.conv.weight": // U(±1/√(16·27)), σ = bound/√3
			first = a.Data
			high := slices.Max(a.Data)
			if want := 0.0481; high > 0.0482 || float64(high) < 0.99*want || norm(a.Data)/norm(make1(len(a.Data)))/want < 0.56 {
				t.Errorf("highest weight %v, want %v", high, want)
			}
		case "decoder.conv_blocks.1.up.convt.weight": // fan-in 4·64: the outputs'
			if high := slices.Max(a.Data); high > 0.0626 || high < 0.062 {
				t.Errorf("highest transposed weight %v", high)
			}
		case "encoder.final_block.0.weight":
			if slices.Min(a.Data) != 1 || slices.Max(a.Data) != 1 {
				t.Errorf("gains %v", a.Data)
			}
		case "encoder.final_block.0.bias", "adam.m.pre_vq_conv.conv.weight", "codebook.embeddings":
			if slices.ContainsFunc(a.Data, func(x float32) bool { return x != 0 }) {
				t.Errorf("%s isn't zero", a.Name)
			}
		}
	}
	for _, a := range state(t, open(t, c, other, 1)) {
		if a.Name == "encoder.conv_blocks.1.res.conv1.conv.weight" && slices.Equal(a.Data, first) {
			t.Error("another seed gives the same weights")
		}
	}
}

func make1(n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = 1
	}
	return x
}

// TestFieldsAreWhatIsSeen changes one voxel (or latent) at a time and looks which latents (or voxels) change.
func TestFieldsAreWhatIsSeen(t *testing.T) {
	for i, down := range [][3]int{{2, 2, 2}, {4, 2, 1}, {1, 4, 2}, {8, 2, 1}} {
		c := Config{Hidden: 2, Downsample: down, Embedding: 2, Codes: 4, Norm: "channel",
			Padding: []string{"zero", "replicate"}[i%2], Decoder: []string{"lean", "full"}[i/2]}
		for a := range 3 {
			// A rod along one axis: the others are as short as can be.
			d := down
			d[a] = 96
			e := cpu.New(1)
			in := gpu.Dims{N: 1, D: d[2], H: d[1], W: d[0], C: 1}
			enc := func(g *nn.Graph, x *nn.Value) *nn.Value { return encoder(g, &c, x) }
			dec := func(g *nn.Graph, x *nn.Value) *nn.Value { return decoder(g, &c, x) }
			f, n := down[a], d[a]
			low, high := seen(t, e, enc, in, 1, (n/f)/2)
			if got := c.EncoderField()[a]; n/f/2*f-low != got[0] || high-(n/f/2*f+f-1) != got[1] {
				t.Errorf("%+v axis %d: latent %d sees voxels %d to %d, said %v", c, a, n/f/2, low, high, got)
			}
			_ = e.Close()
			e = cpu.New(1)
			l := c.Latents(d)
			in = gpu.Dims{N: 1, D: l[2], H: l[1], W: l[0], C: 2}
			low, high = seen(t, e, dec, in, f, (n/f)/2)
			if got := c.DecoderField()[a]; n/f/2-low != got[0] || high-n/f/2 != got[1] {
				t.Errorf("%+v axis %d: voxels of latent %d see latents %d to %d, said %v", c, a, n/f/2, low, high, got)
			}
			_ = e.Close()
		}
	}
}

// seen are the first and last of the inputs along the rod on which any of group outputs at index at*group depends.
func seen(t *testing.T, e gpu.Engine, build func(*nn.Graph, *nn.Value) *nn.Value, d gpu.Dims, group, at int) (low, high int) {
	t.Helper()
	var params nn.Params
	g := nn.NewGraph(&params)
	x := g.Input("x", d)
	y := build(g, x)
	g.Keep(y)
	p, err := nn.Compile(g, e, nn.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p.Bind(gpu.Ptr(params.Bytes()))
	if err := e.Reserve(params.Bytes() + p.Bytes()); err != nil {
		t.Fatal(err)
	}
	// Without biases and with nothing in there, nothing comes out: whatever does was seen, however little.
	w := make([]float32, params.Floats())
	for _, q := range params.All() {
		for i := range q.Len() {
			if q.Role != nn.Bias && q.Role != nn.Shift {
				w[int(q.Off/4)+i] = float32((i*7919)%101)/50 - 0.9
			}
		}
	}
	e.Write(0, w)
	p.Pack(e)
	n := max(d.D, d.H, d.W)
	in, out := make([]float32, d.Len()), make([]float32, y.Len())
	per := len(out) / max(y.D, y.H, y.W) // floats of the output at one place along the rod
	look := func() []float32 {
		p.Write(e, x, in)
		p.Run(e, &nn.Call{})
		p.Read(e, y, out)
		return slab(out, y.Dims, at*group, group, per)
	}
	low, high = n, -1
	for i := range n {
		clear(in)
		poke(in, d, i)
		if slices.ContainsFunc(look(), func(v float32) bool { return v != 0 }) {
			low, high = min(low, i), max(high, i)
		}
	}
	return low, high
}

// along calls f with the index of each float and its place along the longest axis.
func along(d gpu.Dims, f func(index, place int)) {
	i := 0
	for z := range d.D {
		for y := range d.H {
			for x := range d.W {
				place := x
				if d.D > max(d.W, d.H) {
					place = z
				} else if d.H > d.W {
					place = y
				}
				for range d.C {
					f(i, place)
					i++
				}
			}
		}
	}
}

func slab(data []float32, d gpu.Dims, from, n, per int) []float32 {
	out := make([]float32, 0, n*per)
	along(d, func(i, place int) {
		if place >= from && place < from+n {
			out = append(out, data[i])
		}
	})
	return out
}

func poke(data []float32, d gpu.Dims, at int) {
	along(d, func(i, place int) {
		if place == at {
			data[i] = 1
		}
	})
}
