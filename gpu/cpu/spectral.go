package cpu

import (
	"math"

	"github.com/flowrun/flowrun/gpu"
)

// spectralEps is the least norm that has a direction.
const spectralEps = 1e-12

// SpectralWork is the scratch of Spectral: each chunk's share of a sum and of wᵀ·v; and w·u.
func (e *Engine) SpectralWork(rows, columns int) int64 {
	n := chunks(rows, spectralRows(columns))
	return bytesOf(2*n) + bytesOf(n*columns) + bytesOf(rows)
}

// spectralRows is the rows of a chunk: few enough for float32 sums.
func spectralRows(columns int) int { return max(1, min(256, chunkFloats/columns)) }

// eachMatrixRows calls f for chunks of a matrix's rows.
func (e *Engine) eachMatrixRows(rows, columns int, f func(s *scratch, chunk, r0, r1 int)) {
	per := spectralRows(columns)
	e.pool.runOn(chunks(rows, per), func(thread, i int) { f(&e.scratch[thread], i, i*per, min((i+1)*per, rows)) })
}

// spectralParts gives workspace as sums, shares of wᵀ·v, and w·u.
func (e *Engine) spectralParts(rows, columns int, workspace gpu.Ptr) (sums []float64, shares, products []float32) {
	n := chunks(rows, spectralRows(columns))
	at := workspace + gpu.Ptr(bytesOf(2*n))
	return e.doubles(workspace, n), e.floats(at, n*columns), e.floats(at+gpu.Ptr(bytesOf(n*columns)), rows)
}

// Spectral divides w by its largest singular value.
func (e *Engine) Spectral(w gpu.Ptr, rows, columns int, u, v, out, sigma, workspace gpu.Ptr) {
	matrix, right, left := e.floats(w, rows*columns), e.floats(u, columns), e.floats(v, rows)
	value, to := e.floats(sigma, 1), e.floats(out, rows*columns)
	row := func(r int) []float32 { return matrix[r*columns:][:columns] }
	sums, shares, products := e.spectralParts(rows, columns, workspace) // products: v is kept where w has no direction
	e.eachMatrixRows(rows, columns, func(_ *scratch, chunk, r0, r1 int) {
		var s float64
		for r := r0; r < r1; r++ {
			p := dotGo(row(r), right)
			products[r] = p
			s += float64(p) * float64(p)
		}
		sums[chunk] = s
	})
	length := math.Sqrt(total(sums))
	if length < spectralEps {
		copy(to, matrix)
		value[0] = 1
		return
	}
	e.eachMatrixRows(rows, columns, func(_ *scratch, chunk, r0, r1 int) {
		share := shares[chunk*columns:][:columns]
		clear(share)
		for r := r0; r < r1; r++ {
			left[r] = float32(float64(products[r]) / length)
			combineGo(share, share, row(r), left[r])
		}
	})
	product := make([]float64, columns)
	for at := 0; at < len(shares); at += columns {
		for c, s := range shares[at:][:columns] {
			product[c] += float64(s)
		}
	}
	length = 0
	for _, p := range product {
		length += p * p
	}
	length = math.Sqrt(length)
	for c, p := range product {
		right[c] = float32(p / length)
	}
	value[0] = float32(length) // vᵀ·w·u
	by := float32(1 / length)
	e.eachMatrixRows(rows, columns, func(_ *scratch, _, r0, r1 int) {
		o := to[r0*columns : r1*columns]
		for i, x := range matrix[r0*columns:][:len(o)] {
			o[i] = x * by
		}
	})
}

// SpectralGrad turns the gradient of w̄ into that of w.
func (e *Engine) SpectralGrad(g, out gpu.Ptr, rows, columns int, u, v, sigma, workspace gpu.Ptr) {
	grad, bar := e.floats(g, rows*columns), e.floats(out, rows*columns)
	right, left, value := e.floats(u, columns), e.floats(v, rows), e.floats(sigma, 1)[0]
	sums, _, _ := e.spectralParts(rows, columns, workspace)
	e.eachMatrixRows(rows, columns, func(_ *scratch, chunk, r0, r1 int) {
		var s float64
		for r := r0; r < r1; r++ {
			s += float64(dotGo(grad[r*columns:][:columns], bar[r*columns:][:columns]))
		}
		sums[chunk] = s
	})
	along := float32(total(sums))
	by := 1 / value
	e.eachMatrixRows(rows, columns, func(_ *scratch, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			o, s := grad[r*columns:][:columns], along*left[r]
			for c, x := range right {
				o[c] = (o[c] - s*x) * by
			}
		}
	})
}

// dotGo is Σ a·b in four interleaved sums.
func dotGo(a, b []float32) float32 {
	var s0, s1, s2, s3 float32
	for len(a) >= 4 && len(b) >= 4 {
		s0 += a[0] * b[0]
		s1 += a[1] * b[1]
		s2 += a[2] * b[2]
		s3 += a[3] * b[3]
		a, b = a[4:], b[4:]
	}
	b = b[:len(a)]
	for i, x := range a {
		s0 += x * b[i]
	}
	return (s0 + s1) + (s2 + s3)
}
