//go:build cuda

package cuda

/*
#include <cuda.h>
*/
import "C"

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"github.com/flowrun/flowrun/gpu"
	"gorgonia.org/cu"
)

// Engine is a gpu.Engine on a GPU. Use Open.
type Engine struct {
	Sizes
	device  Device
	o       *owner
	base    uint64 // of the arena
	bytes   int64
	tables  table
	staging staging

	own  bool   // kernels of the card's own kind are used where there are some
	less string // why they aren't, though the card has some
	only tile   // of them, the one to be used for as many channels; any if it is none

	taping     bool // calls go to the tape
	tape       []call
	recordings map[any]*recording

	// The owner's.
	compute, copies cu.Stream
	modules         []cu.Module
	kernels         map[string]cu.Function
	settled         int // pieces of work that had been begun at the last wait
	marks           []cu.Event
}

var _ Card = (*Engine)(nil)

// Open opens a device and compiles the kernels for it.
func Open(ordinal int) (Card, error) {
	ds, err := Devices()
	if err != nil {
		return nil, err
	}
	if ordinal < 0 || ordinal >= len(ds) {
		return nil, fmt.Errorf("cuda:%d: there is no such device (the driver lists %d: cuda:0 is %s)", ordinal, len(ds), ds[0].Name)
	}
	if err := ds[ordinal].Usable(); err != nil {
		return nil, fmt.Errorf("cuda:%d: %w", ordinal, err)
	}
	dev, err := cu.GetDevice(ordinal)
	if err != nil {
		return nil, failed("cuDeviceGet", err)
	}
	e, err := openOn(dev, ds[ordinal])
	if err != nil {
		return nil, err
	}
	return withOwn(e, dev)
}

// openOn opens a device with the kernels that every card runs.
func openOn(dev cu.Device, d Device) (*Engine, error) {
	o, err := start(dev)
	if err != nil {
		return nil, err
	}
	e := &Engine{device: d, o: o, kernels: map[string]cu.Function{}, recordings: map[any]*recording{}}
	if err := o.wait(e.load); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// load compiles the kernels and makes the streams.
func (e *Engine) load() error {
	all, err := modules()
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.target == everyone {
			if err := e.compile(m); err != nil {
				return err
			}
		}
	}
	if e.compute, err = cu.MakeStream(cu.NonBlocking); err != nil {
		return failed("cuStreamCreate", err)
	}
	e.copies, err = cu.MakeStream(cu.NonBlocking)
	return failed("cuStreamCreate", err)
}

// compile has the driver compile a module.
func (e *Engine) compile(of module) error {
	log := make([]byte, 16<<10)
	m, err := cu.LoadDataEx(of.text, &cu.JITErrorLogBuffer{Buffer: log})
	if err := failed("cuModuleLoadDataEx", err); err != nil {
		if said := strings.TrimRight(string(log), "\x00\n"); said != "" {
			err = fmt.Errorf("%w: %s", err, strings.ReplaceAll(said, "\n", "; "))
		}
		return err
	}
	e.modules = append(e.modules, m)
	for _, name := range entries(of.text) {
		f, err := m.Function(name)
		if err != nil {
			return failed("cuModuleGetFunction "+name, err)
		}
		e.kernels[name] = f
		if bytes := sharedBytes[name]; bytes > 0 {
			if err := share(name, f, bytes); err != nil {
				return err
			}
		}
	}
	return nil
}

// share lets launches of a kernel have so many bytes of dynamic shared memory.
func share(name string, f cu.Function, bytes int) error {
	return check("cuFuncSetAttribute "+name, C.cuFuncSetAttribute(handle(f), C.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, C.int(bytes)))
}

// handle is the driver's own value: cu.Function holds nothing else.
func handle(f cu.Function) C.CUfunction { return *(*C.CUfunction)(unsafe.Pointer(&f)) }

// Name is "cuda:0 (NVIDIA H100 80GB HBM3, bfloat16, sm_90a)", without the last where the card's own kernels aren't used.
func (e *Engine) Name() string {
	own := ""
	if e.own {
		own = ", " + e.device.own()
	}
	return fmt.Sprintf("cuda:%d (%s, bfloat16%s)", e.device.Ordinal, e.device.Name, own)
}

// Less says why the kernels of the card's own kind aren't used, if it has some.
func (e *Engine) Less() string { return e.less }

// Free is the device memory that an arena may take, in bytes; 0 where the driver doesn't say.
func (e *Engine) Free() int64 {
	free, total := e.memoryInfo()
	if total == 0 {
		return 0
	}
	return max(1, free-Overhead-Spare)
}

// Used is the device memory in use, by this process and others, in bytes; 0 where the driver doesn't say.
func (e *Engine) Used() int64 {
	free, total := e.memoryInfo()
	return total - free
}

func (e *Engine) memoryInfo() (free, total int64) {
	if err := e.o.wait(func() (err error) {
		free, total, err = cu.MemInfo()
		return failed("cuMemGetInfo", err)
	}); err != nil {
		return 0, 0
	}
	return free, total
}

