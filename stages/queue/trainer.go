package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/flowrun/flowrun/stages/volume"
)

// IntakeOptions are what a trainer asks of an Intake.
type IntakeOptions struct {
	Ledger *Ledger // what the checkpoint that the run goes on from has; nil for a new run
	Spent  *Ledger // what later checkpoints had, which the run doesn't go on from: it is asked for again; may be nil
	Voids  *Voids
	Epochs int                // the run ends after these; 0: when the publisher's do
	Check  func(*Patch) error // refuses a patch that this flow can't use: an error ends the run, and the patch stays in the queue
	Bad    func(Void) error   // told of each patch or scan that is given up; an error ends the run
}

// Intake is the trainer's end of the queue. It gives each patch once, and acknowledges it when a checkpoint holds it.
type Intake struct {
	q    *Queue
	c    *consumer
	o    IntakeOptions
	last time.Time // a patch was given

	mu     sync.Mutex
	ledger *Ledger       // durable
	seen   *Ledger       // that, what was given since, and what is void
	given  map[ID]string // not durable yet: the message's identity
	epochs int           // of the publisher; 0: not known
	swept  time.Time

	asking     sync.WaitGroup
	stopAsking context.CancelFunc
}

// Intake begins to take patches. Ensure has made the streams.
func (q *Queue) Intake(o IntakeOptions) (*Intake, error) {
	if o.Ledger == nil {
		o.Ledger = NewLedger()
	}
	t := &Intake{q: q, o: o, ledger: o.Ledger, seen: o.Ledger.clone(), given: map[ID]string{}, last: time.Now()}
	for _, v := range o.Voids.All() {
		if err := t.empty(v); err != nil {
			return nil, err
		}
	}
	var err error
	if t.c, err = q.consume(q.names.patchStream(), trainName, ahead); err != nil {
		return nil, err
	}
	if o.Spent != nil {
		t.ask(o.Spent.lost(t.ledger))
	}
	return t, nil
}

// ask asks for scans again of which patches were acknowledged that no checkpoint has any more. It doesn't wait for room in
// the queue: that may come only when patches are taken.
func (t *Intake) ask(lost []Scan) {
	if len(lost) == 0 {
		return
	}
	t.q.log(Event{true, fmt.Sprintf("queue: %d scans are asked for again: a checkpoint that isn't gone on from had patches of them, the first %s of epoch %d",
		len(lost), lost[0].Name, lost[0].Epoch)})
	ctx, cancel := context.WithCancel(t.q.ctx)
	t.stopAsking = cancel
	t.asking.Go(func() {
		for _, s := range lost {
			s.Attempt++
			t.ledger.learn(s)
			if err := t.q.PublishScan(ctx, &s); err != nil {
				if ctx.Err() == nil {
					t.q.log(Event{true, "queue: " + s.Name + " can't be asked for again: " + err.Error()})
				}
				return
			}
		}
	})
}

// empty notes in seen what an epoch ends without, or after all doesn't.
func (t *Intake) empty(v Void) error {
	id := ID{Run: t.q.names.run, Epoch: v.Epoch, Scan: Key(v.Scan), Tile: v.Tile}
	if v.Tile >= 0 {
		return t.seen.Mark(id, v.Tiles, v.Scans)
	}
	t.seen.void(v.Epoch, id.Scan, v.Scans, v.Reason != "")
	if v.Reason != "" {
		return nil
	}
	for _, old := range t.o.Voids.All() {
		if old.Epoch != v.Epoch || old.Scan != v.Scan || old.Tile < 0 || old.Attempt >= v.Attempt {
			continue
		}
		id.Tile = old.Tile
		t.mu.Lock()
		_, given := t.given[id]
		t.mu.Unlock()
		if !given && !t.ledger.Has(id) {
			t.seen.unmark(id)
		}
	}
	return nil
}

// Whole says that every patch of every epoch was given, or is void.
func (t *Intake) Whole() bool {
	t.mu.Lock()
	n := t.epochs
	t.mu.Unlock()
	if t.o.Epochs > 0 && (n == 0 || t.o.Epochs < n) {
		n = t.o.Epochs
	}
	for e := range n {
		if !t.seen.Whole(e) {
			return false
		}
	}
	return n > 0
}

// idleWords is how long nothing has to come until people are told what is waited for.
const idleWords = 30 * time.Second

