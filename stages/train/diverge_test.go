package train_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flowrun/flowrun/gpu/optim"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

func TestLoopDiverges(t *testing.T) {
	nan := &vqgan.NonFiniteError{Step: 4, What: "the loss"}
	f := newFeed(5)
	l := &train.Loop{Every: 3, Model: &model{step: func(s int) error {
		if s == 4 {
			return fmt.Errorf("engine: %w", nan)
		}
		return nil
	}}}
	got, err := run(t.Context(), l, f.from(0))
	d, ok := errors.AsType[*train.DivergedError](err)
	if !ok || d.Step != 4 || d.Since != 4 || !slices.Equal(d.Tags, []volume.Tag{tag(6), tag(7)}) || !errors.Is(err, nan) ||
		!strings.HasSuffix(err.Error(), ": the loss isn't finite; continue from the last checkpoint with a lower train.lr") {
		t.Errorf("got %v", err)
	}
	if want := []shot{{3, "every", false}}; !slices.Equal(got, want) || l.Step != 3 || l.Cursor != (volume.Cursor{Epoch: 1, Seq: 1}) {
		t.Errorf("got %v at step %d, %v: the state before the step is to be kept", got, l.Step, l.Cursor)
	}
	if err := f.balanced(0); err != nil {
		t.Error(err)
	}
}

// TestLoopDivergesUnseen: a step that breaks the weights is found by the validation before they are kept, or else by the
// first step from the checkpoint that keeps them.
func TestLoopDivergesUnseen(t *testing.T) {
	nan := &vqgan.NonFiniteError{Step: 4, What: "the reconstruction"}
	l := &train.Loop{Every: 2, EveryVal: 4, Model: &model{}, Validate: func(context.Context, int) (map[string]float64, error) { return nil, nan }}
	got, err := run(t.Context(), l, newFeed(5).from(0))
	if want := "validate: step 4 diverged: the reconstruction isn't finite; continue from the last checkpoint with a lower train.lr"; err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
	if want := []shot{{2, "every", false}}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	l = &train.Loop{Step: 4, Model: &model{step: func(int) error { return nan }}}
	if _, err = run(t.Context(), l, newFeed(5).from(0)); err == nil || !strings.Contains(err.Error(), "set run.resume to the one before it") {
		t.Errorf("got %v", err)
	}
}

// TestLoopGuard: trouble ends the loop behind the step that shows it, with the rate that the guard gives, and not before the
// snapshot in flight is safe.
func TestLoopGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const writing = time.Hour
		g := train.NewGuard(quick(), 2)
		g.Scale = 0.25
		m := &model{says: func(step int) vqgan.Stats {
			s := vqgan.Stats{L1: 0.1, Total: 0.1, GradNorm: 1, Perplexity: 50}
			if step >= 15 {
				s.Total = 7
			}
			return s
		}}
		var reported int
		l := &train.Loop{Model: m, Guard: g, Every: 8, Schedule: optim.Schedule{LR: 2}, Report: func(s train.Step) { reported = s.Step }}
		f, begin := newFeed(40), time.Now()
		var failed error
		var got []int
		for s, err := range l.Run(t.Context(), f.from(0)) {
			if err != nil {
				failed = err
				continue
			}
			got = append(got, s.Step)
			go func() {
				time.Sleep(writing)
				s.Release()
			}()
		}
		d, ok := errors.AsType[*train.DivergedError](failed)
		if !ok || d.Kind != train.Spike || d.Step != 17 || d.Sound() != 13 || len(d.Tags) != 2 || d.Tags[0] != tag(32) {
			t.Fatalf("%+v", failed)
		}
		if waited := time.Since(begin); !slices.Equal(got, []int{8, 16}) || waited != 2*writing {
			t.Errorf("snapshots of steps %v, ended after %v", got, waited)
		}
		if reported != 17 || m.lrs[0] != 0.5 || m.lrs[16] != 0.5 {
			t.Errorf("reported up to step %d, rates %v", reported, m.lrs)
		}
		if err := f.balanced(0); err != nil {
			t.Error(err)
		}
	})
}

// TestLoopFindsEachKind has a model go wrong at step 15, as a session would tell of it.
func TestLoopFindsEachKind(t *testing.T) {
	for _, c := range []struct {
		kind  train.Kind
		wrong func(*vqgan.Stats)
		found int
	}{
		{train.NonFinite, func(s *vqgan.Stats) { s.GAN.Generator = math.Inf(-1) }, 15},
		{train.Spike, func(s *vqgan.Stats) { s.GradNorm = 1e3 }, 17},
		{train.Spike, func(s *vqgan.Stats) { s.L1 = 3 }, 17},
		{train.Collapse, func(s *vqgan.Stats) { s.Perplexity = 1.2 }, 17},
		{train.Discriminator, func(s *vqgan.Stats) { s.GAN.Discriminator, s.GAN.Generator = 0.002, 8 }, 24},
	} {
		m := &model{says: func(step int) vqgan.Stats {
			s := vqgan.Stats{L1: 0.1, Total: 0.1, GradNorm: 1, Perplexity: 50, GAN: vqgan.GANStats{Active: true, Ramp: 1, Discriminator: 1}}
			if step >= 15 {
				c.wrong(&s)
			}
			return s
		}}
		_, err := run(t.Context(), &train.Loop{Model: m, Guard: train.NewGuard(quick(), 1)}, newFeed(40).from(0))
		if d, ok := errors.AsType[*train.DivergedError](err); !ok || d.Kind != c.kind || d.Step != c.found || d.Since != 15 {
			t.Errorf("%s: %v", c.kind, err)
		}
	}
}
