package flows

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/report"
)

// A run that lacks room, on the disk or in memory, waits for it rather than end. Whoever needs room waits, and all before him.
// On the disk those are the writers of what a resumed run depends on; in memory, whoever is about to take much of it: a scan
// that would be let in, a snapshot, a validation. What is in the graph meanwhile is trained, and so gives its memory back.

// What a run waits for.
const (
	noDisk   = "the disk is full"
	noMemory = "memory is nearly full"
)

// retryEvery is how often somebody who waits for room looks again.
const retryEvery = 2 * time.Second

// full says that a write failed for want of room on the disk.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// patiently writes, and where the disk is full, pauses until it isn't: whoever calls it waits, and all behind him. A stop
// ends the pause with the error.
func (r *run) patiently(write func() error) (err error) {
	err = write()
	if !full(err) || r.stopping == nil {
		return err
	}
	r.watch.pause(noDisk, err)
	defer func() { r.watch.unpause(!full(err)) }()
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

// spare is the free memory that a run leaves to others: a fortieth of all, at most 256 MiB.
func spare(total int64) int64 { return min(total/40, 256<<20) }

// missing is how many bytes of memory there are too few for so many more, 0 where there are enough.
func (r *run) missing(bytes int64) int64 {
	free, total := r.available()
	if total == 0 {
		return 0
	}
	return max(0, bytes+spare(total)-free)
}

// await pauses until there is memory for so many bytes more, as what. A stop ends the pause, and so does ctx.
func (r *run) await(ctx context.Context, bytes int64, what string) {
	if r.stopping == nil || r.missing(bytes) == 0 {
		return
	}
	debug.FreeOSMemory() // what is garbage, and what the allocator keeps for later
	missing := r.missing(bytes)
	select {
	case <-r.stopping:
		return
	default:
	}
	if missing == 0 || ctx.Err() != nil {
		return
	}
	r.watch.pause(noMemory, fmt.Errorf("%s takes %s, and %s are missing; end other programs, or stop this one and lower run.memory", what, report.Bytes(bytes), report.Bytes(missing)))
	defer func() { r.watch.unpause(r.missing(bytes) == 0) }()
	r.short.Store(true)
	tick := time.NewTicker(retryEvery)
	defer tick.Stop()
	for r.missing(bytes) > 0 {
		select {
		case <-tick.C:
			debug.FreeOSMemory() // of scans that were trained meanwhile
		case <-r.stopping:
			return
		case <-ctx.Done():
			return
		}
	}
}

// wanted says why a snapshot is due now, "" for not at all: a run that waits for memory may be ended by the system for the lack
// of it, so it saves what it has while it can. That is no checkpoint of its course, as one of a stop isn't.
func (r *run) wanted(trained int) string {
	if trained == 0 || !r.short.Load() || r.missing(r.parts.snapshot) > 0 {
		return ""
	}
	r.short.Store(false)
	return "stop"
}

// limitMemory has the garbage collector keep within run.memory; a GOMEMLIMIT of the user's holds before it.
func (r *run) limitMemory(getenv func(string) string) {
	if getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(r.parts.heap(r.queues == nil || r.queues.server == nil || r.queues.reads))
	}
}

// pause notes that somebody waits for room.
func (w *watch) pause(short string, why error) {
	w.mu.Lock()
	w.pauses++
	first := w.pauses == 1
	if first {
		w.state = report.Paused
	}
	w.short, w.why = short, why
	w.mu.Unlock()
	if !first {
		return
	}
	w.run.log.Warn().Str("event", "paused").Err(why).Msg(short + ": the run waits until there is room")
	w.tell("paused", fmt.Sprintf("%s: paused, %s: %v", w.run.job.run.Dir, short, why))
}

// unpause notes that somebody waits no longer: there is room, or the run ends without.
func (w *watch) unpause(room bool) {
	w.mu.Lock()
	w.pauses--
	last := w.pauses == 0 && w.state == report.Paused
	if last {
		w.state = report.Running
	}
	w.mu.Unlock()
	if last && room {
		w.run.log.Info().Str("event", "resumed").Msg("there is room again")
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
	free, total := r.available()
	if total == 0 {
		return
	}
	if free < spare(total) {
		debug.FreeOSMemory()
		free, _ = r.available()
	}
	if free < spare(total) && !w.warned["memory"] {
		r.log.Warn().Str("event", "memory").Str("free", report.Bytes(free)).Msg("memory is nearly full: end other programs, or lower run.memory")
	}
	w.warned["memory"] = free < spare(total) || w.warned["memory"] && free < 2*spare(total)
}
