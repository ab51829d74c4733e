package main

import (
	"fmt"
	"io"
	"strings"

	op "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Offsets in package cpu's product and outer structs; a test there holds them.
const (
	productA = 0
	productB = 24
	productC = 48
	biasAt   = 72
	addAt    = 96
	tapsAt   = 120
	a0At     = 144
	kAt      = 152
	ldaAt    = 160
	ldcAt    = 168
	ldaddAt  = 176
	nAt      = 192
	bStepAt  = 208

	outerTaps  = 72
	outerA0    = 96
	outerB0    = 104
	outerK     = 112
	outerLda   = 120
	outerLdb   = 128
	outerLdc   = 136
	outerN     = 152
	outerStep  = 168
	outerAhead = 184
)

// rows is the most rows of a kernel with nv vectors: accumulators, nv vectors of b and a spare must fit the registers.
func (k *kernels) rows(nv int) int {
	if k.wide() {
		return [3]int{dotRows, 28, 14}[nv]
	}
	return [3]int{dotRows, 12, 6}[nv]
}

// slideRows is the most rows of a slide kernel with nv vectors: sums, nv vectors of each tap and two spares must fit.
func (k *kernels) slideRows(taps int) func(nv int) int {
	return func(nv int) int {
		if !k.wide() && nv == 2 {
			return 0 // too few to pay
		}
		return min((len(k.regs)-2)/nv-taps, 5*len(bases)-taps+1)
	}
}

// outerSlideRows is the most rows of an outerSlide kernel with nv vectors. AVX2 has too few registers for it to pay.
func (k *kernels) outerSlideRows(taps int) func(nv int) int {
	return func(nv int) int {
		if !k.wide() {
			return 0
		}
		return ((len(k.regs)-2)/nv - taps) / taps
	}
}

// dotRows is the most rows of a kernel for one column.
const dotRows = 8

// matrices writes every product, outer and dot kernel, and tables of them.
func (k *kernels) matrices(tables io.Writer) {
	for _, f := range []struct {
		name  string
		least int
		emit  func(m, nv int)
		rows  func(nv int) int
	}{
		{"product", 0, k.product, k.rows}, {"outer", 1, k.outer, k.rows},
		{"slide2", 1, k.slide(2), k.slideRows(2)}, {"slide3", 1, k.slide(3), k.slideRows(3)},
		{"outerSlide2", 1, k.outerSlide(2), k.outerSlideRows(2)}, {"outerSlide3", 1, k.outerSlide(3), k.outerSlideRows(3)},
	} {
		operand := "product"
		if strings.HasPrefix(f.name, "outer") {
			operand = "outer"
		}
		fmt.Fprintf(tables, "// %ss%s is the %s kernels by vectors and rows.\nvar %ss%s = [3][]func(*%s){\n", f.name, k.suffix, f.name, f.name, k.suffix, operand)
		for nv := f.least; nv <= 2 && f.rows(nv) > 0; nv++ {
			fmt.Fprintf(tables, "\t%d: {\n\t\tnil", nv)
			for m := 1; m <= f.rows(nv); m++ {
				if nv == 0 {
					k.dot(m)
				} else {
					f.emit(m, nv)
				}
				fmt.Fprintf(tables, ", %s%dx%d%s", f.name, m, nv, k.suffix)
			}
			fmt.Fprint(tables, ",\n\t},\n")
		}
		fmt.Fprint(tables, "}\n\n")
	}
}

func at(base reg.GPPhysical, disp int) op.Mem { return op.Mem{Base: base, Disp: disp} }

// Registers of the matrix kernels.
var (
	args  = reg.RAX
	taps  = reg.RBX
	left  = reg.RCX // taps that are left
	step  = reg.RDX // bytes from row to row of a
	step3 = reg.RSI
	bPtr  = reg.RDI
	kLeft = reg.R8
	bStep = reg.R14                                                               // bytes from tap to tap of b; assembly may use it, g is put back behind it
	bases = []reg.GPPhysical{reg.R9, reg.R10, reg.R11, reg.R12, reg.R13, reg.R15} // of every fifth row
)

// product writes the kernel of m rows by nv vectors.
func (k *kernels) product(m, nv int) {
	k.function(fmt.Sprintf("product%dx%d", m, nv), "p *product", "is product for m rows.")
	b, spare := k.regs[m*nv:m*nv+nv], k.regs[m*nv+nv:]
	k.frame(m, m, nv, spare[0], b[0], func(bases []reg.GPPhysical, u int) {
		for v := range nv {
			k.VMOVUPS(at(bPtr, k.bytes*(nv*u+v)), b[v])
		}
		for i := range m {
			if nv == 1 && k.wide() {
				k.VFMADD231PS_BCST(row(bases, i, u), b[0], k.regs[i])
				continue
			}
			x := spare[i%len(spare)]
			k.VBROADCASTSS(row(bases, i, u), x)
			for v := range nv {
				k.VFMADD231PS(b[v], x, k.regs[i*nv+v])
			}
		}
	})
}

// slide writes kernels of m rows by nv vectors that take some taps at once.
func (k *kernels) slide(taps int) func(m, nv int) {
	return func(m, nv int) {
		k.function(fmt.Sprintf("slide%d%dx%d", taps, m, nv), "p *product", fmt.Sprintf("is slide for m rows and %d taps.", taps))
		b, spare := k.regs[m*nv:(m+taps)*nv], k.regs[(m+taps)*nv:]
		k.frame(m, m+taps-1, nv, spare[0], b[0], func(bases []reg.GPPhysical, u int) {
			for t := range taps {
				for v := range nv {
					mem := at(bPtr, k.bytes*(nv*u+v))
					if t > 0 {
						mem.Index, mem.Scale = bStep, uint8(t)
					}
					k.VMOVUPS(mem, b[t*nv+v])
				}
			}
			for x := range m + taps - 1 {
				a := spare[x%len(spare)]
				k.VBROADCASTSS(row(bases, x, u), a)
				for t := range taps {
					if i := x - t; i >= 0 && i < m {
						for v := range nv {
							k.VFMADD231PS(b[t*nv+v], a, k.regs[i*nv+v])
						}
					}
				}
			}
		})
	}
}

// productStrides loads the list of taps, and the stride of a's rows in bytes and three times that.
func (k *kernels) productStrides() {
	k.MOVQ(at(args, tapsAt), taps)
	k.MOVQ(at(args, tapsAt+8), left)
	k.MOVQ(at(args, ldaAt), step)
	k.SHLQ(op.Imm(2), step)
	k.LEAQ(op.Mem{Base: step, Index: step, Scale: 2}, step3)
}

// productTap sets bases, each five rows behind the one before, and bPtr to where the operands of the next tap begin.
func (k *kernels) productTap(bases []reg.GPPhysical) {
	k.MOVQ(at(taps, 0), bases[0])
	k.ADDQ(at(args, a0At), bases[0])
	k.SHLQ(op.Imm(2), bases[0])
	k.ADDQ(at(args, productA), bases[0])
	k.MOVQ(at(taps, 8), bPtr)
	k.SHLQ(op.Imm(2), bPtr)
	k.ADDQ(at(args, productB), bPtr)
	for i := 1; i < len(bases); i++ {
		k.LEAQ(op.Mem{Base: bases[i-1], Index: step, Scale: 4}, bases[i])
		k.ADDQ(step, bases[i])
	}
}

// frame writes what product kernels share: sums start at the bias, body adds the products of k + u, a's rows at bases; in
// the end come add and the stores. The first m*nv registers are the sums; mask and rest are free outside body.
func (k *kernels) frame(m, rows, nv int, mask, rest reg.VecPhysical, body func(bases []reg.GPPhysical, u int)) {
	const unroll = 2
	acc := func(i, v int) reg.VecPhysical { return k.regs[i*nv+v] }
	bases := bases[:(rows+4)/5]
	k.Load(k.Param("p"), args)

	// The last vector's mask. AVX2 has no register to keep it in: it is made again at the end.
	makeTail := func() *tail {
		k.MOVQ(at(args, nAt), reg.R9)
		if nv > 1 {
			k.SUBQ(op.Imm(uint64((nv-1)*k.lanes())), reg.R9)
		}
		t := k.tailOf(reg.R9, reg.R10, mask)
		return &t
	}
	t := makeTail()
	last := func(v int) *tail {
		if v == nv-1 {
			return t
		}
		return nil
	}
	k.MOVQ(at(args, biasAt), bPtr)
	for v := range nv {
		k.load(at(bPtr, v*k.bytes), acc(0, v), last(v))
		for i := 1; i < m; i++ {
			k.VMOVAPS(acc(0, v), acc(i, v))
		}
	}
	k.productStrides()
	if rows > m {
		k.MOVQ(at(args, bStepAt), bStep)
		k.SHLQ(op.Imm(2), bStep)
	}
	// Where sums go may lie far away: it is fetched meanwhile.
	k.MOVQ(at(args, productC), reg.R9)
	k.MOVQ(at(args, ldcAt), reg.R10)
	for i := range m {
		for v := range nv {
			k.PREFETCHT0(at(reg.R9, v*k.bytes))
		}
		if i < m-1 {
			k.LEAQ(op.Mem{Base: reg.R9, Index: reg.R10, Scale: 4}, reg.R9)
		}
	}
	k.TESTQ(left, left)
	k.JZ(op.LabelRef("done"))

	k.Label("tap")
	k.productTap(bases)
	k.MOVQ(at(args, kAt), kLeft)
	advance := func(n int) {
		for _, r := range bases {
			k.ADDQ(op.Imm(uint64(4*n)), r)
		}
		k.ADDQ(op.U32(uint32(k.bytes*nv*n)), bPtr)
	}
	k.SUBQ(op.Imm(unroll), kLeft)
	k.JLT(op.LabelRef("rest"))
	k.Label("loop")
	for u := range unroll {
		body(bases, u)
	}
	advance(unroll)
	k.SUBQ(op.Imm(unroll), kLeft)
	k.JGE(op.LabelRef("loop"))
	k.Label("rest")
	k.ADDQ(op.Imm(unroll), kLeft)
	k.JZ(op.LabelRef("next"))
	body(bases, 0)
	k.Label("next")
	k.ADDQ(op.Imm(16), taps)
	k.DECQ(left)
	k.JNZ(op.LabelRef("tap"))
	k.Label("done")

	if !k.wide() {
		t = makeTail()
	}
	add, ldadd, c, ldc := reg.R9, reg.R10, reg.R11, reg.R12
	k.MOVQ(at(args, addAt), add)
	k.TESTQ(add, add)
	k.JZ(op.LabelRef("store"))
	k.MOVQ(at(args, ldaddAt), ldadd)
	for i := range m {
		for v := range nv {
			mem := at(add, v*k.bytes)
			if v < nv-1 {
				k.VADDPS(mem, acc(i, v), acc(i, v))
				continue
			}
			k.load(mem, rest, t)
			k.VADDPS(rest, acc(i, v), acc(i, v))
		}
		if i < m-1 {
			k.LEAQ(op.Mem{Base: add, Index: ldadd, Scale: 4}, add)
		}
	}
	k.Label("store")
	k.MOVQ(at(args, productC), c)
	k.MOVQ(at(args, ldcAt), ldc)
	for i := range m {
		for v := range nv {
			k.store(acc(i, v), at(c, v*k.bytes), last(v))
		}
		if i < m-1 {
			k.LEAQ(op.Mem{Base: c, Index: ldc, Scale: 4}, c)
		}
	}
	k.VZEROUPPER()
	k.RET()
}

// dot writes the kernel of m rows by one column: lanes are of k, not of columns.
func (k *kernels) dot(m int) {
	k.function(fmt.Sprintf("product%dx0", m), "p *product", "is product for m rows and one column.")
	acc, b, a, mask := k.regs[:m], k.regs[m], k.regs[m+1], k.regs[m+2]
	bases := bases[:(m+4)/5]
	k.Load(k.Param("p"), args)
	k.zero(acc...)
	k.productStrides()
	k.TESTQ(left, left)
	k.JZ(op.LabelRef("done"))
	k.MOVQ(at(args, kAt), kLeft)
	k.ANDQ(op.Imm(uint64(k.lanes()-1)), kLeft)
	t := k.tailOf(kLeft, reg.R9, mask)

	k.Label("tap")
	k.productTap(bases)
	k.MOVQ(at(args, kAt), kLeft)
	k.SUBQ(op.Imm(uint64(k.lanes())), kLeft)
	k.JLT(op.LabelRef("rest"))
	k.Label("loop")
	k.VMOVUPS(at(bPtr, 0), b)
	for i := range m {
		k.VFMADD231PS(row(bases, i, 0), b, acc[i])
	}
	for _, r := range append(bases[:len(bases):len(bases)], bPtr) {
		k.ADDQ(op.Imm(uint64(k.bytes)), r)
	}
	k.SUBQ(op.Imm(uint64(k.lanes())), kLeft)
	k.JGE(op.LabelRef("loop"))
	k.Label("rest")
	k.ADDQ(op.Imm(uint64(k.lanes())), kLeft)
	k.JZ(op.LabelRef("next"))
	k.load(at(bPtr, 0), b, &t)
	for i := range m {
		k.load(row(bases, i, 0), a, &t)
		k.VFMADD231PS(a, b, acc[i])
	}
	k.Label("next")
	k.ADDQ(op.Imm(16), taps)
	k.DECQ(left)
	k.JNZ(op.LabelRef("tap"))
	k.Label("done")

	c, ldc, add, ldadd, bias := reg.R9, reg.R10, reg.R11, reg.R12, reg.R13
	k.MOVQ(at(args, productC), c)
	k.MOVQ(at(args, ldcAt), ldc)
	k.MOVQ(at(args, addAt), add)
	k.MOVQ(at(args, ldaddAt), ldadd)
	k.MOVQ(at(args, biasAt), bias)
	for i := range m {
		x, h := k.sumLanes(acc[i], b), b.AsX()
		k.VADDSS(at(bias, 0), x, x)
		k.TESTQ(add, add)
		skip := fmt.Sprintf("store%d", i)
		k.JZ(op.LabelRef(skip))
		k.VMOVSS(at(add, 0), h)
		k.VADDSS(h, x, x)
		k.LEAQ(op.Mem{Base: add, Index: ldadd, Scale: 4}, add)
		k.Label(skip)
		k.VMOVSS(x, at(c, 0))
		if i < m-1 {
			k.LEAQ(op.Mem{Base: c, Index: ldc, Scale: 4}, c)
		}
	}
	k.VZEROUPPER()
	k.RET()
}

// row is the memory of row i of a, u floats on.
func row(bases []reg.GPPhysical, i, u int) op.Mem {
	m := at(bases[i/5], 4*u)
	switch i % 5 {
	case 1:
		m.Index, m.Scale = step, 1
	case 2:
		m.Index, m.Scale = step, 2
	case 3:
		m.Index, m.Scale = step3, 1
	case 4:
		m.Index, m.Scale = step, 4
	}
	return m
}
