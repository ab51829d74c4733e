package flows

import (
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/queue"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/volume"
)

// wirePublish ends the part of the graph before a queue.
func wirePublish(w *wiring, s *piece) {
	if s.in == references {
		w.feed(s)
	} else {
		w.send(s)
	}
}

// wireSubscribe begins the part of the graph behind a queue.
func wireSubscribe(w *wiring, s *piece) {
	if s.out == references {
		w.fetch(s)
	} else {
		w.learn(s)
	}
}

// feed publishes scans.
func (w *wiring) feed(s *piece) {
	o := *s.options.(*queue.PublishOptions)
	sent := pipe.Map(w.references, s.label, 1, func(ctx context.Context, scan *queue.Scan) (struct{}, error) {
		ctx, release := w.unlessEnding(ctx)
		defer release()
		err := w.publish(ctx, scan, o)
		if err != nil && w.ending() {
			err = nil // not recorded, so it is published by the run that goes on
		}
		return struct{}{}, err
	})
	pipe.Discard(sent, "published")
}

func (r *run) publish(ctx context.Context, scan *queue.Scan, o queue.PublishOptions) error {
	q := r.queues
	if q.list.Has(scan) {
		return nil
	}
	var err error
	if scan.Digest, scan.Size, err = q.known.Of(ctx, scan.Path); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.log.Warn().Str("scan", scan.Name).Err(err).Msg("can't be read; a worker will make a dead letter of it")
		scan.Digest, scan.Size = queue.NoDigest, 0
	} else if o.Bytes {
		if err := q.feeder.Upload(ctx, scan.Path, scan.Digest); err != nil {
			return err
		}
		scan.Object, scan.Path = true, ""
	}
	if err := q.feeder.PublishScan(ctx, scan); err != nil {
		return err
	}
	return q.list.Add(scan)
}

// send publishes patches. At a stop, and when a trainer in this process has all it wants, what isn't sent is dropped: its scan
// goes back to the queue.
func (w *wiring) send(s *piece) {
	sent := pipe.Map(w.patches, s.label, senders, func(ctx context.Context, p *volume.Patch) (struct{}, error) {
		defer p.Release()
		ctx, release := w.unlessEnding(ctx)
		defer release()
		if w.ending() {
			return struct{}{}, nil
		}
		err := w.queues.work.Publish(ctx, p)
		if err != nil && w.ending() {
			err = nil
		}
		return struct{}{}, err
	})
	pipe.Discard(sent, "sent")
}

// ending says that the data ends before its end.
func (w *wiring) ending() bool { return closed(w.g.Ending()) }

// unlessEnding ends ctx when the data ends before its end, too.
func (w *wiring) unlessEnding(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		select {
		case <-w.g.Ending():
			cancel()
		case <-over:
		}
	}()
	return ctx, func() { close(over); cancel() }
}

// fetch takes scans for a worker.
func (w *wiring) fetch(s *piece) {
	o, work := *s.options.(*queue.SubscribeOptions), w.queues.work
	w.references = pipe.From(w.g, s.label, func(ctx context.Context, emit func(*queue.Scan) error) error {
		for {
			wait, cancel := ctx, context.CancelFunc(func() {})
			if o.Idle > 0 {
				wait, cancel = context.WithTimeout(ctx, time.Duration(o.Idle*float64(time.Second)))
			}
			scan, err := work.Next(wait)
			cancel()
			if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := emit(scan); err != nil {
				return err
			}
		}
	})
}

// placed is a scan from the queue whose file is here. One that can't be used has none; it was given up.
type placed struct {
	scan  *volume.Scan
	epoch int
	temp  string // a file to be removed once it is read
}

