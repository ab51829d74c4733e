package metrics

import "math"

// The window of HFEN: the Laplacian of a Gaussian of σ 1.5 voxels in 15×15×15 voxels.
const (
	logTaps  = 15
	logSigma = 1.5
)

// HFEN compares the fine structure of two volumes in [-1, 1], given slice by slice: their edges, texture and noise, which a
// smooth reconstruction lacks and PSNR hardly misses. Fine structure is what the Laplacian of a Gaussian leaves of an image, with
// the window of the high-frequency error norm (Ravishankar and Bresler, MR Image Reconstruction From Highly Undersampled
// k-Space Data by Dictionary Learning, 2011), in three dimensions: scipy.ndimage.gaussian_laplace(x, 1.5, truncate=4.67). It
// passes waves of 6.7 voxels best, and half of their amplitude at 4 voxels and at 14.
//
// What counts are the voxels whose window lies inside; an axis shorter than 15 voxels is mirrored as SSIM's are. It holds 15
// slices of both images as float32.
type HFEN struct {
	slide
	smooth, curve [logTaps]float64 // a Gaussian and its second derivative
	rows          []detail         // sums of the current slice's rows
	scratch       []*logScratch    // by worker
	sum           detail
}

// detail is energies: sums of squares of filtered voxels.
type detail struct {
	orig, recon, err float64
	voxels           int64
}

// flat is the energy a voxel below which an image has no fine structure to compare with: that of white noise of half a HU in a
// window of 2000. The filter makes a little of a constant, too.
const flat = 1e-9

func (d *detail) add(o detail) {
	d.orig += o.orig
	d.recon += o.recon
	d.err += o.err
	d.voxels += o.voxels
}

// of is the original's energy, NaN where it is flat.
func (d *detail) of() float64 {
	if d.orig < flat*float64(d.voxels) {
		return math.NaN()
	}
	return d.orig
}

// norm is the error's norm over the original's, √(Σ LoG(recon - orig)² / Σ LoG(orig)²): 0 where all fine structure is there
// as it was, 1 where nothing is.
func (d *detail) norm() float64 { return math.Sqrt(d.err / d.of()) }

// ratio is the reconstruction's energy over the original's, Σ LoG(recon)² / Σ LoG(orig)²: below 1 it is too smooth, above it
// has structure that isn't in the original.
func (d *detail) ratio() float64 { return d.recon / d.of() }

// NewHFEN measures volumes of size x, y, z with so many workers (one if 0). The result doesn't depend on their number.
func NewHFEN(size [3]int, workers int) *HFEN {
	h := &HFEN{slide: newSlide(size, logTaps)}
	var total float64
	for k := range h.smooth {
		x := float64(k - logTaps/2)
		h.smooth[k] = math.Exp(-x * x / (2 * logSigma * logSigma))
		total += h.smooth[k]
	}
	const s2 = logSigma * logSigma
	for k := range h.smooth {
		x := float64(k - logTaps/2)
		h.smooth[k] /= total
		h.curve[k] = h.smooth[k] * (x*x/s2 - 1) / s2
	}
	h.rows = make([]detail, h.out[1])
	for range min(max(1, workers), h.chunks()) {
		h.scratch = append(h.scratch, newLogScratch(len(h.x)))
	}
	return h
}

// Add takes the next slice of both volumes, x fastest; it keeps neither.
func (h *HFEN) Add(orig, recon []float32) { h.add(orig, recon, h.slice) }

// Norm returns the high-frequency error norm of the slices so far: the norm of the error's fine structure over that of the
// original. It is NaN where the original is flat.
func (h *HFEN) Norm() float64 { return h.sum.norm() }

// Ratio returns the energy of the reconstruction's fine structure over that of the original, or NaN
// where the original is flat.
func (h *HFEN) Ratio() float64 { return h.sum.ratio() }

// slice adds the windows whose first padded slice is z. Rows are summed apart and added in order.
func (h *HFEN) slice(z int) {
	h.share(len(h.scratch), func(worker, lo, hi int) { h.chunk(h.scratch[worker], z, lo, hi) })
	for _, r := range h.rows {
		h.sum.add(r)
	}
}

