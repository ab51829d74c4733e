package flows

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/configs"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/shuffle"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

// TestJoin says which graphs there are and why others aren't. The stages stand one a line, the first on line 2.
func TestJoin(t *testing.T) {
	for _, c := range []struct{ flow, want string }{
		{"read", ""},
		{"read tile", ""},
		{"read tile batch", ""},
		{"read tile shuffle augment batch", ""},
		{"read tile augment shuffle batch train", ""},
		{"read tile shuffle shuffle augment augment shuffle batch train checkpoint", ""},
		{"read tile batch train checkpoint", ""},
		{"tile", "train.yaml:2: the flow begins with tile, which takes Volume; put read (and what makes a Volume of a scan) before it"},
		{"batch train", "train.yaml:2: the flow begins with batch, which takes Patch; put read (and what makes a Patch of a scan) before it"},
		{"train", "train.yaml:2: the flow begins with train, which takes Batch; put read (and what makes a Batch of a scan) before it"},
		{"read read", "train.yaml:3: a flow can have one read only"},
		{"read tile read", "train.yaml:4: a flow can have one read only"},
		{"read batch", "train.yaml:3: batch takes Patch, but read (line 2) gives Volume"},
		{"read train", "train.yaml:3: train takes Batch, but read (line 2) gives Volume"},
		{"read tile tile", "train.yaml:4: tile takes Volume, but tile (line 3) gives Patch"},
		{"read tile train", "train.yaml:4: train takes Batch, but tile (line 3) gives Patch"},
		{"read tile batch shuffle", "train.yaml:5: shuffle takes Patch, but batch (line 4) gives Batch"},
		{"read tile batch checkpoint", "train.yaml:5: checkpoint takes Snapshot, but batch (line 4) gives Batch"},
		{"read tile batch train train", "train.yaml:6: a flow can have one train only"},
		{"read tile batch train checkpoint checkpoint", "train.yaml:7: a flow can have one checkpoint only"},
		{"read tile batch train checkpoint tile", "train.yaml:7: tile takes Volume, but checkpoint (line 6) gives Snapshot"},
	} {
		text := "flow:\n"
		for _, name := range strings.Fields(c.flow) {
			if name == "read" {
				name = "read: {scans: [x]}"
			}
			text += "  - " + name + "\n"
		}
		j, err := Load("train.yaml", []byte(text), nil)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != c.want || err != nil && ExitCode(err) != ExitUsage {
			t.Errorf("%s: got  %s\nwant %s", c.flow, got, c.want)
		}
		if err != nil {
			continue
		}
		var labels []string
		for _, p := range j.pieces {
			labels = append(labels, p.label)
		}
		if slices.Sort(labels); len(slices.Compact(labels)) != len(j.pieces) {
			t.Errorf("%s: labels %v", c.flow, labels)
		}
	}
}

// TestJoinNothing is for graphs that configs doesn't let through.
func TestJoinNothing(t *testing.T) {
	if err := (&Job{path: "a.yaml"}).join(); err == nil || err.Error() != "a.yaml: flow: has no stages (want read, tile, batch, train, …)" {
		t.Error(err)
	}
}

// TestTable holds the table of stages together: names differ, each type that is taken is given, each wire is there.
func TestTable(t *testing.T) {
	given := map[string]bool{nothing: true, either: true} // either is what the neighbour says
	names := map[string]bool{}
	for _, s := range stages() {
		if names[s.name] || s.wire == nil || s.doc == "" || s.out == nothing || !given[s.in] {
			t.Errorf("stage %+v", s)
		}
		names[s.name], given[s.out] = true, true
		if a, b := s.options(), s.options(); a == b {
			t.Errorf("stage %s: two options structs are one", s.name)
		}
	}
	if _, ok := find("paint"); ok {
		t.Error("found a stage that isn't there")
	}
}

