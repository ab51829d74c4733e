package pipe

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
)

// ErrStopped is what emit returns, and the cause of a source's context, after Stop or Done. A source that returns it
// ends without an error.
var ErrStopped = errors.New("stopped")

// StageError is the failure of a stage.
type StageError struct {
	Stage string
	Err   error
}

func (e *StageError) Error() string { return e.Stage + ": " + e.Err.Error() }

// Unwrap returns the stage's own error.
func (e *StageError) Unwrap() error { return e.Err }

// PanicError is a panic in a callback, as an error. Its message is one line; Stack, for the log, says where.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string {
	line, _, _ := strings.Cut(fmt.Sprint(e.Value), "\n")
	return "panic: " + line
}

// Unwrap returns the value that was panicked with, if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

var (
	errExited  = errors.New("runtime.Goexit in a callback")
	errDangles = errors.New("nothing takes its output")
)

// Graph is a running graph. Its methods are safe for concurrent use; wiring is for one goroutine and ends before Wait.
type Graph struct {
	parent context.Context
	ctx    context.Context // ends at a hard stop
	cancel context.CancelCauseFunc
	data   context.Context // ends with ctx and at a soft stop: what sources see
	finish context.CancelCauseFunc

	stopping chan struct{}
	stop     sync.Once
	running  sync.WaitGroup
	join     func() error

	mu     sync.Mutex
	meters []*meter
	edges  []*edge
}

// New returns an empty graph. Cancelling parent is the hard stop.
func New(parent context.Context) *Graph {
	g := &Graph{parent: parent, stopping: make(chan struct{})}
	g.ctx, g.cancel = context.WithCancelCause(parent)
	g.data, g.finish = context.WithCancelCause(g.ctx)
	g.join = sync.OnceValue(g.wait)
	return g
}

// Stop is the soft stop, an interruption: sources end without an error, everything inside flushes.
func (g *Graph) Stop() {
	g.stop.Do(func() { close(g.stopping) })
	g.finish(ErrStopped)
}

// Done ends the sources as Stop does, but isn't an interruption: somebody has all that he wants.
func (g *Graph) Done() { g.finish(ErrStopped) }

// Stopping is closed by Stop, and by nothing else.
func (g *Graph) Stopping() <-chan struct{} { return g.stopping }

// Ending is closed when the data ends before its end: by Stop, by Done, at a hard stop. What a stage would then wait for nobody
// may want any more.
func (g *Graph) Ending() <-chan struct{} { return g.data.Done() }

// Wait returns when every goroutine of the graph has ended: nil, the first failure as *StageError, or the cause with
// which the parent was cancelled. An output that nothing takes is a failure.
func (g *Graph) Wait() error { return g.join() }

func (g *Graph) wait() error {
	for _, e := range g.dangling() {
		g.fail(e.from.m.stage, errDangles)
	}
	g.running.Wait()
	err := context.Cause(g.ctx)
	g.cancel(nil)
	return err
}

// Stats returns what each stage has done until now, in the order of wiring.
func (g *Graph) Stats() []Stat {
	g.mu.Lock()
	meters := g.meters[:len(g.meters):len(g.meters)]
	g.mu.Unlock()
	stats := make([]Stat, len(meters))
	for i, m := range meters {
		stats[i] = m.stat()
	}
	return stats
}

// fail is a hard stop by a stage. After the first it does nothing.
func (g *Graph) fail(stage string, err error) {
	if g.parent.Err() != nil { // g.ctx may be about to end by it: then err only follows from that
		g.cancel(context.Cause(g.parent))
		return
	}
	g.cancel(&StageError{Stage: stage, Err: err})
}

// guard runs fn and turns its error, panic or Goexit into the stage's failure. Goexit goes on unwinding the caller.
func (g *Graph) guard(stage string, fn func() error) {
	returned := false
	defer func() {
		if p := recover(); p != nil {
			g.fail(stage, &PanicError{Value: p, Stack: debug.Stack()})
		} else if !returned {
			g.fail(stage, errExited)
		}
	}()
	err := fn()
	returned = true
	if err != nil {
		g.fail(stage, err)
	}
}

// hard says that the graph has been stopped hard or has failed.
func (g *Graph) hard() bool { return g.ctx.Err() != nil }

// cut says that the data ended before its end: by Stop, Done or a hard stop.
func (g *Graph) cut() bool { return g.data.Err() != nil }
