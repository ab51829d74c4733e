package flows

import (
	"context"
	"fmt"
	"math"

	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/merge"
	"github.com/flowrun/flowrun/stages/metrics"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/volume"
)

// wholes reconstructs the first held-out scans whole, as the reconstruction flow would, and adds their measures. A scan
// that can't be read was set aside by the pass over patches before this one.
func (v *validator) wholes(ctx context.Context, values map[string]float64) error {
	if v.whole == 0 {
		return nil
	}
	study := &metrics.Study{Workers: v.workers}
	for i, scan := range v.held[:min(v.whole, len(v.held))] {
		v.status(fmt.Sprintf("validating whole scan %d/%d", i+1, min(v.whole, len(v.held))))
		vol, err := v.load(ctx, scan)
		if err != nil {
			return err
		}
		err = v.reconstruct(ctx, vol, study)
		vol.Release()
		if err != nil {
			return fmt.Errorf("%s: %w", scan.ID, err)
		}
	}
	m := study.Summary().Pooled
	for name, x := range map[string]float64{"psnr": m.PSNR, "ssim": m.SSIM, "mae_hu": m.MAEHU, "hfen": m.HFEN, "hf_ratio": m.HFRatio} {
		if !math.IsNaN(x) {
			values["val/whole_"+name] = x
		}
	}
	return nil
}

// reconstruct measures one scan through merge.
func (v *validator) reconstruct(ctx context.Context, vol *volume.Volume, study *metrics.Study) error {
	options := tile.Options{Mode: tile.ModeGrid, Patch: v.patch}
	grid, err := options.Grid(vol.Dims, v.model.Downsample)
	if err != nil {
		return err
	}
	var failed error
	outputs := func(yield func(*volume.Output) bool) {
		for t := range grid.Len() {
			if failed = context.Cause(ctx); failed != nil {
				return
			}
			patch := &volume.Patch{Volume: vol, Tag: volume.Tag{Scan: vol.Scan.ID, Tile: t, Tiles: grid.Len(), Origin: grid.Tile(t), Size: v.patch}}
			v.alive()
			if failed = batch.Cut(v.target, patch, v.scratch); failed != nil {
				return
			}
			if failed = v.session.Reconstruct(v.recon, v.target, 1, v.ema, nil); failed != nil {
				return
			}
			if !yield(&volume.Output{Tag: patch.Tag, Volume: vol.Retain(), Voxels: v.recon}) {
				return
			}
		}
	}
	slabs := merge.Merge(outputs, merge.Options{Window: merge.Hann}, func(*volume.Volume) (volume.Grid, error) {
		return grid, nil
	}, func() bool { return failed != nil })
	for slab, err := range metrics.Measure(sound(slabs, &failed), study) {
		if err != nil {
			return err
		}
		slab.Release()
	}
	return failed
}
