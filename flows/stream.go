package flows

import (
	"context"

	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/metrics"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/shuffle"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/volume"
)

// On the way back tiles are cut in the order in which most files store their slices, so that a scan needn't be read whole
// before its first tile flows, nor held whole.

// batchBuffers is how many batches exist at a time: one being filled, one on its way, one in the model.
const batchBuffers = 3

// slices is how many slices of a scan are to be held, below the highest that was read; 0 where it is read whole.
func (j *Job) slices(s *volume.Scan) int {
	m, back := j.modelStage()
	r, reads := option[read.Options](j)
	_, shuffles := option[shuffle.Options](j)
	if !back || !reads || shuffles || !read.Streams(s, *r) {
		return 0
	}
	n := m.patch[2] // tiles are cut one at a time
	if _, measures := option[metrics.Options](j); measures {
		t, _ := option[tile.Options](j)
		g, err := t.Grid(s.Dims, j.multiple())
		if err != nil || j.exact() { // exact: the first slab comes when the last tile is cut
			return 0
		}
		b, _ := option[batch.Options](j)
		n = span(g, batchBuffers*b.Size)
	}
	if n >= s.Dims[2] {
		return 0
	}
	return n
}

// span is how far apart two slices of a scan can be that are wanted at a time: by a tile that is being cut, and by measure, for
// the slab that merge last gave. ahead is how many tiles may have been cut that merge hasn't taken.
func span(g volume.Grid, ahead int) int {
	most, layer := 0, g.N[0]*g.N[1]
	for z, from := range g.Origins[2] {
		cut := ((z+1)*layer - 1 + ahead) / layer // while the layer's last tile is being merged
		top := min(g.Origins[2][min(cut, g.N[2]-1)]+g.Patch[2], g.Dims[2])
		most = max(most, top-from+1) // measure may be at the last slice of the layer before
	}
	return most
}

// cost is the memory that a scan's samples take.
func (j *Job) cost(s *volume.Scan) int64 {
	r, _ := option[read.Options](j)
	if n := j.slices(s); n > 0 {
		return read.StreamCost(s, *r, n)
	}
	return read.Cost(s, *r)
}

// delivers gives the stages that read a scan's slices and cut its tiles on the way back.
func (j *Job) delivers() (reader, cutter string) {
	r, _ := option[read.Options](j)
	m, _ := j.modelStage()
	if b, ok := option[batch.Options](j); ok && !j.exact() {
		m.piece = j.piece(b)
	}
	return j.piece(r).label, m.piece.label
}

// load opens a scan, or reads it whole. ctx outlives a soft stop, after which a scan that is on its way is finished.
func (w *wiring) load(ctx context.Context, a admission, o read.Options) (*volume.Volume, error) {
	n := w.job.slices(a.scan)
	if n == 0 {
		return read.Load(a.wanted, a.scan, a.epoch, o, a.release)
	}
	if a.wanted.Err() != nil {
		a.release()
		return nil, context.Cause(a.wanted)
	}
	reader, cutter := w.job.delivers()
	return read.Stream(ctx, a.scan, a.epoch, o, n, read.Tell{
		Odd:  func(warnings []string) { w.odd(a.scan, warnings) },
		Wait: func() (over func()) { return w.g.Owes(reader, cutter) },
	}, a.release)
}

// loses sets a scan aside that turned out to be bad on its way.
func (r *run) loses(v *volume.Volume) error {
	if r.quarantine.Has(v.Scan.ID) {
		return nil
	}
	return r.setAside(read.Bad{Scan: v.Scan.ID, Path: v.Scan.Path, Reason: v.Lost().Error()})
}
