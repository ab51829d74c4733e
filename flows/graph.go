package flows

import (
	"context"
	"fmt"
	"iter"

	"github.com/flowrun/flowrun/stages/augment"
	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/queue"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/shuffle"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/volume"
)

// wiring is a graph under construction: the port that the next stage takes, by element type.
type wiring struct {
	*run
	g         *pipe.Graph
	volumes   pipe.Port[*volume.Volume]
	patches   pipe.Port[*volume.Patch]
	batches   pipe.Port[*volume.Batch]
	snapshots pipe.Port[*volume.Snapshot]
	outputs   pipe.Port[*volume.Output]
	slabs     pipe.Port[*volume.Slab]
	codes     pipe.Port[*volume.Codes]
	files     pipe.Port[string]

	references pipe.Port[*queue.Scan]
}

// endStage takes what the last stage gives.
const endStage = "end"

// wire builds the run's graph.
func (r *run) wire(g *pipe.Graph) {
	w := &wiring{run: r, g: g}
	for _, p := range r.job.pieces {
		p.wire(w, p)
	}
	w.discard(r.job.pieces[len(r.job.pieces)-1].out)
}

// discard takes what the last stage gives.
func (w *wiring) discard(out string) {
	switch out {
	case volumes:
		pipe.Discard(w.volumes, endStage)
	case patches:
		pipe.Discard(w.patches, endStage)
	case batches:
		pipe.Discard(w.batches, endStage)
	case snapshots:
		pipe.Discard(w.snapshots, endStage)
	case outputs:
		pipe.Discard(w.outputs, endStage)
	case slabs:
		pipe.Discard(w.slabs, endStage)
	case codeGrids:
		pipe.Discard(w.codes, endStage)
	case writtenFiles:
		pipe.Discard(w.files, endStage)
	case references:
		pipe.Discard(w.references, endStage)
	}
}

// admission is a scan that the budget has let in.
type admission struct {
	scan    *volume.Scan
	epoch   int
	release func()          // nil: a dry one, which costs nothing
	wanted  context.Context // ends when nobody waits for the scan any more: at a stop, or when training is done
}

func (a admission) Release() {
	if a.release != nil {
		a.release()
	}
}

// loaded is a volume, or what is wrong with its scan, or neither: a scan that nobody wants any more.
type loaded struct {
	*volume.Volume
	bad *read.Bad
}

func (l loaded) Bytes() int64 {
	if l.Volume == nil {
		return 0
	}
	return l.Volume.Bytes()
}

func (l loaded) Release() {
	if l.Volume != nil {
		l.Volume.Release()
	}
}

// wireRead puts three operators: admit lets scans in, in order, as the budget has room; read loads them, several at
// once; vet takes the bad ones out.
func wireRead(w *wiring, s *piece) {
	if w.job.ends().work != nil {
		wireReadQueued(w, s)
		return
	}
	o, r := *s.options.(*read.Options), w.run
	admitted := pipe.From(w.g, "admit", func(ctx context.Context, emit func(admission) error) error {
		for epoch := r.start.Epoch; epoch < r.epochs; epoch++ {
			good := 0
			for _, scan := range r.data.order(epoch) {
				flows, dry := r.admits(scan, epoch)
				if !flows {
					continue
				}
				good++
				a := admission{scan: scan, epoch: epoch, wanted: ctx}
				if !dry {
					r.await(ctx, r.job.cost(scan), scan.ID)
					release, err := r.budget.Acquire(ctx, r.job.cost(scan), scan.ID)
					if err != nil {
						return err
					}
					a.release = release
				}
				if err := emit(a); err != nil {
					return err
				}
			}
			if good == 0 {
				return r.noneLeft(r.quarantine.All())
			}
		}
		return nil
	})
	all := pipe.Map(admitted, s.label, max(1, o.Ahead), func(ctx context.Context, a admission) (loaded, error) {
		if a.release == nil {
			return loaded{Volume: read.Dry(a.scan, a.epoch, o)}, nil
		}
		v, err := w.load(ctx, a, o)
		if err != nil && a.wanted.Err() != nil {
			return loaded{}, nil
		}
		if err != nil {
			return r.lost(a, &read.Bad{Scan: a.scan.ID, Path: a.scan.Path, Reason: err.Error()}, o), nil
		}
		return loaded{Volume: v}, nil
	})
	w.volumes = pipe.Transform(all, "vet", func(_ context.Context, in iter.Seq[loaded]) iter.Seq2[*volume.Volume, error] {
		return func(yield func(*volume.Volume, error) bool) {
			for l := range in {
				if l.bad != nil {
					if err := r.setAside(*l.bad); err != nil {
						yield(nil, err)
						return
					}
				}
				if l.Volume == nil {
					continue
				}
				if bad, ok := r.quarantine.Get(l.Scan.ID); ok && l.Epoch >= bad.Until {
					l.Release() // read ahead before its loss in an earlier epoch was known
					continue
				}
				r.warn(l.Volume)
				if !yield(l.Volume, nil) {
					return
				}
			}
		}
	})
}

