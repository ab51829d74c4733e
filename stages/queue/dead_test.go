package queue

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/flowrun/flowrun/stages/volume"
)

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

// What a worker hands back comes again, to itself too.
func TestHandedBackScansComeAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	q, tq := b.open(Publisher), b.open(Trainer)
	b.trainer(tq, 8)
	for _, name := range []string{"a", "b", "c"} {
		s := ref(name, 0, 1, 3)
		b.check(q.PublishScan(b.ctx, &s))
	}
	w, err := b.open(Worker).Work(1)
	b.check(err)
	defer w.Close()
	_, err = w.Next(b.ctx)
	b.check(err)
	b.eventually("one waits behind it", func() bool { return len(w.c.out) == 1 })
	w.HandBack()
	seen := map[string]bool{}
	for len(seen) < 3 {
		s, err := w.Next(b.ctx)
		b.check(err)
		if seen[s.Name] {
			t.Errorf("%s comes twice", s.Name)
		}
		seen[s.Name] = true
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
