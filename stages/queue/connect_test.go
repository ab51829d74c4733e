package queue

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/flowrun/flowrun/stages/volume"
)

// 10: the link is cut in mid publish and between delivery and ack, again and again; every patch is trained once.
func TestLinkIsCut(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := newLink(b)
	tq := b.open(Trainer, through(l))
	in := b.trainer(tq, 8)
	q := b.open(Worker, through(l))
	const n = 40
	done := make(chan error, 1)
	go func() {
		for i := range n {
			if err := q.PublishPatch(b.ctx, patch(ref("a", 0, 1, 1), i, n)); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	seen := map[int]int{}
	for len(seen) < n {
		tag, ok := b.next(in, 20*time.Second)
		if !ok {
			t.Fatalf("%d of %d came; said:\n%s", len(seen), n, b.words())
		}
		seen[tag.Tile]++
		if len(seen)%8 == 3 {
			l.cut()
		}
		b.check(in.Durable(b.ctx, []volume.Tag{tag}))
	}
	b.check(<-done)
	for tile, times := range seen {
		if times != 1 {
			t.Errorf("tile %d: %d times", tile, times)
		}
	}
}

// 10: a link that swallows everything is noticed by its pings.
func TestBlackHoleIsNoticed(t *testing.T) {
	t.Parallel()
	if longest := pingEvery * (pingsOut + 1); longest > 20*time.Second {
		t.Errorf("noticed after %v (want at most 20 s)", longest)
	}
	b := newBench(t)
	l := newLink(b)
	q := b.open(Worker, through(l), func(c *Config) { c.ping = 300 * time.Millisecond })
	b.trainer(b.open(Trainer), 8)
	l.swallow(true)
	link := q.link()
	select {
	case <-link.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("not noticed")
	}
	l.swallow(false)
	l.cut()
	b.send(q, ref("a", 0, 1, 1), 1, 0)
}

// 17: a slow link makes nobody a slow consumer, and nothing comes twice.
func TestSlowLink(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) { o.AckWait = 1 })
	l := newLink(b)
	tq := b.open(Trainer, through(l))
	in := b.trainer(tq, 40)
	q := b.open(Worker)
	const n = 4
	big := func(i int) *Patch {
		p := patch(ref("a", 0, 1, 1), i, n)
		p.Size = [3]int{100, 100, 5}
		p.Samples = make([]int16, 50000)
		return p
	}
	b.o.Bytes = 0
	for i := range n {
		b.check(q.PublishPatch(b.ctx, big(i)))
	}
	l.mu.Lock()
	l.rate = 200_000 // half a second a patch
	l.mu.Unlock()
	for i := range n {
		tag, ok := b.next(in, 20*time.Second)
		if !ok {
			t.Fatalf("patch %d doesn't come; said:\n%s", i, b.words())
		}
		b.check(in.Durable(b.ctx, []volume.Tag{tag}))
	}
	if strings.Contains(b.words(), "slow") || strings.Contains(b.words(), "gone") {
		t.Errorf("said: %s", b.words())
	}
}

// 12: a store without room is an error with advice when the streams are made, and a wait with words when it fills up.
func TestStoreWithoutRoom(t *testing.T) {
	b := newBench(t, func(o *Options) { o.Server.Disk = 80 << 20; o.Bytes = 1 << 30 })
	err := b.open(Trainer).Ensure(b.ctx, bounds(8))
	if err == nil || !strings.Contains(err.Error(), "lower queue.bytes") {
		t.Errorf("%v", err)
	}
	if _, err := StartServer(Server{Disk: 1 << 60}, t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "server.disk") {
		t.Errorf("%v", err)
	}
	if err := (&Options{Bytes: 1000}).CheckBounds(bounds(8)); err == nil || !strings.Contains(err.Error(), "bytes: 1000 bytes") {
		t.Errorf("%v", err)
	}
}

