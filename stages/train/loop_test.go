package train_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/gpu/optim"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

func TestLoopEndings(t *testing.T) {
	for _, c := range []struct {
		name string
		loop train.Loop
		n    int // batches there are
		stop int // after this step; 0: never
		want []shot
	}{
		{name: "the data end", n: 3, want: []shot{{3, "end", false}}},
		{name: "no data", n: 0, want: nil},
		{name: "every", loop: train.Loop{Every: 2}, n: 5, want: []shot{{2, "every", false}, {4, "every", false}, {5, "end", false}}},
		{name: "every at the data's end", loop: train.Loop{Every: 2}, n: 4, want: []shot{{2, "every", false}, {4, "every", false}}},
		{name: "validation", loop: train.Loop{EveryVal: 2, Validate: measured}, n: 5,
			want: []shot{{2, "validate", true}, {4, "validate", true}, {5, "end", true}}},
		{name: "validation at the data's end: not twice", loop: train.Loop{EveryVal: 2, Validate: measured}, n: 4,
			want: []shot{{2, "validate", true}, {4, "validate", true}}},
		{name: "every and validation fall together", loop: train.Loop{Every: 2, EveryVal: 4, Validate: measured}, n: 5,
			want: []shot{{2, "every", false}, {4, "every", true}, {5, "end", true}}},
		{name: "every at the data's end, not measured yet", loop: train.Loop{Every: 2, EveryVal: 3, Validate: measured}, n: 4,
			want: []shot{{2, "every", false}, {3, "validate", true}, {4, "every", false}, {4, "end", true}}},
		{name: "max steps", loop: train.Loop{MaxSteps: 3, Every: 3, EveryVal: 3, Validate: measured}, n: 9, want: []shot{{3, "end", true}}},
		{name: "the schedule's last step", loop: train.Loop{Schedule: optim.Schedule{Steps: 3}, Every: 2}, n: 9,
			want: []shot{{2, "every", false}, {3, "end", false}}},
		{name: "max steps before the schedule's last", loop: train.Loop{Schedule: optim.Schedule{Steps: 5}, MaxSteps: 4}, n: 9,
			want: []shot{{4, "end", false}}},
		{name: "stop", loop: train.Loop{Every: 5, EveryVal: 5, Validate: measured}, n: 9, stop: 3, want: []shot{{3, "stop", false}}},
		{name: "stop at a snapshot", loop: train.Loop{Every: 3}, n: 9, stop: 3, want: []shot{{3, "every", false}}},
		{name: "stop at the last step", loop: train.Loop{MaxSteps: 3, EveryVal: 9, Validate: measured}, n: 9, stop: 3, want: []shot{{3, "end", true}}},
		{name: "stop on the last batch", loop: train.Loop{EveryVal: 9, Validate: measured}, n: 3, stop: 3, want: []shot{{3, "stop", false}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, f, stop := &c.loop, newFeed(c.n), make(chan struct{})
			l.Model, l.Stopping = &model{}, stop
			l.Report = func(s train.Step) {
				if s.Step == c.stop {
					close(stop)
				}
			}
			got, err := run(t.Context(), l, f.from(0))
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("got %v, %v\nwant %v", got, err, c.want)
			}
			if err := f.balanced(0); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLoopSnapshot looks at all that a snapshot holds.
func TestLoopSnapshot(t *testing.T) {
	m, f := &model{}, newFeed(4)
	l := &train.Loop{Model: m, Every: 3, Meta: func(l *train.Loop) (map[string]string, error) {
		return map[string]string{"step": fmt.Sprint(l.Step)}, nil
	}}
	var got []volume.Snapshot
	for s, err := range l.Run(t.Context(), f.from(0)) {
		if err != nil {
			t.Fatal(err)
		}
		s.Release()
		s.Free = nil
		got = append(got, *s)
	}
	state := func(n float32) []volume.Array {
		return []volume.Array{{Name: "steps", Shape: []int{1}, Data: []float32{n}}}
	}
	tags := func(from, to int) (list []volume.Tag) {
		for i := from; i < to; i++ {
			list = append(list, tag(i))
		}
		return list
	}
	want := []volume.Snapshot{
		{Step: 3, Cursor: volume.Cursor{Epoch: 1, Seq: 1}, Arrays: state(3), Meta: map[string]string{"step": "3"}, Reason: "every", Tags: tags(0, 6)},
		{Step: 4, Cursor: volume.Cursor{Epoch: 1, Seq: 2}, Arrays: state(4), Meta: map[string]string{"step": "4"}, Reason: "end", Tags: tags(6, 7)},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestLoopReport(t *testing.T) {
	m, f := &model{}, newFeed(3)
	l := &train.Loop{Model: m, Schedule: optim.Schedule{LR: 1, Warmup: 4, Steps: 3}}
	var got []train.Step
	l.Report = func(s train.Step) { s.Seconds = 0; got = append(got, s) }
	if _, err := run(t.Context(), l, f.from(0)); err != nil {
		t.Fatal(err)
	}
	want := []train.Step{
		{Step: 1, Total: 3, Cursor: volume.Cursor{Seq: 2}, Patches: 2, Voxels: 16, LR: 0.25, Stats: vqgan.Stats{L1: 1}},
		{Step: 2, Total: 3, Cursor: volume.Cursor{Seq: 4}, Patches: 2, Voxels: 16, LR: 0.5, Stats: vqgan.Stats{L1: 2}},
		{Step: 3, Total: 3, Cursor: volume.Cursor{Seq: 5}, Patches: 1, Voxels: 8, LR: 0.75, Stats: vqgan.Stats{L1: 3}},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if want := []float64{0.25, 0.5, 0.75}; !slices.Equal(m.lrs, want) {
		t.Errorf("learning rates %v, want %v", m.lrs, want)
	}
}

// TestLoopAtItsEnd resumes runs that have nothing left to do: nothing is taken, measured or emitted.
func TestLoopAtItsEnd(t *testing.T) {
	stopped := make(chan struct{})
	close(stopped)
	for name, l := range map[string]*train.Loop{
		"schedule":  {Step: 7, Schedule: optim.Schedule{Steps: 7}},
		"max steps": {Step: 9, MaxSteps: 7},
		"stopped":   {Step: 7, Stopping: stopped},
		"no data":   {Step: 7},
	} {
		f := newFeed(3)
		if name == "no data" {
			f = newFeed(0)
		}
		l.Model, l.Every, l.EveryVal = &model{}, 1, 1
		l.Validate = func(context.Context, int) (map[string]float64, error) {
			t.Errorf("%s: validated", name)
			return nil, nil
		}
		if got, err := run(t.Context(), l, f.from(0)); err != nil || got != nil || f.taken != 0 {
			t.Errorf("%s: got %v, %v after %d batches", name, got, err, f.taken)
		}
	}
}

// TestLoopProperty holds the loop against what its parameters say, over all endings and wherever it is resumed.
func TestLoopProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		upTo := func(name string, n int) int { return rapid.IntRange(0, n).Draw(t, name) }
		n, skip := upTo("batches", 12), 0
		skip = upTo("resumed at", n)
		every, everyVal, limit, steps := upTo("every", 4), upTo("every validation", 4), upTo("max steps", 14), upTo("steps", 14)
		stop, broken := upTo("stop after", 14), upTo("break at snapshot", 5)
		f, m, stopping := newFeed(n), &model{steps: skip}, make(chan struct{})
		l := &train.Loop{Model: m, Step: skip, Every: every, EveryVal: everyVal, MaxSteps: limit, Schedule: optim.Schedule{Steps: steps}, Stopping: stopping}
		if everyVal > 0 {
			l.Validate = measured
		}
		l.Report = func(s train.Step) {
			if s.Step == stop {
				close(stopping)
			}
		}

		last, reason := n, "end"
		for _, at := range []int{limit, steps} {
			if at > 0 {
				last = min(last, max(at, skip))
			}
		}
		done := func(s int) bool { return limit > 0 && s >= limit || steps > 0 && s >= steps }
		if stop > skip && stop <= last && !done(stop) {
			last, reason = stop, "stop"
		}
		var want []shot
		saved, validated := skip, skip
		for s := skip + 1; s <= last && !done(s); s++ {
			val, save := everyVal > 0 && s%everyVal == 0, every > 0 && s%every == 0
			switch {
			case save:
				want, saved = append(want, shot{s, "every", val}), s
			case val:
				want, saved = append(want, shot{s, "validate", val}), s
			}
			if val {
				validated = s
			}
		}
		measure := reason == "end" && everyVal > 0 && validated != last
		if last > saved || last > skip && measure {
			want = append(want, shot{last, reason, measure})
		}

		var got []shot
		tags := 0
		for s, err := range l.Run(t.Context(), f.from(skip)) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, shot{s.Step, s.Reason, s.Metrics != nil})
			if s.Arrays[0].Data[0] != float32(s.Step) {
				t.Fatalf("state of step %v in the snapshot of %d", s.Arrays[0].Data[0], s.Step)
			}
			tags += len(s.Tags)
			if end := tag(min(2*s.Step, 2*n-1) - 1); s.Cursor != (volume.Cursor{Epoch: end.Epoch, Seq: end.Seq + 1}) {
				t.Fatalf("cursor %v at step %d", s.Cursor, s.Step)
			}
			if want := min(2*s.Step, 2*n-1) - 2*skip; every > 0 && tags != want {
				t.Fatalf("%d tags until step %d, want %d", tags, s.Step, want)
			}
			s.Release()
			if len(got) == broken {
				want = want[:min(broken, len(want))]
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got  %v\nwant %v", got, want)
		}
		if err := f.balanced(skip); err != nil {
			t.Fatal(err)
		}
	})
}

// TestLoopFailures has each thing fail that can: the error names the step and what it was about, and no batch is lost.
func TestLoopFailures(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		name string
		loop train.Loop
		m    model
		want string
		step int // steps taken
	}{
		{"step", train.Loop{}, model{step: func(s int) error {
			if s == 3 {
				return boom
			}
			return nil
		}}, "step 3 on a epoch 0 tile 4/5 at [0 0 0] size [2 2 2]: boom", 2},
		{"validate", train.Loop{EveryVal: 2, Validate: func(context.Context, int) (map[string]float64, error) { return nil, boom }},
			model{}, "validate: boom", 2},
		{"state", train.Loop{Every: 2}, model{state: boom}, "state at step 2: boom", 2},
		{"meta", train.Loop{Every: 2, Meta: func(*train.Loop) (map[string]string, error) { return nil, boom }}, model{}, "boom", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, l := newFeed(5), &c.loop
			l.Model = &c.m
			got, err := run(t.Context(), l, f.from(0))
			if !errors.Is(err, boom) || err.Error() != c.want || got != nil || l.Step != c.step {
				t.Errorf("got %v, %v at step %d, want %s", got, err, l.Step, c.want)
			}
			if err := f.balanced(0); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLoopOneSnapshot has a consumer that is slow to write: the next snapshot waits until the one before is released.
func TestLoopOneSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const writing = 10 * time.Second
		var inFlight, most int
		var at []time.Duration
		begin := time.Now()
		l := &train.Loop{Model: &model{step: func(int) error { time.Sleep(time.Second); return nil }}, Every: 1}
		for s, err := range l.Run(t.Context(), newFeed(3).from(0)) {
			if err != nil {
				t.Fatal(err)
			}
			at = append(at, time.Since(begin))
			inFlight++
			most = max(most, inFlight)
			go func() {
				time.Sleep(writing)
				inFlight--
				s.Release()
			}()
		}
		// The step behind a snapshot is taken while that one is written.
		if want := []time.Duration{time.Second, time.Second + writing, time.Second + 2*writing}; !slices.Equal(at, want) || most != 1 {
			t.Errorf("snapshots at %v, want %v; %d in flight", at, want, most)
		}
		time.Sleep(writing)
	})
}

// TestLoopWaitEnds cancels a loop that waits for a snapshot to be written.
func TestLoopWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("disk full")
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		f := newFeed(5)
		l := &train.Loop{Model: &model{}, Every: 1}
		var last error
		for s, err := range l.Run(ctx, f.from(0)) {
			if last = err; s != nil { // never released
				time.AfterFunc(time.Minute, func() { cancel(boom) })
			}
		}
		if !errors.Is(last, boom) || l.Step != 2 {
			t.Errorf("got %v at step %d", last, l.Step)
		}
		if err := f.balanced(0); err != nil {
			t.Error(err)
		}
	})
}

