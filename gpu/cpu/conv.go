package cpu

import (
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
	order := packOrder(c.Axis(2), forward)
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

// packOrder says where each tap along an axis lies among the packed weights, such that taps which meet neighbouring sources lie side by
// side: products over them and their channels are then one run.
func packOrder(a gpu.Axis, forward bool) []int {
	ks := a.Order(forward)
	if a.Fine(forward) {
		slices.SortStableFunc(ks, func(p, q int) int { return p%a.S - q%a.S })
	}
	at := make([]int, a.K)
	for i, k := range ks {
		at[k] = i
	}
	return at
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
	if c.In != x || c.Out != y {
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

// warmBytes is how many bytes of weights stay in L2 while sources go by.
const warmBytes = 1 << 20

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
