package metrics

import "fmt"

// ScanResult is the measures of one scan, pooled over its blocks.
type ScanResult struct {
	ID string
	Measures
}

// Result is the measures of all scans. Those of Measures are pooled: every voxel counts the same, whatever scan it is of.
type Result struct {
	Measures
	PSNRMean     float64 // mean of the scans' PSNR
	PSNRBodyMean float64 // mean of the scans' PSNRBody, over the scans that have a body
	SSIMMean     float64 // mean of the scans' SSIM
	WindowHU     float64 // the range of PSNR: the window's width, HU
	Scans        []ScanResult
}

// Meter accumulates measures, a block of voxels at a time: a patch, or a whole scan. Set Window, then for each scan call
// BeginScan and Add (or Block, to give it slices). The zero Workers is one worker. A Meter is for one goroutine.
type Meter struct {
	Window  [2]float64 // HU of -1 and 1
	Workers int
	Fine    bool // measure HFEN and HFRatio too, which takes about as long as SSIM; else they are NaN

	scans []*tally
	ids   []string
}

// BeginScan starts a scan: blocks that are begun from here on are its.
func (m *Meter) BeginScan(id string) {
	m.ids = append(m.ids, id)
	m.scans = append(m.scans, new(tally))
}

// Add measures a block of size x, y, z, held whole. SSIM is over the block's own windows, so a scan given in patches has
// no windows across their borders.
func (m *Meter) Add(orig, recon []float32, size [3]int) error {
	b, err := m.Block(size)
	if err != nil {
		return err
	}
	if n := size[0] * size[1] * size[2]; len(orig) != n || len(recon) != n {
		return fmt.Errorf("block of %v: %d and %d voxels (want %d)", size, len(orig), len(recon), n)
	}
	plane := size[0] * size[1]
	for z := range size[2] {
		if err := b.Add(orig[z*plane:][:plane], recon[z*plane:][:plane]); err != nil {
			return err
		}
	}
	return b.End()
}

// Result returns what has been measured so far.
func (m *Meter) Result() Result {
	r := Result{WindowHU: m.Window[1] - m.Window[0]}
	var all tally
	var psnrs, bodies, ssims mean
	for i, t := range m.scans {
		all.add(*t)
		s := ScanResult{m.ids[i], t.measures(r.WindowHU)}
		r.Scans = append(r.Scans, s)
		if s.Voxels > 0 {
			psnrs.add(s.PSNR)
			ssims.add(s.SSIM)
		}
		if s.BodyVoxels > 0 {
			bodies.add(s.PSNRBody)
		}
	}
	r.Measures = all.measures(r.WindowHU)
	r.PSNRMean, r.PSNRBodyMean, r.SSIMMean = psnrs.value(), bodies.value(), ssims.value()
	return r
}

type mean struct {
	sum float64
	n   int
}

func (m *mean) add(x float64)  { m.sum += x; m.n++ }
func (m *mean) value() float64 { return m.sum / float64(m.n) }

// Block is one block of a scan, measured slice by slice. It holds 11 slices of both images for SSIM, and 15
// for HFEN.
type Block struct {
	size   [3]int
	into   *tally
	limits limits
	seams  *seams // nil where no borders are known
	sum    tally
	ssim   *SSIM
	fine   *HFEN // nil: not measured
	z      int
}

// Block starts a block of size x, y, z in the current scan. Nothing of it counts before End.
func (m *Meter) Block(size [3]int) (*Block, error) {
	if len(m.scans) == 0 {
		return nil, fmt.Errorf("block of %v: no scan begun", size)
	}
	return newBlock(m.scans[len(m.scans)-1], m.Window, size, m.Workers, m.Fine)
}

func newBlock(into *tally, window [2]float64, size [3]int, workers int, fine bool) (*Block, error) {
	switch {
	case !(window[1] > window[0]):
		return nil, fmt.Errorf("window %v HU is empty", window)
	case min(size[0], size[1], size[2]) < 1:
		return nil, fmt.Errorf("block of %v: no voxels", size)
	}
	b := &Block{size: size, into: into, limits: newLimits(window), ssim: NewSSIM(size, workers)}
	if fine {
		b.fine = NewHFEN(size, workers)
	}
	return b, nil
}

// Borders says where tiles met in the block, for the seam index: plane b of an axis lies between voxels b-1 and b. Those
// at the block's ends and beyond don't count. It is called before the first Add.
func (b *Block) Borders(planes [3][]int) { b.seams = newSeams(b.size, planes) }

// Add measures the next slice.
func (b *Block) Add(orig, recon []float32) error {
	if n := b.size[0] * b.size[1]; len(orig) != n || len(recon) != n {
		return fmt.Errorf("slice %d: %d and %d voxels (want %d)", b.z, len(orig), len(recon), n)
	}
	if b.z == b.size[2] {
		return fmt.Errorf("slice %d: the block has %d", b.z, b.size[2])
	}
	if b.seams == nil {
		b.sum.add(sums(orig, recon, &b.limits))
	} else {
		for r := range b.seams.runs(b.z) {
			t := sums(orig[r.from:r.to], recon[r.from:r.to], &b.limits)
			_, t.beside[r.seam], t.besideVoxels[r.seam] = t.total(Air)
			b.sum.add(t)
		}
	}
	b.z++
	b.ssim.Add(orig, recon)
	if b.fine != nil {
		b.fine.Add(orig, recon)
	}
	return nil
}

// End adds the block to its scan; it fails if slices are missing.
func (b *Block) End() error {
	if b.z != b.size[2] {
		return fmt.Errorf("%d slices of %d", b.z, b.size[2])
	}
	b.sum.ssim, b.sum.windows = b.ssim.Sum()
	if b.fine != nil {
		b.sum.fine = b.fine.sum
	}
	b.into.add(b.sum)
	return nil
}
