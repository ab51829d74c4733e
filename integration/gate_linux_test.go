package integration

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// gate stands between a process and its files: the calls that touch them wait until the test has let them through, as on a
// slow disk or a network that is away, or fail as it says. The kernel asks it by seccomp; the program knows nothing of it.
type gate struct {
	listener int

	mu  sync.Mutex
	ask func(c call) error // nil: all go through
}

// call is what a process is about to do to a file.
type call struct {
	name string // of the system call, as in gated
	path string // the file's
}

// gated are the calls that the gate sees.
var gated = map[uint32]string{
	unix.SYS_OPENAT: "open", unix.SYS_READ: "read", unix.SYS_PREAD64: "read", unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "write",
	unix.SYS_FSYNC: "sync", unix.SYS_RENAMEAT: "rename",
}

// watch has ask decide about every call from now on: it may take its time, and what it returns, a syscall.Errno, is what the
// process is told. Calls that wait don't wait for each other.
func (g *gate) watch(ask func(c call) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ask = ask
}

// notice and answer are struct seccomp_notif and seccomp_notif_resp.
type notice struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type answer struct {
	id           uint64
	value        int64
	error, flags int32
}

// startGated starts flowrun behind a gate, with a clock that can jump where that can be had.
func (p *place) startGated(args ...string) (*process, *gate, *clock, error) {
	p.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	p.check(err)
	ours, theirs := os.NewFile(uintptr(ends[0]), "gate"), os.NewFile(uintptr(ends[1]), "gate")
	defer func() { _ = ours.Close() }()
	r := p.command(limit, os.Args[0], args...)
	r.cmd.Env = append(os.Environ(), gateFor+"="+flowrun())
	r.cmd.ExtraFiles = []*os.File{theirs}
	err = r.cmd.Start()
	_ = theirs.Close()
	p.check(err)
	r.reap()
	listener, err := receive(ours)
	if err != nil {
		return r, nil, nil, fmt.Errorf("no gate: %w", err)
	}
	g := &gate{listener: listener}
	began := make(chan *clock, 1)
	g.watch(func(c call) error { // flowrun's first
		if c.name == "open" {
			clock, err := warp(r.cmd.Process.Pid)
			if err == nil {
				p.Cleanup(func() { _ = clock.mem.Close() })
			}
			g.watch(nil)
			began <- clock
		}
		return nil
	})
	over := make(chan struct{})
	go func() {
		defer close(over)
		g.serve(r)
	}()
	p.Cleanup(func() {
		g.watch(nil)
		<-over
	})
	select {
	case c := <-began:
		return r, g, c, nil
	case <-r.over:
		return r, g, nil, nil
	}
}

// serve asks about the calls of a process until it is over.
func (g *gate) serve(r *process) {
	var waiting sync.WaitGroup
	defer func() {
		waiting.Wait()
		_ = unix.Close(g.listener)
	}()
	for {
		ready := []unix.PollFd{{Fd: int32(g.listener), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, 50)
		select {
		case <-r.over:
			return
		default:
		}
		if err != nil && !errors.Is(err, unix.EINTR) || n > 0 && ready[0].Revents&unix.POLLIN == 0 {
			<-r.over
			return
		}
		if n < 1 {
			continue
		}
		q := new(notice)
		if g.control(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(q)) != nil {
			continue // who asked is gone
		}
		g.mu.Lock()
		ask := g.ask
		g.mu.Unlock()
		if ask == nil {
			g.answer(q.id, nil)
			continue
		}
		waiting.Go(func() { g.answer(q.id, ask(call{gated[uint32(q.nr)], q.path()})) })
	}
}

// answer lets a call through, or has it fail.
func (g *gate) answer(id uint64, err error) {
	a := answer{id: id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		a.error, a.flags = -int32(errno), 0
	}
	_ = g.control(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a)) // fails where nobody waits any more
}

func (g *gate) control(what uintptr, with unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(g.listener), what, uintptr(with))
	if errno != 0 {
		return errno
	}
	return nil
}

