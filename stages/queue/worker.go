package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/flowrun/flowrun/stages/volume"
)

// Work is a worker's end of the queue: scans come out, their patches go in. A scan is acknowledged when all its patches are
// stored. It is safe for concurrent use.
type Work struct {
	q *Queue
	c *consumer

	mu   sync.Mutex
	open map[task]*job
}

// task is a scan in an epoch.
type task struct {
	name  string
	epoch int
}

type job struct {
	once   string
	scan   Scan
	stored map[int]bool // tiles
}

// Work begins to take scans, so many ahead.
func (q *Queue) Work(room int) (*Work, error) {
	c, err := q.consume(q.names.scanStream(), prepName, room)
	if err != nil {
		return nil, err
	}
	return &Work{q: q, c: c, open: map[task]*job{}}, nil
}

// Next gives the next scan. Messages that aren't one become dead letters, and so does a scan that was given out too often:
// it may be what ends the workers.
func (w *Work) Next(ctx context.Context) (*Scan, error) {
	for said := time.Now(); ; {
		wait, cancel := context.WithTimeout(ctx, idleWords)
		d, err := w.c.receive(wait)
		cancel()
		if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			if time.Since(said) > 10*idleWords {
				w.q.log(Event{false, "queue: waiting for scans"})
				said = time.Now()
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		s, err := decodeScan(d.headers, d.data)
		if err != nil {
			letter := Dead{Kind: deadScan, ID: d.headers.Get(idHeader), Once: d.once, Reason: err.Error()}
			if err := w.q.bury(ctx, letter); err != nil {
				return nil, err
			}
			w.settle(ctx, d.once, termWord)
			continue
		}
		if !w.begin(s, d.once) { // another attempt at it is being prepared here
			w.c.later(d.once)
			continue
		}
		if d.tries > w.q.o.Tries {
			why := fmt.Errorf("given out %d times and never finished: does it end its workers? queue.tries is %d", d.tries-1, w.q.o.Tries)
			if err := w.Fail(ctx, s.Name, s.Epoch, why); err != nil {
				return nil, err
			}
			continue
		}
		return s, nil
	}
}

func (w *Work) begin(s *Scan, once string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := task{s.Name, s.Epoch}
	if w.open[at] != nil {
		return false
	}
	w.open[at] = &job{once: once, scan: *s, stored: map[int]bool{}}
	return true
}

// Publish sends a patch of a scan that Next gave, and returns when it is stored; with the last one the scan is
// acknowledged. It doesn't release p.
func (w *Work) Publish(ctx context.Context, p *volume.Patch) error {
	at := task{p.Scan, p.Epoch}
	w.mu.Lock()
	j := w.open[at]
	w.mu.Unlock()
	if j == nil {
		return fmt.Errorf("%s: isn't of a scan from the queue", p.Tag)
	}
	m, err := Cut(p, w.q.names.run, j.scan)
	if err != nil {
		return err
	}
	if err := w.q.PublishPatch(ctx, m); err != nil {
		return err
	}
	w.mu.Lock()
	j.stored[p.Tile] = true
	last := len(j.stored) == p.Tiles
	if last {
		delete(w.open, at)
	}
	w.mu.Unlock()
	if last {
		w.settle(ctx, j.once, ackWord)
	}
	return nil
}

// Fail gives a scan up: a dead letter says why, and the trainer that its epoch ends without it.
func (w *Work) Fail(ctx context.Context, name string, epoch int, why error) error {
	at := task{name, epoch}
	w.mu.Lock()
	j := w.open[at]
	w.mu.Unlock()
	if j == nil {
		return fmt.Errorf("%s: isn't a scan from the queue", name)
	}
	id := j.scan.ID(w.q.names.run)
	if err := w.q.bury(ctx, Dead{Kind: deadScan, ID: id.String(), Once: j.once, Reason: why.Error(), Source: &j.scan}); err != nil {
		return err
	}
	if err := w.q.PublishPatch(ctx, &Patch{Run: w.q.names.run, Source: j.scan, Void: why.Error()}); err != nil {
		return err
	}
	w.mu.Lock()
	delete(w.open, at)
	w.mu.Unlock()
	w.settle(ctx, j.once, termWord)
	return nil
}

// settle answers for a scan. Unconfirmed, it comes again: its patches are stored once all the same.
func (w *Work) settle(ctx context.Context, once string, word []byte) {
	if err := w.c.settle(ctx, once, word); err != nil && ctx.Err() == nil {
		w.q.log(Event{true, "queue: " + once + ": " + err.Error()})
	}
}

// HandBack gives back all scans that aren't finished, to come again: for whoever was preparing them has been stopped.
func (w *Work) HandBack() {
	w.mu.Lock()
	clear(w.open)
	w.mu.Unlock()
	w.c.empty()
	w.c.handBack()
}

// Held is how many scans are in hand.
func (w *Work) Held() int { return w.c.count() }

// Close ends taking. Scans that aren't finished go back to the queue.
func (w *Work) Close() { w.c.close() }
