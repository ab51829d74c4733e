package cpu

import (
	"math"

	"golang.org/x/sys/cpu"
)

//go:generate go run ./internal/gen .

// levels lists the sets of kernels, fastest first.
func levels() []*level {
	x := &cpu.X86
	hasAVX2 := x.HasAVX2 && x.HasFMA && x.HasBMI2
	hasAVX512 := hasAVX2 && x.HasAVX512F && x.HasAVX512VL && x.HasAVX512BW && x.HasAVX512DQ
	plain := goLevel()
	avx2 := kernelsAVX2.level("avx2", "AVX2", hasAVX2, plain)
	avx512 := kernelsAVX512.level("avx512", "AVX-512", hasAVX512, avx2) // channels that don't fill 16 lanes may fill 8
	return []*level{avx512, avx2, plain}
}

// kernels is one instruction set's assembly.
type kernels struct {
	lanes           int
	products        *[3][]func(*product)
	slides          [4]*[3][]func(*product) // by taps
	outers          *[3][]func(*outer)
	outerSlides     [4]*[3][]func(*outer)
	add             func(y, a, b *float32, vectors int)
	rootMeanSquare  func(rstd, x *float32, voxels, blocks int, eps, inverse float32)
	channelNorm     func(y, x, rstd, gamma, beta *float32, voxels, blocks int)
	channelNormGrad func(n *normGrad, voxels, blocks int, inverse float32)
	moments         func(sum, square, x, origin *float32, voxels, blocks int)
	affineSiLU      func(y, x, scale, shift *float32, voxels, blocks int)
	groupGradSums   func(n *normGrad, voxels, blocks int)
	groupGrad       func(n *normGrad, voxels, blocks int)
	loss            func(y, t, dy *float32, vectors int, l1, l2 float32, sums *[4]float32)
	sumSquares      func(x *float32, vectors int, sum *float32)
	adam            func(s *adamStep, vectors int)
	nearestRows     int
	nearest         func(z *float32, dim int, packed, half *float32, blocks int, best *float32, at *int32)
	nearest1        func(z *float32, dim int, packed, half *float32, blocks int, best *float32, at *int32)
}

var kernelsAVX512 = kernels{
	lanes: 16, products: &productsZ, outers: &outersZ,
	slides:      [4]*[3][]func(*product){2: &slide2sZ, 3: &slide3sZ},
	outerSlides: [4]*[3][]func(*outer){2: &outerSlide2sZ, 3: &outerSlide3sZ},
	add:         addZ, rootMeanSquare: rootMeanSquareZ, channelNorm: channelNormZ, channelNormGrad: channelNormGradZ, moments: momentsZ,
	affineSiLU: affineSiLUZ, groupGradSums: groupGradSumsZ, groupGrad: groupGradZ,
	loss: lossZ, sumSquares: sumSquaresZ, adam: adamZ, nearestRows: 8, nearest: nearest8Z, nearest1: nearest1Z,
}

var kernelsAVX2 = kernels{
	lanes: 8, products: &productsY, outers: &outersY,
	slides:      [4]*[3][]func(*product){2: &slide2sY, 3: &slide3sY},
	outerSlides: [4]*[3][]func(*outer){2: &outerSlide2sY, 3: &outerSlide3sY},
	add:         addY, rootMeanSquare: rootMeanSquareY, channelNorm: channelNormY, channelNormGrad: channelNormGradY, moments: momentsY,
	affineSiLU: affineSiLUY, groupGradSums: groupGradSumsY, groupGrad: groupGradY,
	loss: lossY, sumSquares: sumSquaresY, adam: adamY, nearestRows: 4, nearest: nearest4Y, nearest1: nearest1Y,
}

// level wraps the assembly.
func (k *kernels) level(name, title string, ok bool, below *level) *level {
	l := &level{
		name: name, title: title, ok: ok, lanes: k.lanes,
		rows:      [3]int{len(k.products[0]) - 1, len(k.products[1]) - 1, len(k.products[2]) - 1},
		outerRows: [3]int{0, len(k.outers[1]) - 1, len(k.outers[2]) - 1},
		codeLanes: k.lanes,
	}
	for taps := 2; taps <= 3; taps++ {
		for vecs := 1; vecs <= 2; vecs++ {
			l.slideRows[taps][vecs] = max(0, len(k.slides[taps][vecs])-1)
			l.outerSlideRows[taps][vecs] = max(0, len(k.outerSlides[taps][vecs])-1)
		}
	}
	l.product = func(p *product) { k.products[p.vecs][p.m](p) }
	l.slide = func(p *product) { k.slides[p.slide][p.vecs][p.m](p) }
	l.outer = func(o *outer) { k.outers[o.vecs][o.m](o) }
	l.outerSlide = func(o *outer) { k.outerSlides[o.slide][o.vecs][o.m](o) }
	k.norms(l, below)
	k.pointwise(l)
	l.nearest = k.nearestCodes
	return l
}

