package configs_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/configs"
)

// Options as flowrun's stages have them, in small.
type (
	runOptions struct {
		Dir    string  `key:"dir" default:"runs/run" doc:"Folder."`
		Seed   uint64  `key:"seed" default:"1" doc:"Seed."`
		Memory int64   `key:"memory" default:"4GiB" unit:"bytes" min:"1MiB" doc:"Host memory."`
		Hours  float64 `key:"hours" default:"0" unit:"hours" min:"0" max:"1000" doc:"Time."`
		Resume string  `key:"resume" default:"auto" oneof:"auto never" doc:"Whether to go on."`
	}
	modelOptions struct {
		Preset     string `key:"preset" doc:"Preset."`
		Hidden     int    `key:"hidden" default:"16" min:"1" doc:"Width."`
		Downsample [3]int `key:"downsample" default:"[4, 4, 4]" min:"1" max:"64" doc:"Factors."`
		Embedding  int    `key:"embedding" default:"8" min:"1" doc:"Dimension."`
		Codes      int    `key:"codes" default:"512" min:"2" max:"65536" doc:"Codes."`
		Norm       string `key:"norm" default:"channel" oneof:"channel group" doc:"Norm."`
		Groups     int    `key:"groups" default:"32" min:"1" doc:"Groups."`
		Padding    string `key:"padding" default:"replicate" oneof:"replicate zero" doc:"Padding."`
		Decoder    string `key:"decoder" default:"lean" oneof:"lean full" doc:"Decoder."`
	}
	readOptions struct {
		Scans  []string   `key:"scans" required:"true" doc:"Where the scans are: folders, globs or list files."`
		Window [2]float64 `key:"window_hu" default:"[-1000, 1000]" unit:"HU" doc:"Window."`
		Strict bool       `key:"strict" doc:"Strict."`
		Frames []int      `key:"frames" default:"[]" min:"0" doc:"Frames."`
	}
	tileOptions struct {
		Patch  [3]int `key:"patch" default:"[128, 128, 64]" unit:"voxels x, y, z" min:"1" doc:"Size of a patch."`
		Stride [3]int `key:"stride" default:"[96, 96, 48]" unit:"voxels x, y, z" min:"1" doc:"Step."`
	}
	augmentOptions struct {
		Flip []string `key:"flip" default:"[]" oneof:"x y z" doc:"Axes."`
	}
	validateOptions struct {
		Share float64 `key:"share" default:"0.1" min:"0" max:"0.9" doc:"Share."`
		Every int     `key:"every" default:"500" unit:"optimiser steps" min:"1" doc:"Steps."`
	}
	trainOptions struct {
		Device   string          `key:"device" default:"auto" doc:"Device."`
		LR       float64         `key:"lr" default:"3e-4" min:"0" doc:"Rate."`
		MaxSteps int             `key:"max_steps" default:"0" min:"0" doc:"Steps."`
		Validate validateOptions `key:"validate" doc:"Held out."`
	}
)

func (o *runOptions) Check() error {
	if o.Dir == "" {
		return errors.New("dir: empty: name a folder")
	}
	return nil
}

func (o *tileOptions) Check() error {
	var errs []error
	for i, axis := range []string{"x", "y", "z"} {
		if o.Stride[i] > o.Patch[i] {
			errs = append(errs, fmt.Errorf("stride: %d is larger than patch %d along %s (voxels between tiles would be lost)", o.Stride[i], o.Patch[i], axis))
		}
	}
	return errors.Join(errs...)
}

func (o *validateOptions) Check() error {
	if o.Share > 0.5 && o.Every < 10 {
		return fmt.Errorf("every: %d is too often for share %g", o.Every, o.Share)
	}
	return nil
}

func blocks() configs.Blocks {
	return configs.Blocks{
		Top: map[string]any{"run": &runOptions{}, "model": &modelOptions{}},
		Stage: func(name string) (any, bool) {
			switch name {
			case "read":
				return &readOptions{}, true
			case "tile":
				return &tileOptions{}, true
			case "augment":
				return &augmentOptions{}, true
			case "shuffle":
				return &struct{}{}, true
			case "train":
				return &trainOptions{}, true
			}
			return nil, false
		},
		StageNames: []string{"read", "tile", "augment", "shuffle", "train"},
	}
}

// load reads text as train.yaml.
func load(text string, overrides ...string) (*configs.File, configs.Blocks, error) {
	b := blocks()
	f, err := configs.Load("train.yaml", []byte(text), overrides, b)
	return f, b, err
}

