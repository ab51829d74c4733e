package flows

import (
	"fmt"

	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/queue"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/shuffle"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/train"
)

// An edge of the graph that lies on a queue is two stages, publish and subscribe. They may stand in one file, or each in a
// file of its own on a machine of its own.

// ends are the stages of a job at a queue's ends; nil where the job has no such.
type ends struct {
	list  *piece // scans
	feed  *piece // publish of scans
	work  *piece // subscribe to scans
	send  *piece // publish of patches
	learn *piece // subscribe to patches
}

func (j *Job) ends() ends {
	var e ends
	for _, p := range j.pieces {
		switch {
		case p.name == "scans":
			e.list = p
		case p.name == "publish" && p.in == references:
			e.feed = p
		case p.name == "publish":
			e.send = p
		case p.name == "subscribe" && p.out == references:
			e.work = p
		case p.name == "subscribe":
			e.learn = p
		}
	}
	return e
}

// queued says that the job has an end of a queue.
func (j *Job) queued() bool {
	e := j.ends()
	return e.feed != nil || e.work != nil || e.send != nil || e.learn != nil
}

// remote says that this job doesn't know all scans from the start: they come from elsewhere, or appear in a folder.
func (j *Job) remote() bool {
	e := j.ends()
	if e.list != nil {
		return e.list.options.(*queue.ListOptions).Watch != ""
	}
	return e.work != nil || e.learn != nil
}

// subscribed are the options of the stage that takes patches from the queue.
func (j *Job) subscribed() (*queue.SubscribeOptions, bool) {
	if e := j.ends(); e.learn != nil {
		return e.learn.options.(*queue.SubscribeOptions), true
	}
	return new(queue.SubscribeOptions), false
}

// patch is the size of the job's patches: the tile stage's, or of those that come from the queue.
func (j *Job) patch() [3]int {
	if t, ok := option[tile.Options](j); ok {
		return t.Patch
	}
	o, _ := j.subscribed()
	return o.Patch
}

// searched are the options by which the job's scans are found.
func (j *Job) searched() read.Options {
	r := *j.reading()
	if e := j.ends(); e.list != nil {
		o := e.list.options.(*queue.ListOptions)
		if r.Scans = o.From; o.Watch != "" {
			r.Scans = []string{o.Watch}
		}
	}
	return r
}

// reading is how the job's scans are read: those held out of a queue's patches as the workers read theirs.
func (j *Job) reading() *read.Options {
	if r, ok := option[read.Options](j); ok {
		return r
	}
	r := defaultReading()
	if o, ok := j.subscribed(); ok {
		r.WindowHU, r.Spacing = o.WindowHU, o.Spacing
	}
	return r
}

// fitQueue finds what is wrong between a queue's ends and the stages around them.
func (j *Job) fitQueue() error {
	e := j.ends()
	if !j.queued() {
		if e.list != nil {
			return e.list.file.Errorf("", "gives names of scans, which only publish takes; to read them here leave it out and name them in read.scans")
		}
		return nil
	}
	r, reads := option[read.Options](j)
	for _, p := range []*piece{e.feed, e.work, e.send, e.learn} {
		if p != nil && j.queue.Name == "" {
			return p.file.Errorf("", "which queue? set queue.name to what this run is called on the server, as in queue: {name: ctpa}")
		}
	}
	switch {
	case e.send != nil && e.work == nil:
		return e.send.file.Errorf("", "sends patches of scans that came from a queue: put scans and publish, then subscribe, before read")
	case e.work != nil && reads && len(r.Scans) > 0:
		return j.piece(r).file.Errorf("scans", "the scans come from the queue; leave it out")
	case e.work != nil && e.send == nil:
		return e.work.file.Errorf("", "takes scans for patches that go to a queue: end the flow with publish, or leave subscribe out and name scans in read.scans")
	case e.feed != nil && e.feed.options.(*queue.PublishOptions).Bytes && j.queue.Objects == 0:
		return e.feed.file.Errorf("bytes", "wants room on the server: set queue.objects, as in queue.objects=20GiB")
	case e.work != nil && j.mixes(e.send):
		return e.work.file.Errorf("", "behind it shuffle would wait for scans that may never come; put shuffle behind the subscribe that takes patches")
	case e.send != nil && e.send.options.(*queue.PublishOptions).Bytes:
		return e.send.file.Errorf("bytes", "is of scans; patches always go as bytes")
	case e.send != nil:
		if err := queue.CheckPatch(j.patch()); err != nil {
			return fmt.Errorf("%s: tile.patch: %w", j.path, err)
		}
	}
	if e.learn == nil {
		return nil
	}
	return j.fitLearner(e)
}

