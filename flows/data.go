package flows

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/stages/files"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
	"github.com/flowrun/flowrun/stages/write"
)

// data is the frozen list of scans and what follows from it: the split, the order of each epoch, the counts.
type data struct {
	all         []*volume.Scan // frozen
	train, held []*volume.Scan
	bad         []read.Bad // couldn't even be listed
	seed        uint64
	tiles       func(*volume.Scan) int // patches of a scan in an epoch
	written     int                    // files left out: an earlier run wrote them
	asListed    bool                   // scans come in the order of the list: nothing is trained
}

// findScans lists the job's scans and freezes the list.
func (j *Job) findScans(ctx context.Context) (*data, error) {
	scans, bad, err := j.listScans(ctx)
	if err != nil {
		return nil, err
	}
	scans, bad, written := j.leaveWritten(scans, bad)
	if len(scans) == 0 && written > 0 {
		w, _ := option[write.Options](j)
		return nil, dataErrorf("read.scans: all %d scans lie in write.dir (%s), where the flow writes its own; name other scans, or another folder to write to", written, w.Dir)
	}
	d, err := j.freeze(scans, bad)
	if err != nil {
		return nil, err
	}
	d.written = written
	return d, nil
}

// leaveWritten leaves the files in write.dir out where that lies below the folders that scans are looked for in: an earlier run
// has written them. Whoever names write.dir, a file in it, or a list of files, means them.
func (j *Job) leaveWritten(scans []*volume.Scan, bad []read.Bad) ([]*volume.Scan, []read.Bad, int) {
	w, writes := option[write.Options](j)
	r, _ := option[read.Options](j)
	if !writes {
		return scans, bad, 0
	}
	real := func(path string) string { // whatever links lead there
		if to, err := filepath.EvalSymlinks(path); err == nil {
			path = to
		}
		return files.Absolute(path)
	}
	dir := real(w.Dir)
	inside := func(path string) bool { return files.Below(real(filepath.Dir(path)), dir) }
	named := func(s string) bool {
		return files.Below(real(s), dir) || files.Below(files.Absolute(s), files.Absolute(w.Dir)) || strings.EqualFold(filepath.Ext(s), ".txt")
	}
	if slices.ContainsFunc(r.Scans, named) {
		return scans, bad, 0
	}
	n := len(scans) + len(bad)
	scans = slices.DeleteFunc(scans, func(s *volume.Scan) bool { return inside(s.Path) })
	bad = slices.DeleteFunc(bad, func(b read.Bad) bool { return inside(b.Path) })
	for i, s := range scans {
		s.Index = i
	}
	return scans, bad, n - len(scans) - len(bad)
}

// listScans lists the scans that are there now. Those that are bad are given with an error, too.
func (j *Job) listScans(ctx context.Context) ([]*volume.Scan, []read.Bad, error) {
	r := j.searched()
	scans, bad, err := read.List(ctx, r)
	switch {
	case ctx.Err() != nil:
		return nil, nil, context.Cause(ctx)
	case err != nil:
		if j.ends().list != nil {
			return nil, bad, dataErrorf("scans.from: %s", strings.TrimPrefix(err.Error(), "scans: "))
		}
		return nil, bad, dataErrorf("read.%w", err)
	}
	return scans, bad, nil
}

// freeze splits a list of scans as train.validate says.
func (j *Job) freeze(scans []*volume.Scan, bad []read.Bad) (*data, error) {
	tr, _ := option[train.Options](j)
	return j.freezeAs(scans, bad, func() (training, held []*volume.Scan, err error) {
		return train.Split(scans, tr.Validate)
	})
}

// freezeAs splits a list of scans by split.
func (j *Job) freezeAs(scans []*volume.Scan, bad []read.Bad, split func() (training, held []*volume.Scan, err error)) (*data, error) {
	if len(scans) == 0 {
		return nil, dataErrorf("the list of scans is empty")
	}
	t, _ := option[tile.Options](j)
	d := &data{all: scans, bad: bad, seed: j.run.Seed, tiles: func(s *volume.Scan) int {
		return tile.Count(s.Dims, *t, j.multiple())
	}}
	_, trains := option[train.Options](j)
	d.asListed = !trains && j.ends().list == nil
	var err error
	if d.train, d.held, err = split(); err != nil {
		return nil, configErrorf("train.%w", err)
	}
	return d, nil
}

// copies says in words which scans are copies of others; "" for none. To train on both is to train on one twice as often.
func (d *data) copies() string {
	var pairs []string
	for _, s := range d.all {
		if s.Copy != "" {
			pairs = append(pairs, s.ID+" of "+s.Copy)
		}
	}
	const shown = 5
	if more := len(pairs) - shown; more > 0 {
		pairs = append(pairs[:shown], fmt.Sprintf("%d more", more))
	}
	return strings.Join(pairs, ", ")
}

// order returns the training scans in the order of an epoch.
func (d *data) order(epoch int) []*volume.Scan {
	if d.asListed {
		return d.train
	}
	r := rand.New(rand.NewPCG(volume.Key(d.seed, "order", "", epoch), 0))
	scans := make([]*volume.Scan, len(d.train))
	for i, k := range r.Perm(len(scans)) {
		scans[i] = d.train[k]
	}
	return scans
}

// perEpoch is the number of patches of an epoch in which no scan is bad.
func (d *data) perEpoch() int {
	n := 0
	for _, s := range d.train {
		n += d.tiles(s)
	}
	return n
}

// steps is the number of optimiser steps of a number of epochs; the last batch may be a smaller one.
func (d *data) steps(epochs, batch int) int { return (epochs*d.perEpoch() + batch - 1) / batch }

// largest returns the scan that costs most of what cost measures.
func largest(scans []*volume.Scan, cost func(*volume.Scan) int64) (s *volume.Scan, most int64) {
	for _, c := range scans {
		if n := cost(c); s == nil || n > most {
			s, most = c, n
		}
	}
	return s, most
}

// total is what all scans cost.
func total(scans []*volume.Scan, cost func(*volume.Scan) int64) (sum int64) {
	for _, s := range scans {
		sum += cost(s)
	}
	return sum
}
