//go:build cuda

package cuda

/*
#include <cuda.h>
*/
import "C"

import (
	"fmt"
	"math"
	"unsafe"

	"github.com/flowrun/flowrun/gpu"
	"gorgonia.org/cu"
)

// staging moves data: through slots of pinned host memory, each with its twin on the device. There are large ones, and small ones so that
// the numbers of a step don't wait for each other. All of it is the owner's.
type staging struct {
	large, small rota
	uploaded     cu.Event // on the stream of copies, behind the last Upload
	stored       cu.Event // on the stream of kernels, behind the last Store
}

// rota is slots that take turns.
type rota struct {
	slots []slot
	next  int
}

// slot is free again when what read or wrote it, on the device or on its way there, has run.
type slot struct {
	host   []float32
	device uint64
	filled cu.Event // on the stream of copies
	free   cu.Event
	used   bool
}

// open takes device memory at at.
func (s *staging) open(at uint64) error {
	for _, r := range []struct {
		*rota
		slots, bytes int
	}{{&s.large, stagingSlots, stagingBytes}, {&s.small, smallSlots, smallBytes}} {
		r.rota.slots = make([]slot, r.slots)
		for i := range r.rota.slots {
			if err := r.rota.slots[i].open(at, r.bytes); err != nil {
				return err
			}
			at += uint64(r.bytes)
		}
	}
	return makeEvents(&s.uploaded, &s.stored)
}

func (s *slot) open(at uint64, bytes int) error {
	p := unsafe.Pointer(nil)
	if rc := C.cuMemHostAlloc(&p, C.size_t(bytes), 0); rc != C.CUDA_SUCCESS {
		return &Error{What: fmt.Sprintf("cuMemHostAlloc of %d KiB of pinned host memory: error %d", bytes>>10, int(rc))}
	}
	s.host, s.device = unsafe.Slice((*float32)(p), bytes/4), at
	return makeEvents(&s.filled, &s.free)
}

func makeEvents(events ...*cu.Event) error {
	for _, e := range events {
		var err error
		if *e, err = cu.MakeEvent(cu.DisableTiming | cu.BlockingSyncEvent); err != nil {
			return failed("cuEventCreate", err)
		}
	}
	return nil
}

func (s *staging) close() error {
	var events []*cu.Event
	for _, r := range []*rota{&s.large, &s.small} {
		for i := range r.slots {
			slot := &r.slots[i]
			if slot.host == nil {
				return nil // it was never opened whole
			}
			if err := check("cuMemFreeHost", C.cuMemFreeHost(unsafe.Pointer(&slot.host[0]))); err != nil {
				return err
			}
			events = append(events, &slot.filled, &slot.free)
		}
		r.slots = nil
	}
	if events == nil {
		return nil
	}
	for _, e := range append(events, &s.uploaded, &s.stored) {
		if err := failed("cuEventDestroy", cu.DestroyEvent(e)); err != nil {
			return err
		}
	}
	return nil
}

// take waits for the next slot with room for n floats.
func (s *staging) take(n int) (*slot, error) {
	r := &s.large
	if n <= smallBytes/4 {
		r = &s.small
	}
	slot := &r.slots[r.next]
	r.next = (r.next + 1) % len(r.slots)
	if !slot.used || slot.free.Query() == nil {
		slot.used = true
		return slot, nil
	}
	return slot, failed("cuEventSynchronize", slot.free.Synchronize())
}

// upload copies src to slots, and from there to the device; use puts what follows on the streams.
func (e *Engine) upload(src []float32, per int, to func(s *slot, at int) uint64, use func(s *slot, at, n int) error) error {
	for at := 0; at < len(src); at += per {
		n := min(per, len(src)-at)
		s, err := e.staging.take(n)
		if err != nil {
			return err
		}
		copy(s.host, src[at:at+n])
		if err := cu.MemcpyHtoDAsync(cu.DevicePtr(to(s, at)), unsafe.Pointer(&s.host[0]), int64(4*n), e.copies); err != nil {
			return failed("cuMemcpyHtoDAsync", err)
		}
		if err := use(s, at, n); err != nil {
			return err
		}
	}
	return nil
}

