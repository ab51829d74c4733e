package metrics

import (
	"encoding/json"
	"math"
)

// MaxPSNR is the cap on every PSNR in dB: identical images have it instead of +Inf, which neither JSON nor a mean over
// scans can hold. In a window of 2000 HU it is an RMS error of 0.02 HU.
const MaxPSNR = 100

// Measures says how near reconstructions are to their originals. A measure of no voxels is NaN (null in JSON).
type Measures struct {
	PSNR         float64          // 10·log10(range²/MSE) dB over all voxels, at most MaxPSNR; the range is the window's width
	PSNRBody     float64          // the same over the voxels whose original is above BodyHU
	SSIM         float64          // mean of the SSIM map, see SSIM
	HFEN         float64          // norm of the error's fine structure over that of the original's, see HFEN
	HFRatio      float64          // energy of the reconstruction's fine structure over that of the original's; below 1 is smooth
	L1           float64          // mean absolute error in units of [-1, 1]
	MAEHU        float64          // mean absolute error, HU
	TissueHU     [Tissues]float64 // MAEHU over the voxels whose original is of each Tissue
	Seam         float64          // mean absolute error next to tile borders over that of the rest; 1 is no seam
	Voxels       int64
	BodyVoxels   int64
	TissueVoxels [Tissues]int64
}

// tally is the sums behind Measures. Squares and absolutes are in units of [-1, 1].
type tally struct {
	square, absolute [Tissues]float64
	voxels           [Tissues]int64
	ssim             float64
	windows          int64
	fine             detail
	beside           [2]float64 // absolutes away from tile borders and next to them; 0 where no borders are known
	besideVoxels     [2]int64
}

func (t *tally) add(o tally) {
	for c := range Tissues {
		t.square[c] += o.square[c]
		t.absolute[c] += o.absolute[c]
		t.voxels[c] += o.voxels[c]
	}
	t.ssim += o.ssim
	t.windows += o.windows
	t.fine.add(o.fine)
	for i := range t.beside {
		t.beside[i] += o.beside[i]
		t.besideVoxels[i] += o.besideVoxels[i]
	}
}

// total is the sums over a tissue and those after it.
func (t *tally) total(from Tissue) (square, absolute float64, voxels int64) {
	for c := int(from); c < Tissues; c++ {
		square += t.square[c]
		absolute += t.absolute[c]
		voxels += t.voxels[c]
	}
	return square, absolute, voxels
}

// measures gives what was summed in a window width HU wide.
func (t *tally) measures(width float64) Measures {
	square, absolute, voxels := t.total(Air)
	bodySquare, _, bodyVoxels := t.total(SoftTissue)
	m := Measures{
		PSNR:         psnr(square / float64(voxels)),
		PSNRBody:     psnr(bodySquare / float64(bodyVoxels)),
		SSIM:         t.ssim / float64(t.windows),
		HFEN:         t.fine.norm(),
		HFRatio:      t.fine.ratio(),
		L1:           absolute / float64(voxels),
		MAEHU:        absolute / float64(voxels) * width / 2,
		Seam:         t.beside[1] / float64(t.besideVoxels[1]) / (t.beside[0] / float64(t.besideVoxels[0])),
		Voxels:       voxels,
		BodyVoxels:   bodyVoxels,
		TissueVoxels: t.voxels,
	}
	for c := range Tissues {
		m.TissueHU[c] = t.absolute[c] / float64(t.voxels[c]) * width / 2
	}
	return m
}

// psnr is that of a mean squared error in units of [-1, 1], whose range is 2. NaN stays NaN.
func psnr(mse float64) float64 { return min(10*math.Log10(4/mse), MaxPSNR) }

// sums measures one run of voxels.
func sums(orig, recon []float32, l *limits) (t tally) {
	recon = recon[:len(orig)]
	for i, o := range orig {
		c := Air
		if o >= l[0] {
			c = Lung
		}
		if o > l[1] {
			c = SoftTissue
		}
		if o > l[2] {
			c = Bone
		}
		e := float64(clip(o)) - float64(clip(recon[i]))
		t.square[c] += e * e
		t.absolute[c] += math.Abs(e)
		t.voxels[c]++
	}
	return t
}

// clip keeps NaN.
func clip(x float32) float32 { return max(-1, min(1, x)) }

// field is one named value of a result: of a JSON object, or of a row of CSV.
type field struct {
	key   string
	value any
}

func (m *Measures) fields() []field {
	fs := []field{{"psnr", m.PSNR}, {"psnr_body", m.PSNRBody}, {"ssim", m.SSIM}, {"hfen", m.HFEN}, {"hf_ratio", m.HFRatio}, {"l1", m.L1}, {"mae_hu", m.MAEHU}}
	for c, hu := range m.TissueHU {
		fs = append(fs, field{"mae_hu_" + Tissue(c).String(), hu})
	}
	fs = append(fs, field{"seam", m.Seam}, field{"voxels", m.Voxels}, field{"body_voxels", m.BodyVoxels})
	for c, n := range m.TissueVoxels {
		fs = append(fs, field{Tissue(c).String() + "_voxels", n})
	}
	return fs
}

// object writes fields in their order, numbers that aren't finite as null.
func object(fields []field) ([]byte, error) {
	text := []byte{'{'}
	for i, f := range fields {
		if i > 0 {
			text = append(text, ',')
		}
		if x, ok := f.value.(float64); ok && !finite(x) {
			f.value = nil
		}
		value, err := json.Marshal(f.value)
		if err != nil {
			return nil, err
		}
		text = append(append(append(append(text, '"'), f.key...), '"', ':'), value...)
	}
	return append(text, '}'), nil
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }
