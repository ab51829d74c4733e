package safetensors

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
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

// Disk is what Save asks of the file system; tests make it fail.
type Disk struct {
	Create  func(path string) (File, error)
	Rename  func(from, to string) error
	SyncDir func(dir string) error
}

// Local is the machine's file system.
func Local() Disk {
	return Disk{
		Create: func(path string) (File, error) {
			return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
		},
		Rename:  os.Rename,
		SyncDir: syncDir,
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

// Save writes a sealed file of the header that NewHeader made for arrays. It is written beside path and given path's
// name once it is whole and durable; a file that was there is replaced. After an error nothing has changed. Errors don't
// name the path.
func (d Disk) Save(ctx context.Context, path string, h *Header, arrays []Array) (err error) {
	f, err := d.Create(path + Temporary)
	if err != nil {
		return reason(err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(path + Temporary)
			err = reason(err)
		}
	}()
	err = h.seal(ctx, f, arrays)
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
		return err
	}
	return d.SyncDir(filepath.Dir(path))
}

// seal writes a file while hashing it, then puts the hash where the header left room for it.
func (h *Header) seal(ctx context.Context, f File, arrays []Array) error {
	if h.Seal != unsealed {
		return errors.New("the header has no place for a seal")
	}
	sum := sha256.New()
	if err := h.write(io.MultiWriter(until{ctx, f}, sum), arrays); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(hex.EncodeToString(sum.Sum(nil))), int64(8+len(sealPrefix)))
	return err
}

// until is a writer that fails once its context is done.
type until struct {
	ctx context.Context
	w   io.Writer
}

func (u until) Write(b []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.w.Write(b)
}
