package flows

import (
	"context"
	"errors"
	"fmt"

	"github.com/flowrun/flowrun/stages/train"
)

// The exit codes of flowrun.
const (
	ExitDone        = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitData        = 3
	ExitDiverged    = 4
	ExitInterrupted = 75 // resumable
)

// ErrInterrupted ends a run that was asked to stop. Its last checkpoint holds all that it did.
var ErrInterrupted = errors.New("interrupted")

// ConfigError is a mistake in a file, on the command line or between the two and the machine.
type ConfigError struct{ Err error }

func (e *ConfigError) Error() string { return e.Err.Error() }
func (e *ConfigError) Unwrap() error { return e.Err }

// DataError is a fault of the scans.
type DataError struct{ Err error }

func (e *DataError) Error() string { return e.Err.Error() }
func (e *DataError) Unwrap() error { return e.Err }

func configErrorf(format string, args ...any) error {
	return &ConfigError{fmt.Errorf(format, args...)}
}

func dataErrorf(format string, args ...any) error {
	return &DataError{fmt.Errorf(format, args...)}
}

// ExitCode is the process's exit code for the outcome of a verb.
func ExitCode(err error) int {
	var (
		config   *ConfigError
		data     *DataError
		diverged *train.DivergedError
	)
	switch {
	case err == nil:
		return ExitDone
	case errors.As(err, &config):
		return ExitUsage
	case errors.As(err, &data):
		return ExitData
	case errors.As(err, &diverged):
		return ExitDiverged
	case errors.Is(err, ErrInterrupted), errors.Is(err, context.Canceled):
		return ExitInterrupted
	}
	return ExitFailed
}
