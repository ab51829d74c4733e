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
	wrote time.Time        // scalars of a step
	lost  bool
}

// scalarsEvery is how often the scalars of a step are written at most. TensorBoard shows a thousand of them.
const scalarsEvery = 3 * time.Second

// open begins an event file behind a step.
func (e *events) open(step int) {
	file, err := tfevents.Create(e.run.job.run.Dir, time.Now(), step)
	e.told(err)
	e.file, e.wrote = file, time.Time{}
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
	if now := time.Now(); e.file != nil && now.Sub(e.wrote) >= scalarsEvery {
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
	if e.file == nil {
		return
	}
	png, err := os.ReadFile(path)
	if err == nil {
		err = e.file.Image(time.Now(), step, "val/sample", png)
	}
	e.told(err)
}
