package flows

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/flowrun/flowrun/stages/metrics"
	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

const mib = 1 << 20

// sized are scans that cost so many MiB each to hold.
func sized(each ...int64) []*volume.Scan {
	scans := make([]*volume.Scan, len(each))
	for i, n := range each {
		scans[i] = &volume.Scan{ID: fmt.Sprintf("s%d", i), Dims: [3]int{1, int(n-4) * 512, 1024}} // 4 MiB are buffers
	}
	return scans
}

func TestDivide(t *testing.T) {
	for _, c := range []struct {
		name        string
		limit       int64 // MiB
		windows     []int // of the shuffles
		train, held []int64
		fixed       int64 // engine, batches and snapshot, a third each
		batch       int   // 0: no such stage
		scans       int64 // left for scans; 0: refused
		hint        string
	}{
		{name: "one scan at a time", limit: 10, train: []int64{10, 10, 5}, scans: 10},
		{name: "less than one scan", limit: 9, train: []int64{5, 10}, hint: "raise run.memory"},
		{name: "what is fixed counts", limit: 39, train: []int64{10}, fixed: 30, hint: "choose a smaller tile.patch or model, or raise run.memory"},
		{name: "and leaves the rest", limit: 41, train: []int64{10}, fixed: 30, scans: 11},
		{name: "more than there is", limit: 29, train: []int64{10}, fixed: 30, hint: "raise run.memory"},
		{name: "more than there is and batches of one patch would give back", limit: 50, train: []int64{10}, fixed: 60, batch: 20, hint: "raise run.memory"},
		{name: "what batches of one patch would give back", limit: 51, train: []int64{10}, fixed: 60, batch: 20, hint: "lower batch.size, or raise run.memory"},
		{name: "what half a patch would give back", limit: 60, train: []int64{10}, fixed: 60, hint: "choose a smaller tile.patch or model, or raise run.memory"},
		{name: "the largest held-out scan counts", limit: 30, train: []int64{10}, held: []int64{5, 20, 6}, scans: 10},
		{name: "the largest held-out scan is too much", limit: 29, train: []int64{10}, held: []int64{5, 20, 6}, hint: "raise run.memory"},
		{name: "a window and the scan on its way", limit: 50, windows: []int{4}, train: []int64{10, 10, 10, 10, 10, 10}, scans: 50},
		{name: "a window without the scan on its way", limit: 49, windows: []int{4}, train: []int64{10, 10, 10, 10, 10, 10}, hint: "set shuffle.volumes to 3 or less, or raise run.memory"},
		{name: "a much too large window", limit: 49, windows: []int{40}, train: []int64{10, 10, 10, 10, 10, 10}, hint: "set shuffle.volumes to 3 or less, or raise run.memory"},
		{name: "a window for which nothing is left", limit: 19, windows: []int{4}, train: []int64{10, 10, 10, 10, 10, 10}, hint: "raise run.memory"},
		{name: "two windows", limit: 59, windows: []int{2, 3}, train: []int64{10, 10, 10, 10, 10, 10}, hint: "set shuffle.volumes to 2 or less, or raise run.memory"},
		{name: "two windows fit", limit: 60, windows: []int{2, 3}, train: []int64{10, 10, 10, 10, 10, 10}, scans: 60},
		// The window holds all scans of an epoch until the next epoch's first one comes.
		{name: "fewer scans than the window", limit: 30, windows: []int{4}, train: []int64{10, 10}, scans: 30},
		{name: "fewer scans than the window, no room for the next epoch's", limit: 29, windows: []int{4}, train: []int64{10, 10}, hint: "set shuffle.volumes to 1 or less, or raise run.memory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			job := func(windows []int) *Job {
				text := fmt.Sprintf("run: {memory: %dMiB}\nmodel: {downsample: [2, 2, 2]}\nflow:\n - read: {scans: [x]}\n - tile: {patch: [4, 4, 4]}\n", c.limit)
				for _, n := range windows {
					text += fmt.Sprintf(" - shuffle: {volumes: %d}\n", n)
				}
				if c.batch > 0 {
					text += fmt.Sprintf(" - batch: {size: %d}\n", c.batch)
				}
				return mustLoad(t, text)
			}
			d := &data{train: sized(c.train...), held: sized(c.held...)}
			third := c.fixed * mib / 3
			m, err := job(c.windows).divide(d, third, third, third)
			if c.scans > 0 {
				if err != nil || m.scans != c.scans*mib {
					t.Errorf("%s for scans, want %d MiB: %v", size(m.scans), c.scans, err)
				}
				return
			}
			if err == nil || ExitCode(err) != ExitUsage || !strings.HasSuffix(err.Error(), ": "+c.hint) || !strings.HasPrefix(err.Error(), "run.memory: too little: ") {
				t.Fatalf("got %v, want the hint: %s", err, c.hint)
			}
			// The hint must be true.
			if number := regexp.MustCompile(`volumes to (\d+)`).FindStringSubmatch(c.hint); number != nil {
				n, _ := strconv.Atoi(number[1])
				smaller := make([]int, len(c.windows))
				for i := range smaller {
					smaller[i] = n
				}
				if _, err := job(smaller).divide(d, third, third, third); err != nil {
					t.Errorf("with shuffle.volumes at %d: %v", n, err)
				}
			}
		})
	}
}

