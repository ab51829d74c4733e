package flows

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"text/tabwriter"
	"time"

	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/train"
)

// Bench measures a training file for some optimiser steps each: the model alone, on noise that is there; the stages before it
// alone; and both. It says which of the two bounds the run, and which ops the model's time goes into. Nothing of the run's folder is
// touched. The first step of each is not counted.
func Bench(ctx context.Context, path string, data []byte, overrides []string, steps int, w io.Writer) (err error) {
	if steps < 2 {
		return configErrorf("%s: %d steps to measure (want at least 2)", path, steps)
	}
	dir, err := os.MkdirTemp("", "flowrun-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	words := append([]string{}, overrides...)
	words = append(words, fmt.Sprintf("run.dir=%q", dir), fmt.Sprintf("train.max_steps=%d", steps+1), "train.validate.share=0")
	load := func() (*Job, *train.Options, error) {
		j, err := Load(path, data, words)
		if err != nil {
			return nil, nil, err
		}
		o, ok := option[train.Options](j)
		if !ok {
			return nil, nil, configErrorf("%s: no train stage (bench measures training)", path)
		}
		return j, o, j.checkDevices()
	}

	j, o, err := load()
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	defer func() { err = errors.Join(err, t.Flush()) }()
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", args...) } // Flush says what failed
	model, err := j.benchModel(ctx, *o, steps, line)
	if err != nil {
		return err
	}
	rates := [2]float64{}
	for i, what := range []string{"data alone", "data and model"} {
		if j, _, err = load(); err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		j.meter = &meter{idle: i == 0}
		if err := j.Run(ctx, nil, UI{Out: io.Discard, Err: io.Discard, Quiet: true}); err != nil {
			return err
		}
		rates[i] = j.meter.rate()
		line("%s\t%s patches/s", what, figure(rates[i]))
	}
	bound := "the model"
	if rates[0] < model {
		bound = "data (flowrun's log and progress line name the stage)"
	}
	line("bound by\t%s: together %.0f%% of the slower one alone", bound, 100*rates[1]/min(model, rates[0]))
	return nil
}

// benchModel gives the model's patches a second on noise.
func (j *Job) benchModel(ctx context.Context, o train.Options, steps int, line func(string, ...any)) (rate float64, err error) {
	found, err := j.findScans(ctx)
	if err != nil {
		return 0, err
	}
	t, _ := option[tile.Options](j)
	b, _ := option[batch.Options](j)
	s, e, err := j.openSession(found, o, t.Patch)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	micro := o.MicroBatch
	if micro == 0 {
		micro = b.Size
	}
	voxels := t.Patch[0] * t.Patch[1] * t.Patch[2]
	noise := make([]float32, voxels*b.Size)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = r.Float32()*2 - 1
	}
	m := meter{model: s}
	for range steps + 1 {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		if _, err := m.Step(noise, noise, b.Size, 1e-6); err != nil {
			return 0, err
		}
	}
	plan := s.Plan()
	flops := float64(plan.Step) / float64(micro)
	line("engine\t%s, arena %s", e.Name(), size(plan.Total))
	line("model alone\t%s patches/s of %s, %s TFLOP/s", figure(m.rate()), list(t.Patch), figure(m.rate()*flops/1e12))
	timings, err := s.Profile(noise[:voxels*micro], noise[:voxels*micro], micro)
	if err != nil {
		return 0, err
	}
	for _, op := range timings {
		line("  %s\t%d calls, %s, %s TFLOP/s, %s GB/s", op.Kind, op.Calls, op.Took.Round(time.Microsecond),
			figure(float64(op.FLOPs)/op.Took.Seconds()/1e12), figure(float64(op.Bytes)/op.Took.Seconds()/1e9))
	}
	return m.rate(), nil
}

// meter is a model that notes when steps end. An idle one computes nothing.
type meter struct {
	model   train.Model
	idle    bool
	patches int
	first   time.Time // end of the first step
	last    time.Time
}

// Step takes a step of the model. The first one's patches aren't counted.
func (m *meter) Step(input, target []float32, n int, lr float64) (vqgan.Stats, error) {
	stats := vqgan.Stats{L1: 0.1, L2: 0.01, Clipped: 0.01, Total: 0.1, GradNorm: 1, ClipFactor: 1, Perplexity: 2, Used: 2, Voxels: len(input)}
	if !m.idle {
		var err error
		if stats, err = m.model.Step(input, target, n, lr); err != nil {
			return stats, err
		}
	}
	if m.last = time.Now(); m.first.IsZero() {
		m.first = m.last
	} else {
		m.patches += n
	}
	return stats, nil
}

// State is the model's.
func (m *meter) State() ([]vqgan.Array, error) { return m.model.State() }

// rate is patches a second behind the first step.
func (m *meter) rate() float64 {
	return float64(m.patches) / max(m.last.Sub(m.first).Seconds(), 1e-9)
}
