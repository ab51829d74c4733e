package cuda

import "fmt"

// Device is a GPU that the driver lists.
type Device struct {
	Ordinal      int // N of cuda:N
	Name         string
	Memory       int64 // bytes
	Major, Minor int   // compute capability
	Processors   int
	Driver       string // the CUDA version that the driver supports: 12.4
}

// Usable says why the kernels can't run on the device.
func (d Device) Usable() error {
	if d.Major < 8 {
		return fmt.Errorf("cuda:%d: %s has compute capability %d.%d (want 8.0 or more, Ampere and later)", d.Ordinal, d.Name, d.Major, d.Minor)
	}
	return nil
}

// Library names the environment variable with another file than libcuda.so.1 to load the driver from.
const Library = "FLOWRUN_LIBCUDA"
