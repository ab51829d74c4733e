package queue

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/flowrun/flowrun/stages/volume"
)

// From publisher over workers to the trainer: every patch once, every message gone at the end.
func TestWholeWay(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	tq := b.open(Trainer)
	in := b.trainer(tq, 8)
	b.check(tq.Announce(b.ctx, in.Held))

	const scans, epochs, n = 3, 2, 5
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() {
		q := b.open(Publisher)
		for e := range epochs {
			for _, name := range []string{"a", "b", "c"} {
				s := ref(name, e, epochs, scans)
				if err := q.PublishScan(b.ctx, &s); err != nil {
					t.Error(err)
				}
			}
		}
	})
	ctx, stop := context.WithCancel(b.ctx)
	defer stop()
	for range 2 {
		group.Go(func() {
			w, err := b.open(Worker).Work(1)
			if err != nil {
				t.Error(err)
				return
			}
			defer w.Close()
			for {
				s, err := w.Next(ctx)
				if err != nil {
					return
				}
				if s.Name == "b" {
					err = w.Fail(b.ctx, s.Name, s.Epoch, errors.New("b.nii: isn't an image"))
				}
				for i := range n {
					if s.Name == "b" {
						break
					}
					v := &volume.Volume{Scan: &volume.Scan{ID: s.Name}, Epoch: s.Epoch, Dims: patchSize, Slope: 1, Window: [2]float64{-1, 1}}
					v.Own(&volume.Memory{Data: patch(*s, i, n).Samples, Dims: patchSize}, nil)
					p := &volume.Patch{Volume: v, Tag: volume.Tag{Scan: s.Name, Epoch: s.Epoch, Tile: i, Tiles: n, Size: patchSize}}
					if err == nil {
						err = w.Publish(b.ctx, p)
					}
					p.Release()
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	got := map[volume.Tag]int{}
	var open []volume.Tag
	for {
		p, err := in.Next(b.ctx)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			break
		}
		e := p.Element(nil)
		if rows, err := e.Volume.Rows(1, 0, patchSize[1], nil); err != nil || !slices.Equal(rows, patch(p.Source, p.Tile, n).Samples[patchSize[0]*patchSize[1]:]) {
			t.Fatalf("%s: other samples, %v", e.Tag, err)
		}
		got[tag(p)]++
		if open = append(open, tag(p)); len(open) == 4 {
			b.check(in.Durable(b.ctx, open))
			open = nil
		}
	}
	b.check(in.Durable(b.ctx, open))
	if len(got) != 2*epochs*n {
		t.Errorf("%d patches (want %d)", len(got), 2*epochs*n)
	}
	for tag, times := range got {
		if times != 1 {
			t.Errorf("%s: %d times", tag, times)
		}
	}
	b.eventually("the streams are empty", func() bool {
		s, err := tq.Status(b.ctx)
		b.check(err)
		return s.Scans.Messages == 0 && s.Patches.Messages == 0 && s.Dead.Messages == epochs
	})
	list, err := tq.Dead(b.ctx)
	if err != nil || len(list) != epochs || list[0].Reason != "b.nii: isn't an image" || list[0].Source.Name != "b" {
		t.Errorf("%+v, %v", list, err)
	}
	var said strings.Builder
	s, err := tq.Status(b.ctx)
	b.check(err)
	b.check(s.Write(&said, s))
	for _, want := range []string{"dead letters  2", "trainer "} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("%q isn't in\n%s", want, said.String())
		}
	}
}

// send publishes tiles of a scan.
func (b *bench) send(q *Queue, s Scan, n int, tiles ...int) {
	b.Helper()
	for _, i := range tiles {
		b.check(q.PublishPatch(b.ctx, patch(s, i, n)))
	}
}

// A trainer that ends without a checkpoint gets everything again; one with a checkpoint what isn't in it, and never what is.
func TestOnlyACheckpointSettles(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	q := b.open(Worker)
	tq := b.open(Trainer)
	in := b.trainer(tq, 8)
	s := ref("a", 0, 1, 1)
	b.send(q, s, 6, 0, 1, 2, 3)
	var given []volume.Tag
	for range 4 {
		tag, ok := b.next(in, 5*time.Second)
		if !ok {
			t.Fatal("no patch")
		}
		given = append(given, tag)
	}
	other := s
	other.Attempt = 1 // the same patches, asked for once more while they are being trained
	b.send(q, other, 6, 1, 2)
	if _, ok := b.next(in, 300*time.Millisecond); ok {
		t.Fatal("a patch twice")
	}
	l := b.ledgerOf(in, given[:2])
	b.check(in.Durable(b.ctx, given[:2]))
	in.Close()
	b.eventually("two are left", func() bool { return b.stored(q) == 2 })

	b.send(q, s, 6, 0, 4, 5) // 0 is known by its identity
	in = b.trainer(tq, 8, func(o *IntakeOptions) { o.Ledger = l })
	var rest []int
	for len(rest) < 4 {
		tag, ok := b.next(in, 5*time.Second)
		if !ok {
			t.Fatalf("only %v", rest)
		}
		rest = append(rest, tag.Tile)
		b.check(in.Durable(b.ctx, []volume.Tag{tag}))
	}
	slices.Sort(rest)
	if !slices.Equal(rest, []int{2, 3, 4, 5}) {
		t.Errorf("given again: %v", rest)
	}
	if _, err := in.Next(b.ctx); !errors.Is(err, io.EOF) {
		t.Errorf("the epoch is whole, but %v", err)
	}
}

// 5: the server forgets identities of acknowledged messages when it restarts; the ledger doesn't.
func TestPublishedAgainAfterAckAndRestart(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	q, tq := b.open(Worker), b.open(Trainer)
	in := b.trainer(tq, 8)
	s := ref("a", 0, 1, 1)
	b.send(q, s, 3, 0, 1)
	for range 2 {
		tag, ok := b.next(in, 5*time.Second)
		if !ok {
			t.Fatal("no patch")
		}
		b.check(in.Durable(b.ctx, []volume.Tag{tag}))
	}
	b.restart()
	b.send(q, s, 3, 0, 1, 2)
	tag, ok := b.next(in, 10*time.Second)
	if !ok || tag.Tile != 2 {
		t.Fatalf("%v, %v", tag, ok)
	}
	b.check(in.Durable(b.ctx, []volume.Tag{tag}))
	b.eventually("nothing is left", func() bool { return b.stored(q) == 0 })
}

// A run that goes back to an older checkpoint asks for what a later one had, and only that is trained again.
func TestGoingBackAsksAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	q, tq := b.open(Worker), b.open(Trainer)
	in := b.trainer(tq, 8)
	s, other := ref("a", 0, 1, 2), ref("b", 0, 1, 2)
	b.send(q, s, 3, 0, 1, 2)
	b.send(q, other, 1, 0)
	var older *Ledger
	for i := range 4 {
		tag, ok := b.next(in, 5*time.Second)
		if !ok {
			t.Fatal("no patch")
		}
		b.check(in.Durable(b.ctx, []volume.Tag{tag}))
		if i == 0 {
			older = b.ledgerOf(in, nil)
		}
	}
	spent := b.ledgerOf(in, nil)
	if lost := spent.lost(older); len(lost) != 2 || len(older.lost(spent)) != 0 {
		t.Fatalf("lost: %+v", lost)
	}
	in.Close()
	in = b.trainer(tq, 8, func(o *IntakeOptions) { o.Ledger, o.Spent = older, spent })
	w, err := q.Work(1)
	b.check(err)
	defer w.Close()
	for range 2 {
		again, err := w.Next(b.ctx)
		b.check(err)
		if again.Attempt != 1 {
			t.Fatalf("%+v", again)
		}
		for i := range map[string]int{"a": 3, "b": 1}[again.Name] {
			b.send(q, *again, map[string]int{"a": 3, "b": 1}[again.Name], i)
		}
	}
	for range 3 {
		tag, ok := b.next(in, 5*time.Second)
		if !ok || tag.Scan == "a" && older.Has(ID{Epoch: 0, Scan: Key("a"), Tile: tag.Tile}) {
			t.Fatalf("%v, %v", tag, ok)
		}
		b.check(in.Durable(b.ctx, []volume.Tag{tag}))
	}
	if _, err := in.Next(b.ctx); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
}

