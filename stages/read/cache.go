package read

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"github.com/flowrun/flowrun/stages/files"
	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/volume"
)

// A cache file is an uncompressed NIfTI image of a scan as Load gives it: canonical axes, int16, little endian. An
// extension (a comment, code 6) holds its record as JSON. The name depends on the scan's path and on the options that
// change samples, the record on the file itself: a source that was changed gets its copy rewritten in place. Files are
// written under a temporary name and renamed, so that processes may share the folder.
type cache struct {
	path   string
	want   record
	source *plan
}

// record says what a cache file is a copy of.
type record struct {
	Flowrun  string          `json:"flowrun"` // version of this layout
	Source   string          `json:"source"`  // digest of the source's header, size and time
	Options  string          `json:"options"` // those that change samples
	CRC32C   uint32          `json:"crc32c"`  // of the voxels' bytes
	Slope    float64         `json:"slope"`
	Inter    float64         `json:"inter"`
	Geometry volume.Geometry `json:"geometry"`
	Warnings []string        `json:"warnings"`
}

const (
	cacheVersion = "cache 2"
	commentCode  = 6
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func newCache(scan *volume.Scan, p *plan, o *Options) *cache {
	options := fmt.Sprintf("frame %d, channel_dim %d, spacing %v", o.Frame, o.ChannelDim, o.Spacing)
	if !p.raw {
		options += fmt.Sprintf(", window_hu %v", o.WindowHU)
	}
	key := sha256.Sum256([]byte(files.Absolute(scan.Path) + "\x00" + options))
	name := filepath.Base(scan.ID)
	for _, ext := range []string{".gz", ".nii", ".hdr"} {
		name = strings.TrimSuffix(name, ext)
	}
	name = name[:min(len(name), 100)]
	return &cache{
		path:   filepath.Join(o.Cache, fmt.Sprintf("%s-%x.nii", name, key[:8])),
		want:   record{Flowrun: cacheVersion, Source: scan.Digest, Options: options},
		source: p,
	}
}

// cached says that a scan has a copy in the cache, by its header; Load verifies the rest.
func cached(scan *volume.Scan, p *plan, o *Options) bool {
	_, _, err := newCache(scan, p, o).header()
	return err == nil
}

// header reads the copy's header and record and compares them with what is wanted.
func (c *cache) header() (*nifti.Header, *record, error) {
	h, err := nifti.ReadHeader(c.path)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range h.Extensions {
		var r record
		data := strings.TrimRight(string(e.Data), "\x00")
		if e.Code != commentCode || json.Unmarshal([]byte(data), &r) != nil {
			continue
		}
		g, err := h.Grid(-1, -1)
		if err == nil && r.Flowrun == c.want.Flowrun && r.Source == c.want.Source && r.Options == c.want.Options &&
			g.Dims == c.source.dims && h.Datatype == nifti.Int16 && h.Files[0].Size == h.VoxOffset+h.Bytes() {
			return h, &r, nil
		}
	}
	return nil, nil, errors.New("isn't a copy of this scan")
}

// open verifies the copy whole and gives its samples.
func (c *cache) open(ctx context.Context, v *volume.Volume) (volume.Samples, error) {
	h, r, err := c.header()
	if err != nil {
		return nil, err
	}
	f, err := os.Open(c.path)
	if err != nil {
		return nil, err
	}
	s := &cacheFile{f: f, at: h.VoxOffset, dims: c.source.dims}
	if err := s.verify(ctx, h.Bytes(), r.CRC32C); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	v.Slope, v.Inter, v.Geometry, v.Warnings = r.Slope, r.Inter, r.Geometry, r.Warnings
	return s, nil
}

// write makes the copy.
func (c *cache) write(ctx context.Context, v *volume.Volume, data []int16) error {
	r := c.want
	r.Slope, r.Inter, r.Geometry, r.Warnings = v.Slope, v.Inter, v.Geometry, v.Warnings
	r.CRC32C = checksum(data)
	note, err := json.Marshal(r)
	if err != nil {
		return err
	}
	h := nifti.New(nifti.Int16, v.Dims, c.affine(v))
	h.SclSlope, h.SclInter = v.Slope, v.Inter
	h.Extensions = []nifti.Extension{{Code: commentCode, Data: note}}
	c.sweep()
	w, err := nifti.Create(c.path, h)
	if err != nil {
		return err
	}
	defer w.Cancel()
	for slice := v.Dims[0] * v.Dims[1]; len(data) > 0; data = data[slice:] {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.WriteInt16(data[:slice]); err != nil {
			return err
		}
	}
	return w.Close()
}

// affine is that of the copy's grid, so that viewers show it in its place.
func (c *cache) affine(v *volume.Volume) volume.Affine {
	a := v.Geometry.Affine
	for i := range 3 {
		for j := range 3 {
			scale := v.Scan.Spacing[j] / v.Geometry.Spacing[j]
			a[i][3] += v.Geometry.Affine[i][j] * (scale - 1) / 2
			a[i][j] *= scale
		}
	}
	return a
}

// sweep removes what runs that were killed left half written of this copy. A day is longer than any writing.
func (c *cache) sweep() {
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(c.path), ".*.tmp"))
	for _, path := range left {
		if !strings.HasPrefix(filepath.Base(path), "."+filepath.Base(c.path)+".") {
			continue
		}
		if info, err := os.Stat(path); err == nil && time.Since(info.ModTime()) > 24*time.Hour {
			_ = os.Remove(path)
		}
	}
}

// checksum is the CRC-32C of samples in little endian.
func checksum(data []int16) uint32 {
	sum := uint32(0)
	buf := make([]byte, 2*chunk)
	for len(data) > 0 {
		n := min(len(data), chunk)
		for i, s := range data[:n] {
			binary.LittleEndian.PutUint16(buf[2*i:], uint16(s))
		}
		sum = crc32.Update(sum, castagnoli, buf[:2*n])
		data = data[n:]
	}
	return sum
}

// cacheFile is Samples in a cache file, one pread a call.
type cacheFile struct {
	f    *os.File
	at   int64 // of the first sample
	dims [3]int
}

func (s *cacheFile) verify(ctx context.Context, size int64, want uint32) error {
	sum := uint32(0)
	buf := make([]byte, min(size, 1<<20))
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(size-off, int64(len(buf)))
		if _, err := s.f.ReadAt(buf[:n], s.at+off); err != nil {
			return err
		}
		sum = crc32.Update(sum, castagnoli, buf[:n])
		off += n
	}
	if sum != want {
		return errors.New("its checksum differs")
	}
	return nil
}

// Rows fills buf.
func (s *cacheFile) Rows(z, y0, y1 int, buf []int16) ([]int16, error) {
	w := s.dims[0]
	buf = buf[:(y1-y0)*w]
	if len(buf) == 0 {
		return buf, nil
	}
	b := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(buf))), 2*len(buf))
	if _, err := s.f.ReadAt(b, s.at+2*int64(w)*(int64(z)*int64(s.dims[1])+int64(y0))); err != nil {
		return nil, fmt.Errorf("cache %s: %w", s.f.Name(), files.Reason(err))
	}
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		for i := range buf {
			buf[i] = int16(binary.LittleEndian.Uint16(b[2*i:]))
		}
	}
	return buf, nil
}

// Close closes the file.
func (s *cacheFile) Close() error { return s.f.Close() }
