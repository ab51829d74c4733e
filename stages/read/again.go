package read

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"
)

// tries counts the waits that are over, of those before what failed for a moment (a network folder that is away) is given up.
type tries int

// again waits, where err may pass, and says that it is time for another try.
func (t *tries) again(ctx context.Context, err error) bool {
	waits := [...]time.Duration{time.Second, 4 * time.Second}
	if !passing(err) || int(*t) == len(waits) {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(waits[*t]):
	}
	*t++
	return true
}

// passing says that a failure is of the way to a file, or of this process or machine, not of what the file holds: it may be gone in a
// moment.
func passing(err error) bool {
	return slices.ContainsFunc([]syscall.Errno{syscall.EIO, syscall.ESTALE, syscall.ETIMEDOUT, syscall.EHOSTDOWN, syscall.ENOTCONN, syscall.EAGAIN,
		syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM},
		func(e syscall.Errno) bool { return errors.Is(err, e) })
}

// readAgain is the warning of a scan that could be read in the end.
func readAgain(failed error) string { return fmt.Sprintf("read again after: %v", failed) }
