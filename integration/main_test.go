// Package integration tests flowrun as a user meets it: the real binary on small phantoms, killed, starved and misled.
// The import arrows of the whole module are tested here too.
package integration

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// For long runs: go test ./integration -run Killed -rounds 200 -seed 7.
var (
	rounds = flag.Int("rounds", 4, "runs that are killed at random moments until they are done")
	seed   = flag.Uint64("seed", 1, "of the random moments")
)

// built is the folder of the binary and of what all tests share.
var built string

// gateFor is the environment variable by which the test's program becomes another, behind a gate.
const gateFor = "FLOWRUN_TEST_GATE_FOR"

func TestMain(m *testing.M) {
	if program := os.Getenv(gateFor); program != "" {
		passGate(program)
	}
	if dir := os.Getenv(serverDir); dir != "" {
		serveNATS(dir, os.Getenv(serverAddress), os.Getenv(serverConfig))
		return
	}
	flag.Parse()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "flowrun-integration-")
		if err != nil {
			panic(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		built = dir
		build := exec.Command("go", "build", "-o", flowrun(), "../cmd/flowrun")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s%v\n", out, err)
			return 1
		}
		return m.Run()
	}())
}

func flowrun() string { return filepath.Join(built, "flowrun") }

// phantoms makes the scans that tests share: five of one size, one larger, one smaller than a patch.
var phantoms = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(built, "scans")
	for _, words := range []string{"--count 5 --size 32,24,16 --gz", "--count 1 --seed 6 --size 42,28,16", "--count 1 --seed 7 --size 14,20,18 --gz"} {
		c := exec.Command(flowrun(), append([]string{"phantom", dir}, strings.Fields(words)...)...)
		if out, err := c.CombinedOutput(); err != nil {
			return "", fmt.Errorf("phantom %s: %w: %s", words, err, out)
		}
	}
	return dir, nil
})

// place is a folder to run flowrun in, with scans/ and train.yaml.
type place struct {
	*testing.T
	dir string
	bin string   // of flowrun; "" is that without a CUDA engine
	env []string // beside the test's own
}

// tiny is a run of a second or two.
const tiny = `run: {dir: run, seed: 7, workers: 1}
model: {hidden: 4, downsample: [2, 2, 2], embedding: 4, codes: 16, groups: 4}
flow:
  - read:       {scans: [scans], bad_share: 0.5}
  - tile:       {mode: random, patch: [16, 16, 8], stride: [12, 12, 8]}
  - augment:    {flip: [x, y], shift_hu: 20}
  - shuffle:    {volumes: 2}
  - batch:      {size: 3}
  - train:      {device: cpu, epochs: 2, lr: 3e-3, warmup: 2, validate: {scans: ["*0002*"], every: 10}}
  - checkpoint: {every: 4, keep: 2}
`

func newPlace(t *testing.T) *place {
	t.Helper()
	scans, err := phantoms()
	if err != nil {
		t.Fatal(err)
	}
	p := &place{T: t, dir: t.TempDir()}
	p.check(os.CopyFS(p.path("scans"), os.DirFS(scans)))
	p.write("train.yaml", tiny)
	return p
}

func (p *place) path(name ...string) string {
	return filepath.Join(append([]string{p.dir}, name...)...)
}