// admits says whether a scan's tags flow in an epoch, and whether they do so dry.
func (r *run) admits(scan *volume.Scan, epoch int) (flows, dry bool) {
	if bad, ok := r.quarantine.Get(scan.ID); ok {
		return epoch < bad.Until, true
	}
	left, begun := r.left[scan.ID]
	return true, epoch == r.start.Epoch && begun && left == 0
}

// lost is what becomes of a scan that can't be loaded: it has places in the epochs before this one, for it may have been
// read ahead of their end. Where its tags had entered this epoch's stream before the run was resumed, they still flow.
func (r *run) lost(a admission, bad *read.Bad, o read.Options) loaded {
	if _, begun := r.left[a.scan.ID]; !begun || a.epoch != r.start.Epoch {
		bad.Until = a.epoch
		return loaded{bad: bad}
	}
	bad.Until = a.epoch + 1
	return loaded{Volume: read.Dry(a.scan, a.epoch, o), bad: bad}
}

func wireTile(w *wiring, s *piece) {
	if w.job.exact() {
		return // infer takes whole volumes
	}
	o := *s.options.(*tile.Options)
	w.patches = pipe.Expand(w.volumes, s.label, func(_ context.Context, v *volume.Volume) iter.Seq2[*volume.Patch, error] {
		if w.back != nil && w.stopped() {
			v.Release()
			return func(func(*volume.Patch, error) bool) {}
		}
		return tile.Tiles(v, o, w.job.run.Seed, w.job.multiple())
	})
}

func wireShuffle(w *wiring, s *piece) {
	if w.job.exact() {
		return
	}
	o := *s.options.(*shuffle.Options)
	w.patches = pipe.Transform(w.patches, s.label, func(_ context.Context, in iter.Seq[*volume.Patch]) iter.Seq2[*volume.Patch, error] {
		return shuffle.Shuffle(in, o, w.job.run.Seed)
	})
}

func wireAugment(w *wiring, s *piece) {
	o := *s.options.(*augment.Options)
	w.patches = pipe.Map(w.patches, s.label, 1, func(_ context.Context, p *volume.Patch) (*volume.Patch, error) {
		augment.Apply(p, o, w.job.run.Seed, s.ordinal)
		return p, nil
	})
}

func wireBatch(w *wiring, s *piece) {
	if w.job.exact() {
		return
	}
	if w.back != nil {
		w.maker.Lost = w.loses
	}
	w.batches = pipe.Transform(w.patches, s.label, func(ctx context.Context, in iter.Seq[*volume.Patch]) iter.Seq2[*volume.Batch, error] {
		if w.job.ends().learn != nil {
			return w.maker.Batches(ctx, numbered(in))
		}
		return w.maker.Batches(ctx, sound(batch.From(in, w.start), new(error)))
	})
}

func wireTrain(w *wiring, s *piece) {
	w.loop.Wanted = w.wanted
	w.loop.Room = func(ctx context.Context) { w.await(ctx, w.parts.snapshot, "a checkpoint") }
	if w.job.ends().learn != nil {
		w.loop.Wanted = w.wantsCheckpoint
	}
	w.loop.Stopping = w.g.Stopping()
	w.snapshots = pipe.Restless(w.batches, s.label, w.learns)
}

// save writes a checkpoint, unless the run's folder isn't its own any more.
func (r *run) save(ctx context.Context, s *volume.Snapshot) (path string, err error) {
	gone := r.lock.Held()
	if gone == nil {
		if path, err = r.store.Save(ctx, s); err == nil {
			return path, nil
		}
		gone = r.lock.Held()
	}
	if gone != nil {
		err = fmt.Errorf("%s: %w", r.job.dirKey, gone)
	}
	return "", err
}

func wireCheckpoint(w *wiring, s *piece) {
	w.snapshots = pipe.Map(w.snapshots, s.label, 1, func(ctx context.Context, snap *volume.Snapshot) (*volume.Snapshot, error) {
		kept, err := snap, error(nil)
		if w.queues != nil {
			kept, err = w.ledgered(snap)
		}
		var path string
		if err == nil {
			err = w.patiently(func() (err error) {
				path, err = w.save(ctx, kept)
				return err
			})
		}
		if err == nil && w.queues != nil {
			err = w.queues.intake.Durable(ctx, snap.Tags)
		}
		if err != nil {
			snap.Release()
			return nil, err
		}
		w.saved(path, snap)
		return snap, nil
	})
}
