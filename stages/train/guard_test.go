package train_test

import (
	"bufio"
	"compress/gzip"
	"encoding/csv"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/stages/train"
)

// defaults of the guard's options.
func defaults() train.GuardOptions {
	return train.GuardOptions{Tries: 4, Lower: 0.3, Delay: 1000, Window: 100, Patience: 30, Spike: 10, Collapse: 0.2, Discriminator: 0.05}
}

// quick is a guard for tests: 10 steps are usual, 3 are trouble.
func quick() train.GuardOptions {
	o := defaults()
	o.Window, o.Patience, o.Delay = 10, 3, 50
	return o
}

// usual is a step of a healthy run, with some noise that the step decides.
func usual(step int) train.Reading {
	noise := 1 + 0.2*math.Sin(float64(step)*1.7)
	return train.Reading{Loss: 0.1 * noise, L1: 0.09 * noise, GradNorm: 2 * noise * noise, Perplexity: 80 * noise}
}

// adversarial is one with discriminators behind their ramp, neither of which wins.
func adversarial(step int) train.Reading {
	r := usual(step)
	r.Adversarial, r.Ramp, r.Generator, r.Discriminator = true, 1, 0.3*math.Sin(float64(step)), 0.8
	return r
}

// watch takes steps from first until trouble is found; nil if it isn't up to step last.
func watch(g *train.Guard, first, last int, at func(step int) train.Reading) *train.Incident {
	for step := first; step <= last; step++ {
		if i := g.Watch(step, at(step)); i != nil {
			return i
		}
	}
	return nil
}

