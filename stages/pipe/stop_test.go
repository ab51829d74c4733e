package pipe

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestSoftStopFlushesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		emitted := 0
		p := From(g, "forever", func(_ context.Context, emit func(int) error) error {
			for ; ; emitted++ {
				if err := emit(emitted); err != nil {
					return fmt.Errorf("forever: %w", err)
				}
			}
		})
		got := collect(Map(p, "nap", 4, func(_ context.Context, i int) (int, error) {
			time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
			return i, nil
		}))
		time.Sleep(time.Second)
		g.Stop()
		if err := g.Wait(); err != nil || emitted == 0 || !slices.Equal(*got, upTo(emitted)) {
			t.Error(err, emitted, len(*got))
		}
	})
}

// A source that waits for something else than emit is woken by its ctx.
func TestSoftStopWakesAWaitingSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		p := From(g, "listen", func(ctx context.Context, _ func(int) error) error {
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), ErrStopped) {
				t.Error(context.Cause(ctx))
			}
			return fmt.Errorf("accept: %w", ctx.Err())
		})
		Discard(p, "sink")
		synctest.Wait()
		g.Stop()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// Nothing leaves a source once it is stopped, though somebody would take it.
func TestNoEmitAfterStop(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			var l ledger
			g := New(t.Context())
			p := From(g, "source", func(ctx context.Context, emit func(*item) error) error {
				<-ctx.Done()
				synctest.Wait()
				for range 2 {
					if err := emit(l.item(0)); !errors.Is(err, ErrStopped) {
						t.Error(err)
					}
				}
				return nil
			})
			Into(p, "sink", func(context.Context, *item) error { t.Error("emitted"); return nil })
			g.Stop()
			if err := g.Wait(); err != nil {
				t.Error(err)
			}
			l.check(t)
		})
	}
}

// context.Canceled is an error like others unless the source was told to end.
func TestSourceFailsByItsOwnCancel(t *testing.T) {
	for _, err := range []error{context.Canceled, ErrStopped} {
		synctest.Test(t, func(t *testing.T) {
			g := New(t.Context())
			Discard(From(g, "read", func(context.Context, func(int) error) error { return err }), "sink")
			if got := g.Wait(); !errors.Is(got, err) {
				t.Error(got)
			}
		})
	}
}

// A stage learns of a hard stop at once, though the stage before it takes its time.
func TestHardStopDoesNotWaitForInput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		g := New(ctx)
		start := time.Now()
		p := From(g, "deaf", func(context.Context, func(int) error) error {
			time.Sleep(time.Hour)
			return nil
		})
		q := Transform(p, "save", func(ctx context.Context, in iter.Seq[int]) iter.Seq2[int, error] {
			return func(func(int, error) bool) {
				for range in {
					t.Error("an element")
				}
				if took := time.Since(start); took != time.Second || ctx.Err() == nil {
					t.Errorf("input ended after %v, ctx: %v", took, ctx.Err())
				}
			}
		})
		Discard(q, "sink")
		time.Sleep(time.Second)
		cancel()
		if err := g.Wait(); !errors.Is(err, context.Canceled) || time.Since(start) != time.Hour {
			t.Error(err, time.Since(start))
		}
	})
}

// A failure of a source is a failure, though it comes after a stop.
func TestSourceFailsAfterStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		Discard(From(g, "read", func(ctx context.Context, _ func(int) error) error {
			<-ctx.Done()
			return errBoom
		}), "sink")
		g.Done()
		if err := g.Wait(); !errors.Is(err, errBoom) {
			t.Error(err)
		}
	})
}

// The first failure is the answer; what follows from it isn't.
func TestFirstFailureWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		p := Map(count(g, 100), "slow", 3, func(ctx context.Context, i int) (int, error) {
			<-ctx.Done()
			return 0, context.Cause(ctx)
		})
		Discard(p, "sink")
		Discard(From(g, "other", func(context.Context, func(int) error) error {
			time.Sleep(time.Second)
			return errBoom
		}), "sink of other")
		if err := g.Wait(); err == nil || err.Error() != "other: boom" {
			t.Error(err)
		}
	})
}

func TestParentsCauseIsTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		g := New(ctx)
		// This stage sees the parent's end before the graph does.
		Discard(Map(count(g, 100), "map", 2, func(_ context.Context, i int) (int, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		}), "sink")
		synctest.Wait()
		cancel(errBoom)
		if err := g.Wait(); !errors.Is(err, errBoom) {
			t.Error(err)
		}
	})
}

// late is a parent that has ended, but whose children don't know yet.
type late struct {
	context.Context
	ended atomic.Bool
}

func (l *late) Err() error {
	if l.ended.Load() {
		return context.DeadlineExceeded
	}
	return nil
}

func TestParentsCauseIsTheAnswerEvenBeforeItIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		parent := &late{Context: t.Context()}
		g := New(parent)
		Into(count(g, 1), "sink", func(context.Context, int) error {
			parent.ended.Store(true)
			return parent.Err()
		})
		if err := g.Wait(); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestPanicErrorSaysWhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		Into(count(g, 3), "sink", func(_ context.Context, i int) error {
			_ = upTo(i)[1]
			return nil
		})
		err := g.Wait()
		var p *PanicError
		if !errors.As(err, &p) || !strings.Contains(string(p.Stack), "TestPanicErrorSaysWhere") ||
			err.Error() != "sink: panic: runtime error: index out of range [1] with length 0" {
			t.Error(err)
		}
	})
}

// A stage that is restless ends at a soft stop, though the stage before it hangs; what that gives in the end is released.
func TestSoftStopEndsARestlessStageAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		const hangs = 3
		start := time.Now()
		p := Map(count(g, 10), "hang", 1, func(_ context.Context, i int) (int, error) {
			if i == hangs {
				time.Sleep(time.Hour)
			}
			return i, nil
		})
		var ended time.Duration
		sums := collect(Restless(p, "sum", func(_ context.Context, in iter.Seq[int]) iter.Seq2[int, error] {
			return func(yield func(int, error) bool) {
				sum := 0
				for i := range in {
					sum += i
				}
				ended = time.Since(start)
				yield(sum, nil)
			}
		}))
		time.Sleep(time.Minute)
		g.Stop()
		if err := g.Wait(); err != nil || !slices.Equal(*sums, []int{0 + 1 + 2}) || ended != time.Minute {
			t.Errorf("%v: sums %v after %v (want 3 after a minute)", err, *sums, ended)
		}
	})
}

// Where a stage has all that it wants, those before it don't work through what they have at hand.
func TestNobodyWorksForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l ledger
		var turned atomic.Int64
		cut := 0
		g := New(t.Context())
		cuts := Expand(count(g, 3), "cut", func(context.Context, int) iter.Seq2[*item, error] {
			return func(yield func(*item, error) bool) {
				for cut < 1000 && yield(l.item(cut), nil) {
					cut++
				}
			}
		})
		turns := Map(cuts, "turn", 2, func(_ context.Context, it *item) (*item, error) {
			turned.Add(1)
			return it, nil
		})
		mixed := Transform(turns, "mix", func(_ context.Context, in iter.Seq[*item]) iter.Seq2[*item, error] {
			return func(yield func(*item, error) bool) {
				for it := range in {
					if !yield(it, nil) {
						return
					}
				}
			}
		})
		Discard(Restless(mixed, "train", func(_ context.Context, in iter.Seq[*item]) iter.Seq2[int, error] {
			return func(func(int, error) bool) {
				for it := range in {
					if it != nil {
						time.Sleep(time.Second)
						it.Release()
					}
				}
			}
		}), "sink")
		time.Sleep(10 * time.Second)
		g.Stop()
		if err := g.Wait(); err != nil || cut < 10 || cut > 20 || turned.Load() > 20 {
			t.Error(err, cut, turned.Load())
		}
		l.check(t)
	})
}
