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

	"github.com/reugn/go-streams"
	"github.com/reugn/go-streams/extension"
	"github.com/reugn/go-streams/flow"
	"pgregory.net/rapid"
)

// count is a source of 0..n-1.
func count(g *Graph, n int) Port[int] {
	return From(g, "count", func(_ context.Context, emit func(int) error) error {
		for i := range n {
			if err := emit(i); err != nil {
				return err
			}
		}
		return nil
	})
}

// collect is a sink into a slice, to be read after Wait.
func collect[T any](in Port[T]) *[]T {
	var got []T
	Into(in, "collect", func(_ context.Context, v T) error {
		got = append(got, v)
		return nil
	})
	return &got
}

func upTo(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

func TestMapKeepsOrderAndHoldsAtMostItsWorkers(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		workers := rapid.IntRange(-1, 9).Draw(rt, "workers")
		n := rapid.IntRange(0, 60).Draw(rt, "n")
		seed := rapid.Uint64().Draw(rt, "seed")
		synctest.Test(t, func(t *testing.T) {
			delay := func(i, most int) {
				time.Sleep(time.Duration(rand.New(rand.NewPCG(seed, uint64(i))).IntN(most)) * time.Millisecond)
			}
			g := New(t.Context())
			var taken, left, running, together atomic.Int64
			p := From(g, "count", func(_ context.Context, emit func(int) error) error {
				for i := range n {
					if err := emit(i); err != nil {
						return err
					}
					synctest.Wait() // until the sink has counted what it was given
					if inside := taken.Add(1) - left.Load(); inside > int64(max(workers, 1)) {
						t.Errorf("%d inside with %d workers", inside, workers)
					}
				}
				return nil
			})
			p = Map(p, "nap", workers, func(_ context.Context, i int) (int, error) {
				together.Store(max(together.Load(), running.Add(1)))
				delay(i, 20)
				running.Add(-1)
				return i, nil
			})
			var got []int
			Into(p, "sink", func(_ context.Context, i int) error {
				left.Add(1)
				got = append(got, i)
				delay(i+1000, 10)
				return nil
			})
			if err := g.Wait(); err != nil || !slices.Equal(got, upTo(n)) {
				t.Errorf("%v, %v", err, got)
			}
			if together.Load() > int64(max(workers, 1)) {
				t.Errorf("%d callbacks at once with %d workers", together.Load(), workers)
			}
		})
	})
}

func TestMapUsesItsWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		start := time.Now()
		got := collect(Map(count(g, 12), "nap", 4, func(_ context.Context, i int) (int, error) {
			time.Sleep(time.Second)
			return i, nil
		}))
		if err := g.Wait(); err != nil || len(*got) != 12 {
			t.Fatal(err, *got)
		}
		if took := time.Since(start); took != 3*time.Second { // of the bubble: exact
			t.Errorf("took %v", took)
		}
	})
}

// One element of a sequence is alive at a time: the next is made when the last was taken.
func TestExpandIsLazy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		made, taken := 0, 0
		p := Expand(count(g, 3), "tile", func(_ context.Context, i int) iter.Seq2[int, error] {
			return func(yield func(int, error) bool) {
				for k := range 4 {
					made++
					if !yield(i*4+k, nil) {
						return
					}
				}
			}
		})
		var got []int
		Into(p, "sink", func(_ context.Context, i int) error {
			synctest.Wait()
			taken++
			if made > taken+1 {
				t.Errorf("%d made, %d taken", made, taken)
			}
			got = append(got, i)
			return nil
		})
		if err := g.Wait(); err != nil || !slices.Equal(got, upTo(12)) {
			t.Error(err, got)
		}
	})
}

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
			if context.Cause(ctx) != ErrStopped {
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
					if err := emit(l.item(0)); err != ErrStopped {
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
		if err := g.Wait(); err != context.Canceled || time.Since(start) != time.Hour {
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
		if err := g.Wait(); err != errBoom {
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
		if err := g.Wait(); err != context.DeadlineExceeded {
			t.Error(err)
		}
	})
}

// After its error a function gets no more input.
func TestTransformEndsWithItsError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		p := Transform(count(g, 10), "train", func(_ context.Context, in iter.Seq[int]) iter.Seq2[int, error] {
			return func(yield func(int, error) bool) {
				yield(0, errBoom)
				for i := range in {
					t.Error("got", i)
				}
			}
		})
		Discard(p, "sink")
		if err := g.Wait(); err == nil || err.Error() != "train: boom" {
			t.Error(err)
		}
	})
}