// 14: servers that lack what is needed are refused by name.
func TestServersThatLackAFeature(t *testing.T) {
	start := func(change func(*server.Options)) string {
		o := &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(), MaxPayload: maxPayload, MaxPending: 2 * maxPayload}
		change(o)
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		if !s.ReadyForConnections(10 * time.Second) {
			t.Fatal("not ready")
		}
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		return s.ClientURL()
	}
	ctx := context.Background()
	for words, change := range map[string]func(*server.Options){
		"max_payload": func(o *server.Options) { o.MaxPayload = 1 << 20 },
		"JetStream":   func(o *server.Options) { o.JetStream = false },
	} {
		url := start(change)
		q, err := Open(ctx, Config{Options: Options{Name: "t", URL: url, Scans: 1, Workers: 1, AckWait: 2}}, Trainer)
		if err == nil {
			err = q.Ensure(ctx, bounds(1))
			q.Close()
		}
		if !errors.Is(err, ErrFeature) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", words, err)
		}
	}
	for version, want := range map[string]bool{"2.8.4": true, "2.9.0": false, "2.9.10": false, "2.15.2": false, "3.0.0-beta": false, "1.4.1": true} {
		if older(version, oldest) != want {
			t.Errorf("%s: older is %v", version, !want)
		}
	}
}

// 14: a server that says it is too old is refused with its version.
func TestOldServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprint(c, `INFO {"version":"2.8.4","headers":true,"jetstream":true,"max_payload":33554432}`+"\r\n") // the client goes when it likes
			go func() {
				for lines := bufio.NewScanner(c); lines.Scan(); {
					if lines.Text() == "PING" {
						_, _ = fmt.Fprint(c, "PONG\r\n")
					}
				}
				_ = c.Close()
			}()
		}
	}()
	q, err := Open(t.Context(), Config{Options: Options{Name: "t", URL: "nats://" + l.Addr().String(), AckWait: 2}}, Admin)
	if err == nil {
		q.Close()
	}
	if !errors.Is(err, ErrFeature) || !strings.Contains(err.Error(), "2.8.4 (want 2.9 or later)") {
		t.Errorf("%v", err)
	}
}

// A queue that nobody has made is said to be missing, with how one comes about.
func TestMissingQueue(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	q := b.open(Admin)
	_, status := q.Status(b.ctx)
	_, dead := q.Dead(b.ctx)
	for _, err := range []error{status, dead, q.Requeue(b.ctx, 1), q.Upload(b.ctx, "a.nii", NoDigest)} {
		if err == nil || !strings.Contains(err.Error(), "flowrun queue create") || strings.Contains(err.Error(), "code") {
			t.Errorf("%v", err)
		}
	}
}

// What an old server drops of a configuration is noticed.
func TestServersThatForget(t *testing.T) {
	q := &Queue{o: Options{Scans: 5, Workers: 3, AckWait: 60}, names: names{"t"}}
	for _, want := range q.streams(bounds(4)) {
		if sameStream(want, want) != nil {
			t.Errorf("%s differs from itself", want.Name)
		}
		for i, change := range []func(*jetstream.StreamConfig){
			func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy },
			func(c *jetstream.StreamConfig) { c.Discard = 1 - c.Discard },
			func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage },
			func(c *jetstream.StreamConfig) { c.MaxMsgSize = -1 },
			func(c *jetstream.StreamConfig) { c.Duplicates = 2 * time.Minute },
		} {
			got := want
			change(&got)
			if sameStream(got, want) == nil {
				t.Errorf("%s: change %d isn't noticed", want.Name, i)
			}
		}
	}
	want := q.trainConsumer(bounds(4))
	for i, change := range []func(*jetstream.ConsumerConfig){
		func(c *jetstream.ConsumerConfig) { c.MaxAckPending = 1000 },
		func(c *jetstream.ConsumerConfig) { c.MaxDeliver = 1 },
		func(c *jetstream.ConsumerConfig) { c.AckPolicy = jetstream.AckAllPolicy },
		func(c *jetstream.ConsumerConfig) { c.AckWait = time.Second },
	} {
		got := want
		change(&got)
		if sameConsumer(got, want) == nil {
			t.Errorf("change %d isn't noticed", i)
		}
	}
}