// Reserve allocates the arena and what moves data, all that the engine ever does.
func (e *Engine) Reserve(bytes int64) error {
	return e.wait(func() error {
		if err := e.release(); err != nil || bytes == 0 {
			return err
		}
		bytes := aligned(bytes)
		all := bytes + Overhead
		p, err := cu.MemAlloc(all)
		if err := failed("cuMemAlloc", err); err != nil {
			free, _, _ := cu.MemInfo()
			return fmt.Errorf("cuda:%d: %d MiB for the arena and copies, %d MiB are free: %w", e.device.Ordinal, all>>20, free>>20, err)
		}
		e.base, e.bytes = uint64(p), bytes
		e.tables = table{at: e.base + uint64(bytes), left: tableBytes, plans: map[planKey]*convPlan{}, tiles: map[planKey]tile{}}
		return e.staging.open(e.tables.at + tableBytes)
	})
}

// Sync waits until everything that was called has happened, and reports what failed.
func (e *Engine) Sync() error {
	return e.wait(func() error {
		if e.settled == e.o.pieces-1 {
			return nil // nothing was called since the last wait
		}
		return e.settle()
	})
}

// wait does f behind all calls.
func (e *Engine) wait(f func() error) error {
	e.flush()
	return e.o.wait(f)
}

// settle waits for the device.
func (e *Engine) settle() error {
	e.settled = e.o.pieces
	return failed("cuStreamSynchronize", e.compute.Synchronize())
}

// Close gives everything back. It reports a failure that Sync hasn't.
func (e *Engine) Close() error {
	// Behind a failure the owner does nothing more, and the driver takes everything back with the context.
	e.o.do(func() error {
		errs := []error{e.release(), e.unmark()}
		for _, s := range []*cu.Stream{&e.compute, &e.copies} {
			errs = append(errs, failed("cuStreamDestroy", s.Destroy()))
		}
		for _, m := range e.modules {
			errs = append(errs, failed("cuModuleUnload", m.Unload()))
		}
		return errors.Join(errs...)
	})
	return e.o.close()
}

// release gives back what Reserve took, and what was recorded on it, when all has happened.
func (e *Engine) release() error {
	if e.base == 0 {
		return nil
	}
	errs := []error{e.settle(), failed("cuStreamSynchronize", e.copies.Synchronize()), e.staging.close()}
	for _, r := range e.recordings {
		errs = append(errs, destroyGraph(r.graph))
	}
	clear(e.recordings)
	errs = append(errs, failed("cuMemFree", cu.MemFree(cu.DevicePtr(e.base))))
	e.base, e.bytes, e.tables = 0, 0, table{}
	return errors.Join(errs...)
}

// at is a device address.
func (e *Engine) at(p gpu.Ptr) uint64 {
	if p < 0 {
		return 0
	}
	return e.base + uint64(p)
}

// run launches a kernel on the compute stream.
func run[T any](e *Engine, kernel string, grid [3]int, threads int, args T) {
	e.post(call{kernel, grid, bytesOf(&args), func() error { return launch(e, kernel, grid, threads, &args) }})
}

// launch is run, on the owner.
func launch[T any](e *Engine, kernel string, grid [3]int, threads int, args *T) error {
	f, ok := e.kernels[kernel]
	if !ok {
		return fmt.Errorf("cuda: no kernel %s", kernel)
	}
	return check(kernel, launchKernel(handle(f), grid, threads, sharedOf(kernel, args), e.compute, unsafe.Pointer(args)))
}

// blocks is a grid for n pieces of work, per a block. The kernels go on where there are fewer blocks than that.
func blocks(n, per int) [3]int { return [3]int{min(max(divUp(n, per), 1), 1<<16), 1, 1} }

// view is a tensor, as kernels take it.
type view struct {
	At                     uint64
	Halo, Pitch, Type, Pad int32
}

// dims are a tensor's, as kernels take them.
type dims struct{ N, D, H, W, C int32 }

// mostVoxels is what kernels can count in 32 bits, a grid's last step beyond them too.
const mostVoxels = 1<<31 - 1<<25

func (e *Engine) view(t gpu.Tensor) view {
	if stored := t.N * t.D * t.H * (t.W + 2*t.Halo); stored > mostVoxels {
		panic(fmt.Sprintf("cuda: a tensor of %v with a halo of %d is too large (at most %d voxels)", t.Dims, t.Halo, mostVoxels))
	}
	return view{e.at(t.At), int32(t.Halo), int32(pitch(t.C, t.Type)), int32(t.Type), int32(t.Pad)}
}

// viewOf is none where t is nil.
func (e *Engine) viewOf(t *gpu.Tensor) view {
	if t == nil {
		return view{}
	}
	return e.view(*t)
}

func dimsOf(d gpu.Dims) dims {
	return dims{int32(d.N), int32(d.D), int32(d.H), int32(d.W), int32(d.C)}
}

// spots is how many groups of eight channels there are. Kernels count them in 32 bits.
func spots(d gpu.Dims) int {
	n := d.Voxels() * divUp(d.C, 8)
	if n > 4e9 {
		panic(fmt.Sprintf("cuda: a tensor of %v is too large (at most 4e9 groups of eight channels)", d))
	}
	return n
}

// leastShared is the dynamic shared memory that any kernel may have, unasked.
const leastShared = 48 << 10

// sharedOf is the dynamic shared memory of a launch.
func sharedOf(kernel string, args any) int {
	if a, ok := args.(*countArgs); ok {
		return 4 * int(a.Wide) * int(a.D.C+1)
	}
	return sharedBytes[kernel]
}

func same(a gpu.Tensor, others ...*gpu.Tensor) {
	for _, b := range others {
		if b != nil && a.Dims != b.Dims {
			panic(fmt.Sprintf("cuda: dims %v and %v differ", a.Dims, b.Dims))
		}
	}
}
