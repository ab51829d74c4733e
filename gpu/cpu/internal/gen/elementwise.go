package main

import (
	"fmt"
	"math"

	"github.com/mmcloughlin/avo/attr"
	op "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// elementwise writes the kernels of the memory-bound ops. Rows have voxels of blocks vectors of channels.
func (k *kernels) elementwise() {
	k.rootMeanSquare()
	k.channelNorm()
	k.channelNormGrad()
	k.moments()
	k.affineSiLU()
	k.groupGradSums()
	k.groupGrad()
	k.add()
	k.loss()
	k.sumSquares()
	k.adam()
	for _, m := range []int{1, k.nearestRows()} {
		k.nearest(m)
	}
}

// vec is a fresh vector register.
func (k *kernels) vec() reg.VecVirtual {
	if k.wide() {
		return k.ZMM()
	}
	return k.YMM()
}

// loaded is a fresh register that holds memory.
func (k *kernels) loaded(m op.Mem) reg.VecVirtual {
	v := k.vec()
	k.VMOVUPS(m, v)
	return v
}

// spread is a fresh register with one float of memory in every lane.
func (k *kernels) spread(m op.Mem) reg.VecVirtual {
	v := k.vec()
	k.VBROADCASTSS(m, v)
	return v
}

// cleared is a fresh register of zeros.
func (k *kernels) cleared() reg.VecVirtual {
	v := k.vec()
	if k.wide() {
		k.VPXORD(v, v, v)
	} else {
		k.VXORPS(v, v, v)
	}
	return v
}

// word is memory with 32 bits in every lane.
func (k *kernels) word(bits uint32) op.Mem {
	if m, ok := k.words[bits]; ok {
		return m
	}
	m := k.StaticGlobal(fmt.Sprintf("word%08x%s", bits, k.suffix))
	k.DataAttributes(attr.RODATA | attr.NOPTR)
	for i := range k.lanes() {
		k.AddDatum(4*i, op.U32(bits))
	}
	k.words[bits] = m
	return m
}

func (k *kernels) float(v float32) op.Mem { return k.word(math.Float32bits(v)) }

func (k *kernels) and(a, b, to op.Op) {
	if k.wide() {
		k.VPANDD(a, b, to)
	} else {
		k.VANDPS(a, b, to)
	}
}

func (k *kernels) xor(a, b, to op.Op) {
	if k.wide() {
		k.VPXORD(a, b, to)
	} else {
		k.VXORPS(a, b, to)
	}
}

// pointer loads a pointer parameter.
func (k *kernels) pointer(name string) reg.GPVirtual { return k.number(name) }

// number loads an integer or pointer parameter.
func (k *kernels) number(name string) reg.GPVirtual {
	r := k.GP64()
	k.Load(k.Param(name), r)
	return r
}

// scalar loads a float parameter into every lane.
func (k *kernels) scalar(name string) reg.VecVirtual {
	x := k.XMM()
	k.Load(k.Param(name), x)
	v := k.vec()
	k.VBROADCASTSS(x, v)
	return v
}

// field loads a pointer field of a struct.
func (k *kernels) field(base reg.GPVirtual, offset int) reg.GPVirtual {
	r := k.GP64()
	k.MOVQ(op.Mem{Base: base, Disp: offset}, r)
	return r
}

// times repeats body as often as count says, at least once; count is destroyed.
func (k *kernels) times(label string, count reg.GPVirtual, body func()) {
	k.Label(label)
	body()
	k.DECQ(count)
	k.JNZ(op.LabelRef(label))
}

func (k *kernels) copyOf(r reg.GPVirtual) reg.GPVirtual {
	c := k.GP64()
	k.MOVQ(r, c)
	return c
}

func mem(base reg.Register) op.Mem { return op.Mem{Base: base} }

func (k *kernels) next(pointers ...reg.GPVirtual) {
	for _, p := range pointers {
		k.ADDQ(op.Imm(uint64(k.bytes)), p)
	}
}

func (k *kernels) end() {
	k.VZEROUPPER()
	k.RET()
}

// sum adds up a vector's lanes; v is overwritten.
func (k *kernels) sum(v reg.VecVirtual) reg.Register { return k.sumLanes(v, k.vec()) }

// sigmoid is 1/(1 + e^-u); NaN stays NaN. e^x = 2^n·e^r with n = round(x/ln 2), |r| ≤ ½ ln 2, by Cephes' polynomial; x is held
// to [-87, 80], so that 1/(1 + e^x) is no denormal.
func (k *kernels) sigmoid(u reg.VecVirtual) reg.VecVirtual {
	x, n, p := k.vec(), k.vec(), k.vec()
	k.xor(k.word(1<<31), u, x)
	lo, hi := k.loaded(k.float(-87)), k.loaded(k.float(80))
	k.VMAXPS(x, lo, x) // a NaN in the first operand is what comes out
	k.VMINPS(x, hi, x)
	k.VMULPS(k.float(math.Log2E), x, n)
	if k.wide() {
		k.VRNDSCALEPS(op.Imm(0), n, n)
	} else {
		k.VROUNDPS(op.Imm(8), n, n)
	}
	k.VFNMADD231PS(k.float(0.693359375), n, x)
	k.VFNMADD231PS(k.float(-2.12194440e-4), n, x)
	k.VMOVUPS(k.float(1.9875691500e-4), p)
	for _, c := range []float32{1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1, 1} {
		k.VFMADD213PS(k.float(c), x, p)
	}
	if k.wide() {
		k.VSCALEFPS(n, p, p)
	} else {
		k.VCVTPS2DQ(n, n)
		k.VPSLLD(op.Imm(23), n, n)
		k.VPADDD(n, p, p)
	}
	one := k.loaded(k.float(1))
	k.VADDPS(one, p, p)
	k.VDIVPS(p, one, p)
	return p
}

// silu is u·sigmoid(u).
func (k *kernels) silu(u reg.VecVirtual) reg.VecVirtual {
	s := k.sigmoid(u)
	k.VMULPS(u, s, s)
	return s
}

// siluGrad is sigmoid(u)·(1 + u·(1 - sigmoid(u))).
func (k *kernels) siluGrad(u reg.VecVirtual) reg.VecVirtual {
	s := k.sigmoid(u)
	t := k.loaded(k.float(1))
	k.VSUBPS(s, t, t)
	k.VFMADD213PS(k.float(1), u, t)
	k.VMULPS(t, s, s)
	return s
}

func (k *kernels) add() {
	k.function("add", "y, a, b *float32, vectors int", "is add for whole vectors.")
	y, a, b, n := k.pointer("y"), k.pointer("a"), k.pointer("b"), k.number("vectors")
	k.times("loop", n, func() {
		v := k.loaded(mem(a))
		k.VADDPS(mem(b), v, v)
		k.VMOVUPS(v, mem(y))
		k.next(y, a, b)
	})
	k.end()
}

func (k *kernels) sumSquares() {
	k.function("sumSquares", "x *float32, vectors int, sum *float32", "is sumSquares for whole vectors.")
	x, n, s := k.pointer("x"), k.number("vectors"), k.cleared()
	k.times("loop", n, func() {
		v := k.loaded(mem(x))
		k.VFMADD231PS(v, v, s)
		k.next(x)
	})
	k.VMOVSS(k.sum(s), mem(k.pointer("sum")))
	k.end()
}

func (k *kernels) loss() {
	k.function("loss", "y, t, dy *float32, vectors int, l1, l2 float32, sums *[4]float32", "is loss for whole vectors.")
	y, t, dy, n := k.pointer("y"), k.pointer("t"), k.pointer("dy"), k.number("vectors")
	l1, l2 := k.scalar("l1"), k.scalar("l2")
	var s [4]reg.VecVirtual
	for i := range s {
		s[i] = k.cleared()
	}
	lo, hi := k.loaded(k.float(-1)), k.loaded(k.float(1))
	clip := func(v reg.VecVirtual) reg.VecVirtual {
		c := k.vec()
		k.VMAXPS(v, lo, c)
		k.VMINPS(c, hi, c)
		return c
	}
	k.times("loop", n, func() {
		v, u, d, a := k.loaded(mem(y)), k.loaded(mem(t)), k.vec(), k.vec()
		k.VSUBPS(u, v, d)
		k.and(k.word(1<<31-1), d, a)
		k.VADDPS(a, s[0], s[0])
		k.VFMADD231PS(d, d, s[1])
		cv, cu := clip(v), clip(u)
		k.VSUBPS(cu, cv, cv)
		k.VFMADD231PS(cv, cv, s[2])
		k.VSUBPS(v, v, v) // 0, or NaN where v isn't finite
		if k.wide() {
			odd := k.K()
			k.VCMPPS(op.Imm(3), v, v, odd)
			k.VADDPS(hi, s[3], odd, s[3])
		} else {
			k.VCMPPS(op.Imm(3), v, v, v)
			k.VANDPS(hi, v, v)
			k.VADDPS(v, s[3], s[3])
		}
		k.TESTQ(dy, dy)
		k.JZ(op.LabelRef("next"))
		g := k.vec()
		k.and(k.word(1<<31), d, g)
		k.xor(l1, g, g)
		zero := k.cleared()
		if k.wide() {
			some := k.K()
			k.VCMPPS(op.Imm(4), zero, d, some)
			k.VMOVUPS_Z(g, some, g)
		} else {
			k.VCMPPS(op.Imm(4), zero, d, zero)
			k.VANDPS(zero, g, g)
		}
		k.VFMADD231PS(l2, d, g)
		k.VMOVUPS(g, mem(dy))
		k.next(dy)
		k.Label("next")
		k.next(y, t)
	})
	sums := k.pointer("sums")
	for i, v := range s {
		k.VMOVSS(k.sum(v), op.Mem{Base: sums, Disp: 4 * i})
	}
	k.end()
}

// Offsets in package cpu's adamStep.
const (
	adamP     = 0
	adamGrad  = 24
	adamM     = 48
	adamV     = 72
	adamEMA   = 96
	adamScale = 120 // gradScale, beta1, beta2, one1, one2, rate, root, eps, decay, blend
)

func (k *kernels) adam() {
	k.function("adam", "s *adamStep, vectors int", "is adam for whole vectors.")
	s, n := k.pointer("s"), k.number("vectors")
	p, grad, m, v, ema := k.field(s, adamP), k.field(s, adamGrad), k.field(s, adamM), k.field(s, adamV), k.field(s, adamEMA)
	constant := func(i int) reg.VecVirtual { return k.spread(op.Mem{Base: s, Disp: adamScale + 4*i}) }
	k.times("loop", n, func() {
		g := constant(0)
		k.VMULPS(mem(grad), g, g)
		newM, newV, sq := constant(1), constant(2), k.vec()
		k.VMULPS(mem(m), newM, newM)
		k.VFMADD231PS(constant(3), g, newM)
		k.VMOVUPS(newM, mem(m))
		k.VMULPS(mem(v), newV, newV)
		k.VMULPS(g, g, sq)
		k.VFMADD231PS(constant(4), sq, newV)
		k.VMOVUPS(newV, mem(v))
		q := k.loaded(mem(p))
		k.VFNMADD231PS(constant(8), q, q)
		k.VSQRTPS(newV, newV)
		root := constant(6)
		k.VFMADD213PS(constant(7), root, newV)
		k.VMULPS(constant(5), newM, newM)
		k.VDIVPS(newV, newM, newM)
		k.VSUBPS(newM, q, q)
		k.VMOVUPS(q, mem(p))
		k.TESTQ(ema, ema)
		k.JZ(op.LabelRef("next"))
		e := k.loaded(mem(ema))
		k.VSUBPS(e, q, q)
		k.VFMADD231PS(constant(9), q, e)
		k.VMOVUPS(e, mem(ema))
		k.next(ema)
		k.Label("next")
		k.next(p, grad, m, v)
	})
	k.end()
}

// nearestRows is how many voxels nearest searches at once.
func (k *kernels) nearestRows() int {
	if k.wide() {
		return 8
	}
	return 4
}

// nearest writes the search of m voxels: the least value in each lane, and its code.
func (k *kernels) nearest(m int) {
	k.function(fmt.Sprintf("nearest%d", m), "z *float32, dim int, packed, half *float32, blocks int, best *float32, at *int32",
		"writes, for m voxels, the least ½‖c‖² - z·c in each lane and the first code that has it.")
	z, dim, packed, half, blocks := k.pointer("z"), k.number("dim"), k.pointer("packed"), k.pointer("half"), k.number("blocks")
	stride, stride3 := k.GP64(), k.GP64()
	k.MOVQ(dim, stride)
	k.SHLQ(op.Imm(2), stride)
	k.LEAQ(op.Mem{Base: stride, Index: stride, Scale: 2}, stride3)
	code, lanes := k.vec(), k.vec()
	k.VMOVUPS(k.iota(), code)
	k.VMOVUPS(k.word(uint32(k.lanes())), lanes)
	least, at, acc := make([]reg.VecVirtual, m), make([]reg.VecVirtual, m), make([]reg.VecVirtual, m)
	for i := range m {
		least[i], at[i], acc[i] = k.loaded(k.float(float32(math.Inf(1)))), k.cleared(), k.vec()
	}
	k.times("block", blocks, func() {
		for i := range m {
			k.VMOVUPS(mem(half), acc[i])
		}
		k.next(half)
		low, high, n := k.copyOf(z), k.GP64(), k.copyOf(dim)
		k.LEAQ(op.Mem{Base: low, Index: stride, Scale: 4}, high)
		k.times("dim", n, func() {
			c := k.loaded(mem(packed))
			for i := range m {
				a := op.Mem{Base: low}
				if i >= 4 {
					a.Base = high
				}
				switch i % 4 {
				case 1:
					a.Index, a.Scale = stride, 1
				case 2:
					a.Index, a.Scale = stride, 2
				case 3:
					a.Index, a.Scale = stride3, 1
				}
				if k.wide() {
					k.VFNMADD231PS_BCST(a, c, acc[i])
					continue
				}
				k.VFNMADD231PS(k.spread(a), c, acc[i])
			}
			k.next(packed)
			k.ADDQ(op.Imm(4), low)
			k.ADDQ(op.Imm(4), high)
		})
		for i := range m {
			if k.wide() {
				less := k.K()
				k.VCMPPS(op.Imm(1), least[i], acc[i], less)
				k.VMOVAPS(acc[i], less, least[i])
				k.VMOVDQA32(code, less, at[i])
				continue
			}
			less := k.vec()
			k.VCMPPS(op.Imm(1), least[i], acc[i], less)
			k.VBLENDVPS(less, acc[i], least[i], least[i])
			k.VBLENDVPS(less, code, at[i], at[i])
		}
		k.VPADDD(lanes, code, code)
	})
	best, codes := k.pointer("best"), k.pointer("at")
	for i := range m {
		k.VMOVUPS(least[i], op.Mem{Base: best, Disp: k.bytes * i})
		k.VMOVUPS(at[i], op.Mem{Base: codes, Disp: k.bytes * i})
	}
	k.end()
}

// iota is memory with each lane's index.
func (k *kernels) iota() op.Mem {
	if k.indices == nil {
		m := k.StaticGlobal("iota" + k.suffix)
		k.DataAttributes(attr.RODATA | attr.NOPTR)
		for i := range k.lanes() {
			k.AddDatum(4*i, op.U32(uint32(i)))
		}
		k.indices = &m
	}
	return *k.indices
}
