package flows

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"syscall"
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

// service tells the service manager that the run is alive, unless it is stalled.
func (w *watch) service(now time.Time) {
	if every := w.systemd.Watchdog() / 3; every > 0 && now.Sub(w.petted) >= every {
		w.mu.Lock()
		stalled := w.state == report.Stalled
		w.mu.Unlock()
		if !stalled {
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

// room looks at what is left of disk and memory, and warns before they run out; once, until there is enough again.
func (w *watch) room() {
	r := w.run
	if free, ok := observe.FreeSpace(r.job.run.Dir); ok && r.store != nil {
		need := 2 * r.parts.snapshot
		if free < need && !w.warned["disk"] {
			r.log.Warn().Str("event", "disk").Str("free", report.Bytes(free)).Str("checkpoint", report.Bytes(r.parts.snapshot)).Msg("the disk is nearly full: make room, or lower checkpoint.keep")
		}
		w.warned["disk"] = free < need
	}
	if free, total := observe.Available(); total > 0 {
		if free < total/40 && !w.warned["memory"] {
			r.log.Warn().Str("event", "memory").Str("free", report.Bytes(free)).Msg("the machine's memory is nearly full: end other programs, or lower run.memory")
		}
		w.warned["memory"] = free < total/40 || w.warned["memory"] && free < total/20
	}
}

// full says that a write failed for want of room on the disk.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// retryEvery is how often a write is tried again on a full disk.
const retryEvery = 2 * time.Second

// patiently writes, and where the disk is full, pauses until it isn't: whoever calls it waits, and all behind him. A stop
// ends the pause with the error.
func (r *run) patiently(write func() error) error {
	err := write()
	if !full(err) || r.stopping == nil {
		return err
	}
	r.watch.pause(err)
	defer r.watch.unpause()
	tick := time.NewTicker(retryEvery)
	defer tick.Stop()
	for full(err) {
		select {
		case <-tick.C:
			err = write()
		case <-r.stopping:
			return write()
		case <-r.hard:
			return err
		}
	}
	return err
}

// pause notes that a writer waits for room.
func (w *watch) pause(why error) {
	w.mu.Lock()
	w.pauses++
	first := w.pauses == 1
	if first {
		w.state = report.Paused
	}
	w.why = why
	w.mu.Unlock()
	if !first {
		return
	}
	w.run.log.Warn().Str("event", "paused").Err(why).Msg("the disk is full: the run waits until there is room")
	w.tell("paused", fmt.Sprintf("%s: paused, the disk is full: %v", w.run.job.run.Dir, why))
}

func (w *watch) unpause() {
	w.mu.Lock()
	w.pauses--
	last := w.pauses == 0 && w.state == report.Paused
	if last {
		w.state = report.Running
	}
	w.mu.Unlock()
	if last {
		w.run.log.Info().Str("event", "resumed").Msg("there is room again")
	}
}
