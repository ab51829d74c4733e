//go:build !cuda

package cuda

// Devices fails with ErrNotBuilt.
func Devices() ([]Device, error) { return nil, ErrNotBuilt }

// Open fails with ErrNotBuilt.
func Open(int) (Card, error) { return nil, ErrNotBuilt }
