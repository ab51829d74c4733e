package integration

import (
	"os"
	"strings"
	"testing"
)

// says checks that a text holds each of words.
func says(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q isn't in\n%s", w, text)
		}
	}
}

func TestPlanWritesNothing(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	o := p.must("plan", "train.yaml")
	says(t, o.stdout, "read", "→ Volume", "batch", "Patch → Batch", "6 to train on, 1 held out", "[42, 28, 16] voxels", "tiles of [16, 16, 8]",
		"an epoch", "patches, ", "arena", "activations", "TFLOP", "largest", "host memory", "disk", "a checkpoint", "patches an hour", "to finish")
	if o.stderr != "" {
		t.Errorf("stderr: %s", o.stderr)
	}
	if _, err := os.Stat(p.path("run")); !os.IsNotExist(err) {
		t.Error("plan made the run's folder")
	}
	says(t, p.must("plan", "train.yaml", "run.hours=2").stdout, "2 hours are about")
	// It plans a run that is under way as well, and leaves it as it is.
	p.must("train.yaml", "train.max_steps=4")
	before := p.text("run", "log.jsonl") + p.text("run", "metrics.jsonl") + p.text("run", "config.yaml")
	p.must("plan", "train.yaml", "train.lr=1")
	if p.text("run", "log.jsonl")+p.text("run", "metrics.jsonl")+p.text("run", "config.yaml") != before {
		t.Error("plan changed the run")
	}
	// What can't run is refused by plan, but what is known of it is told.
	o = p.run("plan", "train.yaml", "run.memory=10MiB")
	if o.code != 2 {
		t.Errorf("exit %d", o.code)
	}
	says(t, o.stdout, "arena", "which leaves")
	says(t, o.stderr, "run.memory: too little")
	o = p.run("plan", "train.yaml", "read.scans=nowhere")
	o.stdout = "" // the graph
	p.tells(o, 3, "read.scans: nowhere: no such file or folder")
}

func TestInspect(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.must("train.yaml", "train.max_steps=10")
	says(t, p.must("inspect", "run/checkpoints/last.safetensors").stdout,
		"step", "10", "val/psnr", "codebook.embeddings", "[16 4]", "encoder.conv_first.conv.weight", "[4 1 3 3 3]", "verified")
	says(t, p.must("inspect", "scans/phantom-0006.nii").stdout, "42", "28", "16", "int16", "NIfTI-1", "spacing", "mm", "affine")
	b := p.file("run", "checkpoints", "last.safetensors")
	b[len(b)-9] ^= 1
	p.write("bad.safetensors", string(b))
	for _, c := range []struct {
		code  int
		file  string
		words []string
	}{
		{2, "none.nii", []string{"none.nii: no such file"}},
		{2, "none.safetensors", []string{"none.safetensors: no such file"}},
		{3, "train.yaml", []string{"train.yaml: ", "not NIfTI"}},
		{3, "scans", []string{"scans: "}},
		{3, "bad.safetensors", []string{"bad.safetensors: damaged: SHA-256"}},
	} {
		o := p.run("inspect", c.file)
		o.stdout = "" // what could be read is told
		p.tells(o, c.code, c.words...)
	}
}

func TestPhantomsAreTheSameEveryTime(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	for _, dir := range []string{"a", "b"} {
		if o := p.must("phantom", dir, "--count", "2", "--seed", "3", "--size", "24,20,10", "--spacing", "2,2,3"); o.stdout+o.stderr != "" {
			t.Errorf("said %q", o.stdout+o.stderr)
		}
	}
	for _, name := range []string{"phantom-0003.nii", "phantom-0004.nii"} {
		if p.text("a", name) != p.text("b", name) {
			t.Errorf("%s is another one", name)
		}
	}
	if p.text("a", "phantom-0003.nii") == p.text("a", "phantom-0004.nii") {
		t.Error("two patients are one")
	}
	says(t, p.must("inspect", "a/phantom-0003.nii").stdout, "[24, 20, 10]", "[2, 2, 3] mm")
	p.refused(2, []string{"phantom", "train.yaml/a"}, "train.yaml/a: not a directory")
	p.refused(2, []string{"phantom", "c", "--size", "10,10"}, "--size", "three numbers")
	p.refused(2, []string{"phantom", "c", "--size", "0,10,10"}, "size")
	p.refused(2, []string{"phantom", "c", "--count", "0"}, "count")
	p.refused(2, []string{"phantom"}, "want one folder")
}

func TestHelpKnowsEveryKey(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	// The names that scripts rely on.
	for block, keys := range map[string]string{
		"run": "dir seed memory resume workers hours", "model": "preset hidden downsample embedding codes quantizer levels groups norm padding decoder",
		"read": "scans window_hu cache ahead frame channel_dim max_bytes bad_share spacing", "tile": "mode patch stride",
		"augment": "flip rotate90 scale shift_hu noise_hu", "shuffle": "volumes", "batch": "size",
		"train":      "device memory epochs max_steps micro_batch lr warmup schedule clip ema init loss.l1 loss.l2 loss.commitment codebook.decay codebook.restart validate.share validate.scans validate.group validate.every",
		"checkpoint": "every keep best",
	} {
		text := p.must("help", block).stdout
		for _, k := range strings.Fields(keys) {
			says(t, text, block+"."+k+"\n")
		}
	}
	says(t, p.must("help").stdout, "read", "checkpoint", "plan", "phantom", "inspect", "Exit codes")
	says(t, p.must("--help").stdout, "flowrun FILE.yaml", "plan", "completion")
	says(t, p.must("help", "train.lr").stdout, "train.lr", "default 3e-4")
	for _, preset := range []string{"vqgan3d", "lean24g", "demo"} {
		says(t, p.must("help", "model").stdout, preset)
	}
	says(t, p.must("completion", "bash").stdout, "flowrun")
	says(t, p.must("version").stdout, "flowrun ", "go1.")
	p.refused(2, nil, "which file?")
	p.refused(2, []string{"help", "tain"}, "tain", "did you mean flowrun help train?")
	p.refused(2, []string{"plna", "train.yaml"}, "did you mean flowrun plan?")
	p.refused(2, []string{"train.yaml", "--fast"}, "--fast", "--help")
}
