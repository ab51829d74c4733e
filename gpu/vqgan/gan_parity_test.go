package vqgan

import (
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The fixtures parity-gan-*.safetensors are what PyTorch makes of the whole GAN, written by integration/reference/gan.py.

func ganFixtures(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/parity-gan-*.safetensors")
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d fixtures: %v", len(paths), err)
	}
	for i, p := range paths {
		paths[i] = strings.TrimSuffix(strings.TrimPrefix(filepath.Base(p), "parity-"), ".safetensors")
	}
	return paths
}

// judged tells discriminators' arrays from the generator's.
func judged(name string) bool { return strings.Contains(name, "_discriminator.") }

// parts are the names of the generator's weights and of the discriminators', sorted; buffers aren't weights.
func (f *fixture) parts() (own, judges []string) {
	for _, a := range f.weights {
		switch {
		case strings.HasPrefix(a.Name, "codebook."), strings.HasSuffix(a.Name, "weight_u"), strings.Contains(a.Name, "running_"):
		case judged(a.Name):
			judges = append(judges, a.Name)
		default:
			own = append(own, a.Name)
		}
	}
	slices.Sort(own)
	slices.Sort(judges)
	return own, judges
}

// ganForced is the state before the k-th forced step of a fixture.
func (f *fixture) ganForced(t *testing.T, s *Session, k int) []Array {
	t.Helper()
	arrays := f.forced(t, s, k)
	before := float32(f.row(t, "forced.step", k)[0] - 1)
	for _, a := range arrays {
		switch {
		case a.Name == nameJudgement:
			copy(a.Data, limbs(int64(before), 0))
		case a.Name == nameAnchors:
			for i, x := range []float32{0.25, -0.5, 0.125, 0.0625} {
				a.Data[i] = x * float32(k)
			}
		case strings.HasSuffix(a.Name, suffixU) && judged(a.Name):
			copy(a.Data, f.arrays[a.Name].Data)
		}
	}
	return arrays
}

// places lets a session cut its slices where the fixture did in its i-th step.
func (f *fixture) places(t *testing.T, s *Session, i int) {
	t.Helper()
	row := f.row(t, "places", i)
	per := len(row) / len(s.o.GAN.Planes)
	s.at = func(plane string, patch int) []float32 {
		k := s.o.GAN.Slices
		return row[slices.Index(s.o.GAN.Planes, plane)*per:][patch*k:]
	}
}

// still reports whether a weight has no gradient but rounding: a bias before a batch norm, which takes it away again, or that of hinge's
// logits as long as none is beyond its corner. Adam makes steps of the noise, in PyTorch too.
func (f *fixture) still(t *testing.T, i, of int) bool {
	all := f.row(t, "forced.judge.gradient", 0)
	return all[i*len(all)/of] < 1e-9
}

// judgeGradients are the discriminators' of the last step, in the layout and by the names of files.
func judgeGradients(t *testing.T, s *Session) map[string][]float32 {
	t.Helper()
	return byName(t, s, &s.judges.params, s.judges.grads, s.judges.judgeName)
}

// said compares what a step of a GAN says; what is near 0 with an absolute tolerance.
func (w worst) said(share float64, got Stats, want []float32, shares float64, step int) {
	w.losses(share, got, want, step)
	g := got.GAN
	g.Discriminator *= shares // PyTorch's is the sum
	for i, x := range []float64{got.SSIM, g.Generator, g.Discriminator, g.Features, g.R1, g.Weight, g.GradNorm, g.Real, g.Fake} {
		name := []string{"dissimilarity", "generator", "discriminator", "features", "R1", "adaptive", "judges'", "real", "fake"}[i]
		y := float64(want[7+i])
		if name == "features" && x == 0 {
			continue // it is off, and isn't measured
		}
		least := 0.01
		if name == "R1" {
			least = 1e-6
		}
		w.see(share, math.Abs(x-y)/max(math.Abs(y), least), "%s of step %d", name, step)
	}
}

