package queue

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

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
	if _, ok := b.next(in, 100*time.Millisecond); ok {
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

// 9: poison reaches the dead letters and frees the bound; asked for again, it is trained once.
func TestPoisonBecomesADeadLetter(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	q, tq := b.open(Worker), b.open(Trainer)
	var bad []Void
	in := b.trainer(tq, 1, func(o *IntakeOptions) { o.Bad = func(v Void) error { bad = append(bad, v); return nil } })
	s := ref("a", 0, 1, 2)
	for range 12 { // more than may be out at a time
		m, err := patch(s, 0, 2).encode(q.names)
		b.check(err)
		m.Data[0] ^= 1
		m.Header.Set(nats.MsgIdHdr, nats.NewInbox())
		b.raw(q, m)
	}
	junk := nats.NewMsg(q.names.patchSubject())
	junk.Data = []byte("junk")
	junk.Header.Set(nats.MsgIdHdr, "junk")
	b.raw(q, junk)
	b.send(q, s, 2, 1)
	b.check(q.PublishPatch(b.ctx, &Patch{Run: "t", Source: ref("b", 0, 1, 2), Void: "b: ends early"}))
	tag, ok := b.next(in, 10*time.Second)
	if !ok || tag.Tile != 1 {
		t.Fatalf("%v %v", tag, ok)
	}
	b.check(in.Durable(b.ctx, []volume.Tag{tag}))
	if _, err := in.Next(b.ctx); !errors.Is(err, io.EOF) {
		t.Fatalf("the epoch ends without what is void, but: %v", err)
	}
	letters, err := tq.Dead(b.ctx)
	b.check(err)
	if len(letters) != 13 || !strings.Contains(letters[0].Reason, "digest") {
		t.Fatalf("%d letters: %+v", len(letters), letters)
	}
	if n, of := in.Voids(0); n != 1 || of != 2 || len(bad) < 2 {
		t.Errorf("%d of %d scans are void; told of %v", n, of, bad)
	}
	in.Close()

	// Another trainer knows of them; the scan's second attempt is trained where the first one came to nothing.
	in = b.trainer(tq, 8, func(o *IntakeOptions) { o.Ledger = b.ledgerOf(in, nil) })
	b.check(tq.Requeue(b.ctx, letters[0].Seq))
	w, err := q.Work(1)
	b.check(err)
	defer w.Close()
	again, err := w.Next(b.ctx)
	b.check(err)
	if again.Attempt != 1 || again.Name != "a" {
		t.Fatalf("%+v", again)
	}
	b.send(q, *again, 2, 1, 0)
	tag, ok = b.next(in, 10*time.Second)
	if !ok || tag.Tile != 0 {
		t.Fatalf("%v %v", tag, ok)
	}
	if after, err := tq.Dead(b.ctx); err != nil || len(after) != 12 {
		t.Errorf("%d letters are left, %v", len(after), err)
	}
	if err := tq.Requeue(b.ctx, letters[0].Seq); err == nil {
		t.Error("a letter that is gone is requeued")
	}
	if err := tq.Requeue(b.ctx, letters[12].Seq); err == nil || !strings.Contains(err.Error(), "publish that again") {
		t.Errorf("junk is requeued: %v", err)
	}
}

// A scan that no worker ever finishes is given up.
func TestScanThatEndsItsWorkers(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) { o.Tries = 2 })
	q, tq := b.open(Publisher), b.open(Trainer)
	in := b.trainer(tq, 8)
	s := ref("a", 0, 1, 1)
	b.check(q.PublishScan(b.ctx, &s))
	ctx, cancel := context.WithTimeout(b.ctx, 20*time.Second)
	defer cancel()
	for i := range 3 {
		wq := b.open(Worker)
		w, err := wq.Work(1)
		b.check(err)
		if i == 2 {
			ctx, cancel = context.WithTimeout(b.ctx, time.Second)
			defer cancel()
		}
		got, err := w.Next(ctx)
		if i < 2 && (err != nil || got.Name != "a") || i == 2 && err == nil {
			t.Fatalf("worker %d: %v, %v", i, got, err)
		}
		w.Close()
	}
	if _, err := in.Next(b.ctx); !errors.Is(err, io.EOF) {
		t.Errorf("the trainer doesn't know: %v", err)
	}
}

