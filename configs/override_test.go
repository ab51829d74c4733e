package configs_test

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/configs"
)

func TestOverrides(t *testing.T) {
	f, b, err := load(good,
		"run.seed=9", "run.seed=8", // the last one holds
		"run.hours=8.5", // a key that the file doesn't set
		"run.dir=",
		"run.dir=runs/2024 #2", "run.resume= never ",
		"model.downsample=[2, 2, 1]",
		"train.validate.every=250", "train.validate.share=0.2",
		"augment[1].flip=[x, y]",
		"tile={patch: [32, 32, 32], stride: [32, 32, 32]}", // the whole block
		"read.scans=a=b.nii", "read.scans=*/a=b.nii",
	)
	if err != nil {
		t.Fatal(err)
	}
	if run := b.Top["run"].(*runOptions); *run != (runOptions{Dir: "runs/2024 #2", Seed: 8, Memory: 16 << 30, Hours: 8.5, Resume: "never"}) {
		t.Errorf("run %+v", run)
	}
	if model := b.Top["model"].(*modelOptions); model.Downsample != [3]int{2, 2, 1} || model.Hidden != 32 {
		t.Errorf("model %+v", model)
	}
	want := []any{
		&readOptions{Scans: []string{"*/a=b.nii"}, Window: [2]float64{-1000, 1000}, Frames: []int{}},
		&tileOptions{Patch: [3]int{32, 32, 32}, Stride: [3]int{32, 32, 32}},
		&augmentOptions{Flip: []string{"x"}},
		&struct{}{},
		&augmentOptions{Flip: []string{"x", "y"}},
		&trainOptions{Device: "auto", LR: 1e-4, Validate: validateOptions{Share: 0.2, Every: 250}},
	}
	for i, s := range f.Stages {
		if !reflect.DeepEqual(s.Options, want[i]) {
			t.Errorf("%s: %+v, want %+v", s.Label, s.Options, want[i])
		}
	}
}

// An override heals the value that it replaces, and makes a block that the file hasn't.
func TestOverrideReplacesBadValue(t *testing.T) {
	_, b, err := load("flow:\n  - train: {lr: fast}\n  - read\n", "train.lr=1", "read.scans=[a, b]", "model.preset=demo", "model.hidden=8")
	if err != nil {
		t.Fatal(err)
	}
	if m := b.Top["model"].(*modelOptions); m.Preset != "demo" || m.Hidden != 8 || m.Codes != 512 {
		t.Errorf("model %+v", m)
	}
}

// A key below a value is an error, whether the file gives the value or not, and isn't passed over.
func TestOverrideBelowAValue(t *testing.T) {
	for _, file := range []string{"flow:\n  - train: {lr: 1}\n", "flow:\n  - train\n", "flow:\n  - train: &a {lr: 1}\n"} {
		_, _, err := load(file, "train.lr.peak=3")
		if want := "command line: train.lr.peak=3: train.lr: want a number, got a block of keys"; err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", file, err, want)
		}
	}
}

// A mapping shared by an alias isn't changed where it wasn't named.
func TestOverrideOfAlias(t *testing.T) {
	f, _, err := load("flow:\n  - augment: &a {flip: [x]}\n  - augment: *a\n", "augment[1].flip=z")
	if err != nil {
		t.Fatal(err)
	}
	if a, b := f.Stages[0].Options.(*augmentOptions), f.Stages[1].Options.(*augmentOptions); a.Flip[0] != "x" || b.Flip[0] != "z" {
		t.Errorf("%v %v", a, b)
	}
}

