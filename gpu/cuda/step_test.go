//go:build cuda

package cuda

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu/vqgan"
	"gorgonia.org/cu"
)

// A step waits for the device once, for its results, which come in one copy. Before that the next batch is on its way, on a stream of its own,
// and arrives however far the step is.
func TestOneWaitAStep(t *testing.T) {
	if !strings.Contains(os.Getenv(Library), "standin") {
		t.Skip("a real driver keeps no record of its calls")
	}
	for name, batch := range map[string]int{"GAN": 1, "micro-batches": 2} {
		t.Run(name, func(t *testing.T) {
			e := open(t).(*Engine)
			c, o := tiny("channel", batch == 1)
			o.Batch, o.GAN.R1 = batch, 0
			s, err := vqgan.Open(e, c, o)
			if err != nil {
				t.Fatal(err)
			}
			x := waves(o.Patch, batch)
			for range 3 { // each program's calls are recorded
				if _, err := s.Step(x, x, batch, 1e-3); err != nil {
					t.Fatal(err)
				}
			}
			here := func(what string, f func() error) {
				t.Helper()
				if err := e.o.wait(f); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
			}
			trace, read := filepath.Join(t.TempDir(), "trace"), 0
			calls := func() []string {
				here("calls", func() error { return nil })
				text, err := os.ReadFile(trace)
				if err != nil {
					t.Fatal(err)
				}
				lines := strings.Split(strings.TrimSpace(string(text)), "\n")[read:]
				read += len(lines)
				return lines
			}
			count := func(lines []string, call string) (n int) {
				for _, l := range lines {
					if l == call || strings.HasPrefix(l, call+" ") || strings.HasPrefix(l, call+"_") {
						n++
					}
				}
				return n
			}
			waits := func(lines []string) int {
				return count(lines, "cuStreamSynchronize") + count(lines, "cuEventSynchronize")
			}
			t.Setenv("FLOWRUN_STANDIN_LAZY", "1")
			t.Setenv("FLOWRUN_STANDIN_TRACE", trace)

			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(s.Feed(x, x, batch))
			_ = calls()
			for range 2 {
				s.Launch()
				launched := calls()
				if n := count(launched, "cuGraphLaunch"); n != batch || waits(launched) > 0 {
					t.Errorf("Launch launches %d graphs (want %d) and waits %d times", n, batch, waits(launched))
				}
				var done cu.Event
				here("done", func() (err error) {
					if done, err = cu.MakeEvent(cu.DisableTiming); err == nil {
						err = done.Record(e.compute)
					}
					return err
				})
				_ = calls()

				must(s.Feed(x, x, batch))
				fed := calls()
				stream := fed[0][strings.LastIndex(fed[0], " "):]
				if count(fed, "cuMemcpyHtoDAsync") != 1 || waits(fed) > 0 || slices.ContainsFunc(fed, func(l string) bool {
					return strings.HasPrefix(l, "cuLaunch") || !strings.HasSuffix(l, stream) && !strings.HasSuffix(l, " 0")
				}) {
					t.Errorf("Feed: %v", fed)
				}
				here("arrival", func() error { return e.staging.uploaded.Synchronize() })
				here("computing", func() error {
					if done.Query() == nil {
						return fmt.Errorf("the batch had to wait for the step")
					}
					return nil
				})
				_ = calls()

				if _, err := s.Finish(1e-3); err != nil {
					t.Fatal(err)
				}
				if finished := calls(); waits(finished) != 1 || count(finished, "cuMemcpyDtoHAsync") != 1 {
					t.Errorf("Finish waits %d times for %d copies", waits(finished), count(finished, "cuMemcpyDtoHAsync"))
				}
				here("forget", func() error { return cu.DestroyEvent(&done) })
			}
			t.Setenv("FLOWRUN_STANDIN_TRACE", "")
			must(e.Close())
		})
	}
}

// TestWaitsSleep: a wait of a whole step mustn't keep a core busy.
func TestWaitsSleep(t *testing.T) {
	e := open(t)
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	flags, _, err := cu.Device(0).PrimaryCtxState()
	if err != nil || flags&cu.SchedBlockingSync == 0 {
		t.Errorf("the context's flags are %v, %v (want cu.SchedBlockingSync among them)", flags, err)
	}
}