const good = `run: {dir: runs/a, seed: 7, memory: 16GiB}
model:
  hidden: 32   # twice the default
flow:
  - read: {scans: "data/**/*.nii.gz", window_hu: [-1000, 1e3]}
  - tile:
      patch: [64, 64, 32]
      stride: [48, 48, 24]
  - augment: {flip: [x]}
  - shuffle
  - augment:
      flip: y
  - train:
      lr: 1e-4
      validate:
        every: 100
        share: 0.9 # the largest there is
`

func TestLoad(t *testing.T) {
	f, b, err := load(good)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"run":   &runOptions{Dir: "runs/a", Seed: 7, Memory: 16 << 30, Resume: "auto"},
		"model": &modelOptions{Hidden: 32, Downsample: [3]int{4, 4, 4}, Embedding: 8, Codes: 512, Norm: "channel", Groups: 32, Padding: "replicate", Decoder: "lean"},
	}
	if !reflect.DeepEqual(b.Top, want) {
		t.Errorf("blocks %+v %+v", b.Top["run"], b.Top["model"])
	}
	stages := []configs.Stage{
		{Name: "read", Label: "read", Line: 5, Index: 0, Options: &readOptions{Scans: []string{"data/**/*.nii.gz"}, Window: [2]float64{-1000, 1000}, Frames: []int{}}},
		{Name: "tile", Label: "tile", Line: 6, Index: 1, Options: &tileOptions{Patch: [3]int{64, 64, 32}, Stride: [3]int{48, 48, 24}}},
		{Name: "augment", Label: "augment[0]", Line: 9, Index: 2, Options: &augmentOptions{Flip: []string{"x"}}},
		{Name: "shuffle", Label: "shuffle", Line: 10, Index: 3, Options: &struct{}{}},
		{Name: "augment", Label: "augment[1]", Line: 11, Index: 4, Options: &augmentOptions{Flip: []string{"y"}}},
		{Name: "train", Label: "train", Line: 13, Index: 5, Options: &trainOptions{Device: "auto", LR: 1e-4, Validate: validateOptions{Share: 0.9, Every: 100}}},
	}
	if len(f.Stages) != len(stages) {
		t.Fatalf("%d stages, want %d", len(f.Stages), len(stages))
	}
	for i, s := range f.Stages {
		w := stages[i]
		if s.Name != w.Name || s.Label != w.Label || s.Line != w.Line || s.Index != w.Index || !reflect.DeepEqual(s.Options, w.Options) {
			t.Errorf("stage %d: %+v %+v, want %+v %+v", i, s, s.Options, w, w.Options)
		}
	}
	if !f.Given("run.seed") || f.Given("run.hours") || !f.Given("train.validate.every") {
		t.Error("Given doesn't tell what the file sets")
	}
}

