package flows

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu/cpu"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/safetensors"
	"github.com/flowrun/flowrun/stages/torch"
	"github.com/flowrun/flowrun/stages/volume"
	"github.com/flowrun/flowrun/stages/weights"
)

// lightning is a checkpoint of PyTorch Lightning, and what PyTorch makes of it: integration/reference/weights.py.
const lightning = "testdata/lightning.ckpt"

// imported imports a file and loads the checkpoint. It returns what Import said too.
func imported(t *testing.T, from string, o ImportOptions) (*volume.Snapshot, string, error) {
	t.Helper()
	if o.Out == "" {
		o.Out = filepath.Join(t.TempDir(), "out.safetensors")
	}
	var b bytes.Buffer
	if err := Import(t.Context(), &b, from, o); err != nil {
		return nil, b.String(), err
	}
	snap, err := checkpoint.Load(o.Out)
	if err != nil {
		t.Fatal(err)
	}
	return snap, b.String(), nil
}

// theirs are the fixture's tensors by bare name.
func theirs(t *testing.T) map[string]volume.Array {
	t.Helper()
	f, err := torch.Open(lightning)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	all, err := f.Arrays(f.Tensors)
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]volume.Array{}
	for _, a := range all {
		name, ours := strings.CutPrefix(a.Name, "state_dict.vqgan.")
		module, _, _ := strings.Cut(name, ".")
		if a.Name = name; ours && !strings.HasSuffix(module, "discriminator") && module != "perceptual_model" {
			byName[name] = a
		}
	}
	return byName
}

// stateFile writes tensors as a plain state dict.
func stateFile(t *testing.T, tensors map[string]volume.Array, meta map[string]string) string {
	t.Helper()
	var arrays []volume.Array
	for _, name := range slices.Sorted(maps.Keys(tensors)) {
		a := tensors[name]
		a.Name = name
		arrays = append(arrays, a)
	}
	var b bytes.Buffer
	if err := safetensors.Write(&b, safetensors.Floats(arrays), meta); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "state.safetensors")
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func named(arrays []volume.Array) map[string]volume.Array {
	out := map[string]volume.Array{}
	for _, a := range arrays {
		out[a.Name] = a
	}
	return out
}

// equal compares an array with what was wanted, bit by bit.
func equal(t *testing.T, name string, got, want volume.Array) {
	t.Helper()
	if !slices.Equal(got.Shape, want.Shape) || !slices.EqualFunc(got.Data, want.Data, func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) }) {
		t.Errorf("%s is another", name)
	}
}

