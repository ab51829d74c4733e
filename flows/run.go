package flows

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/codes"
	"github.com/flowrun/flowrun/stages/files"
	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
	"github.com/flowrun/flowrun/stages/write"
)

// UI is where a verb talks to people.
type UI struct {
	Out, Err io.Writer
	Terminal bool   // Err is one
	Quiet    bool   // only warnings and errors on Err
	Begun    func() // is told when the graph begins, before which a stop has nothing to save; may be nil
}

// run is one run of a job, from the lock on its folder to its outcome.
type run struct {
	job        *Job
	log        zerolog.Logger
	data       *data
	quarantine *read.Quarantine
	budget     *pipe.Budget
	maker      *batch.Maker
	engine     gpu.Engine
	session    *vqgan.Session
	loop       *train.Loop
	store      *checkpoint.Store
	metrics    *observe.Metrics
	progress   *observe.Progress
	validator  *validator
	watch      *watch
	parts      memory
	back       *back     // with a trained model, on the way back
	queues     *queues   // nil without publish and subscribe
	out        io.Writer // where results go that people asked for

	began  time.Time
	behind lateness
	before time.Duration // spent by the processes that the run had before this one
	start  volume.Cursor
	epochs int            // the source ends before this one
	left   map[string]int // patches left of the scans that start's epoch has begun
	warned map[string]bool
	lock   *observe.RunLock
	last   string             // the newest checkpoint's path
	sample string             // the newest picture's path
	values map[string]float64 // of the newest validation

	available func() (free, total int64) // memory, in bytes
	short     atomic.Bool                // memory has become short, and no checkpoint was written since

	learnt  atomic.Int64 // the step at which the train stage ended; -1 while it goes on
	durable atomic.Int64 // the newest checkpoint's step

	stopping, hard <-chan struct{} // closed at a soft and at a hard stop; nil before the graph runs

	bound      bottleneck
	metricsErr error
}

// Run carries the job out. soft asks it to finish its step, write a checkpoint and end with ErrInterrupted; cancelling
// ctx ends it at once.
func (j *Job) Run(ctx context.Context, soft <-chan struct{}, ui UI) (err error) {
	if err := j.checkDevices(); err != nil {
		return err
	}
	if err := os.MkdirAll(j.run.Dir, 0o755); err != nil {
		return j.unwritable(err)
	}
	lock, err := observe.LockRun(j.run.Dir)
	if err != nil {
		return j.unwritable(err)
	}
	defer lock.Unlock()
	r := &run{job: j, lock: lock, out: ui.Out, epochs: 1, warned: map[string]bool{}, began: time.Now(), available: observe.Available}
	r.progress = observe.NewProgress(ui.Err, observe.ProgressOptions{Terminal: ui.Terminal, Quiet: ui.Quiet})
	defer func() { _ = r.progress.Close() }()
	var closeLog func() error
	incidents, err := observe.ReadIncidents(j.run.Dir)
	if err != nil {
		return j.unwritable(err)
	}
	r.log, closeLog, err = observe.Logger(observe.LogOptions{
		Dir: j.run.Dir, Size: j.observe.LogSize, Stderr: r.progress, Terminal: ui.Terminal, Quiet: ui.Quiet, Also: incidents})
	if err != nil {
		return j.unwritable(err)
	}
	defer func() {
		if err != nil && !errors.Is(err, ErrInterrupted) {
			r.failed(err)
		}
		err = errors.Join(err, closeLog())
	}()
	defer func() { err = errors.Join(err, r.close()) }()
	if r.watch, err = newWatch(ctx, r, incidents); err != nil {
		return err
	}
	defer func() { r.watch.end(ctx, err) }()
	if err := r.watch.serve(); err != nil {
		return err
	}
	if err := r.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%w before it began; the same command goes on", ErrInterrupted)
		}
		err, _ = cured(err)
		return err
	}
	if ui.Begun != nil {
		ui.Begun()
	}
	err, failed := cured(r.carryOut(ctx, soft))
	if failed {
		err = fmt.Errorf("%w; %s", err, r.lastCheckpoint())
	}
	return err
}

// failed logs how the run ended: of a panic, the log alone has where it was.
func (r *run) failed(err error) {
	e := r.log.Error().Str("event", "failed").Err(err).Int("exit", ExitCode(err))
	if p, ok := errors.AsType[*pipe.PanicError](err); ok {
		e = e.Bytes("stack", p.Stack)
	}
	e.Msg("failed")
}

// unwritable is an error of the run's folder.
func (j *Job) unwritable(err error) error {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		return configErrorf("%s: %s: %w; choose a folder that can be written to", j.dirKey, j.run.Dir, path.Err)
	}
	return configErrorf("%s: %w", j.dirKey, err)
}

