package flows

import (
	"bytes"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/safetensors"
	"github.com/flowrun/flowrun/stages/volume"
)

const (
	predecessor = `{"hidden":4,"downsample":[2,2,2],"embedding":2,"codes":3,"norm":"group","groups":4,"padding":"replicate","decoder":"full"}`
	ours        = `{"hidden":4,"downsample":[2,2,2],"embedding":2,"codes":3,"norm":"channel","groups":4,"padding":"replicate","decoder":"full"}`
)

// exportable is a checkpoint of a few arrays.
func exportable(t *testing.T, model string, ema bool) string {
	t.Helper()
	store, err := checkpoint.Open(t.TempDir(), checkpoint.Options{Keep: 1, Best: "psnr"})
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"encoder.a", "decoder.b", "pre_vq_conv.conv.weight", "adam.m.encoder.a", "codebook.embeddings", "codebook.N", "codebook.z_avg",
		"codebook.reservoir", "session.counters"}
	if ema {
		names = append(names, "ema.encoder.a", "ema.decoder.b", "ema.pre_vq_conv.conv.weight")
	}
	s := &volume.Snapshot{Step: 7, Reason: "every", Meta: map[string]string{"model": model, "stream": "{}"}}
	for i, name := range names {
		s.Arrays = append(s.Arrays, volume.Array{Name: name, Shape: []int{1, 2}, Data: []float32{float32(i), -1}})
	}
	path, err := store.Save(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExport(t *testing.T) {
	for _, c := range []struct {
		ema    bool
		asked  string
		said   string
		values []float32 // by name
	}{
		{true, "", "ema", []float32{5, 4, 6, 10, 9, 11}},
		{true, ExportRaw, "raw", []float32{5, 4, 6, 1, 0, 2}},
		{false, "", "raw", []float32{5, 4, 6, 1, 0, 2}},
	} {
		to := filepath.Join(t.TempDir(), "out.safetensors")
		var b bytes.Buffer
		if err := Export(t.Context(), &b, exportable(t, predecessor, c.ema), to, ExportOptions{Weights: c.asked, For: MedicalDiffusion}); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), "6 tensors") || !strings.Contains(b.String(), c.said+" weights of step 7") {
			t.Errorf("it says %q", b.String())
		}
		arrays, meta, err := safetensors.Read(to)
		if err != nil || meta["format"] != "pt" || meta["model"] != predecessor || meta["flowrun"] != "" {
			t.Fatal(err, meta)
		}
		got := map[string]float32{}
		for _, a := range arrays {
			got[a.Name] = a.Data[0]
		}
		names := slices.Sorted(maps.Keys(got))
		want := []string{"codebook.N", "codebook.embeddings", "codebook.z_avg", "decoder.b", "encoder.a", "pre_vq_conv.conv.weight"}
		if !slices.Equal(names, want) {
			t.Fatalf("%v (want %v)", names, want)
		}
		for i, name := range names {
			if got[name] != c.values[i] {
				t.Errorf("%v: %s is %v (want %v)", c, name, got[name], c.values[i])
			}
		}
	}
}

