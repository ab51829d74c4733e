package cpu

import (
	"fmt"
	"math"

	"github.com/flowrun/flowrun/gpu"
)

// SSIM in terms of s = y + t and d = y - t, whose windowed means and variances are m and v with the window's index:
//
//	luminance l = (ms² - md² + 2·C1)/(ms² + md² + 2·C1)      contrast-structure c = (vs - vd + 2·C2)/(vs + vd + 2·C2)
//
// which is the usual form with half as many products that nearly cancel.
const (
	similarityC1 = 0.02 * 0.02 // (K1·range)²
	similarityC2 = 0.06 * 0.06
	leastFactor  = 1e-6
	windowTaps   = 11
	windowSigma  = 1.5
)

// gaussian is the window along an axis.
func gaussian(size int) []float32 {
	n := min(windowTaps, size)
	w, sum := make([]float64, n), 0.0
	for i := range w {
		x := (float64(i) - float64(n-1)/2) / windowSigma
		w[i] = math.Exp(-x * x / 2)
		sum += w[i]
	}
	out := make([]float32, n)
	for i, v := range w {
		out[i] = float32(v / sum)
	}
	return out
}

// similarityScale is one scale of a sample, dense volumes z, y, x.
type similarityScale struct {
	size, valid [3]int
	window      [3][]float32
	s, d        []float32
	grad        []float32 // of the scale's mean with respect to y, before its factor's exponent
	mean, slope float64   // of what goes into the product; of the loss with respect to it
}

// similarityPlan is the scales and the scratch that they share.
type similarityPlan struct {
	scales []similarityScale
	blurs  [4]int // of s, d, s², d² along y and x: floats of the workspace, [size z][valid y, x]
	maps   [3]int // what the gradient is made of, [valid z, y, x]
	rows   int    // a few rows for each plane
	parts  int    // one float64 for each plane
	floats int
}

func planSimilarity(k gpu.Similarity, d gpu.Dims) similarityPlan {
	if len(k.Weights) == 0 || d.C != 1 {
		panic(fmt.Sprintf("cpu: similarity of %v over %d scales", d, len(k.Weights)))
	}
	var p similarityPlan
	take := func(n int) int {
		at := p.floats
		p.floats += int(round(int64(n), gpu.Align/4))
		return at
	}
	size := [3]int{d.D, d.H, d.W}
	p.scales = make([]similarityScale, len(k.Weights))
	for i := range p.scales {
		c := &p.scales[i]
		c.size = size
		for a, n := range size {
			c.window[a] = gaussian(n)
			c.valid[a] = n - len(c.window[a]) + 1
			size[a] = max(1, n/2)
		}
	}
	// The first scale is the largest.
	first := p.scales[0]
	plane := first.valid[1] * first.valid[2]
	for i := range p.blurs {
		p.blurs[i] = take(first.size[0] * plane)
	}
	for i := range p.maps {
		p.maps[i] = take(first.valid[0] * plane)
	}
	p.rows = take(first.size[0] * similarityRows * first.size[2])
	p.parts = take(2 * first.size[0])
	return p
}

// similarityRows is how many rows of scratch a plane has; the last two may be one, with margins.
const similarityRows = 5

func volumeOf(size [3]int) int { return size[0] * size[1] * size[2] }

// SimilarityWork is the scratch of SimilarityLoss: for one sample at a time.
func (e *Engine) SimilarityWork(k gpu.Similarity, d gpu.Dims) int64 {
	p := planSimilarity(k, d)
	n := bytesOf(p.floats)
	for _, c := range p.scales {
		n += 3 * bytesOf(volumeOf(c.size))
	}
	return n
}

// SimilarityLoss writes 1 - MS-SSIM.
func (e *Engine) SimilarityLoss(k gpu.Similarity, y, t gpu.Tensor, scale gpu.Ptr, dy *gpu.Tensor, out, workspace gpu.Ptr) {
	same(y, t)
	p := planSimilarity(k, y.Dims)
	w := similarity{e: e, plan: p, v: e.floats(workspace, p.floats), grads: dy != nil}
	w.parts = e.doubles(workspace+gpu.Ptr(4*p.parts), p.scales[0].size[0])
	at := workspace + gpu.Ptr(bytesOf(p.floats))
	for i := range p.scales {
		c := &p.scales[i]
		n := volumeOf(c.size)
		for _, to := range []*[]float32{&c.s, &c.d, &c.grad} {
			*to = e.floats(at, n)
			at += gpu.Ptr(bytesOf(n))
		}
	}
	var by float64
	if dy != nil {
		same(y, *dy)
		by = float64(e.floats(scale, 1)[0]) / float64(y.N)
	}
	var sum float64
	for n := range y.N {
		sum += w.sample(k, e.grid(y), e.grid(t), n)
		if dy != nil {
			w.gradient(e.grid(*dy), n, by)
		}
	}
	e.floats(out, 1)[0] = float32(1 - sum/float64(y.N))
}

// similarity is one call.
type similarity struct {
	e     *Engine
	plan  similarityPlan
	v     []float32
	parts []float64
	grads bool
}