// mixes says that a shuffle stands before a stage.
func (j *Job) mixes(before *piece) bool {
	for _, p := range j.pieces {
		if p == before {
			return false
		}
		if _, ok := p.options.(*shuffle.Options); ok {
			return true
		}
	}
	return false
}

// fitLearner checks a flow that takes patches from a queue.
func (j *Job) fitLearner(e ends) error {
	o := e.learn.options.(*queue.SubscribeOptions)
	tr, trains := option[train.Options](j)
	b, _ := option[batch.Options](j)
	_, keeps := option[checkpoint.Options](j)
	t, tiles := option[tile.Options](j)
	r, reads := option[read.Options](j)
	switch {
	case !trains || !keeps:
		return e.learn.file.Errorf("", "patches are done with when a checkpoint holds what they taught: put train and checkpoint behind")
	case !tiles && o.Patch == [3]int{}:
		return e.learn.file.Errorf("patch", "this key is required: the size of the workers' patches, as in patch: [256, 256, 128]")
	case tiles && o.Patch != [3]int{} && o.Patch != t.Patch:
		return e.learn.file.Errorf("patch", "%s, but tile.patch is %s", list(o.Patch), list(t.Patch))
	case reads:
		o.WindowHU, o.Spacing = r.WindowHU, r.Spacing
	}
	if err := j.fitPatch(e.learn, &tile.Options{Patch: j.patch()}); err != nil {
		return err
	}
	if j.remote() && tr.Schedule == "cosine" && tr.MaxSteps == 0 && j.run.Hours == 0 {
		return j.piece(tr).file.Errorf("schedule", "cosine falls to 0 at the last step, but the queue doesn't tell how many there are: set train.max_steps or run.hours, or schedule: constant")
	}
	need, err := j.waiting()
	if err != nil {
		return err
	}
	if o.Held == 0 {
		c, _ := option[checkpoint.Options](j)
		o.Held = need + 2*c.Every*b.Size
	}
	if least := need + b.Size; o.Held < least {
		return e.learn.file.Errorf("held", "%d patches are fewer than can wait between here and the checkpoint (%d, with those that shuffle and batch hold): no step could be finished", o.Held, least)
	}
	if err := j.queue.CheckBounds(j.bounds()); err != nil {
		return fmt.Errorf("%s: queue.%w", j.path, err)
	}
	return nil
}

// waiting is how many patches can lie between subscribe and train before a batch comes out.
func (j *Job) waiting() (int, error) {
	b, _ := option[batch.Options](j)
	n, behind := b.Size, false
	for _, p := range j.pieces {
		behind = behind || p.name == "subscribe" && p.out == patches
		o, ok := p.options.(*shuffle.Options)
		if !ok || !behind {
			continue
		}
		if o.Patches == 0 {
			return 0, p.file.Errorf("patches", "this key is required behind subscribe: patches of many scans come mixed, so say how many may wait here")
		}
		n += o.Patches
	}
	return n, nil
}

// bounds are what the trainer needs of the queue.
func (j *Job) bounds() queue.Bounds {
	o, _ := j.subscribed()
	return queue.Bounds{Held: o.Held, Patch: j.patch()}
}

// senders is how many patches are sent at a time.
const senders = 2

// queueBytes is the memory of what is on its way to and from a queue, and of a server in this process.
func (j *Job) queueBytes() int64 {
	e := j.ends()
	each, n := queue.PatchBytes(j.patch()), int64(0)
	if e.send != nil {
		n += senders * each
	}
	if e.learn != nil {
		n += 6 * each // fetched ahead, in the sockets, and the one being cut
		if wait, err := j.waiting(); err == nil {
			n += int64(wait) * each
		}
	}
	if j.queued() && !j.queue.External() {
		n += serverBytes(j.patch())
	}
	return n
}

// serverBytes is what a server in this process is given for patches of a size: it holds up to twelve copies of one, coming in,
// being stored, going out. docs/benchmarks.md has the figures.
func serverBytes(patch [3]int) int64 {
	if patch == [3]int{} { // others cut them
		patch = [3]int{256, 256, 128}
	}
	return max(64<<20, 12*queue.PatchBytes(patch))
}
