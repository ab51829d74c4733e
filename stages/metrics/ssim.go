package metrics

import "math"

// The window of SSIM: a Gaussian of σ 1.5 cut at 5 voxels (3.5 σ rounded), and its constants for a data range of 2.
const (
	radius = 5
	taps   = 2*radius + 1
	sigma  = 1.5
	c1     = (0.01 * 2) * (0.01 * 2)
	c2     = (0.03 * 2) * (0.03 * 2)
)

// SSIM is the mean structural similarity of two volumes in [-1, 1], given slice by slice (Wang et al., Image Quality
// Assessment: From Error Visibility to Structural Similarity, 2004), in three dimensions and with the parameters of
// skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2):
// the mean is over the voxels whose window of 11×11×11 lies inside.
//
// An axis shorter than 11 voxels, which scikit-image refuses, is mirrored at its ends, the edge repeated
// (d c b a | a b c d | d c b a), and all of its voxels count.
//
// It holds 11 slices of both images as float32.
type SSIM struct {
	slide
	weights [taps]float64
	rows    []float64     // sums of the current slice's rows
	scratch []*rowScratch // by worker
	sum     float64
}

// NewSSIM measures volumes of size x, y, z with so many workers (one if 0). The result doesn't depend on their number.
func NewSSIM(size [3]int, workers int) *SSIM {
	s := &SSIM{slide: newSlide(size, taps)}
	var total float64
	for k := range s.weights {
		d := float64(k - radius)
		s.weights[k] = math.Exp(-d * d / (2 * sigma * sigma))
		total += s.weights[k]
	}
	for k := range s.weights {
		s.weights[k] /= total
	}
	s.rows = make([]float64, s.out[1])
	for range min(max(1, workers), s.chunks()) {
		s.scratch = append(s.scratch, newRowScratch(len(s.x)))
	}
	return s
}

// Add takes the next slice of both volumes, x fastest; it keeps neither.
func (s *SSIM) Add(orig, recon []float32) { s.add(orig, recon, s.slice) }

// Sum returns the sum of the SSIM map and its number of voxels, over the slices so far.
func (s *SSIM) Sum() (sum float64, windows int64) { return s.sum, s.windows() }

// Mean returns the SSIM.
func (s *SSIM) Mean() float64 {
	sum, n := s.Sum()
	return sum / float64(n)
}

// slice adds the windows whose first padded slice is z. Rows are summed apart and added in order.
func (s *SSIM) slice(z int) {
	s.share(len(s.scratch), func(worker, lo, hi int) { s.chunk(s.scratch[worker], z, lo, hi) })
	for _, r := range s.rows {
		s.sum += r
	}
}

// fields are what is filtered: x, y, x²+y² and xy. The formula needs the variances only as a sum.
const fields = 4

// rowScratch is a ring of rows filtered along z, and one row filtered along z and y.
type rowScratch struct {
	z [taps][fields][]float64
	y [fields][]float64
}

func newRowScratch(width int) *rowScratch {
	b := &rowScratch{}
	for f := range fields {
		for k := range b.z {
			b.z[k][f] = make([]float64, width)
		}
		b.y[f] = make([]float64, width)
	}
	return b
}

// chunk gives rows lo ≤ y < hi of the windows whose first padded slice is z.
func (s *SSIM) chunk(b *rowScratch, z, lo, hi int) {
	for y := lo; y < hi+taps-1; y++ {
		s.filterZ(&b.z[y%taps], z, y)
		if y-lo < taps-1 {
			continue
		}
		first := y - (taps - 1)
		for f := range fields {
			row := b.y[f]
			at := func(k int) []float64 { return b.z[(first+k)%taps][f][:len(row)] }
			for i, v := range at(radius) {
				row[i] = s.weights[radius] * v
			}
			for k, w := range s.weights[:radius] {
				low, high := at(k), at(taps-1-k)
				for i := range row {
					row[i] += w * (low[i] + high[i])
				}
			}
		}
		s.rows[first] = s.filterX(b)
	}
}

// filterZ gives padded row y filtered along z, from the middle tap outwards: the weights are symmetric.
func (s *SSIM) filterZ(rows *[fields][]float64, z, y int) {
	width := len(s.x)
	mx, my, sq, xy := rows[0][:width], rows[1][:width], rows[2][:width], rows[3][:width]
	at := func(k int) (o, r []float32) { return s.row(z+k, y) }
	o, r := at(radius)
	w := s.weights[radius]
	for i := range o {
		a, b := float64(o[i]), float64(r[i])
		mx[i], my[i], sq[i], xy[i] = w*a, w*b, w*(a*a+b*b), w*(a*b)
	}
	for k, w := range s.weights[:radius] {
		lowO, lowR := at(k)
		highO, highR := at(taps - 1 - k)
		for i := range lowO {
			a, b, c, d := float64(lowO[i]), float64(lowR[i]), float64(highO[i]), float64(highR[i])
			mx[i] += w * (a + c)
			my[i] += w * (b + d)
			sq[i] += w * (a*a + b*b + (c*c + d*d))
			xy[i] += w * (a*b + c*d)
		}
	}
}

// filterX returns the sum of SSIM over a row.
func (s *SSIM) filterX(b *rowScratch) (sum float64) {
	w := &s.weights
	at := func(row []float64, i int) float64 {
		v := (*[taps]float64)(row[i:])
		return w[0]*(v[0]+v[10]) + w[1]*(v[1]+v[9]) + w[2]*(v[2]+v[8]) + w[3]*(v[3]+v[7]) + w[4]*(v[4]+v[6]) + w[5]*v[5]
	}
	for i := range s.out[0] {
		mx, my := at(b.y[0], i), at(b.y[1], i)
		mxy, msq := mx*my, mx*mx+my*my
		vsq, vxy := at(b.y[2], i)-msq, at(b.y[3], i)-mxy
		sum += (2*mxy + c1) * (2*vxy + c2) / ((msq + c1) * (vsq + c2))
	}
	return sum
}
