//go:build cuda

package cuda

/*
#include <cuda.h>
*/
import "C"

import (
	"bytes"
	"slices"
	"unsafe"
)

// call is one launch: what tells it from others, and how it is made on the owner.
type call struct {
	what string // kernel
	grid [3]int
	args []byte
	make func() error
}

func (a call) same(b call) bool {
	return a.what == b.what && a.grid == b.grid && bytes.Equal(a.args, b.args)
}

// recording is the calls that were made under a key and, once they were made twice, the graph of them.
type recording struct {
	calls  []call
	graph  C.CUgraphExec
	failed bool // the driver doesn't record them
}

// post makes a call, or puts it on the tape.
func (e *Engine) post(c call) {
	if e.taping {
		e.tape = append(e.tape, c)
		return
	}
	e.o.do(c.make)
}

// Replay makes the calls of f: as one graph, if they are those of the last two times under this key.
func (e *Engine) Replay(key any, f func()) {
	e.taping = true
	f()
	e.taping = false
	calls := slices.Clone(e.tape)
	e.tape = e.tape[:0]
	r := e.recordings[key]
	if r == nil {
		r = &recording{}
		e.recordings[key] = r
	}
	switch again := slices.EqualFunc(r.calls, calls, call.same); {
	case !again:
		old := r.graph
		*r = recording{calls: calls}
		e.o.do(func() error { return destroyGraph(old) })
		fallthrough
	case r.failed:
		for _, c := range calls {
			e.o.do(c.make)
		}
	default:
		e.o.do(func() error { return e.launchGraph(r) })
	}
}

// flush makes the calls on the tape: whoever reads or writes in between must find them made.
func (e *Engine) flush() {
	if !e.taping || len(e.tape) == 0 {
		return
	}
	for _, c := range e.tape {
		e.o.do(c.make)
	}
	e.tape = e.tape[:0]
}

// launchGraph launches a recording, which it makes of the calls first if need be. Where the driver won't record, the calls are made.
func (e *Engine) launchGraph(r *recording) error {
	if r.graph == nil && !r.failed {
		r.failed = !e.record(r)
	}
	if r.failed {
		for _, c := range r.calls {
			if err := c.make(); err != nil {
				return err
			}
		}
		return nil
	}
	return check("cuGraphLaunch", C.cuGraphLaunch(r.graph, stream(e.compute)))
}

// record captures the calls in a graph.
func (e *Engine) record(r *recording) bool {
	s := stream(e.compute)
	if C.cuStreamBeginCapture(s, C.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) != C.CUDA_SUCCESS {
		return false
	}
	made := true
	for _, c := range r.calls {
		if c.make() != nil {
			made = false
			break
		}
	}
	var graph C.CUgraph
	if C.cuStreamEndCapture(s, &graph) != C.CUDA_SUCCESS || graph == nil {
		return false
	}
	var exec C.CUgraphExec
	made = made && C.cuGraphInstantiateWithFlags(&exec, graph, 0) == C.CUDA_SUCCESS
	C.cuGraphDestroy(graph)
	if made {
		r.graph = exec
	}
	return made
}

func destroyGraph(g C.CUgraphExec) error {
	if g == nil {
		return nil
	}
	return check("cuGraphExecDestroy", C.cuGraphExecDestroy(g))
}

// bytesOf copies a struct.
func bytesOf[T any](v *T) []byte {
	return bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)))
}