// send copies src to the device, in slots, and calls use for each: it puts what reads the slot on the compute stream. Copies have a
// stream of their own, so they go on while kernels run.
func (e *Engine) send(src []float32, per int, use func(s *slot, at, n int) error) error {
	return e.upload(src, per, func(s *slot, _ int) uint64 { return s.device }, func(s *slot, at, n int) error {
		return inTurn(
			func() error { return failed("cuEventRecord", s.filled.Record(e.copies)) },
			func() error { return failed("cuStreamWaitEvent", e.compute.Wait(s.filled, 0)) },
			func() error { return use(s, at, n) },
			func() error { return failed("cuEventRecord", s.free.Record(e.compute)) },
		)
	})
}

// inTurn does one step after the other, until one fails.
func inTurn(steps ...func() error) error {
	for _, f := range steps {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// receive copies from the device in slots, and waits once for as many as there are. make puts what fills the slot on the compute stream and
// says where the data is.
func (e *Engine) receive(dst []float32, per int, make func(s *slot, at, n int) (uint64, error)) error {
	for from := 0; from < len(dst); from += per * stagingSlots {
		var slots []*slot
		end := min(from+per*stagingSlots, len(dst))
		for at := from; at < end; at += per {
			n := min(per, end-at)
			s, err := e.staging.take(n)
			if err != nil {
				return err
			}
			data, err := make(s, at, n)
			if err != nil {
				return err
			}
			if err := cu.MemcpyDtoHAsync(unsafe.Pointer(&s.host[0]), cu.DevicePtr(data), int64(4*n), e.compute); err != nil {
				return failed("cuMemcpyDtoHAsync", err)
			}
			if err := failed("cuEventRecord", s.free.Record(e.compute)); err != nil {
				return err
			}
			slots = append(slots, s)
		}
		if err := e.settle(); err != nil {
			return err
		}
		for i, s := range slots {
			copy(dst[from+i*per:end], s.host)
		}
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

// Upload begins to copy src into the arena, on the stream of copies.
func (e *Engine) Upload(dst gpu.Ptr, src []float32) {
	to := func(_ *slot, at int) uint64 { return e.at(dst) + uint64(4*at) }
	_ = e.wait(func() error {
		return inTurn(
			func() error { return failed("cuStreamWaitEvent", e.copies.Wait(e.staging.stored, 0)) },
			func() error {
				return e.upload(src, stagingBytes/4, to, func(s *slot, _, _ int) error { return failed("cuEventRecord", s.free.Record(e.copies)) })
			},
			func() error { return failed("cuEventRecord", e.staging.uploaded.Record(e.copies)) },
		)
	})
}

// Store writes y from what was uploaded.
func (e *Engine) Store(src gpu.Ptr, y gpu.Tensor) {
	e.flush()
	args := copyArgs{Dense: e.at(src), T: e.view(y), D: dimsOf(y.Dims), Rows: int32(y.N * y.D * y.H)}
	e.o.do(func() error {
		return inTurn(
			func() error { return failed("cuStreamWaitEvent", e.compute.Wait(e.staging.uploaded, 0)) },
			func() error { return launch(e, "storeTensor", blocks(spots(y.Dims), 256), 256, &args) },
			func() error { return failed("cuEventRecord", e.staging.stored.Record(e.compute)) },
		)
	})
}

// Copy copies n floats.
func (e *Engine) Copy(dst, src gpu.Ptr, n int) {
	args := struct{ dst, src, bytes int64 }{int64(e.at(dst)), int64(e.at(src)), 4 * int64(n)}
	e.post(call{"copy", [3]int{}, bytesOf(&args), func() error {
		return failed("cuMemcpyDtoDAsync", cu.MemcpyDtoDAsync(cu.DevicePtr(args.dst), cu.DevicePtr(args.src), args.bytes, e.compute))
	}})
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
