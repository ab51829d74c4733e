package vqgan

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/nn"
	"github.com/flowrun/flowrun/gpu/optim"
)

// judges are the discriminators of a session, with an optimiser of their own.
type judges struct {
	image, volume *network // nil where there is none
	params        nn.Params

	weights, grads, first, second *nn.Block
	kernels, vectors              *nn.Block // with spectral norm: weights divided by σ; u, v and σ of each
	work                          *nn.Block
	spectral                      []spectral

	steps int // of their Adam
	delay int // GAN.Start is at least this
}

// spectral is what spectral norm keeps of a weight [rows, columns].
type spectral struct {
	p             *nn.Param
	rows, columns int
	u, v, sigma   gpu.Ptr // from the start of the block of vectors
}

// networks are those that there are.
func (j *judges) networks() []*network {
	return slices.DeleteFunc([]*network{j.image, j.volume}, func(n *network) bool { return n == nil })
}

// assembleJudges adds the discriminators' blocks.
func (s *Session) assembleJudges() error {
	o, j := &s.o.GAN, &s.judges
	if !o.on() {
		return nil
	}
	g := nn.NewGraph(&j.params)
	if o.Image > 0 {
		j.image = &network{prefix: "image_discriminator", o: o}
		j.image.build(g, &j.params, "image ", g.Input("slice", gpu.Dims{N: 1, D: 1, H: s.o.Patch[1], W: s.o.Patch[0], C: 1}))
	}
	if o.Volume > 0 {
		j.volume = &network{prefix: "video_discriminator", volume: true, o: o}
		j.volume.build(g, &j.params, "volume ", g.Input("patch", s.dims(1)))
	}
	if err := g.Err(); err != nil {
		return fmt.Errorf("gan: %w", err)
	}
	n := j.params.Bytes()
	j.weights = s.layout.Add("discriminators", nn.Parameters, n)
	j.grads = s.layout.Add("discriminators' gradients", nn.Gradients, n)
	j.first = s.layout.Add("discriminators' first moments", nn.Moments, n)
	j.second = s.layout.Add("discriminators' second moments", nn.Moments, n)
	work := s.e.SumSquaresWork(j.params.Floats())
	if o.Norm == "spectral" {
		var size int64
		place := func(floats int) gpu.Ptr {
			at := gpu.Ptr(size)
			size += (4*int64(floats) + gpu.Align - 1) / gpu.Align * gpu.Align
			return at
		}
		for _, p := range j.params.All() {
			if p.Role == nn.Bias {
				continue
			}
			columns := p.Shape[len(p.Shape)-1]
			k := spectral{p: p, rows: p.Len() / columns, columns: columns}
			k.u, k.v, k.sigma = place(k.columns), place(k.rows), place(1)
			j.spectral = append(j.spectral, k)
			work = max(work, s.e.SpectralWork(k.rows, k.columns))
		}
		j.kernels = s.layout.Add("discriminators' weights over σ", nn.Parameters, n)
		j.vectors = s.layout.Add("singular vectors", nn.Parameters, size)
		j.params.Kernels = j.kernels.At
	}
	j.work = s.layout.Add("discriminators' workspace", nn.Scratch, work)
	j.params.Weights, j.params.Grads = j.weights.At, j.grads.At
	for _, n := range j.networks() {
		for _, p := range j.params.All() {
			if p.Role == nn.Gain && belongs(p.Name, n.prefix) {
				n.buffers = append(n.buffers, newRunningStats(p))
			}
		}
	}
	return nil
}

func belongs(name, prefix string) bool {
	return len(name) > len(prefix) && name[:len(prefix)] == prefix
}

func newRunningStats(gain *nn.Param) *runningStats {
	c := gain.Len()
	b := &runningStats{name: gain.Name[:len(gain.Name)-len("weight")], mean: make([]float32, c), variance: make([]float32, c)}
	b.reset()
	return b
}

func (b *runningStats) reset() {
	clear(b.mean)
	for i := range b.variance {
		b.variance[i] = 1
	}
	b.batches = 0
}

// prepare makes the discriminators ready for a step: gradients at 0, weights over their singular values.
func (j *judges) prepare(e gpu.Engine) {
	e.Fill(j.grads.At, j.params.Floats(), 0)
	for _, k := range j.spectral {
		at, v := gpu.Ptr(k.p.Off), j.vectors.At
		e.Spectral(j.weights.At+at, k.rows, k.columns, v+k.u, v+k.v, j.kernels.At+at, v+k.sigma, j.work.At)
	}
	for _, n := range j.networks() {
		n.heard = [2]float64{}
	}
}

// measure ends the backward pass: the gradient of the weights themselves, and its sum of squares.
func (j *judges) measure(e gpu.Engine, squares gpu.Ptr) {
	for _, k := range j.spectral {
		at, v := gpu.Ptr(k.p.Off), j.vectors.At
		e.SpectralGrad(j.grads.At+at, j.kernels.At+at, k.rows, k.columns, v+k.u, v+k.v, v+k.sigma, j.work.At)
	}
	e.SumSquares(j.grads.At, j.params.Floats(), squares, j.work.At)
}