// accounts is a server's configuration with a user for each role and no more rights than docs/nats.md gives them.
func accounts(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/nats-server.conf")
	if err != nil {
		t.Fatal(err)
	}
	conf := string(text)
	for old, want := range map[string]string{"$PUBLISHER_PASSWORD": "geheim-p", "$WORKER_PASSWORD": "geheim-w", "$TRAINER_PASSWORD": "geheim-t", "$ADMIN_PASSWORD": "geheim-a", "ctpa": "t", "/var/lib/nats": filepath.Join(t.TempDir(), "store")} {
		conf = strings.ReplaceAll(conf, old, want)
	}
	path := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// login writes a context with a user's password and gives its path.
func (b *bench) login(user, password string) func(*Config) {
	b.Helper()
	path := filepath.Join(b.TempDir(), user+".json")
	b.check(os.WriteFile(path, fmt.Appendf(nil, `{"url": %q, "user": %q, "password": %q}`, b.server.Address(), user, password), 0o600))
	return func(c *Config) { c.URL, c.Context = "", path }
}

// 16 and the documented permissions: each role can do its work with them and nothing else; what isn't allowed ends it at
// once, and no password is in any word.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) { o.Server.Config, o.Objects = accounts(t), 8<<20 })
	admin := b.open(Admin, b.login("admin", "geheim-a"))
	b.check(admin.Ensure(b.ctx, bounds(8)))
	tq := b.open(Trainer, b.login("trainer", "geheim-t"))
	in := b.trainer(tq, 8)
	b.check(tq.Announce(b.ctx, in.Held))
	pq := b.open(Publisher, b.login("publisher", "geheim-p"))
	b.check(pq.Announce(b.ctx, nil))
	wq := b.open(Worker, b.login("worker", "geheim-w"))
	b.check(wq.Announce(b.ctx, nil))
	for _, name := range []string{"a", "b"} {
		s := ref(name, 0, 1, 2)
		b.check(pq.PublishScan(b.ctx, &s))
	}
	file := filepath.Join(b.dir, "a.nii")
	b.check(os.WriteFile(file, make([]byte, 3<<20), 0o600))
	digest, n, err := Digest(b.ctx, file)
	b.check(err)
	b.check(pq.Upload(b.ctx, file, digest))
	_, err = wq.Place(b.ctx, &Scan{Name: "a.nii", Object: true, Digest: digest, Size: n}, nil, filepath.Join(b.dir, "work"), nil)
	b.check(err)
	if _, err := pq.Tidy(b.ctx, time.Hour); err != nil {
		t.Error(err)
	}
	w, err := wq.Work(1)
	b.check(err)
	defer w.Close()
	for range 2 {
		s, err := w.Next(b.ctx)
		b.check(err)
		if s.Name == "b" {
			b.check(w.Fail(b.ctx, "b", 0, errors.New("no")))
			continue
		}
		v := &volume.Volume{Scan: &volume.Scan{ID: s.Name}, Dims: patchSize, Slope: 1, Window: [2]float64{-1, 1}}
		v.Own(&volume.Memory{Data: make([]int16, 64), Dims: patchSize}, nil)
		b.check(w.Publish(b.ctx, &volume.Patch{Volume: v, Tag: volume.Tag{Scan: "a", Tiles: 1, Size: patchSize}}))
	}
	tag, ok := b.next(in, 5*time.Second)
	if !ok {
		t.Fatal("no patch")
	}
	b.check(in.Durable(b.ctx, []volume.Tag{tag}))
	_, ok = b.next(in, 5*time.Second)
	if ok || !in.Whole() {
		t.Fatal("the epoch isn't whole")
	}
	if _, err := tq.Sweep(b.ctx); err != nil {
		t.Error(err)
	}
	here, err := admin.Here(b.ctx)
	if err != nil || len(here) != 3 {
		t.Errorf("%v, %v", here, err)
	}
	if err := errors.Join(tq.ctx.Err(), wq.ctx.Err(), pq.ctx.Err()); err != nil {
		t.Errorf("a role lacks something: %v", errors.Join(context.Cause(tq.ctx), context.Cause(wq.ctx), context.Cause(pq.ctx)))
	}

	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("a publisher of patches", pq.PublishPatch(ctx, patch(ref("a", 0, 1, 1), 0, 1)))
	refused("a worker that deletes", b.open(Worker, b.login("worker", "geheim-w")).Delete(ctx))
	refused("a trainer that publishes patches", b.open(Trainer, b.login("trainer", "geheim-t")).PublishPatch(ctx, patch(ref("a", 0, 1, 1), 0, 1)))
	_, err = Open(ctx, b.config(b.login("worker", "geheim-falsch")), Worker)
	refused("a wrong password", err)
	_, err = Open(ctx, b.config(), Worker)
	refused("no password", err)
	if ctx.Err() != nil {
		t.Error("refusals take too long")
	}
	if words := b.words() + fmt.Sprint(err, context.Cause(pq.ctx)); strings.Contains(words, "geheim") {
		t.Errorf("a password is told: %s", words)
	}
}

