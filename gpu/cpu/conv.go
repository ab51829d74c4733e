package cpu

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/flowrun/flowrun/gpu"
)

// A convolution is, for each tap, a matrix product on a shifted window: targets along a row by channels, from sources along
// a row by channels. Targets fall into boxes that share their taps (one inside, others where a border folds taps
// or a stride has phases); the micro-kernel (kernel.go: product) walks a box and sums over all taps in registers.

// column is a block of output channels that one call of the micro-kernel computes.
type column struct {
	first, n, vecs int
	at             int // offset of the block among the packed weights, per tap and input channel
}

func (l *level) columns(channels int) []column {
	if channels == 1 {
		return []column{{n: 1}}
	}
	return l.blocks(channels)
}

// blocks cuts channels into blocks of one or two vectors.
func (l *level) blocks(channels int) []column {
	var cs []column
	at := 0
	for first := 0; first < channels; {
		n := min(channels-first, 2*l.lanes)
		vecs := chunks(n, l.lanes)
		cs = append(cs, column{first, n, vecs, at})
		first += n
		at += vecs * l.lanes
	}
	return cs
}

// width is how many floats a block takes per tap and input channel.
func (l *level) width(vecs int) int { return max(1, vecs*l.lanes) }

// packedWidth is the width of all blocks.
func (l *level) packedWidth(channels int) int {
	if channels == 1 {
		return 1
	}
	return chunks(channels, l.lanes) * l.lanes
}

// ConvSizes says what memory a convolution wants.
func (e *Engine) ConvSizes(c gpu.Conv) gpu.ConvSizes {
	taps := c.Taps()
	return gpu.ConvSizes{
		Packed:     bytesOf(taps * c.In.C * e.level.packedWidth(c.Out.C)),
		PackedGrad: bytesOf(taps * c.Out.C * e.level.packedWidth(c.In.C)),
		Workspace:  bytesOf(e.weightSplit(c).floats()),
	}
}

// PackConv lays weights out as the micro-kernel reads them: [block of output channels][tap][input channel][lanes].
func (e *Engine) PackConv(c gpu.Conv, w, packed, packedGrad gpu.Ptr) {
	src := e.floats(w, c.Taps()*c.In.C*c.Out.C)
	e.pack(c, src, packed, true)
	if packedGrad >= 0 {
		e.pack(c, src, packedGrad, false)
	}
}

func (e *Engine) pack(c gpu.Conv, w []float32, packed gpu.Ptr, forward bool) {
	ci, co := c.In.C, c.Out.C
	rows, cols := ci, co
	if !forward {
		rows, cols = co, ci
	}
	taps := c.Taps()
	dst := e.floats(packed, taps*rows*e.level.packedWidth(cols))
	order := axisOf(c, 2).packOrder(forward)
	blocks := e.level.columns(cols)
	e.pool.run(len(blocks)*taps, func(i int) {
		b, t := blocks[i/taps], i%taps
		width := e.level.width(b.vecs)
		at := t/c.K[2]*c.K[2] + order[t%c.K[2]]
		out := dst[b.at*taps*rows+at*rows*width:][:rows*width]
		if forward {
			for k := range rows {
				line := out[k*width : (k+1)*width]
				clear(line[copy(line, w[(t*ci+k)*co+b.first:][:b.n]):])
			}
			return
		}
		for k := range rows {
			line := out[k*width : (k+1)*width]
			for j := range b.n {
				line[j] = w[(t*ci+b.first+j)*co+k]
			}
			clear(line[b.n:])
		}
	})
}

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
}

type planKey struct {
	c                gpu.Conv // In.N and Out.N are 0
	srcHalo, dstHalo int
	forward          bool
	samples          int
}

