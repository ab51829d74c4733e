package files

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// Write makes a file of what write gives, beside its name until it is whole and on the disk; one that was there is replaced. After
// an error, which names the path, nothing has changed.
func Write(path string, write func(io.Writer) error) error {
	tmp := path + ".tmp"
	f, err := os.Create(tmp)
	if err != nil {
		return fmt.Errorf("%s: %w", path, Reason(err))
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("%s: %w", path, Reason(err))
	}
	return nil
}
