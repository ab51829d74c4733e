package metrics

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"sync"

	"github.com/flowrun/flowrun/stages/volume"
)

// Options is what measure does in a flow.
type Options struct {
	WindowHU  [2]float64 `key:"window_hu" default:"[0, 0]" unit:"HU" doc:"Window in which volumes are measured: both are clipped to it, and its width is the range of PSNR. It may be narrower than the window that scans are read with, which [0, 0] stands for."`
	Trilinear bool       `key:"trilinear" default:"true" doc:"Measure the naive baseline too: the original made smaller by the model's downsampling and brought back, both by trilinear interpolation."`
	Pictures  int        `key:"pictures" default:"8" unit:"scans" min:"0" doc:"Scans of which pictures are drawn, through the slices with the largest errors; 0 draws none."`
}

// Check refuses a window that is empty or upside down.
func (o *Options) Check() error {
	if w := o.WindowHU; w != [2]float64{} && !(w[0] < w[1]) {
		return fmt.Errorf("window_hu: %v is empty (want the lower end first)", w)
	}
	return nil
}

// Study is the measures of a run's merged volumes. Set the fields and hand it to Measure; Codes and Summary may be
// called from any goroutine meanwhile.
type Study struct {
	Options  Options
	Workers  int    // of SSIM; one if 0. No result depends on it
	Factor   [3]int // of the trilinear baseline: the model's downsampling
	Codebook int    // codes in the model's codebook; 0 where there is none
	Depth    int    // codes of a latent, of as many codebooks; one if 0

	// Borders says where the tiles of a volume met, see the function Borders. Without it there is no seam index.
	Borders func(*volume.Volume) [3][]int

	// Watch, if not nil, sees each slice: original and reconstruction, in [-1, 1] of the volume's window, x fastest. It
	// keeps neither.
	Watch func(v *volume.Volume, z int, orig, recon []float32) error

	// Done, if not nil, has the result of a scan once its last slice is measured, before its last slab goes on.
	Done func(v *volume.Volume, r Row) error

	// Lost, if not nil, is told of each scan of which slabs came and that is dropped because its volume is lost (volume.Lost);
	// its error ends the sequence. Without it a scan that can't be read does.
	Lost func(v *volume.Volume) error

	mu     sync.Mutex
	window [2]float64 // of all scans, once the first has come
	codes  map[string]*Usage
	scans  []account
	used   *Usage // by all of scans; nil: no codes
}

// Codes counts codes that a scan's reconstruction is made of. All of a scan's are to be counted before its last slab
// reaches Measure. Where tiles overlap and each has codes of its own, all of them count: they are what it takes to store
// the scan.
func (s *Study) Codes(scan string, codes []int32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.codes[scan]
	if u == nil {
		if s.codes == nil {
			s.codes = map[string]*Usage{}
		}
		u = NewUsage(s.Codebook, max(1, s.Depth))
		s.codes[scan] = u
	}
	if err := u.Add(codes); err != nil {
		return fmt.Errorf("%s: %w", scan, err)
	}
	return nil
}

// Measure measures merged volumes against their originals as slabs pass, and passes them on as they are. The slabs of a
// scan come in order; those of several scans may come among each other. A scan whose last slab doesn't come isn't in
// the results. Bytes says how much memory is held for each scan in flight.
//
// It is an error if a scan's window doesn't hold Options.WindowHU, or is another than that of the scans before where
// WindowHU isn't given. The slab that an error is about is released.
func Measure(in iter.Seq[*volume.Slab], s *Study) iter.Seq2[*volume.Slab, error] {
	return func(yield func(*volume.Slab, error) bool) {
		open := map[key]*scan{}
		for slab := range in {
			err := s.slab(open, slab)
			if gone := s.dropLost(open); gone != nil {
				slab.Release()
				yield(nil, gone)
				return
			}
			if s.Lost != nil && slab.Volume.Lost() != nil {
				slab.Release()
				continue
			}
			if err != nil {
				id := slab.Volume.Scan.ID
				slab.Release()
				yield(nil, fmt.Errorf("%s: %w", id, err))
				return
			}
			if !yield(slab, nil) {
				return
			}
		}
		if err := s.dropLost(open); err != nil {
			yield(nil, err)
		}
	}
}

// dropLost forgets the scans that are lost, where s.Lost wants to know.
func (s *Study) dropLost(open map[key]*scan) (err error) {
	if s.Lost == nil {
		return nil
	}
	maps.DeleteFunc(open, func(_ key, sc *scan) bool {
		if sc.v.Lost() == nil {
			return false
		}
		s.mu.Lock()
		delete(s.codes, sc.id)
		s.mu.Unlock()
		err = errors.Join(err, s.Lost(sc.v))
		return true
	})
	return err
}

// key is a scan in flight.
type key struct {
	scan  string
	epoch int
}

func (s *Study) slab(open map[key]*scan, slab *volume.Slab) error {
	v := slab.Volume
	k := key{v.Scan.ID, v.Epoch}
	sc := open[k]
	if sc == nil {
		w, err := s.agree(v)
		if err != nil {
			return err
		}
		if sc, err = s.begin(v, w); err != nil {
			return err
		}
		open[k] = sc
	}
	if err := sc.add(slab); err != nil {
		return err
	}
	if !slab.Last() {
		return nil
	}
	delete(open, k)
	if err := sc.end(); err != nil {
		return err
	}
	r := s.close(sc.account)
	if s.Done == nil {
		return nil
	}
	return s.Done(v, r)
}

// agree returns the window to measure v in.
func (s *Study) agree(v *volume.Volume) ([2]float64, error) {
	w := s.Options.WindowHU
	if w == [2]float64{} {
		w = v.Window
	}
	if w[0] < v.Window[0] || w[1] > v.Window[1] {
		return w, fmt.Errorf("window_hu: %v reaches beyond %v, the window that the scan was read with", w, v.Window)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.window == [2]float64{} {
		s.window = w
	}
	if w != s.window {
		return w, fmt.Errorf("window %v differs from %v, that of the scans before (window_hu sets one for all)", w, s.window)
	}
	return w, nil
}

// close adds a scan to the results.
func (s *Study) close(a account) Row {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.codes[a.id]; u != nil {
		delete(s.codes, a.id)
		a.code = codeMeasures(u, a.voxels())
		if s.used == nil {
			s.used = NewUsage(s.Codebook, max(1, s.Depth))
		}
		s.used.Join(u)
	}
	s.scans = append(s.scans, a)
	return a.row(s.window)
}
