package nifti

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"os"
	"strings"

	"github.com/flowrun/flowrun/stages/files"
)

// Limits bound what a file may ask for.
type Limits struct {
	Bytes   int64                          // of all its voxels, inflated; 0 means no bound
	Through func(file io.Reader) io.Reader // what each file is read through; tests make it fail
}

// Reader streams the voxels of one file, in file order and as the file has them.
type Reader struct {
	Header *Header

	s    *stream
	end  int64 // of the voxels in the stream
	done bool
}

// ReadHeader reads and checks a file's header, and that the file is large enough for its voxels. Voxels aren't read.
func ReadHeader(path string) (*Header, error) {
	r, err := Open(path, Limits{})
	if err != nil {
		return nil, err
	}
	return r.Header, r.Close()
}

// Open reads and checks a file's header and stands before its first voxel. path is a .nii or .nii.gz, or either file
// of an .hdr/.img pair. Errors say what is wrong, without the path.
func Open(path string, limits Limits) (*Reader, error) {
	if base, ext, ok := cutExt(path, ".img"); ok {
		header, err := sibling(base, ext, "hdr")
		if err != nil {
			return nil, err
		}
		path = header
	}
	s, err := openStream(path, limits)
	if err != nil {
		return nil, err
	}
	r := &Reader{s: s}
	if err := r.open(path, limits); err != nil {
		_ = r.s.Close()
		return nil, err
	}
	return r, nil
}

func (r *Reader) open(path string, limits Limits) error {
	h, err := readHeader(r.s)
	if err != nil {
		return err
	}
	r.Header = h
	h.Files = []File{r.s.info}
	if limits.Bytes > 0 && h.Bytes() > limits.Bytes {
		return fmt.Errorf("dims %v of %v are %d bytes, above the limit of %d (max_bytes)", h.Dim[1:h.Dim[0]+1], h.Datatype, h.Bytes(), limits.Bytes)
	}
	if h.Pair {
		base, ext, ok := cutExt(path, ".hdr")
		if !ok {
			return errors.New("header: its voxels are in an .img file, but it isn't an .hdr")
		}
		image, err := sibling(base, ext, "img")
		if err != nil {
			return err
		}
		s, err := openStream(image, limits)
		if err != nil {
			return fmt.Errorf("%s: %w", image, err)
		}
		_ = r.s.Close()
		r.s = s
		h.Files = append(h.Files, s.info)
	}
	r.end = h.VoxOffset + h.Bytes()
	if r.end < 0 || r.end > r.s.bound() {
		if r.s.gz != nil {
			return fmt.Errorf("truncated: %d bytes can't be inflated to the %d that the header wants", r.s.info.Size, r.end)
		}
		return fmt.Errorf("truncated: %d of %d bytes", r.s.info.Size, r.end)
	}
	return nil
}

// readHeader reads the header and, if they are sound, the extensions behind it.
func readHeader(s *stream) (*Header, error) {
	b := make([]byte, size2)
	n, err := io.ReadFull(s, b[:size1])
	if err != nil {
		if _, _, sniffed := sniff(b[:n]); n >= 4 && sniffed != nil {
			return nil, sniffed
		}
		return nil, s.explain(err, size1)
	}
	if version, _, _ := sniff(b); version == 2 {
		if _, err := io.ReadFull(s, b[size1:]); err != nil {
			return nil, s.explain(err, size2)
		}
	} else {
		b = b[:size1]
	}
	h, err := Parse(b)
	if err != nil {
		return nil, err
	}
	room := h.VoxOffset - s.n
	if h.Pair {
		room = maxExtensions
	}
	ext := make([]byte, min(max(room, 0), maxExtensions, s.bound()))
	n, _ = io.ReadFull(s, ext) // too short a file shows when its voxels are wanted
	h.Extensions = extensions(ext[:n], h)
	return h, nil
}

// extensions parses the bytes between header and voxels. A chain that doesn't add up is ignored whole.
func extensions(b []byte, h *Header) []Extension {
	if len(b) < 4 || b[0] == 0 {
		return nil
	}
	var list []Extension
	for b = b[4:]; len(b) >= 8; {
		size := int64(int32(h.Order.Uint32(b)))
		if size == 0 && len(list) > 0 {
			break // padding
		}
		if size < 8 || size > int64(len(b)) {
			h.warn("header: extensions that don't add up; ignored")
			return nil
		}
		list = append(list, Extension{Code: int32(h.Order.Uint32(b[4:])), Data: b[8:size:size]})
		b = b[size:]
	}
	return list
}

