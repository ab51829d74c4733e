package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/flowrun/flowrun/gpu/vqgan"
)

// GuardOptions are the keys of the guard block.
type GuardOptions struct {
	Tries         int     `key:"tries" default:"4" min:"0" doc:"How often in a row a run that diverged goes back to a sound checkpoint before it stops with exit code 4. It counts anew once the run has got past the place. 0 turns the guard off: the first number that isn't finite ends the run, and nothing else does."`
	Lower         float64 `key:"lower" default:"0.3" min:"0.001" max:"0.99" doc:"Factor on the learning rate at each going back. A new train.lr takes the place of a lowered one."`
	Delay         int     `key:"delay" default:"1000" unit:"optimiser steps" min:"1" doc:"How much longer the discriminators wait, instead of a lower learning rate, where they have won or trouble came soon after their start."`
	Window        int     `key:"window" default:"100" unit:"optimiser steps" min:"4" doc:"Steps whose median says what is usual. Nothing but a number that isn't finite or a reconstruction worse than an empty image is trouble before so many steps are taken, or so soon after the discriminators' start."`
	Patience      int     `key:"patience" default:"30" unit:"optimiser steps" min:"1" doc:"Steps in a row that must show a spike or a collapse before it is trouble. More than the batches of an odd scan."`
	Spike         float64 `key:"spike" default:"10" min:"0" doc:"Trouble is a loss or a norm of the gradient above its median by this many robust standard deviations (1.4826 times the median absolute deviation, but at least 0.3 of the median). 0 is off."`
	Collapse      float64 `key:"collapse" default:"0.2" min:"0" max:"0.9" doc:"Trouble is a perplexity of the codes below this share of its median. 0 is off."`
	Discriminator float64 `key:"discriminator" default:"0.05" min:"0" doc:"Trouble is a discriminators' loss below this for window steps in a row, behind their ramp, while the generator's adversarial loss doesn't fall; or either of the two mostly beyond 100 for patience steps. It begins at about 1 (hinge). 0 is off."`
}

// Check finds what no single key shows.
func (o *GuardOptions) Check() error {
	if o.Tries > 0 && 2*o.Patience >= o.Window {
		return fmt.Errorf("patience: %d is half of window or more: the usual would follow the trouble (want at most %d, or a window of at least %d)",
			o.Patience, (o.Window-1)/2, 2*o.Patience+1)
	}
	return nil
}

// Reach is how many steps before a step the checkpoint lies, at the most, that trouble found there goes back to, if there is
// one at each step.
func (o *GuardOptions) Reach() int { return max(o.Patience, o.Window) + 2 }

// Kind says what sort of trouble an incident is.
type Kind string

// The kinds of trouble.
const (
	NonFinite     Kind = "nonfinite"     // NaN or infinity in the loss, the gradient or a reconstruction
	Spike         Kind = "spike"         // the loss or the gradient has left its usual range
	Collapse      Kind = "collapse"      // few codes are in use
	Discriminator Kind = "discriminator" // the discriminators have won, or have diverged themselves
)

// Incident is trouble.
type Incident struct {
	Kind  Kind
	Step  int    // at which it was found
	Since int    // the first step that showed it; the state before the step before that was sound
	What  string // in words: "the gradient isn't finite"
	// What was measured, by its name in metrics.jsonl; beside it "level", the usual, and "limit". No NaN, no infinity.
	Measured map[string]float64
}

// Sound is the last step whose checkpoint nothing speaks against: the step that was taken from it was as usual.
func (i *Incident) Sound() int { return i.Since - 2 }

// Reading is what the guard looks at of an optimiser step.
type Reading struct {
	Loss, L1, GradNorm, Perplexity float64

	Adversarial   bool    // the discriminators learn
	Ramp          float64 // of the generator's adversarial loss, 0 to 1
	Generator     float64 // that loss
	Discriminator float64 // that of the discriminators
}

// reading is what a step's statistics say to the guard.
func reading(s vqgan.Stats) Reading {
	return Reading{Loss: s.Total, L1: s.L1, GradNorm: s.GradNorm, Perplexity: s.Perplexity, Adversarial: s.GAN.Active,
		Ramp: s.GAN.Ramp, Generator: s.GAN.Generator, Discriminator: s.GAN.Discriminator}
}

