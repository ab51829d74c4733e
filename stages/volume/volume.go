package volume

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// Samples gives a volume's int16 samples slice by slice, from memory or from a file. Those that hold memory have
// Bytes() int64, which never changes.
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
	lost    atomic.Pointer[error]
	closing sync.Once
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
	if s, ok := v.samples.(interface{ Bytes() int64 }); ok {
		return s.Bytes()
	}
	return 0
}

// Rows is Samples.Rows of the volume's samples. After its first error the volume is lost.
func (v *Volume) Rows(z, y0, y1 int, buf []int16) ([]int16, error) {
	if v.samples == nil {
		return nil, fmt.Errorf("scan %s: no samples in a dry volume", v.Scan.ID)
	}
	if err := v.Lost(); err != nil {
		return nil, err
	}
	rows, err := v.samples.Rows(z, y0, y1, buf)
	if err != nil {
		v.lose(err)
	}
	return rows, err
}

func (v *Volume) lose(err error) {
	if v.lost.CompareAndSwap(nil, &err) {
		v.close()
	}
}

// Lost is why the volume's samples can't be read to their end; nil while they can. What was made of a lost volume is to be
// dropped. It holds no memory any more, whoever still refers to it.
func (v *Volume) Lost() error {
	if err := v.lost.Load(); err != nil {
		return *err
	}
	return nil
}

func (v *Volume) close() {
	v.closing.Do(func() {
		if v.samples != nil {
			_ = v.samples.Close()
		}
		if v.free != nil {
			v.free()
		}
	})
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
	v.close()
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

// Bytes is the memory of the samples.
func (m *Memory) Bytes() int64 { return 2 * int64(m.Dims[0]) * int64(m.Dims[1]) * int64(m.Dims[2]) }

// Close drops the samples.
func (m *Memory) Close() error { m.Data = nil; return nil }
