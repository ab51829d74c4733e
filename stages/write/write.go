package write

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/volume"
)

// Written is a file that is on the disk, whole.
type Written struct {
	Scan  string // its ID
	Path  string
	Bytes int64
}

// Restorer brings a volume that was resampled back to its file's canonical grid. It is pushed the slices in order of z,
// [y, x], and emits those of the result, in order of z; one is valid until emit returns.
type Restorer interface {
	Push(slice []float32, emit func(z int, slice []float32) error) error
}

// Bytes is the memory that Write holds for a volume of this geometry, what a Restorer holds apart: a slice where the
// file's slowest axis is z and runs upwards, else the whole volume; two bytes a voxel for int16, four for float32; and
// where it is compressed the buffers of that.
func Bytes(g volume.Geometry, o Options) int64 {
	const writer, deflate = 1 << 20, 6 << 20 // the latter for each CPU
	n := int64(writer)
	if o.Gz {
		n += deflate * int64(runtime.GOMAXPROCS(0))
	}
	l, err := newLayout(&g)
	if err != nil {
		return n
	}
	size := int64(2)
	if o.Dtype == Float32 {
		size = 4
	}
	return n + size*l.held()
}

// Write writes each volume whose slabs come in to the file that names has for its scan, and gives it once it is on the
// disk. The slabs of a scan come in order and without gaps, those of several scans among each other. restore, which may
// be nil where no volume was resampled, is asked once for each that was.
//
// A file has the header of its scan, so its orientation, units and description, with voxels in HU, scaling 1 and 0. It
// appears whole under its name, or never: what is unfinished when the sequence ends or is broken off, is removed, and so is
// what a process that was killed left of the files that names has.
//
// What is written of a scan that is lost (volume.Lost) is removed, at the next slab or when in ends, and its slabs are dropped.
//
// Slabs that are missing when in ends are an error, but where stopping (which may be nil) then says that the data was cut
// short. Write releases every slab that it takes from in. Errors name the scan.
func Write(in iter.Seq[*volume.Slab], o Options, names map[string]string, restore func(*volume.Volume) Restorer, stopping func() bool) iter.Seq2[Written, error] {
	return func(yield func(Written, error) bool) {
		w := &writer{o: o, names: names, restore: restore, open: map[string]*file{}, done: map[string]bool{}}
		defer w.close()
		sweep(names)
		for s := range in {
			w.dropLost()
			if s.Volume.Lost() != nil {
				s.Release()
				continue
			}
			f, err := w.add(s)
			if err != nil {
				yield(Written{}, err)
				return
			}
			if f != nil && !yield(*f, nil) {
				return
			}
		}
		if stopping != nil && stopping() {
			return
		}
		w.dropLost()
		if err := w.missing(); err != nil {
			yield(Written{}, err)
		}
	}
}

// sweep removes what is left, unfinished, of files of these names.
func sweep(names map[string]string) {
	paths, dirs := map[string]bool{}, map[string]bool{}
	for _, path := range names {
		paths[filepath.Clean(path)], dirs[filepath.Dir(path)] = true, true
	}
	for dir := range dirs {
		entries, _ := os.ReadDir(dir) // it may not be there yet
		for _, e := range entries {
			if name, ok := nifti.Unfinished(e.Name()); ok && paths[filepath.Join(dir, name)] {
				_ = os.Remove(filepath.Join(dir, e.Name()))
			}
		}
	}
}

// writer is the files in flight.
type writer struct {
	o       Options
	names   map[string]string
	restore func(*volume.Volume) Restorer
	open    map[string]*file
	order   []*file // open ones, as they began
	done    map[string]bool
}

// file is one volume in flight.
type file struct {
	v     *volume.Volume // not counted: for whether it is lost
	scan  string
	epoch int
	path  string
	dims  [3]int // of the slabs
	next  int    // slice that comes next
	push  func(slice []float32) error
	image interface {
		slice(z int, src []float32) error
		close() error
		cancel()
	}
}

// add takes a slab in, and releases it. If it was its file's last, it says what was written.
func (w *writer) add(s *volume.Slab) (*Written, error) {
	defer s.Release()
	done, err := w.take(s)
	if err != nil {
		return nil, fmt.Errorf("scan %s: %w", s.Volume.Scan.ID, err)
	}
	return done, nil
}

