package cpu

import "golang.org/x/sys/cpu"

//go:generate go run ./internal/gen .

// levels lists the sets of kernels, fastest first.
func levels() []*level {
	x := &cpu.X86
	wide := goLevel()
	wide.name, wide.title = "avx512", "AVX-512"
	wide.ok = x.HasAVX512F && x.HasAVX512VL && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX2 && x.HasFMA && x.HasBMI2
	wide.lanes = 16
	wide.rows = [3]int{0, len(productsZ[1]) - 1, len(productsZ[2]) - 1}
	wide.outerRows = [3]int{0, len(outersZ[1]) - 1, len(outersZ[2]) - 1}
	wide.product = func(p *product) { productsZ[p.vecs][p.m](p) }
	wide.outer = func(o *outer) { outersZ[o.vecs][o.m](o) }

	narrow := goLevel()
	narrow.name, narrow.title = "avx2", "AVX2"
	narrow.ok = x.HasAVX2 && x.HasFMA
	narrow.lanes = 8
	narrow.rows = [3]int{0, len(productsY[1]) - 1, len(productsY[2]) - 1}
	narrow.outerRows = [3]int{0, len(outersY[1]) - 1, len(outersY[2]) - 1}
	narrow.product = func(p *product) { productsY[p.vecs][p.m](p) }
	narrow.outer = func(o *outer) { outersY[o.vecs][o.m](o) }
	return []*level{wide, narrow, goLevel()}
}