// TestGuardIsSilentOnHealthyRuns replays what healthy runs measured: the demo, a small run, one on CT. A third of the
// patience and of the distance to the usual would still do.
func TestGuardIsSilentOnHealthyRuns(t *testing.T) {
	f, err := os.Open("testdata/healthy.csv.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(z).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	strict := defaults()
	strict.Patience, strict.Spike, strict.Collapse = 10, 4, 0.5
	for name, o := range map[string]train.GuardOptions{"as by default": defaults(), "strict": strict} {
		var g *train.Guard
		run, step, worst := "", 0, 0
		for _, row := range rows[1:] {
			if row[0] != run {
				run, step, g = row[0], 0, train.NewGuard(o, 1)
			}
			var x [4]float64
			for i := range x {
				if x[i], err = strconv.ParseFloat(row[i+1], 64); err != nil {
					t.Fatal(err)
				}
			}
			step++
			if i := g.Watch(step, train.Reading{Loss: x[0], L1: x[1], GradNorm: x[2], Perplexity: x[3]}); i != nil {
				t.Errorf("%s: step %d of run %s: %s", name, step, run, i.What)
			}
			worst = max(worst, step)
		}
		if worst < 2000 {
			t.Errorf("only %d steps were replayed", worst)
		}
	}
}

// TestGuardFinds has each kind of trouble begin at step 40 of a run that was healthy for 39.
func TestGuardFinds(t *testing.T) {
	for _, c := range []struct {
		name   string
		at     func(step int) train.Reading // from step 40 on
		before func(step int) train.Reading // nil: usual
		kind   train.Kind
		found  int // 0: never
		since  int
		what   string
	}{
		{name: "nothing", at: usual},
		{name: "a loss that isn't a number", at: func(int) train.Reading { return train.Reading{Loss: math.NaN()} },
			kind: train.NonFinite, found: 40, since: 40, what: "the loss isn't finite"},
		{name: "an infinite gradient", at: func(int) train.Reading { return train.Reading{GradNorm: math.Inf(1)} },
			kind: train.NonFinite, found: 40, since: 40, what: "the gradient isn't finite"},
		{name: "NaN behind steps that were odd already", at: func(step int) train.Reading {
			r := usual(step)
			if r.Loss = 5; step == 42 {
				r.Generator = math.NaN()
			}
			return r
		}, kind: train.NonFinite, found: 42, since: 40, what: "the generator's adversarial loss isn't finite"},
		{name: "the loss leaps", at: func(step int) train.Reading { r := usual(step); r.Loss = 1; return r },
			kind: train.Spike, found: 42, since: 40, what: "for 3 steps the loss was far above the usual 0.1"},
		{name: "the gradient leaps", at: func(step int) train.Reading { r := usual(step); r.GradNorm = 400; return r },
			kind: train.Spike, found: 42, since: 40, what: "for 3 steps the gradient's norm was far above the usual"},
		{name: "the loss leaps for two steps of three", at: func(step int) train.Reading {
			r := usual(step)
			if step%3 > 0 {
				r.Loss = 1
			}
			return r
		}},
		{name: "the loss doubles", at: func(step int) train.Reading { r := usual(step); r.Loss *= 2; return r }},
		{name: "worse than an empty image from the first step on", at: func(step int) train.Reading { r := usual(step); r.L1, r.Loss = 40, 50; return r },
			before: func(step int) train.Reading { r := usual(step); r.L1, r.Loss = 40, 50; return r },
			kind:   train.Spike, found: 3, since: 1, what: "for 3 steps the reconstruction was worse than an empty image: its mean error is 40"},
		{name: "few codes are in use", at: func(step int) train.Reading { r := usual(step); r.Perplexity = 3; return r },
			kind: train.Collapse, found: 42, since: 40, what: "for 3 steps few codes were in use: a perplexity of 3, usually"},
		{name: "half the codes are in use", at: func(step int) train.Reading { r := usual(step); r.Perplexity *= 0.5; return r }},
		{name: "the discriminators win", before: adversarial, at: func(step int) train.Reading {
			r := adversarial(step)
			r.Discriminator, r.Generator = 0.01, 6+0.1*float64(step)
			return r
		}, kind: train.Discriminator, found: 49, since: 40, what: "for 10 steps the discriminators told all apart (their loss is 0.01)"},
		{name: "the discriminators lead, but the generator learns", before: adversarial, at: func(step int) train.Reading {
			r := adversarial(step)
			r.Discriminator, r.Generator = 0.01, 50-float64(step)*float64(step)/100
			return r
		}},
		{name: "the discriminators win while they are ramped", before: adversarial, at: func(step int) train.Reading {
			r := adversarial(step)
			r.Discriminator, r.Generator, r.Ramp = 0.01, 6, 0.9
			return r
		}},
		{name: "the discriminators diverge, swinging", before: adversarial, at: func(step int) train.Reading {
			r := adversarial(step)
			r.Discriminator, r.Generator = 256, -1000
			if step%3 == 1 {
				r.Discriminator, r.Generator = 3, 20
			}
			return r
		}, kind: train.Discriminator, found: 45, since: 41, what: "for 5 steps the discriminators' loss or the generator's on them was mostly beyond 100 (now 256 and -1000)"},
		{name: "the discriminators' losses are large for one step of two", before: adversarial, at: func(step int) train.Reading {
			r := adversarial(step)
			r.Discriminator *= float64(1 + 500*(step%2))
			return r
		}},
		{name: "the discriminators' start lifts the loss", at: func(step int) train.Reading {
			r := adversarial(step)
			r.Loss, r.GradNorm = 1+r.Loss, 100
			return r
		}},
		{name: "the loss leaps long behind the discriminators' start", before: adversarial, at: func(step int) train.Reading { r := adversarial(step); r.Loss = 1; return r },
			kind: train.Spike, found: 42, since: 40, what: "for 3 steps the loss"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.before == nil {
				c.before = usual
			}
			g := train.NewGuard(quick(), 1)
			i := watch(g, 1, 60, func(step int) train.Reading {
				if step < 40 {
					return c.before(step)
				}
				return c.at(step)
			})
			switch {
			case c.found == 0 && i != nil:
				t.Errorf("found %+v", i)
			case c.found == 0:
			case i == nil:
				t.Error("found nothing")
			case i.Kind != c.kind || i.Step != c.found || i.Since != c.since || !strings.HasPrefix(i.What, c.what):
				t.Errorf("found %+v", i)
			case i.Sound() != c.since-2:
				t.Errorf("sound up to step %d", i.Sound())
			}
		})
	}
}

