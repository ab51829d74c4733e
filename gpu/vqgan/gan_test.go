package vqgan

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu/cpu"
)

// tinyGAN is tiny with small discriminators from step 3 on, and all that can be asked of them.
func tinyGAN() (Config, Options) {
	c, o := tiny()
	o.Patch = [3]int{16, 12, 12}
	o.Loss.SSIM = 0.2
	o.GAN = GAN{Weight: 1, Start: 2, Ramp: 3, Loss: "hinge", Image: 1, Volume: 1, Planes: []string{"z", "x"}, Slices: 2, Channels: 4, Layers: 2,
		Norm: "spectral", LR: 1, Beta1: 0.5, Beta2: 0.9, Features: 1, Adaptive: 100, LeCam: 0.1, R1: 1, R1Every: 2}
	return c, o
}

func TestGANThreadsChangeNoBit(t *testing.T) {
	c, o := tinyGAN()
	var want []Array
	for _, threads := range []int{1, 3} {
		s := open(t, c, o, threads)
		for i := range 6 {
			step(t, s, uint64(i), 2)
		}
		if got := state(t, s); want == nil {
			want = got
		} else {
			same(t, "threads", want, got)
		}
	}
}

func TestGANGoesOnFromItsState(t *testing.T) {
	for _, norm := range []string{"none", "spectral", "batch"} {
		for _, at := range []int{1, 4} { // before the discriminators begin, and after
			c, o := tinyGAN()
			o.GAN.Norm = norm
			one, two := open(t, c, o, 2), open(t, c, o, 2)
			for i := range at {
				step(t, one, uint64(i), 2)
			}
			if err := two.SetState(state(t, one), true); err != nil {
				t.Fatal(err)
			}
			for i := at; i < at+4; i++ {
				if a, b := step(t, one, uint64(i), 2), step(t, two, uint64(i), 2); a != b {
					t.Fatalf("%s, from step %d: step %d says %+v and %+v", norm, at, i, a, b)
				}
			}
			same(t, norm, state(t, one), state(t, two))
			var bytes int64
			for _, a := range state(t, one) {
				bytes += 4 * int64(len(a.Data))
			}
			if bytes != one.StateBytes() {
				t.Errorf("%s: a state of %d bytes, said %d", norm, bytes, one.StateBytes())
			}
		}
	}
}

func TestGANBeginsWhenItShould(t *testing.T) {
	c, o := tinyGAN()
	s := open(t, c, o, 2)
	var ramps []float64
	for i := range 7 {
		if i == 4 {
			s.SetGANStart(5)
		}
		g := step(t, s, uint64(i), 2).GAN
		if ramps = append(ramps, g.Ramp); g.Active != (g.Ramp > 0) || !g.Active && g != (GANStats{}) {
			t.Errorf("step %d: %+v", i+1, g)
		}
		if r1 := i+1 == 4; (g.R1 > 0) != (r1 || i+1 == 6) {
			t.Errorf("step %d: R1 %v", i+1, g.R1)
		}
	}
	third := 1. / 3
	if want := []float64{0, 0, third, 2 * third, 0, third, 2 * third}; !slices.Equal(ramps, want) {
		t.Errorf("ramps %v, want %v", ramps, want)
	}
	other := open(t, c, o, 2)
	if err := other.SetState(state(t, s), true); err != nil || other.judges.delay != 5 {
		t.Errorf("delay %d, %v", other.judges.delay, err)
	}
}

// TestLateDiscriminatorsHaveTheirRamp adds them to a run that is behind their start, and has them begin sooner than was said.
func TestLateDiscriminatorsHaveTheirRamp(t *testing.T) {
	c, o := tinyGAN()
	for name, before := range map[string]GAN{"none before": {}, "a later start": {Weight: 1, Start: 100}} {
		gan := o.GAN
		if o.GAN.Weight, o.GAN.Start = before.Weight, before.Start; before.Start == 0 {
			o.GAN.Start = gan.Start
		}
		old := open(t, c, o, 2)
		o.GAN = gan
		for i := range 6 {
			step(t, old, uint64(i), 2)
		}
		s := open(t, c, o, 2)
		if err := s.SetState(state(t, old), true); err != nil {
			t.Fatal(err)
		}
		if got := s.Adversarial(); got != 0 {
			t.Errorf("%s: %v of the ramp at once", name, got)
		}
		var ramps []float64
		for i := 6; i < 10; i++ {
			if ramps = append(ramps, step(t, s, uint64(i), 2).GAN.Ramp); ramps[i-6] != s.Adversarial() {
				t.Errorf("%s: step %d had %v of the ramp, behind it %v", name, i+1, ramps[i-6], s.Adversarial())
			}
		}
		if want := []float64{1. / 3, 2. / 3, 1, 1}; !slices.Equal(ramps, want) {
			t.Errorf("%s: ramps %v, want %v", name, ramps, want)
		}
	}
}

// TestNoGANCostsNothing compares a session whose GAN has weight 0 with one that never heard of it.
func TestNoGANCostsNothing(t *testing.T) {
	c, o := tiny()
	without := open(t, c, o, 2)
	_, all := tinyGAN()
	o.GAN = all.GAN
	o.GAN.Weight = 0
	with := open(t, c, o, 2)
	if a, b := without.layout.Bytes(), with.layout.Bytes(); a != b {
		t.Errorf("%d bytes, with weight 0 %d", a, b)
	}
	for i := range 3 {
		step(t, without, uint64(i), 2)
		step(t, with, uint64(i), 2)
	}
	same(t, "weight 0", state(t, without), state(t, with))
}