func TestFit(t *testing.T) {
	const text = `
run: {memory: 1GiB}
model: {downsample: [2, 2, 4]}
flow:
  - read:    {scans: [x]}
  - tile:    {patch: [8, 8, 8]}
  - augment
  - augment: {flip: [x]}
  - batch:   {size: 2}
  - train
`
	for _, c := range []struct{ words, want string }{
		{"", ""},
		{"tile.patch=[8,6,8]", ""},
		{"tile.patch=[8,7,8]", "command line: tile.patch=[8,7,8]: 7 along y is not a multiple of the model's downsampling 2; nearest are 6 and 8"},
		{"tile.patch=[1,8,8]", "command line: tile.patch=[1,8,8]: 1 along x is not a multiple of the model's downsampling 2; nearest are 2 and 4"},
		{"tile.patch=1e9,8,8", "command line: tile.patch=1e9,8,8: want 1 to 8192 (voxels x, y, z), got 1e9"},
		{"tile.patch=[8,8,2]", "command line: tile.patch=[8,8,2]: 2 along z is not a multiple of the model's downsampling 4; nearest are 4 and 8"},
		{"tile.stride=[8,8,2]", "command line: tile.stride=[8,8,2]: 2 along z is smaller than the model's downsampling 4"},
		{"tile.stride=[9,8,8]", "command line: tile.stride=[9,8,8]: 9 is larger than patch 8 along x (voxels between tiles would be lost)"},
		{"augment[1].rotate90=true", ""},
		{"model.downsample=[4,2,3]", "command line: model.downsample=[4,2,3]: 3 along z isn't a power of two"},
		{"model.downsample=[16,2,4]", "train.yaml:6: tile.patch: 8 along x is not a multiple of the model's downsampling 16; nearest are 16 and 32"},
		{"augment[1].rotate90=true tile.patch=[8,6,8]", "command line: augment[1].rotate90=true: patch 8 × 6 is not square in the x-y plane (switch rotate90 off or make tile.patch square)"},
		{"train.micro_batch=2", ""},
		{"train.micro_batch=3", "command line: train.micro_batch=3: 3 is more than batch.size 2"},
		{"batch.size=1025", "train.yaml:10: train.micro_batch: 1025 patches would be computed at a time; set 1 to 1024 (gradients are those of the whole batch)"},
		{"batch.size=65536 train.micro_batch=1024", ""},
		{"train.device=gpu", "command line: train.device=gpu: unknown device \"gpu\" (want auto, cpu or cuda:N)"},
		{"model.downsample=[1,1,1]", "command line: model.downsample=[1,1,1]: [1 1 1] leaves the resolution as it is (want at least 2 along one axis)"},
	} {
		_, err := Load("train.yaml", []byte(text), strings.Fields(c.words))
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != c.want || err != nil && ExitCode(err) != ExitUsage {
			t.Errorf("%s\ngot  %s\nwant %s", c.words, got, c.want)
		}
	}
}

// TestNoFile: what is wrong with the file itself is a mistake in the configuration too.
func TestNoFile(t *testing.T) {
	for _, path := range []string{filepath.Join(t.TempDir(), "none.yaml"), t.TempDir()} {
		if _, err := Load(path, nil, nil); ExitCode(err) != ExitUsage {
			t.Errorf("%s: %v", path, err)
		}
	}
	path := filepath.Join(t.TempDir(), "a.yaml")
	if err := os.WriteFile(path, []byte("flow: [read: {scans: [x]}]"), 0o644); err != nil {
		t.Fatal(err)
	}
	if j, err := Load(path, nil, []string{"run.seed=7"}); err != nil || j.run.Seed != 7 {
		t.Error(j, err)
	}
}

// options are all options of a job.
func options(j *Job) []any {
	all := []any{j.run, j.model}
	for _, p := range j.pieces {
		all = append(all, p.label, p.ordinal, p.options)
	}
	return all
}

