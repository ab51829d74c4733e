package safetensors

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"

	"github.com/flowrun/flowrun/stages/files"
)

// Save writes a sealed file of the header that NewHeader made for arrays, whole and durable or not at all, as
// [files.Disk.Write] does. Errors don't name the path.
func Save(ctx context.Context, d files.Disk, path string, h *Header, arrays []Array) error {
	return d.Write(path, func(f files.File) error { return h.seal(ctx, f, arrays) })
}

// seal writes a file while hashing it, then puts the hash where the header left room for it.
func (h *Header) seal(ctx context.Context, f files.File, arrays []Array) error {
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