// 3: the server goes away between delivery and ack. The trainer neither hangs nor trains twice, and the message leaves in the end.
func TestAckUnknown(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	q, tq := b.open(Worker), b.open(Trainer)
	in := b.trainer(tq, 8)
	b.send(q, ref("a", 0, 1, 1), 4, 0, 1)
	one, _ := b.next(in, 5*time.Second)
	two, _ := b.next(in, 5*time.Second)
	b.server.Stop()
	ctx, cancel := context.WithTimeout(b.ctx, 15*time.Second)
	defer cancel()
	b.check(in.Durable(ctx, []volume.Tag{one, two})) // returns, unconfirmed
	if ctx.Err() != nil {
		t.Fatal("Durable hung")
	}
	b.start()
	b.send(q, ref("a", 0, 1, 1), 4, 2)
	tag, ok := b.next(in, 20*time.Second)
	if !ok || tag.Tile != 2 {
		t.Fatalf("%v %v", tag, ok)
	}
	b.eventually("the acked ones have left", func() bool {
		_, _ = b.next(in, 50*time.Millisecond)
		return b.stored(q) == 1
	})
	if !strings.Contains(b.words(), "weren't confirmed") {
		t.Errorf("said: %s", b.words())
	}
}

// 4: sweeping takes what was acknowledged, and nothing that wasn't.
func TestSweepTakesNothingUnacked(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	q, tq := b.open(Worker), b.open(Trainer)
	in := b.trainer(tq, 8)
	b.send(q, ref("a", 0, 1, 1), 6, 0, 1, 2, 3, 4)
	var tags []volume.Tag
	for range 4 {
		tag, _ := b.next(in, 5*time.Second)
		tags = append(tags, tag)
	}
	b.check(in.Durable(b.ctx, []volume.Tag{tags[0], tags[2]}))
	b.eventually("acked", func() bool { return b.stored(q) == 3 })
	if n, err := tq.Sweep(b.ctx); n != 0 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if b.stored(q) != 3 {
		t.Errorf("%d are left (want 3)", b.stored(q))
	}
	// What the server kept: messages below the floor of a consumer that was made anew behind them.
	in.Close()
	b.check(tq.js.DeleteConsumer(b.ctx, tq.names.patchStream(), trainName))
	b.check(tq.Ensure(b.ctx, bounds(8)))
	in = b.trainer(tq, 8, func(o *IntakeOptions) { o.Ledger = b.ledgerOf(in, nil) })
	left := map[int]bool{}
	for range 3 {
		tag, ok := b.next(in, 5*time.Second)
		if !ok {
			t.Fatal("an unacked patch is lost")
		}
		left[tag.Tile] = true
	}
	if left[0] || left[2] || len(left) != 3 {
		t.Errorf("given again: %v", left)
	}
}

