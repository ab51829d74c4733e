package flows

import (
	"context"
	"fmt"
	"maps"
	"os"
	"strings"
	"time"

	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/report"
)

// Beside the pages, the watch tells of what somebody may want to do something about: by hooks, and to the service manager.

// tell has hooks told of an event, without waiting for them; end does.
func (w *watch) tell(event, text string) {
	if !w.hooks.Wants(event) {
		return
	}
	n := w.notice(event, text)
	w.done.Go(func() { w.told(w.hooks.Tell(w.hooked, n)) })
}

func (w *watch) told(err error) {
	if err != nil {
		w.run.log.Warn().Err(err).Msg("a hook failed")
	}
}

// notice is what hooks are told.
func (w *watch) notice(event, text string) observe.Notice {
	host, _ := os.Hostname() // "" will do
	w.mu.Lock()
	defer w.mu.Unlock()
	n := observe.Notice{Event: event, Text: text, Run: w.run.job.run.Dir, Host: host, Time: time.Now().UTC(), Step: w.step.Step, Total: w.total,
		Checkpoint: w.saved, Metrics: maps.Clone(w.values)}
	for name, x := range n.Metrics {
		if x-x != 0 { // JSON has no infinities
			delete(n.Metrics, name)
		}
	}
	if w.stats != nil || w.ended != nil {
		n.Report = w.run.file("report.html")
	}
	return n
}

// told of the end, hooks get this long.
const lastWords = 40 * time.Second

// tellEnd tells hooks how the run ended, and waits for them. A second signal doesn't.
func (w *watch) tellEnd(ctx context.Context, err error) {
	event := string(outcome(err))
	if !w.hooks.Wants(event) {
		return
	}
	w.mu.Lock()
	text, _, command := w.sentence(time.Now())
	w.mu.Unlock()
	n := w.notice(event, w.run.job.run.Dir+": "+text)
	code := ExitCode(err)
	n.Exit, n.Command = &code, command
	limit := lastWords
	if ctx.Err() != nil {
		limit = time.Second
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	w.told(w.hooks.Tell(ctx, n))
}

// stalls looks whether anything moves.
func (w *watch) stalls(now time.Time) {
	w.mu.Lock()
	if w.stats == nil || w.state == report.Paused {
		w.mu.Unlock()
		return
	}
	stats := w.stats()
	stalled, news := w.stall.Look(now, observe.Moves(stats)+w.pulse.Load(), observe.ProcessorTime())
	w.moved = w.stall.Since()
	if news {
		w.state = report.Running
		if stalled {
			w.state = report.Stalled
		}
	}
	still := now.Sub(w.moved)
	w.mu.Unlock()
	switch {
	case news && stalled:
		stage := observe.Culprit(stats)
		e := w.run.log.Warn().Str("event", "stalled").Str("stage", stage)
		if path, err := observe.DumpGoroutines(w.run.job.run.Dir, now); err == nil {
			e = e.Str("goroutines", path)
		}
		e.Msg(fmt.Sprintf("nothing has moved for %s: %s holds the graph up", report.Duration(still), stage))
		w.tell("stalled", fmt.Sprintf("%s: stalled in %s: nothing has moved for %s", w.run.job.run.Dir, stage, report.Duration(still)))
		w.write()
	case news:
		w.run.log.Info().Str("event", "moving").Msg("the graph moves again")
	}
}

func (w *watch) stalled() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state == report.Stalled
}

// service tells the service manager that the run is alive, unless it is stalled.
func (w *watch) service(now time.Time) {
	if every := w.systemd.Watchdog() / 3; every > 0 && now.Sub(w.petted) >= every {
		if !w.stalled() {
			_ = w.systemd.Tell("WATCHDOG=1") // it will find out by itself
		}
		w.petted = now
	}
	if now.Sub(w.stated) >= 10*time.Second {
		w.mu.Lock()
		text := w.progress(now)
		w.mu.Unlock()
		_ = w.systemd.Tell("STATUS=" + strings.ReplaceAll(text, "\n", " "))
		w.stated = now
	}
}