func TestGuardCanBeDeaf(t *testing.T) {
	o := quick()
	o.Spike, o.Collapse, o.Discriminator = 0, 0, 0
	i := watch(train.NewGuard(o, 1), 1, 60, func(step int) train.Reading {
		r := adversarial(step)
		if step > 40 {
			r.Loss, r.GradNorm, r.Perplexity, r.Discriminator, r.Generator = 1.5, 1e5, 1, 0, 9
		}
		return r
	})
	if i != nil {
		t.Errorf("found %+v", i)
	}
}

// TestGuardRemembers: what a guard finds, and when, doesn't depend on how often it was saved and loaded.
func TestGuardRemembers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bad := rapid.IntRange(1, 60).Draw(t, "bad")
		kind := rapid.IntRange(0, 3).Draw(t, "kind")
		gan := rapid.IntRange(1, 80).Draw(t, "gan")
		at := func(step int) train.Reading {
			r := usual(step)
			if step > gan {
				r = adversarial(step)
			}
			if step >= bad {
				switch kind {
				case 0:
					r.Loss *= 20
				case 1:
					r.GradNorm *= 100
				case 2:
					r.Perplexity = 1
				case 3:
					r.Discriminator, r.Generator = 0, 7
				}
			}
			return r
		}
		whole, killed := train.NewGuard(quick(), 1), train.NewGuard(quick(), 1)
		for step := 1; step <= 100; step++ {
			if rapid.IntRange(0, 5).Draw(t, "kill") == 0 {
				text, err := killed.Save()
				if err != nil {
					t.Fatal(err)
				}
				killed = train.NewGuard(quick(), 1)
				if anew, err := killed.Load(text); err != nil || anew {
					t.Fatal(anew, err)
				}
			}
			a, b := whole.Watch(step, at(step)), killed.Watch(step, at(step))
			if (a == nil) != (b == nil) || a != nil && (a.What != b.What || a.Since != b.Since) {
				t.Fatalf("step %d: %+v and %+v", step, a, b)
			}
			if a != nil {
				return
			}
		}
	})
}

// TestGuardAnswers goes through incidents by hand.
func TestGuardAnswers(t *testing.T) {
	o := quick()
	o.Tries, o.Lower = 2, 0.1
	g := train.NewGuard(o, 1)
	answer := func(kind train.Kind, since int, delays bool, want train.Action, scale float64, start int) {
		t.Helper()
		got := g.Answer(&train.Incident{Kind: kind, Step: since + 2, Since: since}, delays)
		if got != want || math.Abs(g.LRScale()-scale) > 1e-12 || g.GANStart != start {
			t.Errorf("%s since %d: %s, scale %g, GAN from %d; want %s, %g, %d", kind, since, got, g.LRScale(), g.GANStart, want, scale, start)
		}
	}
	answer(train.Spike, 100, true, train.LowerLR, 0.1, 0)
	answer(train.NonFinite, 112, true, train.LowerLR, 0.01, 0) // 10 steps behind 102: the same place
	answer(train.Spike, 90, true, train.Stop, 0.01, 0)
	answer(train.Spike, 103, true, train.LowerLR, 0.001, 0) // 10 steps and more behind 92
	answer(train.Discriminator, 200, true, train.DelayGAN, 0.001, 198+50)
	answer(train.Discriminator, 300, false, train.LowerLR, 0.0001, 198+50)
	if g.Incidents != 6 {
		t.Errorf("%d incidents", g.Incidents)
	}

	// What comes soon behind the discriminators' start has them wait; later it doesn't.
	for _, c := range []struct {
		since int
		want  train.Action
	}{{60, train.DelayGAN}, {61, train.LowerLR}} {
		g := train.NewGuard(o, 1)
		watch(g, 1, 39, usual)
		watch(g, 40, c.since, adversarial)
		if got := g.Answer(&train.Incident{Kind: train.Spike, Step: c.since, Since: c.since}, true); got != c.want {
			t.Errorf("since step %d, discriminators from 40 on: %s, want %s", c.since, got, c.want)
		}
	}
}

