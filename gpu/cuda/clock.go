//go:build cuda

package cuda

/*
#include <cuda.h>
*/
import "C"

import (
	"time"

	"github.com/flowrun/flowrun/gpu"
	"gorgonia.org/cu"
)

var _ gpu.Clock = (*Engine)(nil)

// Mark notes when the stream of kernels comes to this place. There are as many events as marks were ever asked for.
func (e *Engine) Mark(i int) {
	e.flush()
	e.o.do(func() error {
		for len(e.marks) <= i {
			event, err := cu.MakeEvent(cu.BlockingSyncEvent)
			if err != nil {
				return failed("cuEventCreate", err)
			}
			e.marks = append(e.marks, event)
		}
		return failed("cuEventRecord", e.marks[i].Record(e.compute))
	})
}

// Elapsed is the device's time from one mark to another.
func (e *Engine) Elapsed(i, j int) (took time.Duration, err error) {
	err = e.wait(func() error {
		if err := failed("cuEventSynchronize", e.marks[j].Synchronize()); err != nil {
			return err
		}
		var ms C.float
		start, end := e.marks[i], e.marks[j]
		rc := C.cuEventElapsedTime(&ms, event(start), event(end))
		took = time.Duration(float64(ms) * float64(time.Millisecond))
		return check("cuEventElapsedTime", rc)
	})
	return took, err
}

// unmark gives the events back.
func (e *Engine) unmark() error {
	for i := range e.marks {
		if err := failed("cuEventDestroy", cu.DestroyEvent(&e.marks[i])); err != nil {
			return err
		}
	}
	e.marks = nil
	return nil
}
