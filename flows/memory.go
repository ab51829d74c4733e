package flows

import (
	"fmt"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/stages/augment"
	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/codes"
	"github.com/flowrun/flowrun/stages/infer"
	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/shuffle"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/train"
)

// memory is how a run divides the host's memory, in bytes.
type memory struct {
	limit      int64 // all of it
	engine     int64 // the CPU engine's arena; 0 on a GPU
	batches    int64 // float32 buffers of batch
	snapshot   int64 // the host copy that a checkpoint is written from
	validation int64 // the held-out scan being measured, and its patches
	output     int64 // what merge, measure and write hold
	queue      int64 // patches on their way to and from a queue, and its server where that is in this process
	scans      int64 // what is left for volumes: the pipe's budget
	least      int64 // what volumes can't do without
}

func (m memory) String() string {
	more := ""
	if m.output > 0 {
		more += "output " + size(m.output) + ", "
	}
	if m.queue > 0 {
		more += "queue " + size(m.queue) + ", "
	}
	left := fmt.Sprintf("leaves %s of %s for scans", size(m.scans), size(m.limit))
	if m.scans < 0 {
		left = fmt.Sprintf("is %s more than the %s there are", size(-m.scans), size(m.limit))
	}
	return fmt.Sprintf("engine %s, batches %s, snapshot %s, validation %s, %swhich %s",
		size(m.engine), size(m.batches), size(m.snapshot), size(m.validation), more, left)
}

// divide works out the budget for scans and refuses one in which the graph would stand still.
func (j *Job) divide(d *data, arena, snapshot int64, batches int64) (memory, error) {
	m := memory{limit: j.run.Memory, engine: arena, batches: batches, snapshot: snapshot, output: j.output(d), queue: j.queueBytes()}
	if m.limit == 0 {
		m.limit = hostMemory() / 4 * 3
	}
	if _, most := largest(d.held, j.cost); len(d.held) > 0 {
		m.validation = most
	}
	m.scans = m.limit - m.engine - m.batches - m.snapshot - m.validation - m.output - m.queue
	if _, ok := option[codes.LoadOptions](j); ok {
		return m, nil // no volumes
	}
	// The scan on its way, and the shuffles' windows: one that is larger than an epoch holds all of it until the next
	// epoch's first scan comes.
	held, windows := 1, int64(0)
	if _, ok := option[infer.Options](j); ok && !j.exact() {
		held = min(2, len(d.train)) // a batch may hold the end of one scan until the next one comes
	}
	for _, p := range j.pieces {
		if o, ok := p.options.(*shuffle.Options); ok && j.ends().learn == nil { // behind a queue it holds patches
			held += min(o.Volumes, len(d.train))
			windows++
		}
	}
	if m.scans < 0 && len(d.train) == 0 {
		return m, configErrorf("run.memory: too little: %s: raise run.memory", m)
	}
	big, most := largest(d.train, j.cost)
	m.least = int64(held) * most
	others := ""
	if n := j.batched(d); n > 0 {
		m.least = max(m.least, min(m.least+n, total(d.train, j.cost)))
		others = " and those whose tiles share a batch with theirs"
	}
	lack := m.least - m.scans
	if lack <= 0 {
		return m, nil
	}
	hint := "raise run.memory"
	switch room := m.scans/most - 1; {
	case windows > 0 && room >= windows:
		hint = fmt.Sprintf("set shuffle.volumes to %d or less, or raise run.memory", room/windows)
	case int64(held)*most <= m.scans, j.oneByOne(m.batches) >= lack:
		hint = "lower batch.size, or raise run.memory"
	case m.engine/2 >= lack:
		hint = "choose a smaller tile.patch or model, or raise run.memory"
	}
	if m.scans < 0 {
		return m, configErrorf("run.memory: too little: %s: %s", m, hint)
	}
	scans := fmt.Sprintf("%d scans as large as %s (%s)%s are", held, big.ID, size(most), others)
	if held == 1 && others == "" {
		scans = fmt.Sprintf("one scan as large as %s (%s) is", big.ID, size(most))
	}
	return m, configErrorf("run.memory: too little: %s, but %s held at a time, %s: %s", m, scans, size(m.least), hint)
}

// oneByOne is what batches of one patch would take less.
func (j *Job) oneByOne(batches int64) int64 {
	o, _ := option[batch.Options](j)
	return batches - batches/int64(max(1, o.Size))
}

// heap is what Go's heap should stay below: all but the engine's arena, which lies elsewhere. Where no scans are read their share is
// nobody's, and beside a queue's server it isn't given away: messages of megabytes are garbage soon, and would double the heap.
func (m memory) heap(reads bool) int64 {
	n := m.limit - m.engine + heapBesides
	if !reads {
		n -= max(0, m.scans)
	}
	return n
}

// heapBesides is room for what the plan doesn't count.
const heapBesides = 128 << 20

// batched is the most that scans cost which a batch on the way back may hold beside its first one, while it waits for a tile
// of the next: those with few tiles. Any that lie between them may turn out to be bad.
func (j *Job) batched(d *data) int64 {
	b, ok := option[batch.Options](j)
	_, back := option[infer.Options](j)
	_, tiles := option[tile.Options](j)
	if !ok || !back || !tiles || j.exact() || b.Size < 3 {
		return 0
	}
	most := make([]int64, b.Size-1) // by so many tiles: the batch is short of one, and one is the first scan's
	for _, s := range d.train {
		n, cost := d.tiles(s), j.cost(s)
		for room := len(most) - 1; room >= n; room-- {
			most[room] = max(most[room], most[room-n]+cost)
		}
	}
	return most[len(most)-1]
}

// reserve takes the memory of all that isn't the engine's from its limit, so that its planner leaves room for scans. Where
// it can't, the limit stays, and divide says what is missing.
func (j *Job) reserve(e gpu.Engine, d *data, o train.Options, patch [3]int) {
	j.reserved = 0
	plan, _ := j.plan(e, o, patch)
	m := j.maker(patch)
	if plan == nil || m == nil || j.card != nil {
		return
	}
	parts, _ := j.divide(d, 0, plan.State, m.Bytes())
	j.reserved = parts.limit - parts.scans + parts.least
	if _, err := j.plan(e, o, patch); err != nil {
		j.reserved = 0
	}
}

// maker returns the batch stage's buffers.
func (j *Job) maker(patch [3]int) *batch.Maker {
	o, ok := option[batch.Options](j)
	if !ok {
		return nil
	}
	m := batch.New(*o, patch, batchBuffers)
	m.Workers = j.workers()
	_, m.Keep = option[infer.Options](j)
	for _, p := range j.pieces {
		if a, ok := p.options.(*augment.Options); ok && a.NoiseHU > 0 {
			m.Noise = true
		}
	}
	return m
}

// size says bytes in binary units.
func size(n int64) string {
	switch f := float64(n); {
	case n < 0:
		return "-" + size(-n)
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", f/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.0f MiB", f/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.0f KiB", f/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

// hostMemory is the memory that this process may use: the machine's, or its control group's where that is less.
func hostMemory() int64 {
	if _, total := observe.Available(); total > 0 {
		return total
	}
	return 8 << 30 // where nobody says
}

// list says x, y, z as YAML does.
func list(v [3]int) string { return fmt.Sprintf("[%d, %d, %d]", v[0], v[1], v[2]) }