func TestImportedModelGivesPyTorchsReconstruction(t *testing.T) {
	snap, said, err := imported(t, lightning, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`74 tensors under "state_dict.vqgan."`, "from the tensors: model.hidden 2, model.embedding 3, model.codes 10, model.decoder full",
		"from hyper_parameters: model.downsample [4,2,1], model.groups 2, model.norm group, model.padding replicate", "assumed: model.quantizer ema, read.window_hu [-1000,1000]",
		"--axes zyx", "discriminators: 3 tensors", "1 tensor of perceptual_model", `other modules: "denoise_fn"`} {
		if !strings.Contains(said, want) {
			t.Errorf("it doesn't say %s:\n%s", want, said)
		}
	}
	reference, meta, err := safetensors.Read("testdata/lightning.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	want := named(reference)
	c, err := vqgan.ParseConfig(snap.Meta["model"])
	if err != nil {
		t.Fatal(err)
	}
	o := vqgan.CoderOptions{Batch: 1}
	if err := json.Unmarshal([]byte(meta["patch"]), &o.Patch); err != nil {
		t.Fatal(err)
	}
	for _, ema := range []bool{true, false} {
		coder, err := vqgan.OpenCoder(cpu.New(2), c, weights.ToModel(snap.Arrays), ema, o)
		if err != nil {
			t.Fatal(err)
		}
		y, codes := make([]float32, len(want["input"].Data)), make([]int32, len(want["codes"].Data))
		if err := coder.Reconstruct(y, want["input"].Data, 1, codes); err != nil {
			t.Fatal(err)
		}
		for i, k := range want["codes"].Data {
			if codes[i] != int32(k) {
				t.Fatalf("latent %d has code %d (want %v)", i, codes[i], k)
			}
		}
		for i, v := range want["output"].Data {
			if math.Abs(float64(y[i]-v)) > 1e-5 { // of values near 1
				t.Fatalf("voxel %d is %v (want %v)", i, y[i], v)
			}
		}
	}
}

func TestImportKeepsEveryBit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.safetensors")
	snap, _, err := imported(t, lightning, ImportOptions{Out: path})
	if err != nil {
		t.Fatal(err)
	}
	got, want := named(snap.Arrays), theirs(t)
	for name, a := range want {
		equal(t, name, got[name], a)
		if !strings.HasPrefix(name, "codebook.") {
			equal(t, "ema."+name, got["ema."+name], a)
		}
	}
	equal(t, "the discriminator", got["image_discriminator.model1.1.num_batches_tracked"], volume.Array{Data: []float32{7}})

	// Out by an export, and in again by its own words.
	out := filepath.Join(t.TempDir(), "export.safetensors")
	if err := Export(t.Context(), &bytes.Buffer{}, path, out, ExportOptions{For: MedicalDiffusion}); err != nil {
		t.Fatal(err)
	}
	exported, _, err := safetensors.Read(out)
	if err != nil || len(exported) != len(want) {
		t.Fatal(err, len(exported))
	}
	for _, a := range exported {
		equal(t, "exported "+a.Name, a, want[a.Name])
	}
	again, said, err := imported(t, out, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(said, "assumed") || !strings.Contains(said, "from the export: model.downsample [4,2,1]") {
		t.Error(said)
	}
	if again.Meta["model"] != snap.Meta["model"] || again.Meta["stream"] != snap.Meta["stream"] {
		t.Errorf("%v (want %v)", again.Meta, snap.Meta)
	}
	for name, a := range want {
		equal(t, "again "+name, named(again.Arrays)[name], a)
	}
}

// Turned by an export, a model's kernels are turned back by their own words, or by --axes.
func TestAxesGoBothWays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.safetensors")
	snap, _, err := imported(t, lightning, ImportOptions{Out: path})
	if err != nil {
		t.Fatal(err)
	}
	const kernel = "encoder.conv_blocks.0.down.conv.weight"
	want := named(snap.Arrays)
	for _, axes := range []string{"zxy", "xyz", "xzy", "yxz"} {
		out := filepath.Join(t.TempDir(), "export.safetensors")
		if err := Export(t.Context(), &bytes.Buffer{}, path, out, ExportOptions{Axes: axes}); err != nil {
			t.Fatal(err)
		}
		turned, _, err := safetensors.Read(out)
		if err != nil {
			t.Fatal(err)
		}
		// The second tap along the model's last axis, in a kernel of 4 taps.
		second := map[byte]int{'z': 16, 'y': 4, 'x': 1}[axes[2]]
		if got := named(turned)[kernel].Data[1]; got != want[kernel].Data[second] {
			t.Errorf("%s: %v (want %v)", axes, got, want[kernel].Data[second])
		}
		bare := stateFile(t, named(turned), nil)
		for from, o := range map[string]ImportOptions{out: {}, bare: {Axes: axes, Words: []string{"model.norm=channel"}}} {
			again, _, err := imported(t, from, o)
			if err != nil {
				t.Fatal(err)
			}
			for name := range theirs(t) {
				equal(t, name+" by "+axes, named(again.Arrays)[name], want[name])
			}
		}
	}
}

