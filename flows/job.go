package flows

import (
	"cmp"
	"fmt"
	"os"
	"strings"

	"github.com/flowrun/flowrun/configs"
	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/cuda"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/augment"
	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/infer"
	"github.com/flowrun/flowrun/stages/metrics"
	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/queue"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/shuffle"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/write"
)

// Job is a file that has been read, checked and found to be a graph.
type Job struct {
	path     string
	run      RunOptions
	dirKey   string // by which the file names the run's folder
	model    vqgan.Config
	lpips    *vqgan.LPIPS // nil where train.perceptual is off
	observe  observe.Options
	queue    queue.Options
	again    []string // the command that does the job again; none where no command would
	pieces   []*piece
	reserved int64      // host memory that isn't the engine's; 0 until it is known
	ready    gpu.Engine // opened, for who asks for an engine next; else nil
	card     cuda.Card  // the GPU that the model is on, or planned for; nil on the CPU
	passed   error      // why device: auto passed a GPU's driver over
	resolved []byte     // the file with every default written out
}

// piece is a stage of a job.
type piece struct {
	stage
	file    configs.Stage // its place in the file, for errors
	label   string        // the stage's name, numbered where it is repeated: augment[1]
	line    int
	ordinal int // how many stages of this name stand before it
	options any
}

type blocks struct {
	run     *RunOptions
	model   *vqgan.Config
	observe *observe.Options
	queue   *queue.Options
}

func newBlocks() blocks {
	return blocks{new(RunOptions), new(vqgan.Config), new(observe.Options), new(queue.Options)}
}

// schema is what configs needs to know of the file's shape.
func (b blocks) schema() configs.Blocks {
	s := configs.Blocks{
		Top: map[string]any{"run": b.run, "model": b.model, "observe": b.observe, "queue": b.queue},
		Stage: func(name string) (any, bool) {
			st, ok := find(name)
			if !ok {
				return nil, false
			}
			return st.options(), true
		},
	}
	for _, st := range stages() {
		s.StageNames = append(s.StageNames, st.name)
	}
	return s
}

// Load reads a file (data, or where that is nil the file at path), puts the overrides on it and joins its stages.
// Whatever is wrong with them is a ConfigError.
func Load(path string, data []byte, overrides []string) (*Job, error) {
	if data == nil {
		var err error
		if data, err = os.ReadFile(path); err != nil {
			return nil, &ConfigError{err}
		}
	}
	b := newBlocks()
	f, err := configs.Load(path, data, overrides, b.schema())
	if err != nil {
		return nil, &ConfigError{err}
	}
	j := &Job{path: path, run: *b.run, dirKey: "run.dir", model: *b.model, observe: *b.observe, queue: *b.queue}
	j.again = append([]string{"flowrun", path}, f.Words()...)
	seen := map[string]int{}
	for _, s := range f.Stages {
		st, _ := find(s.Name)
		j.pieces = append(j.pieces, &piece{stage: st, file: s, label: s.Label, line: s.Line, ordinal: seen[s.Name], options: s.Options})
		seen[s.Name]++
	}
	if err := j.join(); err != nil {
		return nil, &ConfigError{err}
	}
	if err := j.settle(f); err != nil {
		return nil, &ConfigError{err}
	}
	if err := j.adopt(f); err != nil {
		return nil, &ConfigError{err}
	}
	if err := j.fit(); err != nil {
		return nil, &ConfigError{err}
	}
	if err := j.fitQueue(); err != nil {
		return nil, &ConfigError{err}
	}
	*b.run, *b.model = j.run, j.model
	if j.resolved, err = f.Resolved(); err != nil {
		return nil, &ConfigError{err}
	}
	return j, nil
}

