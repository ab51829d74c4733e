package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flowrun/flowrun/stages/observe"
)

// jumpy is a guard for runs of a few dozen steps.
const jumpy = "train.guard.window=11 train.guard.patience=5 train.guard.lower=0.1"

// incidents are a run's, without their time.
func (p *place) incidents(dir string) []observe.Divergence {
	p.Helper()
	list, err := observe.Divergences(p.path(dir))
	p.check(err)
	for i := range list {
		list[i].Time = time.Time{}
	}
	return list
}

// sameTrouble checks that two runs went through the same.
func (p *place) sameTrouble(a, b string) {
	p.Helper()
	x, y := fmt.Sprintf("%+v", p.incidents(a)), fmt.Sprintf("%+v", p.incidents(b))
	if x != y {
		p.Errorf("incidents of %s: %s\nof %s: %s", a, x, b, y)
	}
	p.sameRun(a, b)
}

// A learning rate that is far too high is lowered until the run trains, from the beginning: it had no checkpoint yet.
func TestLearningRateIsLowered(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	words := append([]string{"train.yaml", "train.lr=1e3", "train.max_steps=24", "train.guard.tries=8"}, strings.Fields(jumpy)...)
	p.must(append(words, "run.dir=whole")...)
	list := p.incidents("whole")
	if len(list) < 3 {
		t.Fatalf("incidents: %+v", list)
	}
	for k, i := range list {
		if i.Number != k+1 || i.Try != k+1 || i.BackTo != 0 || i.Action != "lower_lr" || i.Kind != "nonfinite" && i.Kind != "spike" || len(i.Scans) == 0 {
			t.Errorf("incident %d: %+v", k+1, i)
		}
	}
	steps, _ := p.steps("whole")
	for _, e := range steps[2:] { // behind the warm-up the rate falls
		if lr := e["lr"].(float64); lr > 1e3*list[len(list)-1].LRScale {
			t.Fatalf("step %d: the rate is %g", e.step(), lr)
		}
	}
	if n := len(p.events("whole", "incident")); n != len(list) {
		t.Errorf("%d of %d incidents are in the log", n, len(list))
	}
	if done := p.events("whole", "done"); len(done) != 1 || done[0]["incidents"] != float64(len(list)) {
		t.Errorf("done: %v", done)
	}
	p.killed(words, "killed", *seed)
	p.sameTrouble("whole", "killed")
}

// Trouble behind the discriminators' start has them wait, and leaves the learning rate alone.
func TestDiscriminatorsAreDelayed(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	words := append([]string{"train.yaml", "train.max_steps=30", "train.gan.weight=1", "train.gan.start=12", "train.gan.layers=1", "train.gan.channels=4",
		"train.gan.lr=1e30", "train.guard.delay=5", "train.guard.tries=9"}, strings.Fields(jumpy)...)
	p.must(append(words, "run.dir=whole")...)
	list := p.incidents("whole")
	if len(list) < 2 {
		t.Fatalf("%+v", list)
	}
	for k, i := range list {
		if i.Action != "delay_gan" || i.Kind != "nonfinite" || i.LRScale != 1 || i.Since != 14+5*k || i.GANStart != i.Since+3 || i.BackTo%4 != 0 && i.BackTo%10 != 0 {
			t.Errorf("%+v", i)
		}
	}
	p.killed(words, "killed", *seed)
	p.sameTrouble("whole", "killed")
	p.refused(4, append(words, "run.dir=end", "train.guard.tries=2"), "going back 2 times was in vain, the last time with discriminators from step 22 on",
		"set train.lr or train.gan.weight lower")
}

// killed runs to the end, killed or stopped a few times at random moments.
func (p *place) killed(words []string, dir string, seed uint64) {
	p.Helper()
	random := rand.New(rand.NewPCG(seed, 0))
	words = append(slices.Clone(words), "run.dir="+dir)
	for range 4 {
		r := p.start(words...)
		trouble, goal := len(p.incidents(dir))+random.IntN(3), p.reached(dir)+1+random.IntN(12)
		r.until(func() bool { return len(p.incidents(dir)) > trouble || p.reached(dir) >= goal })
		if random.IntN(3) > 0 {
			if r.kill() {
				return
			}
			continue
		}
		r.signal(syscall.SIGTERM)
		switch o := r.wait(); o.code {
		case 0:
			return
		case 75:
		default:
			p.Fatalf("exit %d: %s", o.code, o.said())
		}
	}
	p.must(words...)
}

// A run that has trained well goes back to the newest checkpoint that its trouble hadn't touched, by which it doesn't
// matter whether it was stopped or killed on the way.
func TestGoesBackToASoundCheckpoint(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.must("train.yaml", "run.dir=whole", "train.max_steps=21", "train.schedule=constant")
	for _, dir := range []string{"stopped", "killed", "hopeless"} {
		p.check(os.CopyFS(p.path(dir), os.DirFS(p.path("whole"))))
	}
	// The rate is set a thousand times too high.
	words := append([]string{"train.yaml", "train.lr=3", "train.schedule=constant", "train.max_steps=44", "train.epochs=9"}, strings.Fields(jumpy)...)
	p.must(append(words, "run.dir=whole")...)
	list := p.incidents("whole")
	if len(list) == 0 {
		t.Fatal("nothing happened")
	}
	for _, i := range list {
		if i.BackTo > i.Since-2 || i.BackTo < 20 || i.Checkpoint != fmt.Sprintf("checkpoints/step-%08d.safetensors", i.BackTo) {
			t.Errorf("%+v", i)
		}
	}
	steps, _ := p.steps("whole")
	if len(steps) != 44 || p.final("whole").Step != 44 {
		t.Errorf("%d steps", len(steps))
	}
	for k, dir := range []string{"stopped", "killed"} {
		p.killed(words, dir, *seed+uint64(k))
		p.sameTrouble("whole", dir)
		p.swept(dir)
	}

	// Without hope it ends with exit code 4, says so, and leaves what is sound.
	hopeless := append(slices.Clone(words), "run.dir=hopeless", "train.lr=1e12", "train.guard.tries=2")
	for range 2 { // the same again ends in the same way
		o := p.refused(4, hopeless, "step 23 diverged on phantom-", "isn't finite", "going back 2 times was in vain", "0.01 times train.lr",
			"set train.lr lower", "go on from hopeless/checkpoints/step-00000021.safetensors", "hopeless/incidents.jsonl")
		if strings.Count(o.said()[0], "step 23") != 1 {
			t.Error(o.said())
		}
		list := p.incidents("hopeless")
		if len(list) != 3 || list[2].Action != "stop" || list[1].LRScale != 0.01 {
			t.Errorf("%+v", list)
		}
		if s := p.final("hopeless"); s.Step != 21 {
			t.Errorf("left at step %d", s.Step)
		}
	}
	p.must(append(hopeless, "train.lr=3e-3")...)
	if s := p.final("hopeless"); s.Step != 44 {
		t.Errorf("with a better rate it ends at step %d", s.Step)
	}
	if list := p.incidents("hopeless"); len(list) != 3 {
		t.Errorf("%+v", list)
	}

	// Off, the first number that isn't finite ends it.
	p.refused(4, append(words, "run.dir=off", "train.lr=1e30", "train.guard.tries=0"), "diverged", "isn't finite", "continue from the last checkpoint with a lower train.lr")
	if list := p.incidents("off"); len(list) > 0 {
		t.Errorf("%+v", list)
	}
}
