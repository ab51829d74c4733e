//go:build cuda

package cuda

/*
#cgo CFLAGS: -I${SRCDIR}/include
#cgo LDFLAGS: -L${SRCDIR}/nolib -ldl
#include <cuda.h>
#include "shim.h"

// A kernel here has one parameter, a struct.
static CUresult launch(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned threads, unsigned shared, CUstream s, void *args) {
	void *params[1] = {args};
	return cuLaunchKernel(f, gx, gy, gz, threads, 1, 1, shared, s, params, 0);
}
*/
import "C"

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"unsafe"

	"gorgonia.org/cu"
)

// openDriver loads the driver, once.
func openDriver() error {
	library := os.Getenv(Library)
	if library == "" {
		library = "libcuda.so.1"
	}
	name := C.CString(library)
	defer C.free(unsafe.Pointer(name))
	var reason [512]C.char
	switch C.shim_open(name, &reason[0], C.int(len(reason))) {
	case C.CUDA_SUCCESS:
		return nil
	case C.CUDA_ERROR_NO_DEVICE:
		return noDevice()
	case C.SHIM_NO_LIBRARY:
		return fmt.Errorf("%w: %s", ErrNoDriver, C.GoString(&reason[0]))
	}
	return fmt.Errorf("no usable NVIDIA driver: %s", C.GoString(&reason[0]))
}

// noDevice says that there is no GPU, or that it is hidden.
func noDevice() error {
	if hidden, ok := os.LookupEnv("CUDA_VISIBLE_DEVICES"); ok {
		return fmt.Errorf("the NVIDIA driver lists no GPU: CUDA_VISIBLE_DEVICES is %q (unset it)", hidden)
	}
	return errors.New("the NVIDIA driver lists no GPU")
}

// Devices lists the GPUs, or says why there are none.
func Devices() ([]Device, error) {
	if err := openDriver(); err != nil {
		return nil, err
	}
	n, err := cu.NumDevices()
	if err != nil && !errors.Is(err, cu.NoDevice) {
		return nil, failed("cuDeviceGetCount", err)
	}
	if n == 0 {
		return nil, noDevice()
	}
	ds := make([]Device, n)
	for i := range ds {
		if ds[i], err = describe(i); err != nil {
			return nil, err
		}
	}
	return ds, nil
}

func describe(ordinal int) (Device, error) {
	d := Device{Ordinal: ordinal}
	dev, err := cu.GetDevice(ordinal)
	if err != nil {
		return d, failed("cuDeviceGet", err)
	}
	if d.Name, err = dev.Name(); err != nil {
		return d, failed("cuDeviceGetName", err)
	}
	if d.Memory, err = dev.TotalMem(); err != nil {
		return d, failed("cuDeviceTotalMem", err)
	}
	for _, a := range []struct {
		attribute cu.DeviceAttribute
		to        *int
	}{{cu.ComputeCapabilityMajor, &d.Major}, {cu.ComputeCapabilityMinor, &d.Minor}, {cu.MultiprocessorCount, &d.Processors}} {
		if *a.to, err = dev.Attribute(a.attribute); err != nil {
			return d, failed("cuDeviceGetAttribute", err)
		}
	}
	var version C.int
	if err := check("cuDriverGetVersion", C.cuDriverGetVersion(&version)); err != nil {
		return d, err
	}
	d.Driver = [2]int{int(version / 1000), int(version % 1000 / 10)}
	return d, nil
}

// kindOf names what a driver's result means for the engine; nil where nothing more is to be said.
func kindOf(rc int) error {
	switch rc {
	case C.CUDA_ERROR_OUT_OF_MEMORY:
		return ErrOutOfMemory
	case C.CUDA_ERROR_INVALID_PTX, C.CUDA_ERROR_NO_BINARY_FOR_GPU, C.CUDA_ERROR_JIT_COMPILER_NOT_FOUND, C.CUDA_ERROR_INVALID_IMAGE,
		C.CUDA_ERROR_UNSUPPORTED_PTX_VERSION, C.CUDA_ERROR_JIT_COMPILATION_DISABLED:
		return ErrCompile
	case C.CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, C.CUDA_ERROR_INVALID_VALUE, C.CUDA_ERROR_INVALID_HANDLE, C.CUDA_ERROR_NOT_FOUND:
		return ErrLaunch
	case C.CUDA_ERROR_ECC_UNCORRECTABLE, C.CUDA_ERROR_NVLINK_UNCORRECTABLE, C.CUDA_ERROR_ILLEGAL_ADDRESS, C.CUDA_ERROR_LAUNCH_TIMEOUT,
		C.CUDA_ERROR_LAUNCH_FAILED, C.CUDA_ERROR_ILLEGAL_INSTRUCTION, C.CUDA_ERROR_MISALIGNED_ADDRESS, C.CUDA_ERROR_HARDWARE_STACK_ERROR,
		C.CUDA_ERROR_INVALID_PC, C.CUDA_ERROR_INVALID_ADDRESS_SPACE, C.CUDA_ERROR_CONTEXT_IS_DESTROYED, C.CUDA_ERROR_DEINITIALIZED,
		C.CUDA_ERROR_UNKNOWN:
		return ErrLost
	}
	return nil
}

// check turns a driver's result into an error that says which call gave it.
func check(call string, rc C.CUresult) error {
	if rc == C.CUDA_SUCCESS {
		return nil
	}
	text := (*C.char)(nil)
	if C.cuGetErrorString(rc, &text) != C.CUDA_SUCCESS || text == nil {
		text = nil
	}
	what := fmt.Sprintf("%s: error %d", call, int(rc))
	if text != nil {
		what += " (" + C.GoString(text) + ")"
	}
	return &Error{kindOf(int(rc)), what}
}

// failed is check for results that package cu has seen: they are integers.
func failed(call string, err error) error {
	if err == nil {
		return nil
	}
	if rc := reflect.ValueOf(err); rc.CanInt() {
		return check(call, C.CUresult(rc.Int()))
	}
	return fmt.Errorf("cuda: %s: %w", call, err)
}

// launchKernel launches f with the struct at args.
func launchKernel(f C.CUfunction, grid [3]int, threads, shared int, s cu.Stream, args unsafe.Pointer) C.CUresult {
	return C.launch(f, C.uint(grid[0]), C.uint(grid[1]), C.uint(grid[2]), C.uint(threads), C.uint(shared), stream(s), args)
}

// stream is the driver's own value: cu.Stream holds nothing else.
func stream(s cu.Stream) C.CUstream { return *(*C.CUstream)(unsafe.Pointer(&s)) }

// event is likewise the driver's own.
func event(e cu.Event) C.CUevent { return *(*C.CUevent)(unsafe.Pointer(&e)) }
