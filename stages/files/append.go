package files

import (
	"errors"
	"os"
	"path/filepath"
)

// Append puts a line at a file's end, which is at size, and onto the disk. What lies beyond, the rest of a line that was torn, goes. A file
// that isn't there is made, to last. Errors are the os package's.
func Append(path string, size int64, line []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(size); err != nil {
		return err
	}
	if _, err := f.WriteAt(line, size); err != nil {
		return err
	}
	if err := f.Sync(); err != nil || size > 0 {
		return err
	}
	return SyncDir(filepath.Dir(path))
}
