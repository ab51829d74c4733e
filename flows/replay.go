package flows

import (
	"iter"

	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/shuffle"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/volume"
)

// A run that goes on from a cursor sends its epoch's tags through the same stages once more and drops those that have
// been trained. Which they are doesn't depend on voxels, so a scan of which nothing is left is replayed dry: its tags
// flow, its file isn't opened.

// replay returns how many patches are left in start's epoch of each scan whose tags have entered the stream before
// start. All of a scan's may be left: which ones a shuffle draws depends on those that wait beside them.
func (j *Job) replay(d *data, q *read.Quarantine, start volume.Cursor) (map[string]int, error) {
	if start.Seq == 0 {
		return nil, nil
	}
	r, _ := option[read.Options](j)
	t, _ := option[tile.Options](j)
	var failed error
	left := map[string]int{}
	tags := func(yield func(*volume.Patch) bool) {
		for _, scan := range d.order(start.Epoch) {
			if bad, ok := q.Get(scan.ID); ok && start.Epoch >= bad.Until {
				continue
			}
			for p, err := range tile.Tiles(read.Dry(scan, start.Epoch, *r), *t, j.run.Seed, j.multiple()) {
				if err != nil {
					failed = err
					return
				}
				if p.Tile == 0 {
					left[p.Scan] = p.Tiles
				}
				if !yield(p) {
					return
				}
			}
		}
	}
	stream := iter.Seq[*volume.Patch](tags)
	for _, p := range j.pieces {
		if o, ok := p.options.(*shuffle.Options); ok {
			stream = sound(shuffle.Shuffle(stream, *o, j.run.Seed), &failed)
		}
	}
	seq := 0
	for p := range stream {
		left[p.Scan]--
		p.Release()
		if seq++; seq == start.Seq {
			break
		}
	}
	return left, failed
}

// sound is seq without its errors; the first one ends it and is kept in failed.
func sound[T any](seq iter.Seq2[T, error], failed *error) iter.Seq[T] {
	return func(yield func(T) bool) {
		for v, err := range seq {
			if err != nil {
				*failed = err
				return
			}
			if !yield(v) {
				return
			}
		}
	}
}
