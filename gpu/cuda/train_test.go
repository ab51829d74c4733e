//go:build cuda

package cuda

import (
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/cpu"
	"github.com/flowrun/flowrun/gpu/vqgan"
)

// tiny is a small model, with or without all that a GAN adds.
func tiny(norm string, gan bool) (vqgan.Config, vqgan.Options) {
	c := vqgan.Config{Hidden: 8, Downsample: [3]int{2, 2, 1}, Embedding: 4, Codes: 16, Norm: norm, Groups: 4, Padding: "replicate", Decoder: "lean"}
	o := vqgan.Options{Patch: [3]int{8, 8, 4}, Batch: 1, MicroBatch: 1, Infer: 1, Loss: vqgan.Loss{L1: 1, Commitment: 0.25},
		Codebook: vqgan.CodebookOptions{Decay: 0.99, Restart: 1}, Clip: 1, EMA: 0.9, Beta1: 0.5, Beta2: 0.9, Seed: 1}
	if gan {
		o.GAN = vqgan.GAN{Weight: 1, Ramp: 1, Loss: "hinge", Image: 1, Volume: 1, Planes: []string{"z"}, Slices: 1, Channels: 8, Layers: 1,
			Norm: "spectral", LR: 1, Beta1: 0.5, Beta2: 0.9, Features: 1, Adaptive: 10, LeCam: 0.01, R1: 1, R1Every: 2}
	}
	return c, o
}

// waves are n patches.
func waves(patch [3]int, n int) []float32 {
	r := rand.New(rand.NewPCG(7, 0))
	var out []float32
	for range n {
		a, b, c := r.Float64(), r.Float64(), r.Float64()
		for z := range patch[2] {
			for y := range patch[1] {
				for x := range patch[0] {
					out = append(out, float32(0.8*math.Sin(a*float64(x)+3*b)*math.Cos(b*float64(y)+c*float64(z))))
				}
			}
		}
	}
	return out
}

// train takes steps and returns what they said and what is left.
func train(t *testing.T, e gpu.Engine, c vqgan.Config, o vqgan.Options, steps int) ([]vqgan.Stats, []vqgan.Array) {
	t.Helper()
	s, err := vqgan.Open(e, c, o)
	if err != nil {
		t.Fatal(err)
	}
	x := waves(o.Patch, o.Batch)
	var stats []vqgan.Stats
	for range steps {
		one, err := s.Step(x, x, o.Batch, 2e-3)
		if err != nil {
			t.Fatal(err)
		}
		stats = append(stats, one)
	}
	state, err := s.State()
	if err != nil {
		t.Fatal(err)
	}
	return stats, state
}

// agree holds steps to those of the CPU engine, within what bfloat16 costs.
func agree(t *testing.T, got, want []vqgan.Stats) {
	t.Helper()
	for i := range want {
		g, w := got[i], want[i]
		for _, v := range []struct {
			what      string
			got, want float64
		}{{"L1", g.L1, w.L1}, {"commitment", g.Commitment, w.Commitment}, {"gradient", g.GradNorm, w.GradNorm},
			{"generator", g.GAN.Generator, w.GAN.Generator}, {"discriminator", g.GAN.Discriminator, w.GAN.Discriminator}, {"features", g.GAN.Features, w.GAN.Features}} {
			if math.Abs(v.got-v.want) > 0.05*(0.02+math.Abs(v.want)) {
				t.Errorf("step %d: %s is %v, on the CPU %v", i+1, v.what, v.got, v.want)
			}
		}
	}
}

