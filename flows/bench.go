package flows

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/nn"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/codes"
	"github.com/flowrun/flowrun/stages/infer"
	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/write"
)

// BenchOptions say how long bench measures, and how it tells.
type BenchOptions struct {
	Steps   int     // timed in each measurement of the model, at most
	Seconds float64 // of each measurement, at most; what has begun is finished
	JSON    bool
}

// Bench times the job's model alone, its data alone, and both together, and writes what it found to ui.Out; where ctx ends it,
// what it knows by then. Nothing that it trains is kept, and what the flow writes goes to a temporary folder. The job is of no
// more use.
func (j *Job) Bench(ctx context.Context, ui UI, o BenchOptions) error {
	status := func(string) {}
	if ui.Terminal && !ui.Quiet {
		status = func(text string) { // a line that the next one takes the place of
			if text != "" {
				text += " …"
			}
			_, _ = fmt.Fprintf(ui.Err, "\r\x1b[K%s", text) // nowhere else to say it
		}
	}
	return j.bench(ctx, ui.Out, o, status)
}

// bench is Bench, with somebody who is told what it is about.
func (j *Job) bench(ctx context.Context, out io.Writer, o BenchOptions, status func(string)) error {
	if err := j.benchable(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "flowrun-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // the system's own folder for such
	b := &bench{Job: j, options: o, status: status, folder: dir}
	done, over := make(chan struct{}), make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { b.weigh(over) })
	var failed error // once done is closed
	go func() {
		defer close(done)
		failed, _ = cured(b.all(ctx))
	}()
	select {
	case <-done:
		err = failed
	case <-ctx.Done():
		select {
		case <-done:
		case <-time.After(time.Second): // a step that takes longer is left where it is
		}
		err = fmt.Errorf("%w before all was measured", ErrInterrupted)
	}
	close(over)
	watching.Wait()
	status("")
	b.mu.Lock()
	defer b.mu.Unlock()
	tell := b.known.table
	switch {
	case b.known.Engine == "": // nothing is known
		return err
	case o.JSON:
		tell = b.known.json
	}
	return errors.Join(tell(out), err)
}

// benchable refuses flows that bench has no measure of.
func (j *Job) benchable() error {
	_, trains := option[train.Options](j)
	_, back := j.modelStage()
	_, reads := option[read.Options](j)
	switch {
	case j.queued():
		return configErrorf("%s: bench measures one process: leave publish, subscribe and what is on the queue's other side out", j.path)
	case !reads || !trains && !back:
		return configErrorf("%s: bench wants a flow that reads scans and has a stage train, infer or encode", j.path)
	}
	return j.checkDevices()
}

// bench is one measurement of a job.
type bench struct {
	*Job
	options BenchOptions
	status  func(string)
	folder  string // for what the flow writes

	run   *run
	keys  modelKeys   // on the way back
	model infer.Model // on the way back; else nil
	probe *probe      // a batch of the flow's own

	mu    sync.Mutex
	known BenchFigures
}

// note changes what is known.
func (b *bench) note(f func(k *BenchFigures)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.known)
}

// weigh keeps the most memory that the process took.
func (b *bench) weigh(over <-chan struct{}) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		rss, _ := observe.Resources()
		b.note(func(k *BenchFigures) { k.Memory.Process = max(k.Memory.Process, rss) })
		select {
		case <-over:
			return
		case <-tick.C:
		}
	}
}

// limit is how long a measurement may take.
func (b *bench) limit() time.Duration { return time.Duration(b.options.Seconds * float64(time.Second)) }

// all measures one after the other, so that each has the machine to itself.
func (b *bench) all(ctx context.Context) (err error) {
	b.status("opening the model")
	if err := b.open(ctx); err != nil {
		if b.ready != nil {
			err = errors.Join(err, b.ready.Close())
		}
		return err
	}
	defer func() { err = errors.Join(err, b.run.close()) }()
	b.status("timing the data")
	if err := b.data(ctx); err != nil {
		return err
	}
	b.status("timing the model")
	if b.run.session != nil {
		err = b.learning(ctx)
	} else {
		err = b.inference(ctx)
	}
	if err != nil {
		return err
	}
	b.status("timing both")
	if err = b.both(ctx); err == nil && b.card != nil {
		b.note(func(k *BenchFigures) { k.Memory.Used = b.card.Used() })
	}
	return err
}