// settle fills in what a quantiser without a codebook says of the model, and refuses keys that are about one.
func (j *Job) settle(f *configs.File) error {
	if err := j.model.Settle(func(key string) bool { return f.Given("model." + key) }); err != nil {
		key, reason, _ := strings.Cut(err.Error(), ": ")
		return f.Errorf("model."+key, "%s", reason)
	}
	if j.model.Books() > 0 {
		return nil
	}
	o, ok := option[train.Options](j)
	if !ok {
		return nil
	}
	usual, p := new(train.Options), j.piece(o)
	if err := configs.SetDefaults(usual); err != nil {
		return err
	}
	for _, x := range []struct {
		key   string
		given bool
	}{
		{"codebook.decay", o.Codebook.Decay != usual.Codebook.Decay},
		{"codebook.restart", o.Codebook.Restart != usual.Codebook.Restart},
		{"loss.commitment", o.Loss.Commitment != usual.Loss.Commitment},
	} {
		if x.given {
			return p.file.Errorf(x.key, "with model.quantizer: %s there is no codebook; leave it out", j.model.Quantizer)
		}
	}
	return nil
}

// join checks that the stages' types meet.
func (j *Job) join() error {
	if len(j.pieces) == 0 {
		return fmt.Errorf("%s: flow: has no stages (want read, tile, batch, train, …)", j.path)
	}
	j.resolve()
	first := j.pieces[0]
	if first.in != nothing && !first.source {
		return fmt.Errorf("%s:%d: the flow begins with %s, which takes %s; put read (and what makes a %[4]s of a scan) before it",
			j.path, first.line, first.name, first.in)
	}
	for i, p := range j.pieces[1:] {
		before := j.pieces[i]
		if p.once && p.ordinal > 0 {
			return fmt.Errorf("%s:%d: a flow can have one %s only", j.path, p.line, p.name)
		}
		if p.in == nothing {
			return fmt.Errorf("%s:%d: %s reads from outside: it can only be the first stage, not behind %s (line %d)",
				j.path, p.line, p.name, before.name, before.line)
		}
		if p.source && before.out != p.in {
			return fmt.Errorf("%s:%d: %s begins a flow, or takes %s; it can't stand behind %s (line %d), which gives %s",
				j.path, p.line, p.name, p.in, before.name, before.line, before.out)
		}
		if p.name == "read" && before.name == "scans" {
			return fmt.Errorf("%s:%d: read finds scans itself: name them in read.scans and leave scans (line %d) out, or put publish and subscribe between",
				j.path, p.line, before.line)
		}
		if p.in != before.out {
			return fmt.Errorf("%s:%d: %s takes %s, but %s (line %d) gives %s",
				j.path, p.line, p.name, p.in, before.name, before.line, before.out)
		}
	}
	return nil
}

// resolve says what the ends of queues take and give: what their neighbours do.
func (j *Job) resolve() {
	for i, p := range j.pieces {
		switch {
		case p.in == either && i > 0 && (j.pieces[i-1].out == references || j.pieces[i-1].out == patches):
			p.in = j.pieces[i-1].out
		case p.out == either:
			p.out = patches
			if i+1 < len(j.pieces) && j.pieces[i+1].in == references {
				p.out = references
			}
		}
	}
}

// mostAtATime bounds a micro-batch: whatever part of one is left over at the end has a program of its own, and to plan them all takes time.
const mostAtATime = 1024

// fit checks what two stages, or a stage and the model, must agree on.
func (j *Job) fit() error {
	b, _ := option[batch.Options](j)
	if r, ok := option[read.Options](j); ok && len(r.Scans) == 0 && j.pieces[0].options == any(r) {
		return j.pieces[0].file.Errorf("scans", "this key is required (as in scans: data/**/*.nii.gz)")
	}
	for _, p := range j.pieces {
		if err := j.fitBack(p); err != nil {
			return err
		}
		switch o := p.options.(type) {
		case *tile.Options:
			if err := j.fitPatch(p, o); err != nil {
				return err
			}
		case *augment.Options:
			if err := o.CheckPatch(j.patch()); err != nil {
				return p.blame(err)
			}
		case *train.Options:
			if o.MicroBatch > b.Size {
				return p.file.Errorf("micro_batch", "%d is more than batch.size %d", o.MicroBatch, b.Size)
			}
			if cmp.Or(o.MicroBatch, b.Size) > mostAtATime {
				return p.file.Errorf("micro_batch", "%d patches would be computed at a time; set 1 to %d (gradients are those of the whole batch)",
					cmp.Or(o.MicroBatch, b.Size), mostAtATime)
			}
			if err := j.fitPerceptual(p, &o.Perceptual, j.patch()); err != nil {
				return err
			}
		case *infer.Options:
		case *infer.CodeOptions:
			if err := j.fitPatch(p, &tile.Options{Patch: o.Patch, Stride: o.Stride}); err != nil {
				return err
			}
		case *metrics.Options:
			if w, r := o.WindowHU, j.windowHU(); w != [2]float64{} && (w[0] < r[0] || w[1] > r[1]) {
				return p.file.Errorf("window_hu", "%v reaches beyond %v, the window that scans are read with", w, r)
			}
		case *write.Options:
			if r, ok := option[read.Options](j); ok {
				if err := o.CheckWindow(r.WindowHU); err != nil {
					return p.blame(err)
				}
			}
		}
	}
	return nil
}

