package nn

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/flowrun/flowrun/gpu"
)

// Kind says what bytes of the arena are for.
type Kind uint8

// The kinds. Those before Packed outlive a run, the rest share the programs' region.
const (
	Parameters  Kind = iota // master weights
	Gradients               // of the parameters
	Moments                 // Adam's two
	Averages                // running means of the weights
	Codes                   // codebook, and its counts and sums of one step
	Scratch                 // of ops outside a program
	Staged                  // the next batch, on its way while a program runs
	Packed                  // weights as the convolutions want them
	Inputs                  // what is written before a run
	Activations             // and norm statistics, codes' indices, losses
	Deltas                  // gradients of activations
	Workspace               // of one op
	Gaps                    // what the placement leaves unused at the peak
	kinds
)

var kindNames = [kinds]string{"parameters", "gradients", "optimiser", "weight averages", "codebook", "scratch", "next batch", "packed weights",
	"inputs", "activations", "activation gradients", "workspace", "gaps"}

func (k Kind) String() string { return kindNames[k] }

// Block is memory that outlives a run.
type Block struct {
	Name  string
	Kind  Kind
	Bytes int64
	At    gpu.Ptr
}

// Layout is the arena: blocks one after the other, and behind them one region that all programs share.
type Layout struct {
	blocks   []*Block
	size     int64
	programs []*Program
}

// Add appends a block.
func (l *Layout) Add(name string, kind Kind, bytes int64) *Block {
	b := &Block{Name: name, Kind: kind, Bytes: align(bytes), At: gpu.Ptr(l.size)}
	l.size += b.Bytes
	l.blocks = append(l.blocks, b)
	return b
}

// Size is the bytes of all blocks so far.
func (l *Layout) Size() int64 { return l.size }

// Bind gives the programs their region, behind the blocks: nothing may be added afterwards.
func (l *Layout) Bind(ps ...*Program) {
	l.programs = append(l.programs, ps...)
	for _, p := range ps {
		p.Bind(gpu.Ptr(l.size))
	}
}

// Bytes is the size of the arena.
func (l *Layout) Bytes() int64 {
	var region int64
	for _, p := range l.programs {
		region = max(region, p.size)
	}
	return l.size + region
}

// Plan says what the arena's bytes are for and what work a run is.
type Plan struct {
	Total      int64 // bytes: the sum over Kinds, and what the engine reserves
	Kinds      []Share
	Programs   []ProgramPlan
	Largest    []Item // of the largest program at its peak, and of the blocks; at most 12
	Forward    int64  // FLOPs of the first program's convolutions, forward
	Step       int64  // FLOPs of one whole run of the first program, with what is recomputed
	Parameters int    // elements
	Judges     int    // elements of discriminators
	State      int64  // bytes of the copy that a checkpoint holds; 0 where nothing is trained
}

// Share is the bytes of one kind. Those of the region are what the largest program has live at its peak.
type Share struct {
	Kind  Kind
	Bytes int64
}

// ProgramPlan is one program's share of the region.
type ProgramPlan struct {
	Name       string
	Bytes      int64
	Live       int64 // bytes live at the peak: no placement needs less
	Peak       string
	Forward    int64 // FLOPs
	Total      int64
	Recomputed []string
}

// Item is one tensor or block.
type Item struct {
	Name  string
	Kind  Kind
	Bytes int64
	Dims  gpu.Dims // zero for what isn't a tensor
}

// Plan sums up the arena. The largest program decides the region.
func (l *Layout) Plan() *Plan {
	p := &Plan{Total: l.Bytes()}
	var by [kinds]int64
	for _, b := range l.blocks {
		by[b.Kind] += b.Bytes
		p.Largest = append(p.Largest, Item{Name: b.Name, Kind: b.Kind, Bytes: b.Bytes})
	}
	var top *Program
	for i, q := range l.programs {
		forward, total := q.FLOPs()
		if i == 0 {
			p.Forward, p.Step = forward, total
		}
		var live int64
		for _, n := range q.live {
			live += n
		}
		p.Programs = append(p.Programs, ProgramPlan{Name: q.Name, Bytes: q.size, Live: live, Peak: q.ins[q.peakAt].String(),
			Forward: forward, Total: total, Recomputed: q.recomputed})
		if top == nil || q.size > top.size {
			top = q
		}
	}
	if top != nil {
		gaps := top.size
		for k, n := range top.live {
			by[k] += n
			gaps -= n
		}
		by[Gaps] += gaps
		p.Largest = append(p.Largest, top.items()...)
	}
	for k, n := range by {
		if n > 0 {
			p.Kinds = append(p.Kinds, Share{Kind(k), n})
		}
	}
	slices.SortStableFunc(p.Largest, func(a, b Item) int { return cmp.Compare(b.Bytes, a.Bytes) })
	p.Largest = p.Largest[:min(12, len(p.Largest))]
	return p
}

// Of is the bytes of one kind.
func (p *Plan) Of(k Kind) int64 {
	for _, s := range p.Kinds {
		if s.Kind == k {
			return s.Bytes
		}
	}
	return 0
}

// items are what is live at the peak.
func (p *Program) items() []Item {
	dims := map[*buffer]gpu.Dims{}
	for _, t := range p.tensors {
		dims[t.buf] = t.Dims
	}
	var out []Item
	for _, b := range p.buffers {
		if b.into == nil && b.first <= p.peakAt && p.peakAt <= b.last {
			out = append(out, Item{Name: b.name, Kind: b.kind, Bytes: b.bytes, Dims: dims[b]})
		}
	}
	return out
}

// Write prints the plan, for people.
func (p *Plan) Write(w io.Writer) error {
	lines := []string{fmt.Sprintf("%-22s %12s\n", "arena", human(p.Total))}
	for _, s := range p.Kinds {
		lines = append(lines, fmt.Sprintf("  %-20s %12s\n", s.Kind, human(s.Bytes)))
	}
	lines = append(lines, "programs, one at a time in one region\n")
	for _, q := range p.Programs {
		lines = append(lines, fmt.Sprintf("  %-34s %12s  %8.3f TFLOP  peak at %s\n", q.Name, human(q.Bytes), float64(q.Total)/1e12, q.Peak))
		if len(q.Recomputed) > 0 {
			lines = append(lines, fmt.Sprintf("    recomputes %d values in the backward pass\n", len(q.Recomputed)))
		}
	}
	lines = append(lines, "largest\n")
	for _, i := range p.Largest {
		dims := ""
		if i.Dims != (gpu.Dims{}) {
			dims = fmt.Sprintf("%d×%d×%d×%d×%d", i.Dims.N, i.Dims.W, i.Dims.H, i.Dims.D, i.Dims.C)
		}
		lines = append(lines, fmt.Sprintf("  %-44s %12s  %-20s %s\n", i.Name, human(i.Bytes), i.Kind, dims))
	}
	for _, s := range lines {
		if _, err := io.WriteString(w, s); err != nil {
			return fmt.Errorf("plan: %w", err)
		}
	}
	return nil
}

// human writes bytes in a unit that fits: 1.5 GiB.
func human(n int64) string {
	x, unit := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB"} {
		if x < 1024 {
			break
		}
		x, unit = x/1024, u
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.4g %s", x, unit)
}
