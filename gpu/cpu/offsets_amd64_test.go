package cpu

import (
	"testing"
	"unsafe"
)

// TestOffsets holds the structs that assembly reads to the offsets that internal/gen has written into it.
func TestOffsets(t *testing.T) {
	var p product
	var o outer
	var n normGrad
	var a adamStep
	for _, f := range []struct {
		name      string
		got, want uintptr
	}{
		{"product.a", unsafe.Offsetof(p.a), 0},
		{"product.b", unsafe.Offsetof(p.b), 24},
		{"product.c", unsafe.Offsetof(p.c), 48},
		{"product.bias", unsafe.Offsetof(p.bias), 72},
		{"product.add", unsafe.Offsetof(p.add), 96},
		{"product.taps", unsafe.Offsetof(p.taps), 120},
		{"product.a0", unsafe.Offsetof(p.a0), 144},
		{"product.k", unsafe.Offsetof(p.k), 152},
		{"product.lda", unsafe.Offsetof(p.lda), 160},
		{"product.ldc", unsafe.Offsetof(p.ldc), 168},
		{"product.ldadd", unsafe.Offsetof(p.ldadd), 176},
		{"product.n", unsafe.Offsetof(p.n), 192},
		{"product.bStep", unsafe.Offsetof(p.bStep), 208},
		{"outer.a", unsafe.Offsetof(o.a), 0},
		{"outer.b", unsafe.Offsetof(o.b), 24},
		{"outer.c", unsafe.Offsetof(o.c), 48},
		{"outer.taps", unsafe.Offsetof(o.taps), 72},
		{"outer.a0", unsafe.Offsetof(o.a0), 96},
		{"outer.b0", unsafe.Offsetof(o.b0), 104},
		{"outer.k", unsafe.Offsetof(o.k), 112},
		{"outer.lda", unsafe.Offsetof(o.lda), 120},
		{"outer.ldb", unsafe.Offsetof(o.ldb), 128},
		{"outer.ldc", unsafe.Offsetof(o.ldc), 136},
		{"outer.n", unsafe.Offsetof(o.n), 152},
		{"outer.cStep", unsafe.Offsetof(o.cStep), 168},
		{"outer.ahead", unsafe.Offsetof(o.ahead), 184},
		{"normGrad.x", unsafe.Offsetof(n.x), 0},
		{"normGrad.dy", unsafe.Offsetof(n.dy), 24},
		{"normGrad.add", unsafe.Offsetof(n.add), 48},
		{"normGrad.dx", unsafe.Offsetof(n.dx), 72},
		{"normGrad.gamma", unsafe.Offsetof(n.gamma), 96},
		{"normGrad.beta", unsafe.Offsetof(n.beta), 120},
		{"normGrad.rstd", unsafe.Offsetof(n.rstd), 144},
		{"normGrad.mean", unsafe.Offsetof(n.mean), 168},
		{"normGrad.scale", unsafe.Offsetof(n.scale), 192},
		{"normGrad.shift", unsafe.Offsetof(n.shift), 216},
		{"normGrad.meanG", unsafe.Offsetof(n.meanG), 240},
		{"normGrad.meanGX", unsafe.Offsetof(n.meanGX), 264},
		{"normGrad.dgamma", unsafe.Offsetof(n.dgamma), 288},
		{"normGrad.dbeta", unsafe.Offsetof(n.dbeta), 312},
		{"normGrad.work", unsafe.Offsetof(n.work), 336},
		{"adamStep.p", unsafe.Offsetof(a.p), 0},
		{"adamStep.grad", unsafe.Offsetof(a.grad), 24},
		{"adamStep.m", unsafe.Offsetof(a.m), 48},
		{"adamStep.v", unsafe.Offsetof(a.v), 72},
		{"adamStep.ema", unsafe.Offsetof(a.ema), 96},
		{"adamStep.gradScale", unsafe.Offsetof(a.gradScale), 120},
		{"adamStep.beta1", unsafe.Offsetof(a.beta1), 124},
		{"adamStep.beta2", unsafe.Offsetof(a.beta2), 128},
		{"adamStep.one1", unsafe.Offsetof(a.one1), 132},
		{"adamStep.one2", unsafe.Offsetof(a.one2), 136},
		{"adamStep.rate", unsafe.Offsetof(a.rate), 140},
		{"adamStep.root", unsafe.Offsetof(a.root), 144},
		{"adamStep.eps", unsafe.Offsetof(a.eps), 148},
		{"adamStep.decay", unsafe.Offsetof(a.decay), 152},
		{"adamStep.blend", unsafe.Offsetof(a.blend), 156},
	} {
		if f.got != f.want {
			t.Errorf("%s is at %d, assembly reads it at %d", f.name, f.got, f.want)
		}
	}
}