// Discriminators go along as PyTorch's modules have them: kernels turned as the model's are, the other singular vector beside u, numbers of
// batches whole; without what only a run needs.
func TestExportTakesDiscriminators(t *testing.T) {
	const image, video = "image_discriminator.model0.0.", "video_discriminator.model1."
	save := func(judges ...volume.Array) string {
		store, err := checkpoint.Open(t.TempDir(), checkpoint.Options{Keep: 1, Best: "psnr"})
		if err != nil {
			t.Fatal(err)
		}
		path, err := store.Save(t.Context(), &volume.Snapshot{Step: 7, Reason: "every", Meta: map[string]string{"model": predecessor, "stream": "{}"},
			Arrays: append(judges, volume.Array{Name: "encoder.a", Shape: []int{1}, Data: []float32{1}})})
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	spectral := []volume.Array{
		{Name: image + "weight_orig", Shape: []int{2, 1, 1, 2}, Data: []float32{3, 0, 0, 4}},
		{Name: image + "weight_u", Shape: []int{2}, Data: []float32{0.6, 0.8}},
		{Name: "adam.m." + image + "weight_orig", Shape: []int{2, 1, 1, 2}, Data: []float32{1, 1, 1, 1}},
		{Name: "lecam.anchors", Shape: []int{2}, Data: []float32{1, 1}},
		{Name: "session.discriminators", Shape: []int{2, 3}, Data: make([]float32, 6)},
	}
	batch := []volume.Array{
		{Name: video + "1.running_mean", Shape: []int{1}, Data: []float32{2}},
		{Name: video + "1.num_batches_tracked", Shape: []int{3}, Data: []float32{5, 1, 0}},
	}
	for _, c := range []struct {
		judges []volume.Array
		o      ExportOptions
		said   string
		want   []volume.Array
	}{
		{spectral, ExportOptions{Axes: "zxy"}, "weights of step 7, discriminators\n", []volume.Array{
			{Name: image + "weight_orig", Shape: []int{2, 1, 2, 1}, Data: []float32{3, 0, 0, 4}},
			{Name: image + "weight_u", Shape: []int{2}, Data: []float32{0.6, 0.8}},
			{Name: image + "weight_v", Shape: []int{2}, Data: []float32{0.490261, 0.871575}}, // (1.8, 3.2) over its length
		}},
		{batch, ExportOptions{For: MedicalDiffusion}, "weights of step 7, discriminators\n", []volume.Array{
			{Name: video + "1.num_batches_tracked", Shape: []int{}, Data: []float32{5 + 1<<20}},
			{Name: video + "1.running_mean", Shape: []int{1}, Data: []float32{2}},
		}},
		{spectral, ExportOptions{For: MedicalDiffusion}, "left out: the discriminators", nil},
	} {
		to := filepath.Join(t.TempDir(), "out.safetensors")
		var b bytes.Buffer
		if err := Export(t.Context(), &b, save(c.judges...), to, c.o); err != nil {
			t.Fatal(err)
		}
		got, _, err := safetensors.Read(to)
		if err != nil || !strings.Contains(b.String(), c.said) {
			t.Fatalf("%v: %q", err, b.String())
		}
		slices.SortFunc(got, func(a, b volume.Array) int { return strings.Compare(a.Name, b.Name) })
		want := append([]volume.Array{{Name: "encoder.a", Shape: []int{1}, Data: []float32{1}}}, c.want...)
		if !slices.EqualFunc(got, want, func(a, b volume.Array) bool {
			return a.Name == b.Name && slices.Equal(a.Shape, b.Shape) && slices.EqualFunc(a.Data, b.Data, func(x, y float32) bool { return max(x-y, y-x) < 1e-6 })
		}) {
			t.Errorf("%+v: %v\nwant %v", c.o, got, want)
		}
	}
}

func TestExportRefuses(t *testing.T) {
	dir := t.TempDir()
	to := filepath.Join(dir, "out.safetensors")
	lean := strings.Replace(predecessor, `"full"`, `"lean"`, 1)
	zero := strings.Replace(predecessor, `"replicate"`, `"zero"`, 1)
	for _, c := range []struct {
		from, to string
		o        ExportOptions
		want     string
		exit     int
	}{
		{exportable(t, ours, true), to, ExportOptions{For: MedicalDiffusion}, "model.norm: channel", ExitUsage},
		{exportable(t, lean, true), to, ExportOptions{For: MedicalDiffusion}, "model.decoder: lean", ExitUsage},
		{exportable(t, zero, true), to, ExportOptions{For: MedicalDiffusion}, "model.padding: zero", ExitUsage},
		{exportable(t, ours, false), to, ExportOptions{Weights: ExportEMA}, "no EMA weights", ExitUsage},
		{exportable(t, ours, false), to, ExportOptions{Weights: "best"}, "want ema or raw", ExitUsage},
		{exportable(t, ours, false), to, ExportOptions{For: "keras"}, "want medicaldiffusion", ExitUsage},
		{exportable(t, ours, false), to, ExportOptions{Axes: "xy"}, `--axes: "xy"`, ExitUsage},
		{exportable(t, ours, false), dir, ExportOptions{}, "ends with .safetensors", ExitUsage},
		{exportable(t, "{}", false), to, ExportOptions{}, "downsample", ExitData},
		{filepath.Join(dir, "none.safetensors"), to, ExportOptions{}, "none.safetensors: no such file", ExitData},
	} {
		err := Export(t.Context(), &bytes.Buffer{}, c.from, c.to, c.o)
		if err == nil || !strings.Contains(err.Error(), c.want) || ExitCode(err) != c.exit {
			t.Errorf("%v: %v, exit %d (want %s, %d)", c.o, err, ExitCode(err), c.want, c.exit)
		}
	}
	from := exportable(t, ours, false)
	if err := Export(t.Context(), &bytes.Buffer{}, from, to, ExportOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := Export(t.Context(), &bytes.Buffer{}, from, to, ExportOptions{}); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("it wrote over a file: %v", err)
	}
}