// file is a path in the run's folder.
func (r *run) file(name ...string) string {
	return filepath.Join(append([]string{r.job.run.Dir}, name...)...)
}

// prepare brings the run to where its first (or next) step can be taken.
func (r *run) prepare(ctx context.Context) error {
	snap, err := r.resume()
	if err != nil {
		return err
	}
	if err := r.openQuarantine(); err != nil {
		return err
	}
	if err := r.openData(ctx, snap); err != nil {
		return err
	}
	if err := r.openModels(snap); err != nil {
		return err
	}
	if err := r.openQueue(ctx, snap); err != nil {
		return err
	}
	r.limitMemory(os.Getenv)
	if r.left, err = r.job.replay(r.data, r.quarantine, r.start); err != nil {
		return err
	}
	if r.loop != nil {
		if r.metrics, err = observe.OpenMetrics(r.job.run.Dir, r.loop.Step); err != nil {
			return err
		}
	}
	err = files.Write(r.file("config.yaml"), func(w io.Writer) error {
		_, err := w.Write(r.job.resolved)
		return err
	})
	if err != nil {
		return err
	}
	e := r.log.Info().Str("event", "start").Str("memory", r.parts.String())
	if r.engine != nil {
		e = e.Str("device", r.engine.Name())
	}
	if r.loop != nil {
		e = e.Int("train_scans", len(r.data.train)).Int("held_out_scans", len(r.data.held)).Int("patches_per_epoch", r.data.perEpoch())
	} else {
		e = e.Int("scans", len(r.data.all))
	}
	e.Msg("ready")
	return nil
}

// openData finds the scans, or codes, and where in them a snapshot goes on.
func (r *run) openData(ctx context.Context, snap *volume.Snapshot) (err error) {
	j := r.job
	l, loads := option[codes.LoadOptions](j)
	_, trains := option[train.Options](j)
	switch {
	case j.remote():
		r.data, err = j.remoteData(ctx)
	case snap != nil && j.queued():
		r.data, err = r.thaw(ctx, snap) // the ledger says which patches are left
	case snap != nil:
		r.start = snap.Cursor
		r.data, err = r.thaw(ctx, snap)
	case loads:
		r.data, err = j.findCodes(*l)
	default:
		r.data, err = j.findScans(ctx)
	}
	if err != nil {
		return err
	}
	if w, ok := option[write.Options](j); ok && r.data.written > 0 {
		r.log.Info().Str("event", "left out").Str("dir", w.Dir).Int("files", r.data.written).Msg("files in write.dir are no scans: an earlier run wrote them")
	}
	if copies := r.data.copies(); trains && copies != "" {
		r.log.Warn().Str("event", "copies").Str("scans", copies).Msg("some scans are copies of others: they stay on one side of the validation split, but count twice")
	}
	for _, b := range r.data.bad {
		if j.ends().list != nil {
			break // published all the same: a worker makes dead letters of them
		}
		if err := r.setAside(b); err != nil {
			return err
		}
	}
	return nil
}

// openModels opens what computes, and shares out the memory: the engine's, batches', and the rest to scans.
func (r *run) openModels(snap *volume.Snapshot) (err error) {
	j := r.job
	r.maker = j.maker(j.patch())
	var batches, arena, state int64
	if r.maker != nil {
		batches = r.maker.Bytes()
	}
	if tr, trains := option[train.Options](j); trains {
		if err := r.openModel(snap, *tr); err != nil {
			return err
		}
		arena, state = r.session.Plan().Total, r.session.StateBytes()
	}
	if m, ok := j.modelStage(); ok {
		if arena, err = r.openBack(m); err != nil {
			return err
		}
		if err := r.checkPatch(m); err != nil {
			return err
		}
		if err := r.nameFiles(); err != nil {
			return err
		}
	}
	if r.parts, err = j.divide(r.data, j.onHost(arena), state, batches); err != nil {
		return err
	}
	r.budget = pipe.NewBudget(r.parts.scans)
	return nil
}

// workers is the number of threads of a parallel stage.
func (j *Job) workers() int {
	if j.run.Workers > 0 {
		return j.run.Workers
	}
	return runtime.GOMAXPROCS(0)
}

