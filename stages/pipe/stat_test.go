package pipe

import (
	"context"
	"iter"
	"testing"
	"testing/synctest"
	"time"
)

// In a bubble time is exact: a source that takes 1 s for each element, a Map of two workers with 4 s, a sink with 3 s.
func TestStatsAddUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const s = time.Second
		start := time.Now()
		g := New(t.Context())
		p := From(g, "source", func(_ context.Context, emit func(int) error) error {
			for i := range 3 {
				time.Sleep(s)
				if err := emit(i); err != nil {
					return err
				}
			}
			return nil
		})
		p = Map(p, "map", 2, func(_ context.Context, i int) (int, error) {
			time.Sleep(4 * s)
			return i, nil
		})
		Into(p, "sink", func(context.Context, int) error {
			time.Sleep(3 * s)
			return nil
		})

		// Elements reach the map at 1, 2 and, when 0 has left, 5; they are ready at 5, 6 and 9; the sink takes them at 5, 8, 11.
		type row struct{ busy, in, out time.Duration }
		for _, at := range []struct {
			time  time.Duration
			rows  [3]row
			state [3]string
		}{
			{4 * s, [3]row{{3 * s, 0, 1 * s}, {5 * s, 3 * s, 0}, {0, 4 * s, 0}}, [3]string{WaitingOut, Working, WaitingIn}},
			{7 * s, [3]row{{3 * s, 0, 2 * s}, {10 * s, 3 * s, 1 * s}, {2 * s, 5 * s, 0}}, [3]string{Finished, Working, Working}},
			{10 * s, [3]row{{3 * s, 0, 2 * s}, {12 * s, 5 * s, 3 * s}, {5 * s, 5 * s, 0}}, [3]string{Finished, WaitingOut, Working}},
			{20 * s, [3]row{{3 * s, 0, 2 * s}, {12 * s, 6 * s, 4 * s}, {9 * s, 5 * s, 0}}, [3]string{Finished, Finished, Finished}},
		} {
			time.Sleep(at.time - time.Since(start))
			synctest.Wait()
			for i, stat := range g.Stats() {
				got := row{stat.Busy, stat.BlockedIn, stat.BlockedOut}
				if got != at.rows[i] || stat.State != at.state[i] {
					t.Errorf("at %v %s: %v %s (want %v %s)", at.time, stat.Stage, got, stat.State, at.rows[i], at.state[i])
				}
				if age := got.busy + got.in + got.out; stat.State != Finished && age != at.time*time.Duration(stat.Workers) {
					t.Errorf("at %v %s: the times add up to %v", at.time, stat.Stage, age)
				}
			}
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		for i, want := range []Stat{{Stage: "source", Out: 3, Workers: 1}, {Stage: "map", In: 3, Out: 3, Workers: 2}, {Stage: "sink", In: 3, Workers: 1}} {
			got := g.Stats()[i]
			got.Busy, got.BlockedIn, got.BlockedOut, got.State = 0, 0, 0, ""
			if got != want {
				t.Errorf("%+v, want %+v", got, want)
			}
		}
	})
}

// An element is handed on at once and delivered later: its last stage works for 1 s, waits for 4 s, works for 2 s, while the stage
// that owes has long ended.
func TestStatsOfWhatIsOwed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const s = time.Second
		start := time.Now()
		g := New(t.Context())
		p := From(g, "admit", func(_ context.Context, emit func(int) error) error { return emit(1) })
		p = Map(p, "read", 2, func(_ context.Context, i int) (int, error) { return i, nil })
		p = Expand(p, "tile", func(_ context.Context, i int) iter.Seq2[int, error] {
			return func(yield func(int, error) bool) { _ = yield(2*i, nil) && yield(3*i, nil) }
		})
		p = Map(p, "batch", 1, func(_ context.Context, i int) (int, error) {
			time.Sleep(s)
			paid := g.Owes("read", "batch")
			defer g.Owes("nobody", "batch")()
			time.Sleep(4 * s)
			paid()
			time.Sleep(2 * s)
			return i, nil
		})
		Discard(p, "end")

		type row struct {
			busy, in, out time.Duration
			state         string
		}
		for _, c := range []struct {
			at   time.Duration
			rows []row // read, tile, batch
		}{
			{3 * s, []row{{2 * 2 * s, 0, 0, Working}, {0, 2 * s, s, WaitingIn}, {s, 2 * s, 0, WaitingIn}}},
			{6 * s, []row{{2 * 4 * s, 0, 0, Finished}, {0, 4 * s, 2 * s, WaitingOut}, {2 * s, 4 * s, 0, Working}}},
			{10 * s, []row{{2 * 6 * s, 0, 0, Working}, {0, 6 * s, 3 * s, WaitingIn}, {4 * s, 6 * s, 0, WaitingIn}}},
			{14 * s, []row{{2 * 8 * s, 0, 0, Finished}, {0, 8 * s, 3 * s, Finished}, {6 * s, 8 * s, 0, Finished}}},
		} {
			time.Sleep(c.at - time.Since(start))
			synctest.Wait()
			for i, stat := range g.Stats()[1:4] {
				if got := (row{stat.Busy, stat.BlockedIn, stat.BlockedOut, stat.State}); got != c.rows[i] {
					t.Errorf("at %v %s: %v (want %v)", c.at, stat.Stage, got, c.rows[i])
				}
			}
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	})
}

