package nifti

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/flowrun/flowrun/stages/files"
	"github.com/klauspost/pgzip"
)

// Writer streams an image to a file in file order. The file appears whole under its name at Close, or never.
type Writer struct {
	header *Header
	parts  []*part // the last one takes the voxels
	left   int64   // voxels still to come
	buf    []byte
	err    error
	over   bool
}

// part is one file being written under a temporary name.
type part struct {
	path string
	f    *os.File
	w    *bufio.Writer
	gz   *pgzip.Writer // nil if plain
}

// Create starts an image of h's type (int16 or float32), dims and scaling. The name says what it is: .nii, or .hdr
// with an .img beside it, each with .gz or without. The folder must exist. Files with .gz are deflated at level 1:
// higher levels gain under 3% on noisy CT.
func Create(path string, h *Header) (*Writer, error) {
	d := *h
	if d.Datatype != Int16 && d.Datatype != Float32 {
		return nil, fmt.Errorf("%s: %v isn't written (want int16 or float32)", path, d.Datatype)
	}
	paths := []string{path}
	d.Pair = false
	if base, ext, ok := cutExt(path, ".hdr"); ok {
		d.Pair = true
		paths = append(paths, base+strings.Replace(strings.ToLower(ext), "hdr", "img", 1))
	} else if _, _, ok := cutExt(path, ".nii"); !ok {
		return nil, fmt.Errorf("%s: want a name that ends in .nii, .nii.gz or .hdr", path)
	}
	head, err := d.Encode()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	w := &Writer{header: &d, left: d.Bytes() / int64(d.Datatype.Size()), buf: make([]byte, 0, 64<<10)}
	for _, p := range paths {
		pt, err := newPart(p)
		if err != nil {
			w.Cancel()
			return nil, fmt.Errorf("%s: %w", p, files.Reason(err))
		}
		w.parts = append(w.parts, pt)
	}
	if _, err := w.parts[0].Write(head); err != nil {
		w.Cancel()
		return nil, fmt.Errorf("%s: %w", path, files.Reason(err))
	}
	return w, nil
}

// Unfinished gives the name that a file which Create began would have had once it was finished; it is false for other files.
// Where a process was killed such files are left.
func Unfinished(name string) (string, bool) {
	hidden, dot := strings.CutPrefix(name, ".")
	stem, tmp := strings.CutSuffix(hidden, ".tmp")
	at := len(stem) - 17
	if !dot || !tmp || at < 1 || stem[at] != '.' || strings.Trim(stem[at+1:], "0123456789abcdef") != "" {
		return "", false
	}
	return stem[:at], true
}

func newPart(path string) (*part, error) {
	// Hidden and ending in .tmp, so that no list of scans takes it for one.
	name := fmt.Sprintf(".%s.%016x.tmp", filepath.Base(path), rand.Uint64())
	f, err := os.OpenFile(filepath.Join(filepath.Dir(path), name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, err
	}
	p := &part{path: path, f: f, w: bufio.NewWriterSize(f, 256<<10)}
	if strings.HasSuffix(strings.ToLower(path), ".gz") {
		p.gz, err = pgzip.NewWriterLevel(p.w, 1)
		if err == nil {
			err = p.gz.SetConcurrency(1<<20, runtime.GOMAXPROCS(0))
		}
		if err != nil {
			p.cancel()
			return nil, err
		}
	}
	return p, nil
}

func (p *part) Write(b []byte) (int, error) {
	if p.gz != nil {
		return p.gz.Write(b)
	}
	return p.w.Write(b)
}

// sync brings all that was written to the disk.
func (p *part) sync() error {
	if p.gz != nil {
		if err := p.gz.Close(); err != nil {
			return err
		}
	}
	if err := p.w.Flush(); err != nil {
		return err
	}
	if err := p.f.Sync(); err != nil {
		return err
	}
	return p.f.Close()
}

func (p *part) cancel() {
	if p.gz != nil {
		_ = p.gz.Close() // ends its goroutines
	}
	_ = p.f.Close()
	_ = os.Remove(p.f.Name())
}

// WriteInt16 appends samples to an int16 image.
func (w *Writer) WriteInt16(samples []int16) error {
	return write(w, Int16, samples, func(b []byte, o binary.ByteOrder, xs []int16) {
		if o == binary.BigEndian {
			for i, x := range xs {
				binary.BigEndian.PutUint16(b[2*i:], uint16(x))
			}
			return
		}
		for i, x := range xs {
			binary.LittleEndian.PutUint16(b[2*i:], uint16(x))
		}
	})
}

// WriteFloat32 appends samples to a float32 image.
func (w *Writer) WriteFloat32(samples []float32) error {
	return write(w, Float32, samples, func(b []byte, o binary.ByteOrder, xs []float32) {
		for i, x := range xs {
			o.PutUint32(b[4*i:], math.Float32bits(x))
		}
	})
}

// write appends samples; put encodes as many as fit its first argument.
func write[T int16 | float32](w *Writer, t Type, samples []T, put func([]byte, binary.ByteOrder, []T)) error {
	switch {
	case w.over:
		return errors.New("write to a closed image")
	case w.err != nil:
		return w.err
	case t != w.header.Datatype:
		return fmt.Errorf("%v samples for an image of %v", t, w.header.Datatype)
	case int64(len(samples)) > w.left:
		return fmt.Errorf("%d voxels too many", int64(len(samples))-w.left)
	}
	w.left -= int64(len(samples))
	out, size, order := w.parts[len(w.parts)-1], t.Size(), w.header.Order
	for len(samples) > 0 {
		n := min(len(samples), cap(w.buf)/size)
		b := w.buf[:n*size]
		put(b, order, samples[:n])
		if _, err := out.Write(b); err != nil {
			w.err = fmt.Errorf("%s: %w", out.path, files.Reason(err))
			return w.err
		}
		samples = samples[n:]
	}
	return nil
}

// Close completes the image: all is on the disk before the name appears. An image that lacks voxels, or failed
// before, is dropped and its error returned.
func (w *Writer) Close() error {
	if w.over {
		return nil
	}
	if w.err == nil && w.left > 0 {
		w.err = fmt.Errorf("%s: %d voxels are missing", w.parts[0].path, w.left)
	}
	for _, p := range w.parts {
		if w.err == nil {
			if err := p.sync(); err != nil {
				w.err = fmt.Errorf("%s: %w", p.path, files.Reason(err))
			}
		}
	}
	if w.err != nil {
		w.Cancel()
		return w.err
	}
	w.over = true
	// Voxels first: an .hdr never stands without its .img.
	for i := len(w.parts) - 1; i >= 0; i-- {
		if err := os.Rename(w.parts[i].f.Name(), w.parts[i].path); err != nil {
			for _, p := range w.parts[:i+1] {
				_ = os.Remove(p.f.Name())
			}
			return fmt.Errorf("%s: %w", w.parts[i].path, err)
		}
	}
	return files.SyncDir(filepath.Dir(w.parts[0].path))
}

// Cancel drops the image. After Close it does nothing.
func (w *Writer) Cancel() {
	if w.over {
		return
	}
	w.over = true
	for _, p := range w.parts {
		p.cancel()
	}
}
