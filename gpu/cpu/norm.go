package cpu

import (
	"fmt"
	"math"

	"github.com/flowrun/flowrun/gpu"
)

// Statistics: the channel norm leaves 1/√(mean x² + eps) of each voxel. GroupNorm leaves mean and 1/√(var + eps) of each
// sample and group, BatchNorm mean and variance of each channel; behind them lies scratch for the sums of chunks.

// pooled says that a norm has means over voxels; they are over so many samples and channels.
func pooled(n gpu.Norm) bool { return n.Groups > 0 || n.Batch }

func over(n gpu.Norm, d gpu.Dims) (samples, channels int) {
	switch {
	case !n.Batch:
		return 1, d.C / n.Groups
	case n.Groups != 0 || !n.Plain:
		panic(fmt.Sprintf("cpu: norm %+v: BatchNorm has no groups and no SiLU", n))
	}
	return d.N, 1
}

// normKernels are a level's, or plain Go's where no SiLU follows.
type normKernels struct {
	channel     func(y, x, rstd, gamma, beta []float32)
	channelGrad func(n *normGrad)
	apply       func(y, x, scale, shift []float32)
	gradSums    func(n *normGrad)
	grad        func(n *normGrad)
}

func (e *Engine) normKernels(n gpu.Norm) normKernels {
	if n.Plain {
		return normKernels{plainChannelGo, plainChannelGradGo, plainApplyGo, plainGradSumsGo, plainGradGo}
	}
	l := e.level
	return normKernels{l.channelNorm, l.channelNormGrad, l.affineSiLU, l.groupGradSums, l.groupGrad}
}

// eachSampleRows calls f for chunks of rows, none of which spans two samples. The chunks depend on the shape only.
func (e *Engine) eachSampleRows(d gpu.Dims, f func(s *scratch, chunk, n, r0, r1 int)) {
	per, rows := rowsPerChunk(d), d.D*d.H
	c := chunks(rows, per)
	e.pool.runOn(d.N*c, func(thread, i int) {
		n, r := i/c, i%c*per
		f(&e.scratch[thread], i, n, n*rows+r, n*rows+min(r+per, rows))
	})
}

func sampleChunks(d gpu.Dims) int { return chunks(d.D*d.H, rowsPerChunk(d)) }

// NormStats is the bytes of statistics.
func (e *Engine) NormStats(n gpu.Norm, d gpu.Dims) int64 {
	if !pooled(n) {
		return bytesOf(d.Voxels())
	}
	return bytesOf(poolStats(n, d) + 2*d.N*sampleChunks(d)*d.C)
}

// poolStats is the number of floats of statistics: two for each mean.
func poolStats(n gpu.Norm, d gpu.Dims) int {
	samples, channels := over(n, d)
	return 2 * d.N / samples * d.C / channels
}

// NormWork is the scratch of NormActGrad.
func (e *Engine) NormWork(n gpu.Norm, d gpu.Dims) int64 {
	parts := d.N * sampleChunks(d)
	if !pooled(n) {
		return bytesOf(3 * parts * d.C)
	}
	return bytesOf(2 * parts * d.C)
}

// NormAct writes y = silu(norm(x)), or norm(x) alone, and the statistics.
func (e *Engine) NormAct(n gpu.Norm, x gpu.Tensor, gamma, beta, stats gpu.Ptr, y gpu.Tensor) {
	if pooled(n) {
		e.poolStats(n, x, stats)
		e.NormActApply(n, x, gamma, beta, stats, y)
		return
	}
	e.channelNorm(n, x, gamma, beta, stats, y, true)
}

// NormActApply writes y with the statistics that are there.
func (e *Engine) NormActApply(n gpu.Norm, x gpu.Tensor, gamma, beta, stats gpu.Ptr, y gpu.Tensor) {
	if pooled(n) {
		e.pooledNorm(n, x, gamma, beta, stats, y)
		return
	}
	e.channelNorm(n, x, gamma, beta, stats, y, false)
}

// NormActGrad writes dx and adds to dgamma and dbeta.
func (e *Engine) NormActGrad(n gpu.Norm, x gpu.Tensor, gamma, beta, stats gpu.Ptr, dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor, dgamma, dbeta, workspace gpu.Ptr) {
	same(x, dy)
	same(x, dx)
	inPlace(dy, dx)
	if pooled(n) {
		e.pooledNormGrad(n, x, gamma, beta, stats, dy, add, dx, dgamma, dbeta, workspace)
		return
	}
	e.channelNormGrad(n, x, gamma, beta, stats, dy, add, dx, dgamma, dbeta, workspace)
}

// inPlace holds ops that may write over an operand to its layout: rows are written while others are still read.
func inPlace(src, dst gpu.Tensor) {
	if src.At == dst.At && src.Halo != dst.Halo {
		panic(fmt.Sprintf("cpu: in place, but halos %d and %d differ", src.Halo, dst.Halo))
	}
}

