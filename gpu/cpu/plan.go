package cpu

import (
	"cmp"
	"math"
	"slices"

	"github.com/flowrun/flowrun/gpu"
)

// box is a block of targets that share their taps. Axes are z, y, x.
type box struct {
	count, first, step [3]int // targets first + step*j, j < count
	srcStep            [3]int
	walk               int // the axis that the micro-kernel walks
	k                  int // products of each tap
	slide              slide
	taps               [3][]tap // by vecs of a column; a is relative to the sample's voxel 0, 0, 0
}

// slide is how a box's taps along x fall into runs for the slide kernel: those of a run meet sources srcStep apart and lie
// bStep input channels' weights apart. taps is 0 where they don't.
type slide struct {
	taps, bStep int
	list        [3][]tap // by vecs of a column: each run's first
}

// item is a share of a box: lines of it, counted through the plan's samples.
type item struct{ box, from, to int }

// plan is how one pass of a convolution is cut into boxes and items. What padding copied along x is added afterwards, to
// the columns at the ends: so the rows before it are all alike.
type plan struct {
	boxes        []box
	items, after []item
	samples      int // that share items: all where each is small, else 1
	used         int // when
}

func (p *plan) size() int { return 64*len(p.boxes) + len(p.items) + len(p.after) }

type planKey struct {
	c                gpu.Conv // In.N and Out.N are 0
	srcHalo, dstHalo int
	forward          bool
	samples          int
}

// plans are those of the shapes that came last: a program's, again and again, or ever new ones of odd scans. limit bounds their
// sizes' sum, in items of 24 bytes.
type plans struct {
	by                 map[planKey]*plan
	clock, size, limit int
}

func (ps *plans) get(key planKey) *plan {
	p := ps.by[key]
	if p != nil {
		ps.clock++
		p.used = ps.clock
	}
	return p
}

// put adds a plan and drops those that weren't used for longest.
func (ps *plans) put(key planKey, p *plan) {
	ps.size += p.size()
	for ps.size > ps.limit && len(ps.by) > 0 {
		oldest, used := planKey{}, math.MaxInt
		for k, q := range ps.by {
			if q.used < used {
				oldest, used = k, q.used
			}
		}
		ps.size -= ps.by[oldest].size()
		delete(ps.by, oldest)
	}
	ps.clock++
	p.used = ps.clock
	ps.by[key] = p
}

// plan works out the boxes of a pass from src to dst.
func (e *Engine) plan(c gpu.Conv, src, dst grid, forward bool) *plan {
	samples := 1
	if dst.D*dst.H*dst.W <= smallTargets {
		samples = dst.N
	}
	c.In.N, c.Out.N = 0, 0
	key := planKey{c, src.Halo, dst.Halo, forward, samples}
	if p := e.plans.get(key); p != nil {
		return p
	}
	var spans [3][]gpu.Span
	for i := range spans {
		switch a := c.Axis(i); {
		case forward:
			spans[i] = a.Forward()
		case a.Halo > 0:
			spans[i] = a.BackwardInside()
		default:
			spans[i] = a.Backward()
		}
	}
	p := &plan{samples: samples}
	along := c.Axis(2)
	order := packOrder(along, forward)
	boxes := func(xs []gpu.Span) (items []item) {
		for _, z := range spans[0] {
			for _, y := range spans[1] {
				for _, x := range xs {
					b := newBox(c, src, [3]gpu.Span{z, y, x}, order, e.level)
					items = append(items, b.items(len(p.boxes), samples)...)
					p.boxes = append(p.boxes, b)
				}
			}
		}
		return items
	}
	p.items = boxes(spans[2])
	// Boxes that read the same sources take turns: what one has read the next finds in L2.
	slices.SortStableFunc(p.items, func(a, b item) int {
		n, _, s := p.boxes[a.box].line(a.from)
		m, _, t := p.boxes[b.box].line(b.from)
		return cmp.Or(cmp.Compare(n, m), cmp.Compare(s[0], t[0]), cmp.Compare(s[1], t[1]))
	})
	if !forward && along.Halo > 0 {
		p.after = boxes(along.BackwardFolded())
	}
	e.plans.put(key, p)
	return p
}

