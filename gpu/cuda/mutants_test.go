//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"regexp"
	"runtime/debug"
	"strings"
	"testing"
	"unsafe"

	"github.com/flowrun/flowrun/gpu"
	"gorgonia.org/cu"
)

// first keeps the first error.
type first struct{ said string }

func (*first) Helper() {}
func (f *first) Errorf(format string, args ...any) {
	if f.said == "" {
		f.said = fmt.Sprintf(format, args...)
	}
}

// every stands for all matches.
const every = 1 << 20

// mutant compiles for e the module that has a kernel, with the nth match of a pattern in that kernel replaced, or every one; n from the end
// where it is negative.
func mutant(t *testing.T, e *Engine, kernel, pattern, with string, n int) error {
	t.Helper()
	all, err := modules()
	if err != nil {
		t.Fatal(err)
	}
	for _, of := range all {
		text := of.text
		from := strings.Index(text, ".entry "+kernel+"(")
		if from < 0 {
			continue
		}
		to := from + strings.Index(text[from:], "\n}\n")
		re := regexp.MustCompile(pattern)
		matches := re.FindAllStringSubmatchIndex(text[from:to], -1)
		if n < 0 {
			n += len(matches)
		}
		if n >= 0 && n < len(matches) {
			matches = matches[n : n+1]
		} else if n != every || len(matches) == 0 {
			t.Fatalf("%s has %d of %s", kernel, len(matches), pattern)
		}
		var changed []byte
		at := 0
		for _, m := range matches {
			changed = append(changed, text[from+at:from+m[0]]...)
			changed = re.ExpandString(changed, with, text[from:to], m)
			at = m[1]
		}
		e.own = of.target != everyone
		return e.o.wait(func() error {
			for _, m := range all { // the card's own, unchanged
				if m.target == of.target && e.own && m != of {
					if err := e.compile(m); err != nil {
						return err
					}
				}
			}
			return e.compile(module{text[:from] + string(changed) + text[from+at:], of.target})
		})
	}
	t.Fatalf("no kernel %s", kernel)
	return nil
}

