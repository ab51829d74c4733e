//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/cpu"
	"github.com/flowrun/flowrun/gpu/enginetest"
	"pgregory.net/rapid"
)

// asHopper has the stand-in be a card that has kernels of its own; a real one is what it is.
func asHopper(t *testing.T) {
	t.Helper()
	t.Setenv("FLOWRUN_STANDIN_CAPABILITY", "9.0")
	e := open(t).(*Engine)
	own := e.own
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if !own {
		if strings.Contains(os.Getenv(Library), "standin") {
			t.Fatalf("no kernels of its own: %s", e.Less())
		}
		t.Skip("no kernels of its own")
	}
}

func TestOwnKernels(t *testing.T) {
	asHopper(t)
	enginetest.Convolutions(t, func() gpu.Engine { return open(t) })
}

// The card's own kernels give the bits of those that every card runs, where no order of sums rounds.
func TestProof(t *testing.T) {
	asHopper(t)
	e := open(t).(*Engine)
	if err := e.Reserve(256 << 20); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		c := drawConv(t)
		c.Type = gpu.BFloat16
		c.In.C, c.Out.C = rapid.IntRange(1, 140).Draw(t, "ci"), rapid.IntRange(1, 140).Draw(t, "co")
		if c.In.W < 20 && !c.Transposed && c.S[2] == 1 && rapid.Bool().Draw(t, "long") { // several tiles
			c.In.W *= 20
			c.Out.W *= 20
		}
		if err := e.compare(c, rapid.IntRange(0, passes-1).Draw(t, "pass")); err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
	})
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

// A training step with the card's own kernels is the CPU's.
func TestOwnTraining(t *testing.T) {
	asHopper(t)
	c, o := tiny("channel", false)
	c.Hidden, o.Patch = 36, [3]int{8, 4, 2}
	host, card := cpu.New(1), open(t)
	want, _ := train(t, host, c, o, 1)
	got, _ := train(t, card, c, o, 1)
	if g, w := got[0].L1, want[0].L1; math.Abs(g-w) > 0.05*w {
		t.Errorf("L1 is %v, on the CPU %v", g, w)
	}
	if g, w := got[0].GradNorm, want[0].GradNorm; math.Abs(g-w) > 0.05*w {
		t.Errorf("the gradient is %v, on the CPU %v", g, w)
	}
	for _, e := range []gpu.Engine{host, card} {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Where the card's own kernels are switched off, too new for the driver, don't compile, don't run, lose the device or give something else, the engine says so and goes
// on without.
func TestLess(t *testing.T) {
	if !strings.Contains(os.Getenv(Library), "standin") {
		t.Skip("a real driver has no faults on demand")
	}
	all, err := modules()
	if err != nil {
		t.Fatal(err)
	}
	first := 1 // of the modules that are compiled, the card's own
	for _, m := range all {
		if m.target == everyone {
			first++
		}
	}
	for _, c := range []struct{ name, variable, value, less string }{
		{"off", OwnKernels, "off", "is off"},
		{"old", "FLOWRUN_STANDIN_VERSION", "11080", "for CUDA 11.8: with one for 12.0"},
		{"compile", "FLOWRUN_STANDIN_FAULT", fmt.Sprint("cuModuleLoadDataEx=218@", first), "ptxas"},
		{"launch", "FLOWRUN_STANDIN_FAULT", "cuLaunchKernel=701@5", "error 701"},
		{"lost", "FLOWRUN_STANDIN_FAULT", "async=719@5", "error 719"},
		{"wrong", "FLOWRUN_STANDIN_FAULT", "skip=1@9", "other results"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("FLOWRUN_STANDIN_CAPABILITY", "9.0")
			t.Setenv("FLOWRUN_STANDIN_FAULT", "")
			if _, err := Devices(); err != nil { // the stand-in forgets what it counted
				t.Fatal(err)
			}
			t.Setenv(c.variable, c.value)
			e := open(t)
			if !strings.Contains(e.Less(), c.less) || strings.Contains(e.Name(), "sm_90a") {
				t.Errorf("%s: %q", e.Name(), e.Less())
			}
			t.Setenv("FLOWRUN_STANDIN_FAULT", "")
			if err := e.Reserve(proofBytes); err != nil {
				t.Fatal(err)
			}
			if _, err := e.(*Engine).proof(proofs[0], output); err != nil {
				t.Errorf("it doesn't go on: %v", err)
			}
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
