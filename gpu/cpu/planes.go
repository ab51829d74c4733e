package cpu

import (
	"fmt"
	"math"

	"github.com/flowrun/flowrun/gpu"
)

// MaxPool writes the maxima of 2×2 voxels along H and W.
func (e *Engine) MaxPool(x, y gpu.Tensor) {
	checkPool(x.Dims, y.Dims)
	gx, gy := e.grid(x), e.grid(y)
	e.eachRows(y.Dims, func(_ *scratch, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			from := r/y.H*x.H + r%y.H*2
			to, c := gy.inner(r), y.C
			top, bottom := gx.inner(from), gx.inner(from+1)
			for at := 0; at < len(to); at += c {
				o := to[at:][:c]
				a, b := top[2*at:][:c], top[2*at+c:][:c]
				d, f := bottom[2*at:][:c], bottom[2*at+c:][:c]
				for i := range o {
					o[i] = max(a[i], b[i], d[i], f[i])
				}
			}
			gy.fillHalo(r)
		}
	})
}

func checkPool(x, y gpu.Dims) {
	if want := (gpu.Dims{N: x.N, D: x.D, H: x.H / 2, W: x.W / 2, C: x.C}); y != want {
		panic(fmt.Sprintf("cpu: max-pool of %v to %v, want %v", x, y, want))
	}
}

// MaxPoolGrad gives each dy to the first of its maxima.
func (e *Engine) MaxPoolGrad(x, dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor) {
	checkPool(x.Dims, dy.Dims)
	same(x, dx)
	gx, gdy, gdx, plus := e.grid(x), e.grid(dy), e.grid(dx), e.plus(add, dx)
	rows := func(r int) []float32 { // starts a row of dx
		to := gdx.inner(r)
		if from := plus(r); from != nil {
			copy(to, from)
		} else {
			clear(to)
		}
		return to
	}
	pairs := (x.H + 1) / 2
	per := max(1, rowsPerChunk(x.Dims)/2)
	all := x.N * x.D * pairs
	e.pool.run(chunks(all, per), func(i int) {
		for p := i * per; p < min((i+1)*per, all); p++ {
			plane, y := p/pairs, p%pairs
			r := plane*x.H + 2*y
			d0 := rows(r)
			if 2*y+1 < x.H {
				d1 := rows(r + 1)
				maxPoolGradGo(d0, d1, gx.inner(r), gx.inner(r+1), gdy.inner(plane*dy.H+y), x.C)
				gdx.fillHalo(r + 1)
			}
			gdx.fillHalo(r)
		}
	})
}

// maxPoolGradGo adds dy to the first maximum of each 2×2 voxels of two rows, without branches, which no processor would guess.
func maxPoolGradGo(d0, d1, x0, x1, dy []float32, c int) {
	to := [2][]float32{d0, d1}
	for at := 0; at < len(dy); at += c {
		a0, b0 := x0[2*at:][:c], x0[2*at+c:][:c]
		a1, b1 := x1[2*at:][:c], x1[2*at+c:][:c]
		for i, g := range dy[at:][:c] {
			p, q := ordered(a0[i]), ordered(b0[i])
			r, s := ordered(a1[i]), ordered(b1[i])
			row := greater(max(r, s), max(p, q))
			top, bottom := greater(q, p), greater(s, r)
			to[row&1][2*at+(top+row*(bottom-top))*c+i] += g
		}
	}
}

// ordered gives integers that compare as floats do; -0 is 0, and a NaN is above or below all.
func ordered(v float32) int32 {
	bits := int32(math.Float32bits(v + 0))
	return bits ^ int32(uint32(bits>>31)>>1)
}

// greater is 1 where a > b, else 0.
func greater(a, b int32) int {
	if a > b {
		return 1
	}
	return 0
}

// cut is planes of volumes, k of each sample.
type cut struct {
	axis, k int
	at      []float32
}

