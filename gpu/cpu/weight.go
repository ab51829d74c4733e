package cpu

import "github.com/flowrun/flowrun/gpu"

// The weight gradient of a tap is a matrix product too: input channels by output channels, summed over voxels. Voxels are cut
// into units (a few rows of outputs) and units are dealt to a fixed number of parts, each with sums of its own, which are
// added in order at the end. Parts are split by the shape alone, so bits don't depend on threads. Each part goes through its
// units plane by plane: what a unit reads and the one before it didn't is a plane's strip, fetched while that one is computed.

// weightSplit is how a convolution's weight gradient is cut.
type weightSplit struct {
	parts  int // partial sums
	groups int // of taps, in each part
	planes int // of outputs in a unit
	rows   int // of outputs in each of its planes
	layers int // units along z
	strips int // units along y
	size   int // weights and biases
}

const (
	unitVoxels = 512     // products behind each sum in one go: enough to pay for the sums' way to memory and back
	partVoxels = 4096    // products behind each sum of a part: enough to pay for clearing it and adding it up
	partBytes  = 8 << 20 // all parts together, about
	maxParts   = 32
	leastTasks = 4         // parts times groups, where two parts do
	groupBytes = 256 << 10 // sums that a group of taps may have: they stay in L2 while units go by
)

// stacked is the same convolution of one sample where nothing joins its planes: images become planes.
func stacked(c gpu.Conv) gpu.Conv {
	if c.K[0] == 1 {
		c.In.N, c.In.D = 1, c.In.N*c.In.D
		c.Out.N, c.Out.D = 1, c.Out.N*c.Out.D
	}
	return c
}

// weightSplit depends on the shape.
func (e *Engine) weightSplit(c gpu.Conv) weightSplit {
	c = stacked(c)
	s := weightSplit{groups: 1, planes: 1, size: c.Taps()*c.In.C*c.Out.C + c.Out.C}
	each, share, voxels := c.Out.W, 1, c.Out.Voxels()
	if c.Transposed { // a tap meets one output in so many
		each, share, voxels = c.Out.W/c.S[2], c.S[1], c.In.Voxels()
		s.planes = c.S[0]
	}
	s.rows = min(chunks(unitVoxels, max(1, each))*share, c.Out.H)
	s.planes *= max(1, unitVoxels/max(1, each*s.rows/share))
	s.layers, s.strips = chunks(c.Out.D, s.planes), chunks(c.Out.H, s.rows)
	for _, s.groups = range []int{1, c.K[0], c.K[0] * c.K[1]} {
		if 4*s.size/s.groups <= groupBytes {
			break
		}
	}
	s.parts = max(min(partBytes/(4*s.size), chunks(voxels, partVoxels), maxParts), min(2, chunks(leastTasks, s.groups)))
	s.parts = min(s.parts, c.Out.N*s.layers*s.strips)
	return s
}

func (s weightSplit) floats() int { return s.parts * s.size }

// unit is a block of outputs: planes z0 ≤ z < z1, rows y0 ≤ y < y1 of sample n.
type unit struct{ n, z0, z1, y0, y1 int }

// unit is number i.
func (s weightSplit) unit(out gpu.Dims, i int) unit {
	z, y := i%s.layers*s.planes, i/s.layers%s.strips*s.rows
	return unit{i / s.layers / s.strips, z, min(z+s.planes, out.D), y, min(y+s.rows, out.H)}
}

