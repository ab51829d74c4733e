package cpu

import (
	"testing"
	"unsafe"
)

// TestOffsets holds the structs that assembly reads to the offsets that internal/gen has written into it.
func TestOffsets(t *testing.T) {
	var p product
	var o outer
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
	} {
		if f.got != f.want {
			t.Errorf("%s is at %d, assembly reads it at %d", f.name, f.got, f.want)
		}
	}
}