func newBox(c gpu.Conv, src grid, s [3]gpu.Span, order []int, l *level) box {
	b := box{walk: 2, k: src.C}
	for i, s := range s {
		b.count[i], b.first[i], b.step[i], b.srcStep[i] = s.Count, s.First, s.Step, s.SourceStep
	}
	// Where neighbouring sources meet neighbouring packed taps all along x, each row is one long run of products.
	xs := s[2].Pairs
	merge := 1
	if len(xs) > 0 && evenly(xs, order, 1, 1) {
		merge = len(xs)
	}
	b.k *= merge
	stride := src.strides()
	var first []int
	b.slide.taps, b.slide.bStep, first = slides(s[2], order)
	b.slide.bStep *= src.C
	if b.slide.taps == 0 {
		for i, n := range b.count {
			if n > b.count[b.walk] && b.count[b.walk] < 8 {
				b.walk = i
			}
		}
	}
	for _, z := range s[0].Pairs {
		for _, y := range s[1].Pairs {
			place := func(x gpu.Pair, vecs int) tap {
				return tap{
					z.Source*stride[0] + y.Source*stride[1] + x.Source*stride[2],
					((z.Tap*c.K[1]+y.Tap)*c.K[2] + order[x.Tap]) * src.C * l.width(vecs),
				}
			}
			for vecs := range b.taps {
				for i := 0; i < len(xs); i += merge {
					b.taps[vecs] = append(b.taps[vecs], place(xs[i], vecs))
				}
				for _, i := range first {
					b.slide.list[vecs] = append(b.slide.list[vecs], place(xs[i], vecs))
				}
			}
		}
	}
	return b
}

// evenly says that sources are step apart and their packed taps at apart, all along.
func evenly(ps []gpu.Pair, order []int, step, at int) bool {
	for i := 1; i < len(ps); i++ {
		if ps[i].Source-ps[i-1].Source != step || order[ps[i].Tap]-order[ps[i-1].Tap] != at {
			return false
		}
	}
	return true
}

// slides says how the taps of a span fall into runs: how many taps a run has, how far apart they are packed, which is the first
// of each.
func slides(x gpu.Span, order []int) (taps, bStep int, first []int) {
	if !evenly(x.Pairs, order, 1, 1) {
		return 0, 0, nil
	}
	switch n := len(x.Pairs); {
	case n == 2 && x.SourceStep == 1:
		return 2, 1, []int{0}
	case n == 3 && x.SourceStep == 1:
		return 3, 1, []int{0}
	case n == 4 && x.SourceStep == 1:
		return 2, 1, []int{0, 2}
	case n == 4 && x.SourceStep == 2:
		return 2, 2, []int{0, 1}
	}
	return 0, 0, nil
}

const (
	itemTargets  = 256  // about how many voxels one item computes
	smallTargets = 4096 // where a sample has no more, boxes at its borders are too small to pay for the weights' way to L2
)

// items shares out the lines of box number i.
func (b *box) items(i, samples int) []item {
	var items []item
	lines := samples * b.count[0] * b.count[1] * b.count[2] / b.count[b.walk]
	per := max(1, itemTargets/b.count[b.walk])
	for from := 0; from < lines; from += per {
		items = append(items, item{i, from, min(from+per, lines)})
	}
	return items
}

// line gives the sample of line i, its first target and that one's source.
func (b *box) line(i int) (sample int, target, source [3]int) {
	for ax := 2; ax >= 0; ax-- {
		j := 0
		if ax != b.walk {
			j = i % b.count[ax]
			i /= b.count[ax]
		}
		target[ax] = b.first[ax] + j*b.step[ax]
		source[ax] = j * b.srcStep[ax]
	}
	return i, target, source
}
