//go:build cuda

package cuda

import (
	"runtime"
	"sync"

	"gorgonia.org/cu"
)

// owner is the goroutine, locked to its thread, that owns the context. Nothing else calls the driver for it.
type owner struct {
	work chan piece
	done chan struct{}

	pieces int // of work that were begun; the goroutine's own

	mu   sync.Mutex
	err  error // the first: what was handed in behind it isn't done
	said bool  // wait has returned it
}

// piece is work, and who waits for it.
type piece struct {
	f    func() error
	done chan struct{}
}

// start makes the goroutine and, on it, the context of a device.
func start(dev cu.Device) (*owner, error) {
	o := &owner{work: make(chan piece, 256), done: make(chan struct{})}
	ready := make(chan error)
	go func() {
		defer close(o.done)
		// The thread goes with the goroutine: it is never unlocked.
		runtime.LockOSThread()
		// Who waits for the device sleeps: the driver would rather keep a core spinning, which the stages before it want.
		_ = dev.SetPrimaryCtxFlags(cu.SchedBlockingSync) // a driver that won't have it computes all the same
		ctx, err := dev.RetainPrimaryCtx()
		if err = failed("cuDevicePrimaryCtxRetain", err); err == nil {
			err = failed("cuCtxSetCurrent", cu.SetCurrentContext(ctx))
		}
		ready <- err
		if err != nil {
			return
		}
		for p := range o.work {
			if o.failure() == nil {
				o.pieces++
				o.keep(p.f())
			}
			if p.done != nil {
				close(p.done)
			}
		}
		o.keep(failed("cuDevicePrimaryCtxRelease", dev.ReleasePrimaryCtx()))
	}()
	return o, <-ready
}

// do hands in work and returns.
func (o *owner) do(f func() error) { o.work <- piece{f, nil} }

// wait hands in work and waits until it has been done, and all that was handed in before it. It returns the first error of all.
func (o *owner) wait(f func() error) error {
	done := make(chan struct{})
	o.work <- piece{f, done}
	<-done
	err := o.failure()
	o.said = err != nil
	return err
}

// close ends the goroutine. It returns an error that nobody has seen yet.
func (o *owner) close() error {
	close(o.work)
	<-o.done
	if o.said {
		return nil
	}
	return o.failure()
}

func (o *owner) keep(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
	}
}

func (o *owner) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}
