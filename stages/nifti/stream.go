package nifti

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/flowrun/flowrun/stages/files"
	"github.com/flowrun/flowrun/stages/nifti/inflate"
)

// maxRatio is the most that deflate can shrink data.
const maxRatio = 1032

// stream is a file's bytes, inflated if it is gzip whatever its name.
type stream struct {
	f    *os.File
	info File
	buf  *bufio.Reader
	gz   *inflate.Reader // nil if the file isn't gzip
	n    int64           // bytes given so far
}

func openStream(path string, limits Limits) (*stream, error) {
	// Asked before it is opened, because opening a named pipe waits for its writer.
	if info, err := os.Stat(path); err != nil {
		return nil, files.Reason(err)
	} else if info.IsDir() {
		return nil, errors.New("is a folder")
	} else if !info.Mode().IsRegular() {
		return nil, errors.New("isn't a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, files.Reason(err)
	}
	s := &stream{f: f}
	if err := s.start(path, limits.Through); err != nil {
		_ = f.Close()
		return nil, err
	}
	return s, nil
}

func (s *stream) start(path string, through func(io.Reader) io.Reader) error {
	info, err := s.f.Stat()
	if err != nil {
		return files.Reason(err)
	}
	if info.Size() == 0 {
		return errors.New("is empty")
	}
	s.info = File{Path: path, Size: info.Size(), ModTime: info.ModTime().UnixNano()}
	s.buf = bufio.NewReaderSize(s.f, 64<<10)
	if through != nil {
		s.buf.Reset(through(s.f))
	}
	b, err := s.buf.Peek(2)
	if err != nil && !errors.Is(err, io.EOF) { // a file of one byte isn't NIfTI, and is said to be so
		return files.Reason(err)
	}
	if string(b) == "\x1f\x8b" {
		s.gz = inflate.NewReader(s.buf)
	}
	return nil
}

// bound is the most bytes that the file can give.
func (s *stream) bound() int64 {
	if s.gz != nil {
		return s.info.Size * maxRatio
	}
	return s.info.Size
}

// Read gives bytes in order.
func (s *stream) Read(p []byte) (n int, err error) {
	if s.gz != nil {
		n, err = s.gz.Read(p)
	} else {
		n, err = s.buf.Read(p)
	}
	s.n += int64(n)
	return n, err
}

func (s *stream) Close() error { return s.f.Close() }

// skip passes n bytes.
func (s *stream) skip(n int64) error {
	if n == 0 {
		return nil
	}
	if s.gz == nil {
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

// unchanged says that nobody wrote to the file since it was opened.
func (s *stream) unchanged() error {
	info, err := s.f.Stat()
	switch {
	case err != nil:
		return files.Reason(err)
	case info.Size() != s.info.Size || info.ModTime().UnixNano() != s.info.ModTime:
		return errors.New("the file was changed while it was read")
	}
	return nil
}

// explain says in a user's words why the stream broke when want bytes were wanted of it.
func (s *stream) explain(err error, want int64) error {
	if err == nil {
		return nil
	}
	if changed := s.unchanged(); changed != nil {
		return changed
	}
	have := fmt.Sprintf("%d of %d bytes", s.n, want)
	switch {
	case errors.Is(err, inflate.ErrChecksum):
		return fmt.Errorf("corrupt: %w (inflated %s)", err, have)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		if s.gz == nil {
			return fmt.Errorf("truncated: %s", have)
		}
		return fmt.Errorf("truncated: the gzip data ends after %s", have)
	case errors.Is(err, inflate.ErrCorrupt), errors.Is(err, inflate.ErrHeader):
		return fmt.Errorf("corrupt: %w after %s", err, have)
	}
	return files.Reason(err)
}
