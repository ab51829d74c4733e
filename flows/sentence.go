package flows

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/flowrun/flowrun/stages/report"
	"github.com/flowrun/flowrun/stages/train"
)

// How a run stands, in words, and the command that goes on.

// sentence says how the run stands, what to do about it, and by which command.
func (w *watch) sentence(now time.Time) (outcome, advice, command string) {
	r := w.run
	again := r.job.again
	switch w.state {
	case report.Done:
		return w.success(now) + w.leftOut(), w.more(), w.continued()
	case report.Diverged:
		if tr, ok := option[train.Options](r.job); ok && len(again) > 0 {
			command = commandLine(again, fmt.Sprintf("train.lr=%g", tr.LR/2))
		}
		return sentenceOf("Diverged", w.err), "", command
	case report.Failed:
		return sentenceOf("Failed", w.err), "Once what it names is put right, this goes on from the last checkpoint:", commandLine(again)
	case report.Interrupted:
		if !w.trains {
			return "Interrupted.", "What is written is whole. The same command does the rest:", commandLine(again)
		}
		outcome = fmt.Sprintf("Interrupted at step %s.", grouped(w.step.Step))
		switch lost := w.step.Step - w.savedAt; {
		case w.saved == "":
			return outcome, "No checkpoint was written: the same command begins anew.", commandLine(again)
		case lost > 0:
			outcome += fmt.Sprintf(" The last checkpoint is of step %s: %s steps are taken again.", grouped(w.savedAt), grouped(lost))
		default:
			outcome += " Its checkpoint holds all of it."
		}
		return outcome, "The same command goes on from there:", commandLine(again)
	}
	if w.state == report.Paused {
		return sentenceOf("Paused, for "+w.short, w.why), "The run goes on by itself as soon as there is room.", ""
	}
	return w.progress(now), "", ""
}

// sentenceOf is an error as a sentence.
func sentenceOf(head string, err error) string {
	text := strings.ReplaceAll(fmt.Sprint(err), "\n", "; ")
	return head + ": " + strings.TrimRight(text, ".") + "."
}

// progress says how far a run is that goes on.
func (w *watch) progress(now time.Time) string {
	if w.run.back != nil {
		n := w.run.back.written.Load()
		return fmt.Sprintf("%d of %d scans are written.", n, len(w.run.data.all))
	}
	if !w.trains {
		return "The graph is running."
	}
	text := fmt.Sprintf("Step %s", grouped(w.step.Step))
	if w.total > 0 {
		text += fmt.Sprintf(" of %s (%d %%)", grouped(w.total), 100*min(w.step.Step, w.total)/w.total)
	}
	text += fmt.Sprintf(", epoch %d", w.step.Epoch)
	if left := w.left(now); left > 0 {
		text += fmt.Sprintf("; about %s left, until %s", report.Duration(left), now.Add(left).Format("Mon 15:04"))
	}
	return text + "."
}

// left is the time to the last step at this session's mean pace; 0 where it isn't known.
func (w *watch) left(now time.Time) time.Duration {
	taken := w.step.Step - w.first
	if taken < 1 || w.total <= w.step.Step || w.firstAt.IsZero() {
		return 0
	}
	return time.Duration(float64(now.Sub(w.firstAt)) / float64(taken) * float64(w.total-w.step.Step))
}

// success says what a run that is done has come to.
func (w *watch) success(now time.Time) string {
	if w.run.back != nil {
		text := fmt.Sprintf("Done: %d scans in %s.", w.run.back.written.Load(), report.Duration(now.Sub(w.began)))
		if s, ok := w.summary(); ok && !math.IsNaN(s.Pooled.PSNR) {
			text += fmt.Sprintf(" PSNR %.2f dB over all voxels", s.Pooled.PSNR)
			if t := s.Pooled.Trilinear.PSNR; !math.IsNaN(t) {
				text += ", " + against(s.Pooled.PSNR, t)
			}
			text += "."
		}
		return text
	}
	if !w.trains {
		return "Done."
	}
	text := fmt.Sprintf("Done: %s steps", grouped(w.step.Step))
	if h := w.history(); h != nil {
		text += " in " + report.Duration(time.Duration(h.Sum("seconds")*float64(time.Second))) + ", beside validation and checkpoints"
	}
	text += "."
	if psnr, weights, ok := w.best("psnr"); ok {
		text += fmt.Sprintf(" Validation PSNR %.2f dB%s", psnr, weights)
		if t, ok := w.value("val/psnr_trilinear"); ok {
			text += ", " + against(psnr, t)
		}
		text += "."
	}
	return text
}

// leftOut says how many scans a run that is done was without, "" for none.
func (w *watch) leftOut() string {
	if w.run.quarantine == nil || w.run.quarantine.Len() == 0 {
		return ""
	}
	return fmt.Sprintf(" Without %s of the scans, which couldn't be read (quarantine.jsonl).", grouped(w.run.quarantine.Len()))
}

// against sets a PSNR beside that of the trilinear baseline.
func against(psnr, trilinear float64) string {
	if d := psnr - trilinear; d >= 0 {
		return fmt.Sprintf("%.2f dB above the trilinear baseline", d)
	}
	return fmt.Sprintf("%.2f dB below the trilinear baseline: it hasn't learnt enough yet", trilinear-psnr)
}

// more says what can be done with a model that is trained.
func (w *watch) more() string {
	if !w.trains || len(w.run.job.again) == 0 {
		return ""
	}
	return "To train it for longer:"
}

// continued is the command that trains a finished run for as long again.
func (w *watch) continued() string {
	o, ok := option[train.Options](w.run.job)
	again := w.run.job.again
	if !ok || len(again) == 0 {
		return ""
	}
	if o.MaxSteps > 0 && w.step.Step >= o.MaxSteps {
		return commandLine(again, fmt.Sprintf("train.max_steps=%d", 2*o.MaxSteps))
	}
	if h := w.run.job.run.Hours; h > 0 {
		return commandLine(again, fmt.Sprintf("run.hours=%g", 2*h))
	}
	return commandLine(again, fmt.Sprintf("train.epochs=%d", 2*o.Epochs))
}

// commandLine is words as a shell takes them, with more in place of those that set the same keys.
func commandLine(words []string, more ...string) string {
	if len(words) == 0 {
		return ""
	}
	var quoted []string
	for _, word := range words {
		key, _, ok := strings.Cut(word, "=")
		if !ok || !slices.ContainsFunc(more, func(m string) bool { return strings.HasPrefix(m, key+"=") }) {
			quoted = append(quoted, word)
		}
	}
	quoted = append(quoted, more...)
	for i, word := range quoted {
		if word == "" || strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./=:,+-@%") != "" {
			quoted[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}
