package flows

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/cuda"
	"github.com/flowrun/flowrun/gpu/nn"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/codes"
	"github.com/flowrun/flowrun/stages/infer"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

// Plan says what a run would take, without writing anything: stages and types, data and grid, memory, disk, and from
// a short timing the hours to finish.
func (j *Job) Plan(ctx context.Context, w io.Writer) error {
	p := &planner{Job: j, w: tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)}
	err := p.all(ctx, w)
	return errors.Join(p.w.Flush(), err)
}

type planner struct {
	*Job
	w    *tabwriter.Writer
	data *data
}

func (p *planner) line(format string, args ...any) { _, _ = fmt.Fprintf(p.w, format+"\n", args...) }

func (p *planner) all(ctx context.Context, w io.Writer) error {
	p.line("graph")
	for _, s := range p.pieces {
		from := s.in
		if from == nothing {
			from = "files"
		}
		p.line("  %s\t%s → %s", s.label, from, s.out)
	}
	var err error
	if l, ok := option[codes.LoadOptions](p.Job); ok {
		p.data, err = p.findCodes(*l)
	} else if p.remote() {
		p.data, err = p.remoteData(ctx)
	} else {
		p.data, err = p.findScans(ctx)
	}
	if err != nil {
		return err
	}
	if p.remote() {
		p.line("data\tcomes as it comes, %d scans held out", len(p.data.held))
	} else {
		p.scans()
	}
	p.edges()
	switch m, ok := p.modelStage(); {
	case ok && m.Checkpoint == infer.IdentityName:
		return p.host(m.patch, 0, 0)
	case ok:
		return p.trained(w, m)
	}
	o, ok := option[train.Options](p.Job)
	if !ok {
		return nil
	}
	return p.model(ctx, w, *o, p.patch())
}

// edges prints what lies on a queue.
func (p *planner) edges() {
	if !p.queued() {
		return
	}
	where := "an embedded server"
	if p.queue.Context != "" {
		where = "the server of the context " + p.queue.Context
	}
	if p.queue.URL != "" {
		where = p.queue.URL
	}
	p.line("queue\t%s on %s", p.queue.Name, where)
	if p.ends().learn == nil {
		return
	}
	b := p.bounds()
	bytes := p.queue.Bytes
	if bytes == 0 {
		bytes = b.Least()
	}
	p.line("  patches\t%d may be out between two checkpoints, %s on the server's disk at most", b.Held, size(bytes))
}

// scans prints the data and the grid.
func (p *planner) scans() {
	d := p.data
	t, _ := option[tile.Options](p.Job)
	b, _ := option[batch.Options](p.Job)
	p.line("data")
	all, taken := "an epoch", "steps"
	if _, ok := option[train.Options](p.Job); ok {
		p.line("  scans\t%d to train on, %d held out, %d unreadable", len(d.train), len(d.held), len(d.bad))
	} else {
		p.line("  scans\t%d, and %d unreadable", len(d.all), len(d.bad))
	}
	if _, back := p.modelStage(); back {
		all, taken = "all of them", "batches"
	}
	for _, bad := range d.bad {
		p.line("    unreadable\t%s: %s", bad.Path, bad.Reason)
	}
	if copies := d.copies(); copies != "" {
		p.line("    copies\t%s", copies)
	}
	big, _ := largest(d.all, (*volume.Scan).Voxels)
	p.line("  largest\t%s: %s voxels, %.3g × %.3g × %.3g mm", big.ID, list(big.Dims), big.Spacing[0], big.Spacing[1], big.Spacing[2])
	if g, err := t.Grid(big.Dims, p.multiple()); err == nil {
		p.line("  its grid\t%d × %d × %d = %d tiles of %s", g.N[0], g.N[1], g.N[2], g.Len(), list(t.Patch))
	}
	if b.Size > 0 {
		p.line("  %s\t%d patches, %d %s of %d", all, d.perEpoch(), d.steps(1, b.Size), taken, b.Size)
	} else if n := d.perEpoch(); n > 0 {
		p.line("  %s\t%d patches", all, n)
	}
}

// trained prints the memory of a trained model.
func (p *planner) trained(w io.Writer, m modelKeys) error {
	e, missing, err := p.planned(m.Device)
	if err != nil {
		return err
	}
	defer func() { _ = e.Close() }()
	plan, err := vqgan.PlanCoder(e, p.Job.model, p.coderOptions(m))
	if plan == nil {
		return configErrorf("%s: %w", p.path, err)
	}
	p.engineLine(e, m.Memory, missing)
	p.line("  model\t%s: %.3g million parameters, %.4g bits for each %s voxels", m.Checkpoint, float64(plan.Parameters)/1e6, bits(&p.Job.model), list(p.Job.model.Downsample))
	if err := errors.Join(p.w.Flush(), plan.Write(w)); err != nil {
		return err
	}
	if err != nil {
		return configErrorf("%s: %w", p.path, err)
	}
	return p.host(m.patch, plan.Total, 0)
}

