package main

import (
	"go/token"
	"go/types"

	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/gotypes"
	op "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// vectors is an instruction set's vector registers.
type vectors struct {
	suffix string
	bytes  int
	regs   []reg.VecPhysical
}

func (v vectors) lanes() int { return v.bytes / 4 }

var avx512 = vectors{"Z", 64, []reg.VecPhysical{
	reg.Z0, reg.Z1, reg.Z2, reg.Z3, reg.Z4, reg.Z5, reg.Z6, reg.Z7, reg.Z8, reg.Z9, reg.Z10, reg.Z11, reg.Z12, reg.Z13, reg.Z14, reg.Z15,
	reg.Z16, reg.Z17, reg.Z18, reg.Z19, reg.Z20, reg.Z21, reg.Z22, reg.Z23, reg.Z24, reg.Z25, reg.Z26, reg.Z27, reg.Z28, reg.Z29, reg.Z30, reg.Z31,
}}

var avx2 = vectors{"Y", 32, []reg.VecPhysical{
	reg.Y0, reg.Y1, reg.Y2, reg.Y3, reg.Y4, reg.Y5, reg.Y6, reg.Y7, reg.Y8, reg.Y9, reg.Y10, reg.Y11, reg.Y12, reg.Y13, reg.Y14, reg.Y15,
}}

// kernels writes the kernels of one instruction set.
type kernels struct {
	*build.Context
	vectors
	masks, indices *op.Mem
	words          map[uint32]op.Mem
}

func (k *kernels) wide() bool { return k.bytes == 64 }

// function begins func name(params).
func (k *kernels) function(name, params, doc string) {
	k.Function(name + k.suffix)
	k.Attributes(attr.NOSPLIT)
	k.Pragma("noescape")
	k.Doc(name + k.suffix + " " + doc)
	sig, err := gotypes.ParseSignatureInPackage(structs, "func("+params+")")
	if err != nil {
		panic(err) // a kernel here is miswritten
	}
	k.Signature(sig)
}

// structs stands for package cpu: kernels take pointers to these of its types.
var structs = func() *types.Package {
	p := types.NewPackage("cpu", "cpu")
	for _, name := range []string{"product", "outer", "dotProduct", "normGrad", "adamStep"} {
		t := types.NewTypeName(token.NoPos, p, name, nil)
		types.NewNamed(t, types.NewStruct(nil, nil), nil)
		p.Scope().Insert(t)
	}
	return p
}()

// zero clears registers.
func (k *kernels) zero(vs ...reg.VecPhysical) {
	for _, v := range vs {
		if k.wide() {
			k.VPXORD(v, v, v)
		} else {
			k.VXORPS(v, v, v)
		}
	}
}

// tail is how the last vector of a row is loaded and stored where only n lanes count: a mask register in AVX-512, a mask
// vector in AVX2.
type tail struct {
	k    reg.OpmaskPhysical
	mask reg.VecPhysical
}

// tailOf makes the mask of the first n lanes, 1 ≤ n ≤ lanes; n is destroyed.
func (k *kernels) tailOf(n, scratch reg.GPPhysical, mask reg.VecPhysical) tail {
	if k.wide() {
		k.MOVQ(op.I32(-1), scratch)
		k.BZHIQ(n, scratch, scratch)
		k.KMOVW(scratch.As32(), reg.K1)
		return tail{k: reg.K1}
	}
	k.LEAQ(k.maskTable(), scratch)
	k.NEGQ(n)
	k.VMOVUPS(op.Mem{Base: scratch, Index: n, Scale: 4, Disp: 4 * k.lanes()}, mask)
	return tail{mask: mask}
}

// maskTable is lanes of ones, then lanes of zeros.
func (k *kernels) maskTable() op.Mem {
	if k.masks == nil {
		m := k.StaticGlobal("masks" + k.suffix)
		k.DataAttributes(attr.RODATA | attr.NOPTR)
		for i := range 2 * k.lanes() {
			v := op.U32(0)
			if i < k.lanes() {
				v = 0xffffffff
			}
			k.AddDatum(4*i, v)
		}
		k.masks = &m
	}
	return *k.masks
}

// load loads v, only the tail's lanes where t isn't nil; the others are 0.
func (k *kernels) load(m op.Mem, v reg.VecPhysical, t *tail) {
	switch {
	case t == nil:
		k.VMOVUPS(m, v)
	case k.wide():
		k.VMOVUPS_Z(m, t.k, v)
	default:
		k.VMASKMOVPS(m, t.mask, v)
	}
}

// store stores v, only the tail's lanes where t isn't nil.
func (k *kernels) store(v reg.VecPhysical, m op.Mem, t *tail) {
	switch {
	case t == nil:
		k.VMOVUPS(v, m)
	case k.wide():
		k.VMOVUPS(v, t.k, m)
	default:
		k.VMASKMOVPS(v, t.mask, m)
	}
}

// sumLanes adds up a register's lanes, halves onto halves, in its own low lane. h is overwritten.
func (k *kernels) sumLanes(v, h interface {
	reg.Register
	reg.Vec
}) reg.Register {
	x, y := v.AsX(), h.AsX()
	if k.wide() {
		k.VEXTRACTF64X4(op.Imm(1), v, h.AsY())
		k.VADDPS(h.AsY(), v.AsY(), v.AsY())
	}
	k.VEXTRACTF128(op.Imm(1), v.AsY(), y)
	k.VADDPS(y, x, x)
	k.VPERMILPS(op.Imm(0b1110), x, y)
	k.VADDPS(y, x, x)
	k.VPERMILPS(op.Imm(1), x, y)
	k.VADDSS(y, x, x)
	return x
}