// wild is an adversarial loss that no discriminator has which still judges: logits are a few units.
const wild = 100

// broken is a mean absolute error, of intensities in [-1, 1], that is more than that of an empty image: all 0, it has at most 1.
const broken = 1.25

// Course is what incidents have changed of how a run trains.
type Course struct {
	LR        float64 `json:"lr"`                  // train.lr, of which
	Scale     float64 `json:"scale"`               // the rate is this share
	GANStart  int     `json:"gan_start,omitempty"` // the discriminators learn behind this step; 0: where the file says
	Incidents int     `json:"incidents"`           // of the run so far
	Tries     int     `json:"tries,omitempty"`     // in a row
	At        int     `json:"at,omitempty"`        // the last incident's step, or that to which it was put off
}

// Guard watches a run's statistics for trouble, and says what is to be done about it. What it says depends on the steps
// only, not on how often the run was killed: its memory is part of the checkpoint.
type Guard struct {
	Course
	Options GuardOptions
	m       memory
}

// memory is what the guard remembers of the last steps.
type memory struct {
	Loss       level `json:"loss"`
	GradNorm   level `json:"grad_norm"`
	Perplexity level `json:"perplexity"`

	// Steps in a row up to the last one.
	HighLoss int `json:"high_loss,omitempty"`
	HighGrad int `json:"high_grad,omitempty"`
	Low      int `json:"low,omitempty"`
	Broken   int `json:"broken,omitempty"`

	// Steps with wild adversarial losses, less those without; since the first of them.
	Wild      int `json:"wild,omitempty"`
	WildSince int `json:"wild_since,omitempty"`

	Started int       `json:"started,omitempty"` // the discriminators' first step; 0: they don't learn
	Lost    []float64 `json:"lost,omitempty"`    // the generator's losses while the discriminators win
}

// NewGuard is for a run that begins with a peak learning rate of lr.
func NewGuard(o GuardOptions, lr float64) *Guard {
	return &Guard{Course: Course{LR: lr, Scale: 1}, Options: o}
}

// LRScale is what the learning rate is multiplied by; 1 without a guard.
func (g *Guard) LRScale() float64 {
	if g == nil {
		return 1
	}
	return g.Scale
}

