//go:build cuda

package cuda

import (
	"slices"
	"testing"

	"github.com/flowrun/flowrun/gpu"
)

// More transfers than there are slots, none of them waited for, all arrive, in the order in which they were called.
func TestManyTransfers(t *testing.T) {
	e := open(t)
	const n, each = 16 * smallSlots, 50
	if err := e.Reserve(2 << 20); err != nil {
		t.Fatal(err)
	}
	d := gpu.Dims{N: 1, D: 1, H: 1, W: each, C: 1}
	at := func(row, i int) gpu.Ptr { return gpu.Ptr(row*n+i) * gpu.Align }
	same := func(i int) []float32 { return slices.Repeat([]float32{float32(i)}, each) }
	for i := range n {
		e.Write(at(0, i), same(i))
		e.Upload(at(1, i), same(n+i))
		e.Upload(at(2, 0), same(2*n+i)) // over what is there
		e.Store(at(2, 0), gpu.Tensor{Dims: d, Type: gpu.Float32, At: at(3, i)})
		e.Copy(at(4, i), at(0, i), each)
		e.Write(at(0, i), same(3*n+i))
		e.Store(at(1, i), gpu.Tensor{Dims: d, Type: gpu.Float32, At: at(5, i)})
	}
	got := make([]float32, each)
	for i := range n {
		for at, want := range map[gpu.Ptr]int{at(0, i): 3*n + i, at(5, i): n + i, at(3, i): 2*n + i, at(4, i): i} {
			if e.Read(got, at); !slices.Equal(got, same(want)) {
				t.Fatalf("transfer %d: %v at %d, want %d", i, got[0], at, want)
			}
		}
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}