// Workers that don't agree how scans are cut are found out.
func TestWorkersThatDontAgree(t *testing.T) {
	b := newBench(t)
	q, tq := b.open(Worker), b.open(Trainer)
	in := b.trainer(tq, 8)
	s := ref("a", 0, 1, 1)
	b.send(q, s, 4, 0)
	b.send(q, s, 5, 1)
	_, err := in.Next(b.ctx)
	if err == nil {
		_, err = in.Next(b.ctx)
	}
	if err == nil || !strings.Contains(err.Error(), "same options") {
		t.Errorf("%v", err)
	}
}

// 13: a run has one trainer.
func TestSecondTrainerIsRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	first := b.open(Trainer)
	b.check(first.Announce(b.ctx, nil))
	second := b.open(Trainer)
	if err := second.Announce(b.ctx, nil); !errors.Is(err, ErrTaken) {
		t.Errorf("%v", err)
	}
	second.Close()
	b.check(b.open(Worker).Announce(b.ctx, nil))
	first.Close()
	b.check(b.open(Trainer).Announce(b.ctx, nil))
}

// The bytes of scans go through the object store, whole or not at all.
func TestObjects(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) { o.Objects = 8 << 20 })
	tq := b.open(Trainer)
	b.check(tq.Ensure(b.ctx, bounds(8)))
	q := b.open(Publisher)
	path := filepath.Join(b.dir, "a.nii.gz")
	text := strings.Repeat("some bytes of a scan\n", 100000)
	b.check(os.WriteFile(path, []byte(text), 0o600))
	digest, n, err := Digest(b.ctx, path)
	b.check(err)
	for range 2 {
		b.check(q.Upload(b.ctx, path, digest))
	}
	s := &Scan{Name: "deep/a.nii.gz", Object: true, Digest: digest, Size: n}
	place := filepath.Join(b.dir, "work")
	for range 2 {
		got, err := q.Place(b.ctx, s, nil, place, nil)
		b.check(err)
		if copied, err := os.ReadFile(got); err != nil || string(copied) != text || !strings.HasSuffix(got, ".nii.gz") {
			t.Fatal(got, err)
		}
	}
	missing := *s
	missing.Digest = digestOf([]byte("nothing"))
	if _, err := q.Place(b.ctx, &missing, nil, place, nil); err == nil {
		t.Error("a missing object is found")
	}
	short := *s
	short.Size++
	b.check(os.RemoveAll(place))
	if _, err := q.Place(b.ctx, &short, nil, place, nil); err == nil {
		t.Error("an object of another size is taken")
	}
	if left, err := filepath.Glob(filepath.Join(place, "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	// 11: a publisher that ends inside Upload leaves chunks that no object names; one that is whole stays.
	_, err = q.js.Publish(b.ctx, "$O."+q.names.bucket()+".C.orphan", make([]byte, 1000))
	b.check(err)
	if n, err := q.Tidy(b.ctx, time.Hour); n != 0 || err != nil {
		t.Errorf("a chunk that may grow is removed: %d, %v", n, err)
	}
	if n, err := q.Tidy(b.ctx, 0); n != 1 || err != nil {
		t.Errorf("tidied %d, %v", n, err)
	}
	if err := q.Fetch(b.ctx, digest, s.Size, io.Discard); err != nil {
		t.Error(err)
	}
	// An object whose bytes were spoilt: the first chunk is gone.
	store, err := q.js.ObjectStore(b.ctx, q.names.bucket())
	b.check(err)
	info, err := store.GetInfo(b.ctx, strings.TrimPrefix(digest, digestPrefix))
	b.check(err)
	st, err := q.js.Stream(b.ctx, "OBJ_"+q.names.bucket())
	b.check(err)
	last, err := st.GetLastMsgForSubject(b.ctx, "$O."+q.names.bucket()+".C."+info.NUID)
	b.check(err)
	b.check(st.DeleteMsg(b.ctx, last.Sequence))
	ctx, cancel := context.WithTimeout(b.ctx, 3*time.Second)
	defer cancel()
	if err := q.Fetch(ctx, digest, s.Size, io.Discard); err == nil {
		t.Error("a truncated object is taken")
	}
	// No room: said, not tried for ever.
	big := filepath.Join(b.dir, "big.nii")
	b.check(os.WriteFile(big, make([]byte, 9<<20), 0o600))
	digest, _, err = Digest(b.ctx, big)
	b.check(err)
	if err := q.Upload(b.ctx, big, digest); err == nil || !strings.Contains(err.Error(), "queue.objects") {
		t.Errorf("%v", err)
	}
}

// References are followed below the roots only, and to the file that was published.
func TestPlaceBelowRoots(t *testing.T) {
	dir := t.TempDir()
	root, other := filepath.Join(dir, "data"), filepath.Join(dir, "other")
	for path, text := range map[string]string{filepath.Join(root, "p/a.nii"): "aaaa", filepath.Join(other, "b.nii"): "bbbb"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(other, "b.nii"), filepath.Join(root, "link.nii")); err != nil {
		t.Fatal(err)
	}
	q, known := &Queue{}, new(Digests)
	scan := func(name, path, text string) *Scan {
		return &Scan{Name: name, Path: path, Digest: digestOf([]byte(text)), Size: int64(len(text))}
	}
	for _, c := range []struct {
		s     *Scan
		roots []string
		words string // of the error; "" for none
	}{
		{scan("p/a.nii", filepath.Join(root, "p/a.nii"), "aaaa"), []string{root}, ""},
		{scan("p/a.nii", "/mnt/elsewhere/p/a.nii", "aaaa"), []string{other, root}, ""},
		{scan("p/a.nii", filepath.Join(root, "p/a.nii"), "aaab"), []string{root}, "isn't the file"},
		{scan("b.nii", filepath.Join(other, "b.nii"), "bbbb"), []string{root}, "outside"},
		{scan("b.nii", filepath.Join(root, "..", "other", "b.nii"), "bbbb"), []string{root}, "outside"},
		{scan("link.nii", filepath.Join(root, "link.nii"), "bbbb"), []string{root}, "outside"},
		{scan("../other/b.nii", "/no", "bbbb"), []string{root}, "outside"},
		{scan("c.nii", "/no", "c"), []string{root}, "no such file"},
		{scan("p/a.nii", filepath.Join(root, "p/a.nii"), "aaaa"), nil, "roots"},
	} {
		for range 2 {
			_, err := q.Place(context.Background(), c.s, c.roots, dir, known)
			if (err == nil) != (c.words == "") || err != nil && !strings.Contains(err.Error(), c.words) {
				t.Errorf("%s: %v (want %q)", c.s.Path, err, c.words)
			}
		}
	}
}

func TestVoidsSurviveATornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "void.jsonl")
	v, err := OpenVoids(path)
	if err != nil {
		t.Fatal(err)
	}
	one := Void{Epoch: 1, Scan: "a", Tile: -1, Attempt: 1, Reason: "r"}
	if err := v.add(one); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(text, `{"epoch":1,"sc`...), 0o600); err != nil {
		t.Fatal(err)
	}
	for n := 1; n < 3; n++ {
		if v, err = OpenVoids(path); err != nil || len(v.All()) != n {
			t.Fatal(v, err)
		}
		if err := v.add(one); err != nil {
			t.Fatal(err)
		}
	}
	if v.attempt(1, "a", 5) != 1 || v.attempt(0, "a", 5) != -1 {
		t.Error("attempt")
	}
}