// open brings a run to where its graph could be wired, without the run's folder.
func (b *bench) open(ctx context.Context) error {
	j := b.Job
	r := &run{job: j, log: zerolog.Nop(), out: io.Discard, warned: map[string]bool{}, epochs: math.MaxInt, watch: new(watch),
		progress: observe.NewProgress(io.Discard, observe.ProgressOptions{Quiet: true})}
	b.run = r
	var err error
	if r.data, err = j.findScans(ctx); err != nil {
		return err
	}
	j.run.Dir = b.folder
	if w, ok := option[write.Options](j); ok {
		w.Dir = b.folder
	}
	if s, ok := option[codes.Options](j); ok {
		s.Dir = b.folder
	}
	if r.quarantine, err = read.OpenQuarantine(r.file("quarantine.jsonl")); err != nil {
		return err
	}
	for _, bad := range r.data.bad {
		if err := r.setAside(bad); err != nil {
			return err
		}
	}
	if tr, ok := option[train.Options](j); ok {
		return b.openSession(*tr)
	}
	return b.openBack()
}

// openSession opens the model so that any phase of its training can be had at any step.
func (b *bench) openSession(o train.Options) error {
	best, err := b.ceiling(o.Device)
	if err != nil {
		return err
	}
	o.GAN.Start, o.GAN.Ramp, o.GAN.R1Every = 0, 0, min(o.GAN.R1Every, r1Every) // SetGANStart has them wait
	r := b.run
	if r.session, r.engine, err = b.Job.openSession(r.data, o, b.patch()); err != nil {
		return err
	}
	r.maker = b.maker(b.patch())
	plan := r.session.Plan()
	if r.parts, err = b.divide(r.data, b.onHost(plan.Total), 0, r.maker.Bytes()); err != nil {
		return err
	}
	b.describe(r.engine.Name(), plan, best)
	return nil
}

// openBack opens the trained model.
func (b *bench) openBack() error {
	b.keys, _ = b.modelStage()
	engine, best := "none (identity)", Ceiling{}
	var err error
	if b.keys.Checkpoint != infer.IdentityName {
		if best, err = b.ceiling(b.keys.Device); err != nil {
			return err
		}
	}
	r := b.run
	arena, err := r.openBack(b.keys)
	if err != nil {
		return err
	}
	if err := errors.Join(r.checkPatch(b.keys), r.nameFiles()); err != nil {
		return err
	}
	var batches int64
	if r.maker = b.maker(b.keys.patch); r.maker != nil {
		batches = r.maker.Bytes()
	}
	if r.parts, err = b.divide(r.data, b.onHost(arena), 0, batches); err != nil {
		return err
	}
	plan := &nn.Plan{Total: arena}
	if r.engine != nil {
		engine = r.engine.Name()
		if plan, err = vqgan.PlanCoder(r.engine, b.Job.model, b.coderOptions(b.keys)); err != nil {
			return err
		}
	}
	b.model = r.back.model
	b.describe(engine, plan, best)
	return nil
}

// describe notes what is measured.
func (b *bench) describe(engine string, plan *nn.Plan, best Ceiling) {
	clock := "host"
	if _, ok := b.run.engine.(gpu.Clock); ok {
		clock = "device"
	}
	b.note(func(k *BenchFigures) {
		k.Clock = clock
		k.File, k.Engine, k.Patch, k.Batch, k.Parameters = b.path, engine, b.size(), b.batch(), plan.Parameters
		k.Memory.Arena, k.Memory.Device, k.Ceiling = plan.Total, b.card != nil, best
	})
}

// size is the patch, x, y, z.
func (b *bench) size() [3]int {
	if b.model != nil {
		return b.keys.patch
	}
	return b.patch()
}

// batch is the patches that the model gets at a time.
func (b *bench) batch() int {
	if b.model != nil && b.wholes() {
		return 1
	}
	return b.run.maker.Size()
}

// ceiling opens the engine that the model will be on, and measures what it does at best.
func (b *bench) ceiling(device string) (Ceiling, error) {
	e, err := b.engine(device)
	if err != nil {
		return Ceiling{}, err
	}
	free := int64(0)
	if b.card != nil {
		free = b.card.Free()
		b.note(func(k *BenchFigures) { k.Memory.Before = b.card.Used() })
	}
	c, err := ceiling(e, b.card != nil, free, min(0.5, b.options.Seconds/10))
	if err != nil {
		return c, errors.Join(err, e.Close())
	}
	b.ready = e
	return c, nil
}

// wholes says that the model is handed whole scans, which it cuts up itself.
func (b *bench) wholes() bool {
	return b.exact() || slices.ContainsFunc(b.pieces, func(p *piece) bool { return p.name == "encode" })
}