// What a killed server can leave: acknowledged messages that it still stores. A stream that keeps them shows the same.
func TestSweepTakesWhatIsKept(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	tq, q := b.open(Trainer), b.open(Worker)
	keeps := tq.streams(bounds(8))[2]
	keeps.Retention = jetstream.LimitsPolicy
	_, err := tq.js.CreateStream(b.ctx, keeps)
	b.check(err)
	_, err = tq.js.CreateConsumer(b.ctx, keeps.Name, tq.trainConsumer(bounds(8)))
	b.check(err)
	v, err := OpenVoids(filepath.Join(b.dir, "void.jsonl"))
	b.check(err)
	in, err := tq.Intake(IntakeOptions{Voids: v, Check: func(*Patch) error { return nil }})
	b.check(err)
	defer in.Close()
	b.send(q, ref("a", 0, 1, 1), 9, 0, 1, 2, 3, 4)
	var tags []volume.Tag
	for range 4 {
		tag, _ := b.next(in, 5*time.Second)
		tags = append(tags, tag)
	}
	in.swept = time.Now() // not by itself
	b.check(in.Durable(b.ctx, []volume.Tag{tags[0], tags[1], tags[3]}))
	s, err := tq.js.Stream(b.ctx, keeps.Name)
	b.check(err)
	for want, swept := range []int{2, 0} {
		if n, err := tq.Sweep(b.ctx); n != swept || err != nil {
			t.Errorf("sweep %d took %d (want %d), %v", want, n, swept, err)
		}
	}
	info, err := s.Info(b.ctx)
	b.check(err)
	if info.State.Msgs != 3 || info.State.FirstSeq != 3 {
		t.Errorf("%d are left, from %d (want 3 from 3: above the first that isn't acknowledged all stays)", info.State.Msgs, info.State.FirstSeq)
	}
}