// update takes the discriminators' step.
func (j *judges) update(e gpu.Engine, o *GAN, lr, clip float64) {
	j.steps++
	e.AdamStep(optim.Adam(lr*o.LR, o.Beta1, o.Beta2, clip, 0, j.steps), j.weights.At, j.grads.At, j.first.At, j.second.At, -1, j.params.Floats())
	for _, n := range j.networks() {
		for i, f := range []*nn.Factor{&n.real, &n.fake} {
			if j.steps == 1 {
				f.Value = n.heard[i]
			} else {
				f.Value = float64(float32(lecamDecay*f.Value + (1-lecamDecay)*n.heard[i])) // float32, as a checkpoint keeps it
			}
		}
	}
}

// init starts the discriminators over.
func (s *Session) initJudges() {
	j := &s.judges
	if !s.o.GAN.on() {
		return
	}
	s.e.Write(j.weights.At, s.draw(&j.params))
	s.e.Fill(j.grads.At, j.params.Floats(), 0)
	s.e.Fill(j.first.At, j.params.Floats(), 0)
	s.e.Fill(j.second.At, j.params.Floats(), 0)
	for _, k := range j.spectral {
		s.e.Write(j.vectors.At+k.u, direction(key(s.o.Seed, k.p.Name+"_u"), k.columns))
	}
	for _, n := range j.networks() {
		n.real.Value, n.fake.Value = 0, 0
		for _, b := range n.buffers {
			b.reset()
		}
	}
	j.steps, j.delay = 0, 0
	s.packed = nil
}

// Names of what the discriminators keep beside weights and moments; those of PyTorch where it has any.
const (
	suffixU       = "_u"
	suffixV       = "_v" // in state dicts only
	suffixOrig    = "_orig"
	nameMean      = "running_mean"
	nameVariance  = "running_var"
	nameBatches   = "num_batches_tracked"
	nameAnchors   = "lecam.anchors"
	nameJudgement = "session.discriminators"
)

// judgeName is a parameter's name in files: PyTorch's, whose spectral norm keeps the weight itself as weight_orig.
func (j *judges) judgeName(p *nn.Param) string {
	if j.kernels != nil && p.Role != nn.Bias {
		return p.Name + suffixOrig
	}
	return p.Name
}

// judgeState are the arrays of the discriminators.
func (s *Session) judgeState() ([]Array, error) {
	j := &s.judges
	if !s.o.GAN.on() {
		return nil, nil
	}
	var out []Array
	host := make([]float32, j.params.Floats())
	for _, row := range []struct {
		prefix string
		block  *nn.Block
	}{{"", j.weights}, {prefixFirst, j.first}, {prefixSecond, j.second}} {
		s.e.Read(host, row.block.At)
		if err := s.e.Sync(); err != nil {
			return nil, fmt.Errorf("state: %w", err)
		}
		for _, p := range j.params.All() {
			a := Array{Name: row.prefix + j.judgeName(p), Shape: fileShape(p), Data: make([]float32, p.Len())}
			toFile(p, a.Data, host[p.Off/4:])
			out = append(out, a)
		}
	}
	for _, k := range j.spectral {
		a := Array{Name: k.p.Name + suffixU, Shape: []int{k.columns}, Data: make([]float32, k.columns)}
		s.e.Read(a.Data, j.vectors.At+k.u)
		out = append(out, a)
	}
	var anchors []float32
	for _, n := range j.networks() {
		anchors = append(anchors, float32(n.real.Value), float32(n.fake.Value))
		for _, b := range n.buffers {
			out = append(out, Array{b.name + nameMean, []int{len(b.mean)}, slices.Clone(b.mean)},
				Array{b.name + nameVariance, []int{len(b.variance)}, slices.Clone(b.variance)},
				Array{b.name + nameBatches, []int{3}, limbs(b.batches)})
		}
	}
	return append(out, Array{nameAnchors, []int{len(anchors)}, anchors},
		Array{nameJudgement, []int{2, 3}, limbs(int64(j.steps), int64(j.delay))}), s.e.Sync()
}

// stateLen is the elements of a judgeState.
func (j *judges) stateLen() int {
	n := 3 * j.params.Count()
	for _, k := range j.spectral {
		n += k.columns
	}
	for _, net := range j.networks() {
		n += 2 // anchors
		for _, b := range net.buffers {
			n += 2*len(b.mean) + 3
		}
	}
	if n > 0 {
		n += 6 // counters
	}
	return n
}

// judgesIn reports whether a state has discriminators.
func judgesIn(in dict) bool {
	for name := range maps.Keys(in) {
		if ofDiscriminator(name) {
			return true
		}
	}
	return false
}

