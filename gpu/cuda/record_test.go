//go:build cuda

package cuda

import (
	"os"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu"
)

// Calls that are made again come from a graph, with the numbers that lie in the arena now; others don't, nor where the driver won't record.
func TestReplay(t *testing.T) {
	for _, fault := range []string{"", "cuStreamBeginCapture_v2=801@1", "cuStreamEndCapture=901@1", "cuGraphInstantiateWithFlags=801@1"} {
		t.Run(fault, func(t *testing.T) {
			if fault != "" && !strings.Contains(os.Getenv(Library), "standin") {
				t.Skip("a real driver has no faults on demand")
			}
			c := open(t)
			e := c.(*Engine)
			if err := e.Reserve(1 << 20); err != nil {
				t.Fatal(err)
			}
			t.Setenv("FLOWRUN_STANDIN_FAULT", fault)
			d := gpu.Dims{N: 1, D: 1, H: 1, W: 4, C: 1}
			x := gpu.Tensor{Dims: d, Type: gpu.Float32}
			y, scale := x, gpu.Ptr(2*gpu.Align)
			y.At = gpu.Align
			make := func(key string, to gpu.Tensor, by, want float32) {
				t.Helper()
				e.Write(scale, []float32{by})
				e.Replay(key, func() {
					e.Fill(x.At, 4, 2)
					e.Combine(x, x, scale, to)
				})
				var got [4]float32
				if e.ReadTensor(got[:], to); got != [4]float32{want, want, want, want} {
					t.Fatalf("2 + %v·2 = %v", by, got)
				}
			}
			for i, by := range []float32{1, 2, 3, 4} {
				make("a", y, by, 2+2*by)
				if recorded := e.recordings["a"].graph != nil; recorded != (i > 0 && fault == "") {
					t.Errorf("round %d: recorded %v", i, recorded)
				}
			}
			z := y
			z.At = 3 * gpu.Align
			make("a", z, 5, 12) // other operands
			make("b", y, 6, 14)
			e.Replay("c", func() { // reading in between is right, if slow
				e.Fill(y.At, 4, 7)
				var got [1]float32
				if e.Read(got[:], y.At); got[0] != 7 {
					t.Errorf("read %v in between", got)
				}
				e.Fill(y.At, 4, 8)
			})
			var got [1]float32
			if e.Read(got[:], y.At); got[0] != 8 {
				t.Errorf("read %v", got)
			}
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