// carryOut runs the graph and says how it ended.
func (r *run) carryOut(ctx context.Context, soft <-chan struct{}) error {
	if l := r.loop; l != nil && l.Schedule.Steps > 0 && l.Step >= l.Schedule.Steps && !l.Due {
		key := "train.epochs"
		if o, _ := option[train.Options](r.job); o.MaxSteps == l.Schedule.Steps {
			key = "train.max_steps"
		}
		r.log.Info().Str("event", "done").Int("step", l.Step).Str("checkpoint", r.last).
			Msg("already trained to its last step; raise " + key + " to go on")
		r.watch.resume()
		return nil
	}
	var g *pipe.Graph
	var err error
	for {
		g = pipe.New(ctx)
		r.bound = bottleneck{stats: g.Stats}
		r.stopping, r.hard = g.Stopping(), ctx.Done()
		r.learnt.Store(-1)
		if r.loop != nil {
			r.durable.Store(int64(r.loop.Step))
		}
		r.watch.start(g.Stats)
		r.wire(g)
		err = r.attend(g, soft)
		r.watch.over()
		d, ok := errors.AsType[*train.DivergedError](err)
		if !ok || r.loop.Guard == nil || ctx.Err() != nil {
			break
		}
		goesOn, failed := r.goBack(ctx, d)
		if failed != nil {
			err = failed
		}
		if failed != nil || !goesOn {
			break
		}
	}
	var tooLarge *pipe.TooLargeError
	switch {
	case errors.As(err, &tooLarge):
		return dataErrorf("%w; raise run.memory", err)
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("%w at once; %s", ErrInterrupted, r.lastCheckpoint())
	case err != nil:
		return err
	}
	select {
	case <-g.Stopping():
		if !r.complete() {
			return fmt.Errorf("%w; %s", ErrInterrupted, r.lastCheckpoint())
		}
	default:
	}
	if err := r.conclude(); err != nil {
		return err
	}
	_ = r.progress.Close() // done is the last line
	r.done()
	return nil
}

// leaveAfter is how long a run that was told to stop, and has nothing left to save, waits for stages in which nothing moves.
const leaveAfter = 5 * time.Second

// attend waits for the graph. Meanwhile it keeps the progress line alive and hands a soft stop on. A stage that hangs then, as a
// read does whose server is away, is left behind as soon as nothing is left to save.
func (r *run) attend(g *pipe.Graph, soft <-chan struct{}) error {
	over := make(chan error, 1)
	go func() { over <- g.Wait() }()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	var moves int64
	moved := time.Now()
	for {
		select {
		case err := <-over:
			return err
		case now := <-tick.C:
			r.progress.Tick()
			stats := g.Stats()
			if n := observe.Moves(stats); n != moves || !r.rests() {
				moves, moved = n, now
			} else if now.Sub(moved) >= leaveAfter {
				r.log.Warn().Str("event", "left behind").Str("stage", observe.Culprit(stats)).Msg("the run ends without waiting for a stage that hangs: nothing is left to save")
				return nil
			}
		case <-soft:
			_ = r.watch.systemd.Tell("STOPPING=1")
			what := "step"
			if r.back != nil {
				what = "scan"
			}
			r.log.Info().Str("event", "stop").Msg("stopping after this " + what + "; a second signal stops at once")
			g.Stop()
			soft = nil
		}
	}
}

// learns is the train stage. The metrics of a checkpoint's steps are durable before the checkpoint is.
func (r *run) learns(ctx context.Context, in iter.Seq[*volume.Batch]) iter.Seq2[*volume.Snapshot, error] {
	return func(yield func(*volume.Snapshot, error) bool) {
		r.loop.Run(ctx, in)(func(s *volume.Snapshot, err error) bool {
			if err == nil {
				r.wrote(r.metrics.Sync())
			}
			return yield(s, err)
		})
		r.learnt.Store(int64(r.loop.Step))
	}
}

// rests says that the train stage has ended and that what it learnt is durable.
func (r *run) rests() bool {
	n := r.learnt.Load()
	return n >= 0 && (r.store == nil || r.durable.Load() == n)
}

// complete says that a stop came when there was nothing left to do.
func (r *run) complete() bool {
	if r.back != nil {
		return r.back.written.Load() == int64(len(r.data.all)-r.quarantine.Len())
	}
	l := r.loop
	return l != nil && l.Schedule.Steps > 0 && l.Step >= l.Schedule.Steps && !l.Due
}

func (r *run) lastCheckpoint() string {
	if r.loop == nil && r.queues != nil {
		return "what is in hand goes back to the queue; the same command goes on"
	}
	if r.back != nil {
		return "what is written is whole; the same command does the rest again"
	}
	if r.last == "" {
		return "no checkpoint was written: the same command begins anew"
	}
	how := ""
	if r.job.run.Resume != "auto" {
		how = "with run.resume: auto "
	}
	return "the last checkpoint is " + r.last + "; " + how + "the same command goes on from there"
}

// saved is told of each checkpoint that is durable.
func (r *run) saved(path string, s *volume.Snapshot) {
	r.last = path
	r.durable.Store(int64(s.Step))
	r.watch.kept(path, s.Step)
	r.log.Info().Str("event", "checkpoint").Str("path", path).Int("step", s.Step).Str("reason", s.Reason).Msg("saved")
}