// TestLoopHardStop ends the batches as pipe does at a hard stop: nothing is measured, copied or emitted any more.
func TestLoopHardStop(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f := newFeed(9)
	l := &train.Loop{Model: &model{state: errors.New("copied")}, Every: 5, EveryVal: 5,
		Validate: func(context.Context, int) (map[string]float64, error) { t.Error("validated"); return nil, nil }}
	got, err := run(ctx, l, func(yield func(*volume.Batch) bool) {
		for b := range f.from(0) {
			if !yield(b) || f.taken == 3 {
				cancel()
				return
			}
		}
	})
	if err != nil || got != nil || l.Step != 3 {
		t.Errorf("got %v, %v at step %d", got, err, l.Step)
	}
}

// TestLoopHours turns hours into steps by the pace of steps 3 to 12, a second each, and of the validation behind them, 20
// seconds for 10 steps. The first two steps take a minute more, and one validation falls among the twelve.
func TestLoopHours(t *testing.T) {
	for _, c := range []struct {
		name  string
		first int
		hours time.Duration
		known int // Schedule.Steps already
		max   int
		total int
	}{
		{name: "new", hours: 1000 * time.Second, total: 12 + (1000-172)/3},
		{name: "resumed before the pace was known", first: 5, hours: 1000 * time.Second, total: 17 + (1000-172)/3},
		{name: "resumed behind it", first: 40, hours: 1000 * time.Second, known: 102, total: 102},
		{name: "too short for one step more", hours: time.Second, total: 13},
		{name: "max steps", hours: 1000 * time.Second, max: 30, total: 30},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &train.Loop{Hours: c.hours, MaxSteps: c.max, Step: c.first, EveryVal: 10, Schedule: optim.Schedule{LR: 1, Cosine: true, Steps: c.known}}
				m := &model{steps: c.first, step: func(s int) error {
					if s <= c.first+2 {
						time.Sleep(time.Minute) // the first steps are slow
					}
					time.Sleep(time.Second)
					return nil
				}}
				l.Model = m
				l.Validate = func(ctx context.Context, step int) (map[string]float64, error) {
					time.Sleep(20 * time.Second)
					return measured(ctx, step)
				}
				var totals []int
				l.Report = func(s train.Step) { totals = append(totals, s.Total) }
				f := newFeed(1000)
				if _, err := run(t.Context(), l, f.from(c.first)); err != nil {
					t.Fatal(err)
				}
				if l.Step != c.total {
					t.Errorf("ended at step %d, want %d", l.Step, c.total)
				}
				if unknown := slices.Index(totals, totals[len(totals)-1]); c.known == 0 && unknown != 12 || c.known > 0 && unknown != 0 {
					t.Errorf("the total was known after %d steps: %v", unknown, totals[:unknown+1])
				}
				if end := m.lrs[len(m.lrs)-1]; c.max == 0 && end > 1e-9 {
					t.Errorf("the learning rate ends at %g", end)
				}
				if err := f.balanced(c.first); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestLoopStopsInAValidation: a stop cuts a validation short; the snapshot comes without measures, and a loop that goes
// on from it validates first.
func TestLoopStopsInAValidation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		l := &train.Loop{Model: &model{}, EveryVal: 2, Stopping: stop, Schedule: optim.Schedule{LR: 1, Steps: 9}}
		l.Validate = func(ctx context.Context, _ int) (map[string]float64, error) {
			close(stop)
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
		shots, err := run(t.Context(), l, newFeed(9).from(0))
		if want := []shot{{2, "stop", false}}; err != nil || !slices.Equal(shots, want) || !l.Due {
			t.Fatalf("got %v, %v, due %v (want %v, due)", shots, err, l.Due, want)
		}
		l = &train.Loop{Model: &model{steps: 2}, Step: 2, Due: true, EveryVal: 20, Validate: measured, Schedule: optim.Schedule{LR: 1, Steps: 3}}
		shots, err = run(t.Context(), l, newFeed(9).from(2))
		if want := []shot{{2, "validate", true}, {3, "end", true}}; err != nil || !slices.Equal(shots, want) || l.Due {
			t.Fatalf("got %v, %v, due %v (want %v)", shots, err, l.Due, want)
		}
	})
}