// Every problem is reported at once: the file's by line, then the command line's.
func TestAllProblems(t *testing.T) {
	_, _, err := load("flow:\n  - train: {lr: fast, lrr: 1}\n  - tile: {patch: 3}\n  - shufle\nrun: {seed: x}\nmodell: {}\n", "run.dri=a", "train.ema")
	want := `train.yaml:2: train.lr: want a number, got "fast"
train.yaml:2: train.lrr: unknown key; did you mean "lr"?
train.yaml:3: tile.patch: want 3 whole numbers, such as [128, 128, 64], got 3
train.yaml:4: shufle: unknown stage; did you mean "shuffle"? (stages: read, tile, augment, shuffle, train)
train.yaml:5: run.seed: want a whole number, got "x"
train.yaml:6: modell: unknown block; did you mean "model"? (blocks: model, run, flow)
command line: train.ema: want key=value, such as train.lr=3e-4 or run.seed=7
command line: run.dri=a: unknown key; did you mean "dir"?`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	var many configs.Errors
	if _, _, err = load("flow:\n  - read:\n" + strings.Repeat("      x: 1\n", 1000)); !errors.As(err, &many) || len(many) != 20 {
		t.Errorf("%d problems reported", len(many))
	}
}

func TestPresets(t *testing.T) {
	if names := configs.Presets(); !slices.Equal(names, []string{"demo", "lean24g", "vqgan3d"}) {
		t.Errorf("presets %v", names)
	}
	full := [3]int{4, 4, 4}
	for name, want := range map[string]modelOptions{
		"vqgan3d": {Hidden: 64, Downsample: full, Embedding: 8, Codes: 16384, Norm: "group", Groups: 32, Padding: "replicate", Decoder: "full"},
		"lean24g": {Hidden: 64, Downsample: full, Embedding: 8, Codes: 16384, Norm: "channel", Groups: 32, Padding: "replicate", Decoder: "lean"},
		"demo":    {Hidden: 16, Downsample: full, Embedding: 8, Codes: 512, Norm: "channel", Groups: 32, Padding: "replicate", Decoder: "lean"},
	} {
		want.Preset = name
		_, b, err := load("model: {preset: " + name + "}\nflow: [train]\n")
		if err != nil {
			t.Fatal(err)
		}
		if got := b.Top["model"].(*modelOptions); *got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
		if text, err := configs.Preset(name); err != nil || !bytes.HasPrefix(text, []byte("# ")) {
			t.Errorf("%s: no comment ahead (%v)", name, err)
		}
		want.Hidden, want.Codes = 128, 1024
		f, b, err := load("model: {hidden: 128, preset: "+name+"}\nflow: [train]\n", "model.codes=1024")
		if err != nil {
			t.Fatal(err)
		}
		if !f.Given("model.preset") || !f.Given("model.hidden") || !f.Given("model.codes") || f.Given("model.embedding") {
			t.Error("Given doesn't tell the file's keys from the preset's")
		}
		if got := b.Top["model"].(*modelOptions); *got != want {
			t.Errorf("%s with hidden 128, codes 1024: %+v", name, got)
		}
	}
	if _, err := configs.Preset("../presets/demo"); err == nil {
		t.Error("a preset outside of the folder was read")
	}
}

