package pipe

import (
	"context"
	"iter"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

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

// gather is a stage that holds: size elements make one. What is incomplete goes on at the end of data, and is released otherwise. It owns
// what each is shown.
func gather[T any](in Port[T], stage string, size int, each func(T) error) Port[[]T] {
	g := in.g
	return Transform(in, stage, func(_ context.Context, in iter.Seq[T]) iter.Seq2[[]T, error] {
		return func(yield func([]T, error) bool) {
			var held []T
			defer func() {
				for r := range releasers(held) {
					r.Release()
				}
			}()
			pass := func() bool {
				whole := held
				held = nil
				return yield(whole, nil)
			}
			for v := range in {
				held = append(held, v)
				if err := each(v); err != nil {
					yield(nil, err)
					return
				}
				if len(held) == size && !pass() {
					return
				}
			}
			if len(held) > 0 && !g.cut() {
				pass()
			}
		}
	})
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

// A yielded error stops the graph at once, whatever the function does afterwards.
func TestYieldedErrorIsTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		p := Transform(count(g, 10), "train", func(ctx context.Context, in iter.Seq[int]) iter.Seq2[int, error] {
			return func(yield func(int, error) bool) {
				yield(0, errBoom)
				<-ctx.Done()
				panic("while tidying up")
			}
		})
		Discard(p, "sink")
		if err := g.Wait(); err == nil || err.Error() != "train: boom" {
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

// A restless stage is given nothing, once, before it waits.
func TestRestless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		slow := Map(count(g, 4), "slow", 1, func(_ context.Context, i int) (int, error) {
			if i == 2 {
				time.Sleep(time.Hour)
			}
			return i + 1, nil
		})
		var when []time.Duration
		start := time.Now()
		got := collect(Restless(slow, "count", func(_ context.Context, in iter.Seq[int]) iter.Seq2[int, error] {
			return func(yield func(int, error) bool) {
				for i := range in {
					when = append(when, time.Since(start))
					if i > 0 {
						time.Sleep(time.Minute) // the next is there by then, but the third
					}
					if !yield(i, nil) {
						return
					}
				}
			}
		}))
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		gave := slices.DeleteFunc(slices.Clone(*got), func(i int) bool { return i == 0 })
		if !slices.Equal(gave, []int{1, 2, 3, 4}) || slices.Index(*got, 3) < 1 || (*got)[slices.Index(*got, 3)-1] != 0 {
			t.Errorf("%v after %v", *got, when)
		}
		for i := 1; i < len(*got); i++ {
			if (*got)[i] == 0 && (*got)[i-1] == 0 {
				t.Errorf("nothing twice: %v", *got)
			}
		}
	})
}