// A snapshot that somebody waits for comes at the next step boundary, and counts what was trained since the one before.
func TestWantedSnapshots(t *testing.T) {
	f := newFeed(9)
	l := &train.Loop{Model: new(model), Every: 100, Stopping: make(chan struct{}), Schedule: optim.Schedule{LR: 1},
		Wanted: func(trained int) string {
			if trained > 4 {
				return "queue"
			}
			return ""
		}}
	var steps, tags []int
	var why []string
	for s, err := range l.Run(context.Background(), f.from(0)) {
		if err != nil {
			t.Fatal(err)
		}
		steps, tags, why = append(steps, s.Step), append(tags, len(s.Tags)), append(why, s.Reason)
		s.Release()
	}
	if !slices.Equal(steps, []int{3, 6, 9}) || !slices.Equal(tags, []int{6, 6, 5}) || !slices.Equal(why, []string{"queue", "queue", "queue"}) {
		t.Errorf("steps %v of %v patches, %v", steps, tags, why)
	}
}

// The next batch is fed while a step is in flight, which is finished first where there is no batch yet, or where something is known to follow from
// it: with that the data may wait for a snapshot.
func TestOneStepInFlight(t *testing.T) {
	for _, c := range []struct {
		name string
		loop train.Loop
		idle bool // there is never a batch yet
		want string
	}{
		{"plain", train.Loop{}, false, "feed 1 launch 1 feed 1 finish 1 launch 2 feed 2 finish 2 launch 3 finish 3"},
		{"slow data", train.Loop{}, true, "feed 1 launch 1 finish 1 feed 2 launch 2 finish 2 feed 3 launch 3 finish 3"},
		{"every", train.Loop{Every: 2}, false, "feed 1 launch 1 feed 1 finish 1 launch 2 finish 2 snapshot feed 3 launch 3 finish 3 snapshot"},
		{"validation", train.Loop{EveryVal: 2, Validate: measured}, false,
			"feed 1 launch 1 feed 1 finish 1 launch 2 finish 2 snapshot feed 3 launch 3 finish 3 snapshot"},
		{"the last step", train.Loop{MaxSteps: 2}, false, "feed 1 launch 1 feed 1 finish 1 launch 2 finish 2 snapshot"},
		{"wanted", train.Loop{Every: 100, Wanted: func(trained int) string {
			if trained >= 2 {
				return "queue"
			}
			return ""
		}}, false, "feed 1 launch 1 finish 1 snapshot feed 2 launch 2 finish 2 snapshot feed 3 launch 3 finish 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, m := newFeed(3), &model{}
			c.loop.Model = m
			in := func(yield func(*volume.Batch) bool) {
				for b := range f.from(0) {
					if !yield(b) || c.idle && !yield(nil) {
						return
					}
				}
			}
			for s, err := range c.loop.Run(t.Context(), in) {
				if err != nil {
					t.Fatal(err)
				}
				m.calls = append(m.calls, "snapshot")
				s.Release()
			}
			if got := strings.Join(m.calls, " "); !strings.HasPrefix(got, c.want) {
				t.Errorf("%s\nwant %s", got, c.want)
			}
			if err := f.balanced(0); err != nil {
				t.Error(err)
			}
		})
	}
}
