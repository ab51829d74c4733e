//go:build !cuda

package cuda

import "errors"

// ErrNotBuilt says that the program has no CUDA engine in it.
var ErrNotBuilt = errors.New("this flowrun was built without its CUDA engine (make build brings it in where there is a C compiler)")

// Devices fails with ErrNotBuilt.
func Devices() ([]Device, error) { return nil, ErrNotBuilt }

// Open fails with ErrNotBuilt.
func Open(int) (Card, error) { return nil, ErrNotBuilt }