func TestTransformThatHasEnoughEndsTheGraph(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l ledger
		g := New(t.Context())
		p := Transform(Map(l.source(g, 1<<30), "map", 3, func(_ context.Context, it *item) (*item, error) {
			time.Sleep(time.Millisecond)
			return it, nil
		}), "take", func(_ context.Context, in iter.Seq[*item]) iter.Seq2[*item, error] {
			return func(yield func(*item, error) bool) {
				n := 0
				for range 2 { // goes on where it was left
					for it := range in {
						n++
						if !yield(it, nil) || n%5 == 0 {
							break
						}
					}
				}
			}
		})
		var got []int
		Into(p, "sink", func(_ context.Context, it *item) error {
			got = append(got, it.n)
			it.Release()
			return nil
		})
		if err := g.Wait(); err != nil || !slices.Equal(got, upTo(10)) {
			t.Error(err, got)
		}
		if isClosed(g.Stopping()) {
			t.Error("Done isn't an interruption")
		}
		l.check(t)
	})
}

func TestBatchRules(t *testing.T) {
	for n, want := range map[int][]int{0: nil, 1: {1}, 3: {3}, 4: {3, 1}, 6: {3, 3}, 8: {3, 3, 2}} {
		synctest.Test(t, func(t *testing.T) {
			g := New(t.Context())
			got := collect(Batch(count(g, n), "batch", 3))
			err := g.Wait()
			var lens []int
			for _, b := range *got {
				lens = append(lens, len(b))
			}
			if err != nil || !slices.Equal(lens, want) || !slices.Equal(slices.Concat(*got...), upTo(n)) {
				t.Errorf("%d: %v, %v", n, err, *got)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // a stop isn't the end of data
		var l ledger
		g := New(t.Context())
		p := From(g, "source", func(ctx context.Context, emit func(*item) error) error {
			for i := range 4 {
				if err := emit(l.item(i)); err != nil {
					return err
				}
			}
			<-ctx.Done()
			return nil
		})
		var lens []int
		Into(Batch(p, "batch", 3), "sink", func(_ context.Context, b []*item) error {
			lens = append(lens, len(b))
			for _, it := range b {
				it.Release()
			}
			return nil
		})
		synctest.Wait()
		g.Stop()
		if err := g.Wait(); err != nil || !slices.Equal(lens, []int{3}) {
			t.Error(err, lens)
		}
		l.check(t)
	})
}

func group(g *Graph, values []int, size int) Port[[]int] {
	p := From(g, "source", func(_ context.Context, emit func(int) error) error {
		for _, v := range values {
			if err := emit(v); err != nil {
				return err
			}
		}
		return nil
	})
	return Group(p, "group", func(i int) int { return i / 10 }, func(int) int { return size })
}

func TestGroupEmitsAKeyOnceItIsWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		got := collect(group(g, []int{11, 21, 12, 31, 13, 32, 22, 33, 23}, 3))
		want := "[[11 12 13] [31 32 33] [21 22 23]]"
		if err := g.Wait(); err != nil || fmt.Sprint(*got) != want {
			t.Error(err, *got)
		}
	})
}

