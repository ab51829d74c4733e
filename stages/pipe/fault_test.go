package pipe

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// ledger counts the elements that are alive. It is the proof that releases balance.
type ledger struct {
	made, live, twice atomic.Int64
	fault             func(it *item) // called by Release, after counting
}

type item struct {
	n    int
	led  *ledger
	gone atomic.Bool
}

func (l *ledger) item(n int) *item {
	l.made.Add(1)
	l.live.Add(1)
	return &item{n: n, led: l}
}

func (it *item) Release() {
	if it.gone.Swap(true) {
		it.led.twice.Add(1)
		return
	}
	it.led.live.Add(-1)
	if it.led.fault != nil {
		it.led.fault(it)
	}
}

func (it *item) Bytes() int64 { return 8 }

func (l *ledger) check(t *testing.T) {
	t.Helper()
	if l.live.Load() != 0 || l.twice.Load() != 0 {
		t.Errorf("of %d elements %d were never released and %d twice", l.made.Load(), l.live.Load(), l.twice.Load())
	}
}

// nap sleeps up to 10 ms of the bubble's time, or until ctx ends.
func nap(ctx context.Context) {
	select {
	case <-time.After(time.Duration(rand.Int64N(int64(10 * time.Millisecond)))):
	case <-ctx.Done():
	}
}

var errBoom = errors.New("boom")

// faults are the ways a callback can go wrong. A fault is called in the middle of a run by the stage under test.
var faults = map[string]struct {
	strike func(g *Graph, kill func()) error
	want   func(err error, stage string) bool
}{
	"nothing": {
		func(*Graph, func()) error { return nil },
		func(err error, _ string) bool { return err == nil },
	},
	"error": {
		func(*Graph, func()) error { return errBoom },
		func(err error, stage string) bool {
			var s *StageError
			return errors.As(err, &s) && s.Stage == stage && errors.Is(err, errBoom) && err.Error() == stage+": boom"
		},
	},
	"panic": {
		func(*Graph, func()) error { panic(errBoom) },
		func(err error, stage string) bool {
			var s *StageError
			var p *PanicError
			return errors.As(err, &s) && s.Stage == stage && errors.As(err, &p) && errors.Is(err, errBoom) &&
				strings.Contains(string(p.Stack), "fault_test.go") && err.Error() == stage+": panic: boom"
		},
	},
	"goexit": {
		func(*Graph, func()) error { runtime.Goexit(); return nil },
		func(err error, stage string) bool {
			var s *StageError
			return errors.As(err, &s) && s.Stage == stage
		},
	},
	"hard stop": {
		func(_ *Graph, kill func()) error { kill(); return nil },
		func(err error, _ string) bool {
			return errors.Is(err, context.Canceled) && err.Error() == "context canceled"
		},
	},
	"soft stop": {
		func(g *Graph, _ func()) error { g.Stop(); g.Stop(); return nil },
		func(err error, _ string) bool { return err == nil },
	},
	"done": {
		func(g *Graph, _ func()) error { g.Done(); return nil },
		func(err error, _ string) bool { return err == nil },
	},
}

// rig is a graph with every kind of stage. Each callback owns its element as the package says, panics included.
type rig struct {
	ledger
	g      *Graph
	kill   func()
	at     string // the stage under test
	after  int    // its calls before the fault
	strike func(*Graph, func()) error
	calls  atomic.Int64
	sunk   atomic.Int64
}

// hit strikes if stage is the one under test and its time has come.
func (r *rig) hit(stage string) error {
	if stage == r.at && int(r.calls.Add(1)) == r.after {
		return r.strike(r.g, r.kill)
	}
	return nil
}

// own releases it unless *passed is set when the caller returns or panics.
func own(it *item, passed *bool) {
	if !*passed {
		it.Release()
	}
}

const perScan = 4

func (r *rig) build(n int) {
	src := From(r.g, "source", func(ctx context.Context, emit func(*item) error) error {
		for i := range n {
			if err := r.hit("source"); err != nil {
				return err
			}
			nap(ctx)
			if err := emit(r.item(i)); err != nil {
				return fmt.Errorf("emit: %w", err)
			}
		}
		return nil
	})
	read := Map(src, "map", 3, func(ctx context.Context, it *item) (_ *item, err error) {
		passed := false
		defer own(it, &passed)
		nap(ctx)
		if err := r.hit("map"); err != nil {
			return it, err // the value beside an error is ignored
		}
		passed = true
		return it, nil
	})
	tiles := Expand(read, "expand", func(ctx context.Context, it *item) iter.Seq2[*item, error] {
		return func(yield func(*item, error) bool) {
			defer it.Release()
			for k := range perScan {
				if err := r.hit("expand"); err != nil {
					yield(nil, err)
					return
				}
				if !yield(r.item(it.n*perScan+k), nil) {
					return
				}
			}
		}
	})
	mixed := Transform(tiles, "transform", func(ctx context.Context, in iter.Seq[*item]) iter.Seq2[*item, error] {
		return func(yield func(*item, error) bool) {
			var pool []*item
			defer func() {
				for _, it := range pool {
					it.Release()
				}
			}()
			for it := range in {
				pool = append(pool, it)
				if err := r.hit("transform"); err != nil {
					yield(nil, err)
					return
				}
				if len(pool) > 5 {
					it, pool = pool[0], pool[1:]
					if !yield(it, nil) {
						return
					}
				}
			}
			for ctx.Err() == nil && len(pool) > 0 {
				it := pool[0]
				pool = pool[1:]
				if !yield(it, nil) {
					return
				}
			}
		}
	})
	scans := gather(mixed, "gather", perScan, func(*item) error { return r.hit("gather") })
	batches := gather(scans, "batch", 3, func([]*item) error { return nil })
	Into(batches, "sink", func(ctx context.Context, b [][]*item) error {
		defer func() {
			for _, s := range b {
				for _, it := range s {
					it.Release()
				}
			}
		}()
		nap(ctx)
		r.sunk.Add(int64(len(b)))
		return r.hit("sink")
	})
}