// What goes wrong in a kernel is found, where it goes wrong: each of these is a mistake in its PTX. Where no check can see it, numbers differ.
func TestMutants(t *testing.T) {
	onMachine(t)
	sum := func(n int) func(s *side, kind gpu.Type) [][]float32 {
		return func(s *side, _ gpu.Type) [][]float32 {
			x, out, work := s.floats(noise(n)), s.alloc(4), s.alloc(s.SumSquaresWork(n))
			s.SumSquares(x, n, out, work)
			got := make([]float32, 1)
			s.Read(got, out)
			return [][]float32{got}
		}
	}
	hopper := convolve(filter(3, gpu.Dims{N: 1, D: 1, H: 4, W: 80}, 40, 64))
	conv := convolve(filter(3, gpu.Dims{N: 1, D: 1, H: 2, W: 40}, 40, 32))
	unit := func(s *side, kind gpu.Type) [][]float32 {
		d := gpu.Dims{N: 1, D: 1, H: 2, W: 9, C: 32}
		x, y := s.tensor(d, 0, kind, noise(d.Len())), s.tensor(d, 0, kind, nil)
		s.Unit(x, y)
		return [][]float32{s.read(y)}
	}
	for _, c := range []struct {
		name, kernel  string
		pattern, with string
		n             int
		run           func(s *side, kind gpu.Type) [][]float32
		want          []string
	}{
		{"as it is", "sumSquares", `ret;`, "ret;", 0, sum(1000), nil},
		{"no barrier", "sumSquares", `bar\.sync`, "// bar.sync", -1, sum(1000), []string{"racecheck: sumSquares, block ", "unordered with a "}},
		{"a predicate without a value", "sumSquares", `bar\.sync`, "@%p4 bar.sync", 0, sum(1000), []string{"initcheck: sumSquares", "a predicate"}},
		{"a barrier that its guard keeps lanes from", "sumSquares", `(@(%p\d+) bra\s+\S+\n// %bb.5:)`, "@$2 bar.sync 0;\n$1", 0, sum(1000), []string{"synccheck: sumSquares", "guard"}},
		{"no first value", "sumSquares", `mov\.f64`, "// mov.f64", 0, sum(100), []string{"initcheck: sumSquares", "a register is read"}},
		{"shared memory not written", "sumSquares", `st\.shared`, "// st.shared", 0, sum(1000), []string{"initcheck: sumSquares", "shared memory", "nobody has written"}},
		{"too little shared memory", "sumSquares", `\[2048\]`, "[2040]", 0, sum(1000), []string{"memcheck: sumSquares", "thread 255", "0x400 to 0xbf8"}},
		{"no guard", "sumSquares", `@%p\d+ bra\s+\S+\n// %bb.5:`, "// %bb.5:", 0, sum(1000), []string{"memcheck: sumSquares", "shared memory"}},
		{"blocks do the same", "sumSquares", `%ctaid\.x`, "0", 0, sum(5000), []string{"racecheck: sumSquares", "global memory", "of another block"}},
		{"another space", "sumSquares", `ld\.shared`, "ld.global", 0, sum(1000), []string{"memcheck: sumSquares", "isn't in an allocation"}},
		{"beyond the allocation", "sumSquares", `st\.global\.f64\s+\[%rd\d+`, "$0+1073741824", 0, sum(1000), []string{"memcheck: sumSquares", "isn't in an allocation"}},
		{"a write that isn't aligned", "sumSquares", `st\.global\.f64\s+\[%rd\d+`, "$0+4", 0, sum(1000), []string{"memcheck: sumSquares", "isn't aligned"}},
		{"an unknown instruction", "sumSquares", `bar\.sync`, "bar.red", 0, nil, []string{"unknown instruction bar.red", "line "}},
		{"an unknown directive", "sumSquares", `\.maxntid`, ".maxnreg", 0, nil, []string{"unknown directive .maxnreg", "line "}},
		{"a register of another size", "sumSquares", `setp\.ge\.s64`, "setp.ge.s32", 0, nil, []string{"of another size"}},
		{"too short a vector's alignment", "unit", `(ld\.global\.v4\.u32\s+\{[^}]*\}, \[%rd\d+)`, "$1+8", 0, unit, []string{"memcheck: unit", "16 bytes", "isn't aligned"}},
		{"a shuffle of half a warp", "unit", `(shfl\.sync.*), -1;`, "$1, 65535;", 0, unit, []string{"synccheck: unit", "leaves the lane out"}},
		{"halves exchanged", "unit", `(cvt\.rn\.bf16x2\.f32\s+%r\d+), (%f\d+), (%f\d+)`, "$1, $3, $2", 0, unit, []string{"result 0"}},
		{"no wait for copies", "conv512x32", `cp\.async\.wait_group`, "// cp.async.wait_group", 0, conv, []string{"racecheck: conv512x32", "in flight"}},
		{"too short a wait for copies", "conv512x32", `cp\.async\.wait_group\s+0`, "cp.async.wait_group 1", 0, conv, []string{"racecheck: conv512x32", "in flight"}},
		{"too short a wait in the ring", "weight9x32", `cp\.async\.wait_group\s+\d`, "cp.async.wait_group 7", 0, conv, []string{"racecheck: weight9x32", "in flight"}},
		{"no barrier behind copies", "conv512x32", `bar\.sync`, "// bar.sync", 0, conv, []string{"check: conv512x32", "shared memory"}},
		{"a copy to an odd place", "conv512x32", `cp\.async\.cg\.shared\.global \[%r\d+`, "$0+8", 0, conv, []string{"memcheck: conv512x32", "isn't aligned"}},
		{"matrices from an odd place", "conv512x32", `(ldmatrix\.sync.*\[%r\d+)`, "$1+2", 0, conv, []string{"memcheck: conv512x32", "isn't aligned"}},
		{"operands of a product exchanged", "conv512x32", `(mma\.sync\S+ \{[^}]*\}, \{)(%r\d+),(%r\d+)`, "$1$3,$2", 0, conv, []string{"result 0"}},
		{"products of what isn't fenced", "conv512x64Hopper", `fence\.proxy`, "// fence.proxy", every, hopper, []string{"racecheck: conv512x64Hopper", "did no fence.proxy.async"}},
		{"sums that aren't fenced", "conv512x64Hopper", `wgmma\.fence`, "// wgmma.fence", every, hopper, []string{"racecheck: conv512x64Hopper", "without wgmma.fence"}},
		{"no wait for products", "conv512x64Hopper", `wgmma\.wait_group\S+ 0`, "// $0", every, hopper, []string{"initcheck: conv512x64Hopper", "no value"}},
		{"no wait in the ring", "conv512x64Hopper", `wgmma\.wait_group\S+ 1`, "// $0", every, hopper, []string{"racecheck: conv512x64Hopper", "a product that is in flight"}},
		{"no barrier in front of products", "conv512x64Hopper", `bar\.sync`, "// bar.sync", every, hopper, []string{"check: conv512x64Hopper"}},
		{"descriptors exchanged", "conv512x64Hopper", `(wgmma\.mma_async.*\}), (%rd\d+), (%rd\d+)`, "$1, $3, $2", every, hopper, []string{"conv512x64Hopper"}},
		{"a product's registers are written too early", "weight9x64Hopper", `wgmma\.wait_group\S+ 1`, "// $0", every, hopper, []string{"racecheck: weight9x64Hopper"}},
		{"a product's registers exchanged", "weight9x64Hopper", `(wgmma\.mma_async.*\}, \{)(%r\d+),(%r\d+)`, "$1$3,$2", every, hopper, []string{"result 2"}},
		{"a descriptor inside a pattern", "conv512x64Hopper", `or\.b64(\s+%rd\d+, %rd\d+, -\d+)56800;`, "or.b64${1}56792;", every, hopper, []string{"conv512x64Hopper", "pattern"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if strings.HasSuffix(c.kernel, "Hopper") {
				t.Setenv("FLOWRUN_STANDIN_CAPABILITY", "9.0")
				t.Setenv(OwnKernels, "off") // but for the mutant
			}
			e := open(t).(*Engine)
			err := mutant(t, e, c.kernel, c.pattern, c.with, c.n)
			var f first
			switch {
			case c.run == nil:
				_ = e.Close()
				if err == nil {
					t.Fatal("it was compiled")
				}
				f.said = err.Error()
			case err != nil:
				t.Fatal(err)
			default:
				bothOn(&f, e, c.run)
			}
			if c.want == nil && f.said != "" {
				t.Fatal(f.said)
			}
			for _, want := range c.want {
				if !strings.Contains(f.said, want) {
					t.Fatalf("%q, want %q in it", f.said, want)
				}
			}
			t.Log(f.said)
		})
	}
}