// The resolved configuration names every key, and reads back to the same options.
func TestResolved(t *testing.T) {
	f, b, err := load(good, "model.preset=vqgan3d", "augment[0].flip=[z]")
	if err != nil {
		t.Fatal(err)
	}
	text, err := f.Resolved()
	if err != nil {
		t.Fatal(err)
	}
	const want = `# train.yaml as flowrun ran it: every key, defaults and overrides included.
run:
  dir: runs/a
  seed: 7
  memory: 16GiB
  hours: 0
  resume: auto
model:
  preset: vqgan3d
  hidden: 32
  downsample: [4, 4, 4]
  embedding: 8
  codes: 16384
  norm: group
  groups: 32
  padding: replicate
  decoder: full
flow:
  - read:
      scans: [data/**/*.nii.gz]
      window_hu: [-1000, 1000]
      strict: false
      frames: []
  - tile:
      patch: [64, 64, 32]
      stride: [48, 48, 24]
  - augment:
      flip: [z]
  - shuffle: {}
  - augment:
      flip: [y]
  - train:
      device: auto
      lr: 0.0001
      max_steps: 0
      validate:
        share: 0.9
        every: 100
`
	if string(text) != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
	again, b2, err := load(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(b.Top, b2.Top) {
		t.Error("the blocks changed")
	}
	for i, s := range again.Stages {
		if !reflect.DeepEqual(s.Options, f.Stages[i].Options) {
			t.Errorf("stage %s changed", s.Label)
		}
	}
}

// Problems that flows finds between stages are placed like those found here.
func TestErrorf(t *testing.T) {
	f, _, err := load(good, "train.lr=1")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{f.Stages[1].Errorf("patch", "%d isn't divisible", 64), "train.yaml:7: tile.patch: 64 isn't divisible"},
		{f.Stages[3].Errorf("volumes", "too many"), "train.yaml:10: shuffle.volumes: too many"},
		{f.Stages[4].Errorf("", "takes patches"), "train.yaml:11: augment[1]: takes patches"},
		{f.Stages[5].Errorf("validate.every", "too rare"), "train.yaml:16: train.validate.every: too rare"},
		{f.Stages[5].Errorf("validate.share", "too much"), "train.yaml:17: train.validate.share: too much"},
		{f.Stages[5].Errorf("device", "unknown"), "train.yaml:13: train.device: unknown"},
		{f.Stages[5].Errorf("lr", "too high"), "command line: train.lr=1: too high"},
		{f.Errorf("run.memory", "too little"), "train.yaml:1: run.memory: too little"},
		{f.Errorf("model.codes", "too many"), "train.yaml:2: model.codes: too many"},
		{f.Errorf("flow", "no train"), "train.yaml:4: flow: no train"},
		{f.Errorf("other", "odd"), "train.yaml: other: odd"},
	} {
		if c.err.Error() != c.want {
			t.Errorf("got %s\nwant %s", c.err, c.want)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(good, "train.lr=3e-4")
	f.Add("flow: [train: {lr: .inf}]", "model.preset=demo")
	f.Add("run: &r {seed: 1}\nmodel: *r\nflow:\n  - tile:\n    patch: 1\n  - {}\n", "augment[1].flip=[x")
	f.Add("flow:\n- *a\n? [x]\n: y\n---\n", "=")
	f.Add("{? {a: b} : c, <<: d, flow: !!binary x}", "run={seed: 1}")
	f.Fuzz(func(t *testing.T, text, override string) {
		file, b, err := load(text, override)
		if err != nil {
			var all configs.Errors
			if !errors.As(err, &all) || len(all) == 0 || strings.Count(err.Error(), "\n") != len(all)-1 {
				t.Fatalf("not one line a problem: %q", err)
			}
			return
		}
		resolved, err := file.Resolved()
		if err != nil {
			t.Fatal(err)
		}
		again, b2, err := load(string(resolved))
		if err != nil {
			t.Fatalf("%v in\n%s", err, resolved)
		}
		if !reflect.DeepEqual(b.Top, b2.Top) || len(file.Stages) != len(again.Stages) {
			t.Fatalf("changed by\n%s", resolved)
		}
		for i, s := range again.Stages {
			if !reflect.DeepEqual(s.Options, file.Stages[i].Options) {
				t.Fatalf("%s: %+v, was %+v", s.Label, s.Options, file.Stages[i].Options)
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add("text: a\nsize: 1.5GiB\nints: [1, 2, 3]\nnested: {deep: {level: 1e3}}\n")
	f.Add("seed: 18446744073709551615\nwide: -9223372036854775808\nrate: 1e-320\n")
	f.Add("texts: [a, 'b', \"\\u2028\", ~]\nflag: True\nrange: [-0, 0x1p4]\n")
	f.Fuzz(func(t *testing.T, text string) {
		var o every
		_ = decode(text, &o)
	})
}
