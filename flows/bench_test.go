package flows

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/infer"
	"github.com/flowrun/flowrun/stages/train"
)

// benched is what bench finds out about a job, in a hurry, and sees to it that nothing of it is left behind.
func benched(t *testing.T, j *Job) BenchFigures {
	t.Helper()
	kept := j.run.Dir
	t.Setenv("TMPDIR", t.TempDir())
	var out, errs bytes.Buffer
	if err := j.Bench(t.Context(), UI{Out: &out, Err: &errs}, BenchOptions{Steps: 3, Seconds: 0.2, JSON: true}); err != nil {
		t.Fatal(err)
	}
	var k BenchFigures
	if err := json.Unmarshal(out.Bytes(), &k); err != nil {
		t.Fatalf("%v in %s", err, out.Bytes())
	}
	if _, err := os.Stat(kept); err == nil {
		t.Errorf("%s is there", kept)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if errs.Len() > 0 {
		t.Errorf("it said %s", errs.Bytes())
	}
	return k
}

// Each phase of training is timed, and what training never comes to isn't.
func TestBenchPhases(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	for _, c := range []struct {
		words, names string
		op           string // only there in the last phase
	}{
		{"", "autoencoder", "quantize"},
		{"train.gan.weight=1 train.gan.channels=4 train.gan.layers=1", "autoencoder, with discriminators", "judge"},
		{"train.gan.weight=1 train.gan.channels=4 train.gan.layers=1 train.gan.r1=1 train.gan.r1_every=2 train.micro_batch=1", "autoencoder, with discriminators, with R1", "judge"},
	} {
		k := benched(t, tiny(t, dir, strings.Fields(c.words)...))
		var names []string
		for _, s := range k.Compute {
			names = append(names, s.Name)
			if s.Calls == 0 || s.FLOPS <= 0 || math.Abs(s.Patches*s.Seconds-3) > 1e-9 || s.Voxels != s.Patches*512 || s.Least > s.Seconds {
				t.Errorf("%s: %+v", c.words, s)
			}
		}
		if got := strings.Join(names, ", "); got != c.names {
			t.Errorf("%s: phases %s, want %s", c.words, got, c.names)
		}
		share, found := 0.0, false
		for _, o := range k.Ops {
			share, found = share+o.Share, found || o.Kind == c.op
		}
		if math.Abs(share-1) > 1e-9 || !found {
			t.Errorf("%s: the ops %+v sum to %v of the pass", c.words, k.Ops, share)
		}
		if k.Data == nil || k.Both == nil || k.Data.Voxels <= 0 || k.Both.Voxels <= 0 || k.OfSlower <= 0 || k.Ceiling.FLOPS <= 0 || k.Memory.Arena == 0 || k.Memory.Process == 0 {
			t.Errorf("%s: %+v", c.words, k)
		}
	}
}

// TestBenchBack times a trained model in the flows that use it, blended and exact, and alone as an encoder.
func TestBenchBack(t *testing.T) {
	scans, err := phantoms()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := do(t, t.Context(), nil, tiny(t, filepath.Join(dir, "run"), "train.max_steps=2")); err != nil {
		t.Fatal(err)
	}
	model := filepath.Join(dir, "run", "checkpoints", "last.safetensors")
	back := fmt.Sprintf("flow:\n  - read: {scans: [%q]}\n  - tile: {}\n  - batch: {size: 2}\n  - infer: {checkpoint: %q}\n  - merge: {}\n  - measure: {}\n  - write: {dir: %q}\n",
		scans, model, filepath.Join(dir, "out"))
	codes := fmt.Sprintf("flow:\n  - read: {scans: [%q]}\n  - encode: {checkpoint: %q}\n  - save: {dir: %q}\n", scans, model, filepath.Join(dir, "codes"))
	for _, c := range []struct {
		text  string
		words []string
		name  string
		ops   bool
	}{
		{back, nil, "reconstruct", true},
		{back, []string{"merge.mode=exact"}, "encode and decode", false},
		{back, []string{"infer.checkpoint=identity", "tile.patch=[8, 8, 8]"}, "reconstruct", false},
		{codes, nil, "encode", false},
	} {
		k := benched(t, mustLoad(t, c.text, c.words...))
		if len(k.Compute) != 1 || k.Compute[0].Name != c.name || k.Data == nil || k.Both == nil || k.Data.Voxels <= 0 || k.Both.Voxels <= 0 || (len(k.Ops) > 0) != c.ops {
			t.Errorf("%s %v: %+v", c.name, c.words, k)
		}
	}
}

// A bench that is interrupted prints what it knows.
func TestBenchInterrupted(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out bytes.Buffer
	j := tiny(t, filepath.Join(t.TempDir(), "run"))
	err := j.bench(ctx, &out, BenchOptions{Steps: 2, Seconds: 0.1}, func(text string) {
		if text == "timing both" {
			cancel()
		}
	})
	if !errors.Is(err, ErrInterrupted) || ExitCode(err) != ExitInterrupted {
		t.Errorf("%v", err)
	}
	for _, want := range []string{"autoencoder", "conv", "  data"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "  both") {
		t.Errorf("it says of both, which it didn't measure:\n%s", out.String())
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Scans that can't be read are left out and counted; a flow that bench has no measure of is refused.
func TestBenchRefuses(t *testing.T) {
	dir, _ := scanFiles(t, [3]int{16, 16, 16}, [3]int{16, 16, 16}, [3]int{16, 16, 16})
	if err := os.WriteFile(filepath.Join(dir, "torn.nii"), []byte("not a scan"), 0o644); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(t.TempDir(), "run")
	if k := benched(t, tiny(t, run, "read.scans="+dir, "read.bad_share=0.5")); k.Unreadable != 1 {
		t.Errorf("%d scans unreadable", k.Unreadable)
	}
	if err := tiny(t, run, "train.device=cuda:99").Bench(t.Context(), UI{}, BenchOptions{Steps: 1, Seconds: 1}); ExitCode(err) != ExitUsage {
		t.Errorf("a device that isn't there: %v", err)
	}
	j := mustLoad(t, fmt.Sprintf("flow:\n  - read: {scans: [%q]}\n  - tile: {patch: [8, 8, 8]}\n", dir))
	err := j.Bench(t.Context(), UI{}, BenchOptions{Steps: 1, Seconds: 1})
	if _, ok := errors.AsType[*ConfigError](err); !ok || !strings.Contains(err.Error(), "train, infer or encode") {
		t.Errorf("%v", err)
	}
}

// The whole is compared with its slower part: data, or the model with R1's share of the steps.
func TestBenchSlower(t *testing.T) {
	k := BenchFigures{R1Every: 4, Compute: []Speed{{Voxels: 100}, {Voxels: 80}, {Voxels: 40}}, Data: &Flow{Voxels: 500}}
	if v := k.compute(); math.Abs(v-64) > 1e-9 { // 4 / (3/80 + 1/40)
		t.Errorf("compute %v", v)
	}
	if k.together(Flow{Voxels: 48}); k.Slower != "compute" || math.Abs(k.OfSlower-0.75) > 1e-9 {
		t.Errorf("%v of %s", k.OfSlower, k.Slower)
	}
	k.Data.Voxels = 50
	if k.together(Flow{Voxels: 25}); k.Slower != "data" || k.OfSlower != 0.5 {
		t.Errorf("%v of %s", k.OfSlower, k.Slower)
	}
	if s := k.speed("", 2, []float64{0.5, 0.1, 0.2, 0.4}, 0); math.Abs(s.Seconds-0.3) > 1e-9 || s.Least != 0.1 || math.Abs(s.Patches-2/0.3) > 1e-9 {
		t.Errorf("%+v", s)
	}
}

// All phases that the options ask for, each without what the next one adds.
func TestBenchPhaseOptions(t *testing.T) {
	var o train.Options
	o.GAN.Weight, o.GAN.R1 = 0.5, 10
	list := phases(o)
	if len(list) != 3 || list[0].GAN.Weight != 0 || list[1].GAN.Weight != 0.5 || list[1].GAN.R1 != 0 || list[2].GAN.R1 != 10 {
		t.Errorf("%+v", list)
	}
}

// A gauge counts the voxels that a model is given, those of two halves once; a hollow one doesn't compute.
func TestGauge(t *testing.T) {
	size := [3]int{2, 2, 2}
	src, idx := []float32{0, 1, 0, 1, 0, 1, 0, 1}, make([]int32, 8)
	for _, c := range []struct {
		g      gauge
		voxels int64
		code   int32 // of 1
	}{
		{gauge{}, 8, 65535},
		{gauge{halves: true}, 4, 65535},
		{gauge{hollow: true}, 8, 0},
	} {
		passed := int64(0)
		g := c.g
		g.Model, g.passed = infer.NewIdentity(size), func(n int64) { passed = n }
		if err := g.Encode(idx, nil, nil, src, size); err != nil || passed != c.voxels || idx[1] != c.code || (g.probe() != nil) != g.hollow {
			t.Errorf("%+v: %d voxels, codes %v, %v", c.g, passed, idx, err)
		}
		clear(idx)
		if err := g.Decode(make([]float32, 8), idx, nil, size); err != nil || passed != c.voxels+4 {
			t.Errorf("%+v: %d voxels decoded, %v", c.g, passed, err)
		}
		if err := g.Reconstruct(src, src, 1, nil); err != nil || passed != c.voxels+12 {
			t.Errorf("%+v: %d voxels reconstructed, %v", c.g, passed, err)
		}
	}
}
