package integration

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// clock is the wall clock of one process.
type clock struct {
	mem  *os.File
	slot int64 // address of the seconds that are added
}

// warped is clock_gettime(id, ts) in place of the kernel's: the system call, and to the wall clock's seconds the eight
// bytes that follow at slot.
var warped = []byte{
	0xb8, 0xe4, 0, 0, 0, // mov eax, 228 (clock_gettime)
	0x0f, 0x05, // syscall
	0x85, 0xff, // test edi, edi (CLOCK_REALTIME)
	0x75, 0x0a, // jne ret
	0x48, 0x8b, 0x0d, 6, 0, 0, 0, // mov rcx, [slot]
	0x48, 0x01, 0x0e, // add [rsi], rcx
	0xc3, 0, 0, // ret
}

// startWarped starts flowrun with a wall clock that can jump: the vDSO, from which Go takes the time, is
// changed in the new process's memory before its first instruction. The monotonic clock stays the kernel's.
func (p *place) startWarped(args ...string) (*process, *clock, error) {
	p.Helper()
	r := p.command(limit, flowrun(), args...)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	runtime.LockOSThread() // who starts it traces it
	defer runtime.UnlockOSThread()
	p.check(r.cmd.Start())
	defer r.reap()
	pid := r.cmd.Process.Pid
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || !status.Stopped() {
		return r, nil, fmt.Errorf("trace: %w (%v)", err, status)
	}
	c, err := warp(pid)
	if err != nil {
		_ = r.cmd.Process.Kill()
	} else {
		p.Cleanup(func() { _ = c.mem.Close() })
	}
	p.check(syscall.PtraceDetach(pid))
	return r, c, err
}

func warp(pid int) (*clock, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	var from, to int64
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(line, "[vdso]\n") {
			if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
				return nil, err
			}
		}
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	at, err := clockGettime(io.NewSectionReader(mem, from, to-from))
	c := &clock{mem, from + at + int64(len(warped))}
	if err == nil {
		_, err = mem.WriteAt(warped, from+at)
	}
	if err == nil {
		err = c.jump(0)
	}
	if err != nil {
		_ = mem.Close()
		return nil, err
	}
	return c, nil
}

// clockGettime is where a vDSO has that function.
func clockGettime(image *io.SectionReader) (int64, error) {
	b, err := io.ReadAll(image)
	if err != nil {
		return 0, err
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return 0, err
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return 0, err
	}
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" && s.Size >= uint64(len(warped)+8) {
			return int64(s.Value), nil
		}
	}
	return 0, fmt.Errorf("no clock_gettime of %d bytes", len(warped)+8)
}

// jump sets the process's wall clock by so much off the machine's.
func (c *clock) jump(by time.Duration) error {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(int64(by.Seconds())))
	_, err := c.mem.WriteAt(b[:], c.slot)
	return err
}
