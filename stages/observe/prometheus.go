package observe

import (
	"net/http"
	"runtime"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/flowrun/flowrun/stages/pipe"
)

// Reading is what a scrape says of a run.
type Reading struct {
	Dir, Version string
	State        string   // one of States
	States       []string // all that there are
	Step         Step     // the newest; none if its Step is 0
	Total        int      // the last step that there will be; 0: not known
	Validation   map[string]float64
	Stages       []pipe.Stat

	Limit, InUse int64 // bytes of the budget for scans
	Free         int64 // bytes that can still be written to the run's folder; < 0: not known
	Memory       int64 // bytes that the machine, or the control group, can still give; < 0: not known
	Quarantined  int
	Saved        int     // the step of the newest checkpoint; 0: none
	Progress     float64 // when something last moved, in seconds since 1970
	Queue        *Queue  // nil for a run without
}

// Queue is what a run knows of its queue: of its own ends, and where it trains of the patches on the server.
type Queue struct {
	Held    map[string]int // messages in hand, by role
	Waiting bool           // what it sends has to wait: the queue is full, or the server away
	Known   bool           // the rest is
	Patches int            // not given out
	Given   int            // given out and not yet in a durable checkpoint
	Bytes   int64          // on the server's disk
	Limit   int64
}

// Exporter tells Prometheus of a run. Names and units follow its conventions: base units, the unit at the end of the
// name, counters end in _total. docs/monitoring.md lists them.
type Exporter struct {
	registry *prometheus.Registry
	steps    prometheus.Counter
	voxels   prometheus.Counter
	seconds  prometheus.Histogram
	saved    prometheus.Counter
}

// NewExporter returns an Exporter that asks read at each scrape. It is called from several goroutines.
func NewExporter(read func() Reading) *Exporter {
	e := &Exporter{
		registry: prometheus.NewRegistry(),
		steps:    prometheus.NewCounter(prometheus.CounterOpts{Name: "flowrun_train_steps_total", Help: "Optimiser steps taken since the process started."}),
		voxels:   prometheus.NewCounter(prometheus.CounterOpts{Name: "flowrun_train_voxels_total", Help: "Voxels trained on since the process started."}),
		saved:    prometheus.NewCounter(prometheus.CounterOpts{Name: "flowrun_checkpoints_total", Help: "Checkpoints written since the process started."}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "flowrun_train_step_duration_seconds",
			Help: "Time from the end of one optimiser step to that of the next, waiting for data included.", Buckets: prometheus.ExponentialBuckets(0.01, 2, 16)}),
	}
	e.registry.MustRegister(e.steps, e.voxels, e.saved, e.seconds, readings{read},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return e
}

// Step counts an optimiser step.
func (e *Exporter) Step(s Step) {
	e.steps.Inc()
	e.voxels.Add(max(0, s.VoxelsPerSecond*s.Seconds))
	e.seconds.Observe(s.Seconds)
}

// Saved counts a checkpoint.
func (e *Exporter) Saved() { e.saved.Inc() }

// Handler answers scrapes.
func (e *Exporter) Handler() http.Handler {
	return promhttp.HandlerFor(e.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, ErrorHandling: promhttp.ContinueOnError})
}

// readings makes metrics of a Reading.
type readings struct{ read func() Reading }

// Describe sends nothing: which metrics there are depends on the run.
func (readings) Describe(chan<- *prometheus.Desc) {}

// Collect sends what is known at the time.
func (c readings) Collect(to chan<- prometheus.Metric) {
	r, out := c.read(), scrape(to)
	out.run(&r)
	for _, s := range r.Stages {
		out.stage(s)
	}
	if r.Queue != nil {
		out.queue(r.Queue)
	}
	out.training(&r)
}

// scrape is where the metrics of one scrape go.
type scrape chan<- prometheus.Metric

// send sends one, whose labels are name, value, …
func (to scrape) send(kind prometheus.ValueType, value float64, name, help string, labels ...string) {
	var names, values []string
	for pair := range slices.Chunk(labels, 2) {
		names, values = append(names, pair[0]), append(values, strings.ToValidUTF8(pair[1], "�"))
	}
	to <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, value, values...)
}

func (to scrape) gauge(value float64, name, help string, labels ...string) {
	to.send(prometheus.GaugeValue, value, name, help, labels...)
}