func TestImportTakesWordsFirst(t *testing.T) {
	from := stateFile(t, theirs(t), map[string]string{"model": `{"hidden":2,"downsample":[4,2,1],"embedding":3,"codes":10,"norm":"group","groups":2,"padding":"replicate","decoder":"full"}`})
	snap, said, err := imported(t, from, ImportOptions{Words: []string{"model.norm=channel", "model.downsample=[1,4,2]", "read.window_hu=[-900, 200]", "read.spacing=[1,1,2]", "tile.patch=[16,16,8]"}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := vqgan.ParseConfig(snap.Meta["model"])
	if err != nil || c.Norm != "channel" || c.Downsample != [3]int{1, 4, 2} || c.Padding != "replicate" || c.Hidden != 2 {
		t.Errorf("%v, %+v", err, c)
	}
	var s stream
	if err := json.Unmarshal([]byte(snap.Meta["stream"]), &s); err != nil || s.Window != [2]float64{-900, 200} || s.Spacing != [3]float64{1, 1, 2} || s.Tile.Patch != [3]int{16, 16, 8} {
		t.Errorf("%v, %+v", err, s)
	}
	if !strings.Contains(said, "given: model.downsample [1,4,2], model.norm channel, read.spacing [1,1,2]") || strings.Contains(said, "assumed") {
		t.Error(said)
	}

	// Of a bare state dict everything that its tensors don't show is assumed.
	from = stateFile(t, theirs(t), nil)
	if _, _, err := imported(t, from, ImportOptions{}); err == nil || !strings.HasSuffix(err.Error(), "model.groups: 32 don't divide the 4 channels at full resolution; set it, as in model.groups=…") {
		t.Error(err)
	}
	_, said, err = imported(t, from, ImportOptions{Words: []string{"model.groups=4"}})
	if err != nil || !strings.Contains(said, "assumed: model.downsample [4,4,4], model.norm group, model.padding replicate, model.quantizer ema, read.window_hu [-1000,1000]") {
		t.Error(err, said)
	}
}

func TestImportMakesCodebookStatistics(t *testing.T) {
	for _, without := range []string{"codebook.N", "codebook.z_avg"} {
		tensors := theirs(t)
		delete(tensors, without)
		snap, said, err := imported(t, stateFile(t, tensors, nil), ImportOptions{Words: []string{"model.norm=channel"}})
		if err != nil || !strings.Contains(said, "new ones") {
			t.Fatal(err, said)
		}
		got := named(snap.Arrays)
		equal(t, "codebook.N", got["codebook.N"], volume.Array{Shape: []int{10}, Data: slices.Repeat([]float32{1}, 10)})
		equal(t, "codebook.z_avg", got["codebook.z_avg"], tensors["codebook.embeddings"])
	}
}

func TestImportFindsThePrefix(t *testing.T) {
	under := func(prefixes ...string) map[string]volume.Array {
		all := map[string]volume.Array{}
		for _, p := range prefixes {
			for name, a := range theirs(t) {
				all[p+name] = a
			}
		}
		return all
	}
	words := []string{"model.norm=channel"}
	for _, c := range []struct {
		prefixes []string
		asked    string
		want     string // what Import says
	}{
		{[]string{""}, "", `under ""`},
		{[]string{"module."}, "", `under "module."`},
		{[]string{"state_dict.model.vqgan."}, "", `under "state_dict.model.vqgan."`},
		{[]string{"model.", "ema.model."}, "", `several models, under "ema.model.", "model.": choose one by --prefix`},
		{[]string{"model.", "ema.model."}, "model", `under "model."`},
		{[]string{"state_dict.model.", "state_dict.ema."}, "ema.", `under "state_dict.ema."`},
		{[]string{"model."}, "net", `no model under "net" (there are: "model.")`},
	} {
		_, said, err := imported(t, stateFile(t, under(c.prefixes...), nil), ImportOptions{Prefix: c.asked, Words: words})
		if err != nil {
			said = err.Error()
		}
		if !strings.Contains(said, c.want) {
			t.Errorf("%v, %q: %s (want %s)", c.prefixes, c.asked, said, c.want)
		}
	}
}

func TestImportRefuses(t *testing.T) {
	nan := float32(math.NaN())
	plain := func(change func(s map[string]volume.Array)) string {
		s := theirs(t)
		change(s)
		return stateFile(t, s, nil)
	}
	own := func(meta string) string { return stateFile(t, theirs(t), map[string]string{"model": meta}) }
	dir := t.TempDir()
	for _, c := range []struct {
		from string
		o    ImportOptions
		want string
		exit int
	}{
		{"none.ckpt", ImportOptions{}, "none.ckpt: no such file", ExitUsage},
		{"import.go", ImportOptions{}, "import.go: want a state dict", ExitUsage},
		{"../stages/torch/testdata/small.pth", ImportOptions{}, "no encoder.conv_first.conv.weight in it", ExitData},
		{lightning, ImportOptions{Axes: "zyy"}, `--axes: "zyy"`, ExitUsage},
		{lightning, ImportOptions{Axes: "zyxx"}, `--axes: "zyxx"`, ExitUsage},
		{lightning, ImportOptions{Words: []string{"model.hiden=3"}}, `unknown key; did you mean "hidden"?`, ExitUsage},
		{lightning, ImportOptions{Words: []string{"train.lr=3"}}, `train.lr=3: unknown key`, ExitUsage},
		{lightning, ImportOptions{Words: []string{"model.hidden=4"}}, "model.hidden: 4 (given), but the tensors have 2", ExitUsage},
		{lightning, ImportOptions{Words: []string{"model.decoder=lean"}}, `model.decoder: "lean" (given), but the tensors have "full"`, ExitUsage},
		{lightning, ImportOptions{Words: []string{"model.downsample=[2,2,2]"}}, "[2 2 2] halves 1 times, but the tensors 2 times", ExitUsage},
		{lightning, ImportOptions{Words: []string{"tile.patch=[6,8,8]"}}, "tile.patch=[6,8,8]: 6 along x is not a multiple", ExitUsage},
		{lightning, ImportOptions{Out: filepath.Join(dir, "a.txt", "b.safetensors"), Prefix: "x"}, `no model under "x"`, ExitData},
		{own(`{"hidden":4,"downsample":[4,2,1],"embedding":3,"codes":10,"norm":"channel","padding":"zero","decoder":"full"}`), ImportOptions{}, "model.hidden: 4 (from the export)", ExitUsage},
		{own(`{`), ImportOptions{}, "metadata model: ", ExitData},
		{stateFile(t, theirs(t), map[string]string{"axes": "abc"}), ImportOptions{}, `metadata: axes: "abc"`, ExitData},
		{plain(func(s map[string]volume.Array) { s["encoder.final_block.0.running_mean"] = s["codebook.N"] }), ImportOptions{}, "encoder.final_block.0.running_mean [10]: the model has batch norm", ExitData},
		{plain(func(s map[string]volume.Array) {
			s["encoder.conv_blocks.0.res.conv_shortcut.conv.bias"] = s["codebook.N"]
		}), ImportOptions{}, "conv_shortcut.conv.bias [10]: a residual block", ExitData},
		{plain(func(s map[string]volume.Array) { delete(s, "post_vq_conv.conv.bias") }), ImportOptions{Words: []string{"model.groups=2"}}, "post_vq_conv.conv.bias is missing", ExitData},
		{plain(func(s map[string]volume.Array) { s["attention.q"] = s["codebook.N"] }), ImportOptions{Words: []string{"model.groups=2"}}, "attention.q [10] is left over", ExitData},
		{plain(func(s map[string]volume.Array) { s["codebook.N"].Data[3] = nan }), ImportOptions{Words: []string{"model.groups=2"}}, "codebook.N: element 3 is NaN", ExitData},
		{plain(func(s map[string]volume.Array) { s["codebook.N"].Data[3] = -1 }), ImportOptions{Words: []string{"model.groups=2"}}, "codebook.N: element 3 is -1", ExitData},
	} {
		_, said, err := imported(t, c.from, c.o)
		if err == nil || !strings.Contains(err.Error(), c.want) || ExitCode(err) != c.exit || said != "" {
			t.Errorf("%s %+v: %v, exit %d (want %s, %d), %s", c.from, c.o, err, ExitCode(err), c.want, c.exit, said)
		}
	}
}

// Tensors of whole numbers aren't weights.
func TestImportRefusesIntegers(t *testing.T) {
	var b bytes.Buffer
	const landmark = "encoder.conv_first.conv.weight"
	tensors := []safetensors.Array{{Name: landmark, Shape: []int{2}, Values: safetensors.I32{1, 2}}}
	if err := safetensors.Write(&b, tensors, nil); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "a.safetensors")
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := imported(t, path, ImportOptions{}); err == nil || !strings.Contains(err.Error(), landmark+" is of type I32 (want float32") {
		t.Error(err)
	}
}

func TestSettingsOfOtherPrograms(t *testing.T) {
	theirs := func(more map[string]any) map[string]any {
		s := map[string]any{"hyper_parameters.cfg.model.n_hiddens": int64(2), "hyper_parameters.n_embed": int64(1), "epoch": int64(9)}
		maps.Copy(s, more)
		return s
	}
	for _, c := range []struct {
		settings map[string]any
		axes     string
		want     string // the keys, or an error
	}{
		{nil, "", "map[]"},
		{theirs(map[string]any{"hyper_parameters.cfg.model.downsample": []any{int64(1), int64(2), int64(4)}}), "", "map[model.downsample:[4,2,1] model.hidden:2]"},
		{theirs(map[string]any{"hyper_parameters.cfg.model.downsample": []any{int64(1), int64(2), int64(4)}}), "zxy", "map[model.downsample:[2,4,1] model.hidden:2]"},
		{theirs(map[string]any{"hyper_parameters.a.b.num_groups": int64(3), "hyper_parameters.num_groups": int64(8)}), "", "map[model.groups:8 model.hidden:2]"},
		{theirs(map[string]any{"hyper_parameters.norm_type": "batch"}), "", "hyper_parameters.norm_type is batch"},
		{theirs(map[string]any{"hyper_parameters.padding_type": "constant"}), "", "hyper_parameters.padding_type is constant"},
		{theirs(map[string]any{"hyper_parameters.downsample": int64(4)}), "", "hyper_parameters.downsample is 4 (want"},
		{map[string]any{"hyper_parameters.hidden": int64(2), "hyper_parameters.norm": "channel", "hyper_parameters.downsample": []any{int64(4), int64(2), int64(1)}}, "",
			`map[model.downsample:[4,2,1] model.hidden:2 model.norm:"channel"]`},
	} {
		g := guess{src: &weights.File{Settings: c.settings}, axes: c.axes}
		got, err := g.settings()
		text := fmt.Sprint(got)
		if err != nil {
			text = err.Error()
		}
		if !strings.HasPrefix(text, c.want) {
			t.Errorf("%v: %s (want %s)", c.settings, text, c.want)
		}
	}
}

func TestImportTarget(t *testing.T) {
	dir := t.TempDir()
	run := filepath.Join(dir, "ru[n]")
	for _, d := range []string{filepath.Join(run, "checkpoints"), filepath.Join(dir, "models"), filepath.Join(dir, "odd.safetensors")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	source, there := filepath.Join(dir, "m.safetensors"), filepath.Join(dir, "there.safetensors")
	for _, f := range []string{source, there, filepath.Join(run, "checkpoints", "step-00000001.safetensors")} {
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		out   string
		force bool
		want  string // the file, or the error
	}{
		{"", false, "m.flowrun.safetensors"},
		{filepath.Join(dir, "a.safetensors"), false, filepath.Join(dir, "a.safetensors")},
		{filepath.Join(dir, "models"), false, filepath.Join(dir, "models", "m.flowrun.safetensors")},
		{filepath.Join(dir, "new", "models"), false, filepath.Join(dir, "new", "models", "m.flowrun.safetensors")},
		{there, false, "is there already"},
		{there, true, there},
		{source, true, "is the file to be imported"},
		{run, false, "is the folder of a run"},
		{run, true, filepath.Join(run, "m.flowrun.safetensors")},
		{filepath.Join(run, "checkpoints"), false, "is the folder of a run"},
		{filepath.Join(dir, "odd.safetensors"), true, "is a folder"},
	} {
		got, err := importTarget(source, ImportOptions{Out: c.out, Force: c.force})
		if err != nil {
			if ExitCode(err) != ExitUsage {
				t.Error(err)
			}
			got = err.Error()
		}
		if got != c.want && (err == nil || !strings.Contains(got, c.want)) {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