// fitPatch checks a patch and the grid of such against the model's downsampling.
func (j *Job) fitPatch(p *piece, t *tile.Options) error {
	multiple := j.multiple()
	for a, n := range t.Patch {
		if m := multiple[a]; n%m != 0 {
			return p.file.Errorf("patch", "%d along %c is not a multiple of the model's downsampling %d; nearest are %d and %d",
				n, "xyz"[a], m, max(1, n/m)*m, (max(1, n/m)+1)*m)
		}
	}
	if err := t.CheckMultiple(multiple); err != nil {
		return p.blame(err)
	}
	return nil
}

// blame places an error that begins with one of the stage's keys at the key's line.
func (p *piece) blame(err error) error {
	key, reason, _ := strings.Cut(err.Error(), ": ")
	return p.file.Errorf(key, "%s", reason)
}

// windowHU is the window that scans are read with.
func (j *Job) windowHU() [2]float64 {
	r, _ := option[read.Options](j)
	return r.WindowHU
}

// multiple is what a patch's extent must be a multiple of.
func (j *Job) multiple() [3]int {
	if m, ok := j.modelStage(); ok && m.Checkpoint == infer.IdentityName {
		return [3]int{1, 1, 1}
	}
	return j.model.Downsample
}

// option returns the options of the job's first stage that has such.
func option[T any](j *Job) (*T, bool) {
	for _, p := range j.pieces {
		if o, ok := p.options.(*T); ok {
			return o, true
		}
	}
	return new(T), false
}

// The stages whose options set the stream of patches: two runs that agree on these see the same patches.
type stream struct {
	Seed     uint64            `json:"run.seed"`
	Window   [2]float64        `json:"read.window_hu"`
	Frame    int               `json:"read.frame"`
	Spacing  [3]float64        `json:"read.spacing"`
	Tile     tile.Options      `json:"tile"`
	Shuffle  []shuffle.Options `json:"shuffle"`
	Augment  []augment.Options `json:"augment"`
	Batch    int               `json:"batch.size"`
	Share    float64           `json:"train.validate.share"`
	Held     []string          `json:"train.validate.scans"`
	Patients string            `json:"train.validate.group"`
	Queue    string            `json:"queue.name,omitempty"` // of a run whose order is the queue's
}

// stream returns what a checkpoint of the job must agree with.
func (j *Job) stream() stream {
	r := j.reading()
	t, _ := option[tile.Options](j)
	b, _ := option[batch.Options](j)
	tr, _ := option[train.Options](j)
	s := stream{Seed: j.run.Seed, Window: r.WindowHU, Frame: r.Frame, Spacing: r.Spacing, Tile: *t, Batch: b.Size,
		Share: tr.Validate.Share, Held: tr.Validate.Scans, Patients: tr.Validate.Group}
	if j.ends().learn != nil {
		s.Tile.Patch, s.Queue = j.patch(), j.queue.Name
	}
	for _, p := range j.pieces {
		switch o := p.options.(type) {
		case *shuffle.Options:
			s.Shuffle = append(s.Shuffle, *o)
		case *augment.Options:
			s.Augment = append(s.Augment, *o)
		}
	}
	return s
}

// snapshotsEvery is how often checkpoint asks train for a snapshot; 0 where the flow has no checkpoint.
func (j *Job) snapshotsEvery() int {
	o, ok := option[checkpoint.Options](j)
	if !ok {
		return 0
	}
	return o.Every
}
