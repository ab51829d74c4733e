package nifti

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
)

// maxRatio is the most that deflate can shrink data.
const maxRatio = 1032

// stream is a file's bytes, inflated if it is gzip whatever its name. Concatenated members are one stream. What
// follows the last member and isn't NULs is counted in after.
type stream struct {
	f     *os.File
	info  File
	buf   *bufio.Reader
	gz    *gzip.Reader // nil if the file isn't gzip, or once its last member has ended
	zip   bool
	n     int64 // bytes given so far
	after int64 // bytes behind the gzip data
	err   error // sticky
}

func openStream(path string) (*stream, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, reason(err)
	}
	s := &stream{f: f}
	if err := s.start(path); err != nil {
		_ = f.Close()
		return nil, err
	}
	return s, nil
}

func (s *stream) start(path string) error {
	info, err := s.f.Stat()
	switch {
	case err != nil:
		return reason(err)
	case info.IsDir():
		return errors.New("is a folder")
	case !info.Mode().IsRegular():
		return errors.New("isn't a regular file")
	case info.Size() == 0:
		return errors.New("is empty")
	}
	s.info = File{Path: path, Size: info.Size(), ModTime: info.ModTime().UnixNano()}
	s.buf = bufio.NewReaderSize(s.f, 64<<10)
	if !s.member() {
		return nil
	}
	s.zip = true
	if s.gz, err = gzip.NewReader(s.buf); err != nil {
		return fmt.Errorf("gzip header: %w", err)
	}
	s.gz.Multistream(false)
	return nil
}

// member says that a gzip member starts here.
func (s *stream) member() bool {
	b, _ := s.buf.Peek(3)
	return len(b) == 3 && b[0] == 0x1f && b[1] == 0x8b && b[2] == 8
}

// bound is the most bytes that the file can give.
func (s *stream) bound() int64 {
	if s.zip {
		return s.info.Size * maxRatio
	}
	return s.info.Size
}

// Read fills p as far as it can.
func (s *stream) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.read(p)
	s.n += int64(n)
	s.err = err
	return n, err
}

func (s *stream) read(p []byte) (int, error) {
	if !s.zip {
		return s.buf.Read(p)
	}
	for s.gz != nil {
		n, err := s.gz.Read(p)
		if err == io.EOF {
			err = s.next()
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
	return 0, io.EOF
}

// next goes on behind a member's end: to the next member, or over padding to the end of the file.
func (s *stream) next() error {
	if s.member() {
		if err := s.gz.Reset(s.buf); err != nil {
			return fmt.Errorf("gzip header: %w", err)
		}
		s.gz.Multistream(false)
		return nil
	}
	s.gz = nil
	junk := false
	buf := make([]byte, 4096)
	for {
		n, err := s.buf.Read(buf)
		s.after += int64(n)
		for _, b := range buf[:n] {
			junk = junk || b != 0
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return reason(err)
		}
	}
	if !junk {
		s.after = 0
	}
	return nil
}

func (s *stream) Close() error { return s.f.Close() }

// skip passes n bytes.
func (s *stream) skip(n int64) error {
	if n == 0 {
		return nil
	}
	if !s.zip {
		d, err := s.buf.Discard(int(min(n, 1<<30)))
		s.n += int64(d)
		if err != nil || int64(d) == n {
			return err
		}
		return s.skip(n - int64(d))
	}
	buf := make([]byte, min(n, 64<<10))
	for n > 0 {
		d, err := s.Read(buf[:min(n, int64(len(buf)))])
		n -= int64(d)
		if err != nil && n > 0 {
			return err
		}
	}
	return nil
}

// explain says in a user's words why the stream broke when want bytes were wanted of it.
func (s *stream) explain(err error, want int64) error {
	have := fmt.Sprintf("%d of %d bytes", s.n, want)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, gzip.ErrChecksum):
		return fmt.Errorf("corrupt: the gzip checksum differs (inflated %s)", have)
	case errors.Is(err, io.EOF) && !s.zip:
		return fmt.Errorf("truncated: %s", have)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("truncated: the gzip data ends after %s", have)
	case s.zip:
		return fmt.Errorf("corrupt gzip data after %s: %w", have, reason(err))
	}
	return reason(err)
}

// reason drops the path from an error of os: the caller names it.
func reason(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	return err
}