type load int64

func (l load) Bytes() int64 { return int64(l) }

// Bytes counts what is inside a stage: each kind of stage holds as its contract says.
func TestBytesInside(t *testing.T) {
	wait := func(ctx context.Context) {
		select {
		case <-time.After(time.Hour):
		case <-ctx.Done():
		}
	}
	source := func(g *Graph) Port[load] {
		return From(g, "source", func(_ context.Context, emit func(load) error) error {
			for i := range 100 {
				if err := emit(load(i + 1)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for name, c := range map[string]struct {
		wire func(p Port[load])
		want [2]int64 // in the source, in the stage
	}{
		"map: those being worked on": {func(p Port[load]) {
			Discard(Map(p, "map", 3, func(ctx context.Context, l load) (load, error) { wait(ctx); return l, nil }), "sink")
		}, [2]int64{4, 1 + 2 + 3}},
		"map: what waits for its turn has its new size": {func(p Port[load]) {
			Discard(Map(p, "map", 3, func(ctx context.Context, l load) (load, error) {
				if l == 1 {
					wait(ctx)
				}
				return 10 * l, nil
			}), "sink")
		}, [2]int64{4, 1 + 20 + 30}},
		"expand: the element and the one made of it": {func(p Port[load]) {
			q := Expand(p, "expand", func(_ context.Context, l load) iter.Seq2[load, error] {
				return func(yield func(load, error) bool) { _ = yield(100, nil) && yield(200, nil) }
			})
			Into(q, "sink", func(ctx context.Context, _ load) error { wait(ctx); return nil })
		}, [2]int64{2, 1 + 200}},
		"transform: what came less what went": {func(p Port[load]) {
			q := Transform(p, "hold", func(ctx context.Context, in iter.Seq[load]) iter.Seq2[load, error] {
				return func(yield func(load, error) bool) {
					for l := range in {
						switch l {
						case 3:
							yield(l, nil)
						case 6:
							wait(ctx)
							return
						}
					}
				}
			})
			Discard(q, "sink")
		}, [2]int64{7, 1 + 2 + 4 + 5 + 6}},
		"transform to another type: the last that came": {func(p Port[load]) {
			q := Transform(p, "hold", func(ctx context.Context, in iter.Seq[load]) iter.Seq2[int, error] {
				return func(yield func(int, error) bool) {
					for l := range in {
						if l == 6 {
							wait(ctx)
						}
					}
				}
			})
			Discard(q, "sink")
		}, [2]int64{7, 6}},
		"gather": {func(p Port[load]) {
			Into(gather(p, "gather", 4, func(load) error { return nil }), "sink", func(ctx context.Context, _ []load) error { wait(ctx); return nil })
		}, [2]int64{9, 5 + 6 + 7 + 8}},
		"into": {func(p Port[load]) {
			Into(p, "sink", func(ctx context.Context, l load) error {
				if l == 4 {
					wait(ctx)
				}
				return nil
			})
		}, [2]int64{5, 4}},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			g := New(ctx)
			c.wire(source(g))
			time.Sleep(time.Minute)
			synctest.Wait()
			stats := g.Stats()
			if got := [2]int64{stats[0].Bytes, stats[1].Bytes}; got != c.want {
				t.Errorf("%s: %v, want %v", name, got, c.want)
			}
			cancel()
			_ = g.Wait()
		})
	}
}

// Stats may be asked for at any time, from anywhere.
func TestStatsWhileRunning(t *testing.T) {
	g := New(t.Context())
	p := Map(count(g, 2000), "map", 3, func(_ context.Context, i int) (int, error) { return i, nil })
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for g.Stats()[0].State != Finished {
			for _, s := range g.Stats() {
				if s.Busy < 0 || s.BlockedIn < 0 || s.BlockedOut < 0 {
					t.Errorf("%+v", s)
				}
			}
		}
	}()
	Discard(p, "sink")
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	<-ended
}