// One problem a case: a file, overrides, and the whole error.
func TestLoadErrors(t *testing.T) {
	const flow = "flow: [read: {scans: a}, tile, train]\n"
	for _, c := range []struct {
		name, text string
		overrides  []string
		want       string
	}{
		{"unknown key", "flow:\n  - read: {scans: a}\n  - train:\n      lrr: 1\n", nil,
			`train.yaml:4: train.lrr: unknown key; did you mean "lr"?`},
		{"unknown key, nothing near", "flow:\n  - train: {zzzzzz: 1}\n", nil, `train.yaml:2: train.zzzzzz: unknown key`},
		{"unknown key of a nested block", "flow:\n  - train: {validate: {evry: 1}}\n", nil,
			`train.yaml:2: train.validate.evry: unknown key; did you mean "every"?`},
		{"key in the wrong block", "flow:\n  - train: {every: 1}\n", nil,
			`train.yaml:2: train.every: unknown key; did you mean "validate.every"?`},
		{"key twice", "flow:\n  - train:\n      lr: 1\n      lr: 2\n", nil, `train.yaml:4: train.lr: this key is there twice (first on line 3)`},
		{"block twice", "run:\nrun:\n" + flow, nil, `train.yaml:2: run: this key is there twice (first on line 1)`},
		{"unknown block", "modell: {hidden: 2}\n" + flow, nil,
			`train.yaml:1: modell: unknown block; did you mean "model"? (blocks: model, run, flow)`},
		{"stage as a block", flow + "augment: {flip: x}\n", nil, `train.yaml:2: augment: this is a stage: write it as an entry of flow, - augment: …`},
		{"unknown stage", "flow:\n  - read: {scans: a}\n  - tiles\n", nil,
			`train.yaml:3: tiles: unknown stage; did you mean "tile"? (stages: read, tile, augment, shuffle, train)`},
		{"options beside the stage", "flow:\n  - tile:\n    patch: [1, 1, 1]\n", nil,
			`train.yaml:3: tile.patch: indent the options of tile deeper than its name (here they stand beside it)`},
		{"two stages in an entry", "flow:\n  - shuffle:\n    tile:\n", nil,
			`train.yaml:3: tile: a second stage in one entry of flow: begin it with a dash of its own`},
		{"stage is a list", "flow:\n  - [tile]\n", nil, `train.yaml:2: flow: want a stage, got [tile]`},
		{"stage is nothing", "flow:\n  -\n", nil, `train.yaml:2: flow: want a stage, got nothing`},
		{"options of the stage a number", "flow:\n  - tile: 3\n", nil, `train.yaml:2: tile: want a block of keys, got 3`},
		{"no flow", "run: {seed: 1}\n", nil, `train.yaml: flow: this block is required: the list of stages (read, tile, augment, shuffle, train)`},
		{"empty flow", "flow: []\n", nil, `train.yaml:1: flow: want a list of stages, got [] (stages: read, tile, augment, shuffle, train)`},
		{"flow without dashes", "flow:\n  tile:\n  train:\n", nil, `train.yaml:1: flow: want a list of stages: begin each with a dash, as in - read: …`},
		{"required key", "flow:\n  - read\n", nil, `train.yaml:2: read.scans: this key is required (Where the scans are)`},

		{"text for a number", "flow: [train: {lr: fast}]", nil, `train.yaml:1: train.lr: want a number, got "fast"`},
		{"quoted number", "flow: [train: {lr: '1e-4'}]", nil, `train.yaml:1: train.lr: want a number, got "1e-4"`},
		{"nothing for a number", "flow: [train: {lr: }]", nil, `train.yaml:1: train.lr: want a number, got nothing`},
		{"infinity", "flow: [train: {lr: .inf}]", nil, `train.yaml:1: train.lr: want a number, got .inf`},
		{"NaN", "flow: [train: {lr: .nan}]", nil, `train.yaml:1: train.lr: want a number, got .nan`},
		{"NaN, as other languages write it", "flow: [train: {lr: nan}]", nil, `train.yaml:1: train.lr: want a number, got "nan"`},
		{"hexadecimal", "flow: [train: {lr: 0x1p-4}]", nil, `train.yaml:1: train.lr: want a number, got "0x1p-4"`},
		{"huge size", "run: {memory: 9e9GiB}\n" + flow, nil, `train.yaml:1: run.memory: 9e9GiB is too large for a size`},
		{"just above the maximum", "flow: [train: {validate: {share: 0.91}}]", nil, `train.yaml:1: train.validate.share: want 0 to 0.9, got 0.91`},
		{"huge number", "flow: [train: {lr: 1e999}]", nil, `train.yaml:1: train.lr: 1e999 is too large for a number`},
		{"block for a number", "flow: [train: {lr: {peak: 1}}]", nil, `train.yaml:1: train.lr: want a number, got a block of keys`},
		{"fraction for a count", "flow: [train: {max_steps: 1.5}]", nil, `train.yaml:1: train.max_steps: want a whole number, got 1.5`},
		{"huge count", "flow: [train: {max_steps: 9223372036854775808}]", nil,
			`train.yaml:1: train.max_steps: 9223372036854775808 is too large for a whole number`},
		{"huge count, as a power", "flow: [train: {max_steps: 1e19}]", nil, `train.yaml:1: train.max_steps: 1e19 is too large for a whole number`},
		{"below the minimum", "flow: [train: {max_steps: -1}]", nil, `train.yaml:1: train.max_steps: want at least 0, got -1`},
		{"above the maximum", "flow: [train: {validate: {share: 1}}]", nil, `train.yaml:1: train.validate.share: want 0 to 0.9, got 1`},
		{"negative seed", "run: {seed: -1}\n" + flow, nil, `train.yaml:1: run.seed: want 0 or more, got -1`},
		{"text for a flag", "flow: [read: {scans: a, strict: yes}]", nil, `train.yaml:1: read.strict: want true or false, got "yes"`},
		{"flag for a text", "run: {dir: true}\n" + flow, nil, `train.yaml:1: run.dir: want text, got true`},
		{"nothing for a text", "run:\n  dir:\n" + flow, nil, `train.yaml:2: run.dir: want text, got nothing`},
		{"home folder", "run: {dir: ~/runs}\n" + flow, nil, `train.yaml:1: run.dir: "~/runs": ~ isn't read as the home folder: write it out`},
		{"YAML tag", "run: {dir: !!str 5}\n" + flow, nil, `train.yaml:1: run.dir: the YAML tag !!str isn't used here: write the value alone`},
		{"choice", "run: {resume: atuo}\n" + flow, nil, `train.yaml:1: run.resume: want auto or never, got "atuo"; did you mean "auto"?`},
		{"choice in a list", "flow: [augment: {flip: [x, w]}]", nil, `train.yaml:1: augment.flip: want one of x, y, z, got "w"`},
		{"size without a unit's end", "run: {memory: 16G}\n" + flow, nil, `train.yaml:1: run.memory: 16G: write 16GiB (2^10) or 16GB (10^3)`},
		{"size of words", "run: {memory: lots}\n" + flow, nil, `train.yaml:1: run.memory: want a size in bytes, such as 512MiB or 16GiB, got "lots"`},
		{"size too small", "run: {memory: 16}\n" + flow, nil, `train.yaml:1: run.memory: want at least 1MiB, got 16`},
		{"short array", "flow: [tile: {patch: [64, 64]}]", nil,
			`train.yaml:1: tile.patch: want 3 whole numbers, such as [128, 128, 64], got [64, 64]`},
		{"number for an array", "flow: [tile: {patch: 64}]", nil, `train.yaml:1: tile.patch: want 3 whole numbers, such as [128, 128, 64], got 64`},
		{"array of texts", "flow: [tile: {patch: [a, b, c]}]", nil, `train.yaml:1: tile.patch: want 3 whole numbers, such as [128, 128, 64], got "a"`},
		{"array out of bounds", "flow: [tile: {patch: [64, 0, 64]}]", nil, `train.yaml:1: tile.patch: want at least 1 (voxels x, y, z), got 0`},
		{"block for a list", "flow: [augment: {flip: {x: true}}]", nil,
			`train.yaml:1: augment.flip: want a list of words, such as [x, y, z], got a block of keys`},
		{"nothing for a list", "flow: [augment: {flip: }]", nil, `train.yaml:1: augment.flip: want a list of words, such as [x, y, z], got nothing`},
		{"list in a list", "flow: [read: {scans: [[a]]}]", nil, `train.yaml:1: read.scans: want a list of words, got [a]`},
		{"merge key", "run: &r {seed: 1}\nmodel:\n  <<: *r\n" + flow, nil,
			`train.yaml:3: model: the merge key << isn't read: write the keys out, or name a value with an alias`},

		{"Check of a stage", "flow:\n  - tile:\n      patch: [64, 64, 64]\n      stride: [48, 65, 48]\n", nil,
			`train.yaml:4: tile.stride: 65 is larger than patch 64 along y (voxels between tiles would be lost)`},
		{"Check about a default", "flow:\n  - tile:\n      patch: [128, 128, 32]\n", nil,
			`train.yaml:2: tile.stride: 48 is larger than patch 32 along z (voxels between tiles would be lost)`},
		{"Check of a nested block", "flow:\n  - train:\n      validate:\n        share: 0.6\n        every: 5\n", nil,
			`train.yaml:5: train.validate.every: 5 is too often for share 0.6`},
		{"Check of a block, by an override", flow, []string{"run.dir="}, `command line: run.dir=: empty: name a folder`},

		{"unknown preset", "model: {preset: leen24g}\n" + flow, nil,
			`train.yaml:1: model.preset: no preset "leen24g"; did you mean "lean24g"? (presets: demo, lean24g, vqgan3d)`},

		{"override without a value", flow, []string{"train.lr"}, `command line: train.lr: want key=value, such as train.lr=3e-4 or run.seed=7`},
		{"override of an unknown key", flow, []string{"train.lrr=1"}, `command line: train.lrr=1: unknown key; did you mean "lr"?`},
		{"override of an unknown nested block", flow, []string{"train.valdate.every=1"},
			`command line: train.valdate.every=1: train.valdate: unknown key; did you mean "validate"?`},
		{"override without its stage", flow, []string{"lr=1"}, `command line: lr=1: unknown key; did you mean "train.lr"?`},
		{"override of a misspelt stage", flow, []string{"trian.lr=1"}, `command line: trian.lr=1: unknown key; did you mean "train.lr"?`},
		{"override of a stage that isn't there", flow, []string{"augment.flip=x"}, `command line: augment.flip=x: the flow has no stage augment`},
		{"override of one of two", "flow: [augment, augment]", []string{"augment.flip=x"},
			`command line: augment.flip=x: the flow has 2 stages augment: say which, from augment[0] to augment[1]`},
		{"override of one too many", "flow: [augment, augment]", []string{"augment[2].flip=x"},
			`command line: augment[2].flip=x: the flow has 2 of stage augment, counted from augment[0]`},
		{"override of a block by a number", flow, []string{"train=3"}, `command line: train=3: train is a block: set its keys, as in train.device=…`},
		{"override of the flow", flow, []string{"flow=[read]"}, `command line: flow=[read]: flow is the list of stages: set a stage's keys, as in train.lr=3e-4`},
		{"override of a wrong type", flow, []string{"train.lr=fast"}, `command line: train.lr=fast: want a number, got "fast"`},
		{"override out of bounds", flow, []string{"model.codes=70000"}, `command line: model.codes=70000: want 2 to 65536, got 70000`},
		{"override that isn't YAML", flow, []string{"tile.patch=[1, 2"}, `command line: tile.patch=[1, 2: not valid YAML: did not find expected ',' or ']'`},

		{"empty", "", nil, `train.yaml: empty: a run needs at least a flow, the list of its stages`},
		{"only a comment", "# nothing\n", nil, `train.yaml: empty: a run needs at least a flow, the list of its stages`},
		{"a list", "- read\n", nil, `train.yaml:1: want blocks of keys (run, model, flow), got [read]`},
		{"a word", "read\n", nil, `train.yaml:1: want blocks of keys (run, model, flow), got "read"`},
		{"two documents", flow + "---\n" + flow, nil, `train.yaml:2: a second document begins here: one file is one run`},
		{"a tab", "run:\n\tseed: 1\n", nil, `train.yaml:2: a tab in the indentation: YAML wants spaces`},
		{"an open bracket", "run: {seed: 1\nflow: []\n", nil, `train.yaml:1: not valid YAML: did not find expected ',' or '}'`},
		{"a colon in a value", "run:\n  seed: 1\n  dir: a: b\n", nil, `train.yaml:3: not valid YAML: mapping values are not allowed in this context`},
		{"an unknown anchor", "run: *r\n", nil, `train.yaml: not valid YAML: unknown anchor 'r' referenced`},
		{"an alias of a list of aliases of lists", "flow:\n  - read: {scans: &a [x, x, x]}\n  - augment: {flip: &b [*a, *a]}\n  - tile: {patch: [*b, *b, *b]}\n", nil,
			`train.yaml:3: augment.flip: want a list of words, such as [x, y, z], got [x, x, x]
train.yaml:4: tile.patch: want 3 whole numbers, such as [128, 128, 64], got a list of 2`},
		{"UTF-16", "\xff\xfer\x00u\x00n\x00", nil, `train.yaml: is text in UTF-16: save it as UTF-8`},
		{"Latin-1", "run:\n  dir: \xe4\n", nil, `train.yaml:2: isn't text in UTF-8: save the file as that`},
		{"a compressed scan", "\x1f\x8b\x08\x00", nil, `train.yaml: a binary file, not YAML: name the run's .yaml file`},
		{"deep brackets", strings.Repeat("[", 20000), nil, `train.yaml: not valid YAML: exceeded max depth of 10000`},
		{"a huge file", strings.Repeat("# \n", 1<<19), nil, `train.yaml: larger than 1 MiB: this is no configuration file`},
		{"a thousand stages", "flow:\n" + strings.Repeat("  - tile\n", 1000), nil, `train.yaml:1: flow: 1000 stages are too many (at most 100)`},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, _, err := load(c.text, c.overrides...)
			if err == nil {
				t.Fatalf("loaded %+v, want %s", f.Stages, c.want)
			}
			if err.Error() != c.want {
				t.Errorf("got  %s\nwant %s", err, c.want)
			}
			var e *configs.Error
			if !errors.As(err, &e) {
				t.Error("not a configs.Error")
			}
		})
	}
}