// plan works out the boxes of a pass from src to dst.
func (e *Engine) plan(c gpu.Conv, src, dst grid, forward bool) *plan {
	samples := 1
	if dst.D*dst.H*dst.W <= smallTargets {
		samples = dst.N
	}
	c.In.N, c.Out.N = 0, 0
	key := planKey{c, src.Halo, dst.Halo, forward, samples}
	if p := e.plans[key]; p != nil {
		return p
	}
	var spans [3][]span
	for i := range spans {
		if a := axisOf(c, i); forward {
			spans[i] = a.forwardSpans()
		} else {
			spans[i] = a.backwardSpans()
		}
	}
	p := &plan{samples: samples}
	along := axisOf(c, 2)
	boxes := func(xs []span) (items []item) {
		for _, z := range spans[0] {
			for _, y := range spans[1] {
				for _, x := range xs {
					b := newBox(c, src, [3]span{z, y, x}, along.packOrder(forward), e.level)
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
	if !forward && along.halo > 0 {
		p.after = boxes(along.foldedSpans())
	}
	e.plans[key] = p
	return p
}

func newBox(c gpu.Conv, src grid, s [3]span, order []int, l *level) box {
	b := box{walk: 2, k: src.C}
	for i, s := range s {
		b.count[i], b.first[i], b.step[i], b.srcStep[i] = s.count, s.first, s.step, s.srcStep
	}
	// Where neighbouring sources meet neighbouring packed taps all along x, each row is one long run of products.
	xs := s[2].pairs
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
	for _, z := range s[0].pairs {
		for _, y := range s[1].pairs {
			place := func(x pair, vecs int) tap {
				return tap{
					z.src*stride[0] + y.src*stride[1] + x.src*stride[2],
					((z.k*c.K[1]+y.k)*c.K[2] + order[x.k]) * src.C * l.width(vecs),
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
func evenly(ps []pair, order []int, step, at int) bool {
	for i := 1; i < len(ps); i++ {
		if ps[i].src-ps[i-1].src != step || order[ps[i].k]-order[ps[i-1].k] != at {
			return false
		}
	}
	return true
}

// slides says how the taps of a span fall into runs: how many taps a run has, how far apart they are packed, which is the first
// of each.
func slides(x span, order []int) (taps, bStep int, first []int) {
	if !evenly(x.pairs, order, 1, 1) {
		return 0, 0, nil
	}
	switch n := len(x.pairs); {
	case n == 2 && x.srcStep == 1:
		return 2, 1, []int{0}
	case n == 3 && x.srcStep == 1:
		return 3, 1, []int{0}
	case n == 4 && x.srcStep == 1:
		return 2, 1, []int{0, 2}
	case n == 4 && x.srcStep == 2:
		return 2, 2, []int{0, 1}
	}
	return 0, 0, nil
}

const (
	itemTargets  = 256     // about how many voxels one item computes
	smallTargets = 4096    // where a sample has no more, boxes at its borders are too small to pay for the weights' way to L2
	warmBytes    = 1 << 20 // of weights that stay in L2 while sources go by
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

// Conv writes y = conv(x) + bias (+ add).
func (e *Engine) Conv(c gpu.Conv, x gpu.Tensor, packed, bias gpu.Ptr, add *gpu.Tensor, y gpu.Tensor) {
	checkConv(c, x.Dims, y.Dims)
	e.multiply(c, x, packed, e.floats(bias, c.Out.C), add, y, true)
}

// ConvGradInput writes the gradient with respect to x.
func (e *Engine) ConvGradInput(c gpu.Conv, dy gpu.Tensor, packedGrad gpu.Ptr, dx gpu.Tensor) {
	checkConv(c, dx.Dims, dy.Dims)
	e.multiply(c, dy, packedGrad, nil, nil, dx, false)
}

func checkConv(c gpu.Conv, x, y gpu.Dims) {
	if c.In.C != x.C || c.Out.C != y.C || x.D != c.In.D || x.H != c.In.H || x.W != c.In.W || y.D != c.Out.D || y.H != c.Out.H || y.W != c.Out.W || x.N != y.N {
		panic(fmt.Sprintf("cpu: convolution of %v to %v given %v and %v", c.In, c.Out, x, y))
	}
}

// multiply runs a pass: dst = Σ src·packed + bias + add.
func (e *Engine) multiply(c gpu.Conv, from gpu.Tensor, packed gpu.Ptr, bias []float32, add *gpu.Tensor, to gpu.Tensor, forward bool) {
	src, dst := e.grid(from), e.grid(to)
	if src.Halo < c.Halo() {
		panic(fmt.Sprintf("cpu: convolution wants a halo of %d, its operand has %d", c.Halo(), src.Halo))
	}
	var extra grid
	if add != nil {
		same(*add, to)
		extra = e.grid(*add)
	}
	taps, l := c.Taps(), e.level
	w := e.floats(packed, taps*src.C*l.packedWidth(dst.C))
	if bias == nil {
		bias = make([]float32, dst.C)
	}
	p := e.plan(c, src, dst, forward)
	m := multiplier{e: e, plan: p, src: src, dst: dst, add: extra, w: w, bias: bias, taps: taps, blocks: l.columns(dst.C)}
	m.runAll(p.items)
	if len(p.after) > 0 {
		m.add, m.bias = dst, make([]float32, dst.C)
		m.runAll(p.after)
	}
	e.fillHalo(dst)
}

// multiplier runs the items of one pass.
type multiplier struct {
	e             *Engine
	plan          *plan
	src, dst, add grid // add.v may be nil
	w, bias       []float32
	taps          int
	blocks        []column
}

// runAll runs items, each once for every block of output channels: all blocks on the same sources, or, where weights are
// many and sources few, all sources with the same weights.
func (m *multiplier) runAll(items []item) {
	each := m.dst.N / m.plan.samples * len(items)
	byBlock := 4*len(m.w) > warmBytes && m.dst.Voxels()/itemTargets*len(m.w) > len(m.blocks)*len(m.src.v)
	m.e.pool.runOn(each*len(m.blocks), func(thread, i int) {
		block, at := i%len(m.blocks), i/len(m.blocks)
		if byBlock {
			block, at = i/each, i%each
		}
		m.run(&m.e.scratch[thread].product, m.blocks[block], at/len(items)*m.plan.samples, items[at%len(items)])
	})
}

// run computes an item of the samples from n on, for one block of output channels.
func (m *multiplier) run(q *product, col column, n int, it item) {
	l, src, dst := m.e.level, m.src, m.dst
	b := &m.plan.boxes[it.box]
	count := b.count[b.walk]
	*q = product{
		a: src.v, b: m.w[col.at*m.taps*src.C:][:m.taps*src.C*l.width(col.vecs)], bias: m.bias[col.first:], taps: b.taps[col.vecs],
		k: b.k, n: col.n, vecs: col.vecs,
		lda: b.srcStep[b.walk] * src.strides()[b.walk], ldc: b.step[b.walk] * dst.strides()[b.walk],
	}
	kernel, rows := l.product, l.rows[col.vecs]
	if n := l.slideRows[b.slide.taps][col.vecs]; n > 0 {
		kernel, rows = l.slide, n
		q.k, q.slide, q.bStep, q.taps = src.C, b.slide.taps, b.slide.bStep*l.width(col.vecs), b.slide.list[col.vecs]
	}
	if m.add.v != nil {
		q.ldadd = b.step[b.walk] * m.add.strides()[b.walk]
	}
	for line := it.from; line < it.to; line++ {
		sample, t, s := b.line(line)
		sample += n
		a0, c0, add0 := src.at(sample, s[0], s[1], s[2]), dst.at(sample, t[0], t[1], t[2])+col.first, 0
		if m.add.v != nil {
			add0 = m.add.at(sample, t[0], t[1], t[2]) + col.first
		}
		for done := 0; done < count; done += q.m {
			q.m = share(count-done, rows)
			q.a0 = a0 + done*q.lda
			q.c = dst.v[c0+done*q.ldc:]
			if m.add.v != nil {
				q.add = m.add.v[add0+done*q.ldadd:]
			}
			kernel(q)
		}
	}
}

// share splits n into equal parts of at most limit and gives the next one's size.
func share(n, limit int) int { return chunks(n, chunks(n, limit)) }

// fillHalo fills the halo of every row.
func (e *Engine) fillHalo(g grid) {
	if g.Halo == 0 {
		return
	}
	const per = 256
	e.pool.run(chunks(g.rows(), per), func(i int) {
		for r := i * per; r < min((i+1)*per, g.rows()); r++ {
			g.fillHalo(r)
		}
	})
}
