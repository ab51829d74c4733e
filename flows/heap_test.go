package flows

import (
	"runtime/debug"
	"testing"

	"github.com/flowrun/flowrun/stages/queue"
)

// A process with a queue's server and no scans to read keeps its heap to what is planned for all else.
func TestLimitMemoryBesideAServer(t *testing.T) {
	server := serverBytes([3]int{256, 256, 128})
	if server < 192<<20 || server > 256<<20 || serverBytes([3]int{}) != server || serverBytes([3]int{8, 8, 4}) != 64<<20 {
		t.Errorf("a server is given %s for patches of 16 MiB, %s for small ones", size(server), size(serverBytes([3]int{8, 8, 4})))
	}
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	m := memory{limit: 16 << 30, engine: 8 << 30, batches: 1 << 30, queue: server}
	m.scans = m.limit - m.engine - m.batches - m.queue
	for _, c := range []struct {
		q    *queues
		want int64
	}{
		{nil, 8<<30 + heapBesides},
		{&queues{}, 8<<30 + heapBesides},
		{&queues{server: new(queue.Embedded), reads: true}, 8<<30 + heapBesides},
		{&queues{server: new(queue.Embedded)}, 1<<30 + server + heapBesides},
	} {
		(&run{parts: m, queues: c.q}).limitMemory(func(string) string { return "" })
		if got := debug.SetMemoryLimit(-1); got != c.want {
			t.Errorf("the limit is %s (want %s)", size(got), size(c.want))
		}
	}
}
