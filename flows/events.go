package flows

import (
	"os"
	"time"

	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/observe/tfevents"
)

// events writes what TensorBoard opens. It belongs to the train stage while the graph runs. metrics.jsonl is the record: what a
// full disk keeps out of an event file is lost, once told.
type events struct {
	run   *run
	file  *tfevents.Writer // nil: none
	began time.Time
	wrote time.Time // scalars of a step
	drew  time.Time // a picture
	lost  bool
}

// How often the scalars of a step and pictures are written at most, in time and in shares of the time that the run has taken: the
// longer it takes, the rarer, so that the file of a week is hardly larger than that of a day. TensorBoard shows a thousand
// points and ten pictures.
const (
	scalarsEvery  = 3 * time.Second
	scalarsShare  = 2000
	picturesShare = 16
)

// open begins an event file behind a step.
func (e *events) open(step int) {
	file, err := tfevents.Create(e.run.job.run.Dir, time.Now(), step)
	e.told(err)
	e.file, e.wrote, e.drew = file, time.Time{}, time.Time{}
	if e.began.IsZero() {
		e.began = time.Now()
	}
}

func (e *events) close() {
	if e.file != nil {
		e.told(e.file.Close())
		e.file = nil
	}
}

func (e *events) told(err error) {
	if err != nil && !e.lost {
		e.lost = true
		e.run.log.Warn().Err(err).Msg("the event file lacks something; metrics.jsonl has it")
	}
}

func (e *events) step(s observe.Step) {
	if now := time.Now(); e.file != nil && now.Sub(e.wrote) >= max(scalarsEvery, now.Sub(e.began)/scalarsShare) {
		e.told(e.file.Scalars(now, s.Step, s.Scalars()))
		e.wrote = now
	}
}

func (e *events) validation(v observe.Val, usage []int64) {
	if e.file != nil {
		e.told(e.file.Scalars(time.Now(), v.Step, v.Scalars()))
		e.told(e.file.Histogram(time.Now(), v.Step, "val/codes", usage))
	}
}

func (e *events) picture(step int, path string) {
	now := time.Now()
	if e.file == nil || now.Sub(e.drew) < now.Sub(e.began)/picturesShare {
		return
	}
	e.drew = now
	png, err := os.ReadFile(path)
	if err == nil {
		err = e.file.Image(now, step, "val/sample", png)
	}
	e.told(err)
}
