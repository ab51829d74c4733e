package pipe

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
)

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
