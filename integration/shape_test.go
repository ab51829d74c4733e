package integration

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/volume"
)

// Scans of any shape train and validate: a voxel, a slice, a row of slices, under names that files can have.
func TestOddScans(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	r := rand.New(rand.NewPCG(1, 2))
	for name, dims := range map[string][3]int{
		"voxel.nii": {1, 1, 1}, "slice.nii.gz": {40, 36, 1}, "plane.nii": {1, 40, 30}, "small.nii.gz": {5, 5, 3}, "long.nii": {16, 16, 70},
		"päti ent #1 (a).nii": {17, 16, 9}, "new\nline.nii.gz": {17, 17, 9}, "-x.nii": {9, 33, 8}, "%s\\.nii": {9, 9, 9},
	} {
		w, err := nifti.Create(p.path("scans", name), nifti.New(nifti.Int16, dims, volume.Affine{{1, 0, 0, 0}, {0, 2, 0, 0}, {0, 0, 3, 0}}))
		p.check(err)
		voxels := make([]int16, dims[0]*dims[1]*dims[2])
		for i := range voxels {
			voxels[i] = int16(r.IntN(2500) - 1200)
		}
		p.check(w.WriteInt16(voxels))
		p.check(w.Close())
	}
	for _, held := range []string{"voxel.nii", "slice.nii.gz", "plane.nii", "*ent #1*", "small*"} {
		dir := "run " + strings.Trim(held, "*")
		p.must("train.yaml", "run.dir="+dir, "train.max_steps=6", "train.validate.patches=0", `train.validate.scans=["`+held+`"]`)
		if _, validations := p.steps(dir); len(validations) != 1 {
			t.Errorf("%s: %d validations", held, len(validations))
		}
		if q := p.reasons(dir); len(q) > 0 {
			t.Errorf("quarantined: %v", q)
		}
	}
	p.must("train.yaml", "run.dir=all", "train.epochs=1", "tile.mode=grid")
	p.must("plan", "train.yaml")
}

// More epochs for a run that is done go on from its end.
func TestMoreEpochs(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.must("train.yaml", "train.epochs=1")
	first, _ := p.steps("run")
	p.must("train.yaml", "train.epochs=2")
	all, _ := p.steps("run")
	patches := int(p.events("run", "start")[0]["patches_per_epoch"].(float64))
	if epoch := (patches + 2) / 3; len(first) != epoch || len(all) != 2*epoch { // the last batch of either is a partial one
		t.Errorf("%d steps, then %d, of batches of 3 in epochs of %d", len(first), len(all), patches)
	}
	if last := all[len(all)-1]; last["epoch"] != 1.0 {
		t.Errorf("the last step is of epoch %v", last["epoch"])
	}
}
