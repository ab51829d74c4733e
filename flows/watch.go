package flows

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flowrun/flowrun/stages/metrics"
	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/report"
	"github.com/flowrun/flowrun/stages/train"
)

// watch looks on while a run goes on, and tells of it: report.html, and what else the observe block asks for. It has a
// goroutine of its own. The stages only leave word of what they did, which takes them a lock and a copy.
type watch struct {
	run       *run
	trains    bool
	options   observe.Options
	incidents *observe.Incidents
	thumbs    report.Thumbs // of the goroutine that writes
	began     time.Time
	server    *observe.Server   // nil: none
	exporter  *observe.Exporter // nil: none
	hooks     *observe.Hooks
	hooked    context.Context // of hooks that are told while the run goes on
	systemd   *observe.Systemd
	events    events
	pulse     atomic.Int64 // grows with what moves beside the graph's elements

	// Of the goroutine that looks.
	stall          observe.Stall
	petted, stated time.Time
	warned         map[string]bool

	mu       sync.Mutex
	stats    func() []pipe.Stat // nil: the graph isn't running yet
	ended    []pipe.Stat        // the last of them, once it has ended
	recent   []reading
	state    report.State
	err      error // how the run ended
	finished time.Time
	moved    time.Time // when something in the graph last moved
	step     observe.Step
	first    int // the step before this session's first
	firstAt  time.Time
	total    int
	values   map[string]float64 // of the newest validation
	scans    []metrics.ScanResult
	usage    []int64 // how often the newest validation used each code
	pictures []string
	saved    string // the newest checkpoint's path
	savedAt  int    // and step
	memory   []sample
	peak     int64  // resident bytes
	pauses   int    // who wait for room
	short    string // of what, in the newest pause
	why      error  // of it

	stop chan struct{}
	done sync.WaitGroup
}

// reading is the graph's counters at a time.
type reading struct {
	at    time.Time
	stats []pipe.Stat
}

// sample is the memory at a time.
type sample struct {
	at             time.Time
	resident, scan int64 // bytes: of the process, and of the budget for scans
}

// How often the watch looks, in what it keeps.
const (
	lookEvery   = time.Second
	sampleEvery = 5 * time.Second
	roomEvery   = 20 * time.Second
	recently    = 30 * time.Second // the span of which the live graph shows the shares
	samples     = 400
)

// newWatch begins to watch a run that is being prepared. ctx ends at a hard stop.
func newWatch(ctx context.Context, r *run, incidents *observe.Incidents) (*watch, error) {
	o := r.job.observe
	hooks, err := observe.NewHooks(o, os.Getenv)
	if err != nil {
		return nil, configErrorf("observe.%w", err)
	}
	_, trains := option[train.Options](r.job)
	return &watch{run: r, trains: trains, events: events{run: r}, options: o, incidents: incidents, thumbs: report.Thumbs{Width: 1000}, began: time.Now(), state: report.Running,
		hooks: hooks, hooked: ctx, systemd: observe.NewSystemd(os.Getenv), stall: observe.Stall{Limit: o.StallAfter()}, warned: map[string]bool{},
		stop: make(chan struct{})}, nil
}

// start has the watch look on by itself, from before a graph is wired; the run may have gone back since the one before it. end
// ends it.
func (w *watch) start(stats func() []pipe.Stat) {
	w.mu.Lock()
	again := w.ended != nil
	w.stats, w.firstAt = stats, time.Now()
	w.ended, w.recent, w.values = nil, nil, nil
	w.mu.Unlock()
	w.resume()
	_ = w.systemd.Tell("READY=1") // where it can't be told, it finds out by its timeout
	if w.trains && w.options.Events {
		w.events.open(w.run.loop.Step)
	}
	if !again {
		w.done.Go(w.look)
	}
}

// resume takes up what the run goes on from, or has done.
func (w *watch) resume() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l := w.run.loop; l != nil {
		w.first, w.step.Step, w.total = l.Step, l.Step, l.Schedule.Steps
	}
	if w.saved = w.run.last; w.saved != "" && w.run.loop != nil {
		w.savedAt = w.run.loop.Step
	}
	if files, err := filepath.Glob(w.run.file("samples", "step-*.png")); err == nil {
		w.pictures = files
	}
}

func (w *watch) look() {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var sampled, written, roomed time.Time
	for {
		select {
		case <-w.stop:
			return
		case now := <-tick.C:
			w.stalls(now)
			w.service(now)
			if now.Sub(roomed) >= roomEvery {
				w.room()
				roomed = now
			}
			if now.Sub(sampled) >= sampleEvery {
				w.sample(now)
				sampled = now
			}
			if now.Sub(written) >= time.Duration(w.options.Report*float64(time.Second)) {
				w.write()
				written = time.Now() // what it took to write doesn't count
			}
		}
	}
}