func (e *Engine) cut(axis int, x, y gpu.Dims, at gpu.Ptr) cut {
	want := gpu.Dims{N: y.N, D: 1, H: x.H, W: x.W, C: x.C}
	switch axis {
	case 0:
	case 1:
		want.H = x.D
	case 2:
		want.H, want.W = x.D, x.H
	default:
		panic(fmt.Sprintf("cpu: planes along axis %d", axis))
	}
	if y != want || y.N%x.N != 0 {
		panic(fmt.Sprintf("cpu: planes %v along axis %d of %v", y, axis, x))
	}
	c := cut{axis, y.N / x.N, e.floats(at, y.N)}
	size := [3]int{x.D, x.H, x.W}[axis]
	for _, v := range c.at {
		if i := int(v); float32(i) != v || i < 0 || i >= size {
			panic(fmt.Sprintf("cpu: plane %v of %d", v, size))
		}
	}
	return c
}

// Slice cuts planes.
func (e *Engine) Slice(axis int, x gpu.Tensor, at gpu.Ptr, y gpu.Tensor) {
	cut := e.cut(axis, x.Dims, y.Dims, at)
	gx, gy := e.grid(x), e.grid(y)
	e.eachRows(y.Dims, func(_ *scratch, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			plane, h := r/y.H, r%y.H
			n, p, to := plane/cut.k, int(cut.at[plane]), gy.inner(r)
			switch axis {
			case 0:
				copy(to, gx.inner((n*x.D+p)*x.H+h))
			case 1:
				copy(to, gx.inner((n*x.D+h)*x.H+p))
			case 2:
				for w := range y.W {
					copy(to[w*y.C:][:y.C], gx.inner((n*x.D+h)*x.H + w)[p*y.C:])
				}
			}
			gy.fillHalo(r)
		}
	})
}

// SliceGrad adds the gradients of planes where they were cut.
func (e *Engine) SliceGrad(axis int, dy gpu.Tensor, at gpu.Ptr, add *gpu.Tensor, dx gpu.Tensor) {
	cut := e.cut(axis, dx.Dims, dy.Dims, at)
	gdy, gdx, plus := e.grid(dy), e.grid(dx), e.plus(add, dx)
	e.eachRows(dx.Dims, func(_ *scratch, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			to := gdx.inner(r)
			if from := plus(r); from != nil {
				copy(to, from)
			} else {
				clear(to)
			}
			n, z, y := r/(dx.D*dx.H), r/dx.H%dx.D, r%dx.H
			for i := n * cut.k; i < (n+1)*cut.k; i++ {
				p := int(cut.at[i])
				switch {
				case axis == 0 && p == z:
					e.level.add(to, to, gdy.inner(i*dy.H+y))
				case axis == 1 && p == y:
					e.level.add(to, to, gdy.inner(i*dy.H+z))
				case axis == 2:
					v := to[p*dx.C:][:dx.C]
					addGo(v, v, gdy.inner(i*dy.H + z)[y*dx.C:])
				}
			}
			gdx.fillHalo(r)
		}
	})
}

// Tint makes channels of one.
func (e *Engine) Tint(x gpu.Tensor, scale, shift gpu.Ptr, y gpu.Tensor) {
	checkTint(x.Dims, y.Dims)
	gx, gy := e.grid(x), e.grid(y)
	s, b := e.floats(scale, y.C), e.floats(shift, y.C)
	e.eachRows(y.Dims, func(_ *scratch, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			to := gy.inner(r)
			for w, v := range gx.inner(r) {
				o := to[w*len(s):][:len(s)]
				for c, k := range s {
					o[c] = k*v + b[c]
				}
			}
			gy.fillHalo(r)
		}
	})
}

// TintGrad writes dx = Σ scale[c]·dy[c].
func (e *Engine) TintGrad(dy gpu.Tensor, scale gpu.Ptr, dx gpu.Tensor) {
	checkTint(dx.Dims, dy.Dims)
	gdy, gdx := e.grid(dy), e.grid(dx)
	s := e.floats(scale, dy.C)
	e.eachRows(dy.Dims, func(_ *scratch, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			from, to := gdy.inner(r), gdx.inner(r)
			for w := range to {
				var sum float32
				for c, v := range from[w*len(s):][:len(s)] {
					sum += s[c] * v
				}
				to[w] = sum
			}
			gdx.fillHalo(r)
		}
	})
}

func checkTint(one, many gpu.Dims) {
	if one.C != 1 || one.Voxels() != many.Voxels() || one.N != many.N || one.D != many.D || one.H != many.H {
		panic(fmt.Sprintf("cpu: tint of %v to %v", one, many))
	}
}