// TestDiscriminatorsComeAndGo goes on from a state without discriminators with them, and the other way round.
func TestDiscriminatorsComeAndGo(t *testing.T) {
	c, o := tinyGAN()
	gan := open(t, c, o, 2)
	o.GAN.Weight = 0
	plain := open(t, c, o, 2)
	fresh := table(state(t, gan))
	for i := range 3 {
		step(t, plain, uint64(i), 2)
		step(t, gan, uint64(i), 2)
	}
	own := table(state(t, plain))
	if err := gan.SetState(state(t, plain), true); err != nil {
		t.Fatal(err)
	}
	for name, data := range table(state(t, gan)) {
		want, ok := own[name]
		if !ok {
			want = fresh[name]
		}
		if !slices.Equal(data, want) {
			t.Errorf("%s isn't as it began", name)
		}
	}
	step(t, gan, 7, 2)
	if err := plain.SetState(state(t, gan), true); err != nil {
		t.Errorf("discriminators are left behind: %v", err)
	}
	if err := gan.LoadWeights(state(t, gan), false); err != nil {
		t.Error(err)
	}
	if gan.judges.steps != 0 || gan.step != 0 {
		t.Errorf("weights begin at step %d, discriminators at %d", gan.step, gan.judges.steps)
	}
}

// TestStatesOfOtherDiscriminators names the option that is another.
func TestStatesOfOtherDiscriminators(t *testing.T) {
	c, o := tinyGAN()
	all := state(t, open(t, c, o, 2))
	for want, set := range map[OptionError]func(*Options){
		{"ema", "0", "more than 0"}:        func(o *Options) { o.EMA = 0 },
		{"gan.image", "0", "more than 0"}:  func(o *Options) { o.GAN.Image = 0 },
		{"gan.volume", "0", "more than 0"}: func(o *Options) { o.GAN.Volume = 0 },
		{"gan.norm", "batch", "spectral"}:  func(o *Options) { o.GAN.Norm = "batch" },
		{"gan.channels", "5", "4"}:         func(o *Options) { o.GAN.Channels = 5 },
		{"gan.layers", "1", "2"}:           func(o *Options) { o.GAN.Layers = 1 },
	} {
		o := o
		set(&o)
		s := open(t, c, o, 2)
		before := state(t, s)
		var misfit *OptionError
		if err := s.SetState(all, true); !errors.As(err, &misfit) || *misfit != want {
			t.Errorf("error %v, want %v", err, &want)
		}
		same(t, want.Key, before, state(t, s))
	}
}

// TestRefusedGANStepsChangeNothing feeds NaN to a GAN that has begun.
func TestRefusedGANStepsChangeNothing(t *testing.T) {
	c, o := tinyGAN()
	o.GAN.Norm = "batch"
	s := open(t, c, o, 2)
	for i := range 4 {
		step(t, s, uint64(i), 2)
	}
	before := state(t, s)
	x := smooth(o.Patch, 2, 9)
	x[17] = float32(math.NaN())
	var what *NonFiniteError
	if _, err := s.Step(x, x, 2, 1e-3); !errors.As(err, &what) || what.Step != 5 {
		t.Fatalf("error %v", err)
	}
	same(t, "refused", before, state(t, s))
}

// TestGANMicroBatches holds what micro-batches sum up to the whole batch: without batch norm and adaptive weight, whose statistics are
// a micro-batch's.
func TestGANMicroBatches(t *testing.T) {
	c, o := tinyGAN()
	o.GAN.Start, o.GAN.Ramp, o.GAN.Norm, o.GAN.Adaptive, o.GAN.R1 = 0, 0, "none", 0, 0
	whole := open(t, c, o, 2)
	o.MicroBatch = 1
	parts := open(t, c, o, 2)
	at := func(string, int) []float32 { return []float32{3, 3, 3, 3} }
	whole.at, parts.at = at, at
	a, b := step(t, whole, 1, 2), step(t, parts, 1, 2)
	for name, x := range map[string][2]float64{"generator": {a.GAN.Generator, b.GAN.Generator}, "discriminator": {a.GAN.Discriminator, b.GAN.Discriminator},
		"features": {a.GAN.Features, b.GAN.Features}, "norm": {a.GradNorm, b.GradNorm}, "judges' norm": {a.GAN.GradNorm, b.GAN.GradNorm},
		"real": {a.GAN.Real, b.GAN.Real}, "total": {a.Total, b.Total}, "dissimilarity": {a.SSIM, b.SSIM}} {
		if d := math.Abs(x[0] - x[1]); d > 1e-5*(1+math.Abs(x[0])) {
			t.Errorf("%s: %v as a whole, %v in parts", name, x[0], x[1])
		}
	}
}

func TestGANPlan(t *testing.T) {
	c, o := tinyGAN()
	e := cpu.New(1)
	defer func() { _ = e.Close() }()
	p, err := PlanFor(e, c, o)
	if err != nil {
		t.Fatal(err)
	}
	if p.Programs[0].Name != "train with R1 2 patches of 16×12×12" || p.Total <= 0 {
		t.Errorf("%+v", p.Programs)
	}
	o.GAN.Planes = []string{"z", "z"}
	if _, err := PlanFor(e, c, o); err == nil || !strings.Contains(err.Error(), "gan.planes: z is there twice") {
		t.Errorf("error %v", err)
	}
	o.GAN.Weight, o.Patch = 0, [3]int{16, 8, 12}
	if _, err := PlanFor(e, c, o); err == nil || !strings.Contains(err.Error(), "loss.ssim: a patch of 8 voxels along y") {
		t.Errorf("error %v", err)
	}
}