// sample notes the memory and the counters.
func (w *watch) sample(now time.Time) {
	resident, _ := observe.Resources()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.peak = max(w.peak, resident)
	if w.memory = append(w.memory, sample{now, resident, w.run.budget.InUse()}); len(w.memory) > samples {
		kept := w.memory[:0]
		for i := 0; i+1 < len(w.memory); i += 2 { // of two the larger
			if w.memory[i].resident > w.memory[i+1].resident {
				w.memory[i+1].resident = w.memory[i].resident
			}
			kept = append(kept, w.memory[i+1])
		}
		w.memory = kept
	}
	if w.stats != nil {
		w.recent = append(w.recent, reading{now, w.stats()})
		for len(w.recent) > 2 && now.Sub(w.recent[1].at) >= recently {
			w.recent = w.recent[1:]
		}
	}
}

// took notes an optimiser step.
func (w *watch) took(s observe.Step, total int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.step, w.total = s, total
	w.pulse.Add(1)
	if w.exporter != nil {
		w.exporter.Step(s)
	}
}

// validated notes a validation.
func (w *watch) validated(values map[string]float64, scans []metrics.ScanResult, usage []int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.values, w.scans, w.usage = maps.Clone(values), slices.Clone(scans), slices.Clone(usage)
}

// drew notes a picture.
func (w *watch) drew(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Contains(w.pictures, path) {
		w.pictures = append(w.pictures, path)
	}
}

// removed notes that a picture is no more.
func (w *watch) removed(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pictures = slices.DeleteFunc(w.pictures, func(p string) bool { return p == path })
}

// kept notes a checkpoint.
func (w *watch) kept(path string, step int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.saved, w.savedAt = path, step
	if w.exporter != nil {
		w.exporter.Saved()
	}
}

// over notes that the graph has ended: its counters stand still.
func (w *watch) over() {
	w.events.close()
	if w.stalled() {
		w.stalls(time.Now()) // the end may come soon behind what moved again
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stats != nil {
		w.ended, w.stats = w.stats(), nil
	}
}

// end ends the watch, writes the last report and has hooks told. A mistake in the configuration leaves the report of the
// run before, and is told to whoever made it.
func (w *watch) end(ctx context.Context, err error) {
	close(w.stop)
	w.done.Wait()
	w.mu.Lock()
	w.state, w.err, w.finished = outcome(err), err, time.Now()
	w.stats = nil
	began := w.ended != nil
	w.mu.Unlock()
	if _, config := errors.AsType[*ConfigError](err); config && !began {
		w.closeServer()
		return
	}
	w.write()
	w.tellEnd(ctx, err)
	w.closeServer()
}

// outcome is the state of a run that ended with err.
func outcome(err error) report.State {
	switch ExitCode(err) {
	case ExitDone:
		return report.Done
	case ExitDiverged:
		return report.Diverged
	case ExitInterrupted:
		return report.Interrupted
	}
	return report.Failed
}

// write writes report.html. What keeps it from being written is no reason to end a run.
func (w *watch) write() {
	err := w.run.lock.Held()
	if err == nil {
		page := w.page()
		page.Pictures = w.embed()
		err = report.WritePage(w.run.file("report.html"), page)
	}
	if err != nil {
		w.run.log.Warn().Err(err).Msg("the report can't be written")
	}
}

// What a report shows at most: pictures, their bytes, and scans that were set aside.
const (
	pagePictures = 6
	pageBytes    = 4 << 20
	pageScans    = 200
)

// embed makes data URIs of the pictures: the first, the last and some between.
func (w *watch) embed() []report.Picture {
	w.mu.Lock()
	files := report.Spread(slices.Clone(w.pictures), pagePictures)
	w.mu.Unlock()
	w.thumbs.Keep(files)
	slices.Reverse(files) // the newest first
	var list []report.Picture
	room := pageBytes
	for _, path := range files {
		data, err := w.thumbs.Data(path)
		if err != nil || len(data) > room {
			continue // a picture that is gone, or being written
		}
		room -= len(data)
		list = append(list, report.Picture{Caption: w.caption(path), Source: data, Link: w.link(path)})
	}
	return list
}

// link is a file of the run's folder as the page there names it.
func (w *watch) link(path string) string {
	if rel, err := filepath.Rel(w.run.job.run.Dir, path); err == nil {
		return filepath.ToSlash(rel)
	}
	return filepath.ToSlash(path)
}

// caption says what a picture shows.
func (w *watch) caption(path string) string {
	if step, ok := sampleStep(path); ok {
		return fmt.Sprintf("Step %d", step)
	}
	return w.link(path)
}