func (r *rig) start(parent context.Context) {
	ctx, cancel := context.WithCancel(parent)
	r.kill = cancel
	r.g = New(ctx)
}

func TestEveryFaultAtEveryStageEndsTheGraph(t *testing.T) {
	for name, f := range faults {
		for _, stage := range []string{"source", "map", "expand", "transform", "gather", "sink"} {
			for _, after := range []int{1, 2, 7, 30} {
				if stage == "sink" && after == 30 {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%d", name, stage, after), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { // fails if a goroutine is left behind
						r := &rig{at: stage, after: after, strike: f.strike}
						r.start(t.Context())
						defer r.kill()
						r.build(40)
						err := r.g.Wait()
						if !f.want(err, stage) {
							t.Errorf("Wait: %v", err)
						}
						if got := r.g.Wait(); fmt.Sprint(got) != fmt.Sprint(err) {
							t.Errorf("second Wait: %v, the first: %v", got, err)
						}
						r.check(t)
						if name == "nothing" && r.sunk.Load() != 40 {
							t.Errorf("%d of 40 arrived", r.sunk.Load())
						}
						for _, s := range r.g.Stats() {
							if s.State != Finished || s.Bytes != 0 {
								t.Errorf("after Wait: %+v", s)
							}
						}
						if isClosed(r.g.Stopping()) != (name == "soft stop") {
							t.Error("Stopping")
						}
					})
				})
			}
		}
	}
}

// What goes wrong while the graph winds down must not keep it from ending.
func TestPanicInRelease(t *testing.T) {
	for _, stage := range []string{"source", "map", "expand", "transform", "gather", "sink"} {
		synctest.Test(t, func(t *testing.T) {
			r := &rig{at: stage, after: 5, strike: faults["error"].strike}
			r.fault = func(it *item) {
				if it.n%2 == 0 && r.g.hard() {
					panic("release")
				}
			}
			r.start(t.Context())
			defer r.kill()
			r.build(40)
			err := r.g.Wait()
			if !errors.Is(err, errBoom) {
				t.Errorf("%s: %v (want the first failure)", stage, err)
			}
		})
	}
}

func TestPanicInReleaseIsTheStagesFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l ledger
		l.fault = func(it *item) {
			if it.n == 3 {
				panic("release\nof three")
			}
		}
		g := New(t.Context())
		Discard(l.source(g, 10), "waste")
		if err := g.Wait(); err == nil || err.Error() != "waste: panic: release" {
			t.Error(err)
		}
		l.check(t)
	})
}

type heavy struct{ *item }

func (h heavy) Bytes() int64 { panic("weight") }

func TestPanicInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l ledger
		g := New(t.Context())
		p := Map(l.source(g, 10), "weigh", 2, func(_ context.Context, it *item) (heavy, error) { return heavy{it}, nil })
		Discard(p, "waste")
		if err := g.Wait(); err == nil || err.Error() != "weigh: panic: weight" {
			t.Error(err)
		}
		l.check(t)
	})
}

func (l *ledger) source(g *Graph, n int) Port[*item] {
	return From(g, "source", func(ctx context.Context, emit func(*item) error) error {
		for i := range n {
			if err := emit(l.item(i)); err != nil {
				return err
			}
		}
		return nil
	})
}

// An iterator that goes on after it was told to end gets told again.
func TestStubbornIterators(t *testing.T) {
	stubborn := func(l *ledger) func(context.Context, *item) iter.Seq2[*item, error] {
		return func(_ context.Context, it *item) iter.Seq2[*item, error] {
			return func(yield func(*item, error) bool) {
				defer it.Release()
				for i := range 20 {
					yield(l.item(i), nil)
				}
				yield(nil, errBoom)
				yield(l.item(20), nil)
				yield(nil, errors.New("late"))
			}
		}
	}
	synctest.Test(t, func(t *testing.T) {
		var l ledger
		g := New(t.Context())
		Discard(Expand(l.source(g, 100), "tile", stubborn(&l)), "waste")
		if err := g.Wait(); err == nil || err.Error() != "tile: boom" {
			t.Error(err)
		}
		l.check(t)
	})
	synctest.Test(t, func(t *testing.T) {
		var l ledger
		ctx, cancel := context.WithCancel(t.Context())
		g := New(ctx)
		seen := 0
		Into(Expand(l.source(g, 100), "tile", stubborn(&l)), "sink", func(_ context.Context, it *item) error {
			if seen++; seen == 5 {
				cancel()
			}
			it.Release()
			return nil
		})
		if err := g.Wait(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		l.check(t)
	})
}

// A function may pull instead of ranging, and panic while it does.
func TestTransformWithPull(t *testing.T) {
	for _, after := range []int{1000, 7} {
		synctest.Test(t, func(t *testing.T) {
			var l ledger
			g := New(t.Context())
			p := Transform(l.source(g, 50), "pairs", func(_ context.Context, in iter.Seq[*item]) iter.Seq2[*item, error] {
				return func(yield func(*item, error) bool) {
					next, stop := iter.Pull(in)
					defer stop()
					for n := 0; ; n++ {
						it, ok := next()
						if !ok {
							return
						}
						if n == after {
							it.Release()
							panic("pull")
						}
						if !yield(it, nil) {
							return
						}
					}
				}
			})
			Discard(p, "waste")
			if err := g.Wait(); (err == nil) != (after == 1000) {
				t.Error(err)
			}
			l.check(t)
		})
	}
}