func (to scrape) run(r *Reading) {
	to.gauge(1, "flowrun_build_info", "What runs.", "version", r.Version, "goversion", runtime.Version())
	to.gauge(1, "flowrun_run_info", "The run, by its folder.", "dir", r.Dir)
	for _, state := range r.States {
		value := 0.0
		if state == r.State {
			value = 1
		}
		to.gauge(value, "flowrun_run_state", "1 for the state that the run is in.", "state", state)
	}
	to.gauge(r.Progress, "flowrun_last_progress_timestamp_seconds", "When something in the graph last moved.")
	to.gauge(float64(r.Limit), "flowrun_scan_budget_limit_bytes", "Memory for scans.")
	to.gauge(float64(r.InUse), "flowrun_scan_budget_used_bytes", "Memory that scans are holding.")
	if r.Free >= 0 {
		to.gauge(float64(r.Free), "flowrun_disk_free_bytes", "What can still be written where the run's folder is.")
	}
	if r.Memory >= 0 {
		to.gauge(float64(r.Memory), "flowrun_memory_free_bytes", "What the machine can still give, or the control group where that has less.")
	}
	to.gauge(float64(r.Quarantined), "flowrun_quarantined_scans", "Scans that couldn't be read and are left out.")
	to.gauge(float64(r.Saved), "flowrun_checkpoint_step", "The optimiser step of the newest checkpoint; 0 if there is none.")
}

func (to scrape) stage(s pipe.Stat) {
	count := func(value float64, name, help, label, of string) {
		to.send(prometheus.CounterValue, value, name, help, "stage", s.Stage, label, of)
	}
	const elements, elementsHelp = "flowrun_stage_elements_total", "Elements that went into and came out of a stage."
	count(float64(s.In), elements, elementsHelp, "direction", "in")
	count(float64(s.Out), elements, elementsHelp, "direction", "out")
	const seconds, secondsHelp = "flowrun_stage_seconds_total", "What a stage's workers did with their time, summed over them."
	count(s.Busy.Seconds(), seconds, secondsHelp, "doing", "working")
	count(s.BlockedIn.Seconds(), seconds, secondsHelp, "doing", "waiting_for_input")
	count(s.BlockedOut.Seconds(), seconds, secondsHelp, "doing", "waiting_for_output")
	to.gauge(float64(s.Bytes), "flowrun_stage_bytes", "Bytes of the elements inside a stage.", "stage", s.Stage)
	to.gauge(float64(s.Workers), "flowrun_stage_workers", "Workers of a stage.", "stage", s.Stage)
}

func (to scrape) queue(q *Queue) {
	for role, n := range q.Held {
		to.gauge(float64(n), "flowrun_queue_held_messages", "Messages of the queue that this process has in hand.", "role", role)
	}
	waiting := 0.0
	if q.Waiting {
		waiting = 1
	}
	to.gauge(waiting, "flowrun_queue_blocked", "1 while what is sent has to wait: the queue is full, or the server away.")
	if q.Known {
		to.gauge(float64(q.Patches), "flowrun_queue_waiting_patches", "Patches on the server that the trainer hasn't taken.")
		to.gauge(float64(q.Given), "flowrun_queue_unacknowledged_patches", "Patches that the trainer took and no checkpoint holds yet.")
		to.gauge(float64(q.Bytes), "flowrun_queue_patches_bytes", "Bytes of patches on the server's disk.")
		to.gauge(float64(q.Limit), "flowrun_queue_limit_bytes", "The most that patches may take there.")
	}
}

func (to scrape) training(r *Reading) {
	if r.Total > 0 {
		to.gauge(float64(r.Total), "flowrun_train_planned_steps", "The optimiser step at which the run will be done.")
	}
	if r.Step.Step > 0 {
		to.gauge(float64(r.Step.Step), "flowrun_train_step", "The newest optimiser step.")
		to.gauge(float64(r.Step.Epoch), "flowrun_train_epoch", "The epoch of the newest step, from 0.")
		to.gauge(r.Step.LR, "flowrun_train_learning_rate", "Learning rate of the newest step.")
		for _, f := range r.Step.fields() {
			name, train := strings.CutPrefix(f.name, "train/")
			if value, ok := f.value.(float64); ok && train {
				to.gauge(value, "flowrun_train_"+withUnit(name), "train/"+name+" of the newest step, as in metrics.jsonl.")
			}
		}
	}
	for name, value := range r.Validation {
		name, weights := validated(name)
		if name != "" {
			to.gauge(value, "flowrun_validation_"+withUnit(name), "val/"+name+" of the newest validation, as in metrics.jsonl.", "weights", weights)
		}
	}
}

// validated parts a validation metric's name from what was measured; "" if it isn't one.
func validated(name string) (metric, weights string) {
	metric, ok := strings.CutPrefix(name, "val/")
	if !ok {
		return "", ""
	}
	if rest, ok := strings.CutPrefix(metric, "ema_"); ok {
		return rest, "ema"
	}
	if rest, ok := strings.CutSuffix(metric, "_trilinear"); ok {
		return rest, "trilinear"
	}
	return metric, "raw"
}

// withUnit is a metric's name in Prometheus: letters, digits and _, with the unit at its end.
func withUnit(name string) string {
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, name)
	switch hu, isHU := strings.CutSuffix(name, "_hu"); {
	case isHU:
		return hu + "_hounsfield_units"
	case strings.HasPrefix(name, "psnr"):
		return name + "_decibels"
	case strings.HasPrefix(name, "ssim"), name == "codebook_usage":
		return name + "_ratio"
	}
	return name
}
