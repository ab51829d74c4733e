// Package vqgan is the 3D VQ-GAN of medicaldiffusion (after TATS): encoder, quantiser, decoder and discriminators, its training step
// and its state. A Session holds a model on one engine: Step trains on a batch, Reconstruct runs it, State and SetState
// move everything that a run needs to go on with the same bits.
//
// Reading order: config.go, model.go (the network), quantiser.go (how latents become codes), codebook.go (how codes follow latents),
// levels.go (what a session keeps of each codebook), session.go, state.go (names and layouts in files), coder.go (inference alone: the two
// halves of the model at any size), field.go (how far a code sees); losses of networks: discriminator.go, gan.go and judges.go,
// perceptual.go; state dicts: statedict.go and tensors.go.
package vqgan

import (
	"fmt"
	"math"
	"slices"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/nn"
	"github.com/flowrun/flowrun/gpu/optim"
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
	norm, work                    *nn.Block
	levels                        []*level
	judges                        judges
	lpips                         lpips

	train  [phases][]*program // by patches - 1; nil where a phase never comes
	infer  *program
	single *program // reconstructs what is left over, one by one
	packed *program // whose packed weights are in place, of the weights at packedOf
	latest *program // that ran: its packed weights are in place as far as nothing trains them

	packedOf *nn.Block

	step int // optimiser steps taken

	// Host memory that every step uses again.
	latents []float32 // of a micro-batch
	nearest []int32   // its codes of one level
	grid    []int32   // likewise, of a pass of Reconstruct
	scalars [4]float32
	where   []float32 // slices of a micro-batch

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
	s.latents, s.nearest = make([]float32, s.o.MicroBatch*s.latentLen()), make([]int32, s.o.MicroBatch*s.cells())
	s.where = make([]float32, s.o.MicroBatch*s.o.GAN.Slices)
	for _, l := range s.levels {
		if l.used = make([]float32, s.c.Codes); l.book != nil {
			l.totals = make([]float32, s.c.Codes*s.c.Embedding)
		}
	}
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
	s.norm = s.layout.Add("gradient norm", nn.Scratch, 4)
	s.work = s.layout.Add("gradient norm workspace", nn.Scratch, e.SumSquaresWork(s.params.Floats()))
	s.params.Weights, s.params.Grads = s.weights.At, s.grads.At
	if err := s.assembleJudges(); err != nil {
		return nil, err
	}
	if err := s.assemblePerceptual(); err != nil {
		return nil, err
	}

	limit := int64(0)
	if o.MemoryLimit > 0 {
		limit = max(1, o.MemoryLimit-s.layout.Size())
	}
	wanted := []phase{plain}
	if o.GAN.on() {
		wanted = append(wanted, adversarial)
		if o.GAN.R1 > 0 {
			wanted = append(wanted, regularised)
		}
	}
	for _, ph := range wanted {
		whole, err := s.training(o.MicroBatch, ph, limit)
		if err != nil {
			return nil, err
		}
		// Any part of a micro-batch can be left over at the end of a batch. Where the whole doesn't fit, parts change nothing.
		for n := 1; n < o.MicroBatch && (limit == 0 || whole.Bytes() <= limit); n++ {
			part, err := s.training(n, ph, limit)
			if err != nil {
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
	s.newBooks()
	return s, nil
}

// Plan says what the arena's bytes are for. Its first program is that of a whole micro-batch.
func (s *Session) Plan() *nn.Plan {
	p := s.layout.Plan()
	p.Parameters, p.State = s.params.Count(), s.StateBytes()
	p.Judges = s.judges.params.Count()
	return p
}

// Config is the model's shape.
func (s *Session) Config() Config { return s.c }

// Steps is the number of optimiser steps taken.
func (s *Session) Steps() int { return s.step }

// Latents is the size of a patch's code grid, x, y, z.
func (s *Session) Latents() [3]int { return s.c.Latents(s.o.Patch) }

func (s *Session) voxels() int { return s.o.Patch[0] * s.o.Patch[1] * s.o.Patch[2] }

// cells is the number of latents of a patch, codesLen of their codes, latentLen of their floats.
func (s *Session) cells() int { return product(s.Latents()) }

func (s *Session) codesLen() int { return s.cells() * s.c.Depth() }

func (s *Session) latentLen() int { return s.cells() * s.c.Embedding }

// Stats is what one optimiser step has to say. Means are over all voxels (or latents) of the batch.
type Stats struct {
	L1, L2       float64 // mean absolute and squared error, unweighted, intensities in [-1, 1]
	Clipped      float64 // mean squared error of both clipped to [-1, 1]
	SSIM         float64 // 1 - multi-scale SSIM, unweighted; 0 where it isn't a loss
	Perceptual   float64 // mean LPIPS of the slices that were compared, unweighted; 0 where it isn't a loss
	Commitment   float64 // mean squared distance of latents to their codes, unweighted; of two codebooks the sum, 0 with fsq
	Total        float64 // what was minimised
	GradNorm     float64 // before clipping
	ClipFactor   float64
	AverageDecay float64 // of the weights' running mean, this step
	Perplexity   float64 // of the codes in this step; of two codebooks the geometric mean
	Used         int     // codes, of both codebooks
	Restarted    int     // codes
	Voxels       int
	GAN          GANStats
}

// PSNR is in dB, over the whole window: 10·log10(2²/Clipped).
func (s Stats) PSNR() float64 { return 10 * math.Log10(4/s.Clipped) }

// Step takes one optimiser step on n patches, 1 to Options.Batch, at a learning rate. input and target are [n, D, H, W].
// Micro-batches are weighted so that the result is that of the mean over all n.
//
// Where the loss or the gradient isn't finite the step isn't taken and the error is a *NonFiniteError. Behind an error of the engine
// the session is of no more use.
func (s *Session) Step(input, target []float32, n int, lr float64) (Stats, error) {
	if n < 1 || n > s.o.Batch || len(input) != n*s.voxels() || len(target) != len(input) {
		return Stats{}, fmt.Errorf("batch: %d patches, %d and %d voxels (want 1 to %d patches of %d)", n, len(input), len(target),
			s.o.Batch, s.voxels())
	}
	var ph phase
	ph, s.ramp.Value = s.phaseOf(s.step + 1)
	fresh := s.unborn()
	if fresh {
		if err := s.firstCodes(input, n); err != nil {
			return Stats{}, err
		}
	}
	undo := s.judges.remember()
	stats, err := s.accumulate(input, target, n, ph, fresh)
	if err != nil {
		undo()
		if fresh {
			s.clearBooks()
		}
		return stats, err
	}
	err = s.update(&stats, n, lr)
	return stats, err
}

// accumulate sums gradients, counts and statistics over the micro-batches and clips. It changes nothing of the state.
func (s *Session) accumulate(input, target []float32, n int, ph phase, fresh bool) (Stats, error) {
	if ph > plain {
		s.judges.prepare(s.e)
		s.packed = nil // the weights over their singular values changed
	}
	s.e.Fill(s.grads.At, s.params.Floats(), 0)
	s.count(n, fresh)
	stats := Stats{Voxels: n * s.voxels()}
	wrong := 0.0
	s.passes(n, ph, func(p *program, at int) {
		share := float64(p.n) / float64(n)
		from, to := at*s.voxels(), (at+p.n)*s.voxels()
		p.Write(s.e, p.input, input[from:to])
		p.Write(s.e, p.target, target[from:to])
		s.cut(p, at)
		s.look(p, at)
		s.call.Share = share
		p.Run(s.e, &s.call)
		p.Scalars(s.e, p.loss, s.scalars[:])
		stats.L1 += share * float64(s.scalars[0])
		stats.L2 += share * float64(s.scalars[1])
		stats.Clipped += share * float64(s.scalars[2])
		wrong += float64(s.scalars[3])
		for _, k := range p.quantised.each {
			if k.Loss != nil {
				p.Scalars(s.e, k.Loss, s.scalars[:])
				stats.Commitment += share * float64(s.scalars[0])
			}
		}
		if p.ssim != nil {
			p.Scalars(s.e, p.ssim, s.scalars[:])
			stats.SSIM += share * float64(s.scalars[0])
		}
		stats.Perceptual += share * s.distances(p)
		s.hear(p, share, &stats.GAN)
		for i, l := range s.levels {
			if l.book != nil {
				s.gather(p, i, at, true)
			}
		}
	})
	s.e.SumSquares(s.grads.At, s.params.Floats(), s.norm.At, s.work.At)
	s.e.Read(s.scalars[:1], s.norm.At)
	if ph > plain {
		s.judges.measure(s.e)
		s.e.Read(s.scalars[1:2], s.judges.norm.At)
	}
	s.counted()
	if err := s.e.Sync(); err != nil {
		return stats, fmt.Errorf("step %d: %w", s.step+1, err)
	}
	stats.Total = s.o.Loss.L1*stats.L1 + s.o.Loss.L2*stats.L2 + s.o.Loss.SSIM*stats.SSIM + s.o.Loss.Commitment*stats.Commitment
	stats.Total += s.o.Perceptual.Weight * stats.Perceptual
	if ph > plain {
		s.sum(&stats.GAN)
		stats.GAN.clip, stats.GAN.GradNorm = optim.ClipFactor(float64(s.scalars[1]), s.o.Clip)
		stats.Total += s.o.GAN.Weight * s.ramp.Value * stats.GAN.Weight * (stats.GAN.Generator + s.o.GAN.Features*stats.GAN.Features)
	}
	stats.ClipFactor, stats.GradNorm = optim.ClipFactor(float64(s.scalars[0]), s.o.Clip)
	stats.Perplexity, stats.Used = s.usage()
	switch {
	case wrong > 0:
		return stats, &NonFiniteError{Step: s.step + 1, What: fmt.Sprintf("the reconstruction (%.0f of %d voxels)", wrong, stats.Voxels)}
	case !finite(stats.Total):
		return stats, &NonFiniteError{Step: s.step + 1, What: "the loss"}
	case !finite(stats.GradNorm):
		return stats, &NonFiniteError{Step: s.step + 1, What: "the gradient"}
	case !finite(stats.GAN.Discriminator):
		return stats, &NonFiniteError{Step: s.step + 1, What: "the discriminators' loss"}
	case !finite(stats.GAN.GradNorm):
		return stats, &NonFiniteError{Step: s.step + 1, What: "the discriminators' gradient"}
	}
	return stats, nil
}

// update moves weights and codes by what was accumulated.
func (s *Session) update(stats *Stats, n int, lr float64) error {
	s.step++
	average := gpu.Ptr(-1)
	if s.average != nil {
		average = s.average.At
		stats.AverageDecay = optim.AverageDecay(s.o.EMA, s.step)
	}
	s.e.AdamStep(optim.Adam(lr, s.o.Beta1, s.o.Beta2, stats.ClipFactor, stats.AverageDecay, s.step),
		s.weights.At, s.grads.At, s.first.At, s.second.At, average, s.params.Floats())
	if stats.GAN.Active {
		s.judges.update(s.e, &s.o.GAN, lr, stats.GAN.clip)
	}
	s.packed = nil
	stats.Restarted = s.follow(n)
	if err := s.e.Sync(); err != nil {
		return fmt.Errorf("step %d: %w", s.step, err)
	}
	return nil
}

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

// Profile times the ops of one micro-batch of n patches, 1 to Options.MicroBatch: forward and backward, by kind, longest
// first. It changes nothing of the state.
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
