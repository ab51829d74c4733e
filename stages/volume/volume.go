package volume

import (
	"fmt"
	"sync/atomic"
)

// Samples gives a volume's int16 samples slice by slice, from memory or from a cache file.
type Samples interface {
	// Rows returns rows y0 ≤ y < y1 of slice z, each of the full width, x fastest. The result may be a view of the
	// samples, valid until the volume is released, or buf filled; it must not be written to. buf holds at least
	// (y1-y0)*width samples. Rows may be called from several goroutines at once.
	Rows(z, y0, y1 int, buf []int16) ([]int16, error)
	// Close gives back what holds the samples.
	Close() error
}

// Volume is a scan whose samples can be read: HU = Slope*sample + Inter. It is counted: Own gives
// the first reference.
//
// A volume without samples (Dry) stands for its scan when a resumed run replays an epoch's tags without reading voxels.
type Volume struct {
	Scan         *Scan
	Epoch        int
	Dims         [3]int     // voxels
	Window       [2]float64 // HU mapped to -1 and 1
	Slope, Inter float64
	Geometry     Geometry
	Warnings     []string // what was odd about the file, a line each

	samples Samples
	free    func()
	refs    atomic.Int32
}

// Own gives v its samples (nil for a dry volume) and its first reference; free, if not nil, runs after the samples are
// closed (it gives the bytes back to the budget). It returns v.
func (v *Volume) Own(samples Samples, free func()) *Volume {
	v.samples, v.free = samples, free
	v.refs.Store(1)
	return v
}

// Dry says that the volume has no samples.
func (v *Volume) Dry() bool { return v.samples == nil }

// Bytes is the host memory of the samples, for the graph's counters: none for a dry volume.
func (v *Volume) Bytes() int64 {
	if _, ok := v.samples.(*Memory); !ok {
		return 0
	}
	return 2 * int64(v.Dims[0]) * int64(v.Dims[1]) * int64(v.Dims[2])
}

// Rows is Samples.Rows of the volume's samples.
func (v *Volume) Rows(z, y0, y1 int, buf []int16) ([]int16, error) {
	if v.samples == nil {
		return nil, fmt.Errorf("scan %s: no samples in a dry volume", v.Scan.ID)
	}
	return v.samples.Rows(z, y0, y1, buf)
}

// Retain takes one more reference.
func (v *Volume) Retain() *Volume {
	if v.refs.Add(1) <= 1 {
		panic("volume: retained after release: " + v.Scan.ID)
	}
	return v
}

// Release drops one reference; the last one closes the samples.
func (v *Volume) Release() {
	switch n := v.refs.Add(-1); {
	case n < 0:
		panic("volume: released twice: " + v.Scan.ID)
	case n > 0:
		return
	}
	if v.samples != nil {
		_ = v.samples.Close()
	}
	if v.free != nil {
		v.free()
	}
}

// Memory is Samples held in memory, x fastest.
type Memory struct {
	Data []int16
	Dims [3]int
}

// Rows returns a view.
func (m *Memory) Rows(z, y0, y1 int, _ []int16) ([]int16, error) {
	w, o := m.Dims[0], z*m.Dims[0]*m.Dims[1]
	return m.Data[o+y0*w : o+y1*w : o+y1*w], nil
}

// Close drops the samples.
func (m *Memory) Close() error { m.Data = nil; return nil }
