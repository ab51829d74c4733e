package read

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/flowrun/flowrun/stages/files"
	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/volume"
)

// Bad names a scan that can't be used, and why. It is a line of quarantine.jsonl.
type Bad struct {
	Scan   string `json:"scan"` // Scan.ID
	Path   string `json:"path"`
	Reason string `json:"reason"`
	// Until is the first epoch in which the scan's patches have no places in the stream. Epochs before it, of which some
	// had been trained when the scan was lost, keep them without voxels, so that the cursors of checkpoints stay true.
	Until int `json:"until,omitempty"`
}

// List finds the scans that o names and reads their headers, in parallel. Scans are sorted by ID and indexed; files
// whose header can't be used are in bad. What fails for a moment is tried again. It is an error if a place that o names isn't there or has no scan, if no scan
// at all can be used, or if the cache's folder can't be written to.
func List(ctx context.Context, o Options) (scans []*volume.Scan, bad []Bad, err error) {
	if err := o.Check(); err != nil {
		return nil, nil, err
	}
	if len(o.Scans) == 0 {
		return nil, nil, errors.New("scans: no folder, pattern or file is named")
	}
	f, err := find(ctx, o.Scans)
	if err != nil {
		return nil, nil, err
	}
	if err := checkCache(o.Cache); err != nil {
		return nil, nil, err
	}
	entries := f.Entries(nil)
	results := describeAll(ctx, entries, &o)
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	bad = f.bad
	var origins []origin
	for i, r := range results {
		if r.err != nil {
			bad = append(bad, Bad{Scan: entries[i].ID, Path: entries[i].Path, Reason: r.err.Error()})
			continue
		}
		r.scan.Index = len(scans)
		scans, origins = append(scans, r.scan), append(origins, r.origin)
	}
	markCopies(ctx, scans, origins)
	if len(scans) == 0 {
		return nil, bad, fmt.Errorf("scans: none of %d files can be used; the first, %s: %s", len(entries), bad[0].Path, bad[0].Reason)
	}
	return scans, bad, nil
}

// described is what a header said.
type described struct {
	scan   *volume.Scan
	origin origin
	err    error
}

// describeAll reads the headers of all entries, in parallel; those that fail for a moment again, at the end.
func describeAll(ctx context.Context, entries []files.Entry, o *Options) []described {
	results := make([]described, len(entries))
	todo := make([]int, len(entries))
	for i := range todo {
		todo[i] = i
	}
	for tries := tries(0); ; {
		var next atomic.Int64
		var wg sync.WaitGroup
		for range min(len(todo), 4*runtime.GOMAXPROCS(0), 32) {
			wg.Go(func() {
				for ctx.Err() == nil {
					n := int(next.Add(1)) - 1
					if n >= len(todo) {
						return
					}
					r := &results[todo[n]]
					r.scan, r.origin, r.err = describe(entries[todo[n]], o)
				}
			})
		}
		wg.Wait()
		todo = slices.DeleteFunc(todo, func(i int) bool { return !passing(results[i].err) })
		if len(todo) == 0 || !tries.again(ctx, results[todo[0]].err) {
			return results
		}
	}
}

// checkCache makes the cache's folder and tries to write there, so that a run doesn't find out later.
func checkCache(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return fmt.Errorf("cache: %s: %w", dir, files.Reason(err))
	}
	f, err := os.CreateTemp(dir, ".write-*.tmp")
	if err != nil {
		return fmt.Errorf("cache: %s: %w", dir, files.Reason(err))
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// describe reads one header.
func describe(e files.Entry, o *Options) (*volume.Scan, origin, error) {
	r, err := nifti.Open(e.Path, o.limits())
	if err != nil {
		return nil, origin{}, err
	}
	content := r.Content()
	if err := r.Close(); err != nil {
		return nil, origin{}, err
	}
	p, err := newPlan(r.Header, o)
	if err != nil {
		return nil, origin{}, err
	}
	return &volume.Scan{ID: e.ID, Path: e.Path, Dims: p.dims, Spacing: p.spacing, Digest: digest(r.Header), Content: content,
		Rising: p.geometry.Axes[2] == 2 && !p.geometry.Flip[2]}, originOf(r.Header), nil
}

// digest is a hex SHA-256 over the header and each file's size and modification time.
func digest(h *nifti.Header) string {
	sum := sha256.New()
	_, _ = sum.Write(h.Raw)
	for _, f := range h.Files {
		_, _ = fmt.Fprintf(sum, "\n%d %d", f.Size, f.ModTime)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// plan is what a header says about loading its scan.
type plan struct {
	grid     nifti.Grid
	dims     [3]int     // canonical, as loaded
	spacing  [3]float64 // canonical, as loaded, mm
	geometry volume.Geometry
	warnings []string
	raw      bool // samples are kept as they are
}

// coarsest is how many voxels resampling makes one of at most: a header in metres would leave nothing of a scan.
const coarsest = 100

func newPlan(h *nifti.Header, o *Options) (*plan, error) {
	grid, err := h.Grid(o.Frame, o.ChannelDim)
	if err != nil {
		return nil, err
	}
	source, warnings := h.Affine()
	axes, flip := nifti.Canonical(source)
	affine, dims := nifti.Reorient(source, grid.Dims, axes, flip)
	p := &plan{grid: grid, dims: dims, spacing: nifti.Spacing(affine)}
	p.warnings = append(append(p.warnings, h.Warnings...), warnings...)
	p.geometry = volume.Geometry{Affine: affine, Source: source, Dims: grid.Dims, Axes: axes, Flip: flip, Spacing: p.spacing, Header: h.Raw}
	p.raw = h.Fits16() && !o.resample()
	if o.resample() {
		p.geometry.Resample = true
		for c := range 3 {
			n := math.Round(float64(dims[c]) * p.spacing[c] / o.Spacing[c])
			if o.Spacing[c] > coarsest*p.spacing[c] && dims[c] > 1 {
				return nil, fmt.Errorf("spacing %v mm is more than %d times the %.3g mm of the header along axis %d: is its voxel size in mm?", o.Spacing[c], coarsest, p.spacing[c], c)
			}
			if n > math.MaxInt32 {
				return nil, fmt.Errorf("spacing %v mm makes %.0f voxels of %d along axis %d", o.Spacing[c], n, dims[c], c)
			}
			p.dims[c] = max(int(n), 1)
		}
		p.spacing = o.Spacing
	}
	n := 2 * float64(p.dims[0]) * float64(p.dims[1]) * float64(p.dims[2])
	if o.MaxBytes > 0 && n > float64(o.MaxBytes) {
		return nil, fmt.Errorf("%v voxels of int16 are %.0f bytes, above max_bytes %d", p.dims, n, o.MaxBytes)
	}
	return p, nil
}
