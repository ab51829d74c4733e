package main

import (
	op "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Offsets in package cpu's normGrad.
const (
	normX      = 24 * iota
	normDy     // dy
	normAdd    // may be nil
	normDx     // written
	normGamma  // C
	normBeta   // C
	normRstd   // W or C
	normMean   // C
	normScale  // C
	normShift  // C
	normMeanG  // C
	normMeanGX // C
	normDgamma // C, added to
	normDbeta  // C, added to
	normWork   // C
)

func (k *kernels) rootMeanSquare() {
	k.function("rootMeanSquare", "rstd, x *float32, voxels, blocks int, eps, inverse float32", "is rootMeanSquare; inverse is 1/C.")
	rstd, x, voxels, blocks := k.pointer("rstd"), k.pointer("x"), k.number("voxels"), k.number("blocks")
	eps, inverse, one := k.XMM(), k.XMM(), k.XMM()
	k.Load(k.Param("eps"), eps)
	k.Load(k.Param("inverse"), inverse)
	k.VMOVSS(k.float(1), one)
	k.times("voxel", voxels, func() {
		s := k.cleared()
		k.times("block", k.copyOf(blocks), func() {
			v := k.loaded(mem(x))
			k.VFMADD231PS(v, v, s)
			k.next(x)
		})
		t := k.sum(s)
		k.VFMADD213SS(eps, inverse, t)
		k.VSQRTSS(t, t, t)
		k.VDIVSS(t, one, t)
		k.VMOVSS(t, mem(rstd))
		k.ADDQ(op.Imm(4), rstd)
	})
	k.end()
}

func (k *kernels) channelNorm() {
	k.function("channelNorm", "y, x, rstd, gamma, beta *float32, voxels, blocks int", "is channelNorm.")
	y, x, rstd, voxels, blocks := k.pointer("y"), k.pointer("x"), k.pointer("rstd"), k.number("voxels"), k.number("blocks")
	gamma0, beta0 := k.pointer("gamma"), k.pointer("beta")
	k.times("voxel", voxels, func() {
		r := k.spread(mem(rstd))
		k.ADDQ(op.Imm(4), rstd)
		gamma, beta := k.copyOf(gamma0), k.copyOf(beta0)
		k.times("block", k.copyOf(blocks), func() {
			u := k.vec()
			k.VMULPS(mem(x), r, u)
			g := k.loaded(mem(gamma))
			k.VFMADD213PS(mem(beta), g, u)
			k.VMOVUPS(k.silu(u), mem(y))
			k.next(y, x, gamma, beta)
		})
	})
	k.end()
}

func (k *kernels) channelNormGrad() {
	k.function("channelNormGrad", "n *normGrad, voxels, blocks int, inverse float32", "is channelNormGrad; inverse is 1/C.")
	n, voxels, blocks := k.pointer("n"), k.number("voxels"), k.number("blocks")
	x, dy, dx, rstd, add := k.field(n, normX), k.field(n, normDy), k.field(n, normDx), k.field(n, normRstd), k.field(n, normAdd)
	inverse := k.XMM()
	k.Load(k.Param("inverse"), inverse)
	at := k.GP64() // bytes from a voxel's first channel
	indexed := func(base reg.GPVirtual) op.Mem { return op.Mem{Base: base, Index: at, Scale: 1} }
	size := k.copyOf(blocks) // bytes of a voxel
	shift := uint64(5)
	if k.wide() {
		shift = 6
	}
	k.SHLQ(op.Imm(shift), size)
	each := func(label string, body func()) {
		k.XORQ(at, at)
		k.Label(label)
		body()
		k.ADDQ(op.Imm(uint64(k.bytes)), at)
		k.CMPQ(at, size)
		k.JLT(op.LabelRef(label))
	}
	k.times("voxel", voxels, func() {
		r, dot := k.spread(mem(rstd)), k.cleared()
		k.ADDQ(op.Imm(4), rstd)
		each("first", func() {
			gamma := k.field(n, normGamma)
			xh, u, g := k.vec(), k.vec(), k.loaded(indexed(gamma))
			k.VMULPS(indexed(x), r, xh)
			k.VMOVAPS(xh, u)
			k.VFMADD213PS(indexed(k.field(n, normBeta)), g, u)
			d := k.siluGrad(u)
			k.VMULPS(indexed(dy), d, d)
			dbeta, dgamma := k.field(n, normDbeta), k.field(n, normDgamma)
			s := k.vec()
			k.VADDPS(indexed(dbeta), d, s)
			k.VMOVUPS(s, indexed(dbeta))
			t := k.loaded(indexed(dgamma))
			k.VFMADD231PS(d, xh, t)
			k.VMOVUPS(t, indexed(dgamma))
			k.VMULPS(g, d, d)
			k.VMOVUPS(d, indexed(k.field(n, normWork)))
			k.VFMADD231PS(d, xh, dot)
		})
		t := k.sum(dot)
		k.VMULSS(inverse, t, t)
		mean := k.vec()
		k.VBROADCASTSS(t, mean)
		each("second", func() {
			xh, g := k.vec(), k.loaded(indexed(k.field(n, normWork)))
			k.VMULPS(indexed(x), r, xh)
			k.VFNMADD231PS(mean, xh, g)
			k.VMULPS(r, g, g)
			k.TESTQ(add, add)
			k.JZ(op.LabelRef("store"))
			k.VADDPS(indexed(add), g, g)
			k.Label("store")
			k.VMOVUPS(g, indexed(dx))
		})
		k.ADDQ(size, x)
		k.ADDQ(size, dy)
		k.ADDQ(size, dx)
		k.TESTQ(add, add)
		k.JZ(op.LabelRef("next"))
		k.ADDQ(size, add)
		k.Label("next")
	})
	k.end()
}

// columns writes a loop over blocks, and in each over voxels: setup sees the block's first vector of the row at offset; body
// sees each voxel's; finish ends the block.
func (k *kernels) columns(setup func(at reg.GPVirtual), body func(row reg.GPVirtual), finish func(at reg.GPVirtual)) {
	voxels, blocks := k.number("voxels"), k.number("blocks")
	size, at := k.copyOf(blocks), k.GP64()
	shift := uint64(5)
	if k.wide() {
		shift = 6
	}
	k.SHLQ(op.Imm(shift), size)
	k.XORQ(at, at)
	k.times("block", blocks, func() {
		setup(at)
		row := k.copyOf(at)
		k.times("voxel", k.copyOf(voxels), func() {
			body(row)
			k.ADDQ(size, row)
		})
		finish(at)
		k.next(at)
	})
	k.end()
}

func indexed(base, at reg.GPVirtual) op.Mem { return op.Mem{Base: base, Index: at, Scale: 1} }

func (k *kernels) moments() {
	k.function("moments", "sum, square, x, origin *float32, voxels, blocks int", "is moments.")
	sum, square, x, origin := k.pointer("sum"), k.pointer("square"), k.pointer("x"), k.pointer("origin")
	s, q, o := k.vec(), k.vec(), k.vec()
	k.columns(func(at reg.GPVirtual) {
		k.VMOVUPS(indexed(sum, at), s)
		k.VMOVUPS(indexed(square, at), q)
		k.VMOVUPS(indexed(origin, at), o)
	}, func(row reg.GPVirtual) {
		v := k.loaded(indexed(x, row))
		k.VSUBPS(o, v, v)
		k.VADDPS(v, s, s)
		k.VFMADD231PS(v, v, q)
	}, func(at reg.GPVirtual) {
		k.VMOVUPS(s, indexed(sum, at))
		k.VMOVUPS(q, indexed(square, at))
	})
}

func (k *kernels) affineSiLU() {
	k.function("affineSiLU", "y, x, scale, shift *float32, voxels, blocks int", "is affineSiLU.")
	y, x, scale, shift := k.pointer("y"), k.pointer("x"), k.pointer("scale"), k.pointer("shift")
	a, b := k.vec(), k.vec()
	k.columns(func(at reg.GPVirtual) {
		k.VMOVUPS(indexed(scale, at), a)
		k.VMOVUPS(indexed(shift, at), b)
	}, func(row reg.GPVirtual) {
		u := k.loaded(indexed(x, row))
		k.VFMADD213PS(b, a, u)
		k.VMOVUPS(k.silu(u), indexed(y, row))
	}, func(reg.GPVirtual) {})
}

func (k *kernels) groupGradSums() {
	k.function("groupGradSums", "n *normGrad, voxels, blocks int", "is groupGradSums.")
	n := k.pointer("n")
	x, dy := k.field(n, normX), k.field(n, normDy)
	scale, shift, mean, rstd, dg, db := k.vec(), k.vec(), k.vec(), k.vec(), k.vec(), k.vec()
	k.columns(func(at reg.GPVirtual) {
		k.VMOVUPS(indexed(k.field(n, normScale), at), scale)
		k.VMOVUPS(indexed(k.field(n, normShift), at), shift)
		k.VMOVUPS(indexed(k.field(n, normMean), at), mean)
		k.VMOVUPS(indexed(k.field(n, normRstd), at), rstd)
		k.VMOVUPS(indexed(k.field(n, normDgamma), at), dg)
		k.VMOVUPS(indexed(k.field(n, normDbeta), at), db)
	}, func(row reg.GPVirtual) {
		xh, d := k.gradTerms(indexed(x, row), indexed(dy, row), scale, shift, mean, rstd)
		k.VFMADD231PS(d, xh, dg)
		k.VADDPS(d, db, db)
	}, func(at reg.GPVirtual) {
		k.VMOVUPS(dg, indexed(k.field(n, normDgamma), at))
		k.VMOVUPS(db, indexed(k.field(n, normDbeta), at))
	})
}

// gradTerms gives x̂ = (x-mean)·rstd and d = dy·silu'(scale·x + shift).
func (k *kernels) gradTerms(x, dy op.Mem, scale, shift, mean, rstd reg.VecVirtual) (xh, d reg.VecVirtual) {
	xh = k.loaded(x)
	u := k.vec()
	k.VMOVAPS(xh, u)
	k.VFMADD213PS(shift, scale, u)
	k.VSUBPS(mean, xh, xh)
	k.VMULPS(rstd, xh, xh)
	d = k.siluGrad(u)
	k.VMULPS(dy, d, d)
	return xh, d
}

func (k *kernels) groupGrad() {
	k.function("groupGrad", "n *normGrad, voxels, blocks int", "is groupGrad.")
	n := k.pointer("n")
	x, dy, dx, add := k.field(n, normX), k.field(n, normDy), k.field(n, normDx), k.field(n, normAdd)
	scale, shift, mean, rstd, gamma := k.vec(), k.vec(), k.vec(), k.vec(), k.vec()
	meanG, meanGX := k.GP64(), k.GP64()
	k.columns(func(at reg.GPVirtual) {
		k.VMOVUPS(indexed(k.field(n, normScale), at), scale)
		k.VMOVUPS(indexed(k.field(n, normShift), at), shift)
		k.VMOVUPS(indexed(k.field(n, normMean), at), mean)
		k.VMOVUPS(indexed(k.field(n, normRstd), at), rstd)
		k.VMOVUPS(indexed(k.field(n, normGamma), at), gamma)
		k.MOVQ(op.Mem{Base: n, Disp: normMeanG}, meanG)
		k.ADDQ(at, meanG)
		k.MOVQ(op.Mem{Base: n, Disp: normMeanGX}, meanGX)
		k.ADDQ(at, meanGX)
	}, func(row reg.GPVirtual) {
		xh, d := k.gradTerms(indexed(x, row), indexed(dy, row), scale, shift, mean, rstd)
		k.VMULPS(gamma, d, d)
		k.VSUBPS(mem(meanG), d, d)
		k.VFNMADD231PS(mem(meanGX), xh, d)
		k.VMULPS(rstd, d, d)
		k.TESTQ(add, add)
		k.JZ(op.LabelRef("store"))
		k.VADDPS(indexed(add, row), d, d)
		k.Label("store")
		k.VMOVUPS(d, indexed(dx, row))
	}, func(reg.GPVirtual) {})
}
