package cpu

import "github.com/flowrun/flowrun/gpu"

// Add writes y = a + b.
func (e *Engine) Add(a, b, y gpu.Tensor) { e.pointwise(a, b, y, e.level.add) }

// Subtract writes y = a - b.
func (e *Engine) Subtract(a, b, y gpu.Tensor) { e.pointwise(a, b, y, subtractGo) }

// Combine writes y = a + s·b.
func (e *Engine) Combine(a, b gpu.Tensor, scale gpu.Ptr, y gpu.Tensor) {
	s := e.floats(scale, 1)[0]
	e.pointwise(a, b, y, func(y, a, b []float32) { combineGo(y, a, b, s) })
}

// pointwise calls f for every row.
func (e *Engine) pointwise(a, b, y gpu.Tensor, f func(y, a, b []float32)) {
	same(a, b)
	same(a, y)
	inPlace(a, y)
	inPlace(b, y)
	ga, gb, gy := e.grid(a), e.grid(b), e.grid(y)
	e.eachRows(y.Dims, func(_ *scratch, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			f(gy.inner(r), ga.inner(r), gb.inner(r))
			gy.fillHalo(r)
		}
	})
}

func subtractGo(y, a, b []float32) {
	a, b = a[:len(y)], b[:len(y)]
	for i := range y {
		y[i] = a[i] - b[i]
	}
}

func combineGo(y, a, b []float32, s float32) {
	a, b = a[:len(y)], b[:len(y)]
	for i := range y {
		y[i] = a[i] + s*b[i]
	}
}

// Activate writes y = x where x > 0, slope·x elsewhere.
func (e *Engine) Activate(slope float32, x, y gpu.Tensor) {
	same(x, y)
	inPlace(x, y)
	gx, gy := e.grid(x), e.grid(y)
	by := [2]float32{slope, 1}
	e.eachRows(y.Dims, func(_ *scratch, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			to := gy.inner(r)
			for i, v := range gx.inner(r)[:len(to)] {
				to[i] = by[positive(v)] * v
			}
			gy.fillHalo(r)
		}
	})
}

// ActivateGrad writes dx = dy where y > 0, slope·dy elsewhere.
func (e *Engine) ActivateGrad(slope float32, y, dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor) {
	same(y, dy)
	same(y, dx)
	inPlace(dy, dx)
	gy, gdy, gdx, plus := e.grid(y), e.grid(dy), e.grid(dx), e.plus(add, dx)
	e.eachRows(y.Dims, func(_ *scratch, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			activateGradGo(gdx.inner(r), gy.inner(r), gdy.inner(r), plus(r), slope)
			gdx.fillHalo(r)
		}
	})
}

func activateGradGo(dx, y, dy, add []float32, slope float32) {
	y, dy = y[:len(dx)], dy[:len(dx)]
	by := [2]float32{slope, 1}
	if add == nil {
		for i := range dx {
			dx[i] = by[positive(y[i])] * dy[i]
		}
		return
	}
	add = add[:len(dx)]
	for i := range dx {
		dx[i] = by[positive(y[i])]*dy[i] + add[i]
	}
}

// positive is 1 where v > 0, else 0; without a branch, which no processor would guess.
func positive(v float32) int {
	if v > 0 {
		return 1
	}
	return 0
}

// plus gives the rows of what is added to dx, nil where that is nothing.
func (e *Engine) plus(add *gpu.Tensor, dx gpu.Tensor) func(r int) []float32 {
	if add == nil {
		return func(int) []float32 { return nil }
	}
	same(*add, dx)
	inPlace(*add, dx)
	return e.grid(*add).inner
}
