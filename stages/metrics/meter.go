package metrics

import (
	"encoding/json"
	"fmt"
	"math"
)

// MaxPSNR is the cap on every PSNR in dB: identical images have it instead of +Inf, which neither JSON nor a mean over
// scans can hold. In a window of 2000 HU it is an RMS error of 0.02 HU.
const MaxPSNR = 100

// BodyHU is the threshold of the body mask: a voxel belongs to it when its original is above. The mask holds soft tissue,
// bone, vessels and the scanner's table; air and lung parenchyma are outside.
const BodyHU = -500

// Measures says how near reconstructions are to their originals. A measure of no voxels is NaN (null in JSON).
type Measures struct {
	PSNR       float64 // 10·log10(range²/MSE) dB over all voxels, at most MaxPSNR; the range is the window's width
	PSNRBody   float64 // the same over the voxels whose original is above BodyHU
	SSIM       float64 // mean of the SSIM map, see SSIM
	L1         float64 // mean absolute error in units of [-1, 1]
	MAEHU      float64 // mean absolute error, HU
	Voxels     int64
	BodyVoxels int64
}

// ScanResult is the measures of one scan, pooled over its blocks.
type ScanResult struct {
	ID string
	Measures
}

// Result is the measures of all scans. Those of Measures are pooled: every voxel counts the same, whatever scan it is of.
type Result struct {
	Measures
	PSNRMean     float64    // mean of the scans' PSNR
	PSNRBodyMean float64    // mean of the scans' PSNRBody, over the scans that have a body
	SSIMMean     float64    // mean of the scans' SSIM
	Window       [2]float64 // HU of -1 and 1
	WindowHU     float64    // the range of PSNR: the window's width, HU
	Scans        []ScanResult
}

// Meter accumulates measures, a block of voxels at a time: a patch, or a whole scan. Set Window, then for each scan call
// BeginScan and Add (or Block, to give it slices). The zero Workers is one worker. A Meter is for one goroutine.
type Meter struct {
	Window  [2]float64 // HU of -1 and 1
	Workers int

	scans []tally
	ids   []string
}

// tally is the sums behind Measures. Squares and absolutes are in units of [-1, 1].
type tally struct {
	square, absolute, bodySquare, ssim float64
	voxels, body, windows              int64
}

func (t *tally) add(o tally) {
	t.square += o.square
	t.absolute += o.absolute
	t.bodySquare += o.bodySquare
	t.ssim += o.ssim
	t.voxels += o.voxels
	t.body += o.body
	t.windows += o.windows
}

func (t *tally) measures(width float64) Measures {
	l1 := t.absolute / float64(t.voxels)
	return Measures{
		PSNR:       psnr(t.square / float64(t.voxels)),
		PSNRBody:   psnr(t.bodySquare / float64(t.body)),
		SSIM:       t.ssim / float64(t.windows),
		L1:         l1,
		MAEHU:      l1 * width / 2,
		Voxels:     t.voxels,
		BodyVoxels: t.body,
	}
}

// psnr is that of a mean squared error in units of [-1, 1], whose range is 2. NaN stays NaN.
func psnr(mse float64) float64 { return min(10*math.Log10(4/mse), MaxPSNR) }

// PSNR returns 10·log10(4/MSE) in dB of two images in [-1, 1], clipped, at most MaxPSNR. The images are of one length.
func PSNR(orig, recon []float32) float64 {
	t := sums(orig, recon, 1)
	return psnr(t.square / float64(t.voxels))
}

