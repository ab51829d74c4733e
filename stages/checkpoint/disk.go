package checkpoint

import (
	"errors"
	"io"
	"os"
	"syscall"
)

// file is a file being written.
type file interface {
	io.Writer
	io.WriterAt
	Sync() error
	Close() error
}

// disk is what Save asks of the file system; tests make it fail.
type disk struct {
	create  func(path string) (file, error)
	rename  func(from, to string) error
	syncDir func(dir string) error
	free    func(dir string) (bytes int64, ok bool)
}

func local() disk {
	return disk{
		create: func(path string) (file, error) {
			return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
		},
		rename:  os.Rename,
		syncDir: syncDir,
		free:    free,
	}
}

// syncDir makes the names in a folder durable, where the file system can.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if e := d.Close(); err == nil {
		err = e
	}
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EINVAL) {
		return nil
	}
	return err
}