func (e *Engine) channelNorm(n gpu.Norm, x gpu.Tensor, gamma, beta, stats gpu.Ptr, y gpu.Tensor, measure bool) {
	same(x, y)
	gx, gy := e.grid(x), e.grid(y)
	rstd := e.floats(stats, x.Voxels())
	g, b := e.floats(gamma, x.C), e.floats(beta, x.C)
	apply := e.normKernels(n).channel
	e.eachSampleRows(x.Dims, func(_ *scratch, _, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			s := rstd[r*x.W : (r+1)*x.W]
			if measure {
				e.level.rootMeanSquare(s, gx.inner(r), n.Eps)
			}
			apply(gy.inner(r), gx.inner(r), s, g, b)
			gy.fillHalo(r)
		}
	})
}

func (e *Engine) channelNormGrad(n gpu.Norm, x gpu.Tensor, gamma, beta, stats gpu.Ptr, dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor, dgamma, dbeta, workspace gpu.Ptr) {
	gx, gdy, gdx := e.grid(x), e.grid(dy), e.grid(dx)
	plus := e.plus(add, dx)
	rstd := e.floats(stats, x.Voxels())
	g, b := e.floats(gamma, x.C), e.floats(beta, x.C)
	parts := x.N * sampleChunks(x.Dims)
	all := e.floats(workspace, 3*parts*x.C)
	sums, work := all[:2*parts*x.C], all[2*parts*x.C:]
	grad := e.normKernels(n).channelGrad
	e.eachSampleRows(x.Dims, func(own *scratch, chunk, _, r0, r1 int) {
		s := sums[2*chunk*x.C : 2*(chunk+1)*x.C]
		clear(s)
		for r := r0; r < r1; r++ {
			own.norm = normGrad{
				x: gx.inner(r), dy: gdy.inner(r), add: plus(r), dx: gdx.inner(r),
				gamma: g, beta: b, rstd: rstd[r*x.W : (r+1)*x.W], dgamma: s[:x.C], dbeta: s[x.C:],
				work: work[chunk*x.C : (chunk+1)*x.C],
			}
			grad(&own.norm)
			gdx.fillHalo(r)
		}
	})
	e.addParts(dgamma, sums, parts, x.C, 0)
	e.addParts(dbeta, sums, parts, x.C, x.C)
}

// addParts adds to dst the sums of n floats of each part, which lie at offset in its 2n floats.
func (e *Engine) addParts(dst gpu.Ptr, sums []float32, parts, n, offset int) {
	for c, v := range e.floats(dst, n) {
		var s float64
		for p := range parts {
			s += float64(sums[2*p*n+offset+c])
		}
		e.floats(dst, n)[c] = v + float32(s)
	}
}

// poolStats measures the means. Sums are of x minus the sample's first voxel, so that a large mean costs no digits.
func (e *Engine) poolStats(n gpu.Norm, x gpu.Tensor, stats gpu.Ptr) {
	gx := e.grid(x)
	per, of := sampleChunks(x.Dims), poolStats(n, x.Dims)
	all := e.floats(stats, of+2*x.N*per*x.C)
	out, sums := all[:of], all[of:]
	origin := func(s int) []float32 { return gx.v[gx.at(s, 0, 0, 0):][:x.C] }
	e.eachSampleRows(x.Dims, func(_ *scratch, chunk, s, r0, r1 int) {
		part := sums[2*chunk*x.C : 2*(chunk+1)*x.C]
		clear(part)
		for r := r0; r < r1; r++ {
			e.level.moments(part[:x.C], part[x.C:], gx.inner(r), origin(s))
		}
	})
	samples, width := over(n, x.Dims)
	members, voxels := float64(samples*width), float64(x.D*x.H*x.W)
	e.pool.run(of/2, func(i int) {
		from, first := i/(x.C/width)*samples, i%(x.C/width)*width
		var mean, m2 float64 // of the members: a sample's channels have equal counts
		means := make([]float64, 0, samples*width)
		for s := from; s < from+samples; s++ {
			for c := first; c < first+width; c++ {
				var sum, square float64
				for p := s * per; p < (s+1)*per; p++ {
					sum += float64(sums[2*p*x.C+c])
					square += float64(sums[2*p*x.C+x.C+c])
				}
				m := float64(origin(s)[c]) + sum/voxels
				means = append(means, m)
				mean += m / members
				m2 += max(0, square-sum*sum/voxels)
			}
		}
		for _, m := range means {
			m2 += voxels * (m - mean) * (m - mean)
		}
		variance := m2 / (voxels * members)
		if n.Batch {
			out[i], out[x.C+i] = float32(mean), float32(variance)
			return
		}
		out[2*i], out[2*i+1] = float32(mean), float32(1/math.Sqrt(variance+float64(n.Eps)))
	})
}