// A wait that is left out between streams is found, whichever of them happens to come first.
func TestStreams(t *testing.T) {
	onMachine(t)
	d := gpu.Dims{N: 1, D: 1, H: 2, W: 40, C: 1}
	for _, c := range []struct{ name, fault, want string }{
		{"as it is", "", ""},
		{"a kernel doesn't wait for a copy", "wait=1@2", "racecheck: "},
		{"a copy doesn't wait for the kernel that reads what was there", "wait=1@3", "racecheck: "},
		{"a kernel doesn't wait for the second copy", "wait=1@4", "racecheck: "},
		{"a copy within the device doesn't wait for that from the host", "wait=1@5", "racecheck: "},
	} {
		for _, lazy := range []string{"", "1"} {
			t.Run(c.name+lazy, func(t *testing.T) {
				t.Setenv("FLOWRUN_STANDIN_LAZY", lazy)
				t.Setenv("FLOWRUN_STANDIN_FAULT", "")
				s := &side{Engine: open(t)}
				if err := s.Reserve(1 << 20); err != nil {
					t.Fatal(err)
				}
				from, x, y := s.alloc(int64(4*d.Len())), s.tensor(d, 1, gpu.BFloat16, nil), s.alloc(1024)
				t.Setenv("FLOWRUN_STANDIN_FAULT", c.fault)
				for range 2 {
					s.Upload(from, noise(d.Len()))
					s.Store(from, x)
				}
				s.Write(y, noise(64))
				err := errors.Join(s.Sync(), s.Close())
				if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "nothing orders them")) {
					t.Fatalf("%v, want %q", err, c.want)
				}
				t.Log(err)
			})
		}
	}
}

// The host may not write what a copy is yet to read, nor read what one is yet to write: that is a fault.
func TestPinned(t *testing.T) {
	onMachine(t)
	t.Setenv("FLOWRUN_STANDIN_LAZY", "1")
	s := &side{Engine: open(t)}
	if err := s.Reserve(1 << 20); err != nil {
		t.Fatal(err)
	}
	e := s.Engine.(*Engine)
	staging := &e.staging
	var read float32
	faults := func(f func()) (fault bool) {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() { fault = recover() != nil }()
		f()
		return
	}
	x := s.floats(noise(64))
	if host := staging.small.slots[0].host; !faults(func() { host[0] = 1 }) || faults(func() { read += host[0] }) {
		t.Error("it may write what is to be copied to the device, or may not read it")
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	if host := staging.small.slots[0].host; faults(func() { host[0] = 1 }) {
		t.Error("it may not write what was copied")
	}
	err := e.wait(func() error {
		return cu.MemcpyDtoHAsync(unsafe.Pointer(&staging.small.slots[1].host[0]), cu.DevicePtr(e.at(x)), 64, e.compute)
	})
	if err != nil {
		t.Fatal(err)
	}
	if host := staging.small.slots[1].host; !faults(func() { read += host[0] }) {
		t.Error("it may read what was not copied yet")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A launch that a card refuses is refused.
func TestLaunches(t *testing.T) {
	onMachine(t)
	for _, c := range []struct {
		name, kernel string
		grid         [3]int
		threads      int
	}{
		{"threads that it isn't compiled for", "sumSquares", [3]int{1, 1, 1}, 512},
		{"no blocks", "sumSquares", [3]int{0, 1, 1}, 256},
		{"too many blocks along y", "sumSquares", [3]int{1, 65536, 1}, 256},
		{"too many blocks along z", "sumSquares", [3]int{1, 1, 65536}, 256},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := open(t).(*Engine)
			run(e, c.kernel, c.grid, c.threads, sumArgs{})
			if err := e.Sync(); !errors.Is(err, ErrLaunch) {
				t.Errorf("%v, want %v", err, ErrLaunch)
			}
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("more shared memory than a card has", func(t *testing.T) {
		for capability, fits := range map[string]int{"8.0": 163 << 10, "8.6": 99 << 10, "9.0": 227 << 10} {
			t.Setenv("FLOWRUN_STANDIN_CAPABILITY", capability)
			t.Setenv(OwnKernels, "off")
			e := open(t).(*Engine)
			for _, bytes := range []int{fits, fits + 1} {
				err := e.o.wait(func() error { return share("conv256x128", e.kernels["conv256x128"], bytes) })
				if (err == nil) != (bytes == fits) {
					t.Errorf("%d bytes on %s: %v", bytes, capability, err)
				}
			}
			_ = e.Close()
		}
	})
}