// TestDelaysAreCounted: discriminators that fail wherever they begin aren't put off for ever, though each time the run gets further.
func TestDelaysAreCounted(t *testing.T) {
	o := quick()
	o.Tries, o.Delay = 2, 10*o.Window
	g, start := train.NewGuard(o, 1), 40
	for _, want := range []train.Action{train.DelayGAN, train.DelayGAN, train.Stop} {
		watch(g, 1, start, usual)
		watch(g, start+1, start+o.Window, adversarial)
		if got := g.Answer(&train.Incident{Kind: train.Discriminator, Step: start + o.Window, Since: start + 1}, true); got != want {
			t.Errorf("discriminators from %d on: %s, want %s", start, got, want)
		}
		if start = g.GANStart; g.Resume("") != nil {
			t.Fatal("no way back")
		}
	}
}

// TestGuardGoesBack: the course outlives the memory.
func TestGuardGoesBack(t *testing.T) {
	g := train.NewGuard(quick(), 1)
	watch(g, 1, 30, usual)
	text, err := g.Save()
	if err != nil {
		t.Fatal(err)
	}
	bad := func(step int) train.Reading { r := usual(step); r.Loss = 3; return r }
	i := watch(g, 31, 60, bad)
	if i == nil || i.Step != 33 || g.Answer(i, false) != train.LowerLR {
		t.Fatalf("%+v", i)
	}
	if err := g.Resume(text); err != nil {
		t.Fatal(err)
	}
	if g.LRScale() != 0.3 || g.Incidents != 1 {
		t.Errorf("%+v", g.Course)
	}
	if i := watch(g, 31, 60, bad); i == nil || i.Step != 33 {
		t.Errorf("the second time %+v", i)
	}
	if err := g.Resume(""); err != nil {
		t.Fatal(err)
	}
	if i := watch(g, 1, 60, bad); i != nil && i.Step <= 3 { // what has been so from the first step on is usual
		t.Errorf("from the beginning %+v", i)
	}

	// A checkpoint keeps the course; a new learning rate begins a new one.
	if text, err = g.Save(); err != nil {
		t.Fatal(err)
	}
	same, other := train.NewGuard(quick(), 1), train.NewGuard(quick(), 2)
	if anew, err := same.Load(text); err != nil || anew || same.Course != g.Course {
		t.Errorf("%v, %v: %+v", anew, err, same.Course)
	}
	if anew, err := other.Load(text); err != nil || !anew || other.LRScale() != 1 || other.Incidents != 1 || other.Tries != 0 {
		t.Errorf("%v, %v: %+v", anew, err, other.Course)
	}
	for _, text := range []string{"{", `{"course":{"lr":1,"scale":0}}`, `{"course":{"lr":1,"scale":2}}`, `{"course":{"lr":1,"scale":1,"tries":3}}`} {
		if _, err := train.NewGuard(quick(), 1).Load(text); err == nil || !strings.HasPrefix(err.Error(), "guard: ") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestGuardOptionsCheck(t *testing.T) {
	o := defaults()
	if err := o.Check(); err != nil {
		t.Error(err)
	}
	if o.Patience = 50; o.Check() == nil || !strings.HasPrefix(o.Check().Error(), "patience: 50 is half of window or more") {
		t.Error(o.Check())
	}
	if o.Tries = 0; o.Check() != nil {
		t.Error("a guard that is off needs no window")
	}
}