// Watch looks at a step that was taken. nil: nothing is wrong, or it isn't sure yet.
func (g *Guard) Watch(step int, r Reading) *Incident {
	for _, x := range []struct {
		what  string
		value float64
	}{{"the loss", r.Loss}, {"the reconstruction's error", r.L1}, {"the gradient", r.GradNorm}, {"the codes' perplexity", r.Perplexity},
		{"the generator's adversarial loss", r.Generator}, {"the discriminators' loss", r.Discriminator}} {
		if math.IsNaN(x.value) || math.IsInf(x.value, 0) {
			i := g.nonFinite(step, x.what)
			return &i
		}
	}
	g.note(step, r.Adversarial)
	m := &g.m
	lossLevel, lossLimit := g.limit(m.Loss)
	gradLevel, gradLimit := g.limit(m.GradNorm)
	usual := math.NaN()
	if len(m.Perplexity) == g.Options.Window {
		usual = m.Perplexity.median()
	}
	count(&m.HighLoss, r.Loss > lossLimit)
	count(&m.HighGrad, r.GradNorm > gradLimit)
	count(&m.Low, r.Perplexity < g.Options.Collapse*usual)
	count(&m.Broken, r.L1 > broken)
	switch far := g.Options.Discriminator > 0 && (r.Discriminator > wild || math.Abs(r.Generator) > wild); {
	case far && m.Wild == 0:
		m.Wild, m.WildSince = 1, step
	case far:
		m.Wild++
	case m.Wild > 0:
		m.Wild-- // such losses swing, and pass through 0
	}
	if g.Options.Discriminator > 0 && r.Adversarial && r.Ramp >= 1 && r.Discriminator < g.Options.Discriminator {
		m.Lost = last(append(m.Lost, r.Generator), g.Options.Window)
	} else {
		m.Lost = nil
	}
	m.Loss.add(r.Loss, g.Options.Window)
	m.GradNorm.add(r.GradNorm, g.Options.Window)
	m.Perplexity.add(r.Perplexity, g.Options.Window)

	n := g.Options.Patience
	found := func(kind Kind, steps int, measured map[string]float64, format string, args ...any) *Incident {
		what := fmt.Sprintf("for %d steps ", steps) + fmt.Sprintf(format, args...)
		return &Incident{Kind: kind, Step: step, Since: step - steps + 1, What: what, Measured: measured}
	}
	switch {
	case m.Broken >= n:
		return found(Spike, n, map[string]float64{"train/recon_loss": r.L1, "limit": broken},
			"the reconstruction was worse than an empty image: its mean error is %.4g", r.L1)
	case m.HighLoss >= n:
		return found(Spike, n, map[string]float64{"train/loss": r.Loss, "level": lossLevel, "limit": lossLimit},
			"the loss was far above the usual %.4g (now %.4g)", lossLevel, r.Loss)
	case m.HighGrad >= n:
		return found(Spike, n, map[string]float64{"train/grad_norm": r.GradNorm, "level": gradLevel, "limit": gradLimit},
			"the gradient's norm was far above the usual %.4g (now %.4g)", gradLevel, r.GradNorm)
	case m.Low >= n:
		return found(Collapse, n, map[string]float64{"train/perplexity": r.Perplexity, "level": usual, "limit": g.Options.Collapse * usual},
			"few codes were in use: a perplexity of %.4g, usually %.4g", r.Perplexity, usual)
	case m.Wild >= n:
		return found(Discriminator, step-m.WildSince+1, map[string]float64{"train/disc_loss": r.Discriminator, "train/gan_loss": r.Generator, "limit": wild},
			"the discriminators' loss or the generator's on them was mostly beyond %d (now %.4g and %.4g)", wild, r.Discriminator, r.Generator)
	case len(m.Lost) == g.Options.Window && stuck(m.Lost):
		return found(Discriminator, len(m.Lost), map[string]float64{"train/disc_loss": r.Discriminator, "train/gan_loss": r.Generator, "limit": g.Options.Discriminator},
			"the discriminators told all apart (their loss is %.4g) and the generator learnt nothing from them (its loss is %.4g)", r.Discriminator, r.Generator)
	}
	return nil
}

// note tells the guard whether the discriminators learn in a step. With them all losses are new.
func (g *Guard) note(step int, adversarial bool) {
	switch {
	case g == nil:
	case !adversarial:
		g.m.Started = 0
	case g.m.Started == 0:
		m := &g.m
		m.Started = step
		m.Loss, m.GradNorm, m.HighLoss, m.HighGrad = nil, nil, 0, 0
	}
}

// limit is what a series usually is, and above what it is trouble; infinity where nothing can be said yet.
func (g *Guard) limit(l level) (usual, limit float64) {
	if g.Options.Spike == 0 || len(l) < g.Options.Window {
		return math.NaN(), math.Inf(1)
	}
	usual, deviation := l.spread()
	return usual, usual + g.Options.Spike*max(deviation, 0.3*math.Abs(usual))
}

// nonFinite is the incident of a step that gave a number which isn't finite.
func (g *Guard) nonFinite(step int, what string) Incident {
	i := Incident{Kind: NonFinite, Step: step, Since: step, What: what + " isn't finite"}
	if g != nil {
		m := &g.m
		i.Since -= max(m.HighLoss, m.HighGrad, m.Low, m.Broken)
	}
	return i
}

// stuck says that a loss doesn't fall: its second half's median isn't lower than the first's by a twentieth.
func stuck(losses []float64) bool {
	half := len(losses) / 2
	before, now := level(losses[:half]).median(), level(losses[half:]).median()
	return now > before-0.05*math.Abs(before)
}

// count counts steps in a row.
func count(n *int, yes bool) {
	if *n++; !yes {
		*n = 0
	}
}

