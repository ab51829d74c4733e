package flows

import (
	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/infer"
	"github.com/flowrun/flowrun/stages/merge"
	"github.com/flowrun/flowrun/stages/metrics"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/volume"
	"github.com/flowrun/flowrun/stages/write"
)

// output is the most memory, in bytes, that merge, measure and write hold of the scans on their way out: those stages' own
// bounds for the scan that takes most, tiles coming in order. A scan that was resampled counts with the size that it has here.
func (j *Job) output(d *data) (most int64) {
	merged, merges := option[merge.Options](j)
	m, back := j.modelStage()
	if !merges || !back {
		return 0
	}
	grid, ok := option[tile.Options](j)
	if !ok {
		grid = &tile.Options{Mode: tile.ModeGrid, Patch: m.patch}
	}
	o := *merged
	if j.exact() {
		o.Window = merge.Crop
	}
	blending := int64(1) // scans
	if b, ok := option[batch.Options](j); ok && b.Size > 1 && !j.exact() {
		blending = min(2, int64(len(d.all))) // a batch may have the last tiles of one and the first of the next
	}
	measure, measures := option[metrics.Options](j)
	var factor [3]int
	if measures && measure.Trilinear && m.Checkpoint != infer.IdentityName {
		factor = j.multiple()
	}
	file, writes := option[write.Options](j)
	for _, s := range d.all {
		g, err := grid.Grid(s.Dims, j.multiple())
		if err != nil {
			continue // the run will say so
		}
		n := blending * merge.Bytes(g, o, 0)
		if measures {
			n += metrics.Bytes(s.Dims, factor)
		}
		if writes {
			n += write.Bytes(layout(s), *file)
		}
		most = max(most, n)
	}
	return most
}

// layout is how a scan lies in its file: slice by slice upwards where that is known, else in the order that takes most to write.
func layout(s *volume.Scan) volume.Geometry {
	if s.Rising {
		return volume.Geometry{Dims: s.Dims, Axes: [3]int{0, 1, 2}}
	}
	return volume.Geometry{Dims: [3]int{s.Dims[2], s.Dims[1], s.Dims[0]}, Axes: [3]int{2, 1, 0}}
}