func (w *writer) take(s *volume.Slab) (*Written, error) {
	v := s.Volume
	f := w.open[v.Scan.ID]
	if f == nil {
		var err error
		if f, err = w.begin(v); err != nil {
			return nil, err
		}
	}
	slice := f.dims[0] * f.dims[1]
	switch {
	case v.Epoch != f.epoch || v.Dims != f.dims:
		return nil, fmt.Errorf("a slab of %v voxels in epoch %d among those of %v in epoch %d", v.Dims, v.Epoch, f.dims, f.epoch)
	case s.Z0 != f.next || s.Z1 <= s.Z0 || s.Z1 > f.dims[2]:
		return nil, fmt.Errorf("slices %d to %d of %d came where %d is next", s.Z0, s.Z1-1, f.dims[2], f.next)
	case len(s.Voxels) != (s.Z1-s.Z0)*slice:
		return nil, fmt.Errorf("slices %d to %d have %d voxels (want %d)", s.Z0, s.Z1-1, len(s.Voxels), (s.Z1-s.Z0)*slice)
	}
	for i := range s.Z1 - s.Z0 {
		if err := f.push(s.Voxels[i*slice : (i+1)*slice]); err != nil {
			return nil, fmt.Errorf("slice %d: %w", s.Z0+i, err)
		}
	}
	f.next = s.Z1
	if f.next < f.dims[2] {
		return nil, nil
	}
	return w.finish(f)
}

// begin opens the file of a volume.
func (w *writer) begin(v *volume.Volume) (*file, error) {
	id := v.Scan.ID
	path, ok := w.names[id]
	switch {
	case w.done[id]:
		return nil, errors.New("slabs after its last one")
	case !ok:
		return nil, errors.New("no name to write it to")
	}
	if err := w.o.CheckWindow(v.Window); err != nil {
		return nil, err
	}
	g := v.Geometry
	l, err := newLayout(&g)
	if err != nil {
		return nil, err
	}
	if err := checkTarget(path, v.Scan.Path); err != nil {
		return nil, err
	}
	f := &file{v: v, scan: id, epoch: v.Epoch, path: path, dims: v.Dims}
	z := 0
	f.push = func(slice []float32) error {
		err := f.image.slice(z, slice)
		z++
		return err
	}
	switch {
	case g.Resample && w.restore == nil:
		return nil, errors.New("it was resampled, and there is no way back")
	case g.Resample:
		r := w.restore(v)
		emit := func(z int, slice []float32) error { return f.image.slice(z, slice) }
		f.push = func(slice []float32) error { return r.Push(slice, emit) }
	case l.dims != v.Dims:
		return nil, fmt.Errorf("geometry: a file of %v voxels for a volume of %v", l.dims, v.Dims)
	}
	if err := f.create(&w.o, v, l); err != nil {
		return nil, err
	}
	w.open[id] = f
	w.order = append(w.order, f)
	return f, nil
}

// checkTarget refuses to write over the scan itself, by whatever name.
func checkTarget(path, scan string) error {
	a, err := os.Stat(path)
	if err != nil {
		return nil // nothing there
	}
	if b, err := os.Stat(scan); err == nil && os.SameFile(a, b) {
		return fmt.Errorf("%s is the scan itself", path)
	}
	return nil
}

// create starts the file.
func (f *file) create(o *Options, v *volume.Volume, l layout) error {
	g, t := &v.Geometry, nifti.Int16
	if o.Dtype == Float32 {
		t = nifti.Float32
	}
	h := nifti.New(t, g.Dims, g.Source)
	if len(g.Header) > 0 {
		source, err := nifti.Parse(g.Header)
		if err != nil {
			return err
		}
		h = source.Derive(t, g.Dims)
	}
	if err := os.MkdirAll(filepath.Dir(f.path), 0o777); err != nil {
		return err
	}
	w, err := nifti.Create(f.path, h)
	if err != nil {
		return err
	}
	s := newScale(v.Window)
	if t == nifti.Float32 {
		f.image = newImage(l, w, w.WriteFloat32, s.float32s)
	} else {
		f.image = newImage(l, w, w.WriteInt16, s.int16s)
	}
	return nil
}

// finish brings a file to the disk, under its name.
func (w *writer) finish(f *file) (*Written, error) {
	if err := f.image.close(); err != nil {
		return nil, err
	}
	delete(w.open, f.scan)
	w.done[f.scan] = true
	w.order = slices.DeleteFunc(w.order, func(other *file) bool { return other == f })
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, err
	}
	return &Written{Scan: f.scan, Path: f.path, Bytes: info.Size()}, nil
}

// dropLost removes what is written of volumes that are lost.
func (w *writer) dropLost() {
	w.order = slices.DeleteFunc(w.order, func(f *file) bool {
		lost := f.v.Lost() != nil
		if lost {
			f.image.cancel()
			delete(w.open, f.scan)
		}
		return lost
	})
}

// missing lists the slices that haven't come.
func (w *writer) missing() error {
	var parts []string
	for _, f := range w.order {
		parts = append(parts, fmt.Sprintf("scan %s: slices %d to %d of %d", f.scan, f.next, f.dims[2]-1, f.dims[2]))
	}
	if len(parts) == 0 {
		return nil
	}
	return fmt.Errorf("missing: %s", strings.Join(parts, "; "))
}

// close removes what is unfinished.
func (w *writer) close() {
	for _, f := range w.order {
		f.image.cancel()
	}
	w.order, w.open = nil, nil
}