// 6: a full stream holds publishers back; they go on when there is room, and stop when told to.
func TestFullStreamHoldsPublishersBack(t *testing.T) {
	t.Parallel()
	const held = 2
	b := newBench(t)
	q, tq := b.open(Worker), b.open(Trainer)
	in := b.trainer(tq, held)
	limit := int(bounds(held).Least())
	s := ref("a", 0, 1, 1)
	big := func(i int) *Patch { // a patch that takes about a quarter of the stream
		p := patch(s, i, 20)
		p.Size = [3]int{limit / 8, 1, 1}
		p.Samples = make([]int16, limit/8)
		return p
	}
	sent := make(chan int, 20)
	ctx, stop := context.WithCancel(b.ctx)
	defer stop()
	over := make(chan error, 1)
	go func() {
		for i := range 20 {
			if err := q.PublishPatch(ctx, big(i)); err != nil {
				over <- err
				return
			}
			sent <- i
		}
	}()
	b.eventually("the publisher waits", func() bool { return q.Waiting() != "" })
	before := len(sent)
	if before > 4 || !strings.Contains(q.Waiting(), "full") {
		t.Errorf("%d patches of a quarter of the stream fit; %q", before, q.Waiting())
	}
	for range 3 {
		tag, ok := b.next(in, 5*time.Second)
		if !ok {
			t.Fatal("no patch")
		}
		b.check(in.Durable(b.ctx, []volume.Tag{tag}))
	}
	b.eventually("it goes on", func() bool { return len(sent) >= before+2 })
	b.eventually("it waits again", func() bool { return q.Waiting() != "" })
	stop()
	select {
	case err := <-over:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("a waiting publisher can't be stopped")
	}
	status, err := tq.Status(b.ctx)
	b.check(err)
	if status.Patches.Bytes > uint64(limit) {
		t.Errorf("%d bytes stored (want at most %d)", status.Patches.Bytes, limit)
	}
}

// 7: what is too large never fits, so it isn't tried again.
func TestOversizeIsFatal(t *testing.T) {
	b := newBench(t)
	q, tq := b.open(Worker), b.open(Trainer)
	b.trainer(tq, 2)
	p := patch(ref("a", 0, 1, 1), 0, 1)
	p.Size = [3]int{1 << 12, 1 << 12, 1}
	p.Samples = make([]int16, 1<<24)
	if err := q.PublishPatch(b.ctx, p); err == nil || !strings.Contains(err.Error(), "choose a smaller patch") {
		t.Errorf("%v", err)
	}
	for text, want := range map[string]bool{"maximum bytes exceeded": true, "maximum messages exceeded": true, "message size exceeds maximum allowed": false} {
		if got := retryable(&jetstream.APIError{Code: 503, ErrorCode: codeStoreFailed, Description: text}); got != want {
			t.Errorf("%s: tried again: %v", text, got)
		}
	}
	if CheckPatch([3]int{256, 256, 256}) == nil || CheckPatch([3]int{256, 256, 128}) != nil {
		t.Error("CheckPatch")
	}
	s := ref(strings.Repeat("x", 70000), 0, 1, 1)
	if err := q.PublishScan(b.ctx, &s); err == nil {
		t.Error("a scan's message of 70 kB is taken")
	}
	m := nats.NewMsg(q.names.scanSubject()) // larger than the stream takes: the server says so with the code of a full stream
	m.Data = make([]byte, maxScanBytes+1)
	m.Header.Set(nats.MsgIdHdr, "x")
	if err := q.publish(b.ctx, m); err == nil || b.ctx.Err() != nil {
		t.Errorf("%v", err)
	}
}

// 8: work that takes longer than ack_wait isn't given to anybody else.
func TestStepLongerThanAckWait(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) { o.AckWait = 1 })
	q, tq := b.open(Worker), b.open(Trainer)
	in := b.trainer(tq, 8)
	b.send(q, ref("a", 0, 1, 1), 4, 0, 1, 2)
	tag, _ := b.next(in, 5*time.Second)
	time.Sleep(2500 * time.Millisecond)
	other := b.open(Trainer)
	c, err := other.consume(other.names.patchStream(), trainName, 4)
	b.check(err)
	defer c.close()
	ctx, cancel := context.WithTimeout(b.ctx, time.Second)
	defer cancel()
	if d, err := c.receive(ctx); err == nil {
		t.Errorf("%s was given out again, delivery %d", d.once, d.tries)
	}
	b.check(in.Durable(b.ctx, []volume.Tag{tag}))
}
