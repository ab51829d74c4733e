package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/queue"
)

// The test's own binary is a NATS server where these name its store and address, so that the server can be killed, too.
const (
	serverDir     = "FLOWRUN_TEST_NATS_DIR"
	serverAddress = "FLOWRUN_TEST_NATS_ADDRESS"
	serverConfig  = "FLOWRUN_TEST_NATS_CONFIG"
)

func serveNATS(dir, address, config string) {
	s, err := queue.StartServer(queue.Server{Listen: address, Disk: 512 << 20, Config: config}, dir, nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	over := make(chan os.Signal, 2)
	signal.Notify(over, syscall.SIGTERM)
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the test ends
		over <- syscall.SIGTERM
	}()
	<-over
	s.Stop()
}

// Roles of a run whose edges lie on a queue.
const (
	queueTrainer = `run: {dir: run, seed: 7, workers: 1}
queue: {name: t, ack_wait: 2, tries: 1000}
model: {hidden: 4, downsample: [2, 2, 2], embedding: 4, codes: 16, groups: 4}
flow:
  - subscribe:  {patch: [16, 16, 8], bad_share: 0.5}
  - shuffle:    {patches: 5}
  - batch:      {size: 3}
  - train:      {device: cpu, epochs: 2, lr: 3e-3, warmup: 2, schedule: constant}
  - checkpoint: {every: 4, keep: 2}
`
	queueWorker = `run: {dir: work, seed: 7, workers: 1}
queue: {name: t, ack_wait: 2, tries: 1000}
model: {hidden: 4, downsample: [2, 2, 2], embedding: 4, codes: 16, groups: 4}
flow:
  - subscribe:  {roots: [scans]}
  - read:       {}
  - tile:       {mode: grid, patch: [16, 16, 8], stride: [12, 12, 8]}
  - augment:    {flip: [x, y], shift_hu: 20}
  - publish:    {}
`
	queuePublisher = `run: {dir: publish}
queue: {name: t}
flow:
  - scans:      {from: [scans], epochs: 2}
  - publish:    {}
`
)

// parts are the processes of a run over NATS.
type parts struct {
	*place
	address string
	config  string // of the server; may be empty
	server  *exec.Cmd
	command []string // of a server that isn't this binary
	all     map[string]*process
}

// roles are the parts beside the server, and how each is started.
var roles = map[string][]string{
	"trainer":   {"trainer.yaml"},
	"worker":    {"worker.yaml"},
	"worker-2":  {"worker.yaml", "run.dir=work-2"},
	"publisher": {"publisher.yaml"},
}

func newParts(t *testing.T) *parts {
	t.Helper()
	p := &parts{place: newPlace(t), all: map[string]*process{}}
	p.write("trainer.yaml", queueTrainer)
	p.write("worker.yaml", queueWorker)
	p.write("publisher.yaml", queuePublisher)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	p.check(err)
	p.address = l.Addr().String()
	p.check(l.Close())
	t.Cleanup(func() {
		for _, r := range p.all {
			r.signal(os.Kill)
			r.wait()
		}
		p.stopServer(os.Kill)
	})
	return p
}

func (p *parts) startServer() {
	p.Helper()
	self, err := os.Executable()
	p.check(err)
	command := []string{self}
	if p.command != nil {
		command = p.command
	}
	c := exec.Command(command[0], command[1:]...)
	c.Env = append(os.Environ(), serverDir+"="+p.path("nats"), serverAddress+"="+p.address, serverConfig+"="+p.config)
	in, err := c.StdinPipe()
	p.check(err)
	p.check(c.Start())
	p.Cleanup(func() { _ = in.Close() })
	p.server = c
}

func (p *parts) stopServer(s os.Signal) {
	if p.server == nil {
		return
	}
	_ = p.server.Process.Signal(s)
	_ = p.server.Wait() // killed
	p.server = nil
}

func (p *parts) begin(role string, words ...string) *process {
	p.Helper()
	r := p.start(append(append(append([]string{}, roles[role]...), "queue.url=nats://"+p.address), words...)...)
	p.all[role] = r
	return r
}

// perEpoch is how many patches an epoch has.
func (p *parts) perEpoch() int {
	p.Helper()
	p.must("train.yaml", "run.dir=count", "tile.mode=grid", "train.max_steps=1", "train.validate.scans=[]", "train.validate.share=0")
	return int(p.events("count", "start")[0]["patches_per_epoch"].(float64))
}