// ConvGradWeight adds to dw and db.
func (e *Engine) ConvGradWeight(c gpu.Conv, x, dy gpu.Tensor, dw, db, workspace gpu.Ptr) {
	checkConv(c, x.Dims, dy.Dims)
	s := e.weightSplit(c)
	c = stacked(c)
	x.Dims, dy.Dims = c.In, c.Out
	in, out := e.grid(x), e.grid(dy)
	work := e.floats(workspace, s.floats())
	units := out.N * s.layers * s.strips
	all := weightPart{
		e: e, c: c, in: in, out: out, axes: [3]gpu.Axis{c.Axis(0), c.Axis(1), c.Axis(2)},
		cols: e.level.blocks(out.C), inCols: e.level.blocks(c.K[2] * in.C),
	}
	all.slide, all.first = slideOf(all.axes[2])
	e.pool.runOn(s.parts*s.groups, func(thread, i int) {
		part, group := i/s.groups, i%s.groups
		sums := work[part*s.size : (part+1)*s.size]
		g := &e.scratch[thread].part
		*g = all
		g.scratch, g.sums = &e.scratch[thread], sums
		zy := c.K[0] * c.K[1]
		g.from, g.to = group*zy/s.groups, (group+1)*zy/s.groups
		each := c.K[2] * c.In.C * c.Out.C
		clear(sums[g.from*each : g.to*each])
		bias := sums[s.size-c.Out.C:]
		if group == 0 {
			clear(bias)
		}
		from, to := part*units/s.parts, (part+1)*units/s.parts
		for i := from; i < to; i++ {
			u := s.unit(out.Dims, i)
			g.soon = g.soon[:0]
			if i+1 < to {
				g.expect(u, s.unit(out.Dims, i+1))
			}
			for k := g.from; k < g.to; k++ {
				g.products(u, k/c.K[1], k%c.K[1])
			}
			if group == 0 {
				g.bias(bias, u)
			}
		}
	})
	w, b := e.floats(dw, s.size-c.Out.C), e.floats(db, c.Out.C)
	e.pool.run(chunks(s.size, chunkFloats), func(i int) {
		from, to := i*chunkFloats, min((i+1)*chunkFloats, s.size)
		for part := range s.parts {
			sums := work[part*s.size : (part+1)*s.size]
			if n := min(to, len(w)); from < n {
				e.level.add(w[from:n], w[from:n], sums[from:n])
			}
			if f := max(from, len(w)); f < to {
				v := b[f-len(w) : to-len(w)]
				e.level.add(v, v, sums[f:to])
			}
		}
	})
}

// weightPart computes one part's sums.
type weightPart struct {
	e *Engine
	*scratch
	c       gpu.Conv
	in, out grid
	axes    [3]gpu.Axis
	cols    []column // of the output's channels
	inCols  []column // of a row of taps and the input's channels
	slide   int      // taps that the outerSlide kernel takes at once
	first   []int    // of each run of them
	from    int      // taps z, y of the group: from ≤ kz*K[1] + ky < to
	to      int
	sums    []float32
}

// products adds those of taps (kz, ky, all x) over a unit.
func (g *weightPart) products(u unit, kz, ky int) {
	g.taps = g.taps[:0]
	for z := u.z0; z < u.z1; z++ {
		iz, ok := g.axes[0].Input(z, kz)
		if !ok {
			continue
		}
		for y := u.y0; y < u.y1; y++ {
			if iy, ok := g.axes[1].Input(y, ky); ok {
				g.taps = append(g.taps, tap{g.in.at(u.n, iz, iy, 0), g.out.at(u.n, z, y, 0)})
			}
		}
	}
	if len(g.taps) == 0 {
		return
	}
	c, x := g.c, g.axes[2]
	base := (kz*c.K[1] + ky) * c.K[2] * g.in.C * g.out.C
	o := &g.outer
	if g.out.C == 1 && !c.Transposed {
		// Nothing to fill a vector with but the inputs' channels: operands change places.
		for i, t := range g.taps {
			g.taps[i] = tap{t.b, t.a}
		}
		*o = outer{a: g.out.v, b: g.in.v, taps: g.taps, lda: 1, ldb: x.S * g.in.C, k: x.Out, m: 1}
		for _, col := range g.inCols {
			o.n, o.vecs, o.b0, o.c = col.n, col.vecs, col.first-x.Lo*g.in.C, g.sums[base+col.first:]
			g.e.level.outer(o)
		}
		return
	}
	*o = outer{a: g.in.v, b: g.out.v, taps: g.taps, lda: g.in.C, ldb: g.out.C, ldc: g.out.C}
	if c.Transposed {
		o.ldb *= x.S
	} else {
		o.lda *= x.S
	}
	l := g.e.level
	for _, col := range g.cols {
		switch rows := l.outerSlideRows[g.slide][col.vecs]; {
		case rows > 0 && g.in.C >= 4:
			o.slide, o.cStep = g.slide, x.S*g.in.C*g.out.C
			if c.Transposed {
				o.cStep = -o.cStep
			}
			for _, kx := range g.first {
				g.multiply(col, l.outerSlide, rows, kx, g.in.C, base)
			}
		case c.Transposed:
			for kx := range c.K[2] {
				g.multiply(col, l.outer, l.outerRows[col.vecs], kx, g.in.C, base)
			}
		default: // neighbouring taps meet neighbouring inputs: they are rows of one product
			g.multiply(col, l.outer, l.outerRows[col.vecs], 0, c.K[2]*g.in.C, base)
		}
	}
}