func TestGroupListsWhatIsIncomplete(t *testing.T) {
	long := []int{}
	for k := range 12 {
		long = append(long, 10*k)
	}
	for _, c := range []struct {
		values []int
		size   int
		want   string
	}{
		{[]int{21, 11, 12, 31, 32, 33, 13, 14}, 3,
			"group: incomplete at the end of data: 2 (1 of 3), 1 (1 of 3)"},
		{long, 2, "group: incomplete at the end of data: 0 (1 of 2), 1 (1 of 2), 2 (1 of 2), 3 (1 of 2), 4 (1 of 2), " +
			"5 (1 of 2), 6 (1 of 2), 7 (1 of 2), 8 (1 of 2), 9 (1 of 2) and 2 more"},
		{[]int{71}, 0, "group: key 7: size 0 (want at least 1)"},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := New(t.Context())
			Discard(group(g, c.values, c.size), "sink")
			if err := g.Wait(); err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestGroupForgetsAtAStop(t *testing.T) {
	for _, stop := range []func(*Graph){(*Graph).Stop, (*Graph).Done} {
		synctest.Test(t, func(t *testing.T) {
			var l ledger
			g := New(t.Context())
			p := From(g, "source", func(ctx context.Context, emit func(*item) error) error {
				for i := range 4 {
					_ = emit(l.item(i))
				}
				<-ctx.Done()
				return nil
			})
			Discard(Group(p, "group", func(*item) string { return "a" }, func(*item) int { return 5 }), "sink")
			synctest.Wait()
			stop(g)
			if err := g.Wait(); err != nil {
				t.Error(err)
			}
			l.check(t)
		})
	}
}

func TestThroughStockOperators(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		even := Through[int](count(g, 20), "even", flow.NewFilter(func(i int) bool { return i%2 == 0 }, 1))
		pairs := Through[[]int](even, "pairs", flow.NewBatch[int](2, time.Hour))
		got := collect(pairs)
		if err := g.Wait(); err != nil || fmt.Sprint(*got) != "[[0 2] [4 6] [8 10] [12 14] [16 18]]" {
			t.Error(err, *got)
		}
		if s := g.Stats()[1]; s.Stage != "even" || s.Out != 10 {
			t.Errorf("%+v", s)
		}
	})
	synctest.Test(t, func(t *testing.T) { // a failure after it ends it as well
		var l ledger
		g := New(t.Context())
		p := Through[*item](l.source(g, 1000), "pass", flow.NewPassThrough())
		Into(p, "sink", func(_ context.Context, it *item) error {
			it.Release()
			if it.n == 10 {
				return errBoom
			}
			return nil
		})
		if err := g.Wait(); !errors.Is(err, errBoom) {
			t.Error(err)
		}
		l.check(t)
	})
}

func TestNodesAreGoStreamsOperators(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		p := Batch(count(g, 4), "batch", 2)
		out := make(chan any, 2)
		var s streams.Source = p.g.edges[1].from
		p.g.edges[1].taker = "go-streams"
		s.Via(flow.NewPassThrough()).To(extension.NewChanSink(out))
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
		if a, b := <-out, <-out; fmt.Sprint(a, b) != "[0 1] [2 3]" {
			t.Error(a, b)
		}
	})
	synctest.Test(t, func(t *testing.T) { // a node's To ends when its sink does
		g := New(t.Context())
		p := count(g, 3)
		p.edge.taker = "go-streams"
		sink := newNode(g, "sink", 1)
		sum := 0
		sink.start(func() error {
			for {
				v, ok := receive[int](sink)
				if !ok {
					return nil
				}
				time.Sleep(time.Second)
				sum += v
			}
		})
		p.edge.from.To(sink)
		if sum != 3 {
			t.Error(sum)
		}
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
}

func TestWiringMistakes(t *testing.T) {
	var l ledger
	pass := func(_ context.Context, i int) (int, error) { return i, nil }
	for want, wire := range map[string]func(g *Graph){
		"map: nothing takes its output": func(g *Graph) { Map(count(g, 9), "map", 2, pass) },
		"b: the output of count already goes to a": func(g *Graph) {
			p := count(g, 9)
			Discard(p, "a")
			Discard(p, "b")
		},
		"through: the output of count already goes to a": func(g *Graph) {
			p := count(g, 9)
			Discard(p, "a")
			Discard(Through[int](p, "through", flow.NewPassThrough()), "b")
		},
		"through: got *pipe.item, want string": func(g *Graph) {
			Discard(Through[string](l.source(g, 9), "through", flow.NewPassThrough()), "sink")
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := New(t.Context())
			wire(g)
			if err := g.Wait(); err == nil || err.Error() != want {
				t.Errorf("got %v, want %s", err, want)
			}
		})
	}
	l.check(t)
	if err := New(t.Context()).Wait(); err != nil {
		t.Error("an empty graph:", err)
	}
}

// Elements of an interface type, nil among them, flow like others.
func TestNilElements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		p := Map(count(g, 3), "map", 2, func(_ context.Context, i int) (error, error) { return nil, nil })
		q := Map(p, "item", 2, func(_ context.Context, err error) (*item, error) { return nil, err })
		Discard(Batch(q, "batch", 2), "sink")
		if err := g.Wait(); err != nil {
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
