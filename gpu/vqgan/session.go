// Package vqgan is the 3D VQ-GAN of medicaldiffusion (after TATS): encoder, quantiser, decoder and discriminators, its training step
// and its state. A Session holds a model on one engine: Step trains on a batch, Reconstruct runs it, State and SetState
// move everything that a run needs to go on with the same bits.
//
// Reading order: config.go, model.go (the network), quantiser.go (how latents become codes), codebook.go (how codes follow latents),
// levels.go (what a session keeps of each codebook), options.go, session.go, step.go and results.go (a step, and what it says),
// state.go (names and layouts in files), key.go (randomness by what it is for), coder.go (inference alone: the two
// halves of the model at any size), field.go (how far a code sees); losses of networks: discriminator.go, gan.go and judges.go,
// perceptual.go; state dicts: statedict.go and tensors.go.
package vqgan

import (
	"fmt"
	"math"
	"slices"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/nn"
)

// Session is a model on an engine. It is not for concurrent use.
type Session struct {
	e gpu.Engine
	c Config
	o Options

	params                        nn.Params
	layout                        nn.Layout
	weights, grads, first, second *nn.Block
	average                       *nn.Block // nil without EMA
	work                          *nn.Block
	levels                        []*level
	judges                        judges
	lpips                         lpips

	train  [phases][]*program // by patches - 1; nil where a phase never comes
	infer  *program
	single *program // reconstructs what is left over, one by one
	packed *program // whose packed weights are in place, of the weights at packedOf
	latest *program // that ran: its packed weights are in place as far as nothing trains them

	packedOf *nn.Block

	step   int // optimiser steps taken
	fed    *feed
	flight *flight
	staged *nn.Block // a micro-batch that was fed: inputs, targets
	result results

	// Host memory that is used again and again.
	grid  []int32   // codes of one level, of a pass of Reconstruct
	where []float32 // slices of a micro-batch

	at   func(plane string, patch int) []float32 // where tests cut them, from a patch of the batch on
	ramp nn.Factor                               // of the adversarial weights
	call nn.Call
}

// PlanFor says what Open would reserve. It allocates nothing on the engine. With a *MemoryError it returns the plan too.
func PlanFor(e gpu.Engine, c Config, o Options) (*nn.Plan, error) {
	s, err := design(e, c, o)
	if s == nil {
		return nil, err
	}
	return s.Plan(), err
}

// Open reserves the engine's arena and starts a model at step 0 (Init).
func Open(e gpu.Engine, c Config, o Options) (*Session, error) {
	s, err := design(e, c, o)
	if err != nil {
		return nil, err
	}
	if err := e.Reserve(s.layout.Bytes()); err != nil {
		return nil, err
	}
	s.where = make([]float32, s.o.MicroBatch*s.o.GAN.Slices)
	s.result.host = make([]float32, s.result.block.Bytes/4)
	if err := s.fillPerceptual(); err != nil {
		return nil, err
	}
	if err := s.Init(); err != nil {
		return nil, err
	}
	return s, nil
}

// design builds everything but the arena. With a *MemoryError it returns the session too.
func design(e gpu.Engine, c Config, o Options) (*Session, error) {
	if err := o.check(&c); err != nil {
		return nil, err
	}
	s, err := assemble(e, c, o)
	if err != nil {
		return nil, err
	}
	need := s.layout.Bytes()
	if o.MemoryLimit == 0 || need <= o.MemoryLimit {
		return s, nil
	}
	tight := &MemoryError{Need: need, Limit: o.MemoryLimit, Hint: " (a smaller patch needs less)"}
	if o.MicroBatch > 1 || o.Infer > 1 {
		o.MicroBatch, o.Infer = 1, 1
		if one, err := assemble(e, c, o); err == nil {
			tight.Hint = fmt.Sprintf(" (micro_batch: 1 needs %s, a smaller patch less)", gib(one.layout.Bytes()))
		}
	}
	return s, tight
}

