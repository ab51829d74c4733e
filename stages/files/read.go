package files

import (
	"fmt"
	"io"
	"os"
)

// Most is more than any file of text has that flowrun reads whole: lists of scans and lines of a run.
const Most = 256 << 20

// Read is the content of a file of at most so many bytes. Of one that is larger, or has no end, no more is read, and an
// error says so. Errors don't name the path.
func Read(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, Reason(err)
	}
	defer func() { _ = f.Close() }() // it was only read
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, Reason(err)
	}
	if int64(len(b)) > most {
		return nil, fmt.Errorf("larger than %d bytes", most)
	}
	return b, nil
}
