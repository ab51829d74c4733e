package pipe

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reugn/go-streams"
	"github.com/reugn/go-streams/extension"
	"github.com/reugn/go-streams/flow"
)

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
		p := gather(count(g, 4), "gather", 2, func(int) error { return nil })
		out := make(chan any, 2)
		var s streams.Source = p.g.edges[1].from
		p.g.edges[1].taker = p.g.edges[1].from // none of ours
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
		sink := newNode(g, "sink")
		p.edge.taker = sink
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
		Discard(gather(q, "gather", 2, func(*item) error { return nil }), "sink")
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
}