// host prints how the host's memory is divided, beside an arena and a checkpoint of so many bytes.
func (p *planner) host(patch [3]int, arena, state int64) error {
	batches := int64(0)
	if m := p.maker(patch); m != nil {
		batches = m.Bytes()
	}
	parts, err := p.divide(p.data, p.onHost(arena), state, batches)
	p.line("host memory\t%s", parts)
	return err
}

// model prints memory, work, disk and time.
func (p *planner) model(ctx context.Context, w io.Writer, o train.Options, patch [3]int) error {
	e, missing, err := p.planned(o.Device)
	if err != nil {
		return err
	}
	defer func() { _ = e.Close() }()
	p.reserve(e, p.data, o, patch)
	options := p.sessionOptions(o, patch)
	plan, err := vqgan.PlanFor(e, p.Job.model, options)
	if plan == nil {
		return configErrorf("%s: %w", p.path, err)
	}
	if tight := err; tight != nil {
		err = p.misfit(e, o, patch, tight)
	}
	n := int64(options.MicroBatch)
	if n == 0 {
		n = int64(options.Batch)
	}
	p.engineLine(e, o.Memory, missing)
	p.line("  model\t%.3g million parameters, %.4g bits for each %s voxels", float64(plan.Parameters)/1e6, bits(&p.Job.model), list(p.Job.model.Downsample))
	p.line("  work\t%.4g TFLOP a patch forward, %.4g forward and backward", float64(plan.Forward/n)/1e12, float64(plan.Step/n)/1e12)
	p.perceptual(e, plan, o, patch, n)
	p.discriminators(e, plan, o, patch, n)
	if err := errors.Join(p.w.Flush(), plan.Write(w)); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	if err := p.host(patch, plan.Total, plan.State); err != nil {
		return err
	}
	if c, ok := option[checkpoint.Options](p.Job); ok {
		p.line("disk\t%s a checkpoint, %s at most for all that are kept", size(plan.State), size(c.Disk(plan.State, o.Guard.Tries > 0)))
	}
	if missing != nil {
		p.line("time\tnot measured, the device isn't here")
		return nil
	}
	return p.time(ctx, o, patch)
}

// perceptual says what LPIPS takes of the arena, and of a step's work.
func (p *planner) perceptual(e gpu.Engine, plan *nn.Plan, o train.Options, patch [3]int, batch int64) {
	if !o.Perceptual.On() {
		return
	}
	without := o
	without.Perceptual.Weight = 0
	if takes := p.takes(e, plan, without, patch, batch); takes != "" {
		p.line("  perceptual\t%s: %s", o.Perceptual.File, takes)
	}
}

// discriminators says what adversarial training takes, once it has begun.
func (p *planner) discriminators(e gpu.Engine, plan *nn.Plan, o train.Options, patch [3]int, batch int64) {
	if o.GAN.Weight == 0 {
		return
	}
	without := o
	without.GAN.Weight = 0
	takes := p.takes(e, plan, without, patch, batch)
	if takes == "" {
		return
	}
	p.line("  discriminators\t%.3g million parameters, %s behind step %d (train.gan.start)", float64(plan.Judges)/1e6, takes, o.GAN.Start)
	if last := p.lastStep(o); last > 0 && o.GAN.Start >= last {
		p.line("    \tthe run ends at step %d: they never begin", last)
	}
	if o.GAN.Norm == "batch" {
		p.line("    \tbatch norm over %d patches, a micro-batch, of scans and of reconstructions each (train.gan.norm)", batch)
	}
}

// takes is what a plan has more than that of other options; "" where these have none.
func (p *planner) takes(e gpu.Engine, plan *nn.Plan, without train.Options, patch [3]int, batch int64) string {
	less, _ := p.plan(e, without, patch)
	if less == nil {
		return ""
	}
	return fmt.Sprintf("%s of the arena, %.4g TFLOP a patch", size(plan.Total-less.Total), float64((plan.Step-less.Step)/batch)/1e12)
}

// engineLine names the engine, and says why it can't be opened here and for how much memory it is planned instead.
func (p *planner) engineLine(e gpu.Engine, memory int64, missing error) {
	p.line("engine\t%s", e.Name())
	if p.passed != nil {
		p.line("  no GPU\t%v", p.passed)
	}
	if p.card != nil {
		p.line("  beside the arena\t%s for copies and tables, and the driver's context (a few hundred MiB)", size(cuda.Overhead))
	}
	if missing != nil {
		p.line("  not here\t%v", missing)
		p.line("  planned for\t%s", size(p.arenaLimit(memory)))
	}
}

// bits is what it takes to tell the codes of a latent apart.
func bits(c *vqgan.Config) float64 { return float64(c.Depth()) * math.Log2(float64(c.Codes)) }

// figure says a number to three places, or whole where it has more, without an exponent where it is large.
func figure(v float64) string {
	if v >= 1000 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// hours says a time as people do.
func hours(seconds float64) string {
	switch {
	case seconds < 120:
		return fmt.Sprintf("%.0f seconds", seconds)
	case seconds < 2*3600:
		return fmt.Sprintf("%.0f minutes", seconds/60)
	case seconds < 72*3600:
		return fmt.Sprintf("%.1f hours", seconds/3600)
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", seconds/86400), ".0") + " days"
}