// Delayer is a Model with discriminators that can be made to wait.
type Delayer interface {
	// SetGANStart has the discriminators learn behind this step, not before.
	SetGANStart(step int)
}

// Action is what is done about an incident.
type Action string

// The actions.
const (
	LowerLR  Action = "lower_lr"  // go back, with a lower learning rate
	DelayGAN Action = "delay_gan" // go back, with discriminators that begin later
	Stop     Action = "stop"
)

// Answer says what is done about an incident, and counts it. Where it isn't Stop, the run goes back to a checkpoint of at most
// step Sound, and Resume has the guard go on from there.
func (g *Guard) Answer(i *Incident, canDelay bool) Action {
	if i.Since > g.At+g.Options.Window {
		g.Tries = 0 // it got past the place
	}
	g.Incidents++
	g.At = i.Step
	if g.Tries >= g.Options.Tries {
		return Stop
	}
	g.Tries++
	if began := g.m.Started; canDelay && (i.Kind == Discriminator || began > 0 && i.Since <= began+2*g.Options.Window) {
		g.GANStart = max(g.GANStart, began-1, i.Sound()) + g.Options.Delay
		if g.At = max(g.At, g.GANStart); began > 0 {
			g.At = g.GANStart + 1 + i.Step - began // the place moves with them
		}
		return DelayGAN
	}
	g.Scale = neat(g.Scale * g.Options.Lower)
	return LowerLR
}

// neat is x to six digits: 0.3 times 0.3 is 0.09.
func neat(x float64) float64 {
	y, err := strconv.ParseFloat(strconv.FormatFloat(x, 'g', 6, 64), 64)
	if err != nil || y == 0 {
		return x
	}
	return y
}

// saved is how a guard is kept in a checkpoint.
type saved struct {
	Course Course `json:"course"`
	Memory memory `json:"memory"`
}

// Save is the guard as JSON.
func (g *Guard) Save() (string, error) {
	text, err := json.Marshal(saved{g.Course, g.m})
	return string(text), err
}

// Load goes on from a Save, "" being that of a new run. A run that was given another peak learning rate since takes a new
// course with that; incidents stay counted.
func (g *Guard) Load(text string) (anew bool, err error) {
	was, err := parse(text)
	if err != nil {
		return false, err
	}
	g.m = was.Memory
	if was.Course.LR == g.LR {
		g.Course = was.Course
		return false, nil
	}
	g.Course = Course{LR: g.LR, Scale: 1, GANStart: was.Course.GANStart, Incidents: was.Course.Incidents}
	return text != "", nil
}

// Resume goes back to the memory of a Save, "" being that of a new run. The course stays: it is newer.
func (g *Guard) Resume(text string) error {
	was, err := parse(text)
	if err == nil {
		g.m = was.Memory
	}
	return err
}

func parse(text string) (saved, error) {
	var s saved
	if text == "" {
		return s, nil
	}
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return s, fmt.Errorf("guard: %w", err)
	}
	if c := s.Course; !(c.Scale > 0 && c.Scale <= 1) || c.GANStart < 0 || c.Tries < 0 || c.Incidents < c.Tries {
		return s, errors.New("guard: a course that no run has")
	}
	return s, nil
}

// level is the values of the last steps, the oldest first.
type level []float64

func (l *level) add(x float64, window int) { *l = last(append(*l, x), window) }

// last is the last n of list, in its memory.
func last(list []float64, n int) []float64 {
	if more := len(list) - n; more > 0 {
		list = list[:copy(list, list[more:])]
	}
	return list
}

func (l level) median() float64 {
	s := slices.Sorted(slices.Values(l))
	n := len(s)
	if n == 0 {
		return math.NaN()
	}
	return (s[(n-1)/2] + s[n/2]) / 2
}

// spread is the median and a robust standard deviation: 1.4826 times the median absolute deviation (Huber, 1981).
func (l level) spread() (median, deviation float64) {
	median = l.median()
	off := make(level, len(l))
	for i, x := range l {
		off[i] = math.Abs(x - median)
	}
	return median, 1.4826 * off.median()
}