// TestResolved reloads the configuration that a run leaves behind: it is the same job, whatever was set where.
func TestResolved(t *testing.T) {
	words := []string{"run.seed=18446744073709551615", "run.dir='a: b # c'", "run.memory=3GiB", "run.hours=0.25", "model.preset=demo", "model.preset=lean24g",
		"model.hidden=24", "model.downsample=[2,4,8]", "read.scans=['x y','*.nii']", "read.window_hu=[-1024.5,3071]", "read.spacing=[0.7,0.7,1]",
		"tile.mode=grid", "tile.patch=[64,64,32]", "tile.body=0.125", "augment[0].flip=[x,z]", "augment[1].noise_hu=1e-3", "shuffle.volumes=9",
		"batch.size=3", "train.lr=3e-4", "train.init=old.safetensors", "train.loss.l2=0.1", "train.validate.scans=[a,b]", "train.validate.group='(p\\d+)'",
		"train.codebook.restart=0", "checkpoint.best=mae_hu", "checkpoint.every=7"}
	const text = "flow: [read: {scans: [x]}, tile: {patch: [64, 64, 64]}, augment, augment: {scale: 0.1}, shuffle, batch, train, checkpoint]"
	rapid.Check(t, func(t *rapid.T) {
		chosen := rapid.SliceOfNDistinct(rapid.SampledFrom(words), 0, 8, rapid.ID).Draw(t, "overrides")
		a, err := Load("train.yaml", []byte(text), chosen)
		if err != nil {
			t.Fatal(err)
		}
		b, err := Load("config.yaml", a.resolved, nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, a.resolved)
		}
		a.model.Preset, b.model.Preset = "", ""
		if !reflect.DeepEqual(options(a), options(b)) {
			t.Fatalf("%s", a.resolved)
		}
		before, err1 := a.identity()
		after, err2 := b.identity()
		if err := errors.Join(err1, err2); err != nil || !reflect.DeepEqual(before, after) {
			t.Fatalf("%v\nbefore %v\nafter  %v", err, before, after)
		}
		comment := func(text []byte) string { _, rest, _ := strings.Cut(string(text), "\n"); return rest }
		if comment(a.resolved) != comment(b.resolved) {
			t.Fatalf("resolved\n%s\nand again\n%s", a.resolved, b.resolved)
		}
	})
}

// TestIdentity says which keys a checkpoint holds a run to: those that set the stream of patches or the model's shape.
func TestIdentity(t *testing.T) {
	const text = "flow: [read: {scans: [x]}, tile: {patch: [64, 64, 64]}, augment, shuffle, batch, train, checkpoint]"
	snapshot := func(words ...string) *volume.Snapshot {
		meta, err := mustLoad(t, text, words...).identity()
		if err != nil {
			t.Fatal(err)
		}
		return &volume.Snapshot{Meta: meta}
	}
	for word, key := range map[string]string{
		"run.seed=7": "run.seed", "read.window_hu=[-500,500]": "read.window_hu", "read.spacing=[1,1,1]": "read.spacing", "read.frame=0": "read.frame",
		"tile.patch=[64,64,32]": "tile.patch", "tile.stride=[32,32,32]": "tile.stride", "tile.body=0.5": "tile.body", "tile.mode=grid": "tile.mode", "tile.per_scan=3": "tile.per_scan",
		"shuffle.volumes=2": "shuffle.volumes", "augment.flip=[x]": "augment.flip", "augment.shift_hu=2": "augment.shift_hu", "batch.size=3": "batch.size",
		"train.validate.share=0.2": "train.validate.share", "train.validate.scans=[a]": "train.validate.scans", "train.validate.group=a": "train.validate.group",
		"model.hidden=8": "model.hidden", "model.codes=64": "model.codes", "model.downsample=[4,4,2]": "model.downsample", "model.norm=group": "model.norm",

		"run.dir=b": "", "run.workers=3": "", "run.memory=9GiB": "", "run.hours=1": "", "read.ahead=4": "", "read.cache=c": "", "read.scans=[y]": "",
		"read.bad_share=0.5": "", "train.lr=1e-3": "", "train.epochs=99": "", "train.validate.every=3": "", "train.micro_batch=1": "", "checkpoint.every=1": "",
		"train.device=cpu": "", "train.clip=0": "",
	} {
		changed := mustLoad(t, text, word)
		err := changed.agrees(snapshot(), "last.safetensors")
		got := ""
		if err != nil {
			got, _, _ = strings.Cut(err.Error(), ": is ")
			if ExitCode(err) != ExitUsage || !strings.Contains(err.Error(), "last.safetensors") {
				t.Errorf("%s: %v", word, err)
			}
		}
		if got != key {
			t.Errorf("%s: differs in %q, want %q: %v", word, got, key, err)
		}
		if err := changed.agrees(snapshot(word), "last.safetensors"); err != nil {
			t.Errorf("%s: not its own: %v", word, err)
		}
	}
}

