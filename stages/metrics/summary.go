package metrics

import (
	"cmp"
	"encoding/json"
	"math"
	"slices"
	"strings"
)

// account is the sums of one scan.
type account struct {
	index            int // Scan.Index
	id               string
	dims             [3]int
	model, trilinear tally
	code             CodeMeasures
}

func (a *account) voxels() int64 { return int64(a.dims[0]) * int64(a.dims[1]) * int64(a.dims[2]) }

func (a *account) row(window [2]float64) Row {
	width := window[1] - window[0]
	return Row{a.id, a.dims, a.model.measures(width), a.trilinear.measures(width), a.code}
}

// CodeMeasures says what the codes that a reconstruction is made of cost, and how they are used. All are NaN where no
// codes were counted.
type CodeMeasures struct {
	Bits       float64 // bits a voxel of the scan: latents · Usage.Bits / voxels
	Entropy    float64 // the same at the entropy of the codes' own histogram: latents · Usage.Entropy / voxels
	Perplexity float64 // see Usage
	Share      float64 // of the codes that were used, see Usage
}

func codeMeasures(u *Usage, voxels int64) CodeMeasures {
	each := float64(u.Total()) / float64(voxels)
	return CodeMeasures{each * u.Bits(), each * u.Entropy(), u.Perplexity(), u.Share()}
}

func noCodes() CodeMeasures {
	return CodeMeasures{math.NaN(), math.NaN(), math.NaN(), math.NaN()}
}

// Row is the measures of one scan, or of all. What wasn't measured is NaN.
type Row struct {
	ID   string
	Dims [3]int // voxels; zero for all scans
	Measures
	Trilinear Measures // of the trilinear baseline; its Seam is NaN
	Code      CodeMeasures
}

// fields is the row's values under their names in JSON and CSV.
func (r *Row) fields() []field {
	t, c := &r.Trilinear, &r.Code
	return append(r.Measures.fields(), []field{
		{"trilinear_psnr", t.PSNR}, {"trilinear_psnr_body", t.PSNRBody}, {"trilinear_ssim", t.SSIM}, {"trilinear_mae_hu", t.MAEHU},
		{"bits_per_voxel", c.Bits}, {"entropy_bits_per_voxel", c.Entropy}, {"perplexity", c.Perplexity}, {"codebook_usage", c.Share},
	}...)
}

// MarshalJSON writes NaN and infinities as null. The rows of all scans have neither id nor dims.
func (r Row) MarshalJSON() ([]byte, error) {
	var head []field
	if r.Dims != [3]int{} {
		head = []field{{"id", r.ID}, {"dims", r.Dims}}
	}
	return object(append(head, r.fields()...))
}

// Summary is the results of a run.
type Summary struct {
	Window [2]float64 // HU
	Pooled Row        // every voxel counts the same, whatever scan it is of; so does every code
	Mean   Row        // means of the scans' values, over the scans that have them; numbers of voxels are sums
	Scans  []Row      // in the order of Scan.Index
}

// Summary returns what has been measured so far. It doesn't depend on the order in which scans were finished.
func (s *Study) Summary() Summary {
	s.mu.Lock()
	defer s.mu.Unlock()
	scans := slices.Clone(s.scans)
	slices.SortStableFunc(scans, func(a, b account) int {
		return cmp.Or(cmp.Compare(a.index, b.index), strings.Compare(a.id, b.id))
	})
	all := account{id: "pooled", code: noCodes()}
	sum := Summary{Window: s.window}
	var coded int64
	for _, a := range scans {
		sum.Scans = append(sum.Scans, a.row(s.window))
		all.model.add(a.model)
		all.trilinear.add(a.trilinear)
		if !math.IsNaN(a.code.Bits) {
			coded += a.voxels()
		}
	}
	if s.used != nil {
		all.code = codeMeasures(s.used, coded)
	}
	sum.Pooled = all.row(s.window)
	sum.Mean = meanRow(sum.Pooled, sum.Scans)
	return sum
}

// meanRow returns row with the means of all values that are measured.
func meanRow(row Row, scans []Row) Row {
	row.ID = "mean"
	for i, to := range row.values() {
		var m mean
		for _, r := range scans {
			if x := *r.values()[i]; finite(x) {
				m.add(x)
			}
		}
		*to = m.value()
	}
	return row
}

// values is what a mean is taken of.
func (r *Row) values() []*float64 {
	c := &r.Code
	vs := []*float64{&c.Bits, &c.Entropy, &c.Perplexity, &c.Share}
	for _, m := range []*Measures{&r.Measures, &r.Trilinear} {
		vs = append(vs, &m.PSNR, &m.PSNRBody, &m.SSIM, &m.HFEN, &m.HFRatio, &m.L1, &m.MAEHU, &m.Seam)
		for i := range m.TissueHU {
			vs = append(vs, &m.TissueHU[i])
		}
	}
	return vs
}

// MarshalJSON writes the window, the values of all scans, and those of each.
func (s Summary) MarshalJSON() ([]byte, error) {
	if s.Scans == nil {
		s.Scans = []Row{}
	}
	return json.Marshal(struct {
		WindowHU [2]float64 `json:"window_hu"`
		Pooled   Row        `json:"pooled"`
		Mean     Row        `json:"mean"`
		Scans    []Row      `json:"scans"`
	}{s.Window, s.Pooled, s.Mean, s.Scans})
}
