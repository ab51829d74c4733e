package pipe

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// TooLargeError says that something can never fit into a Budget.
type TooLargeError struct {
	What        string
	Need, Limit int64 // bytes
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%s: needs %s of memory, the limit is %s", e.What, bytesText(e.Need), bytesText(e.Limit))
}

// bytesText is n in the largest binary unit that gives at least 1.
func bytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d bytes", n)
	}
	x, u := float64(n)/1024, 0
	for x >= 1024 {
		x, u = x/1024, u+1
	}
	return fmt.Sprintf("%.4g %ciB", x, units[u])
}

// Budget shares out bytes, strictly first come, first served. It is safe for concurrent use.
//
// It can't deadlock as long as nobody acquires while holding what only he will release, and elements that must leave a stage
// in order acquire in that order: in a source or a Transform, never in the workers of a Map.
type Budget struct {
	mu    sync.Mutex
	limit int64
	used  int64
	queue []*claim
}

type claim struct {
	n       int64
	what    string
	granted chan error
}

// NewBudget returns a budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// Acquire waits until n bytes are free and everybody who asked before has got his, or until ctx ends, whose cause it then returns.
// More than can ever be had is a *TooLargeError, at once. release gives the bytes back; calling it again does
// nothing. what names the taker in errors.
func (b *Budget) Acquire(ctx context.Context, n int64, what string) (release func(), err error) {
	if n < 0 {
		return nil, fmt.Errorf("%s: %d bytes asked for", what, n)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	c := &claim{n: n, what: what, granted: make(chan error, 1)}
	b.mu.Lock()
	b.queue = append(b.queue, c)
	b.serve()
	b.mu.Unlock()
	select {
	case err = <-c.granted:
	case <-ctx.Done():
		err = b.withdraw(c, context.Cause(ctx))
	}
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { b.giveBack(n) }), nil
}

// serve answers the head of the queue for as long as there is an answer, and whoever can never be served. b.mu is held.
func (b *Budget) serve() {
	b.queue = slices.DeleteFunc(b.queue, func(c *claim) bool {
		if c.n > b.limit {
			c.granted <- &TooLargeError{What: c.what, Need: c.n, Limit: max(b.limit, 0)}
		}
		return c.n > b.limit
	})
	for len(b.queue) > 0 && b.queue[0].n <= b.limit-b.used {
		c := b.queue[0]
		b.queue = slices.Delete(b.queue, 0, 1)
		b.used += c.n
		c.granted <- nil
	}
}

// withdraw takes c back. What it was granted meanwhile is given back.
func (b *Budget) withdraw(c *claim, cause error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case err := <-c.granted:
		if err != nil {
			return err
		}
		b.used -= c.n
	default:
		i := slices.Index(b.queue, c)
		b.queue = slices.Delete(b.queue, i, i+1)
	}
	b.serve()
	return cause
}

func (b *Budget) giveBack(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
	b.serve()
}

// Limit is the size of the budget in bytes.
func (b *Budget) Limit() int64 { return b.limit }

// InUse is the bytes that are acquired now.
func (b *Budget) InUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}
