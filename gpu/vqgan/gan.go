package vqgan

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/nn"
)

// GAN is the options of adversarial training: discriminators that learn to tell reconstructions from scans while the generator
// learns to deceive them. The losses and their weights are TATS' (Ge et al., 2022) unless an option says otherwise.
//
// Generator and discriminators take their steps from the same reconstructions and at the same time, as pix2pixHD does: the
// predecessor reconstructs a second time for the discriminators.
type GAN struct {
	Weight   float64  `key:"weight" default:"0" min:"0" example:"1" doc:"Weight of the adversarial loss. 0 is off: then nothing of it costs memory or time. The predecessor used 1."`
	Start    int      `key:"start" default:"5000" unit:"steps" min:"0" doc:"Optimiser step behind which the discriminators begin to learn. The autoencoder should be good by then."`
	Ramp     int      `key:"ramp" default:"1000" unit:"steps" min:"0" doc:"Steps over which the adversarial weights grow from 0 to what they are, from the discriminators' first: also in a run that got them late."`
	Loss     string   `key:"loss" default:"hinge" oneof:"hinge vanilla squares" doc:"What discriminators minimise. vanilla is the cross-entropy of the first GANs, squares that of LSGAN."`
	Image    float64  `key:"image" default:"1" min:"0" doc:"Share of the discriminator that sees single slices. 0 leaves it out."`
	Volume   float64  `key:"volume" default:"1" min:"0" doc:"Share of the discriminator that sees whole patches. 0 leaves it out."`
	Planes   []string `key:"planes" default:"[z]" oneof:"x y z" doc:"Axes across which slices are cut for the slice discriminator, at random places: z gives axial slices."`
	Slices   int      `key:"slices" default:"1" min:"1" max:"64" doc:"Slices per patch and plane."`
	Channels int      `key:"channels" default:"64" min:"1" max:"512" doc:"Channels of the discriminators' first layer. They double with each halving, up to 512."`
	Layers   int      `key:"layers" default:"3" min:"1" max:"6" doc:"Layers of the discriminators that halve the resolution."`
	Norm     string   `key:"norm" default:"none" oneof:"none spectral batch" doc:"spectral divides the weights by their largest singular value. batch is the predecessor's BatchNorm; its statistics are those of a micro-batch."`
	LR       float64  `key:"lr" default:"1" min:"0" doc:"Learning rate of the discriminators as a multiple of the generator's."`
	Beta1    float64  `key:"beta1" default:"0.5" min:"0" max:"0.9999" doc:"Adam's decay of the discriminators' first moment."`
	Beta2    float64  `key:"beta2" default:"0.9" min:"0" max:"0.9999999" doc:"Adam's decay of the discriminators' second moment."`
	Features float64  `key:"features" default:"4" min:"0" doc:"Weight of feature matching: the mean absolute difference between the discriminators' features of scans and reconstructions. 0 is off."`
	Adaptive float64  `key:"adaptive" default:"0" min:"0" example:"10000" doc:"Multiply the adversarial weights by the ratio of the other losses' gradient at the last layer to theirs, as taming-transformers does, up to this cap. 0 is off."`
	LeCam    float64  `key:"lecam" default:"0" min:"0" example:"0.001" doc:"Weight of LeCam, which holds the discriminators' logits near their running means: for few scans. 0 is off."`
	R1       float64  `key:"r1" default:"0" min:"0" example:"10" doc:"Weight of the discriminators' squared gradient at scans, by central differences. 0 is off."`
	R1Every  int      `key:"r1_every" default:"16" unit:"steps" min:"1" doc:"How often R1 is applied. Its weight is multiplied by this, so that the mean is the same."`
}

// Check says whether the keys fit each other.
func (o *GAN) Check() error {
	switch {
	case o.Weight > 0 && o.Image == 0 && o.Volume == 0:
		return fmt.Errorf("image: this and volume are both 0: there would be no discriminator; give one of them a weight, or set weight: 0")
	case o.Weight > 0 && o.Image > 0 && len(o.Planes) == 0:
		return fmt.Errorf("planes: [] (want at least one of x, y, z, or image: 0)")
	}
	for i, p := range o.Planes {
		if slices.Contains(o.Planes[:i], p) {
			return fmt.Errorf("planes: %s is there twice", p)
		}
	}
	return nil
}

// on reports whether there are discriminators.
func (o *GAN) on() bool { return o.Weight > 0 }