// Next gives the next patch, or io.EOF when all epochs are whole. What can't be used becomes a dead letter.
func (t *Intake) Next(ctx context.Context) (*Patch, error) {
	for !t.Whole() {
		wait, cancel := context.WithTimeout(ctx, time.Until(t.last.Add(idleWords)))
		d, err := t.c.receive(wait)
		cancel()
		switch {
		case err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
			t.last = time.Now()
			t.q.log(Event{false, "queue: waiting for patches: " + t.lacks()})
			continue
		case err != nil:
			return nil, err
		}
		t.last = time.Now()
		p, err := t.take(ctx, d)
		if err != nil {
			return nil, err
		}
		if p != nil {
			return p, nil
		}
	}
	return nil, io.EOF
}

// lacks says how far the first epoch is that isn't whole.
func (t *Intake) lacks() string {
	for e := 0; ; e++ {
		if t.seen.Whole(e) {
			continue
		}
		done, known := t.seen.Len(e)
		if known == 0 {
			return fmt.Sprintf("none of epoch %d has come; are publishers and workers running?", e)
		}
		return fmt.Sprintf("epoch %d has %d of %d patches of the scans that it knows; are workers running?", e, done, known)
	}
}

// take gives the patch of a delivery, or nil where it isn't to be trained.
func (t *Intake) take(ctx context.Context, d *delivery) (*Patch, error) {
	p, err := decodePatch(d.headers, d.data)
	if err == nil && p.Run != t.q.names.run {
		err = fmt.Errorf("%s: is of another run", p.ID())
	}
	if err != nil {
		return nil, t.dead(ctx, d, p, err)
	}
	t.learn(p)
	if p.Void != "" {
		return nil, t.void(ctx, d, p)
	}
	if err := t.o.Check(p); err != nil {
		return nil, err
	}
	id := p.ID()
	if err := t.revive(p); err != nil {
		return nil, err
	}
	t.mu.Lock()
	_, given := t.given[id]
	done := t.ledger.Has(id)
	t.mu.Unlock()
	switch {
	case given || done: // again: it is trained, or being trained; or another attempt at it
		t.forget(ctx, d)
		return nil, nil
	case t.o.Voids.attempt(id.Epoch, p.Source.Name, id.Tile) >= p.Source.Attempt:
		t.forget(ctx, d)
		return nil, nil
	}
	if err := t.ledger.expect(id, p.Tiles, p.Source.Scans); err != nil {
		return nil, err
	}
	if err := t.seen.Mark(id, p.Tiles, p.Source.Scans); err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.given[id] = d.once
	t.mu.Unlock()
	return p, nil
}

// learn keeps what a message says of the run.
func (t *Intake) learn(p *Patch) {
	t.ledger.learn(p.Source)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.epochs = max(t.epochs, p.Source.Epochs)
}

// forget acknowledges what isn't needed. Unconfirmed, it comes again and is forgotten again.
func (t *Intake) forget(ctx context.Context, d *delivery) {
	if err := t.c.settle(ctx, d.once, ackWord); err != nil && ctx.Err() == nil {
		t.q.log(Event{true, "queue: " + d.once + ": " + err.Error()})
	}
}

// void notes that a scan gives no patches in its epoch.
func (t *Intake) void(ctx context.Context, d *delivery, p *Patch) error {
	if t.o.Voids.attempt(p.Source.Epoch, p.Source.Name, -1) < p.Source.Attempt {
		if err := t.giveUp(Void{Epoch: p.Source.Epoch, Scan: p.Source.Name, Tile: -1, Scans: p.Source.Scans, Attempt: p.Source.Attempt, Reason: p.Void}); err != nil {
			return err
		}
	}
	t.forget(ctx, d)
	return nil
}

// revive takes back what is void of a scan: it was asked for again, and its patches come.
func (t *Intake) revive(p *Patch) error {
	if !t.o.Voids.revives(p.Source.Epoch, p.Source.Name, p.Source.Attempt) {
		return nil
	}
	v := Void{Epoch: p.Source.Epoch, Scan: p.Source.Name, Tile: -1, Scans: p.Source.Scans, Attempt: p.Source.Attempt}
	if err := t.o.Voids.add(v); err != nil {
		return err
	}
	return t.empty(v)
}

func (t *Intake) giveUp(v Void) error {
	if err := t.o.Voids.add(v); err != nil {
		return err
	}
	if err := t.empty(v); err != nil {
		return err
	}
	if t.o.Bad == nil {
		return nil
	}
	return t.o.Bad(v)
}

// Voids is how many scans of an epoch give nothing, of how many that it has.
func (t *Intake) Voids(epoch int) (n, of int) { return t.seen.voids(epoch) }

