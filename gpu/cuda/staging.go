//go:build cuda

package cuda

/*
#include <cuda.h>
*/
import "C"

import (
	"math"
	"unsafe"

	"github.com/flowrun/flowrun/gpu"
	"gorgonia.org/cu"
)

// staging moves data: through slots of pinned host memory, each with its twin on the device. A slot is free again when what read it on
// the device has run. All of it is the owner's.
type staging struct {
	slots [stagingSlots]slot
	next  int
}

type slot struct {
	host   []float32
	device uint64
	filled cu.Event // on the stream of copies
	free   cu.Event // on the stream of kernels
	used   bool
}

// open takes device memory at at.
func (s *staging) open(at uint64) error {
	for i := range s.slots {
		p := unsafe.Pointer(nil)
		if err := check("cuMemHostAlloc", C.cuMemHostAlloc(&p, stagingBytes, 0)); err != nil {
			return err
		}
		slot := &s.slots[i]
		slot.host, slot.device = unsafe.Slice((*float32)(p), stagingBytes/4), at+uint64(i)*stagingBytes
		for _, e := range []*cu.Event{&slot.filled, &slot.free} {
			var err error
			if *e, err = cu.MakeEvent(cu.DisableTiming); err != nil {
				return failed("cuEventCreate", err)
			}
		}
	}
	return nil
}

func (s *staging) close() error {
	for i := range s.slots {
		slot := &s.slots[i]
		if slot.host == nil {
			continue
		}
		for _, err := range []error{
			check("cuMemFreeHost", C.cuMemFreeHost(unsafe.Pointer(&slot.host[0]))),
			failed("cuEventDestroy", cu.DestroyEvent(&slot.filled)), failed("cuEventDestroy", cu.DestroyEvent(&slot.free)),
		} {
			if err != nil {
				return err
			}
		}
		*slot = slot0
	}
	return nil
}

var slot0 slot

// take waits for the next slot.
func (s *staging) take() (*slot, error) {
	slot := &s.slots[s.next]
	s.next = (s.next + 1) % len(s.slots)
	if !slot.used {
		slot.used = true
		return slot, nil
	}
	return slot, failed("cuEventSynchronize", slot.free.Synchronize())
}

// send copies src to the device, in slots, and calls use for each: it puts what reads the slot on the compute stream. Copies have a
// stream of their own, so they go on while kernels run.
func (e *Engine) send(src []float32, per int, use func(s *slot, at, n int) error) error {
	for at := 0; at < len(src); at += per {
		n := min(per, len(src)-at)
		s, err := e.staging.take()
		if err != nil {
			return err
		}
		copy(s.host, src[at:at+n])
		for _, step := range []func() error{
			func() error {
				return failed("cuMemcpyHtoDAsync", cu.MemcpyHtoDAsync(cu.DevicePtr(s.device), unsafe.Pointer(&s.host[0]), int64(4*n), e.copies))
			},
			func() error { return failed("cuEventRecord", s.filled.Record(e.copies)) },
			func() error { return failed("cuStreamWaitEvent", e.compute.Wait(s.filled, 0)) },
			func() error { return use(s, at, n) },
			func() error { return failed("cuEventRecord", s.free.Record(e.compute)) },
		} {
			if err := step(); err != nil {
				return err
			}
		}
	}
	return nil
}

// receive copies from the device in slots. make puts what fills the slot on the compute stream and says where the data is.
func (e *Engine) receive(dst []float32, per int, make func(s *slot, at, n int) (uint64, error)) error {
	for at := 0; at < len(dst); at += per {
		n := min(per, len(dst)-at)
		s, err := e.staging.take()
		if err != nil {
			return err
		}
		from, err := make(s, at, n)
		if err != nil {
			return err
		}
		if err := cu.MemcpyDtoHAsync(unsafe.Pointer(&s.host[0]), cu.DevicePtr(from), int64(4*n), e.compute); err != nil {
			return failed("cuMemcpyDtoHAsync", err)
		}
		if err := failed("cuEventRecord", s.free.Record(e.compute)); err != nil {
			return err
		}
		if err := e.settle(); err != nil {
			return err
		}
		copy(dst[at:at+n], s.host)
	}
	return nil
}

// Write copies src into the arena. It returns when src may change; the device may have it later.
func (e *Engine) Write(dst gpu.Ptr, src []float32) {
	_ = e.wait(func() error { // Sync says what failed
		return e.send(src, stagingBytes/4, func(s *slot, at, n int) error {
			to := cu.DevicePtr(e.at(dst) + uint64(4*at))
			return failed("cuMemcpyDtoDAsync", cu.MemcpyDtoDAsync(to, cu.DevicePtr(s.device), int64(4*n), e.compute))
		})
	})
}

// Read copies from the arena.
func (e *Engine) Read(dst []float32, src gpu.Ptr) {
	_ = e.wait(func() error {
		return e.receive(dst, stagingBytes/4, func(_ *slot, at, _ int) (uint64, error) { return e.at(src) + uint64(4*at), nil })
	})
}

// Codes copies int32 from the arena.
func (e *Engine) Codes(dst []int32, src gpu.Ptr) {
	if len(dst) > 0 {
		e.Read(unsafe.Slice((*float32)(unsafe.Pointer(&dst[0])), len(dst)), src)
	}
}

// Fill sets n floats.
func (e *Engine) Fill(dst gpu.Ptr, n int, value float32) {
	if n == 0 {
		return
	}
	bits := uint(math.Float32bits(value))
	args := struct {
		at   uint64
		n    int
		bits uint
	}{e.at(dst), n, bits}
	e.post(call{"fill", [3]int{}, bytesOf(&args), func() error {
		return failed("cuMemsetD32Async", cu.MemsetD32Async(cu.DevicePtr(args.at), bits, int64(n), e.compute))
	}})
}

// copyArgs is kernels/elementwise.cu's CopyArgs.
type copyArgs struct {
	Dense     uint64
	T         view
	D         dims
	Row, Rows int32
}

// rowsAt gives for each slot of whole rows the arguments of the kernels that copy them.
func (e *Engine) rowsAt(t gpu.Tensor) (per int, args func(s *slot, at, n int) *copyArgs) {
	row := t.W * t.C
	if row > stagingBytes/4 {
		panic("cuda: a row of a tensor is larger than 8 MiB")
	}
	return stagingBytes / 4 / row * row, func(s *slot, at, n int) *copyArgs {
		return &copyArgs{Dense: s.device, T: e.view(t), D: dimsOf(t.Dims), Row: int32(at / row), Rows: int32(n / row)}
	}
}

// WriteTensor stores src [N, D, H, W, C] and fills the halo.
func (e *Engine) WriteTensor(dst gpu.Tensor, src []float32) {
	per, args := e.rowsAt(dst)
	_ = e.wait(func() error {
		return e.send(src, per, func(s *slot, at, n int) error {
			return launch(e, "storeTensor", blocks(n, 256), 256, args(s, at, n))
		})
	})
}

// ReadTensor gives a tensor as [N, D, H, W, C].
func (e *Engine) ReadTensor(dst []float32, src gpu.Tensor) {
	per, args := e.rowsAt(src)
	_ = e.wait(func() error {
		return e.receive(dst, per, func(s *slot, at, n int) (uint64, error) {
			return s.device, launch(e, "fetchTensor", blocks(n, 256), 256, args(s, at, n))
		})
	})
}