// GANStats is what adversarial training has to say of a step. Means are over the batch, sums over discriminators.
type GANStats struct {
	Active        bool    // the discriminators learn
	Generator     float64 // the generator's loss, unweighted
	Discriminator float64 // the mean of the discriminators' losses on scans and reconstructions, by their shares; hinge begins at 1
	Features      float64 // feature matching, unweighted
	Real, Fake    float64 // mean logits of scans and of reconstructions, over the discriminators
	Ramp          float64 // 0 to 1
	Weight        float64 // adaptive weight; 1 where that is off
	R1            float64 // the squared gradient at scans, where it was applied; else 0
	GradNorm      float64 // of the discriminators, before clipping

	clip float64
}

// phase is which losses a training program has.
type phase int

const (
	plain       phase = iota // before GAN.Start
	adversarial              // with discriminators
	regularised              // and with R1
	phases
)

// nudge is the size of R1's finite difference, per voxel: a share of the intensities' range of 2 that float32 resolves well.
const nudge = 0.01

// lecamDecay is that of the running means of logits.
const lecamDecay = 0.99

// critic is a discriminator in a program: what it has to say.
type critic struct {
	network                *network
	share                  float64 // in the losses
	part                   float64 // of the network's runs
	onFake, onReal, wanted *nn.Scalars
	features               []*nn.Scalars
	slope                  *nn.Scalars   // of R1; nil where it isn't applied
	batches                [][]batchNorm // of scans, then of reconstructions
}

// heads adds the losses on a reconstruction y but the reconstruction loss: they are what the plain phase has too (similarity,
// LPIPS), and the discriminators'.
func (s *Session) heads(g *nn.Graph, p *program, ph phase) {
	own, weighted := p.y, p.y
	if ph > plain && s.o.GAN.Adaptive > 0 {
		b := g.Balance("adaptive", p.y, s.o.GAN.Adaptive, nn.Weight{Constant: s.o.GAN.Weight, By: &s.ramp})
		own, weighted, p.lambda = b.Plain, b.Weighted, b.Lambda
	}
	p.loss = g.ReconLoss("reconstruction", own, p.target, s.o.Loss.L1, s.o.Loss.L2)
	if s.o.Loss.SSIM > 0 {
		g.Segment(func() {
			p.ssim = g.Similarity("ssim", &s.params, own, p.target, similarity(s.o.Patch), nn.Weight{Constant: s.o.Loss.SSIM})
		})
	}
	s.perceive(g, p, own)
	if ph == plain {
		return
	}
	o := &s.o.GAN
	if n := s.judges.image; n != nil {
		for _, plane := range o.Planes {
			axis := int('z' - plane[0])
			at := g.Input("slices across "+plane, gpu.Dims{N: p.n * o.Slices, D: 1, H: 1, W: 1, C: 1})
			p.planes = append(p.planes, plan{at, axis})
			g.Segment(func() {
				fake, real := g.Slices("reconstruction across "+plane, weighted, axis, at), g.Slices("scan across "+plane, p.target, axis, at)
				s.criticise(g, p, ph, n, "image "+plane+" ", o.Image/float64(len(o.Planes)), fake, real)
			})
		}
	}
	if n := s.judges.volume; n != nil {
		g.Segment(func() { s.criticise(g, p, ph, n, "volume ", o.Volume, weighted, p.target) })
	}
}

// plan is where slices are cut.
type plan struct {
	at   *nn.Value
	axis int
}

// criticise adds one discriminator's losses and those of the generator on it.
func (s *Session) criticise(g *nn.Graph, p *program, ph phase, n *network, scope string, share float64, fake, real *nn.Value) {
	o, judges := &s.o.GAN, &s.judges.params
	loss := map[string]gpu.Adversary{"hinge": gpu.Hinge, "vanilla": gpu.Vanilla, "squares": gpu.Squares}[o.Loss]
	leaf := g.Leaf(real)
	c := critic{network: n, share: share, part: 1}
	if !n.volume {
		c.part /= float64(len(o.Planes))
	}
	ofReal := n.build(g, judges, scope+"scan ", real)
	ofFake := n.build(g, judges, scope+"reconstruction ", fake)
	c.batches = [][]batchNorm{ofReal.batches, ofFake.batches}

	half := nn.Weight{Constant: share / 2}
	var onReal, onFake *nn.Lecam
	if o.LeCam > 0 {
		onReal, onFake = &nn.Lecam{Weight: o.LeCam, Anchor: &n.fake}, &nn.Lecam{Weight: o.LeCam, Anchor: &n.real}
	}
	c.onReal = g.Judge(scope+"on scan", judges, ofReal.logits, gpu.Judge{Loss: loss, Side: gpu.OnReal}, half, onReal)
	c.onFake = g.Judge(scope+"on reconstruction", judges, ofFake.logits, gpu.Judge{Loss: loss, Side: gpu.OnFake}, half, onFake)
	if ph == regularised {
		slope := g.Slope(scope+"slope", ofReal.logits, real, leaf)
		if slope != nil {
			h := nudge * math.Sqrt(float64(slope.Len()))
			moved := g.Nudge(scope+"nudge", real, slope, h, nn.Weight{Constant: share * o.R1 * float64(o.R1Every)})
			c.slope = moved.Norm
			ahead, behind := n.build(g, judges, scope+"ahead ", moved.Ahead), n.build(g, judges, scope+"behind ", moved.Behind)
			g.JudgeAlong(scope+"along", judges, ahead.logits, behind.logits, moved)
		}
	}
	w := nn.Weight{Constant: o.Weight * share, By: &s.ramp}
	if o.Adaptive > 0 {
		w = nn.Weight{Constant: share} // the rest is multiplied with the adaptive weight
	}
	c.wanted = g.Judge(scope+"deceived", &s.params, ofFake.logits, gpu.Judge{Loss: loss, Side: gpu.OfGenerator}, w, nil)
	if o.Features > 0 {
		for i, f := range ofFake.features {
			w := w
			w.Constant *= o.Features
			c.features = append(c.features, g.Match(fmt.Sprintf("%sfeatures %d", scope, i), &s.params, f, ofReal.features[i], w))
		}
	}
	p.critics = append(p.critics, c)
}

