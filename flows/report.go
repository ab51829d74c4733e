package flows

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/train"
)

// bottleneck finds what bounds a graph. It is the train stage's.
type bottleneck struct {
	stats func() []pipe.Stat
	by    string
	last  []pipe.Stat
	at    time.Time
}

// lately is what bounded it since about a second ago.
func (b *bottleneck) lately() string {
	if time.Since(b.at) > time.Second {
		now := b.stats()
		b.by, b.last, b.at = observe.BoundBy(b.last, now), now, time.Now()
	}
	return b.by
}

// report records an optimiser step.
func (r *run) report(s train.Step) {
	rss, goroutines := observe.Resources()
	rec := observe.Step{
		Step: s.Step, Epoch: s.Cursor.Epoch, Recon: s.Stats.L1, Commitment: s.Stats.Commitment, Loss: s.Stats.Total,
		Perplexity: s.Stats.Perplexity, PSNR: s.Stats.PSNR(), GradNorm: s.Stats.GradNorm, LR: s.LR,
		Seconds: s.Seconds, VoxelsPerSecond: float64(s.Voxels) / s.Seconds, BoundBy: r.bound.lately(), RSS: rss, Goroutines: goroutines,
		More: r.more(s.Stats),
	}
	r.wrote(r.metrics.Train(rec))
	r.progress.Step(rec, s.Total)
	r.watch.took(rec, s.Total)
	r.watch.events.step(rec)
	r.late(s)
}

// more is what the quantiser says, and the losses that the run has beside the autoencoder's.
func (r *run) more(s vqgan.Stats) map[string]float64 {
	o, _ := option[train.Options](r.job)
	model := &r.job.model
	more := map[string]float64{"train/codebook_usage": float64(s.Used) / float64(model.Depth()*model.Codes)}
	if model.Quantizer != vqgan.FSQ {
		more["train/codebook_restarts"] = float64(s.Restarted)
	}
	if o.Loss.SSIM > 0 {
		more["train/ssim_loss"] = s.SSIM
	}
	if o.Perceptual.On() {
		more["train/perceptual_loss"] = s.Perceptual
	}
	if g := s.GAN; g.Active {
		maps.Copy(more, map[string]float64{"train/gan_loss": g.Generator, "train/disc_loss": g.Discriminator, "train/gan_feat_loss": g.Features,
			"train/gan_weight": o.GAN.Weight * g.Ramp * g.Weight, "train/logits_real": g.Real, "train/logits_fake": g.Fake,
			"train/disc_grad_norm": g.GradNorm})
		if g.R1 > 0 {
			more["train/r1"] = g.R1
		}
	}
	return more
}

// wrote keeps the first error by which metrics are lost; for a full disk it waits.
func (r *run) wrote(err error) {
	if full(err) {
		err = r.patiently(r.metrics.Flush)
	}
	if err != nil && r.metricsErr == nil {
		r.metricsErr = err
	}
}

// status shows what the run does beside taking steps, and is a sign of life.
func (r *run) status(text string) {
	r.progress.Status(text)
	r.watch.pulse.Add(1)
}

// validate measures the model on the held-out scans, records it and draws a picture. What can't be recorded or drawn
// doesn't end the run: a disk without room does that when the checkpoint is written, and says what to do.
func (r *run) validate(ctx context.Context, step int) (map[string]float64, error) {
	r.await(ctx, r.parts.validation, "a validation")
	values, pic, err := r.validator.measure(ctx)
	r.status("")
	if err != nil {
		return nil, err
	}
	if values == nil {
		r.log.Warn().Msg("every held-out scan is in quarantine: nothing is validated")
		return nil, nil
	}
	if r.session.Adversarial() == 1 {
		values[checkpoint.Adversarial] = 1
	}
	v := observe.Val{Step: step, Epoch: r.loop.Cursor.Epoch, Metrics: values}
	r.wrote(r.metrics.Validation(v))
	r.progress.Validation(v)
	r.values = values
	r.watch.validated(values, r.validator.scans, r.validator.counts)
	r.watch.events.validation(v, r.validator.counts)
	if err := r.draw(step, pic, values); err != nil {
		r.log.Warn().Err(err).Msg("no picture of this validation")
	}
	return values, nil
}

// draw writes the picture of a validation.
func (r *run) draw(step int, pic *picture, values map[string]float64) error {
	window := r.validator.read.WindowHU
	weights, psnr := "raw", "val/psnr"
	if r.validator.ema {
		weights, psnr = "EMA", "val/ema_psnr"
	}
	path := r.samplePath(step)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	err := pic.write(path, window, fmt.Sprintf("step %d, %s weights, held-out scan", step, weights),
		fmt.Sprintf("validation PSNR %.2f dB, trilinear baseline %.2f dB, window %g to %g HU", values[psnr], values["val/psnr_trilinear"], window[0], window[1]))
	if err == nil {
		r.sample = path
		r.watch.drew(path)
		r.watch.events.picture(step, path)
		err = r.thinSamples()
	}
	return err
}

// done says how a run ended that got to its end.
func (r *run) done() {
	e := r.log.Info().Str("event", "done")
	if r.loop != nil {
		e = e.Int("steps", r.loop.Step)
		if g := r.loop.Guard; g != nil && g.Incidents > 0 {
			e = e.Int("incidents", g.Incidents)
		}
	}
	if r.last != "" {
		e = e.Str("checkpoint", r.last)
	}
	if v := r.values; v != nil {
		for _, name := range []string{"psnr", "psnr_trilinear", "ssim", "ema_psnr", "ema_ssim"} {
			if x, ok := v["val/"+name]; ok {
				e = e.Float64(name, math.Round(x*1e4)/1e4)
			}
		}
	}
	if n := r.quarantine.Len(); n > 0 {
		e = e.Int("quarantined", n)
	}
	if r.sample != "" {
		e = e.Str("picture", r.sample)
	}
	e.Msg("done")
}

// close gives back what the run holds, and tells what of its records was lost.
func (r *run) close() error {
	var err error
	if r.metrics != nil {
		err = errors.Join(r.metricsErr, r.metrics.Close())
	}
	if r.queues != nil {
		r.queues.close()
	}
	if r.engine != nil {
		err = errors.Join(err, r.engine.Close())
	}
	return err
}
