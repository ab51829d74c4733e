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