// phaseOf is the phase of a step, counted from 1, and how far the ramp is. Discriminators that are new, in a run that was behind their
// start already, have all of it before them.
func (s *Session) phaseOf(step int) (phase, float64) {
	o := &s.o.GAN
	n := min(step-max(o.Start, s.judges.delay), s.judges.steps+step-s.step)
	if !o.on() || n < 1 {
		return plain, 0
	}
	ramp := 1.0
	if n < o.Ramp {
		ramp = float64(n) / float64(o.Ramp)
	}
	if o.R1 > 0 && step%o.R1Every == 0 {
		return regularised, ramp
	}
	return adversarial, ramp
}

// Adversarial is how far the ramp of the adversarial weights is with the steps taken, from 0 to 1.
func (s *Session) Adversarial() float64 {
	_, ramp := s.phaseOf(s.step)
	return ramp
}

// cut draws where a micro-batch's slices are cut and writes it.
func (s *Session) cut(p *program, at int) {
	for _, c := range p.planes {
		d := [3]int{p.target.D, p.target.H, p.target.W}[c.axis]
		r := rand.New(rand.NewPCG(key(s.o.Seed, "slices "+"zyx"[c.axis:c.axis+1]), uint64(s.step)<<20|uint64(at)))
		where := s.where[:c.at.N]
		for i := range where {
			where[i] = float32(r.IntN(d))
		}
		if s.at != nil {
			copy(where, s.at("zyx"[c.axis:c.axis+1], at))
		}
		p.Write(s.e, c.at, where)
	}
}

// hear adds what the discriminators of a micro-batch had to say, a share of the batch, in what it left.
func (p *program) hear(left []float32, share float64, said *GANStats) {
	for _, c := range p.critics {
		by := share * c.share
		for i, judged := range []*nn.Scalars{c.onReal, c.onFake} {
			x := judged.Of(left)
			said.Discriminator += by / 2 * float64(x[0])
			c.network.heard[i] += share * c.part * float64(x[1])
		}
		said.Generator += by * float64(c.wanted.Of(left)[0])
		for _, f := range c.features {
			said.Features += by * float64(f.Of(left)[0])
		}
		if c.slope != nil {
			norm := float64(c.slope.Of(left)[0])
			said.R1 += by * norm * norm / float64(p.n)
		}
	}
	if p.lambda != nil {
		said.Weight += share * float64(p.lambda.Of(left)[0])
	} else if len(p.critics) > 0 {
		said.Weight += share
	}
}

// remember updates the buffers of the discriminators' batch norms by what a micro-batch left.
func (p *program) remember(left []float32) {
	for _, c := range p.critics {
		for _, run := range c.batches {
			for i, b := range run {
				c.network.buffers[i].take(b.said.Of(left), b.voxels)
			}
		}
	}
}

// sum gives what is known when all micro-batches ran.
func (s *Session) sum(said *GANStats) {
	said.Active, said.Ramp, said.Real, said.Fake = true, s.ramp.Value, 0, 0
	said.Discriminator /= s.o.GAN.Image + s.o.GAN.Volume
	all := s.judges.networks()
	for _, n := range all {
		said.Real += n.heard[0] / float64(len(all))
		said.Fake += n.heard[1] / float64(len(all))
	}
}