// norms sets the kernels of norms. They take channels that fill whole vectors: others go to the level below.
func (k *kernels) norms(l, below *level) {
	fits := func(channels int) bool { return channels%k.lanes == 0 }
	l.rootMeanSquare = func(rstd, x []float32, eps float32) {
		c := len(x) / len(rstd)
		if !fits(c) {
			below.rootMeanSquare(rstd, x, eps)
			return
		}
		k.rootMeanSquare(&rstd[0], &x[0], len(rstd), c/k.lanes, eps, 1/float32(c))
	}
	l.channelNorm = func(y, x, rstd, gamma, beta []float32) {
		if !fits(len(gamma)) {
			below.channelNorm(y, x, rstd, gamma, beta)
			return
		}
		k.channelNorm(&y[0], &x[0], &rstd[0], &gamma[0], &beta[0], len(rstd), len(gamma)/k.lanes)
	}
	l.channelNormGrad = func(n *normGrad) {
		if !fits(len(n.gamma)) {
			below.channelNormGrad(n)
			return
		}
		k.channelNormGrad(n, len(n.rstd), len(n.gamma)/k.lanes, 1/float32(len(n.gamma)))
	}
	l.moments = func(sum, square, x, origin []float32) {
		if !fits(len(sum)) {
			below.moments(sum, square, x, origin)
			return
		}
		k.moments(&sum[0], &square[0], &x[0], &origin[0], len(x)/len(sum), len(sum)/k.lanes)
	}
	l.affineSiLU = func(y, x, scale, shift []float32) {
		if !fits(len(scale)) {
			below.affineSiLU(y, x, scale, shift)
			return
		}
		k.affineSiLU(&y[0], &x[0], &scale[0], &shift[0], len(x)/len(scale), len(scale)/k.lanes)
	}
	l.groupGradSums = func(n *normGrad) {
		if !fits(len(n.scale)) {
			below.groupGradSums(n)
			return
		}
		k.groupGradSums(n, len(n.x)/len(n.scale), len(n.scale)/k.lanes)
	}
	l.groupGrad = func(n *normGrad) {
		if !fits(len(n.scale)) {
			below.groupGrad(n)
			return
		}
		k.groupGrad(n, len(n.x)/len(n.scale), len(n.scale)/k.lanes)
	}
}

// pointwise sets the kernels that take one element after the other. They take whole vectors: what is left goes to Go.
func (k *kernels) pointwise(l *level) {
	l.add = func(y, a, b []float32) {
		n := len(y) / k.lanes
		if n > 0 {
			k.add(&y[0], &a[0], &b[0], n)
		}
		n *= k.lanes
		addGo(y[n:], a[n:], b[n:])
	}
	l.loss = func(s *[4]float32, y, t, dy []float32, l1, l2 float32) {
		n := len(y) / k.lanes
		var to *float32
		rest := dy
		if dy != nil {
			to, rest = &dy[0], dy[n*k.lanes:]
		}
		var tail [4]float32
		lossGo(&tail, y[n*k.lanes:], t[n*k.lanes:], rest, l1, l2)
		*s = tail
		if n > 0 {
			k.loss(&y[0], &t[0], to, n, l1, l2, s)
			for i, v := range tail {
				s[i] += v
			}
		}
	}
	l.sumSquares = func(s *scratch, x []float32) float32 {
		n := len(x) / k.lanes
		s.sum = 0
		if n > 0 {
			k.sumSquares(&x[0], n, &s.sum)
		}
		return s.sum + sumSquaresGo(s, x[n*k.lanes:])
	}
	l.adam = func(s *adamStep) {
		n := len(s.p) / k.lanes
		if n > 0 {
			k.adam(s, n)
		}
		n *= k.lanes
		s.p, s.grad, s.m, s.v = s.p[n:], s.grad[n:], s.m[n:], s.v[n:]
		if s.ema != nil {
			s.ema = s.ema[n:]
		}
		adamGo(s)
	}
}

// nearestCodes is nearestGo: assembly finds the least in each lane, the least of those is found here.
func (k *kernels) nearestCodes(s *scratch, idx []int32, z, packed, half []float32) {
	dim := len(packed) / len(half)
	for w := 0; w < len(idx); {
		rows, search := k.nearestRows, k.nearest
		if len(idx)-w < rows {
			rows, search = 1, k.nearest1
		}
		search(&z[w*dim], dim, &packed[0], &half[0], len(half)/k.lanes, &s.best[0], &s.at[0])
		for i := range rows {
			least, code := float32(math.Inf(1)), int32(0)
			for lane := i * k.lanes; lane < (i+1)*k.lanes; lane++ {
				if b, at := s.best[lane], s.at[lane]; b < least || b == least && at < code {
					least, code = b, at
				}
			}
			idx[w+i] = code
		}
		w += rows
	}
}
