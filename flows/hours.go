package flows

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/report"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

// Which step is a run's last.

// total is the last step of a run that goes on from snap, nil for the beginning: what its epochs have left, or what fits into the
// rest of run.hours at a pace; 0 where that isn't known yet.
func (r *run) total(snap *volume.Snapshot, o train.Options, pace time.Duration) int {
	step := 0
	if snap != nil {
		step = snap.Step
	}
	if r.job.run.Hours > 0 {
		if pace == 0 {
			return 0
		}
		return step + max(1, int(r.hoursLeft()/pace))
	}
	b, _ := option[batch.Options](r.job)
	steps := r.data.steps(o.Epochs, b.Size)
	if snap != nil && steps > 0 { // fewer than step batches, where a run had ended before train.epochs was raised
		short := step*b.Size - r.job.trained(snap)
		steps = (o.Epochs*r.data.perEpoch() + short + b.Size - 1) / b.Size
	}
	return lastStep(steps, o.MaxSteps)
}

// trained is how many patches had been trained at a snapshot.
func (j *Job) trained(snap *volume.Snapshot) int {
	if n, err := strconv.Atoi(snap.Meta["patches"]); err == nil {
		return n
	}
	b, _ := option[batch.Options](j)
	return snap.Step * b.Size // a checkpoint that doesn't tell
}

// paceSteps is how many steps of a process lateness is told from, paceBegins how many come before them.
const paceSteps, paceBegins = 10, 2

// lateness is what a run knows of its pace on this machine.
type lateness struct {
	steps int           // so far; more than are timed once it is told
	took  time.Duration // by those that are timed
}

// late tells, once, that a run which keeps the course that another machine, or another load, has set will take longer than
// run.hours. Its learning rate was made for that course, so it isn't cut short.
func (r *run) late(s train.Step) {
	l, b := r.loop, &r.behind
	if r.job.run.Hours == 0 || l.Schedule.Steps == 0 || l.Pace == 0 || b.steps > paceBegins+paceSteps {
		return
	}
	if b.steps++; b.steps > paceBegins {
		b.took += time.Duration(s.Seconds * float64(time.Second))
	}
	if b.steps < paceBegins+paceSteps {
		return
	}
	b.steps++
	each := b.took / paceSteps
	left := time.Duration(l.Schedule.Steps-l.Step) * each
	if over := left - r.hoursLeft(); over > time.Minute && over > left/10 && each > l.Pace {
		r.log.Warn().Str("event", "late").Msg(fmt.Sprintf("a step takes %.3g s here, and took %.3g s when run.hours was turned into %d steps: the run will end about %s behind it; with another run.hours it gets another last step",
			each.Seconds(), l.Pace.Seconds(), l.Schedule.Steps, report.Duration(over)))
	}
}

// hoursLeft is what is left of run.hours, at least something. The time between a stop and the going on isn't counted.
func (r *run) hoursLeft() time.Duration {
	return max(1, time.Duration(r.job.run.Hours*float64(time.Hour))-r.before-time.Since(r.began))
}

// clock is what a checkpoint keeps of the time of a run that has run.hours.
type clock struct {
	Hours float64 `json:"hours"` // run.hours
	Spent float64 `json:"spent"` // seconds, of all processes that the run had
	Pace  float64 `json:"pace"`  // seconds a step; 0 while that isn't known
}

// clock is that of a checkpoint that is written now.
func (r *run) clock(l *train.Loop) clock {
	return clock{r.job.run.Hours, (r.before + time.Since(r.began)).Seconds(), l.Pace.Seconds()}
}

// clockOf is a snapshot's, all zero where it has none.
func clockOf(snap *volume.Snapshot) (c clock, err error) {
	if snap == nil || snap.Meta["clock"] == "" {
		return c, nil
	}
	if err := json.Unmarshal([]byte(snap.Meta["clock"]), &c); err != nil {
		return c, fmt.Errorf("clock: %w", err)
	}
	if !(c.Hours >= 0 && c.Spent >= 0 && c.Pace >= 0) {
		return c, fmt.Errorf("clock: %+v (want no negative numbers)", c)
	}
	return c, nil
}

func (c clock) save() (string, error) {
	text, err := json.Marshal(c)
	return string(text), err
}

func (c clock) spent() time.Duration { return time.Duration(c.Spent * float64(time.Second)) }
func (c clock) pace() time.Duration  { return time.Duration(c.Pace * float64(time.Second)) }
