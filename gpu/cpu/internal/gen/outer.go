package main

import (
	"fmt"

	op "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// outerStrides loads the list of taps, and the strides of both operands in bytes.
func (k *kernels) outerStrides(lda, ldb reg.Register) {
	k.MOVQ(at(args, outerTaps), taps)
	k.MOVQ(at(args, outerTaps+8), left)
	k.MOVQ(at(args, outerLda), lda)
	k.MOVQ(at(args, outerLdb), ldb)
	k.SHLQ(op.Imm(2), lda)
	k.SHLQ(op.Imm(2), ldb)
}

// outerTap sets aPtr and bPtr to where the operands of the next tap begin.
func (k *kernels) outerTap(aPtr reg.Register) {
	k.MOVQ(at(taps, 0), aPtr)
	k.ADDQ(at(args, outerA0), aPtr)
	k.SHLQ(op.Imm(2), aPtr)
	k.ADDQ(at(args, productA), aPtr)
	k.MOVQ(at(taps, 8), bPtr)
	k.ADDQ(at(args, outerB0), bPtr)
	k.SHLQ(op.Imm(2), bPtr)
	k.ADDQ(at(args, productB), bPtr)
}

// outer writes the kernel of m rows by nv vectors.
func (k *kernels) outer(m, nv int) {
	k.function(fmt.Sprintf("outer%dx%d", m, nv), "o *outer", "is outer for m rows.")
	// Sums take turns where there are too few to hide an addition's latency.
	turns := min(4, max(1, 8/(m*nv)))
	acc := func(i, v int) reg.VecPhysical { return k.regs[i*nv+v] }
	b := k.regs[turns*m*nv : turns*m*nv+nv]
	spare := k.regs[turns*m*nv+nv:]
	aPtr, lda, ldb := reg.R9, reg.RDX, reg.RSI
	k.Load(k.Param("o"), args)
	k.zero(k.regs[:turns*m*nv]...)

	makeTail := func() *tail {
		k.MOVQ(at(args, outerN), reg.R10)
		if nv > 1 {
			k.SUBQ(op.Imm(uint64((nv-1)*k.lanes())), reg.R10)
		}
		t := k.tailOf(reg.R10, reg.R11, spare[0])
		return &t
	}
	k.outerStrides(lda, ldb)

	sum := func(prefix string, full bool) {
		// Sums wait in L2: fetch them while the loop runs.
		k.MOVQ(at(args, productC), aPtr)
		k.MOVQ(at(args, outerLdc), bPtr)
		for i := range m {
			for v := range nv {
				k.PREFETCHT0(at(aPtr, v*k.bytes))
			}
			if i < m-1 {
				k.LEAQ(op.Mem{Base: aPtr, Index: bPtr, Scale: 4}, aPtr)
			}
		}
		var t *tail
		if !full && k.wide() {
			t = makeTail()
		}
		k.Label(prefix + "tap")
		k.outerTap(aPtr)
		k.MOVQ(at(args, outerK), kLeft)
		body := func(turn int) {
			for v := range nv {
				if full || v < nv-1 {
					k.VMOVUPS(at(bPtr, k.bytes*v), b[v])
					continue
				}
				if !k.wide() {
					t = makeTail() // no register keeps it
				}
				k.load(at(bPtr, k.bytes*v), b[v], t)
			}
			for i := range m {
				to := turn*m + i
				if nv == 1 && k.wide() {
					k.VFMADD231PS_BCST(at(aPtr, 4*i), b[0], acc(to, 0))
					continue
				}
				x := spare[i%len(spare)]
				k.VBROADCASTSS(at(aPtr, 4*i), x)
				for v := range nv {
					k.VFMADD231PS(b[v], x, acc(to, v))
				}
			}
			if nv == 2 {
				for v := range nv {
					k.PREFETCHT0(op.Mem{Base: bPtr, Index: ldb, Scale: 8, Disp: v * k.bytes})
				}
				k.PREFETCHT0(op.Mem{Base: aPtr, Index: lda, Scale: 8})
			}
			k.ADDQ(lda, aPtr)
			k.ADDQ(ldb, bPtr)
		}
		if turns > 1 {
			k.SUBQ(op.Imm(uint64(turns)), kLeft)
			k.JLT(op.LabelRef(prefix + "rest"))
			k.Label(prefix + "turns")
			for turn := range turns {
				body(turn)
			}
			k.SUBQ(op.Imm(uint64(turns)), kLeft)
			k.JGE(op.LabelRef(prefix + "turns"))
			k.Label(prefix + "rest")
			k.ADDQ(op.Imm(uint64(turns)), kLeft)
			k.JZ(op.LabelRef(prefix + "next"))
		}
		k.Label(prefix + "loop")
		body(0)
		k.DECQ(kLeft)
		k.JNZ(op.LabelRef(prefix + "loop"))
		k.Label(prefix + "next")
		k.ADDQ(op.Imm(16), taps)
		k.DECQ(left)
		k.JNZ(op.LabelRef(prefix + "tap"))

		for turn := 1; turn < turns; turn++ {
			for i := range m * nv {
				k.VADDPS(k.regs[turn*m*nv+i], k.regs[i], k.regs[i])
			}
		}
		c, ldc := reg.R10, reg.R11
		if !full && !k.wide() {
			t = makeTail()
		}
		k.MOVQ(at(args, productC), c)
		k.MOVQ(at(args, outerLdc), ldc)
		for i := range m {
			for v := range nv {
				mem := at(c, v*k.bytes)
				if full || v < nv-1 {
					k.VADDPS(mem, acc(i, v), acc(i, v))
					k.VMOVUPS(acc(i, v), mem)
					continue
				}
				k.load(mem, b[0], t)
				k.VADDPS(b[0], acc(i, v), acc(i, v))
				k.store(acc(i, v), mem, t)
			}
			if i < m-1 {
				k.LEAQ(op.Mem{Base: c, Index: ldc, Scale: 4}, c)
			}
		}
		k.VZEROUPPER()
		k.RET()
	}
	k.CMPQ(at(args, outerN), op.Imm(uint64(nv*k.lanes())))
	k.JNE(op.LabelRef("partial"))
	sum("full", true)
	k.Label("partial")
	sum("part", false)
}

// outerSlide writes kernels of m rows by nv vectors for some taps at once. At input x, b's vectors of as many voxels are at
// hand: tap s takes that of voxel x-s.
func (k *kernels) outerSlide(slide int) func(m, nv int) {
	return func(m, nv int) { k.outerSlideKernel(slide, m, nv) }
}

func (k *kernels) outerSlideKernel(slide, m, nv int) {
	k.function(fmt.Sprintf("outerSlide%d%dx%d", slide, m, nv), "o *outer", fmt.Sprintf("is outerSlide for m rows and %d taps.", slide))
	acc := func(s, i, v int) reg.VecPhysical { return k.regs[(s*m+i)*nv+v] }
	b := func(s, v int) reg.VecPhysical { return k.regs[(slide*m+s)*nv+v] }
	spare := k.regs[slide*(m+1)*nv:]
	aPtr, lda, ldb := reg.R9, reg.RDX, reg.RSI
	k.Load(k.Param("o"), args)
	k.zero(k.regs[:slide*m*nv]...)
	k.outerStrides(lda, ldb)
	k.MOVQ(at(args, outerN), reg.R10)
	if nv > 1 {
		k.SUBQ(op.Imm(uint64((nv-1)*k.lanes())), reg.R10)
	}
	t := k.tailOf(reg.R10, reg.R11, spare[0])

	// sums walks the rows of c, with the mask that each vector's loads and stores take.
	c, ldc, next := reg.R10, reg.R11, reg.R12
	sums := func(f func(s, i, v int, mem op.Mem, t *tail)) {
		k.MOVQ(at(args, productC), next)
		k.MOVQ(at(args, outerLdc), ldc)
		k.MOVQ(at(args, outerStep), reg.R13)
		for s := range slide {
			k.MOVQ(next, c)
			for i := range m {
				for v := range nv {
					if v < nv-1 {
						f(s, i, v, at(c, v*k.bytes), nil)
					} else {
						f(s, i, v, at(c, v*k.bytes), &t)
					}
				}
				k.LEAQ(op.Mem{Base: c, Index: ldc, Scale: 4}, c)
			}
			k.LEAQ(op.Mem{Base: next, Index: reg.R13, Scale: 4}, next)
		}
	}
	sums(func(_, _, _ int, mem op.Mem, _ *tail) { k.PREFETCHT0(mem) })

	// Tap s reads register set s; after turn steps without a shift, set s-turn.
	set := func(s, turn int) int { return (s - turn + slide) % slide }
	load := func(turn int) {
		for v := range nv {
			if v < nv-1 {
				k.load(at(bPtr, v*k.bytes), b(set(0, turn), v), nil)
			} else {
				k.load(at(bPtr, v*k.bytes), b(set(0, turn), v), &t)
			}
		}
		k.ADDQ(ldb, bPtr)
	}
	multiply := func(from, to, turn int) { // by taps from ≤ s < to
		for i := range m {
			x := spare[i%len(spare)]
			k.VBROADCASTSS(at(aPtr, 4*i), x)
			for s := from; s < to; s++ {
				for v := range nv {
					k.VFMADD231PS(b(set(s, turn), v), x, acc(s, i, v))
				}
			}
		}
		k.ADDQ(lda, aPtr)
	}
	shift := func() {
		for s := slide - 1; s > 0; s-- {
			for v := range nv {
				k.VMOVAPS(b(s-1, v), b(s, v))
			}
		}
	}
	ahead := reg.R13 // sums are done with it until the end
	k.MOVQ(at(args, outerAhead), ahead)
	k.Label("tap")
	k.outerTap(aPtr)
	k.MOVQ(at(args, outerK), kLeft)
	for s := 1; s < slide; s++ {
		for v := range nv {
			k.zero(b(s, v))
		}
	}
	load(0)
	multiply(0, 1, 0)
	shift()
	step := func(turn int) {
		load(turn)
		for v := range nv {
			k.PREFETCHT0(op.Mem{Base: bPtr, Index: ldb, Scale: 8, Disp: v * k.bytes})
		}
		k.PREFETCHT0(op.Mem{Base: aPtr, Index: lda, Scale: 8})
		multiply(0, slide, turn)
	}
	k.SUBQ(op.Imm(uint64(slide+1)), kLeft)
	k.JLT(op.LabelRef("few"))
	k.Label("turns") // after as many steps as taps, each set is where it was
	k.PREFETCHT1(at(ahead, 0))
	k.ADDQ(op.Imm(64), ahead)
	for turn := range slide {
		step(turn)
	}
	k.SUBQ(op.Imm(uint64(slide)), kLeft)
	k.JGE(op.LabelRef("turns"))
	k.Label("few")
	k.ADDQ(op.Imm(uint64(slide)), kLeft)
	k.JZ(op.LabelRef("last"))
	k.Label("loop")
	step(0)
	shift()
	k.DECQ(kLeft)
	k.JNZ(op.LabelRef("loop"))
	k.Label("last")
	for s := 1; s < slide; s++ {
		multiply(s, slide, 0)
		if s < slide-1 {
			shift()
		}
	}
	k.ADDQ(op.Imm(16), taps)
	k.DECQ(left)
	k.JNZ(op.LabelRef("tap"))

	sums(func(s, i, v int, mem op.Mem, t *tail) {
		k.load(mem, b(0, 0), t)
		k.VADDPS(b(0, 0), acc(s, i, v), acc(s, i, v))
		k.store(acc(s, i, v), mem, t)
	})
	k.VZEROUPPER()
	k.RET()
}