// slideOf says how many taps along x the outerSlide kernel takes at once, and which is the first of each run. Inputs
// ascend by a stride from tap to tap: forwards among taps of a convolution, backwards among those of a transposed one.
func slideOf(a gpu.Axis) (taps int, first []int) {
	switch {
	case a.K == 3 && a.S == 1 && !a.Transposed:
		return 3, []int{0}
	case a.K == 4 && a.S == 1 && !a.Transposed:
		return 2, []int{0, 2}
	case a.K == 4 && a.S == 2 && !a.Transposed:
		return 2, []int{0, 1}
	case a.K == 4 && a.S == 1:
		return 2, []int{1, 3}
	case a.K == 4 && a.S == 2:
		return 2, []int{2, 3}
	}
	return 0, nil
}

// multiply adds the products of tap kx's inputs and outputs to the sums of one block of columns; rows of them begin at tap kx.
func (g *weightPart) multiply(col column, kernel func(*outer), limit, kx, rows, base int) {
	o := &g.outer
	i0, o0, count := g.axes[2].Overlap(kx)
	if count == 0 {
		return
	}
	o.k, o.n, o.vecs, o.b0 = count, col.n, col.vecs, o0*g.out.C+col.first
	base += kx*g.in.C*g.out.C + col.first
	for first := 0; first < rows; first += o.m {
		o.m = share(rows-first, limit)
		o.a0, o.c = i0*g.in.C+first, g.sums[base+first*g.out.C:]
		if o.slide > 0 {
			o.ahead = g.ahead(16 * len(o.taps) * ((o.k - 1) / o.slide))
		}
		kernel(o)
	}
}

// expect lists what the group reads in the next unit and doesn't in this one.
func (g *weightPart) expect(now, next unit) {
	top, bottom := g.in.H, -1
	for y := next.y0; y < next.y1; y++ {
		for ky := range g.c.K[1] {
			if i, ok := g.axes[1].Input(y, ky); ok {
				top, bottom = min(top, i), max(bottom, i)
			}
		}
	}
	for z := next.z0; z < next.z1; z++ {
		meets := false // the plane
		for kz := g.from / g.c.K[1]; kz <= (g.to-1)/g.c.K[1]; kz++ {
			i, ok := g.axes[0].Input(z, kz)
			if !ok {
				continue
			}
			meets = true
			if top <= bottom && (now.y0 != next.y0 || now.n != next.n || !g.reads(now, i)) {
				g.soon = append(g.soon, g.in.strip(next.n, i, top, bottom+1))
			}
		}
		if meets || g.from == 0 { // or it sums up the bias
			g.soon = append(g.soon, g.out.strip(next.n, z, next.y0, next.y1))
		}
	}
}

// reads says whether the group reads input plane i in a unit.
func (g *weightPart) reads(u unit, i int) bool {
	for z := u.z0; z < u.z1; z++ {
		for kz := g.from / g.c.K[1]; kz <= (g.to-1)/g.c.K[1]; kz++ {
			if j, ok := g.axes[0].Input(z, kz); ok && i == j {
				return true
			}
		}
	}
	return false
}

// ahead takes n floats of what is expected. Where nothing is, it gives what is at hand.
func (g *weightPart) ahead(n int) []float32 {
	if len(g.soon) == 0 {
		return g.outer.c
	}
	v := g.soon[0]
	if g.soon[0] = v[min(n, len(v)):]; len(g.soon[0]) == 0 {
		g.soon = g.soon[1:]
	}
	return v
}

// bias adds the sums of dy.
func (g *weightPart) bias(sums []float32, u unit) {
	g.taps = g.taps[:0]
	for z := u.z0; z < u.z1; z++ {
		for y := u.y0; y < u.y1; y++ {
			g.taps = append(g.taps, tap{0, g.out.at(u.n, z, y, 0)})
		}
	}
	o := &g.outer
	*o = outer{a: one[:], b: g.out.v, taps: g.taps, k: g.out.W, ldb: g.out.C, ldc: g.out.C, m: 1}
	for _, col := range g.cols {
		o.n, o.vecs, o.b0, o.c = col.n, col.vecs, col.first, sums[col.first:]
		g.e.level.outer(o)
	}
}

// one is what a bias is multiplied by.
var one = [1]float32{1}