func assemble(e gpu.Engine, c Config, o Options) (*Session, error) {
	s := &Session{e: e, c: c, o: o}
	s.addLevels()

	// The smallest program of all names the parameters, so that the blocks' sizes are known before the limit is divided.
	var err error
	if s.single, err = s.inference(1); err != nil {
		return nil, err
	}
	n := s.params.Bytes()
	s.weights = s.layout.Add("weights", nn.Parameters, n)
	s.grads = s.layout.Add("gradients", nn.Gradients, n)
	s.first = s.layout.Add("first moments", nn.Moments, n)
	s.second = s.layout.Add("second moments", nn.Moments, n)
	if o.EMA > 0 {
		s.average = s.layout.Add("weight averages", nn.Averages, n)
	}
	s.work = s.layout.Add("gradient norm workspace", nn.Scratch, e.SumSquaresWork(s.params.Floats()))
	s.params.Weights, s.params.Grads = s.weights.At, s.grads.At
	if err := s.assembleJudges(); err != nil {
		return nil, err
	}
	if err := s.assemblePerceptual(); err != nil {
		return nil, err
	}

	wanted := []phase{plain}
	if o.GAN.on() {
		wanted = append(wanted, adversarial)
		if o.GAN.R1 > 0 {
			wanted = append(wanted, regularised)
		}
	}
	wholes, graphs, most := [phases]*program{}, [phases]*nn.Graph{}, 0
	for _, ph := range wanted {
		wholes[ph], graphs[ph] = s.training(o.MicroBatch, ph)
		most = max(most, graphs[ph].Results())
	}
	s.newBooks()
	s.addResults(most)
	s.staged = s.layout.Add("next batch", nn.Staged, 2*4*int64(o.MicroBatch*s.voxels()))
	limit := int64(0)
	if o.MemoryLimit > 0 {
		limit = max(1, o.MemoryLimit-s.layout.Size())
	}
	options := nn.Options{Train: true, Recompute: o.recompute, MemoryLimit: limit}
	for _, ph := range wanted {
		whole := wholes[ph]
		if err := whole.compile(graphs[ph], s.e, options); err != nil {
			return nil, err
		}
		// Any part of a micro-batch can be left over at the end of a batch. Where the whole doesn't fit, parts change nothing.
		for n := 1; n < o.MicroBatch && (limit == 0 || whole.Bytes() <= limit); n++ {
			part, g := s.training(n, ph)
			if err := part.compile(g, s.e, options); err != nil {
				return nil, err
			}
			s.train[ph] = append(s.train[ph], part)
		}
		s.train[ph] = append(s.train[ph], whole)
	}
	if s.infer = s.single; o.Infer > 1 {
		if s.infer, err = s.inference(o.Infer); err != nil {
			return nil, err
		}
	}
	for _, programs := range slices.Backward(s.train[:]) {
		for _, p := range slices.Backward(programs) {
			s.layout.Bind(p.Program)
		}
	}
	s.layout.Bind(s.infer.Program)
	if s.single != s.infer {
		s.layout.Bind(s.single.Program)
	}
	return s, nil
}

// Plan says what the arena's bytes are for. Its first program is that of a whole micro-batch.
func (s *Session) Plan() *nn.Plan {
	p := s.layout.Plan()
	p.Parameters, p.State = s.params.Count(), s.StateBytes()
	p.Judges = s.judges.params.Count()
	return p
}

// Latents is the size of a patch's code grid, x, y, z.
func (s *Session) Latents() [3]int { return s.c.Latents(s.o.Patch) }

func (s *Session) voxels() int { return s.o.Patch[0] * s.o.Patch[1] * s.o.Patch[2] }

// cells is the number of latents of a patch, codesLen of their codes.
func (s *Session) cells() int { return product(s.Latents()) }

