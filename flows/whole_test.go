package flows

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

// TestWhole: whole scans are measured in a validation as reconstruct measures them, and training doesn't notice.
func TestWhole(t *testing.T) {
	dir := t.TempDir()
	plain, err := do(t, t.Context(), nil, tiny(t, filepath.Join(dir, "plain"), validated))
	if err != nil {
		t.Fatal(err)
	}
	whole, err := do(t, t.Context(), nil, tiny(t, filepath.Join(dir, "whole"), validated, "train.validate.whole=5"))
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range plain.Arrays {
		for k, x := range a.Data {
			if y := whole.Arrays[i].Data[k]; x != y {
				t.Fatalf("%s[%d] is %v, with whole scans %v", a.Name, k, x, y)
			}
		}
	}
	for _, name := range []string{"val/whole_psnr", "val/whole_ssim", "val/whole_mae_hu"} {
		if _, ok := plain.Metrics[name]; ok {
			t.Errorf("%s was measured unasked", name)
		}
		if _, ok := whole.Metrics[name]; !ok {
			t.Errorf("%s is missing in %v", name, whole.Metrics)
		}
	}

	// The last checkpoint through the reconstruction flow: the same tiles, window and weights.
	var scans []*volume.Scan
	if err := json.Unmarshal([]byte(whole.Meta["scans"]), &scans); err != nil {
		t.Fatal(err)
	}
	_, out, err := train.Split(scans, train.Validate{Share: 0.1})
	if err != nil {
		t.Fatal(err)
	}
	back := mustLoad(t, fmt.Sprintf("flow: [read: {scans: [%q]}, tile: , batch: , infer: {checkpoint: %q}, merge: , measure: , write: {dir: %q}]",
		out[0].Path, filepath.Join(dir, "whole", "checkpoints", checkpoint.LastName), filepath.Join(dir, "back")))
	if err := back.Run(t.Context(), nil, UI{Out: io.Discard, Err: io.Discard}); err != nil {
		t.Fatal(err)
	}
	var measures struct {
		Pooled struct {
			PSNR  float64 `json:"psnr"`
			SSIM  float64 `json:"ssim"`
			MAEHU float64 `json:"mae_hu"`
		} `json:"pooled"`
	}
	text, err := os.ReadFile(filepath.Join(dir, "back", "measures.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &measures); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{"val/whole_psnr": measures.Pooled.PSNR, "val/whole_ssim": measures.Pooled.SSIM, "val/whole_mae_hu": measures.Pooled.MAEHU} {
		if got := whole.Metrics[name]; math.Abs(got-want) > 1e-9*want || want == 0 {
			t.Errorf("%s is %v, by the reconstruction flow %v", name, got, want)
		}
	}
}