// SkipTo passes voxels up to the n-th of the file, forwards only.
func (r *Reader) SkipTo(voxel int64) error {
	at := r.Header.VoxOffset + voxel*int64(r.Header.Datatype.Size())
	if at < r.s.n || at > r.end {
		return fmt.Errorf("no way to voxel %d from byte %d", voxel, r.s.n)
	}
	return r.s.explain(r.s.skip(at-r.s.n), r.end)
}

// Read fills p with the bytes of the next voxels. It never gives fewer without an error.
func (r *Reader) Read(p []byte) (int, error) {
	if r.s.n < r.Header.VoxOffset {
		if err := r.SkipTo(0); err != nil {
			return 0, err
		}
	}
	if int64(len(p)) > r.end-r.s.n {
		return 0, io.EOF
	}
	n, err := io.ReadFull(r.s, p)
	return n, r.s.explain(err, r.end)
}

// Finish reads what is left of the file, so that its checksum is verified, and says what was odd about its end. It is an
// error if the file was written to since it was opened: what has been read is then of neither.
func (r *Reader) Finish() ([]string, error) {
	if err := r.s.explain(r.s.skip(max(r.end-r.s.n, 0)), r.end); err != nil {
		return nil, err
	}
	var warnings []string
	if extra := r.s.info.Size - r.end; r.s.gz == nil && extra > 0 {
		warnings = append(warnings, fmt.Sprintf("%d bytes more than the header says", extra))
	}
	if r.s.gz != nil {
		// What a header doesn't ask for is bounded like what it does: 64 MiB of padding are more than any writer leaves.
		extra, err := io.Copy(io.Discard, io.LimitReader(r.s, 64<<20))
		if err != nil {
			return nil, r.s.explain(err, r.end)
		}
		if extra == 64<<20 {
			return nil, fmt.Errorf("at least %d bytes more than the header says", extra)
		}
		if extra > 0 {
			warnings = append(warnings, fmt.Sprintf("%d bytes more than the header says", extra))
		}
		if after := r.s.gz.After(); after > 0 {
			warnings = append(warnings, fmt.Sprintf("%d bytes after the gzip data; ignored", after))
		}
	}
	return warnings, r.s.unchanged()
}

// Content is what tells the image's bytes, header and voxels, from any other's without reading them, "" where nothing does: the
// CRC-32 and the size that a gzip file of one member ends in. Reading the file to Finish proves it.
func (r *Reader) Content() string {
	var b [8]byte
	if r.s.gz == nil || r.Header.Pair || r.s.info.Size < int64(len(b)) {
		return ""
	}
	if _, err := r.s.f.ReadAt(b[:], r.s.info.Size-int64(len(b))); err != nil || int64(binary.LittleEndian.Uint32(b[4:])) != r.end&math.MaxUint32 {
		return ""
	}
	return content(binary.LittleEndian.Uint32(b[:]), r.end)
}

// Content reads a file that isn't compressed, and gives what Reader.Content would be if it were. Errors don't name the path.
func Content(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", files.Reason(err)
	}
	defer func() { _ = f.Close() }() // it was only read
	sum := crc32.NewIEEE()
	n, err := io.Copy(sum, f)
	if err != nil {
		return "", files.Reason(err)
	}
	return content(sum.Sum32(), n), nil
}

func content(sum uint32, size int64) string { return fmt.Sprintf("crc32 %08x of %d", sum, size) }

// Close closes the file. It doesn't verify: see Finish.
func (r *Reader) Close() error {
	if r.done {
		return nil
	}
	r.done = true
	return r.s.Close()
}

// cutExt splits a path at ext, in any case, with or without .gz behind it.
func cutExt(path, ext string) (base, found string, ok bool) {
	lower := strings.ToLower(path)
	for _, e := range []string{ext, ext + ".gz"} {
		if strings.HasSuffix(lower, e) {
			n := len(path) - len(e)
			return path[:n], path[n:], true
		}
	}
	return "", "", false
}

// sibling finds the other file of a pair: the same compression and case first.
func sibling(base, ext, kind string) (string, error) {
	upper := ext != strings.ToLower(ext)
	names := []string{kind, kind + ".gz"}
	if strings.HasSuffix(strings.ToLower(ext), ".gz") {
		names[0], names[1] = names[1], names[0]
	}
	if upper {
		names = append([]string{strings.ToUpper(names[0]), strings.ToUpper(names[1])}, names...)
	}
	for _, name := range names {
		path := base + "." + name
		if _, err := os.Stat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%s: %w", path, files.Reason(err))
		}
	}
	return "", fmt.Errorf("the .%s file of the pair isn't beside it", kind)
}