func (s *Session) codesLen() int { return s.cells() * s.c.Depth() }

// passes calls f for each micro-batch of n patches, with its program of a phase, ready to run, and its first patch.
func (s *Session) passes(n int, ph phase, f func(p *program, at int)) {
	for at := 0; at < n; {
		p := s.train[ph][min(s.o.MicroBatch, n-at)-1]
		s.use(p, s.weights)
		f(p, at)
		at += p.n
	}
}

// use makes a program ready to run on weights.
func (s *Session) use(p *program, weights *nn.Block) {
	s.params.Weights = weights.At
	if s.packed != p || s.packedOf != weights {
		var changed []*nn.Params
		if s.latest == p {
			changed = []*nn.Params{&s.params, &s.judges.params}
		}
		p.Pack(s.e, changed...)
		s.packed, s.packedOf, s.latest = p, weights, p
	}
}

// Profile times the ops of one micro-batch of n patches, 1 to Options.MicroBatch: forward and backward, in order. It
// changes nothing of the state.
func (s *Session) Profile(input, target []float32, n int) ([]nn.Timing, error) {
	if n < 1 || n > s.o.MicroBatch || len(input) != n*s.voxels() || len(target) != len(input) {
		return nil, fmt.Errorf("profile: %d patches, %d and %d voxels (want 1 to %d patches of %d)", n, len(input), len(target),
			s.o.MicroBatch, s.voxels())
	}
	p := s.train[s.last()][n-1]
	s.use(p, s.weights)
	p.Write(s.e, p.input, input)
	p.Write(s.e, p.target, target)
	s.cut(p, 0)
	s.look(p, 0)
	return p.Profile(s.e, nn.Call{Share: 1})
}

// last is the phase that training ends in, R1's steps aside.
func (s *Session) last() phase {
	if s.o.GAN.on() {
		return adversarial
	}
	return plain
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// Reconstruct runs the model on n patches src [n, D, H, W] and writes dst, of the same shape, and codes [n, z, y, x, depth] where it
// isn't nil. With ema it uses the running means of the weights. Both go with the live codebooks. Nothing of the state changes,
// and a patch's result doesn't depend on its neighbours in the batch.
func (s *Session) Reconstruct(dst, src []float32, n int, ema bool, codes []int32) error {
	switch {
	case n < 1 || len(src) != n*s.voxels() || len(dst) != len(src) || codes != nil && len(codes) != n*s.codesLen():
		return fmt.Errorf("reconstruct: %d patches, %d voxels to %d, %d codes (want %d voxels and %d codes a patch)", n, len(src),
			len(dst), len(codes), s.voxels(), s.codesLen())
	case ema && s.average == nil:
		return fmt.Errorf("reconstruct: there are no running means of the weights (ema is off)")
	}
	weights := s.weights
	if ema {
		weights = s.average
	}
	reconstruct(s.e, s.infer, s.single, func(p *program) { s.use(p, weights) }, dst, src, n, codes, &s.grid)
	if err := s.e.Sync(); err != nil {
		return fmt.Errorf("reconstruct: %w", err)
	}
	return nil
}

// reconstruct runs n patches: through many as long as there are enough for it, then through single. use makes a program ready.
// scratch is room for codes of one level, if there are several.
func reconstruct(e gpu.Engine, many, single *program, use func(*program), dst, src []float32, n int, codes []int32, scratch *[]int32) {
	voxels, each := len(src)/n, len(codes)/n
	for at := 0; at < n; {
		p := many
		if n-at < p.n {
			p = single
		}
		use(p)
		p.Write(e, p.input, src[at*voxels:(at+p.n)*voxels])
		p.Run(e, &nn.Call{})
		p.Read(e, p.y, dst[at*voxels:(at+p.n)*voxels])
		if codes != nil {
			p.codes(e, codes[at*each:(at+p.n)*each], scratch)
		}
		at += p.n
	}
}
