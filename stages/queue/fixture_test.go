package queue

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/flowrun/flowrun/stages/volume"
)

// bench is a server, and the queues that are open on it.
type bench struct {
	testing.TB
	ctx    context.Context
	dir    string
	o      Options
	server *Embedded

	mu   sync.Mutex
	said []string
}

// newBench starts a server that listens, so that it can be stopped and started at one place.
func newBench(t testing.TB, change ...func(*Options)) *bench {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	b := &bench{TB: t, ctx: ctx, dir: t.TempDir(),
		o: Options{Name: "t", Scans: 64, Workers: 16, Tries: 3, AckWait: 2, Server: Server{Listen: "127.0.0.1:0", Disk: 256 << 20}}}
	for _, f := range change {
		f(&b.o)
	}
	b.start()
	t.Cleanup(func() { cancel(); b.server.Stop() })
	return b
}

func (b *bench) check(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bench) start() {
	b.Helper()
	var err error
	b.server, err = StartServer(b.o.Server, filepath.Join(b.dir, "store"), b.hear)
	b.check(err)
	b.o.Server.Listen = strings.TrimPrefix(b.server.Address(), "nats://")
}

// restart ends the server and starts it at the same place.
func (b *bench) restart() {
	b.Helper()
	b.server.Stop()
	b.start()
}

func (b *bench) config(change ...func(*Config)) Config {
	o := b.o
	o.URL, o.Server = b.server.Address(), Server{}
	c := Config{Options: o, Log: b.hear}
	for _, f := range change {
		f(&c)
	}
	return c
}

func (b *bench) hear(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.said = append(b.said, e.Text)
}

func (b *bench) words() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.said, "\n")
}

func (b *bench) open(role string, change ...func(*Config)) *Queue {
	b.Helper()
	q, err := Open(b.ctx, b.config(change...), role)
	b.check(err)
	b.Cleanup(q.Close)
	return q
}

// patchSize is that of the tests' patches.
var patchSize = [3]int{8, 4, 2}

func bounds(held int) Bounds { return Bounds{Held: held, Patch: patchSize} }

// trainer opens an intake as a trainer does.
func (b *bench) trainer(q *Queue, held int, change ...func(*IntakeOptions)) *Intake {
	b.Helper()
	b.check(q.Ensure(b.ctx, bounds(held)))
	v, err := OpenVoids(filepath.Join(b.dir, "void.jsonl"))
	b.check(err)
	o := IntakeOptions{Voids: v, Check: func(*Patch) error { return nil }}
	for _, f := range change {
		f(&o)
	}
	in, err := q.Intake(o)
	b.check(err)
	b.Cleanup(in.Close)
	return in
}

// digestOf is the digest of b as scans have it.
func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return digestPrefix + hex.EncodeToString(sum[:])
}

func ref(name string, epoch, epochs, scans int) Scan {
	return Scan{Name: name, Epoch: epoch, Epochs: epochs, Scans: scans, Path: "/data/" + name, Digest: digestOf([]byte(name)), Size: int64(len(name))}
}

// patch is tile i of n of a scan.
func patch(s Scan, i, n int) *Patch {
	p := &Patch{Run: "t", Tile: i, Tiles: n, Size: patchSize, Window: [2]float64{-1000, 1000}, Slope: 1, Source: s,
		Ops: []volume.Op{{Flip: [3]bool{true, false, false}, Scale: 1.01, Shift: -3, Key: 1<<63 + uint64(i)}}}
	p.Samples = make([]int16, patchSize[0]*patchSize[1]*patchSize[2])
	for k := range p.Samples {
		p.Samples[k] = int16(k*31 + i*7 - 500)
	}
	return p
}

func tag(p *Patch) volume.Tag {
	return volume.Tag{Scan: p.Source.Name, Epoch: p.Source.Epoch, Tile: p.Tile, Tiles: p.Tiles}
}

// next is the next patch's tag, or the empty tag where none comes within d.
func (b *bench) next(in *Intake, d time.Duration) (volume.Tag, bool) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, d)
	defer cancel()
	p, err := in.Next(ctx)
	if err != nil {
		if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
		return volume.Tag{}, false
	}
	return tag(p), true
}

// eventually waits for a condition.
func (b *bench) eventually(what string, ok func() bool) {
	b.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("never: %s; said:\n%s", what, b.words())
		}
	}
}

// stored is how many patches the stream holds.
func (b *bench) stored(q *Queue) uint64 {
	b.Helper()
	s, err := q.Status(b.ctx)
	b.check(err)
	return s.Patches.Messages
}

// raw publishes a message as it is.
func (b *bench) raw(q *Queue, m *nats.Msg) {
	b.Helper()
	b.check(q.publish(b.ctx, m))
}

// link is a proxy that can be cut, or let nothing through.
type link struct {
	net.Listener
	to    string
	mu    sync.Mutex
	conns []net.Conn
	hole  bool
	rate  int // bytes a second; 0: no limit
}

func newLink(b *bench) *link {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	b.check(err)
	p := &link{Listener: l, to: strings.TrimPrefix(b.server.Address(), "nats://")}
	go p.serve()
	b.Cleanup(func() { _ = l.Close(); p.cut() })
	return p
}

func (l *link) url() string { return "nats://" + l.Addr().String() }

func (l *link) serve() {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("tcp", l.to)
		if err != nil {
			_ = c.Close()
			continue
		}
		l.mu.Lock()
		l.conns = append(l.conns, c, s)
		l.mu.Unlock()
		go l.pass(c, s)
		go l.pass(s, c)
	}
}

func (l *link) pass(from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			_ = to.Close()
			return
		}
		l.mu.Lock()
		hole, rate := l.hole, l.rate
		l.mu.Unlock()
		if hole {
			continue
		}
		if rate > 0 {
			time.Sleep(time.Duration(n) * time.Second / time.Duration(rate))
		}
		if _, err := to.Write(buf[:n]); err != nil {
			_ = from.Close()
			return
		}
	}
}

// cut ends every connection of now.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
}

func (l *link) swallow(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hole = on
}

func through(l *link) func(*Config) { return func(c *Config) { c.URL = l.url() } }

// ledgerOf parses what a checkpoint would hold.
func (b *bench) ledgerOf(in *Intake, tags []volume.Tag) *Ledger {
	b.Helper()
	text, err := in.Ledger(tags)
	b.check(err)
	l, err := ParseLedger([]byte(text), "t")
	b.check(err)
	return l
}