// sample gives MS-SSIM of sample n, and leaves each scale's gradient.
func (w *similarity) sample(k gpu.Similarity, y, t grid, n int) float64 {
	scales := w.plan.scales
	rows, first := y.D*y.H, scales[0]
	w.e.pool.run(first.size[0], func(z int) {
		for r := z * y.H; r < (z+1)*y.H; r++ {
			a, b := y.inner(n*rows+r), t.inner(n*rows+r)
			addGo(first.s[r*y.W:][:y.W], a, b)
			subtractGo(first.d[r*y.W:][:y.W], a, b)
		}
	})
	product := 1.0
	for i := range scales {
		c := &scales[i]
		if i > 0 {
			w.e.halve(c.s, c.size, scales[i-1].s, scales[i-1].size)
			w.e.halve(c.d, c.size, scales[i-1].d, scales[i-1].size)
		}
		c.mean = w.measure(c, i == len(scales)-1)
		product *= math.Pow(max(c.mean, leastFactor), k.Weights[i])
	}
	for i := range scales {
		c := &scales[i]
		c.slope = 0
		if !(c.mean <= leastFactor) {
			c.slope = -product * k.Weights[i] / c.mean
		}
	}
	return product
}

// halve averages 2 voxels along each axis longer than 1.
func (e *Engine) halve(to []float32, size [3]int, from []float32, old [3]int) {
	var step [3]int
	for a, n := range old {
		step[a] = min(n, 2)
	}
	by := 1 / float32(volumeOf(step))
	e.pool.run(size[0], func(z int) {
		for y := range size[1] {
			o := to[(z*size[1]+y)*size[2]:][:size[2]]
			clear(o)
			for i := range step[0] {
				for j := range step[1] {
					row := from[((z*step[0]+i)*old[1]+y*step[1]+j)*old[2]:][:old[2]]
					for k := range step[2] {
						for x := range o {
							o[x] += row[x*step[2]+k]
						}
					}
				}
			}
			for x := range o {
				o[x] *= by
			}
		}
	})
}

// scratchRow is row i of plane z's scratch.
func (w *similarity) scratchRow(z, i, n int) []float32 {
	width := w.plan.scales[0].size[2]
	return w.v[w.plan.rows+(z*similarityRows+i)*width:][:n]
}

// measure gives a scale's mean contrast-structure, or SSIM at the last, and leaves the mean's gradient.
func (w *similarity) measure(c *similarityScale, last bool) float64 {
	nx, vy, vx := c.size[2], c.valid[1], c.valid[2]
	plane := c.size[1] * nx
	blur := func(i, z, y int) []float32 { return w.v[w.plan.blurs[i]+(z*vy+y)*vx:][:vx] }
	maps := func(i, z, y int) []float32 { return w.v[w.plan.maps[i]+(z*vy+y)*vx:][:vx] }

	// Along y, then x.
	w.e.pool.run(c.size[0], func(z int) {
		column := w.scratchRow(z, 0, nx)
		for y := range vy {
			for i := range w.plan.blurs {
				from := c.s
				if i%2 == 1 {
					from = c.d
				}
				if from = from[z*plane+y*nx:]; i < 2 {
					windowGo(column, from, nx, c.window[1])
				} else {
					windowSquaresGo(column, from, nx, c.window[1])
				}
				windowGo(blur(i, z, y), column, 1, c.window[2])
			}
		}
	})

	// Along z, and what comes of it.
	w.e.pool.run(c.valid[0], func(z int) {
		var sum float64
		for y := range vy {
			var m [4][]float32
			for i := range m {
				m[i] = w.scratchRow(z, i, vx)
				windowGo(m[i], w.v[w.plan.blurs[i]+(z*vy+y)*vx:], vy*vx, c.window[0])
			}
			if w.grads {
				sum += similarityGo(m, maps(0, z, y), maps(1, z, y), maps(2, z, y), last)
			} else {
				sum += similarityGo(m, nil, nil, nil, last)
			}
		}
		w.parts[z] = sum
	})
	voxels := float64(volumeOf(c.valid))
	mean := total(w.parts[:c.valid[0]]) / voxels
	if !w.grads {
		return mean
	}

	// The way back: along z into what the blurs held, then y and x.
	w.e.pool.run(c.size[0], func(z int) {
		for i := range w.plan.maps {
			for y := range vy {
				windowBackGo(blur(i, z, y), w.v[w.plan.maps[i]+y*vx:], vy*vx, z, c.valid[0], c.window[0])
			}
		}
		per := float32(1 / voxels)
		ends := len(c.window[2]) - 1
		padded := w.scratchRow(z, 3, vx+2*ends)
		clear(padded)
		column := padded[ends:][:vx]
		for y := range c.size[1] {
			var m [3][]float32
			for i := range m {
				windowBackGo(column, w.v[w.plan.blurs[i]+z*vy*vx:], vx, y, vy, c.window[1])
				m[i] = w.scratchRow(z, i, nx)
				windowGo(m[i], padded, 1, c.window[2])
			}
			at := z*plane + y*nx
			s, d, grad := c.s[at:][:nx], c.d[at:][:nx], c.grad[at:][:nx]
			for x := range grad {
				grad[x] = per * (2*(s[x]*m[0][x]+d[x]*m[1][x]) + m[2][x])
			}
		}
	})
	return mean
}

