package flows

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/train"
)

// TestTheUsualCardIsEnough plans preset vqgan3d with all losses on: a patch of 256×256×128 at a time, in bfloat16, must leave a card of
// 24 GB what the driver and the desktop take. No device is needed for it.
func TestTheUsualCardIsEnough(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.yaml")
	yaml := `model: {preset: vqgan3d}
flow:
  - read: {scans: "*.nii.gz"}
  - tile: {patch: [256, 256, 128]}
  - batch: {size: 2}
  - train: {device: "cuda:0", micro_batch: 1, gan: {weight: 1}}
`
	if err := os.WriteFile(file, []byte(yaml), 0o666); err != nil {
		t.Fatal(err)
	}
	j, err := Load(file, []byte(yaml), nil)
	if err != nil {
		t.Fatal(err)
	}
	o, _ := option[train.Options](j)
	e, _, err := j.planned(o.Device)
	if err != nil {
		t.Fatal(err)
	}
	options := j.sessionOptions(*o, [3]int{256, 256, 128})
	options.Perceptual = vqgan.Perceptual{Weight: 1, Share: 0.02, Planes: []string{"x", "y", "z"}, Chunk: 4}
	plan, err := vqgan.PlanFor(e, j.model, options)
	if err != nil {
		t.Fatal(err)
	}
	if plan.Total > usualCard || plan.Total < usualCard/2 {
		t.Errorf("%d bytes are planned for %d", plan.Total, int64(usualCard))
	}
	p := plan.Programs[0]
	if again := slices.Clone(p.Recomputed); len(again) == 0 || len(again) > 14 {
		t.Errorf("%s recomputes %v", p.Name, again)
	}
	options.MemoryLimit = 17 << 30 // all that can be recomputed
	if plan, err = vqgan.PlanFor(e, j.model, options); err != nil {
		t.Errorf("%v", err)
	} else if plan.Total > 17<<30 {
		t.Errorf("%d bytes", plan.Total)
	}
}
