package files

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// Temporary ends the names of files that are being written.
const Temporary = ".tmp"

// File is a file being written.
type File interface {
	io.Writer
	io.WriterAt
	Sync() error
	Close() error
}

// Disk is what writing a file asks of the file system; tests make it fail.
type Disk struct {
	Create  func(path string) (File, error)
	Rename  func(from, to string) error
	SyncDir func(dir string) error
}

// Local is the machine's file system.
func Local() Disk {
	return Disk{
		Create:  func(path string) (File, error) { return os.Create(path) },
		Rename:  os.Rename,
		SyncDir: SyncDir,
	}
}

// Write makes a file of what write gives, beside its name until it is whole and on the disk, and then makes the name last; one
// that was there is replaced. After an error nothing has changed, but where the name alone couldn't be made to last. Errors
// don't name the path.
func (d Disk) Write(path string, write func(File) error) error {
	f, err := d.Create(path + Temporary)
	if err != nil {
		return Reason(err)
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = d.Rename(path+Temporary, path)
	}
	if err != nil {
		_ = os.Remove(path + Temporary)
		return Reason(err)
	}
	return Reason(d.SyncDir(filepath.Dir(path)))
}

// Write is that of the machine's file system, with errors that name the path.
func Write(path string, write func(io.Writer) error) error {
	if err := Local().Write(path, func(f File) error { return write(f) }); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// SyncDir makes the names in a folder last, where the file system can.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = errors.Join(d.Sync(), d.Close())
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EINVAL) {
		return nil
	}
	return err
}
