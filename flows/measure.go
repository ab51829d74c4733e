package flows

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"github.com/flowrun/flowrun/stages/infer"
	"github.com/flowrun/flowrun/stages/merge"
	"github.com/flowrun/flowrun/stages/metrics"
	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/report"
	"github.com/flowrun/flowrun/stages/volume"
)

func wireMeasure(w *wiring, s *piece) {
	w.slabs = pipe.Transform(w.slabs, s.label, func(_ context.Context, in iter.Seq[*volume.Slab]) iter.Seq2[*volume.Slab, error] {
		return metrics.Measure(in, w.back.study)
	})
}

// newStudy sets measure up: where tiles met, which codes there are, and pictures of the first scans.
func (r *run) newStudy(o metrics.Options) *metrics.Study {
	m, _ := option[merge.Options](r.job)
	s := &metrics.Study{Options: o, Workers: r.job.workers(), Factor: r.job.multiple()}
	if _, identity := r.back.model.(*infer.Identity); identity {
		s.Options.Trilinear = false // the baseline of a factor of one is the scan itself
	} else {
		s.Codebook, s.Depth = r.back.model.Codes(), r.back.model.Depth()
	}
	s.Borders = func(v *volume.Volume) [3][]int {
		g, err := r.grid(v)
		switch {
		case err != nil:
			return [3][]int{} // merge has failed by then, and says why
		case r.job.exact() || m.Window == merge.Crop:
			return metrics.CropBorders(v.Dims, g.Patch, g.Origins)
		}
		return metrics.Borders(v.Dims, g.Patch, g.Origins)
	}
	p := &pictures{run: r, study: s, left: o.Pictures, open: map[string]*report.WorstSlice{}}
	s.Watch, s.Done, s.Lost = p.watch, p.done, p.lost
	return s
}

// pictures draws the worst slices of the first scans that measure sees.
type pictures struct {
	run   *run
	study *metrics.Study
	left  int
	open  map[string]*report.WorstSlice
}

func (p *pictures) watch(v *volume.Volume, z int, orig, recon []float32) error {
	w := p.open[v.Scan.ID]
	if w == nil && z == 0 && p.left > 0 {
		var err error
		if w, err = report.NewWorstSlice(v.Dims, float32(2*(metrics.BodyHU-v.Window[0])/(v.Window[1]-v.Window[0])-1)); err != nil {
			return err
		}
		p.left--
		p.open[v.Scan.ID] = w
	}
	if w == nil {
		return nil
	}
	return w.Slice(orig, recon)
}

// done draws a scan's pictures, and writes the measures so far: an interrupted run keeps them.
func (p *pictures) done(v *volume.Volume, row metrics.Row) error {
	err := p.study.Summary().Write(p.run.job.run.Dir)
	w := p.open[v.Scan.ID]
	if w == nil || err != nil {
		return err
	}
	delete(p.open, v.Scan.ID)
	orig, recon, at, err := w.Cuts()
	if err != nil {
		return err
	}
	s := report.Sample{Title: v.Scan.ID, Window: v.Window, Grid: p.study.Borders(v), Lines: []string{
		fmt.Sprintf("planes of large errors, through voxel %d, %d, %d", at[0], at[1], at[2]),
		fmt.Sprintf("PSNR %.2f dB, SSIM %.4f, MAE %.1f HU", row.PSNR, row.SSIM, row.MAEHU),
	}}
	s.Planes(orig, recon, v.Dims, v.Scan.Spacing)
	base := p.run.file(pictureOf(v.Scan, p.run.data.all))
	if err := os.MkdirAll(filepath.Dir(base), 0o755); err != nil {
		return err
	}
	files, err := report.WriteDisplays(base, s)
	if err == nil {
		p.run.sample = files[0]
		p.run.watch.drew(files[0])
	}
	return err
}

// lost leaves a scan's pictures to another one.
func (p *pictures) lost(v *volume.Volume) error {
	if p.open[v.Scan.ID] != nil {
		delete(p.open, v.Scan.ID)
		p.left++
	}
	return p.run.loses(v)
}

// pictureOf is where a scan's pictures lie below the run's folder, without what they end in. Scans that differ in their
// endings alone keep them.
func pictureOf(scan *volume.Scan, all []*volume.Scan) string {
	stem := func(s *volume.Scan) string {
		return strings.TrimSuffix(strings.TrimSuffix(filepath.FromSlash(s.ID), ".gz"), ".nii")
	}
	for _, s := range all {
		if s.ID != scan.ID && stem(s) == stem(scan) {
			return filepath.Join("pictures", filepath.FromSlash(scan.ID))
		}
	}
	return filepath.Join("pictures", stem(scan))
}

// conclude prints the table of measures.
func (r *run) conclude() error {
	if r.back == nil || r.back.study == nil {
		return nil
	}
	summary := r.back.study.Summary()
	if len(summary.Scans) == 0 {
		return nil
	}
	if err := errors.Join(summary.Write(r.job.run.Dir), r.progress.Close()); err != nil {
		return err
	}
	r.log.Info().Str("event", "measured").Str("path", r.file("measures.json")).Msg("measures written")
	return summary.Table(r.out)
}
