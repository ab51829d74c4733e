package enginetest

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"pgregory.net/rapid"
)

// matrix is a spectral norm's operands in the arena.
type matrix struct {
	w, u, v, out, sigma, work gpu.Ptr
}

func (r *rig) matrix(rows, columns int, w, u, v []float64) matrix {
	return matrix{
		w: r.floats(w), u: r.floats(u), v: r.floats(v),
		out: r.alloc(4 * int64(rows*columns)), sigma: r.alloc(4), work: r.alloc(r.e.SpectralWork(rows, columns)),
	}
}

func unit(v []float64) float64 {
	n := math.Sqrt(dot(v, v))
	for i := range v {
		v[i] /= n
	}
	return n
}

func testSpectral(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		rows, columns := rapid.IntRange(1, 300).Draw(t, "rows"), rapid.IntRange(1, 40).Draw(t, "columns")
		rng := seeded(t)
		w, u, g := r.random(rng, rows*columns), r.random(rng, columns), r.random(rng, rows*columns)
		unit(u)
		m := r.matrix(rows, columns, w, u, make([]float64, rows))
		r.e.Spectral(m.w, rows, columns, m.u, m.v, m.out, m.sigma, m.work)

		u = float64s(float32s(u))
		row := func(a []float64, i int) []float64 { return a[i*columns : (i+1)*columns] }
		v := make([]float64, rows)
		for i := range v {
			v[i] = dot(row(w, i), u)
		}
		unit(v)
		clear(u)
		for i, a := range v {
			for j, x := range row(w, i) {
				u[j] += a * x
			}
		}
		sigma := unit(u) // vᵀ·w·u
		bar, along := make([]float64, len(w)), 0.0
		for i, x := range w {
			bar[i] = x / sigma
			along += g[i] * bar[i]
		}
		near(t, "v", r.read(m.v, rows), v, nil, 3e-5)
		near(t, "u", r.read(m.u, columns), u, nil, 3e-5)
		near(t, "sigma", r.read(m.sigma, 1), []float64{sigma}, nil, 1e-5)
		near(t, "w̄", r.read(m.out, len(w)), bar, nil, 1e-5)
		equal(t, "w", r.read(m.w, len(w)), w)

		pg := r.floats(g)
		r.e.SpectralGrad(pg, m.out, rows, columns, m.u, m.v, m.sigma, m.work)
		for i := range v {
			for j := range u {
				g[i*columns+j] = (g[i*columns+j] - along*v[i]*u[j]) / sigma
			}
		}
		near(t, "gradient", r.read(pg, len(g)), g, nil, 1e-4)
	})
}

// testSpectralConverges repeats the iteration: u and v become singular vectors, w̄'s largest singular value 1, and the gradient that of w/σ(w),
// which the reference gets by finite differences.
func testSpectralConverges(t *testing.T, r *rig) {
	const rows, columns = 5, 3
	rng := rand.New(rand.NewPCG(8, 9))
	w, u, g := r.random(rng, rows*columns), r.random(rng, columns), r.random(rng, rows*columns)
	unit(u)
	m := r.matrix(rows, columns, w, u, make([]float64, rows))
	largest := func() float64 {
		u := []float64{1, 1, 1}
		var s float64
		for range 200 {
			v := make([]float64, rows)
			for i := range v {
				v[i] = dot(w[i*columns:(i+1)*columns], u)
			}
			clear(u)
			for i, a := range v {
				for j := range u {
					u[j] += a * w[i*columns+j]
				}
			}
			s = math.Sqrt(unit(u))
		}
		return s
	}
	for range 200 {
		r.e.Spectral(m.w, rows, columns, m.u, m.v, m.out, m.sigma, m.work)
	}
	near(t, "sigma", r.read(m.sigma, 1), []float64{largest()}, nil, 1e-5)
	want := slope(w, func() float64 { return dot(w, g) / largest() })
	pg := r.floats(g)
	r.e.SpectralGrad(pg, m.out, rows, columns, m.u, m.v, m.sigma, m.work)
	near(t, "gradient", r.read(pg, len(g)), want, nil, 3e-5)
}

// testSpectralZero: a matrix of zeros has no direction and is left alone.
func testSpectralZero(t *testing.T, r *rig) {
	const rows, columns = 300, 3
	rng := rand.New(rand.NewPCG(8, 9))
	u, v, g := r.random(rng, columns), r.random(rng, rows), r.random(rng, rows*columns)
	m := r.matrix(rows, columns, make([]float64, rows*columns), u, v)
	r.e.Spectral(m.w, rows, columns, m.u, m.v, m.out, m.sigma, m.work)
	equal(t, "w̄", r.read(m.out, rows*columns), make([]float64, rows*columns))
	equal(t, "sigma", r.read(m.sigma, 1), []float64{1})
	equal(t, "u", r.read(m.u, columns), u)
	equal(t, "v", r.read(m.v, rows), v)
	pg := r.floats(g)
	r.e.SpectralGrad(pg, m.out, rows, columns, m.u, m.v, m.sigma, m.work)
	equal(t, "gradient", r.read(pg, len(g)), g)
}
