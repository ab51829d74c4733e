package vqgan

import (
	"fmt"
	"math"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/optim"
)

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
//
// It is Feed, Launch and Finish. Who calls those can feed the next step while the engine is at one.
func (s *Session) Step(input, target []float32, n int, lr float64) (Stats, error) {
	if err := s.Feed(input, target, n); err != nil {
		return Stats{}, err
	}
	s.Launch()
	return s.Finish(lr)
}

// feed is the patches of the step that is to be launched next.
type feed struct {
	input, target []float32
	n             int
}

// flight is a step that was launched.
type flight struct {
	n      int
	phase  phase
	fresh  bool // it quantises with the very first codes
	passes []pass
	err    error // nothing was launched
}

// pass is a micro-batch that ran.
type pass struct {
	*program
	share float64 // of the batch
}

// Feed begins to bring n patches to the engine, for the next Launch, while the step before may be under way. input and target
// must stay as they are until Launch returns.
func (s *Session) Feed(input, target []float32, n int) error {
	if n < 1 || n > s.o.Batch || len(input) != n*s.voxels() || len(target) != len(input) {
		return fmt.Errorf("batch: %d patches, %d and %d voxels (want 1 to %d patches of %d)", n, len(input), len(target),
			s.o.Batch, s.voxels())
	}
	s.fed = &feed{input, target, n}
	s.upload(s.fed, 0)
	return nil
}

// upload begins to bring the micro-batch that begins at a patch to the engine.
func (s *Session) upload(b *feed, at int) {
	from, to := at*s.voxels(), min(at+s.o.MicroBatch, b.n)*s.voxels()
	s.e.Upload(s.staged.At, b.input[from:to])
	if b.apart() {
		s.e.Upload(s.stagedTarget(), b.target[from:to])
	}
}

// apart says whether targets aren't the inputs themselves.
func (b *feed) apart() bool { return &b.input[0] != &b.target[0] }

func (s *Session) stagedTarget() gpu.Ptr { return s.staged.At + gpu.Ptr(s.staged.Bytes/2) }

// Launch begins the step on what was fed: forward and backward, whose results Finish waits for. In between nothing but Feed may be called.
func (s *Session) Launch() {
	b := s.fed
	if b == nil || s.flight != nil {
		panic("vqgan: Launch without Feed or Finish")
	}
	f := &flight{n: b.n, fresh: s.unborn()}
	s.fed, s.flight = nil, f
	f.phase, s.ramp.Value = s.phaseOf(s.step + 1)
	if f.fresh {
		if f.err = s.firstCodes(b.input, b.n); f.err != nil {
			return
		}
	}
	if f.phase > plain {
		s.judges.prepare(s.e)
		s.packed = nil // the weights over their singular values changed
	}
	s.e.Fill(s.grads.At, s.params.Floats(), 0)
	s.result.clear(s.e)
	for _, l := range s.levels {
		if l.picks = nil; l.book != nil && !f.fresh {
			l.picks = l.book.picks(f.n * s.cells())
		}
	}
	s.result.place(s)
	s.passes(f.n, f.phase, func(p *program, at int) {
		if at > 0 {
			s.upload(b, at)
		}
		target := s.staged.At
		if b.apart() {
			target = s.stagedTarget()
		}
		p.Store(s.e, p.input, s.staged.At)
		p.Store(s.e, p.target, target)
		s.cut(p, at)
		s.look(p, at)
		s.call.Share = float64(p.n) / float64(f.n)
		p.Run(s.e, &s.call)
		s.result.take(s, p, len(f.passes), at)
		f.passes = append(f.passes, pass{p, s.call.Share})
	})
	s.e.SumSquares(s.grads.At, s.params.Floats(), s.result.at(ofModel), s.work.At)
	if f.phase > plain {
		s.judges.measure(s.e, s.result.at(ofJudges))
	}
}

// Finish waits for the step that was launched, and takes it at a learning rate, as Step does.
func (s *Session) Finish(lr float64) (Stats, error) {
	f := s.flight
	if f == nil {
		panic("vqgan: Finish without Launch")
	}
	s.flight = nil
	if f.err != nil {
		return Stats{}, f.err
	}
	stats, err := s.hearken(f)
	if err != nil {
		if f.fresh {
			s.clearBooks()
		}
		return stats, err
	}
	s.update(&stats, f, lr)
	return stats, nil
}

// hearken waits for a step's results and says what they mean. It changes nothing of the state.
func (s *Session) hearken(f *flight) (Stats, error) {
	r := &s.result
	r.read(s.e)
	stats := Stats{Voxels: f.n * s.voxels()}
	if err := s.e.Sync(); err != nil {
		return stats, fmt.Errorf("step %d: %w", s.step+1, err)
	}
	wrong := 0.0
	for i, p := range f.passes {
		left := r.of(i)
		loss := p.loss.Of(left)
		stats.L1 += p.share * float64(loss[0])
		stats.L2 += p.share * float64(loss[1])
		stats.Clipped += p.share * float64(loss[2])
		wrong += float64(loss[3])
		for _, k := range p.quantised.each {
			if k.Loss != nil {
				stats.Commitment += p.share * float64(k.Loss.Of(left)[0])
			}
		}
		if p.ssim != nil {
			stats.SSIM += p.share * float64(p.ssim.Of(left)[0])
		}
		stats.Perceptual += p.share * p.distances(left)
		p.hear(left, p.share, &stats.GAN)
	}
	for i, l := range s.levels {
		l.used, l.totals = r.count(i, s.c.Codes)
	}
	stats.Total = s.o.Loss.L1*stats.L1 + s.o.Loss.L2*stats.L2 + s.o.Loss.SSIM*stats.SSIM + s.o.Loss.Commitment*stats.Commitment
	stats.Total += s.o.Perceptual.Weight * stats.Perceptual
	if f.phase > plain {
		s.sum(&stats.GAN)
		stats.GAN.clip, stats.GAN.GradNorm = optim.ClipFactor(float64(r.host[ofJudges]), s.o.Clip)
		stats.Total += s.o.GAN.Weight * s.ramp.Value * stats.GAN.Weight * (stats.GAN.Generator + s.o.GAN.Features*stats.GAN.Features)
	}
	stats.ClipFactor, stats.GradNorm = optim.ClipFactor(float64(r.host[ofModel]), s.o.Clip)
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

// update moves weights and codes by what was accumulated. What the engine has to do of it, it may do later.
func (s *Session) update(stats *Stats, f *flight, lr float64) {
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
	for i, p := range f.passes {
		p.remember(s.result.of(i))
	}
	s.packed = nil
	stats.Restarted = s.follow(f.n)
}
