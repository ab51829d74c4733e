package flows

import (
	"fmt"
	"slices"

	"github.com/flowrun/flowrun/stages/report"
	"github.com/flowrun/flowrun/stages/volume"
)

// picture is the three middle planes of a scan, filled in as its patches are reconstructed.
type picture struct {
	scan  *volume.Scan
	size  [3]int
	at    [3]int
	orig  report.Cuts
	recon report.Cuts
}

// newPicture cuts the planes out of the scan and leaves those of the reconstruction black.
func newPicture(v *volume.Volume) (*picture, error) {
	p := &picture{scan: v.Scan, size: v.Dims, at: report.Centre(v.Dims)}
	var err error
	if p.orig, err = report.CutVolume(v, p.at); err != nil {
		return nil, err
	}
	p.recon = report.Cuts{
		Axial:    slices.Repeat([]float32{-1}, len(p.orig.Axial)),
		Coronal:  slices.Repeat([]float32{-1}, len(p.orig.Coronal)),
		Sagittal: slices.Repeat([]float32{-1}, len(p.orig.Sagittal)),
	}
	return p, nil
}

// crosses says whether a patch has a part in one of the planes.
func (p *picture) crosses(origin, patch [3]int) bool {
	for a := range p.at {
		if origin[a] <= p.at[a] && p.at[a] < origin[a]+patch[a] {
			return true
		}
	}
	return false
}

// paste puts a reconstructed patch [D, H, W] into the planes that it crosses.
func (p *picture) paste(origin, patch [3]int, recon []float32) {
	in := inside(origin, patch, p.size)
	// plane copies the patch's voxels at p.at along axis n into dst, whose columns run along axis u and rows along v.
	// Cuts are in display order: both axes run backwards.
	step := [3]int{1, patch[0], patch[0] * patch[1]}
	plane := func(dst []float32, n, u, v int) {
		k := p.at[n] - origin[n]
		if k < 0 || k >= in[n] {
			return
		}
		for j := range in[v] {
			for i := range in[u] {
				to := (origin[v]+j)*p.size[u] + origin[u] + i
				dst[len(dst)-1-to] = recon[k*step[n]+i*step[u]+j*step[v]]
			}
		}
	}
	plane(p.recon.Axial, 2, 0, 1)
	plane(p.recon.Coronal, 1, 0, 2)
	plane(p.recon.Sagittal, 0, 1, 2)
}

// write draws the picture.
func (p *picture) write(path string, window [2]float64, lines ...string) error {
	s := report.Sample{Title: p.scan.ID, Lines: lines, Window: window}
	s.Planes(p.orig, p.recon, p.size, p.scan.Spacing)
	if err := report.WriteSample(path, s); err != nil {
		return fmt.Errorf("picture: %w", err)
	}
	return nil
}