// affine gives, for each sample and channel, mean and rstd of its group and scale and shift such that norm(x) = scale*x + shift.
type affine struct{ mean, rstd, scale, shift []float32 }

func (e *Engine) affine(n gpu.Norm, x gpu.Tensor, gamma, beta, stats gpu.Ptr) affine {
	k := x.N * x.C
	v := make([]float32, 4*k)
	a := affine{v[:k], v[k : 2*k], v[2*k : 3*k], v[3*k:]}
	g, b, s := e.floats(gamma, x.C), e.floats(beta, x.C), e.floats(stats, poolStats(n, x.Dims))
	_, width := over(n, x.Dims)
	for i := range k {
		c := i % x.C
		if n.Batch {
			a.mean[i], a.rstd[i] = s[c], float32(1/math.Sqrt(float64(s[x.C+c])+float64(n.Eps)))
		} else {
			at := 2 * (i/x.C*n.Groups + c/width)
			a.mean[i], a.rstd[i] = s[at], s[at+1]
		}
		a.scale[i] = g[c] * a.rstd[i]
		a.shift[i] = b[c] - a.mean[i]*a.scale[i]
	}
	return a
}

func (a affine) sample(n, c int) affine {
	from, to := n*c, (n+1)*c
	return affine{a.mean[from:to], a.rstd[from:to], a.scale[from:to], a.shift[from:to]}
}

func (e *Engine) pooledNorm(n gpu.Norm, x gpu.Tensor, gamma, beta, stats gpu.Ptr, y gpu.Tensor) {
	same(x, y)
	gx, gy := e.grid(x), e.grid(y)
	all := e.affine(n, x, gamma, beta, stats)
	apply := e.normKernels(n).apply
	e.eachSampleRows(x.Dims, func(_ *scratch, _, s, r0, r1 int) {
		a := all.sample(s, x.C)
		for r := r0; r < r1; r++ {
			apply(gy.inner(r), gx.inner(r), a.scale, a.shift)
			gy.fillHalo(r)
		}
	})
}

func (e *Engine) pooledNormGrad(n gpu.Norm, x gpu.Tensor, gamma, beta, stats gpu.Ptr, dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor, dgamma, dbeta, workspace gpu.Ptr) {
	gx, gdy, gdx := e.grid(x), e.grid(dy), e.grid(dx)
	plus := e.plus(add, dx)
	all := e.affine(n, x, gamma, beta, stats)
	kernels := e.normKernels(n)
	g := e.floats(gamma, x.C)
	per := sampleChunks(x.Dims)
	sums := e.floats(workspace, 2*x.N*per*x.C)
	e.eachSampleRows(x.Dims, func(own *scratch, chunk, s, r0, r1 int) {
		a := all.sample(s, x.C)
		part := sums[2*chunk*x.C : 2*(chunk+1)*x.C]
		clear(part)
		for r := r0; r < r1; r++ {
			own.norm = normGrad{
				x: gx.inner(r), dy: gdy.inner(r), scale: a.scale, shift: a.shift, mean: a.mean, rstd: a.rstd,
				dgamma: part[:x.C], dbeta: part[x.C:],
			}
			kernels.gradSums(&own.norm)
		}
	})
	e.addParts(dgamma, sums, x.N*per, x.C, 0)
	e.addParts(dbeta, sums, x.N*per, x.C, x.C)

	// With g = γ·silu'·dy: dx = rstd·(g - mean(g) - x̂·mean(g·x̂)), means as those of x.
	samples, width := over(n, x.Dims)
	count := float64(samples * width * x.D * x.H * x.W)
	meanG, meanGX := make([]float32, x.N*x.C), make([]float32, x.N*x.C)
	for from := 0; from < x.N; from += samples {
		for first := 0; first < x.C; first += width {
			var m, mx float64
			for p := from * per; p < (from+samples)*per; p++ {
				for c := first; c < first+width; c++ {
					mx += float64(g[c]) * float64(sums[2*p*x.C+c])
					m += float64(g[c]) * float64(sums[2*p*x.C+x.C+c])
				}
			}
			for s := from; s < from+samples; s++ {
				for i := s*x.C + first; i < s*x.C+first+width; i++ {
					meanG[i], meanGX[i] = float32(m/count), float32(mx/count)
				}
			}
		}
	}
	e.eachSampleRows(x.Dims, func(own *scratch, _, s, r0, r1 int) {
		a := all.sample(s, x.C)
		for r := r0; r < r1; r++ {
			own.norm = normGrad{
				x: gx.inner(r), dy: gdy.inner(r), add: plus(r), dx: gdx.inner(r),
				scale: a.scale, shift: a.shift, mean: a.mean, rstd: a.rstd, gamma: g,
				meanG: meanG[s*x.C : (s+1)*x.C], meanGX: meanGX[s*x.C : (s+1)*x.C],
			}
			kernels.grad(&own.norm)
			gdx.fillHalo(r)
		}
	})
}