// TestReserve: the engine leaves room for scans where it can do with less, and says nothing of it where it can't.
func TestReserve(t *testing.T) {
	plan := func(limit int64) (total int64, err error) {
		j := mustLoad(t, fmt.Sprintf(`
run: {memory: %d}
model: {hidden: 8, downsample: [2, 2, 2], codes: 16}
flow: [read: {scans: [x]}, tile: {patch: [32, 32, 32]}, batch, train: {device: cpu}]
`, limit))
		e, err := j.engine("cpu")
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, e.Close()) }()
		o, _ := option[train.Options](j)
		patch := [3]int{32, 32, 32}
		d := &data{train: sized(20, 20)}
		j.reserve(e, d, *o, patch)
		p, err := j.plan(e, *o, patch)
		if err != nil {
			return 0, err
		}
		_, err = j.divide(d, p.Total, p.State, j.maker(patch).Bytes())
		return p.Total, err
	}
	free, err := plan(1 << 30)
	if err != nil {
		t.Fatal(err)
	}
	tight, err := plan(free + 21*mib)
	if err != nil || tight >= free {
		t.Errorf("%d bytes of %d: %v", tight, free, err)
	}
	if _, err := plan(tight); ExitCode(err) != ExitUsage || !strings.Contains(err.Error(), "run.memory: too little") {
		t.Error(err)
	}
}

// TestDivideFlows runs graphs in the least memory that divide lets them have: they come to their end.
func TestDivideFlows(t *testing.T) {
	_, scans := scanFiles(t, [3]int{8, 8, 8}, [3]int{8, 8, 8}, [3]int{8, 8, 8}, [3]int{8, 8, 8}, [3]int{8, 8, 8})
	for n := 1; n <= len(scans); n++ {
		for _, windows := range [][]int{{}, {1}, {2}, {3}, {9}, {2, 2}, {9, 1}, {1, 9}, {2, 1, 2}} {
			text := "model: {downsample: [2, 2, 2]}\nflow:\n - read: {scans: [x], ahead: 3}\n - tile: {mode: grid, patch: [4, 4, 4]}\n"
			for _, v := range windows {
				text += fmt.Sprintf(" - shuffle: {volumes: %d}\n", v)
			}
			job := mustLoad(t, text+" - batch: {size: 3}\n")
			d, err := job.freeze(scans[:n], nil)
			if err != nil {
				t.Fatal(err)
			}
			o, _ := option[read.Options](job)
			each := read.Cost(scans[0], *o)
			var m memory
			for k := int64(1); ; k++ {
				job.run.Memory = k * each
				if m, err = job.divide(d, 0, 0, 0); err == nil {
					break
				}
			}
			ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Second, errors.New("stands still"))
			r := &run{job: job, data: d, log: zerolog.Nop(), warned: map[string]bool{}, budget: pipe.NewBudget(m.scans),
				maker: job.maker([3]int{4, 4, 4}), epochs: 3}
			if r.quarantine, err = read.OpenQuarantine(t.TempDir() + "/q"); err != nil {
				t.Fatal(err)
			}
			g := pipe.New(ctx)
			r.wire(g)
			err = g.Wait()
			cancel()
			if err != nil || r.budget.InUse() != 0 {
				t.Fatalf("%d scans through windows %v with room for %d: %v, %d bytes in use", n, windows, m.scans/each, err, r.budget.InUse())
			}
		}
	}
}