// A training run on the stand-in is that of the CPU engine within what bfloat16 costs, and the same to the bit when repeated.
func TestTraining(t *testing.T) {
	for name, set := range map[string]func() (vqgan.Config, vqgan.Options){
		"channel norm":     func() (vqgan.Config, vqgan.Options) { return tiny("channel", false) },
		"GroupNorm, a GAN": func() (vqgan.Config, vqgan.Options) { return tiny("group", true) },
	} {
		t.Run(name, func(t *testing.T) {
			c, o := set()
			host, card, again := cpu.New(1), open(t), open(t)
			want, _ := train(t, host, c, o, 2)
			got, state := train(t, card, c, o, 2)
			_, repeat := train(t, again, c, o, 2)
			agree(t, got, want)
			for i := range state {
				if !slices.Equal(state[i].Data, repeat[i].Data) {
					t.Errorf("%s differs in a second run", state[i].Name)
				}
			}
			for _, e := range []gpu.Engine{host, card, again} {
				if err := e.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// Failures have names, come at Sync, and what was done before is still there to be kept.
func TestFailures(t *testing.T) {
	if !strings.Contains(os.Getenv(Library), "standin") {
		t.Skip("a real driver has no faults on demand")
	}
	fault := func(t *testing.T, f string) { t.Setenv("FLOWRUN_STANDIN_FAULT", f) }
	for _, c := range []struct {
		fault string
		want  error
		text  string
	}{
		{"cuLaunchKernel=719@3", ErrLost, "error 719"},
		{"cuLaunchKernel=701@2", ErrLaunch, "error 701"},
		{"async=700@2", ErrLost, "error 700"},
		{"cuMemcpyHtoDAsync_v2=999@1", ErrLost, "cuMemcpyHtoDAsync"},
	} {
		t.Run(c.fault, func(t *testing.T) {
			conf, o := tiny("channel", false)
			e := open(t)
			s, err := vqgan.Open(e, conf, o)
			if err != nil {
				t.Fatal(err)
			}
			before, err := s.State()
			if err != nil {
				t.Fatal(err)
			}
			x := waves(o.Patch, 1)
			fault(t, c.fault)
			_, err = s.Step(x, x, 1, 1e-3)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("%v, want %v with %q", err, c.want, c.text)
			}
			fault(t, "")
			if err := e.Sync(); !errors.Is(err, c.want) {
				t.Errorf("the engine goes on: %v", err)
			}
			if err := e.Close(); err != nil {
				t.Errorf("said twice: %v", err)
			}
			if again := open(t); again != nil {
				o, err := vqgan.Open(again, conf, o)
				if err != nil {
					t.Fatal(err)
				}
				if err := o.SetState(before, true); err != nil {
					t.Fatalf("what was kept before the failure doesn't load: %v", err)
				}
				if err := again.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	t.Run("compile", func(t *testing.T) {
		for _, f := range []string{"cuModuleLoadDataEx=218@2", "cuModuleLoadDataEx=222@1"} { // 222: a driver older than the PTX
			fault(t, "")
			if _, err := Devices(); err != nil { // the stand-in forgets what it counted
				t.Fatal(err)
			}
			fault(t, f)
			if _, err := Open(0); !errors.Is(err, ErrCompile) || !strings.Contains(err.Error(), "ptxas") {
				t.Errorf("%s: %v, want %v and the compiler's log", f, err, ErrCompile)
			}
		}
	})
	t.Run("memory", func(t *testing.T) {
		e := open(t)
		err := e.Reserve(1 << 40)
		if !errors.Is(err, ErrOutOfMemory) || !strings.Contains(err.Error(), "MiB are free") {
			t.Errorf("%v, want %v", err, ErrOutOfMemory)
		}
		if err := e.Close(); err != nil {
			t.Errorf("said twice: %v", err)
		}
	})
	t.Run("none", func(t *testing.T) {
		t.Setenv("FLOWRUN_STANDIN_CARDS", "0")
		if _, err := Open(0); err == nil || !strings.Contains(err.Error(), "lists no GPU") {
			t.Error(err)
		}
	})
	t.Run("old", func(t *testing.T) {
		t.Setenv("FLOWRUN_STANDIN_CAPABILITY", "7.0")
		if _, err := Open(0); err == nil || !strings.Contains(err.Error(), "compute capability 7.0") {
			t.Error(err)
		}
	})
	t.Run("ordinal", func(t *testing.T) {
		if _, err := Open(3); err == nil || !strings.Contains(err.Error(), "cuda:3: there is no such device") {
			t.Error(err)
		}
	})
}
