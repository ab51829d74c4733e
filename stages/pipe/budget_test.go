package pipe

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

func acquire(t *testing.T, b *Budget, n int64) func() {
	t.Helper()
	release, err := b.Acquire(t.Context(), n, "test")
	if err != nil {
		t.Fatal(err)
	}
	return release
}

// Nobody overtakes: a small claim waits behind a large one that doesn't fit yet.
func TestBudgetIsFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(10)
		first := acquire(t, b, 7)
		var mu sync.Mutex
		var order []int64
		for i, n := range []int64{5, 1, 0, 10, 2} {
			go func() {
				time.Sleep(time.Duration(i) * time.Second)
				release := acquire(t, b, n)
				if b.InUse() > b.Limit() {
					t.Error(b.InUse(), "in use")
				}
				mu.Lock()
				order = append(order, n)
				mu.Unlock()
				time.Sleep(time.Minute)
				release()
				release() // does nothing
			}()
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(order) != 0 || b.InUse() != 7 {
			t.Errorf("%v overtook, %d in use", order, b.InUse())
		}
		first()
		first()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		slices.Sort(order[:3]) // granted at one moment
		if !slices.Equal(order, []int64{0, 1, 5, 10, 2}) || b.InUse() != 0 || b.Limit() != 10 {
			t.Error(order, b.InUse(), b.Limit())
		}
	})
}

func TestBudgetTooLarge(t *testing.T) {
	b := NewBudget(13 << 30)
	_, err := b.Acquire(t.Context(), 14<<30, "scan a")
	var e *TooLargeError
	if !errors.As(err, &e) || *e != (TooLargeError{"scan a", 14 << 30, 13 << 30}) ||
		err.Error() != "scan a: needs 14 GiB of memory, the limit is 13 GiB" {
		t.Error(err)
	}
	acquire(t, b, 13<<30)()
	if _, err := b.Acquire(t.Context(), -1, "scan b"); err == nil || b.InUse() != 0 {
		t.Error(err, b.InUse())
	}
}

// Whoever gives up makes room for those behind him.
func TestBudgetCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(10)
		release := acquire(t, b, 5)
		ctx, cancel := context.WithCancelCause(t.Context())
		answer := make(chan error)
		go func() {
			_, err := b.Acquire(ctx, 6, "large")
			answer <- err
		}()
		synctest.Wait()
		got := make(chan struct{})
		go func() { acquire(t, b, 5)(); close(got) }()
		synctest.Wait()
		cancel(errBoom)
		if err := <-answer; !errors.Is(err, errBoom) {
			t.Error(err)
		}
		<-got
		release()
		if b.InUse() != 0 {
			t.Error(b.InUse())
		}
		for range 50 { // though it could be had
			if _, err := b.Acquire(ctx, 1, "dead"); !errors.Is(err, errBoom) || b.InUse() != 0 {
				t.Error(err, b.InUse())
			}
		}
	})
	b := NewBudget(10) // given up and granted at one moment
	c := &claim{n: 6, granted: make(chan error, 1)}
	b.queue = append(b.queue, c)
	b.serve()
	if err := b.withdraw(c, errBoom); !errors.Is(err, errBoom) || b.InUse() != 0 {
		t.Error(err, b.InUse())
	}
}

// Admission in a source, a Map that keeps order, a window that holds: whatever the sizes, it never locks up nor exceeds.
func TestBudgetInAGraph(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const limit = 20
		costs := rapid.SliceOfN(rapid.Int64Range(0, limit/2), 0, 30).Draw(rt, "costs")
		workers := rapid.IntRange(1, 5).Draw(rt, "workers")
		stopAt := rapid.IntRange(0, 60).Draw(rt, "stop")
		synctest.Test(t, func(t *testing.T) {
			type scan struct {
				n       int
				release func()
			}
			b := NewBudget(limit)
			g := New(t.Context())
			p := From(g, "admit", func(ctx context.Context, emit func(scan) error) error {
				for i, c := range costs {
					release, err := b.Acquire(ctx, c, fmt.Sprint("scan ", i))
					if err != nil {
						return err
					}
					if b.InUse() > limit {
						t.Errorf("%d in use", b.InUse())
					}
					if err := emit(scan{i, release}); err != nil {
						release()
						return err
					}
				}
				return nil
			})
			p = Map(p, "read", workers, func(_ context.Context, s scan) (scan, error) {
				time.Sleep(time.Duration(costs[s.n]*7%5) * time.Second)
				return s, nil
			})
			held := Transform(p, "window", func(_ context.Context, in iter.Seq[scan]) iter.Seq2[int, error] {
				return func(yield func(int, error) bool) {
					var last *scan // one is kept until the next has come
					for s := range in {
						if last != nil {
							last.release()
						}
						last = &s
						if !yield(s.n, nil) {
							break
						}
					}
					if last != nil {
						last.release()
					}
				}
			})
			got := collect(held)
			time.Sleep(time.Duration(stopAt) * time.Second)
			g.Stop()
			err := g.Wait()
			if err != nil || !slices.Equal(*got, upTo(len(*got))) || b.InUse() != 0 {
				t.Error(err, *got, b.InUse())
			}
		})
	})
}
