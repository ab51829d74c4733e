package flows

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flowrun/flowrun/configs"
	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/queue"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

// queues are a run's ends of its queue.
type queues struct {
	server  *queue.Embedded
	open    []*queue.Queue
	feeder  *queue.Queue
	worker  *queue.Queue
	trainer *queue.Queue
	work    *queue.Work
	intake  *queue.Intake
	takes   atomic.Pointer[queue.Intake] // the same, for those who ask who is connected
	list    *queue.Published
	patches atomic.Pointer[queue.Stream] // what the server last said
	looking sync.WaitGroup
	stop    func()
	reads   bool // scans are read here, too
	known   queue.Digests
}

// defaultReading is read's options with no key given.
func defaultReading() *read.Options {
	o := new(read.Options)
	if err := configs.SetDefaults(o); err != nil {
		panic(err) // a mistake in the tags, which configs' tests find
	}
	return o
}

// openQueue starts or reaches the server and opens the run's ends. snap is what the run goes on from.
func (r *run) openQueue(ctx context.Context, snap *volume.Snapshot) error {
	j := r.job
	if !j.queued() {
		return nil
	}
	q, e := new(queues), j.ends()
	_, q.reads = option[read.Options](j)
	r.queues = q // from here on close gives it back
	if !j.queue.External() {
		var err error
		if q.server, err = queue.StartServer(j.queue.Server, r.file("queue"), r.tell); err != nil {
			return configErrorf("queue.%w", err)
		}
		if a := q.server.Address(); a != "" {
			r.log.Info().Str("event", "queue").Str("address", a).Msg("the embedded NATS server listens")
		}
	}
	if e.learn != nil {
		if err := r.openTrainer(ctx, snap); err != nil {
			return queueError(err)
		}
	}
	if e.work != nil {
		var err error
		if q.worker, err = r.connect(ctx, queue.Worker); err == nil {
			q.work, err = q.worker.Work(1)
		}
		if err == nil {
			err = q.worker.Announce(ctx, q.work.Held)
		}
		if err != nil {
			return queueError(err)
		}
	}
	if e.feed != nil {
		var err error
		if q.feeder, err = r.connect(ctx, queue.Publisher); err == nil {
			err = q.feeder.Announce(ctx, nil)
		}
		if err == nil && e.feed.options.(*queue.PublishOptions).Bytes {
			var n int
			if n, err = q.feeder.Tidy(ctx, time.Hour); n > 0 {
				r.log.Info().Str("event", "queue").Int("objects", n).Msg("removed what publishers left half sent")
			}
		}
		if err == nil {
			q.list, err = queue.OpenPublished(r.file("published.jsonl"))
		}
		if err != nil {
			return queueError(err)
		}
	}
	return nil
}

// queueError places what a server refuses from the start with the configuration.
func queueError(err error) error {
	if errors.Is(err, queue.ErrRefused) || errors.Is(err, queue.ErrTLS) || errors.Is(err, queue.ErrFeature) || errors.Is(err, queue.ErrTaken) {
		return configErrorf("queue: %w", err)
	}
	return fmt.Errorf("queue: %w", err)
}

func (r *run) connect(ctx context.Context, role string) (*queue.Queue, error) {
	c, err := queue.Open(ctx, queue.Config{Options: r.job.queue, Embedded: r.queues.server, Log: r.tell}, role)
	if err != nil {
		return nil, err
	}
	r.queues.open = append(r.queues.open, c)
	r.log.Info().Str("event", "queue").Str("role", role).Str("server", c.Server()).Msg("connected to the queue " + c.Name())
	return c, nil
}

// tell logs what happens to a connection.
func (r *run) tell(e queue.Event) {
	if e.Warn {
		r.log.Warn().Str("event", "queue").Msg(e.Text)
		return
	}
	r.log.Info().Str("event", "queue").Msg(e.Text)
}

// openTrainer connects the trainer and opens its end.
func (r *run) openTrainer(ctx context.Context, snap *volume.Snapshot) error {
	c, err := r.connect(ctx, queue.Trainer)
	if err != nil {
		return err
	}
	r.queues.trainer = c
	if err := c.Announce(ctx, func() int {
		if in := r.queues.takes.Load(); in != nil {
			return in.Held()
		}
		return 0
	}); err != nil {
		return err
	}
	if err := c.Ensure(ctx, r.job.bounds()); err != nil {
		return err
	}
	spent, err := r.spent(snap)
	if err != nil {
		return err
	}
	if err := r.openIntake(snap, spent); err != nil {
		return err
	}
	looks, stop := context.WithCancel(context.WithoutCancel(ctx)) // close ends it
	r.queues.stop = stop
	r.queues.looking.Go(func() { r.queues.look(looks) })
	return nil
}

// openIntake begins to take patches: with the ledger of the checkpoint that the run goes on from. spent is what later
// checkpoints had.
func (r *run) openIntake(snap *volume.Snapshot, spent *queue.Ledger) error {
	ledger := queue.NewLedger()
	if snap != nil {
		var err error
		if ledger, err = queue.ParseLedger([]byte(snap.Meta[ledgerKey]), r.job.queue.Name); err != nil {
			return configErrorf("%s: %w; choose another run.dir (train.init takes over its weights)", r.last, err)
		}
	}
	voids, err := queue.OpenVoids(r.file("void.jsonl"))
	if err != nil {
		return err
	}
	epochs := 0
	if tr, ok := option[train.Options](r.job); ok && r.epochs != math.MaxInt {
		epochs = tr.Epochs
	}
	r.queues.intake, err = r.queues.trainer.Intake(queue.IntakeOptions{Ledger: ledger, Spent: spent, Voids: voids, Epochs: epochs, Check: r.suits, Bad: r.lacks})
	r.queues.takes.Store(r.queues.intake)
	return err
}

