package flows

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/flowrun/flowrun/gpu/nn"
	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/pipe"
)

// BenchFigures are what bench measures. What isn't known is zero or null. Voxels are those of patches, which overlap.
type BenchFigures struct {
	File       string   `json:"file"`
	Engine     string   `json:"engine"`
	Clock      string   `json:"clock"` // that calls of the model and its ops are timed by: device or host
	Patch      [3]int   `json:"patch"` // x, y, z
	Batch      int      `json:"batch"` // patches
	Parameters int      `json:"parameters"`
	Ceiling    Ceiling  `json:"ceiling"`
	Data       *Flow    `json:"data"`               // up to batch, nothing computed
	Compute    []Speed  `json:"compute"`            // one batch again and again, in each phase of training
	R1Every    int      `json:"r1_every,omitempty"` // steps, here
	OpsOf      string   `json:"ops_of,omitempty"`   // the phase
	Ops        []OpKind `json:"ops"`                // longest first
	Layers     []OpKind `json:"layers"`             // each op, in order
	Both       *Flow    `json:"both"`               // the whole graph, in the last phase
	Slower     string   `json:"slower,omitempty"`   // of data and compute
	OfSlower   float64  `json:"of_slower"`          // Both as a share of it
	Unreadable int      `json:"unreadable_scans"`   // set aside
	Memory     Memory   `json:"memory"`
}

// Speed is how fast the model is by itself.
type Speed struct {
	Name    string  `json:"name"`
	Calls   int     `json:"calls"`   // timed
	Seconds float64 `json:"seconds"` // median of a call, which is an optimiser step or a batch
	Least   float64 `json:"least_seconds"`
	Patches float64 `json:"patches_per_second"`
	Voxels  float64 `json:"voxels_per_second"`
	FLOPS   float64 `json:"flops"` // of convolutions, a second
}

// OpKind is what one kind of op, or one op, takes in a pass.
type OpKind struct {
	Kind    string  `json:"kind"`
	Name    string  `json:"name,omitempty"` // of one
	Calls   int     `json:"calls"`
	Seconds float64 `json:"seconds"`
	Share   float64 `json:"share"` // of the pass
	FLOPS   float64 `json:"flops"` // a second; 0 for what isn't a convolution
	Bytes   float64 `json:"bytes_per_second"`
}

// Flow is how fast a graph is.
type Flow struct {
	Seconds float64 `json:"seconds"` // measured
	Patches float64 `json:"patches_per_second"`
	Voxels  float64 `json:"voxels_per_second"`
	MBs     float64 `json:"megabytes_per_second,omitempty"` // float32 for the device
	BoundBy string  `json:"bound_by"`                       // a stage and how busy it was
	Stages  []Stage `json:"stages"`
}

// Stage is what a stage's workers did, as shares of the time.
type Stage struct {
	Name      string  `json:"name"`
	Workers   int     `json:"workers"`
	Busy      float64 `json:"busy"`
	WaitedIn  float64 `json:"waited_for_input"`
	WaitedOut float64 `json:"waited_for_output"`
}

// Memory is bytes.
type Memory struct {
	Arena   int64 `json:"arena"`
	Device  bool  `json:"arena_on_gpu"`
	Before  int64 `json:"gpu_used_before"` // by the driver's context, with the kernels, and other processes
	Used    int64 `json:"gpu_used"`        // at the end; nothing is allocated but the arena
	Process int64 `json:"process_peak"`    // resident
}

// speed sums up the seconds of calls of n patches.
func (k *BenchFigures) speed(name string, n int, seconds []float64, work float64) Speed {
	sorted := slices.Sorted(slices.Values(seconds))
	m := len(sorted)
	median := (sorted[(m-1)/2] + sorted[m/2]) / 2
	patches := float64(n) / median
	return Speed{Name: name, Calls: m, Seconds: median, Least: sorted[0], Patches: patches,
		Voxels: patches * float64(product(k.Patch)), FLOPS: patches * work}
}

// profiled takes a profile over.
func (k *BenchFigures) profiled(phase string, list []nn.Timing) {
	total := 0.0
	for _, t := range list {
		total += t.Took.Seconds()
	}
	shares := func(list []nn.Timing) (ops []OpKind) {
		for _, t := range list {
			s := max(t.Took.Seconds(), 1e-9)
			ops = append(ops, OpKind{Kind: t.Kind, Name: t.Name, Calls: t.Calls, Seconds: s, Share: s / total, FLOPS: float64(t.FLOPs) / s, Bytes: float64(t.Bytes) / s})
		}
		return ops
	}
	k.OpsOf, k.Ops, k.Layers = phase, shares(nn.ByKind(list)), shares(list)
}

