package metrics

import (
	"fmt"

	"github.com/flowrun/flowrun/stages/volume"
)

// scan is one scan being measured.
type scan struct {
	account
	v      *volume.Volume // not counted: for whether it is lost
	window [2]float64     // of the volume
	dims   [3]int
	next   int // slice
	watch  func(v *volume.Volume, z int, orig, recon []float32) error

	model     *Block
	baseline  *Baseline // nil: not measured
	trilinear *Block
	waiting   [][]float32 // originals that the baseline hasn't reached, in order
	spare     [][]float32

	raw, clipped *[1 << 16]float32 // of a sample's bits: in the measured window, not clipped; in the volume's, clipped
	samples      []int16
	input        []float32 // a slice of the original as the model had it
	scaled       []float32 // a slice of the reconstruction in the measured window; nil where that is the volume's
	scale, shift float64   // to it
}

// begin opens a scan, measured in window w.
func (s *Study) begin(v *volume.Volume, w [2]float64) (*scan, error) {
	plane := v.Dims[0] * v.Dims[1]
	sc := &scan{account: account{index: v.Scan.Index, id: v.Scan.ID, dims: v.Dims, code: noCodes()}, v: v, window: v.Window, dims: v.Dims, watch: s.Watch}
	block := func(t *tally, fine bool) (*Block, error) { return newBlock(t, w, v.Dims, s.Workers, fine) }
	var err error
	if sc.model, err = block(&sc.account.model, true); err != nil {
		return nil, err
	}
	if s.Borders != nil {
		sc.model.Borders(s.Borders(v))
	}
	if s.Options.Trilinear {
		if sc.baseline, err = NewBaseline(v.Dims, s.Factor); err != nil {
			return nil, fmt.Errorf("trilinear: %w", err)
		}
		if sc.trilinear, err = block(&sc.account.trilinear, false); err != nil {
			return nil, err
		}
	}
	sc.raw, sc.clipped = table(v, w), table(v, v.Window)
	for i, x := range sc.clipped {
		sc.clipped[i] = clip(x)
	}
	sc.samples, sc.input = make([]int16, plane), make([]float32, plane)
	if w != v.Window {
		width := w[1] - w[0]
		sc.scale = (v.Window[1] - v.Window[0]) / width
		sc.shift = sc.scale + 2*(v.Window[0]-w[0])/width - 1
		sc.scaled = make([]float32, plane)
	}
	return sc, nil
}

// table is each sample's value where window is [-1, 1].
func table(v *volume.Volume, window [2]float64) *[1 << 16]float32 {
	t := new([1 << 16]float32)
	for i := range t {
		hu := v.Slope*float64(int16(uint16(i))) + v.Inter
		t[i] = float32(2*(hu-window[0])/(window[1]-window[0]) - 1)
	}
	return t
}

// add measures the slices of a slab.
func (sc *scan) add(slab *volume.Slab) error {
	v, plane := slab.Volume, len(sc.samples)
	switch n := slab.Z1 - slab.Z0; {
	case v.Dims != sc.dims || v.Window != sc.window:
		return fmt.Errorf("slices %d to %d: of a volume of %v with window %v, those before are of %v with %v",
			slab.Z0, slab.Z1, v.Dims, v.Window, sc.dims, sc.window)
	case slab.Z0 != sc.next || n < 1 || slab.Z1 > sc.dims[2]:
		return fmt.Errorf("slices %d to %d: want those from %d, up to %d", slab.Z0, slab.Z1, sc.next, sc.dims[2])
	case len(slab.Voxels) != n*plane:
		return fmt.Errorf("slices %d to %d: %d voxels (want %d)", slab.Z0, slab.Z1, len(slab.Voxels), n*plane)
	}
	for z := slab.Z0; z < slab.Z1; z++ {
		if err := sc.slice(v, z, slab.Voxels[(z-slab.Z0)*plane:][:plane]); err != nil {
			return fmt.Errorf("slice %d: %w", z, err)
		}
	}
	sc.next = slab.Z1
	return nil
}

func (sc *scan) slice(v *volume.Volume, z int, recon []float32) error {
	samples, err := v.Rows(z, 0, sc.dims[1], sc.samples)
	if err != nil {
		return err
	}
	if len(samples) != len(sc.samples) {
		return fmt.Errorf("got %d samples (want %d)", len(samples), len(sc.samples))
	}
	if sc.watch != nil || sc.baseline != nil {
		look(sc.input, samples, sc.clipped)
	}
	if sc.watch != nil {
		if err := sc.watch(v, z, sc.input, recon); err != nil {
			return err
		}
	}
	orig := sc.buffer()
	look(orig, samples, sc.raw)
	if err := sc.model.Add(orig, sc.measured(recon)); err != nil {
		return err
	}
	if sc.baseline == nil {
		sc.spare = append(sc.spare, orig)
		return nil
	}
	sc.waiting = append(sc.waiting, orig)
	return sc.baseline.Add(sc.input, func(_ int, vox []float32) error {
		orig := sc.waiting[0]
		sc.waiting = append(sc.waiting[:0], sc.waiting[1:]...)
		sc.spare = append(sc.spare, orig)
		return sc.trilinear.Add(orig, sc.measured(vox))
	})
}

func (sc *scan) end() error {
	if sc.trilinear != nil {
		if err := sc.trilinear.End(); err != nil {
			return err
		}
	}
	return sc.model.End()
}

// buffer returns a slice's worth of voxels.
func (sc *scan) buffer() []float32 {
	n := len(sc.spare)
	if n == 0 {
		return make([]float32, len(sc.samples))
	}
	b := sc.spare[n-1]
	sc.spare = sc.spare[:n-1]
	return b
}

// measured brings a slice from the volume's window to the measured one.
func (sc *scan) measured(vox []float32) []float32 {
	if sc.scaled == nil {
		return vox
	}
	for i, x := range vox {
		sc.scaled[i] = float32(sc.scale*float64(clip(x)) + sc.shift)
	}
	return sc.scaled
}

func look(dst []float32, samples []int16, t *[1 << 16]float32) {
	dst = dst[:len(samples)]
	for i, s := range samples {
		dst[i] = t[uint16(s)]
	}
}

// Bytes is the memory that Measure holds at most for a scan of dims in flight, its Codes apart; factor is that of the
// trilinear baseline, zero where it isn't measured.
func Bytes(dims, factor [3]int) int64 {
	plane := int64(dims[0]) * int64(dims[1])
	slices := int64(2*taps + 2*logTaps + 4) // of SSIM and HFEN; the samples, the original twice, scaled
	if factor != [3]int{} {
		slices += 2*taps + int64(min(2*factor[2]+2, dims[2])) + 8 // and of its SSIM, those that wait, and of the baseline
	}
	return 4 * (2<<16 + slices*plane)
}
