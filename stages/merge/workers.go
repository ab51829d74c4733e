package merge

import (
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// each calls fn with 0 ≤ i < n from several goroutines, this one included. A panic in any becomes one here.
func each(workers, n int, fn func(i int)) {
	var next atomic.Int64
	var panicked atomic.Pointer[error]
	work := func() {
		defer func() {
			if p := recover(); p != nil {
				err := fmt.Errorf("%v\n%s", p, debug.Stack())
				panicked.Store(&err)
				next.Store(int64(n))
			}
		}()
		for {
			i := int(next.Add(1)) - 1
			if i >= n {
				return
			}
			fn(i)
		}
	}
	var wg sync.WaitGroup
	for range min(workers, n) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
	if err := panicked.Load(); err != nil {
		panic(*err)
	}
}

// pool keeps buffers of slices that were given back. It never holds more than were out at once. Buffers come and go from
// any goroutine.
type pool struct {
	mu   sync.Mutex
	free [][]float32
	over bool
}

// get gives a buffer with whatever is in it.
func (p *pool) get(n int) []float32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := len(p.free) - 1; last >= 0 {
		b := p.free[last]
		p.free = p.free[:last]
		if cap(b) >= n {
			return b[:n]
		}
	}
	return make([]float32, n)
}

func (p *pool) put(b []float32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.over {
		p.free = append(p.free, b)
	}
}

// close lets all buffers go, those too that are still to come back.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free, p.over = nil, true
}
