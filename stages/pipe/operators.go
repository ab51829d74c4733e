package pipe

import (
	"context"
	"errors"
	"iter"
	"reflect"
	"sync"

	"github.com/reugn/go-streams"
)

// From runs gen as a source. emit waits until the next stage takes the element; it fails, for good, when the graph stops:
// gen then returns what emit returned. gen's ctx ends at a soft stop too, with ErrStopped as its cause; an error
// that comes of that isn't a failure. emit is for one goroutine at a time, until gen returns.
func From[T any](g *Graph, stage string, gen func(ctx context.Context, emit func(T) error) error) Port[T] {
	n := newNode(g, stage)
	n.from = nil
	p := port[T](n)
	n.start(func() error {
		err := gen(g.data, func(v T) error {
			if !n.send(v, g.data.Done()) {
				return context.Cause(g.data)
			}
			return nil
		})
		if g.cut() && (errors.Is(err, ErrStopped) || errors.Is(err, context.Canceled)) {
			return nil
		}
		return err
	})
	return p
}

// Map applies fn with so many workers (at least 1) and keeps order. At most that many elements are inside, those included
// that wait for their turn.
func Map[T, R any](in Port[T], stage string, workers int, fn func(context.Context, T) (R, error)) Port[R] {
	type result struct {
		value R
		ok    bool
	}
	workers = max(workers, 1)
	g := in.g
	n := metered(g, newMeter(stage, workers, starved))
	n.keeps = true
	take(in, n)
	p := port[R](n)
	n.start(func() error {
		room := make(chan struct{}, workers)
		turns := make(chan chan result, workers)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer close(turns)
		wg.Go(func() {
			for turn := range turns {
				if r := <-turn; r.ok {
					n.send(r.value, g.ctx.Done())
				}
				n.m.note(blocked, starved, 0, 0, 0)
				<-room
			}
		})
		for {
			room <- struct{}{}
			if isClosed(n.idle) {
				return nil
			}
			v, ok := receive[T](n)
			if !ok {
				return nil
			}
			n.m.note(starved, working, 0, 0, 0)
			turn := make(chan result, 1)
			turns <- turn
			wg.Go(func() {
				var r result
				bytes := n.size(v)
				defer func() {
					n.m.note(working, blocked, 0, 0, n.size(r.value)-bytes)
					turn <- r
				}()
				g.guard(stage, func() error {
					value, err := fn(g.ctx, v)
					if err == nil {
						r = result{value, true}
					}
					return err
				})
			})
		}
	})
	return p
}

// Expand replaces each element by a sequence, of which one element is alive at a time. An error in the sequence is the
// stage's failure. The element itself is fn's to release when its sequence ends or is broken off.
func Expand[T, R any](in Port[T], stage string, fn func(context.Context, T) iter.Seq2[R, error]) Port[R] {
	return transform(newNode(in.g, stage), in, false, func(ctx context.Context, in iter.Seq[T]) iter.Seq2[R, error] {
		return func(yield func(R, error) bool) {
			for v := range in {
				fn(ctx, v)(yield) // in ends once yield has returned false
			}
		}
	})
}

// Transform runs a function from sequence to sequence, in one goroutine. in may be ranged over several times; it goes on
// where it was left. An error that is yielded is the stage's failure. in ends at the end of data and at a soft stop, and
// early at a hard stop: look at ctx before acting on its end.
//
// When the sequence ends before its input, without an error, the graph is Done: the rest of the input is
// released, and the stages before it, which nobody waits for any more, are broken off (yield gives false).
func Transform[T, R any](in Port[T], stage string, fn func(ctx context.Context, in iter.Seq[T]) iter.Seq2[R, error]) Port[R] {
	return transform(newNode(in.g, stage), in, alike[T, R](), fn)
}

// Restless is Transform for a stage that doesn't want what is still on its way at a soft stop, and has something to finish before it
// waits: in ends at once at a stop, whatever may hold up the stages before it, and where the next element isn't there yet it gives a
// zero T, once, and waits when it is asked again.
func Restless[T, R any](in Port[T], stage string, fn func(ctx context.Context, in iter.Seq[T]) iter.Seq2[R, error]) Port[R] {
	n := newNode(in.g, stage)
	n.until = n.g.stopping
	n.restless = true
	return transform(n, in, alike[T, R](), fn)
}

// alike says that an R is a T, or several.
func alike[T, R any]() bool {
	t, r := reflect.TypeFor[T](), reflect.TypeFor[R]()
	return r == t || r == reflect.SliceOf(t)
}

// transform is Transform; keeps says that what fn yields is what it was given, so that the difference is inside.
func transform[T, R any](n *node, in Port[T], keeps bool, fn func(context.Context, iter.Seq[T]) iter.Seq2[R, error]) Port[R] {
	g := in.g
	n.keeps = keeps
	take(in, n)
	p := port[R](n)
	n.start(func() error {
		over := false
		received := func(yield func(T) bool) {
			for !over {
				if n.restless {
					v, ok, now := receiveNow[T](n)
					if now && !ok || !yield(v) { // v is none where it isn't there yet
						return
					}
					if now || over {
						continue
					}
				}
				if v, ok := receive[T](n); !ok || !yield(v) {
					return
				}
			}
		}
		// Called as a function, not ranged over: an iterator that goes on after false is told so again, without harm.
		fn(g.ctx, received)(func(r R, err error) bool {
			switch {
			case err != nil:
				g.fail(n.m.stage, err) // at once: fn may have much to tidy up
				over = true
			case over:
				n.drop(r)
			default:
				over = !n.send(r, g.ctx.Done())
			}
			return !over
		})
		over = true
		if !n.ended && !g.hard() {
			g.Done()
		}
		return nil
	})
	return p
}

// Through runs a go-streams operator that emits R: the door for one that somebody has already, or that isn't worth writing again. flowrun's own
// flows use none, for pipe can't guard it: a panic in it ends the process, and what it drops isn't released. Its counters are of what
// comes out of it.
func Through[R, T any](in Port[T], stage string, f streams.Flow) Port[R] {
	g := in.g
	n := newNode(g, stage)
	p := port[R](n)
	if from := n.claim(in.edge); from != nil {
		from.Via(f)
	} else {
		close(f.In())
	}
	f.Via(n)
	n.start(func() error {
		for {
			v, ok := receive[R](n)
			if !ok || !n.send(v, g.ctx.Done()) {
				return nil
			}
		}
	})
	return p
}

// Into calls fn with each element, in order. The result is Wait's.
func Into[T any](in Port[T], stage string, fn func(context.Context, T) error) {
	sink(in, stage, func(n *node, v T) error { return fn(n.g.ctx, v) })
}

// Discard releases each element.
func Discard[T any](in Port[T], stage string) {
	sink(in, stage, func(n *node, v T) error {
		n.drop(v)
		return nil
	})
}

func sink[T any](in Port[T], stage string, fn func(*node, T) error) {
	n := newNode(in.g, stage)
	take(in, n)
	n.start(func() error {
		for {
			v, ok := receive[T](n)
			if !ok {
				return nil
			}
			if err := fn(n, v); err != nil {
				return err
			}
		}
	})
}
