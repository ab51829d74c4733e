package cpu

import (
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// pool runs chunks of work on goroutines that live as long as the engine. The caller works too.
type pool struct {
	wake []chan *job
	done sync.WaitGroup
}

// job is one parallel loop.
type job struct {
	n    int
	f    func(thread, i int)
	next atomic.Int64
	left sync.WaitGroup
	fail atomic.Pointer[failure]
}

type failure struct {
	cause any
	stack []byte
}

func newPool(threads int) *pool {
	p := &pool{wake: make([]chan *job, threads-1)}
	for i := range p.wake {
		wake := make(chan *job, 1)
		p.wake[i] = wake
		p.done.Go(func() {
			for j := range wake {
				j.work(i + 1)
				j.left.Done()
			}
		})
	}
	return p
}

func (p *pool) close() {
	for _, w := range p.wake {
		close(w)
	}
	p.wake = nil
	p.done.Wait()
}

// run calls f(0) to f(n-1), each once, in no order, and returns when all have returned. A panic in one ends the loop and goes
// on in the caller.
func (p *pool) run(n int, f func(i int)) {
	p.runOn(n, func(_, i int) { f(i) })
}

// runOn is run for an f that keeps scratch for each thread: it is told which one it runs on, 0 ≤ thread < threads.
func (p *pool) runOn(n int, f func(thread, i int)) {
	helpers := min(len(p.wake), n-1)
	if helpers <= 0 {
		for i := range n {
			f(0, i)
		}
		return
	}
	j := &job{n: n, f: f}
	j.left.Add(helpers)
	for _, w := range p.wake[:helpers] {
		w <- j
	}
	j.work(0)
	j.left.Wait()
	if x := j.fail.Load(); x != nil {
		panic(fmt.Sprintf("%v\n\nin a worker:\n%s", x.cause, x.stack))
	}
}

func (j *job) work(thread int) {
	defer func() {
		if cause := recover(); cause != nil {
			j.fail.CompareAndSwap(nil, &failure{cause, debug.Stack()})
			j.next.Store(int64(j.n))
		}
	}()
	for {
		i := int(j.next.Add(1)) - 1
		if i >= j.n {
			return
		}
		j.f(thread, i)
	}
}