// 16: credentials that end while a flow runs end it.
func TestCredentialsThatEnd(t *testing.T) {
	t.Parallel()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := other.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	conf, file := filepath.Join(dir, "nats.conf"), filepath.Join(dir, "seed.nk")
	for path, text := range map[string]string{file: string(seed), conf: fmt.Sprintf("authorization { users = [ { nkey: %s } ] }", public)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b := newBench(t, func(o *Options) { o.Server.Config = conf })
	q := b.open(Trainer, func(c *Config) { c.NKey = file })
	in := b.trainer(q, 8)
	b.check(os.WriteFile(conf, fmt.Appendf(nil, "authorization { users = [ { nkey: %s }, { user: joe, password: geheim } ] }", stranger), 0o600))
	b.restart()
	ctx, cancel := context.WithTimeout(b.ctx, 15*time.Second)
	defer cancel()
	if _, err := in.Next(ctx); !errors.Is(err, ErrRefused) {
		t.Errorf("%v; said:\n%s", err, b.words())
	}
	if words := b.words(); strings.Contains(words, string(seed)) || strings.Contains(words, "geheim") {
		t.Errorf("a secret is told: %s", words)
	}
	if _, err := Open(ctx, b.config(func(c *Config) { c.NKey = conf }), Trainer); err == nil || strings.Contains(err.Error(), "geheim") {
		t.Errorf("%v", err)
	}
}

func TestContexts(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, "nats", "context", name+".json")
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("good", `{"url": "nats://gpu:4222", "user": "joe", "password": "geheim"}`)
	url, list, err := (&Options{Context: "good"}).credentials()
	if err != nil || url != "nats://gpu:4222" || len(list) != 1 {
		t.Errorf("%s, %d, %v", url, len(list), err)
	}
	if url, _, err = (&Options{Context: "good", URL: "nats://other:1"}).credentials(); err != nil || url != "nats://other:1" {
		t.Errorf("%s, %v", url, err)
	}
	for name, text := range map[string]string{"password": `{"url": "nats://joe:geheim@gpu:4222"}`, "torn": `{"password": "geheim`, "nowhere": `{"password": "geheim"}`,
		"nsc": `{"url": "nats://gpu", "nsc": "nsc://geheim"}`, "creds": `{"url": "nats://gpu", "creds": "/no/such.creds"}`} {
		write(name, text)
		if _, _, err := (&Options{Context: name}).credentials(); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"missing", "../up", filepath.Join(dir, "no.json")} {
		if _, _, err := (&Options{Context: name}).credentials(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// An embedded server that doesn't listen can be reached from inside only.
func TestEmbeddedServerKeepsToItself(t *testing.T) {
	s, err := StartServer(Server{Disk: 256 << 20}, t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	if s.Address() != "" {
		t.Errorf("listens at %s", s.Address())
	}
	q, err := Open(context.Background(), Config{Options: Options{Name: "t", Scans: 1, Workers: 1, AckWait: 2}, Embedded: s}, Trainer)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	for range 2 { // and from inside again when it was started again
		if err := q.Ensure(context.Background(), bounds(1)); err != nil {
			t.Error(err)
		}
		if err := s.restart(); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.PublishPatch(context.Background(), patch(ref("a", 0, 1, 1), 0, 1)); err != nil {
		t.Error(err)
	}
}
