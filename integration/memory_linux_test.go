package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// group writes what a control group of cgroup v2 says of its memory, in bytes.
func (p *place) group(limit, used int64) {
	p.Helper()
	p.write("cgroup/memory.max.new", fmt.Sprintln(limit))
	p.write("cgroup/memory.current.new", fmt.Sprintln(used))
	p.check(unix.Rename(p.path("cgroup", "memory.max.new"), p.path("cgroup", "memory.max")))
	p.check(unix.Rename(p.path("cgroup", "memory.current.new"), p.path("cgroup", "memory.current")))
}

// Where memory runs out a run lets nothing more in, saves what it has and waits; with memory again it goes on by itself, to the
// same end. A stop while it waits ends it.
func TestMemoryRunsOut(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	hook := listen(t)
	words := []string{"train.yaml", "shuffle.volumes=1", "read.ahead=1", "checkpoint.every=1000", "train.validate.every=1000", "train.epochs=8"}
	p.must(append(words, "run.dir=whole")...)
	p.check(unix.Mkdir(p.path("cgroup"), 0o777))
	const limit, plenty, scarce = 1 << 30, 300 << 20, 1020 << 20
	start := func() *process {
		p.group(limit, plenty)
		p.write("self", "0::/\n")
		inside := strings.Join(append([]string{flowrun(), "observe.webhook=" + hook.URL}, words...), " ")
		return p.exec("unshare", "--mount", "sh", "-c", "mount --bind cgroup /sys/fs/cgroup && mount --bind self /proc/$$/cgroup && exec "+strings.Replace(inside, " ", " train.yaml ", 1))
	}
	words = words[1:]
	r := start()
	if !r.until(func() bool { return p.reached("run") >= 6 }) {
		if o := r.wait(); !strings.Contains(o.stderr, `"event":"start"`) {
			t.Skip("no right to show another control group: ", o.stderr)
		}
		t.Fatalf("over: %s", r.stderr.String())
	}
	p.group(limit, scarce)
	paused := func() bool { return strings.Contains(r.stderr.String(), `"event":"paused"`) }
	if !r.until(paused) {
		t.Fatalf("it didn't wait: %s", r.stderr.String())
	}
	var at int
	quiet := func() bool { // what was in the graph is trained
		before := p.reached("run")
		time.Sleep(300 * time.Millisecond)
		at = p.reached("run")
		return at == before
	}
	if !r.until(quiet) {
		t.Fatalf("it went on without memory: %s", r.stderr.String())
	}
	if e := p.events("run", "paused"); len(e) != 1 || !strings.Contains(fmt.Sprint(e[0]["message"]), "memory is nearly full") || !strings.Contains(fmt.Sprint(e[0]["error"]), "lower run.memory") {
		t.Errorf("it says %v", e)
	}
	if names, last := hook.events(); names != "paused" || !strings.Contains(last["text"].(string), "memory is nearly full") {
		t.Errorf("told of %s: %v", names, last)
	}
	p.group(limit, plenty)
	if o := r.wait(); o.code != 0 || !strings.Contains(o.stderr, `"event":"resumed"`) {
		t.Fatalf("exit %d: %s", o.code, o.stderr)
	}
	p.sameRun("whole", "run")
	saved := p.events("run", "checkpoint")
	if len(saved) != 2 || saved[0]["reason"] != "stop" || saved[0].step() < at {
		t.Errorf("it saved %v", saved)
	}

	words = append(words, "run.dir=stopped")
	r = start()
	if !r.until(func() bool { return p.reached("stopped") >= 6 }) {
		t.Fatalf("over: %s", r.stderr.String())
	}
	p.group(limit, scarce)
	if !r.until(paused) {
		t.Fatalf("it didn't wait: %s", r.stderr.String())
	}
	r.signal(unix.SIGTERM)
	if o := r.wait(); o.code != 75 {
		t.Fatalf("exit %d: %s", o.code, o.stderr)
	}
	p.group(limit, plenty)
	p.must(append([]string{"train.yaml"}, words...)...)
	p.sameRun("whole", "stopped")
}
