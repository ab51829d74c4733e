package flows

import (
	"context"
	"math/rand/v2"

	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

// data is the frozen list of scans and what follows from it: the split, the order of each epoch, the counts.
type data struct {
	all         []*volume.Scan // frozen
	train, held []*volume.Scan
	bad         []read.Bad // couldn't even be listed
	seed        uint64
	tiles       func(*volume.Scan) int // patches of a scan in an epoch
	asListed    bool                   // scans come in the order of the list: nothing is trained
}

// findScans lists the job's scans and freezes the list.
func (j *Job) findScans(ctx context.Context) (*data, error) {
	scans, bad, err := j.listScans(ctx)
	if err != nil {
		return nil, err
	}
	return j.freeze(scans, bad)
}

// listScans lists the scans that are there now. Those that are bad are given with an error, too.
func (j *Job) listScans(ctx context.Context) ([]*volume.Scan, []read.Bad, error) {
	r, _ := option[read.Options](j)
	scans, bad, err := read.List(ctx, *r)
	switch {
	case ctx.Err() != nil:
		return nil, nil, context.Cause(ctx)
	case err != nil:
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
	d.asListed = !trains
	var err error
	if d.train, d.held, err = split(); err != nil {
		return nil, configErrorf("train.%w", err)
	}
	return d, nil
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