// windowGo writes Σ over k of w[k]·x[k*stride + i]. Windows are symmetric.
func windowGo(to, x []float32, stride int, w []float32) {
	n := len(to)
	if len(w) != windowTaps {
		clear(to)
		for k, by := range w {
			combineGo(to, to, x[k*stride:], by)
		}
		return
	}
	w0, w1, w2, w3, w4, w5 := w[0], w[1], w[2], w[3], w[4], w[5]
	a0, a1, a2, a3 := x[:n], x[stride:][:n], x[2*stride:][:n], x[3*stride:][:n]
	a4, a5, a6, a7 := x[4*stride:][:n], x[5*stride:][:n], x[6*stride:][:n], x[7*stride:][:n]
	a8, a9, a10 := x[8*stride:][:n], x[9*stride:][:n], x[10*stride:][:n]
	for i := range to {
		to[i] = w0*(a0[i]+a10[i]) + w1*(a1[i]+a9[i]) + w2*(a2[i]+a8[i]) + w3*(a3[i]+a7[i]) + w4*(a4[i]+a6[i]) + w5*a5[i]
	}
}

// windowSquaresGo is windowGo of x².
func windowSquaresGo(to, x []float32, stride int, w []float32) {
	clear(to)
	for k, by := range w {
		row := x[k*stride:][:len(to)]
		for i := range to {
			to[i] += by * (row[i] * row[i])
		}
	}
}

// windowBackGo is the adjoint of windowGo at position at: Σ over k with 0 ≤ at-k < n of w[k]·x[(at-k)*stride + i].
func windowBackGo(to, x []float32, stride, at, n int, w []float32) {
	if first := at - len(w) + 1; first >= 0 && at < n {
		windowGo(to, x[first*stride:], stride, w)
		return
	}
	clear(to)
	for k, by := range w {
		if from := at - k; from >= 0 && from < n {
			combineGo(to, to, x[from*stride:], by)
		}
	}
}

// similarityGo gives a row's Σ l·c (or Σ c) from windowed s, d, s², d²; and, where square isn't nil, its slopes with respect to
// windowed s², d², and to the means of s and d together, since both have a slope of 1 in y.
func similarityGo(m [4][]float32, squareS, squareD, means []float32, last bool) float64 {
	var sum float64
	for i, ms := range m[0] {
		md := m[1][i]
		s2, d2 := ms*ms, md*md
		vs, vd := m[2][i]-s2, m[3][i]-d2
		over := vs + vd + 2*similarityC2
		c := (vs - vd + 2*similarityC2) / over
		l, bright := float32(1), s2+d2+2*similarityC1
		if last {
			l = (s2 - d2 + 2*similarityC1) / bright
		}
		sum += float64(l * c)
		if squareS == nil {
			continue
		}
		a, b := l*(1-c)/over, -l*(1+c)/over
		squareS[i], squareD[i] = a, b
		g := -2 * (a*ms + b*md)
		if last {
			g += 2 * c * (ms*(1-l) - md*(1+l)) / bright
		}
		means[i] = g
	}
	return sum
}

// gradient writes by times the loss's gradient: of the coarsest scale first, handed to the next finer.
func (w *similarity) gradient(dy grid, n int, by float64) {
	scales := w.plan.scales
	for i := len(scales) - 1; i >= 0; i-- {
		c := scales[i]
		slope := float32(c.slope)
		w.e.pool.run(c.size[0], func(z int) {
			for y := range c.size[1] {
				row := c.grad[(z*c.size[1]+y)*c.size[2]:][:c.size[2]]
				for x := range row {
					row[x] *= slope
				}
				if i+1 < len(scales) {
					spread(row, c.size, scales[i+1], z, y)
				}
			}
		})
	}
	first := scales[0].grad
	w.e.pool.run(dy.D, func(z int) {
		for r := z * dy.H; r < (z+1)*dy.H; r++ {
			to := dy.inner(n*dy.D*dy.H + r)
			for x, g := range first[r*dy.W:][:dy.W] {
				to[x] = float32(by) * g
			}
			dy.fillHalo(n*dy.D*dy.H + r)
		}
	})
}

// spread adds to row z, y the gradient of its coarser scale.
func spread(row []float32, size [3]int, coarse similarityScale, z, y int) {
	at := [3]int{z, y, 0}
	var step [3]int
	for a, n := range size {
		step[a] = min(n, 2)
		if at[a] /= step[a]; at[a] >= coarse.size[a] {
			return // an odd last one
		}
	}
	by := 1 / float32(volumeOf(step))
	from := coarse.grad[(at[0]*coarse.size[1]+at[1])*coarse.size[2]:][:coarse.size[2]]
	for x, g := range from {
		for k := range step[2] {
			row[x*step[2]+k] += by * g
		}
	}
}