func TestDifference(t *testing.T) {
	for _, c := range []struct{ then, now, want string }{
		{`{"a":1,"b":[2]}`, `{"b":[2],"a":1}`, ""},
		{`{"a":1,"b":2}`, `{"a":3,"b":4}`, "a 1 3"},
		{`{"a":1}`, `{"a":1,"b":4}`, "b  4"},
		{`{"a":{"x":1,"PerScan":2}}`, `{"a":{"PerScan":3,"x":1}}`, "a.per_scan 2 3"},
		{`{"a":[1,2]}`, `{"a":[1,3]}`, "a [1,2] [1,3]"},
		{`{"a":null}`, `{"a":[{"ShiftHU":1}]}`, `a null [{"ShiftHU":1}]`},
		{`{"a":[{"ShiftHU":1}]}`, `{"a":[{"ShiftHU":2}]}`, "a.shift_hu 1 2"},
		{`{"a":[{"x":1},{"x":1}]}`, `{"a":[{"x":1},{"x":2}]}`, "a[1].x 1 2"},
		{"", `{"a":1}`, ` {"a":1}`},
		{"torn", "torn", ""},
	} {
		key, was, is, differ := difference(c.then, c.now)
		got := ""
		if differ {
			got = strings.TrimSpace(fmt.Sprintf("%s %s %s", key, was, is))
		}
		if got != strings.TrimSpace(c.want) {
			t.Errorf("%s, %s: got %q, want %q", c.then, c.now, got, c.want)
		}
	}
}

// TestDocs: every key that there is says what it does, in whole sentences, and its default keeps its own bounds.
func TestDocs(t *testing.T) {
	docs := append(StageDocs(), BlockDocs()...)
	if len(StageDocs()) != len(stages()) || len(docs) != len(stages())+4 {
		t.Errorf("%d docs", len(docs))
	}
	for _, d := range docs {
		if d.Name == "" || !strings.HasSuffix(d.Doc, ".") {
			t.Errorf("%s: doc %q", d.Name, d.Doc)
		}
		if err := configs.Lint(d.Options); err != nil {
			t.Errorf("%s: %v", d.Name, err)
		}
		for _, k := range configs.Describe(d.Options) {
			if k.Doc == "" || !strings.HasSuffix(k.Doc, ".") {
				t.Errorf("%s.%s: doc %q", d.Name, k.Name, k.Doc)
			}
		}
		if err := configs.SetDefaults(d.Options); err != nil {
			t.Errorf("%s: %v", d.Name, err)
		}
	}
}

// TestShipped loads the configurations that come with flowrun.
func TestShipped(t *testing.T) {
	if _, err := Load("demo.yaml", configs.Demo, nil); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"train", "gan"} {
		if _, err := Load("../configs/"+name+".yaml", nil, nil); err != nil {
			t.Error(err)
		}
	}
	for _, name := range configs.Presets() {
		j, err := Load("train.yaml", []byte("flow: [read: {scans: [x]}, tile, batch, train]"), []string{"model.preset=" + name})
		if err != nil {
			t.Error(err)
			continue
		}
		if err := j.model.Check(); err != nil {
			t.Errorf("preset %s: %v", name, err)
		}
	}
}

func TestExitCode(t *testing.T) {
	diverged := &train.DivergedError{Incident: train.Incident{Step: 3}, Tags: make([]volume.Tag, 1), Err: &vqgan.NonFiniteError{}}
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("a"), 1},
		{io.ErrUnexpectedEOF, 1},
		{context.DeadlineExceeded, 1},
		{configErrorf("a: %w", io.EOF), 2},
		{fmt.Errorf("a: %w", configErrorf("b")), 2},
		{dataErrorf("a"), 3},
		{fmt.Errorf("train: %w", dataErrorf("a")), 3},
		{diverged, 4},
		{fmt.Errorf("train: %w", diverged), 4},
		{ErrInterrupted, 75},
		{fmt.Errorf("%w; a", ErrInterrupted), 75},
		{errors.Join(ErrInterrupted, errors.New("metrics.csv: disk full")), 75},
		{context.Canceled, 75},
	} {
		if got := ExitCode(c.err); got != c.want {
			t.Errorf("%v: got %d, want %d", c.err, got, c.want)
		}
	}
	if err := configErrorf("a: %w", io.EOF); !errors.Is(err, io.EOF) || err.Error() != "a: EOF" {
		t.Error(err)
	}
	if err := dataErrorf("a: %w", io.EOF); !errors.Is(err, io.EOF) || err.Error() != "a: EOF" {
		t.Error(err)
	}
}

