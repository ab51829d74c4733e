package cuda

import (
	"errors"
	"fmt"
	"slices"
)

// Device is a GPU that the driver lists.
type Device struct {
	Ordinal      int // N of cuda:N
	Name         string
	Memory       int64 // bytes
	Major, Minor int   // compute capability
	Processors   int
	Driver       [2]int // the CUDA version that the driver supports: 12, 4
}

// leastDriver is the CUDA version of the drivers that know the kernels' PTX, 7.0.
var leastDriver = [2]int{11, 0}

// Usable says why the kernels can't run on the device.
func (d Device) Usable() error {
	if slices.Compare(d.Driver[:], leastDriver[:]) < 0 {
		return fmt.Errorf("the NVIDIA driver is for CUDA %d.%d (want one for %d.%d or later: update it)",
			d.Driver[0], d.Driver[1], leastDriver[0], leastDriver[1])
	}
	if d.Major < 8 {
		return fmt.Errorf("%s has compute capability %d.%d (want 8.0 or more, Ampere and later)", d.Name, d.Major, d.Minor)
	}
	return nil
}

// OwnKernels names the environment variable that, where it is off, leaves kernels for one kind of cards alone: those that every card runs
// do the work.
const OwnKernels = "FLOWRUN_OWN_KERNELS"

// Library names the environment variable with another file than libcuda.so.1 to load the driver from.
const Library = "FLOWRUN_LIBCUDA"

// Why there are no devices to ask for: the machine has no NVIDIA driver, as one without a GPU, or the program no CUDA engine.
var (
	ErrNoDriver = errors.New("no usable NVIDIA driver")
	ErrNotBuilt = errors.New("this flowrun was built without its CUDA engine (make build brings it in where there is a C compiler)")
)

// What can go wrong with a device. errors.Is finds them in what the engine's methods return.
var (
	ErrOutOfMemory = errors.New("out of device memory")
	ErrCompile     = errors.New("the driver couldn't compile the kernels")
	ErrLaunch      = errors.New("a kernel couldn't be launched")
	ErrLost        = errors.New("the device is lost")
)

// Error is a failure of the driver or a device.
type Error struct {
	Kind error  // one of the above, or nil
	What string // the call and what it gave
}

func (e *Error) Error() string {
	if e.Kind == nil {
		return "cuda: " + e.What
	}
	return fmt.Sprintf("cuda: %v: %s", e.Kind, e.What)
}

// Unwrap gives the kind.
func (e *Error) Unwrap() error { return e.Kind }
