// Package shuffle mixes the patches of several scans. Patches are tags, so the window costs one volume for each scan in it,
// however many patches those have.
package shuffle

import (
	"iter"
	"math/rand/v2"
	"slices"

	"github.com/flowrun/flowrun/stages/volume"
)

// Options is the size of the window.
type Options struct {
	Volumes int `key:"volumes" default:"4" unit:"scans" min:"1" doc:"Scans whose patches are mixed at a time. Each is held in memory (or its cache file open) until its last patch is used."`
	Patches int `key:"patches" default:"0" json:",omitempty" unit:"patches" min:"0" doc:"Mix so many patches at a time instead, whatever their scans: for patches from a queue, which come mixed. 0 counts scans."`
}

// Shuffle gives the patches of in, mixed. It takes in until o.Volumes scans are whole in the window, then gives one patch at
// a time, and takes in more each time a scan is used up. At the end of an epoch, or of in, it empties the window first, so
// epochs never mix.
//
// Each patch is drawn by a generator of its own, keyed by seed, epoch and the position in the epoch: the order is a
// function of the order of in alone. While scans still come, each whole scan is equally likely and so are its patches:
// were all patches equally likely, those of the newest scan would crowd out the others'. While the window empties all
// patches are equally likely, so that no scan is left to the end.
//
// With o.Patches the window is so many patches, whole scans or not, each equally likely.
//
// If the sequence is broken off, what it holds is released. Errors are always nil.
func Shuffle(in iter.Seq[*volume.Patch], o Options, seed uint64) iter.Seq2[*volume.Patch, error] {
	return func(yield func(*volume.Patch, error) bool) {
		w := window{seed: seed}
		defer w.release()
		for p := range in {
			if p.Epoch != w.epoch {
				if !w.empty(yield) {
					p.Release()
					return
				}
				w.epoch, w.position = p.Epoch, 0
			}
			if o.Patches > 0 {
				w.mix(p)
			} else {
				w.add(p)
			}
			for w.full(o) {
				if !yield(w.draw(), nil) {
					return
				}
			}
		}
		w.empty(yield)
	}
}

// window is the patches of one epoch that were taken in and not yet given.
type window struct {
	seed            uint64
	epoch, position int
	whole           []scan // taken in to their last patch; none is used up
	coming          []scan // some of their patches are yet to come
}

type scan struct {
	id      string
	patches []*volume.Patch
}

// add takes in one patch.
func (w *window) add(p *volume.Patch) {
	i := slices.IndexFunc(w.coming, func(s scan) bool { return s.id == p.Scan })
	if i < 0 {
		i = len(w.coming)
		w.coming = append(w.coming, scan{p.Scan, make([]*volume.Patch, 0, p.Tiles)})
	}
	s := &w.coming[i]
	s.patches = append(s.patches, p)
	if len(s.patches) >= p.Tiles {
		w.whole = append(w.whole, *s)
		w.coming = slices.Delete(w.coming, i, i+1)
	}
}

// mix takes in one patch whatever its scan: all wait as if they were one.
func (w *window) mix(p *volume.Patch) {
	if len(w.whole) == 0 {
		w.whole = append(w.whole, scan{})
	}
	w.whole[0].patches = append(w.whole[0].patches, p)
}

// full says that a patch has to leave.
func (w *window) full(o Options) bool {
	if o.Patches > 0 {
		return len(w.whole) > 0 && len(w.whole[0].patches) >= o.Patches
	}
	return len(w.whole) >= max(1, o.Volumes)
}

// draw takes a patch out of any whole scan.
func (w *window) draw() *volume.Patch {
	r := w.rand()
	i := r.IntN(len(w.whole))
	return w.take(i, r.IntN(len(w.whole[i].patches)))
}

// empty gives all patches, each equally likely to be next. It says whether the sequence goes on.
func (w *window) empty(yield func(*volume.Patch, error) bool) bool {
	w.whole, w.coming = append(w.whole, w.coming...), nil
	n := 0
	for _, s := range w.whole {
		n += len(s.patches)
	}
	for ; n > 0; n-- {
		i, k := 0, w.rand().IntN(n)
		for ; k >= len(w.whole[i].patches); i++ {
			k -= len(w.whole[i].patches)
		}
		if !yield(w.take(i, k), nil) {
			return false
		}
	}
	return true
}

// rand is the generator of the next position.
func (w *window) rand() *rand.Rand {
	w.position++
	return volume.Rand(volume.Key(w.seed, "shuffle", "", w.epoch, w.position-1))
}

// take takes patch k out of whole scan i; the last one of each moves into the gap.
func (w *window) take(i, k int) *volume.Patch {
	s := &w.whole[i]
	p, last := s.patches[k], len(s.patches)-1
	s.patches[k], s.patches[last] = s.patches[last], nil
	s.patches = s.patches[:last]
	if last == 0 {
		end := len(w.whole) - 1
		w.whole[i], w.whole[end] = w.whole[end], scan{}
		w.whole = w.whole[:end]
	}
	return p
}

func (w *window) release() {
	for _, s := range append(w.whole, w.coming...) {
		for _, p := range s.patches {
			p.Release()
		}
	}
}