// wireReadQueued puts, before what wireRead puts, an operator that brings the files of scans from the queue here.
func wireReadQueued(w *wiring, s *piece) {
	o, r := *s.options.(*read.Options), w.run
	ahead := max(1, o.Ahead)
	fail := func(ctx context.Context, name string, epoch int, err error) error {
		if ctx.Err() != nil || w.stopped() {
			return nil // it goes back to the queue
		}
		r.log.Warn().Str("event", "quarantine").Str("scan", name).Int("epoch", epoch).Str("reason", err.Error()).Msg("scan given up")
		return r.queues.work.Fail(ctx, name, epoch, err)
	}
	here := pipe.Map(w.references, "fetch", ahead, func(ctx context.Context, scan *queue.Scan) (placed, error) {
		p, err := r.place(ctx, scan, o)
		if err != nil {
			return placed{}, fail(ctx, scan.Name, scan.Epoch, err)
		}
		return p, nil
	})
	admitted := pipe.Transform(here, "admit", func(ctx context.Context, in iter.Seq[placed]) iter.Seq2[admittedScan, error] {
		return func(yield func(admittedScan, error) bool) {
			for p := range in {
				if p.scan == nil {
					continue
				}
				r.await(ctx, read.Cost(p.scan, o), p.scan.ID)
				release, err := r.budget.Acquire(ctx, read.Cost(p.scan, o), p.scan.ID)
				if err != nil {
					p.remove()
					if err := fail(ctx, p.scan.ID, p.epoch, err); err != nil {
						yield(admittedScan{}, err)
						return
					}
					continue
				}
				if !yield(admittedScan{p, release}, nil) {
					return
				}
			}
		}
	})
	all := pipe.Map(admitted, s.label, ahead, func(ctx context.Context, a admittedScan) (loaded, error) {
		defer a.remove()
		v, err := read.Load(ctx, a.scan, a.epoch, o, a.release)
		if err != nil {
			return loaded{}, fail(ctx, a.scan.ID, a.epoch, err)
		}
		return loaded{Volume: v}, nil
	})
	w.volumes = pipe.Transform(all, "vet", func(_ context.Context, in iter.Seq[loaded]) iter.Seq2[*volume.Volume, error] {
		return func(yield func(*volume.Volume, error) bool) {
			for l := range in {
				if l.Volume == nil {
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

func (p placed) remove() {
	if p.temp != "" {
		_ = os.Remove(p.temp) // the next start of this run sweeps its folder
	}
}

// admittedScan is a scan that the budget has let in.
type admittedScan struct {
	placed
	release func()
}

func (a admittedScan) Release() { a.release(); a.remove() }

// place finds or fetches the file of a scan from the queue, and reads its header.
func (r *run) place(ctx context.Context, s *queue.Scan, o read.Options) (placed, error) {
	e := r.job.ends()
	roots := e.work.options.(*queue.SubscribeOptions).Roots
	if e.list != nil { // published by this process
		roots = append(r.folders(), roots...)
	}
	path, err := r.queues.worker.Place(ctx, s, roots, r.file("scans"), &r.queues.known)
	if err != nil {
		return placed{}, err
	}
	p := placed{epoch: s.Epoch}
	if s.Object {
		p.temp = path
	}
	o.Scans = []string{path}
	scans, bad, err := read.List(ctx, o)
	switch {
	case len(bad) > 0:
		err = errors.New(bad[0].Path + ": " + bad[0].Reason)
	case err == nil && len(scans) != 1:
		err = errors.New(path + ": isn't one scan")
	}
	if err != nil {
		p.remove()
		return placed{}, err
	}
	p.scan = scans[0]
	p.scan.ID, p.scan.Index = s.Name, s.Index // what randomness is keyed by, the publisher's
	return p, nil
}

// folders are those of the scans that this process publishes.
func (r *run) folders() []string {
	seen := map[string]bool{}
	var list []string
	for _, s := range r.data.all {
		if dir := filepath.Dir(s.Path); !seen[dir] {
			seen[dir] = true
			list = append(list, dir)
		}
	}
	if o := r.job.ends().list.options.(*queue.ListOptions); o.Watch != "" {
		list = append(list, o.Watch)
	}
	return list
}

// learn takes patches for the trainer.
func (w *wiring) learn(s *piece) {
	in := w.queues.intake
	w.patches = pipe.From(w.g, s.label, func(ctx context.Context, emit func(*volume.Patch) error) error {
		for {
			p, err := in.Next(ctx)
			if errors.Is(err, io.EOF) {
				w.g.Done() // whoever publishes or prepares here has no more to do
				return nil
			}
			if err != nil {
				return err
			}
			if err := emit(p.Element(nil)); err != nil {
				return err
			}
		}
	})
}

// numbered gives patches from a queue their places in the order in which they come to the batches.
func numbered(in iter.Seq[*volume.Patch]) iter.Seq[*volume.Patch] {
	return func(yield func(*volume.Patch) bool) {
		next := map[int]int{}
		for p := range in {
			p.Seq = next[p.Epoch]
			next[p.Epoch]++
			if !yield(p) {
				return
			}
		}
	}
}