// dead makes a dead letter of a message. p, if it isn't nil, says which patch it was.
func (t *Intake) dead(ctx context.Context, d *delivery, p *Patch, why error) error {
	letter := Dead{Kind: deadPatch, ID: d.headers.Get(idHeader), Once: d.once, Reason: why.Error()}
	if p != nil {
		letter.Source = &p.Source
	}
	if err := t.q.bury(ctx, letter); err != nil {
		return err
	}
	if p != nil && p.Tiles > 0 && !t.ledger.Has(p.ID()) {
		t.learn(p)
		err := t.giveUp(Void{Epoch: p.Source.Epoch, Scan: p.Source.Name, Tile: p.Tile, Tiles: p.Tiles, Scans: p.Source.Scans, Attempt: p.Source.Attempt, Reason: letter.Reason})
		if err != nil {
			return err
		}
	}
	if err := t.c.settle(ctx, d.once, termWord); err != nil && ctx.Err() == nil {
		t.q.log(Event{true, "queue: " + d.once + ": " + err.Error()})
	}
	return nil
}

// Held is how many patches were given or wait to be, and aren't in a durable checkpoint.
func (t *Intake) Held() int { return t.c.count() }

// Ledger is what a checkpoint has to hold that these patches were trained into: everything before them, and them.
func (t *Intake) Ledger(tags []volume.Tag) (string, error) {
	next := t.ledger.clone()
	for _, tag := range tags {
		if err := next.Mark(t.id(tag), tag.Tiles, 0); err != nil {
			return "", err
		}
	}
	text, err := next.Encode(t.q.names.run)
	return string(text), err
}

func (t *Intake) id(tag volume.Tag) ID {
	return ID{Run: t.q.names.run, Epoch: tag.Epoch, Scan: Key(tag.Scan), Tile: tag.Tile}
}

// ackers is how many acks are asked to be confirmed at a time.
const ackers = 16

// Durable is told that a checkpoint holds these patches: they are acknowledged. What the server doesn't confirm comes again,
// and is forgotten then.
func (t *Intake) Durable(ctx context.Context, tags []volume.Tag) error {
	work := make(chan string)
	var group sync.WaitGroup
	var lost sync.Map
	for range min(ackers, len(tags)) {
		group.Go(func() {
			for once := range work {
				if err := t.c.settle(ctx, once, ackWord); err != nil {
					lost.Store(once, err)
				}
			}
		})
	}
	err := t.marked(tags, work)
	close(work)
	group.Wait()
	n := 0
	lost.Range(func(any, any) bool { n++; return true })
	if n > 0 && ctx.Err() == nil && t.q.ctx.Err() == nil {
		t.q.log(Event{true, fmt.Sprintf("queue: %d of %d acknowledgements weren't confirmed; what comes again is known", n, len(tags))})
	}
	t.mu.Lock()
	due := time.Since(t.swept) > sweepEvery
	t.mu.Unlock()
	if err == nil && due && ctx.Err() == nil {
		t.mu.Lock()
		t.swept = time.Now()
		t.mu.Unlock()
		if n, err := t.q.Sweep(ctx); err == nil && n > 0 {
			t.q.log(Event{false, fmt.Sprintf("queue: %d acknowledged patches that the server had kept were removed", n)})
		}
	}
	return err
}

// marked enters tags into the durable ledger and passes on what is to be acknowledged.
func (t *Intake) marked(tags []volume.Tag, work chan<- string) error {
	for _, tag := range tags {
		id := t.id(tag)
		if err := t.ledger.Mark(id, tag.Tiles, 0); err != nil {
			return err
		}
		t.mu.Lock()
		once, ok := t.given[id]
		delete(t.given, id)
		t.mu.Unlock()
		if ok {
			work <- once
		}
	}
	return nil
}

// Close ends taking. What isn't durable goes back to the queue.
func (t *Intake) Close() {
	if t.stopAsking != nil {
		t.stopAsking()
	}
	t.asking.Wait()
	t.c.close()
}

// Durably is what checkpoints have until now.
func (t *Intake) Durably() *Ledger { return t.ledger.clone() }

// State is what a process says of itself to people who look at the queue.
type State struct {
	Role    string    `json:"role"`
	Who     string    `json:"who"` // host:pid
	ID      string    `json:"id"`  // of this connection
	Since   time.Time `json:"since"`
	Held    int       `json:"held"`              // messages in hand
	Waiting string    `json:"waiting,omitempty"` // what it waits for
}

func (s State) encode() []byte {
	b, _ := json.Marshal(s) // strings and numbers always encode
	return b
}