// compute is the model's speed where the whole graph was measured: behind the discriminators' start, with R1's share of steps.
func (k *BenchFigures) compute() float64 {
	switch n := len(k.Compute); n {
	case 0:
		return 0
	case len(phaseNames):
		every := float64(k.R1Every)
		return every / ((every-1)/k.Compute[1].Voxels + 1/k.Compute[2].Voxels)
	default:
		return k.Compute[n-1].Voxels
	}
}

// together compares the whole graph with its parts.
func (k *BenchFigures) together(f Flow) {
	k.Both, k.Slower = &f, "compute"
	slower := k.compute()
	if k.Data != nil && (slower == 0 || k.Data.Voxels < slower) {
		k.Slower, slower = "data", k.Data.Voxels
	}
	if slower > 0 {
		k.OfSlower = f.Voxels / slower
	}
}

// describe says what the stages did between two readings.
func (f *Flow) describe(before, after []pipe.Stat) {
	f.BoundBy = observe.BoundBy(before, after)
	for i, s := range after {
		if i < len(before) {
			s.Busy, s.BlockedIn, s.BlockedOut = s.Busy-before[i].Busy, s.BlockedIn-before[i].BlockedIn, s.BlockedOut-before[i].BlockedOut
		}
		all := (s.Busy + s.BlockedIn + s.BlockedOut).Seconds()
		if all <= 0 {
			continue
		}
		f.Stages = append(f.Stages, Stage{s.Stage, s.Workers, s.Busy.Seconds() / all, s.BlockedIn.Seconds() / all, s.BlockedOut.Seconds() / all})
	}
}

func (k *BenchFigures) json(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(k)
}

// table writes the figures for people.
func (k *BenchFigures) table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", args...) } // Flush says what failed
	line("bench\t%s on %s", k.File, k.Engine)
	line("  model\t%.3g million parameters, patches of %s, %d at a time", float64(k.Parameters)/1e6, list(k.Patch), k.Batch)
	if k.Ceiling.FLOPS > 0 {
		line("  at best\t%s GFLOP/s in a lone convolution, %s GB/s in a lone sum", figure(k.Ceiling.FLOPS/1e9), figure(k.Ceiling.Bytes/1e9))
	}
	if len(k.Compute) > 0 {
		line("\ncompute\tpatches/s\tMvoxel/s\tms\tGFLOP/s\tof best\t(one batch again and again, median, by the %s's clock)", k.Clock)
	}
	for _, s := range k.Compute {
		gflops, share := "", ""
		if s.FLOPS > 0 {
			gflops = figure(s.FLOPS / 1e9)
		}
		if s.FLOPS > 0 && k.Ceiling.FLOPS > 0 {
			share = percent(s.FLOPS / k.Ceiling.FLOPS)
		}
		line("  %s\t%s\t%s\t%s\t%s\t%s\t%d timed", s.Name, figure(s.Patches), figure(s.Voxels/1e6), figure(s.Seconds*1e3), gflops, share, s.Calls)
	}
	if len(k.Ops) > 0 {
		line("\nops\tof time\tcalls\tms\tGFLOP/s\tGB/s\t(%s, a micro-batch, by the %s's clock)", k.OpsOf, k.Clock)
	}
	for _, o := range k.Ops {
		gflops := ""
		if o.FLOPS > 0 {
			gflops = figure(o.FLOPS / 1e9)
		}
		line("  %s\t%s\t%d\t%s\t%s\t%s", o.Kind, percent(o.Share), o.Calls, figure(o.Seconds*1e3), gflops, figure(o.Bytes/1e9))
	}
	if k.Data != nil || k.Both != nil {
		line("\ngraph\tpatches/s\tMvoxel/s\tbound by")
	}
	if d := k.Data; d != nil {
		line("  data\t%s\t%s\t%s\t%s MB/s of float32", figure(d.Patches), figure(d.Voxels/1e6), d.BoundBy, figure(d.MBs))
	}
	if f := k.Both; f != nil {
		line("  both\t%s\t%s\t%s\t%s of %s, the slower of the two", figure(f.Patches), figure(f.Voxels/1e6), f.BoundBy, percent(k.OfSlower), k.Slower)
		var busy []string
		for _, s := range f.Stages {
			busy = append(busy, s.Name+" "+percent(s.Busy))
		}
		line("\nbusy\t%s", strings.Join(busy, ", "))
	}
	where := "in"
	if k.Memory.Device {
		where = "on the GPU, where " + size(k.Memory.Used) + " are in use, beside"
	}
	line("memory\tarena %s %s the process, which took %s at most", size(k.Memory.Arena), where, size(k.Memory.Process))
	if k.Unreadable > 0 {
		line("scans\t%d could not be read and were left out", k.Unreadable)
	}
	return t.Flush()
}

func percent(share float64) string { return fmt.Sprintf("%.0f%%", 100*share) }