// exact checks that the run is done, and that its last checkpoint was trained on each patch of each epoch once: the ledger
// says that none is missing, the number of steps that none came twice.
func (p *parts) exact(perEpoch, epochs int) {
	p.Helper()
	snap, err := checkpoint.Load(p.path("run", "checkpoints", checkpoint.LastName))
	p.check(err)
	l, err := queue.ParseLedger([]byte(snap.Meta["ledger"]), "t")
	p.check(err)
	for epoch := range epochs {
		if !l.Whole(epoch) {
			p.Errorf("epoch %d isn't whole: %s", epoch, snap.Meta["ledger"])
		}
	}
	if want := (perEpoch*epochs + 2) / 3; snap.Step != want {
		p.Errorf("%d steps (want %d for %d patches): some were trained twice", snap.Step, want, perEpoch*epochs)
	}
}

// settled checks that nothing is left on the server.
func (p *parts) settled() {
	p.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	q, err := queue.Open(ctx, queue.Config{Options: queue.Options{Name: "t", URL: "nats://" + p.address, AckWait: 2, Scans: 1, Workers: 1}}, queue.Admin)
	p.check(err)
	defer q.Close()
	s, err := q.Status(ctx)
	p.check(err)
	if s.Patches.Messages > 0 || s.Scans.Messages > 0 || s.Dead.Messages > 0 {
		p.Errorf("left on the server: %+v", s)
	}
}

// Publisher, two workers, trainer and server are killed at random moments until the run is done: it loses nothing and
// trains nothing twice.
func TestQueueKilledAtRandomMoments(t *testing.T) {
	t.Parallel()
	for round := range max(1, *rounds/2) {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			p := newParts(t)
			n := p.perEpoch()
			random := rand.New(rand.NewPCG(*seed, uint64(round)))
			p.startServer()
			for role := range roles {
				p.begin(role)
			}
			names := []string{"trainer", "trainer", "worker", "worker-2", "publisher", "server"}
			kills := map[string]int{}
			for range 10 {
				time.Sleep(time.Duration(100+random.IntN(600)) * time.Millisecond)
				name := names[random.IntN(len(names))]
				if name == "server" {
					p.stopServer(os.Kill)
					p.startServer()
					kills[name]++
					continue
				}
				if p.all[name].kill() && name == "trainer" {
					break // done
				}
				kills[name]++
				p.begin(name)
			}
			p.ends("trainer")
			p.exact(n, 2)
			t.Logf("%v killed", kills)
		})
	}
}

// ends waits for a part to end well; one that ended because the server was away for long is started again.
func (p *parts) ends(role string) {
	p.Helper()
	for range 3 {
		o := p.all[role].wait()
		if o.code == 0 {
			return
		}
		if o.code != 1 || !strings.Contains(o.stderr, "is the server running there?") {
			p.Fatalf("%s: exit %d: %s", role, o.code, strings.Join(o.said(), "\n"))
		}
		p.begin(role)
	}
	p.Fatalf("%s doesn't end", role)
}

// Each part takes a SIGTERM well, and what it had in hand isn't lost.
func TestQueuePartsAreStopped(t *testing.T) {
	t.Parallel()
	p := newParts(t)
	n := p.perEpoch()
	p.startServer()
	one := "queue.scans=1" // so that the publisher waits for a worker
	trainer := p.begin("trainer", one)
	stopped := func(role string) {
		t.Helper()
		r := p.all[role]
		r.signal(syscall.SIGTERM)
		if o := r.wait(); o.code != 75 || len(o.said()) != 1 {
			t.Errorf("%s: exit %d: %s", role, o.code, o.said())
		}
	}
	p.begin("publisher")
	published := func() int { return len(p.lines("publish", "published.jsonl")) }
	p.await(func() bool { return published() > 0 })
	stopped("publisher")
	if n := published(); n != 1 {
		t.Errorf("%d scans were published where one may wait", n)
	}
	p.begin("publisher")
	p.begin("worker")
	trainer.until(func() bool { return p.reached("run") >= 6 })
	stopped("trainer")
	stopped("worker")

	p.begin("trainer", one)
	p.begin("worker-2", "subscribe.idle=4")
	p.await(func() bool { return p.reached("run") >= 9 })
	p.check(p.server.Process.Signal(syscall.SIGTERM))
	if err := p.server.Wait(); err != nil {
		t.Errorf("the server: %v", err)
	}
	p.startServer()
	p.ends("trainer")
	p.exact(n, 2)
	p.ends("worker-2")
	p.ends("publisher")
	p.settled()
}

