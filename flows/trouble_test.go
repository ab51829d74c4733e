package flows

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu/cpu"
	"github.com/flowrun/flowrun/gpu/optim"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

// troubled trains a real model on batches of two 8³ patches, of noise that is scaled by the step, until its guard finds trouble.
func troubled(t *testing.T, gan vqgan.GAN, guard train.GuardOptions, scale func(step int) float32) *train.DivergedError {
	t.Helper()
	size := [3]int{8, 8, 8}
	config := vqgan.Config{Hidden: 4, Downsample: [3]int{2, 2, 2}, Embedding: 4, Codes: 16, Norm: "channel", Padding: "replicate"}
	e := cpu.New(1)
	s, err := vqgan.Open(e, config, vqgan.Options{Patch: size, Batch: 2, Infer: 1, Loss: vqgan.Loss{L1: 1, Commitment: 0.25},
		Codebook: vqgan.CodebookOptions{Decay: 0.9}, GAN: gan, Clip: 1, Beta1: 0.5, Beta2: 0.9, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }() // the end of a test
	r := rand.New(rand.NewPCG(1, 2))
	batches := iter.Seq[*volume.Batch](func(yield func(*volume.Batch) bool) {
		for step := 1; step <= 400; step++ {
			x := make([]float32, 2*8*8*8)
			for i := range x {
				x[i] = scale(step) * (2*r.Float32() - 1)
			}
			if !yield(&volume.Batch{Input: x, Target: x, Size: size, Tags: make([]volume.Tag, 2)}) {
				return
			}
		}
	})
	l := &train.Loop{Model: s, Guard: train.NewGuard(guard, 1e-3), Schedule: optim.Schedule{LR: 1e-3}, Stopping: make(chan struct{})}
	for _, err := range l.Run(context.Background(), batches) {
		if d, ok := errors.AsType[*train.DivergedError](err); ok {
			return d
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return nil
}

// watchful is a guard that looks for nothing but what a test is about.
var watchful = train.GuardOptions{Tries: 1, Window: 20, Patience: 5}

// Patches that all become the same use one code.
func TestRealCollapse(t *testing.T) {
	guard := watchful
	guard.Collapse = 0.3
	d := troubled(t, vqgan.GAN{}, guard, func(step int) float32 {
		if step > 40 {
			return 0
		}
		return 1
	})
	if d == nil || d.Kind != train.Collapse || d.Since != 41 || d.Step != 45 {
		t.Fatalf("%+v", d)
	}
	if p := d.Measured["train/perplexity"]; p < 1 || p >= d.Measured["limit"] {
		t.Errorf("measured %v", d.Measured)
	}
	if d := troubled(t, vqgan.GAN{}, guard, func(int) float32 { return 1 }); d != nil {
		t.Errorf("trouble in patches that stay as they are: %v", d)
	}
}

// Discriminators that learn fast, and a generator that hardly listens to them: they tell all apart. Where they hardly learn
// there is no trouble.
func TestRealDiscriminatorsWin(t *testing.T) {
	gan := vqgan.GAN{Weight: 1e-6, Start: 20, Ramp: 1, Loss: "hinge", Image: 1, Volume: 1, Planes: []string{"z"}, Slices: 1, Channels: 8, Layers: 1,
		Norm: "none", LR: 5, Beta1: 0.5, Beta2: 0.9, R1Every: 16}
	guard := watchful
	guard.Discriminator = 0.05
	d := troubled(t, gan, guard, func(int) float32 { return 1 })
	if d == nil || d.Kind != train.Discriminator || d.Since <= gan.Start || d.Step != d.Since+guard.Window-1 {
		t.Fatalf("%+v", d)
	}
	if x := d.Measured["train/disc_loss"]; math.IsNaN(x) || x >= guard.Discriminator {
		t.Errorf("measured %v", d.Measured)
	}
	gan.LR = 1e-3
	if d := troubled(t, gan, guard, func(int) float32 { return 1 }); d != nil {
		t.Errorf("slow discriminators have won: %v", d)
	}
}

// A panic's place is in the log, and its last line on the terminal is one line.
func TestTheLogHasAPanicsStack(t *testing.T) {
	r, log := watched(t, nil, observe.Options{})
	g := pipe.New(t.Context())
	pipe.Into(pipe.From(g, "source", func(_ context.Context, emit func(int) error) error { return emit(1) }), "sink",
		func(context.Context, int) error { panic("boom") })
	err := g.Wait()
	r.failed(err)
	var line map[string]any
	if json.Unmarshal([]byte(log.String()), &line) != nil || line["error"] != "sink: panic: boom" || err.Error() != line["error"] ||
		!strings.Contains(fmt.Sprint(line["stack"]), "TestTheLogHasAPanicsStack") {
		t.Errorf("%v: %s", err, log)
	}
}