func TestGANStepsAreThoseOfPyTorch(t *testing.T) {
	for _, name := range ganFixtures(t) {
		t.Run(name, func(t *testing.T) {
			f, w := readFixture(t, name), worst{}
			o := f.options.GAN
			own, judges := f.parts()
			s := f.load(t, f.options)
			for k := range f.arrays["forced.step"].Data {
				arrays := f.ganForced(t, s, k)
				if err := s.SetState(arrays, true); err != nil {
					t.Fatal(err)
				}
				f.places(t, s, k)
				row := func(name string) []float32 { return f.row(t, "forced."+name, k) }
				batch := k % f.arrays["input"].Shape[0]
				stats, err := s.Step(f.row(t, "input", batch), f.row(t, "target", batch), f.options.Batch, float64(row("lr")[0]))
				if err != nil {
					t.Fatal(err)
				}
				w.said(1e-5, stats, row("losses"), o.Image+o.Volume, k)
				before, after := table(arrays), table(state(t, s))
				probed := func(what string, i, of int, share float64, got []float64, name string) {
					all := row(what)
					n := len(all) / of
					w.probed(share, got, all[i*n:(i+1)*n], "%s of %s in step %d", what, name, k)
				}
				grads := gradients(t, s)
				for i, name := range own {
					probed("gradient", i, len(own), 1e-4, double(grads[name]), name)
				}
				grads = judgeGradients(t, s)
				for i, name := range judges {
					if f.still(t, i, len(judges)) {
						continue
					}
					probed("judge.gradient", i, len(judges), 1e-4, double(grads[name]), name)
					probed("judge.first", i, len(judges), 1e-4, double(after[prefixFirst+name]), name)
					probed("judge.second", i, len(judges), 2e-4, double(after[prefixSecond+name]), name)
					probed("judge.change", i, len(judges), 2e-3, less(after[name], before[name]), name)
				}
				w.near(1e-5, after[nameAnchors], row("anchors"), "anchors of step %d", k)
				for _, key := range slices.Sorted(maps.Keys(f.arrays)) {
					if name, ok := strings.CutPrefix(key, "forced.buffers."); ok {
						w.near(1e-5, after[name], f.row(t, key, k), "buffers %s of step %d", name, k)
					}
				}
			}
			w.report(t)
		})
	}
}

func TestTenGANStepsInARowAreThoseOfPyTorch(t *testing.T) {
	for _, name := range ganFixtures(t) {
		t.Run(name, func(t *testing.T) {
			f, w := readFixture(t, name), worst{}
			o := f.options.GAN
			own, judges := f.parts()
			s := f.load(t, f.options)
			before := table(state(t, s))
			for i := range f.arrays["free.losses"].Shape[0] {
				f.places(t, s, i)
				batch := i % f.arrays["input"].Shape[0]
				stats, err := s.Step(f.row(t, "input", batch), f.row(t, "target", batch), f.options.Batch, float64(f.row(t, "free.lr", i)[0]))
				if err != nil {
					t.Fatal(err)
				}
				w.said(1e-4, stats, f.row(t, "free.losses", i), o.Image+o.Volume, i)
			}
			after := table(state(t, s))
			for i, name := range own {
				w.probed(2e-2, less(after[name], before[name]), f.row(t, "free.change", i), "change of %s", name)
			}
			for i, name := range judges {
				if f.still(t, i, len(judges)) {
					continue
				}
				w.probed(2e-2, less(after[name], before[name]), f.row(t, "free.judge.change", i), "change of %s", name)
			}
			w.report(t)
		})
	}
}

// TestGANStateDictsGoBothWays holds names and layouts of discriminators to PyTorch's.
func TestGANStateDictsGoBothWays(t *testing.T) {
	for _, name := range ganFixtures(t) {
		f := readFixture(t, name)
		got := table(state(t, f.load(t, f.options)))
		n := 0
		for _, a := range f.weights {
			if judged(a.Name) {
				n++
				if !slices.Equal(got[a.Name], a.Data) {
					t.Errorf("%s: %s changed", name, a.Name)
				}
			}
		}
		if n < 16 {
			t.Errorf("%s: %d arrays of discriminators", name, n)
		}
		for array := range got {
			if judged(array) && !strings.HasPrefix(array, "adam.") && f.arrays[array].Data == nil && !strings.HasSuffix(array, nameBatches) {
				t.Errorf("%s: %s isn't PyTorch's", name, array)
			}
		}
	}
}