// BeginScan starts a scan: what is added from here on is its.
func (m *Meter) BeginScan(id string) {
	m.ids = append(m.ids, id)
	m.scans = append(m.scans, tally{})
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
	r := Result{Window: m.Window, WindowHU: m.Window[1] - m.Window[0]}
	var all tally
	var psnrs, bodies, ssims mean
	for i := range m.scans {
		all.add(m.scans[i])
		s := ScanResult{m.ids[i], m.scans[i].measures(r.WindowHU)}
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

// Block is one block of a scan, measured slice by slice. It holds 11 slices of both images, for SSIM.
type Block struct {
	size [3]int
	into *tally
	body float32
	sum  tally
	ssim *SSIM
	z    int
}

// Block starts a block of size x, y, z in the current scan. Nothing of it counts before End.
func (m *Meter) Block(size [3]int) (*Block, error) {
	switch {
	case !(m.Window[1] > m.Window[0]):
		return nil, fmt.Errorf("window %v HU is empty", m.Window)
	case min(size[0], size[1], size[2]) < 1:
		return nil, fmt.Errorf("block of %v: no voxels", size)
	case len(m.scans) == 0:
		return nil, fmt.Errorf("block of %v: no scan begun", size)
	}
	return &Block{
		size: size,
		into: &m.scans[len(m.scans)-1],
		body: float32(2*(BodyHU-m.Window[0])/(m.Window[1]-m.Window[0]) - 1),
		ssim: NewSSIM(size, m.Workers),
	}, nil
}

// Add measures the next slice.
func (b *Block) Add(orig, recon []float32) error {
	if n := b.size[0] * b.size[1]; len(orig) != n || len(recon) != n {
		return fmt.Errorf("slice %d: %d and %d voxels (want %d)", b.z, len(orig), len(recon), n)
	}
	if b.z == b.size[2] {
		return fmt.Errorf("slice %d: the block has %d", b.z, b.size[2])
	}
	b.z++
	b.sum.add(sums(orig, recon, b.body))
	b.ssim.Add(orig, recon)
	return nil
}

// End adds the block to its scan; it fails if slices are missing.
func (b *Block) End() error {
	if b.z != b.size[2] {
		return fmt.Errorf("%d slices of %d", b.z, b.size[2])
	}
	b.sum.ssim, b.sum.windows = b.ssim.Sum()
	b.into.add(b.sum)
	return nil
}

// sums measures one run of voxels; body is the mask's threshold in units of [-1, 1].
func sums(orig, recon []float32, body float32) (t tally) {
	recon = recon[:len(orig)]
	for i, o := range orig {
		e := float64(clip(o)) - float64(clip(recon[i]))
		s := e * e
		t.square += s
		t.absolute += math.Abs(e)
		if o > body {
			t.bodySquare += s
			t.body++
		}
	}
	t.voxels = int64(len(orig))
	return t
}

// clip keeps NaN.
func clip(x float32) float32 { return max(-1, min(1, x)) }

// MarshalJSON writes NaN and infinities as null.
func (m Measures) MarshalJSON() ([]byte, error) { return json.Marshal(m.json()) }

// MarshalJSON writes the measures and the scan's id.
func (s ScanResult) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		ID string `json:"id"`
		measuresJSON
	}{s.ID, s.json()})
}

// MarshalJSON writes NaN and infinities as null.
func (r Result) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		measuresJSON
		PSNRMean     *float64     `json:"psnr_mean"`
		PSNRBodyMean *float64     `json:"psnr_body_mean"`
		SSIMMean     *float64     `json:"ssim_mean"`
		Window       [2]float64   `json:"window"`
		WindowHU     float64      `json:"window_hu"`
		Scans        []ScanResult `json:"scans"`
	}{r.json(), finite(r.PSNRMean), finite(r.PSNRBodyMean), finite(r.SSIMMean), r.Window, r.WindowHU, r.Scans})
}

type measuresJSON struct {
	PSNR       *float64 `json:"psnr"`
	PSNRBody   *float64 `json:"psnr_body"`
	SSIM       *float64 `json:"ssim"`
	L1         *float64 `json:"l1"`
	MAEHU      *float64 `json:"mae_hu"`
	Voxels     int64    `json:"voxels"`
	BodyVoxels int64    `json:"body_voxels"`
}

func (m Measures) json() measuresJSON {
	return measuresJSON{finite(m.PSNR), finite(m.PSNRBody), finite(m.SSIM), finite(m.L1), finite(m.MAEHU), m.Voxels, m.BodyVoxels}
}

func finite(x float64) *float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return nil
	}
	return &x
}