// TestOption finds a stage's options where there are any, and the zero value where there are none.
func TestOption(t *testing.T) {
	j := mustLoad(t, "flow: [read: {scans: [x]}, tile: {patch: [4, 4, 4]}, shuffle: {volumes: 2}, shuffle: {volumes: 3}]")
	if o, ok := option[shuffle.Options](j); !ok || o.Volumes != 2 {
		t.Errorf("shuffle %+v, %v", o, ok)
	}
	if o, ok := option[batch.Options](j); ok || *o != (batch.Options{}) {
		t.Errorf("batch %+v, %v", o, ok)
	}
	if o, ok := option[read.Options](j); !ok || !slices.Equal(o.Scans, []string{"x"}) {
		t.Errorf("read %+v, %v", o, ok)
	}
	if n := j.snapshotsEvery(); n != 0 {
		t.Errorf("a snapshot every %d steps for nobody", n)
	}
}

// TestPlanWithoutTraining: a flow of any length has a plan, and it writes nothing.
func TestPlanWithoutTraining(t *testing.T) {
	dir, _ := scanFiles(t, [3]int{8, 8, 8}, [3]int{4, 5, 6})
	for _, flow := range []string{"", ", tile: {patch: [4, 4, 4]}", ", tile: {patch: [4, 4, 4]}, batch: {size: 3}"} {
		j := mustLoad(t, fmt.Sprintf("run: {dir: %q}\nflow: [read: {scans: [%q]}%s]", filepath.Join(dir, "run"), dir, flow))
		var out bytes.Buffer
		if err := j.Plan(t.Context(), &out); err != nil {
			t.Errorf("%s: %v", flow, err)
		}
		if text := out.String(); !strings.Contains(text, "0 unreadable") || strings.Contains(text, "patches") != (flow != "") || strings.Contains(text, "steps") != strings.Contains(flow, "batch") {
			t.Errorf("%s:\n%s", flow, text)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "run")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the plan wrote something")
	}
}

// TestPlan: the plan of a whole run names what it takes, and changes nothing.
func TestPlan(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	for words, want := range map[string][]string{
		"":                      {"3 to train on, 0 held out", "15 patches, 5 steps of 3", "host memory", "10 steps of 2 epochs: "},
		validated:               {"2 to train on, 1 held out", "10 patches, 4 steps of 3", "7 steps of 2 epochs: "},
		"train.max_steps=3":     {"3 steps (train.max_steps): "},
		"run.hours=0.5":         {"0.5 hours are about "},
		"tile.patch=[16,16,16]": {"its grid", "of [16, 16, 16]"},
		"model.codes=1000":      {"million parameters, 9.966 bits for each"},
		"train.gan.weight=1 train.gan.channels=2 train.gan.layers=1 train.gan.norm=batch train.micro_batch=2": {
			"behind step 5000 (train.gan.start)", "they never begin", "batch norm over 2 patches, a micro-batch"},
		"tile.patch=[512,512,64]": nil,
	} {
		var out bytes.Buffer
		err := tiny(t, dir, strings.Fields(words)...).Plan(t.Context(), &out)
		if (err != nil) != (want == nil) || err != nil && (ExitCode(err) != ExitUsage || !strings.Contains(err.Error(), " would fit")) {
			t.Errorf("%s: %v", words, err)
		}
		for _, part := range append(want, "graph", "read", "checkpoint", "engine", "parameters", "arena") {
			if !strings.Contains(out.String(), part) {
				t.Errorf("%s: the plan lacks %q\n%s", words, part, out.String())
			}
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("the plan wrote something")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tiny(t, dir).Plan(ctx, io.Discard); ExitCode(err) != ExitInterrupted {
		t.Error(err)
	}
}

func TestHours(t *testing.T) {
	for seconds, want := range map[float64]string{0: "0 seconds", 119: "119 seconds", 120: "2 minutes", 7199: "120 minutes", 7200: "2.0 hours",
		259199: "72.0 hours", 259200: "3 days", 8.64e5 * 1.05: "10.5 days"} {
		if got := hours(seconds); got != want {
			t.Errorf("%g: got %s, want %s", seconds, got, want)
		}
	}
}

func TestFigure(t *testing.T) {
	for v, want := range map[float64]string{0.012345: "0.0123", 3.338: "3.34", 999: "999", 1083.4: "1083", 366619.6: "366620"} {
		if got := figure(v); got != want {
			t.Errorf("%g: got %s, want %s", v, got, want)
		}
	}
}

// TestFreezeNothing: a list without scans, as a damaged checkpoint might have it, is an error of the data.
func TestFreezeNothing(t *testing.T) {
	if _, err := mustLoad(t, "flow: [read: {scans: [x]}]").freeze(nil, nil); ExitCode(err) != ExitData {
		t.Error(err)
	}
}