// logScratch is, for the original and the reconstruction, a ring of rows filtered along z, and rows filtered along z and y.
type logScratch struct {
	z [logTaps][2]struct{ smooth, curve []float64 }
	y [2]struct{ smooth, curve []float64 } // curve: along z or y
	x [2][]float64
}

func newLogScratch(width int) *logScratch {
	b := &logScratch{}
	row := func() []float64 { return make([]float64, width) }
	for i := range 2 {
		for k := range b.z {
			b.z[k][i].smooth, b.z[k][i].curve = row(), row()
		}
		b.y[i].smooth, b.y[i].curve, b.x[i] = row(), row(), row()
	}
	return b
}

// chunk gives rows lo ≤ y < hi of the windows whose first padded slice is z. The filter is the sum over the axes of the second
// derivative along one and the Gaussian along the others.
func (h *HFEN) chunk(b *logScratch, z, lo, hi int) {
	for y := lo; y < hi+logTaps-1; y++ {
		for i := range 2 {
			ring := &b.z[y%logTaps][i]
			h.alongZ(ring.smooth, ring.curve, i, z, y)
		}
		if y-lo < logTaps-1 {
			continue
		}
		first := y - (logTaps - 1)
		for i := range 2 {
			h.alongY(b, i, first)
			h.alongX(b.x[i], b.y[i].smooth, b.y[i].curve)
		}
		d := detail{voxels: int64(h.out[0])}
		recon := b.x[1][:h.out[0]]
		for i, o := range b.x[0][:h.out[0]] {
			r := recon[i]
			d.orig += o * o
			d.recon += r * r
			d.err += (r - o) * (r - o)
		}
		h.rows[first] = d
	}
}

// alongZ filters padded row y of one image along z. Both filters are symmetric.
func (h *HFEN) alongZ(smooth, curve []float64, image, z, y int) {
	at := func(k int) []float32 {
		o, r := h.row(z+k, y)
		if image == 0 {
			return o
		}
		return r
	}
	const middle = logTaps / 2
	row := at(middle)
	smooth, curve = smooth[:len(row)], curve[:len(row)]
	for i, v := range row {
		x := float64(v)
		smooth[i], curve[i] = h.smooth[middle]*x, h.curve[middle]*x
	}
	for k := range middle {
		s, c := h.smooth[k], h.curve[k]
		low, high := at(k)[:len(row)], at(logTaps - 1 - k)[:len(row)]
		for i := range row {
			x := float64(low[i]) + float64(high[i])
			smooth[i] += s * x
			curve[i] += c * x
		}
	}
}

// alongY filters the rows from padded row first on along y.
func (h *HFEN) alongY(b *logScratch, image, first int) {
	const middle = logTaps / 2
	out := &b.y[image]
	n := len(out.smooth)
	at := func(k int) (smooth, curve []float64) {
		r := &b.z[(first+k)%logTaps][image]
		return r.smooth[:n], r.curve[:n]
	}
	smooth, curve := out.smooth[:n], out.curve[:n]
	zs, zc := at(middle)
	for i, v := range zs {
		smooth[i], curve[i] = h.smooth[middle]*v, h.smooth[middle]*zc[i]+h.curve[middle]*v
	}
	for k := range middle {
		s, c := h.smooth[k], h.curve[k]
		lowS, lowC := at(k)
		highS, highC := at(logTaps - 1 - k)
		for i := range smooth {
			v := lowS[i] + highS[i]
			smooth[i] += s * v
			curve[i] += s*(lowC[i]+highC[i]) + c*v
		}
	}
}

// alongX filters a row along x: its smooth part by the second derivative, its curved part by the Gaussian.
func (h *HFEN) alongX(dst, smooth, curve []float64) {
	const middle = logTaps / 2
	for i := range h.out[0] {
		s, c := (*[logTaps]float64)(smooth[i:]), (*[logTaps]float64)(curve[i:])
		sum := h.curve[middle]*s[middle] + h.smooth[middle]*c[middle]
		for k := range middle {
			sum += h.curve[k]*(s[k]+s[logTaps-1-k]) + h.smooth[k]*(c[k]+c[logTaps-1-k])
		}
		dst[i] = sum
	}
}