// spent is what checkpoints later than a snapshot had: damaged ones, and those that were set aside. Their patches were
// acknowledged.
func (r *run) spent(snap *volume.Snapshot) (*queue.Ledger, error) {
	all := queue.NewLedger()
	files, err := filepath.Glob(r.file("checkpoints", "step-*.safetensors*"))
	if err != nil {
		return nil, err
	}
	for _, path := range files {
		info, err := checkpoint.Peek(path)
		if err != nil || snap != nil && info.Step <= snap.Step {
			continue
		}
		l, err := queue.ParseLedger([]byte(info.Meta[ledgerKey]), r.job.queue.Name)
		if err != nil {
			continue // of a run before the queue
		}
		if err := all.Merge(l); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return all, nil
}

// rewind goes back to an older snapshot, or to the beginning: what was trained since is asked for again.
func (r *run) rewind(snap *volume.Snapshot) error {
	if r.queues == nil || r.queues.intake == nil {
		return nil
	}
	if r.queues.work != nil { // its stages ended with the graph
		r.queues.work.HandBack()
	}
	spent := r.queues.intake.Durably()
	r.queues.intake.Close()
	return r.openIntake(snap, spent)
}

// ledgerKey is the ledger's name in a checkpoint's metadata.
const ledgerKey = "ledger"

// suits refuses patches that another configuration made than this one expects.
func (r *run) suits(p *queue.Patch) error {
	if want := r.job.patch(); p.Size != want {
		return configErrorf("patches in the queue are %s, but this flow wants %s: set subscribe.patch, or the workers' tile.patch", list(p.Size), list(want))
	}
	if want := r.job.reading().WindowHU; p.Window != want {
		return configErrorf("patches in the queue are read in %v HU, but this flow wants %v: set subscribe.window_hu, or the workers' read.window_hu", p.Window, want)
	}
	return nil
}

// lacks is told of each patch or scan that an epoch ends without.
func (r *run) lacks(v queue.Void) error {
	r.log.Warn().Str("event", "void").Str("scan", v.Scan).Int("epoch", v.Epoch).Int("tile", v.Tile).Str("reason", v.Reason).
		Msg("the epoch ends without it; flowrun dead lists it")
	o, _ := r.job.subscribed()
	if r.queues.intake == nil || v.Scans == 0 {
		return nil
	}
	n, of := r.queues.intake.Voids(v.Epoch)
	if float64(n) > math.Ceil(o.BadShare*float64(of)-1e-9) {
		return dataErrorf("%d of the %d scans of epoch %d give no patches, more than subscribe.bad_share %v allows; the last: %s: %s", n, of, v.Epoch, o.BadShare, v.Scan, v.Reason)
	}
	return nil
}

// wantsCheckpoint says whether the patches of another batch might not fit beside those that were trained since the last
// checkpoint: without one, nothing more would come.
func (r *run) wantsCheckpoint(trained int) string {
	need, err := r.job.waiting()
	if err == nil && trained+need > r.job.bounds().Held {
		return "queue"
	}
	return r.wanted(trained)
}

// ledgered is a snapshot that also says which patches it holds.
func (r *run) ledgered(s *volume.Snapshot) (*volume.Snapshot, error) {
	text, err := r.queues.intake.Ledger(s.Tags)
	if err != nil {
		return nil, err
	}
	with := *s
	with.Meta = map[string]string{ledgerKey: text}
	for k, v := range s.Meta {
		with.Meta[k] = v
	}
	with.Free = nil // s gives back what it holds
	return &with, nil
}

// look keeps what the server says of the patches, for metrics, until ctx ends.
func (q *queues) look(ctx context.Context) {
	tick := time.NewTicker(lookAtQueue)
	defer tick.Stop()
	for {
		if s, err := q.trainer.Patches(ctx); err == nil { // else the last that was known
			q.patches.Store(&s)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

const lookAtQueue = 5 * time.Second

// reading is what metrics say of the queue.
func (q *queues) reading() *observe.Queue {
	if q == nil {
		return nil
	}
	r := &observe.Queue{Held: map[string]int{}}
	for _, c := range q.open {
		r.Waiting = r.Waiting || c.Waiting() != ""
	}
	if in := q.takes.Load(); in != nil {
		r.Held[queue.Trainer] = in.Held()
	}
	if q.work != nil {
		r.Held[queue.Worker] = q.work.Held()
	}
	if s := q.patches.Load(); s != nil {
		r.Known, r.Patches, r.Given, r.Bytes, r.Limit = true, int(s.Waiting), s.Given, int64(s.Bytes), s.MaxBytes
	}
	return r
}

// close gives back what is held, and ends the server.
func (q *queues) close() {
	if q.stop != nil {
		q.stop()
	}
	q.looking.Wait()
	if q.intake != nil {
		q.intake.Close()
	}
	if q.work != nil {
		q.work.Close()
	}
	for _, c := range q.open {
		c.Close()
	}
	if q.server != nil {
		q.server.Stop()
	}
}

// remoteData is the data of a job whose scans come from elsewhere: those that it holds out.
func (j *Job) remoteData(ctx context.Context) (*data, error) {
	d := &data{seed: j.run.Seed, tiles: func(*volume.Scan) int { return 0 }}
	o, ok := j.subscribed()
	if !ok || len(o.HeldOut) == 0 {
		return d, nil
	}
	r := *j.reading()
	r.Scans = o.HeldOut
	scans, bad, err := read.List(ctx, r)
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, dataErrorf("subscribe.held_out: %w", err)
	}
	d.all, d.held, d.bad = scans, scans, bad
	return d, nil
}