// loadJudges checks what a state has of the discriminators and returns what puts it in place. With moments it is all of a judgeState,
// else weights and buffers, of which only weights must be there. Where the state has no discriminators they start over.
func (s *Session) loadJudges(in dict, moments bool, faults *[]string) (put func()) {
	j := &s.judges
	if !s.o.GAN.on() {
		for name, e := range in { // trained without them from now on
			if e.judge() {
				in[name].used = true
			}
		}
		return func() {}
	}
	if !judgesIn(in) {
		return s.initJudges
	}
	var puts []func()
	read := func(prefix string, block *nn.Block) {
		host := make([]float32, j.params.Floats())
		for _, p := range j.params.All() {
			name := prefix + j.judgeName(p)
			if !in.has(name) && !moments && in.has(p.Name) {
				name = p.Name // weights without spectral norm are as good a start
			}
			if data := in.get(name, fileShape(p), faults); data != nil {
				fromFile(p, host[p.Off/4:], data)
			}
		}
		puts = append(puts, func() { s.e.Write(block.At, host) })
	}
	read("", j.weights)
	if moments {
		read(prefixFirst, j.first)
		read(prefixSecond, j.second)
	}
	for _, k := range j.spectral {
		if name := k.p.Name + suffixU; moments || in.has(name) {
			u := in.get(name, []int{k.columns}, faults)
			puts = append(puts, func() { s.e.Write(j.vectors.At+k.u, u) })
		}
	}
	for _, n := range j.networks() {
		for _, b := range n.buffers {
			if !moments && !in.has(b.name+nameMean) {
				continue
			}
			c := []int{len(b.mean)}
			mean, variance := in.get(b.name+nameMean, c, faults), in.get(b.name+nameVariance, c, faults)
			var batches []float32
			if moments {
				batches = in.get(b.name+nameBatches, []int{3}, faults)
			}
			puts = append(puts, func() {
				copy(b.mean, mean)
				copy(b.variance, variance)
				if w, err := whole(batches); err == nil && len(w) == 1 {
					b.batches = w[0]
				}
			})
		}
	}
	if moments {
		anchors, counters := in.get(nameAnchors, []int{2 * len(j.networks())}, faults), in.get(nameJudgement, []int{2, 3}, faults)
		c, err := whole(counters)
		if err != nil {
			*faults = append(*faults, err.Error())
		}
		puts = append(puts, func() {
			for i, n := range j.networks() {
				n.real.Value, n.fake.Value = float64(anchors[2*i]), float64(anchors[2*i+1])
			}
			j.steps, j.delay = int(c[0]), int(c[1])
		})
	}
	return func() {
		s.initJudges()
		for _, put := range puts {
			put()
		}
		s.packed = nil
	}
}

// misfit is the option by which a state differs from the session's, nil for none.
func (s *Session) misfit(in dict) *OptionError {
	onOff := map[bool]string{false: "0", true: "more than 0"}
	o := &s.o.GAN
	keys := []OptionError{{"ema", onOff[s.o.EMA > 0], onOff[in.has(prefixAverage+s.params.All()[0].Name)]}}
	if o.on() && judgesIn(in) {
		norm, channels, layers, there := "none", 0, 0, map[string]bool{}
		for name, e := range in {
			network, _, _ := strings.Cut(name, ".")
			switch {
			case !ofDiscriminator(name):
				continue
			case strings.HasSuffix(name, suffixOrig):
				norm = "spectral"
			case strings.HasSuffix(name, nameMean):
				norm = "batch"
			case strings.HasSuffix(name, ".model0.0.bias") && len(e.Shape) == 1:
				channels, there[network] = e.Shape[0], true
			}
			for in.has(fmt.Sprintf("%s.model%d.0.bias", network, layers+2)) {
				layers++
			}
		}
		keys = append(keys, OptionError{"gan.image", onOff[o.Image > 0], onOff[there["image_discriminator"]]},
			OptionError{"gan.volume", onOff[o.Volume > 0], onOff[there["video_discriminator"]]}, OptionError{"gan.norm", o.Norm, norm},
			OptionError{"gan.channels", strconv.Itoa(o.Channels), strconv.Itoa(channels)},
			OptionError{"gan.layers", strconv.Itoa(o.Layers), strconv.Itoa(layers)})
	}
	for _, k := range keys {
		if k.Is != k.Was {
			return &k
		}
	}
	return nil
}

// judge reports whether an array is the discriminators'.
func (e *entry) judge() bool {
	name := e.Name
	for _, prefix := range []string{prefixFirst, prefixSecond} {
		if belongs(name, prefix) {
			name = name[len(prefix):]
		}
	}
	return ofDiscriminator(name) || name == nameAnchors || name == nameJudgement
}

// SetGANStart delays the discriminators to a step, if they don't begin later anyway. It is part of the state.
func (s *Session) SetGANStart(step int) { s.judges.delay = step }
