package cpu

// tap is where one run of products starts: offsets in source and weights, in floats.
type tap struct{ a, b int }

// product is a micro-kernel's work: m rows by n columns, n ≤ the level's lanes*vecs,
//
//	c[i*ldc + j] = bias[j] + Σ over taps t, Σ over k: a[a0 + t.a + i*lda + k] * b[t.b + k*width + j]  (+ add[i*ldadd + j])
//
// with i < m, j < n, and width = lanes*vecs. Sums run in an order that doesn't depend on m: over taps, then k. b is packed;
// what lies in it beyond column n is not used. vecs = 0 stands for one column that isn't padded: width = 1, and lanes hold
// partial sums of k.
type product struct {
	a, b, c, bias, add []float32
	taps               []tap
	a0                 int // may be such that a tap's offset is negative
	k                  int
	lda, ldc, ldadd    int
	m, n               int
	vecs               int
	bStep, slide       int // of slide
}

// outer is a micro-kernel's work for weight gradients: m rows by n columns,
//
//	c[i*ldc + j] += Σ over taps t, Σ over k: a[a0 + t.a + k*lda + i] * b[b0 + t.b + k*ldb + j]
type outer struct {
	a, b, c       []float32
	taps          []tap
	a0, b0        int
	k             int
	lda, ldb, ldc int
	m, n          int
	vecs          int
	cStep, slide  int       // of outerSlide
	ahead         []float32 // of outerSlide: what is wanted soon; it fetches a line of it with each slide inputs
}

// level is a set of kernels. The tables say how many rows a kernel takes at most, by vecs; 0 where there is none.
type level struct {
	name, title string
	ok          bool
	lanes       int // floats of a vector

	product func(p *product)
	rows    [3]int
	outer   func(o *outer)
	// outerRows is rows of outer.
	outerRows [3]int

	// slide is product for p.slide taps along a row at once, whose sources are lda apart and whose weights are bStep apart: one
	// load of a serves as many rows. Only assembly has it.
	//
	//	c[i*ldc + j] = bias[j] + Σ over taps t, Σ over k, Σ s < slide: a[a0 + t.a + (i+s)*lda + k] * b[t.b + s*bStep + k*width + j]  (+ add[i*ldadd + j])
	slide     func(p *product)
	slideRows [4][3]int // by taps (2 or 3) and vecs

	// outerSlide is outer for o.slide taps along a row at once, which meet inputs lda apart and whose sums are cStep apart (it
	// may be negative). Only assembly has it.
	//
	//	c[s*cStep + i*ldc + j] += Σ over taps t, Σ over k: a[a0 + t.a + (k+s)*lda + i] * b[b0 + t.b + k*ldb + j],  s < slide
	outerSlide     func(o *outer)
	outerSlideRows [4][3]int

	add             func(y, a, b []float32)
	rootMeanSquare  func(rstd, x []float32, eps float32)
	channelNorm     func(y, x, rstd, gamma, beta []float32)
	channelNormGrad func(n *normGrad)
	moments         func(sum, square, x, origin []float32)
	affineSiLU      func(y, x, scale, shift []float32)
	groupGradSums   func(n *normGrad)
	groupGrad       func(n *normGrad)

	codeLanes  int // codes of a block
	nearest    func(s *scratch, idx []int32, z, packed, half []float32)
	loss       func(s *[4]float32, y, t, dy []float32, l1, l2 float32)
	sumSquares func(s *scratch, x []float32) float32
	adam       func(s *adamStep)
}

// goLevel is the plain Go kernels: the definition of what others compute.
func goLevel() *level {
	return &level{
		name: "go", title: "Go", ok: true,
		lanes: 4, rows: [3]int{64, 64, 64}, outerRows: [3]int{0, 64, 64},
		product: productGo, outer: outerGo,
		add: addGo,

		rootMeanSquare: rootMeanSquareGo, channelNorm: channelNormGo, channelNormGrad: channelNormGradGo,
		moments: momentsGo, affineSiLU: affineSiLUGo, groupGradSums: groupGradSumsGo, groupGrad: groupGradGo,

		codeLanes: 4, nearest: nearestGo, loss: lossGo, sumSquares: sumSquaresGo, adam: adamGo,
	}
}

func productGo(p *product) {
	var acc, extra [8]float32
	for i := range p.m {
		acc = [8]float32{}
		copy(acc[:p.n], p.bias)
		switch p.vecs {
		case 0:
			for _, t := range p.taps {
				b := p.b[t.b:][:p.k]
				for k, x := range p.a[p.a0+t.a+i*p.lda:][:p.k] {
					acc[0] += x * b[k]
				}
			}
		case 2:
			c0, c1, c2, c3, c4, c5, c6, c7 := acc[0], acc[1], acc[2], acc[3], acc[4], acc[5], acc[6], acc[7]
			for _, t := range p.taps {
				a := p.a[p.a0+t.a+i*p.lda:][:p.k]
				b := p.b[t.b:][:8*p.k]
				for k, x := range a {
					w := b[8*k:][:8]
					c0 += x * w[0]
					c1 += x * w[1]
					c2 += x * w[2]
					c3 += x * w[3]
					c4 += x * w[4]
					c5 += x * w[5]
					c6 += x * w[6]
					c7 += x * w[7]
				}
			}
			acc = [8]float32{c0, c1, c2, c3, c4, c5, c6, c7}
		case 1:
			c0, c1, c2, c3 := acc[0], acc[1], acc[2], acc[3]
			for _, t := range p.taps {
				a := p.a[p.a0+t.a+i*p.lda:][:p.k]
				b := p.b[t.b:][:4*p.k]
				for k, x := range a {
					w := b[4*k:][:4]
					c0 += x * w[0]
					c1 += x * w[1]
					c2 += x * w[2]
					c3 += x * w[3]
				}
			}
			acc[0], acc[1], acc[2], acc[3] = c0, c1, c2, c3
		}
		if p.add != nil {
			copy(extra[:p.n], p.add[i*p.ldadd:])
			for j := range p.n {
				acc[j] += extra[j]
			}
		}
		copy(p.c[i*p.ldc:][:p.n], acc[:p.n])
	}
}

func outerGo(o *outer) {
	for _, t := range o.taps {
		for k := range o.k {
			b := o.b[o.b0+t.b+k*o.ldb:][:o.n]
			for i, x := range o.a[o.a0+t.a+k*o.lda:][:o.m] {
				c := o.c[i*o.ldc:][:len(b)]
				for j, y := range b {
					c[j] += x * y
				}
			}
		}
	}
}

func addGo(y, a, b []float32) {
	a, b = a[:len(y)], b[:len(y)]
	for i := range y {
		y[i] = a[i] + b[i]
	}
}