// A queue whose bound lies below the checkpoint's interval asks for checkpoints, and doesn't stand still. Poison scans end
// as dead letters; publish, queue and dead are the verbs around it.
func TestQueueVerbs(t *testing.T) {
	t.Parallel()
	p := newParts(t)
	n := p.perEpoch()
	p.startServer()
	good := p.text("scans", "phantom-0003.nii.gz")
	p.spoil("phantom-0003.nii.gz")
	trainer := p.begin("trainer", "subscribe.held=12", "checkpoint.every=100", "train.epochs=1", "queue.bytes=2MiB")
	if !trainer.until(func() bool { return len(p.events("run", "start")) > 0 }) {
		t.Fatal(trainer.wait().said())
	}
	at := []string{"--queue", "nats://" + p.address, "--run", "t"}
	p.must(append([]string{"publish", "scans"}, at...)...)
	worker := p.begin("worker")
	p.await(func() bool { return strings.Contains(p.must("dead", at[1], "--run", "t").stdout, "phantom-0003") })
	p.await(func() bool { return p.reached("run") >= n/3/2 })
	if out := p.must("queue", at[1], "--run", "t").stdout; !strings.Contains(out, "trainer ") && !strings.Contains(out, "worker ") || !strings.Contains(out, "dead letters  1") {
		t.Errorf("queue says: %s", out)
	}
	if len(p.events("run", "checkpoint")) == 0 {
		t.Error("no checkpoint was asked for")
	}
	p.ends("trainer")
	if e := p.events("run", "void"); len(e) != 1 || !strings.Contains(e[0]["scan"].(string), "phantom-0003") {
		t.Errorf("void: %v", e)
	}

	// Mended and asked for again, for another epoch's sake nothing comes of it; but the worker takes it.
	p.write("scans/phantom-0003.nii.gz", good)
	p.must("dead", at[1], "--run", "t", "--drop", "1")
	if out := p.must("dead", at[1], "--run", "t").stdout; out != "no dead letters\n" {
		t.Errorf("dead says: %s", out)
	}
	worker.signal(syscall.SIGTERM)
	worker.wait()
	p.must("queue", "delete", at[1], "--run", "t")
	p.refused(1, []string{"queue", at[1], "--run", "t"}, "stream FR_t_SCAN")
	p.refused(2, []string{"queue", "delete", "worker.yaml"}, "queue.server.listen")
	p.refused(2, []string{"dead", at[1]}, "--run")
}

// await waits for a condition.
func (p *place) await(ok func() bool) {
	p.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			p.Fatal("never")
		}
	}
}

// The whole flow against Debian's server, where that is installed: an older one than the embedded one.
func TestQueueOnDebiansServer(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("nats-server")
	if err != nil {
		t.Skip("nats-server isn't installed")
	}
	p := newParts(t)
	n := p.perEpoch()
	host, port, err := net.SplitHostPort(p.address)
	p.check(err)
	p.write("nats.conf", fmt.Sprintf("listen: \"%s:%s\"\nmax_payload: 33554432\nmax_pending: 134217728\njetstream { store_dir: %q, max_file: 1G, max_mem: 16M }\n",
		host, port, filepath.Join(p.dir, "nats")))
	p.command = []string{program, "-c", p.path("nats.conf")}
	p.startServer()
	for role := range roles {
		p.begin(role)
	}
	p.await(func() bool { return p.reached("run") >= 5 })
	p.stopServer(os.Kill)
	p.startServer()
	p.ends("trainer")
	p.exact(n, 2)
}

// A folder is watched, and what appears there is published as bytes, for workers that can't read it. The run ends at its
// last step: the queue has no end.
func TestQueueOfAWatchedFolder(t *testing.T) {
	t.Parallel()
	p := newParts(t)
	p.startServer()
	p.check(os.Mkdir(p.path("incoming"), 0o777))
	trainer := p.begin("trainer", "train.max_steps=6", "queue.objects=16MiB", "subscribe.held_out=scans/phantom-0002.nii.gz")
	if !trainer.until(func() bool { return len(p.events("run", "start")) > 0 }) {
		t.Fatal(trainer.wait().said())
	}
	publisher := p.start("publish", "--watch", "incoming", "--bytes", "--queue", "nats://"+p.address, "--run", "t")
	p.all["publisher"] = publisher
	worker := p.begin("worker", "subscribe.roots=[]")
	for _, name := range []string{"phantom-0001.nii.gz", plain} {
		p.write("half", p.text("scans", name))
		p.check(os.Rename(p.path("half"), p.path("incoming", name)))
	}
	if o := trainer.wait(); o.code != 0 {
		t.Fatalf("exit %d: %s", o.code, o.said())
	}
	if _, v := p.steps("run"); len(v) == 0 {
		t.Error("nothing was validated")
	}
	for _, r := range []*process{publisher, worker} {
		r.signal(syscall.SIGTERM)
		if o := r.wait(); o.code != 75 {
			t.Errorf("exit %d: %s", o.code, o.said())
		}
	}
	if left, err := filepath.Glob(p.path("work", "scans", "*")); err != nil || len(left) > 0 {
		t.Errorf("left in the worker's folder: %v", left)
	}
	if n := len(p.lines("runs/publish-t", "published.jsonl")); n != 2 {
		t.Errorf("%d scans were published", n)
	}
}