func (p *place) check(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

func (p *place) write(name, text string) {
	p.Helper()
	p.check(os.WriteFile(p.path(name), []byte(text), 0o666))
}

// get asks a run's server.
func (p *place) get(url string) (code int, body string) {
	p.Helper()
	answer, err := http.Get(url)
	p.check(err)
	b, err := io.ReadAll(answer.Body)
	p.check(err)
	p.check(answer.Body.Close())
	return answer.StatusCode, string(b)
}

func (p *place) text(name ...string) string {
	p.Helper()
	b, err := os.ReadFile(p.path(name...))
	p.check(err)
	return string(b)
}

// outcome is how a command ended.
type outcome struct {
	code           int // -1: by a signal
	stdout, stderr string
}

// said are the lines of stderr that aren't JSON: what flowrun says to people.
func (o outcome) said() []string {
	var said []string
	for line := range strings.Lines(o.stderr) {
		if !strings.HasPrefix(line, "{") {
			said = append(said, strings.TrimSuffix(line, "\n"))
		}
	}
	return said
}

// process is a running flowrun.
type process struct {
	*place
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	over           chan struct{}
}

// limit ends a command that hangs; none takes nearly as long.
const limit = 3 * time.Minute

func (p *place) start(args ...string) *process {
	p.Helper()
	return p.exec(cmp.Or(p.bin, flowrun()), args...)
}

func (p *place) exec(name string, args ...string) *process {
	p.Helper()
	return p.execFor(limit, name, args...)
}

// execFor ends a command after so long.
func (p *place) execFor(limit time.Duration, name string, args ...string) *process {
	p.Helper()
	r := p.command(limit, name, args...)
	p.check(r.cmd.Start())
	r.reap()
	return r
}

// command prepares one that is to end after so long. Whoever starts it reaps it.
func (p *place) command(limit time.Duration, name string, args ...string) *process {
	p.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	p.Cleanup(cancel)
	r := &process{place: p, cmd: exec.CommandContext(ctx, name, args...), over: make(chan struct{})}
	r.cmd.Dir, r.cmd.Stdout, r.cmd.Stderr = p.dir, &r.stdout, &r.stderr
	if p.env != nil {
		r.cmd.Env = append(os.Environ(), p.env...)
	}
	return r
}

func (r *process) reap() {
	go func() {
		defer close(r.over)
		_ = r.cmd.Wait() // the outcome is in ProcessState
	}()
}

func (r *process) wait() outcome {
	<-r.over
	return outcome{r.cmd.ProcessState.ExitCode(), r.stdout.String(), r.stderr.String()}
}

// signal sends one; a process that is over doesn't mind.
func (r *process) signal(s os.Signal) {
	r.Helper()
	if err := r.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		r.Fatal(err)
	}
}

// kill kills the process, unless it has done its work before: then it says so.
func (r *process) kill() (done bool) {
	r.Helper()
	r.signal(os.Kill)
	o := r.wait()
	if o.code > 0 {
		r.Fatalf("exit %d: %s", o.code, o.said())
	}
	return o.code == 0
}

// until waits for a condition, and says whether it came before the process's end.
func (r *process) until(condition func() bool) bool {
	for {
		select {
		case <-r.over:
			return false
		default:
		}
		if condition() {
			return true
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func (p *place) run(args ...string) outcome {
	p.Helper()
	return p.start(args...).wait()
}

// must runs a command that has to succeed.
func (p *place) must(args ...string) outcome {
	p.Helper()
	o := p.run(args...)
	if o.code != 0 {
		p.Fatalf("flowrun %s: exit %d: %s", strings.Join(args, " "), o.code, strings.Join(o.said(), "\n"))
	}
	return o
}

// refused runs a command that has to fail with a code and one line that holds each of words.
func (p *place) refused(code int, args []string, words ...string) outcome {
	p.Helper()
	o := p.run(args...)
	p.tells(o, code, words...)
	return o
}

func (p *place) tells(o outcome, code int, words ...string) {
	p.Helper()
	said := o.said()
	if o.code != code || len(said) != 1 {
		p.Fatalf("exit %d (want %d), %d lines for people (want 1):\n%s", o.code, code, len(said), strings.Join(said, "\n"))
	}
	for _, w := range append(words, "flowrun: ") {
		if !strings.Contains(said[0], w) {
			p.Errorf("the line doesn't say %q: %s", w, said[0])
		}
	}
	if o.stdout != "" {
		p.Errorf("stdout: %q", o.stdout)
	}
}
