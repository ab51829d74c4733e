package flows

import (
	"math"
	"runtime/debug"
	"testing"
)

// A process with a queue's server bounds its heap by what it planned; a bound that was given from outside stays.
func TestHeapIsBound(t *testing.T) {
	now := func() int64 { return debug.SetMemoryLimit(-1) }
	if now() != math.MaxInt64 {
		t.Skip("GOMEMLIMIT is set")
	}
	server := serverBytes([3]int{256, 256, 128})
	if server < 192<<20 || server > 256<<20 || serverBytes([3]int{}) != server || serverBytes([3]int{8, 8, 4}) != 64<<20 {
		t.Errorf("a server is given %s for patches of 16 MiB, %s for small ones", size(server), size(serverBytes([3]int{8, 8, 4})))
	}
	m := memory{limit: 16 << 30, engine: 8 << 30, batches: 1 << 30, queue: server, scans: 6 << 30}
	trainer, worker := m.heap(false), m.heap(true)
	if want := 1<<30 + server + heapBesides; trainer != want || worker != want+6<<30 {
		t.Errorf("%d, and %d where scans are read (want %d and 6 GiB more)", trainer, worker, want)
	}
	m.scans = -1 // a plan that doesn't fit is refused elsewhere
	if m.heap(true) != trainer {
		t.Error("a lack of room lowers the bound")
	}
	free := boundHeap(trainer)
	if now() != trainer {
		t.Errorf("bound %d (want %d)", now(), trainer)
	}
	boundHeap(worker)()
	if now() != trainer {
		t.Errorf("bound %d: another's was changed", now())
	}
	free()
	if now() != math.MaxInt64 {
		t.Error("the bound stays")
	}
}
