package flows

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/safetensors"
	"github.com/flowrun/flowrun/stages/volume"
)

// vgg are VGG16 and LPIPS' heads by torchvision's names, with weights of a simple pattern.
func vgg() map[string]volume.Array {
	out := map[string]volume.Array{}
	add := func(name string, scale, offset float64, shape ...int) {
		n := 1
		for _, d := range shape {
			n *= d
		}
		a := volume.Array{Shape: shape, Data: make([]float32, n)}
		for i := range a.Data {
			a.Data[i] = float32((float64(i*7919%1009)/1009 - offset) * scale)
		}
		out[name] = a
	}
	names := strings.Fields("0 2 5 7 10 12 14 17 19 21 24 26 28")
	widths, from := []int{64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512}, 3
	for i, c := range widths {
		add("features."+names[i]+".weight", 2*math.Sqrt(6/float64(9*from)), 0.5, c, from, 3, 3)
		add("features."+names[i]+".bias", 0.2, 0.5, c)
		from = c
	}
	for i, c := range []int{64, 128, 256, 512, 512} {
		add("lin"+string(rune('0'+i))+".model.1.weight", 1, 0, 1, c, 1, 1)
	}
	return out
}

// TestPerceptual trains with LPIPS, goes on with the same network and then with another, and plans.
func TestPerceptual(t *testing.T) {
	weights := vgg()
	file := stateFile(t, weights, nil)
	dir := filepath.Join(t.TempDir(), "run")
	words := func(file, steps string) []string {
		return []string{"tile.patch=[16,16,16]", "tile.per_scan=2", "train.max_steps=" + steps, "train.perceptual.weight=0.5", "train.perceptual.file=" + file}
	}
	last, err := do(t, t.Context(), nil, tiny(t, dir, words(file, "2")...))
	if err != nil || len(last.Meta[perceptualKey]) != 64 {
		t.Fatalf("%v, digest %q", err, last.Meta[perceptualKey])
	}
	for _, o := range lines(t, filepath.Join(dir, "metrics.jsonl")) {
		loss, part := o["train/loss"].(float64), o["train/perceptual_loss"].(float64)
		if part <= 0 || loss < 0.5*part+o["train/recon_loss"].(float64)-1e-6 {
			t.Errorf("loss %v with LPIPS %v and %v of the reconstruction", loss, part, o["train/recon_loss"])
		}
	}
	warned := func() bool {
		return slices.ContainsFunc(lines(t, filepath.Join(dir, "log.jsonl")), func(o map[string]any) bool {
			return strings.Contains(o["message"].(string), "train.perceptual.file holds other weights than")
		})
	}
	if _, err := do(t, t.Context(), nil, tiny(t, dir, words(file, "3")...)); err != nil || warned() {
		t.Errorf("going on with the same file: %v, a warning: %v", err, warned())
	}
	weights["lin2.model.1.weight"].Data[0] = 0.25
	if _, err := do(t, t.Context(), nil, tiny(t, dir, words(stateFile(t, weights, nil), "4")...)); err != nil || !warned() {
		t.Errorf("going on with another file: %v, a warning: %v", err, warned())
	}
	var out bytes.Buffer
	if err := tiny(t, t.TempDir(), words(file, "4")...).Plan(t.Context(), &out); err != nil || !strings.Contains(out.String(), "perceptual "+" "+file+": 1") {
		t.Errorf("%v:\n%s", err, out.String())
	}
}

// TestPerceptualRefused says what is wrong with a perceptual network before any scan is read.
func TestPerceptualRefused(t *testing.T) {
	whole := vgg()
	negative := stateFile(t, func() map[string]volume.Array {
		whole["lin4.model.1.weight"].Data[511] = -1
		return whole
	}(), nil)
	integers := filepath.Join(t.TempDir(), "integers.safetensors")
	var list []safetensors.Array
	for name, a := range whole {
		values := safetensors.Array{Name: name, Shape: a.Shape, Values: safetensors.F32(a.Data)}
		if name == "features.0.bias" {
			values.Values = safetensors.I32(make([]int32, 64))
		}
		list = append(list, values)
	}
	var b bytes.Buffer
	if err := safetensors.Write(&b, list, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(integers, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	one := func(name string, shape ...int) string {
		n := 1
		for _, d := range shape {
			n *= d
		}
		return stateFile(t, map[string]volume.Array{name: {Shape: shape, Data: make([]float32, n)}}, nil)
	}
	for _, c := range []struct {
		file, patch string
		want        []string
	}{
		{"gone.safetensors", "", []string{"train.perceptual.file", "gone.safetensors: no such file", "docs/perceptual.md"}},
		{"perceptual_test.go", "", []string{"perceptual_test.go: want a state dict"}},
		{one("lin0.model.1.weight", 1, 64, 1, 1), "", []string{"state.safetensors: ", "LPIPS' linear heads alone"}},
		{one("net.slice1.0.weight", 64, 1, 3, 3), "", []string{"state.safetensors: ", "net.slice1.0.weight is [64 1 3 3] (want [64 3 3 3])"}},
		{one("features.0.weight", 64, 3, 3, 3), "", []string{"state.safetensors: ", "features.0.bias is missing"}},
		{negative, "", []string{"state.safetensors: lin4.model.1.weight: element 511 is -1"}},
		{integers, "", []string{"integers.safetensors: features.0.bias is of type I32"}},
		{"gone.safetensors", "[16,16,8]", []string{"train.perceptual.planes", "slices across x are 8 voxels along z"}},
	} {
		if c.patch == "" {
			c.patch = "[16,16,16]"
		}
		_, err := Load("train.yaml", []byte("flow:\n  - read: {scans: [none]}\n  - tile: {patch: [16, 16, 16]}\n  - batch: {size: 1}\n  - train: {perceptual: {weight: 1}}\n"),
			[]string{"train.perceptual.file=" + c.file, "tile.patch=" + c.patch})
		if ExitCode(err) != ExitUsage {
			t.Fatalf("%s: exit %d, %v", c.file, ExitCode(err), err)
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v (want %s)", err, want)
			}
		}
	}
}