// TestDivideOnTheWayBack: so do those on the way back, where a batch holds the scans of its tiles until it is full.
func TestDivideOnTheWayBack(t *testing.T) {
	small, tall := [3]int{8, 8, 8}, [3]int{8, 8, 20}
	for _, dims := range [][][3]int{{small}, {small, small, small, small, small}, {tall, small, tall, small, small, tall}} {
		scans, _ := scanFiles(t, dims...)
		for _, batch := range []int{1, 2, 3, 4, 9} {
			dir := t.TempDir()
			job := mustLoad(t, fmt.Sprintf(`
run: {dir: %q}
flow:
  - read:  {scans: [%q]}
  - tile:  {patch: [8, 8, 8], stride: [8, 8, 6]}
  - batch: {size: %d}
  - infer: {checkpoint: identity}
  - merge: {mode: blend}
  - write: {dir: %q}
`, filepath.Join(dir, "run"), scans, batch, filepath.Join(dir, "out")))
			d, err := job.findScans(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for job.run.Memory = mib; ; job.run.Memory += mib / 16 {
				if _, err = job.divide(d, 0, 0, job.maker(job.patch()).Bytes()); err == nil {
					break
				}
			}
			ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Second, errors.New("stands still"))
			err = job.Run(ctx, nil, UI{Out: io.Discard, Err: io.Discard})
			cancel()
			if written := must(os.ReadDir(filepath.Join(dir, "out"))); err != nil || len(written) != len(dims) {
				t.Errorf("%d of %v in batches of %d, in %s: %v", len(written), dims, batch, size(job.run.Memory), err)
			}
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 3 << 19: "2 MiB", 5 << 20: "5 MiB", 3 << 29: "1.5 GiB", -5 << 20: "-5 MiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
	if n := hostMemory(); n < 64<<20 {
		t.Errorf("the host has %s", size(n))
	}
}

// What merge, measure and write hold counts: of the largest scan, of two where a batch may have tiles of two, and of a file that is
// turned as a whole. 4 bytes for each voxel of a tile's depth, 8 of 12×10 voxels.
func TestOutputCounts(t *testing.T) {
	_, scans := scanFiles(t, [3]int{12, 10, 90}, [3]int{8, 8, 8})
	output := func(scans []*volume.Scan, behind ...string) int64 {
		return mustLoad(t, "flow:\n  - read: {scans: [x]}\n  - tile: {patch: [8, 8, 8], stride: [6, 6, 5]}\n  - batch: {size: 2}\n"+
			"  - infer: {checkpoint: identity}\n  - merge: {mode: blend}\n"+strings.Join(behind, "")).output(&data{all: scans})
	}
	const measure, write = "  - measure: {}\n", "  - write: {dir: out}\n"
	const slab = 4 * 8 * 12 * 10
	if got := output(scans[:1]); got != slab {
		t.Errorf("merge of one scan: %d (want %d)", got, slab)
	}
	if got := output(scans); got != 2*slab {
		t.Errorf("merge of two: %d (want %d)", got, 2*slab)
	}
	if got, want := output(scans, measure), 2*slab+metrics.Bytes(scans[0].Dims, [3]int{}); got != want {
		t.Errorf("and measured: %d (want %d)", got, want)
	}
	written := output(scans, write) - 2*slab
	turned := *scans[0]
	turned.Rising = !turned.Rising
	if other := output([]*volume.Scan{&turned, scans[1]}, write) - 2*slab; max(written, other)-min(written, other) < 2*12*10*89 {
		t.Errorf("written: %d, turned %d", written, other)
	}
}