// path is the file that a call is about, "" for none.
func (q *notice) path() string {
	if name := gated[uint32(q.nr)]; name != "open" && name != "rename" {
		path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", q.pid, q.args[0]))
		if err != nil {
			return ""
		}
		return path
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", q.pid))
	if err != nil {
		return ""
	}
	defer func() { _ = mem.Close() }()
	var b [unix.PathMax]byte
	n, _ := mem.ReadAt(b[:], int64(q.args[1])) // less, where the page ends
	path, _, _ := bytes.Cut(b[:n], []byte{0})
	if len(path) > 0 && path[0] != '/' {
		dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", q.pid))
		if err != nil {
			return ""
		}
		return filepath.Join(dir, string(path))
	}
	return string(path)
}

// receive takes a descriptor from the other end.
func receive(from *os.File) (int, error) {
	c, err := net.FileConn(from)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return 0, err
	}
	said, rights := make([]byte, 200), make([]byte, unix.CmsgSpace(4))
	n, k, _, _, err := c.(*net.UnixConn).ReadMsgUnix(said, rights)
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:k])
	if err != nil || len(messages) == 0 {
		return 0, fmt.Errorf("%s (%w)", said[:n], err)
	}
	descriptors, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, err
	}
	return descriptors[0], nil
}

// passGate becomes another program, behind a gate.
func passGate(program string) {
	runtime.LockOSThread() // the gate is this thread's, and that of whoever it becomes
	to := os.NewFile(3, "gate")
	c, err := net.FileConn(to)
	if err == nil {
		err = errors.Join(to.Close(), os.Unsetenv(gateFor))
	}
	if err != nil {
		panic(err)
	}
	listener, err := closeGate()
	said, rights := "gate", []byte(nil)
	if err != nil {
		said = err.Error()
	} else {
		rights = unix.UnixRights(listener)
	}
	if _, _, e := c.(*net.UnixConn).WriteMsgUnix([]byte(said), rights, nil); e == nil && err == nil {
		err = unix.Exec(program, append([]string{program}, os.Args[1:]...), os.Environ())
	}
	panic(err)
}

// closeGate has this thread ask before each of the gated calls.
func closeGate() (listener int, err error) {
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}} // the call's number
	n := uint8(len(gated))
	i := uint8(0)
	for nr := range gated {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: n - i, K: nr})
		i++
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW}, unix.SockFilter{Code: unix.BPF_RET, K: unix.SECCOMP_RET_USER_NOTIF})
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}

// The gate sees what a process reads and writes, lets it wait, and has it fail.
func TestGate(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	r, g, _, err := p.startGated("train.yaml", "train.max_steps=10")
	if err != nil {
		r.wait()
		t.Skip(err)
	}
	var mu sync.Mutex
	seen := map[string][]string{}
	var durable, renamed int // how often metrics and a checkpoint were brought to the disk
	g.watch(func(c call) error {
		mu.Lock()
		defer mu.Unlock()
		if strings.HasPrefix(c.path, p.dir) {
			name := filepath.Base(c.path)
			seen[c.name] = append(seen[c.name], name)
			switch {
			case c.name == "sync" && name == "metrics.jsonl":
				durable++
			case c.name == "rename" && strings.HasPrefix(name, "step-") && strings.HasSuffix(name, ".safetensors.tmp"):
				if renamed++; durable < renamed {
					t.Errorf("the metrics of %s aren't durable before it is", name)
				}
			}
		}
		return nil
	})
	if o := r.wait(); o.code != 0 {
		t.Fatalf("exit %d: %s", o.code, o.said())
	}
	for name, file := range map[string]string{"open": plain, "read": plain, "write": "metrics.jsonl", "sync": "step-00000008.safetensors.tmp", "rename": "step-00000008.safetensors.tmp"} {
		if !slices.ContainsFunc(seen[name], func(s string) bool { return strings.Contains(s, file) }) {
			t.Errorf("%s: %v, not %s", name, seen[name], file)
		}
	}
}
