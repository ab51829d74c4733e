// Norms, with SiLU behind them unless plain: y = silu(γ·x̂ + β).
//
// Lanes of a warp share a voxel: lane j has channels 8j to 8j+7, 8(j+lanes) and so on. Kernels whose name ends in 8 are for wholes
// (device.h), those of channel norms for a voxel that its lanes have eight channels of; the others take any tensor. Which of them
// computes depends on shapes and types only.
#include "device.h"

struct NormArgs {
	View x, y, dy, add; // add may be none
	Dims d;
	u64 gamma, beta, stats, parts; // parts: floats [blocks][2c], or [n][blocks][2c]
	u64 means; // of GroupNorm's gradient, floats [n][groups][2]
	i32 lanes, groups, measure, plain;
	float eps;
};

struct Params { float gamma[8], beta[8]; };

DEVICE Params params8(const NormArgs &a, i32 c, i32 n) {
	Params p;
	UNROLL for (int k = 0; k < 8; k++) {
		p.gamma[k] = k < n ? ((const float *)a.gamma)[c + k] : 0;
		p.beta[k] = k < n ? ((const float *)a.beta)[c + k] : 0;
	}
	return p;
}

// act8 makes silu(u) of u, slope8 d·silu'(u) of d.
DEVICE void act8(const NormArgs &a, float (&u)[8]) {
	if (a.plain) return;
	UNROLL for (int k = 0; k < 8; k++) u[k] *= sigmoid(u[k]);
}

DEVICE void slope8(const NormArgs &a, const float (&u)[8], float (&d)[8]) {
	if (a.plain) return;
	UNROLL for (int k = 0; k < 8; k++) {
		float s = sigmoid(u[k]);
		d[k] *= s * (1 + u[k] * (1 - s));
	}
}

// channelNorm: x̂ = x/√(mean over channels of x² + ε) at each voxel. It leaves 1/√… in stats, or takes it from there.
KERNEL(channelNorm, NormArgs, 256) {
	i32 voxels = a.d.n * a.d.d * a.d.h * a.d.w, per = 256 / a.lanes, lane = threadIdx.x % a.lanes, step = a.lanes * 8;
	for (i32 base = blockIdx.x * per; base < voxels; base += gridDim.x * per) {
		i32 v = base + threadIdx.x / a.lanes, row = v / a.d.w, col = v % a.d.w;
		bool mine = v < voxels;
		float x[8], r;
		if (a.measure) {
			float s = 0;
			NOUNROLL for (i32 c = lane * 8; mine && c < a.d.c; c += step) {
				get8(a.x, a.d.w, row, col, c, eight(c, a.d.c), x);
				UNROLL for (int k = 0; k < 8; k++) s += x[k] * x[k];
			}
			s = sumLanes(s, a.lanes);
			r = 1 / root(s / a.d.c + a.eps);
			if (mine && lane == 0) ((float *)a.stats)[v] = r;
		} else {
			r = mine ? ((const float *)a.stats)[v] : 0;
		}
		NOUNROLL for (i32 c = lane * 8; mine && c < a.d.c; c += step) {
			i32 n = eight(c, a.d.c);
			Params p = params8(a, c, n);
			get8(a.x, a.d.w, row, col, c, n, x);
			UNROLL for (int k = 0; k < 8; k++) x[k] = p.gamma[k] * (x[k] * r) + p.beta[k];
			act8(a, x);
			put8(a.y, a.d.w, row, col, c, n, x);
		}
	}
}

KERNEL(channelNorm8, NormArgs, 256, 3) {
	i32 voxels = a.d.n * a.d.d * a.d.h * a.d.w, per = 256 / a.lanes, lane = threadIdx.x % a.lanes, c = lane * 8, step = gridDim.x * per;
	bool has = c < a.d.c;
	Params p = params8(a, c, has ? 8 : 0);
	i32 v = blockIdx.x * per + threadIdx.x / a.lanes;
	Course at = courseOf(v, step, a.d.w);
	for (i32 left = voxels - blockIdx.x * per; left > 0; left -= 2 * step) { // of all lanes of a warp alike
		Course from[2];
		Quad q[2];
		float x[2][8], r[2];
		UNROLL for (int u = 0; u < 2; u++) {
			from[u] = at;
			q[u] = Quad{{0, 0, 0, 0}}, r[u] = 0;
			if (has && v + u * step < voxels) {
				q[u] = getQuad(a.x, a.d.w, at.row, at.x, c);
				if (!a.measure) r[u] = ((const float *)a.stats)[v + u * step];
			}
			at.next(a.d.w);
		}
		UNROLL for (int u = 0; u < 2; u++) {
			unpack(q[u], x[u]);
			if (!a.measure) continue;
			float s = 0;
			UNROLL for (int k = 0; k < 8; k++) s += x[u][k] * x[u][k];
			r[u] = 1 / root(sumLanes(s, a.lanes) / a.d.c + a.eps);
			if (lane == 0 && v + u * step < voxels) ((float *)a.stats)[v + u * step] = r[u];
		}
		UNROLL for (int u = 0; u < 2; u++) {
			UNROLL for (int k = 0; k < 8; k++) x[u][k] = p.gamma[k] * (x[u][k] * r[u]) + p.beta[k];
			act8(a, x[u]);
			if (has && v + u * step < voxels) putQuad(a.y, a.d.w, from[u].row, from[u].x, c, x[u]);
		}
		v += 2 * step;
	}
}

// slopes8 reads x̂ and silu'·dy.
DEVICE void slopes8(const NormArgs &a, const Params &p, i32 row, i32 col, i32 c, i32 n, float r, float (&x)[8], float (&d)[8]) {
	get8(a.x, a.d.w, row, col, c, n, x);
	get8(a.dy, a.d.w, row, col, c, n, d);
	float u[8];
	UNROLL for (int k = 0; k < 8; k++) x[k] *= r, u[k] = p.gamma[k] * x[k] + p.beta[k];
	slope8(a, u, d);
}

// channelNormGrad: with g = γ·silu'(u)·dy, dx = r·(g - x̂·mean(g·x̂)) + add.
KERNEL(channelNormGrad, NormArgs, 256) {
	i32 voxels = a.d.n * a.d.d * a.d.h * a.d.w, per = 256 / a.lanes, lane = threadIdx.x % a.lanes, step = a.lanes * 8;
	for (i32 base = blockIdx.x * per; base < voxels; base += gridDim.x * per) {
		i32 v = base + threadIdx.x / a.lanes, row = v / a.d.w, col = v % a.d.w;
		float r = v < voxels ? ((const float *)a.stats)[v] : 0, dot = 0, x[8], g[8];
		NOUNROLL for (i32 c = lane * 8; v < voxels && c < a.d.c; c += step) {
			i32 n = eight(c, a.d.c);
			Params p = params8(a, c, n);
			slopes8(a, p, row, col, c, n, r, x, g);
			UNROLL for (int k = 0; k < 8; k++) dot += p.gamma[k] * g[k] * x[k];
		}
		dot = sumLanes(dot, a.lanes) / a.d.c;
		NOUNROLL for (i32 c = lane * 8; v < voxels && c < a.d.c; c += step) {
			i32 n = eight(c, a.d.c);
			Params p = params8(a, c, n);
			slopes8(a, p, row, col, c, n, r, x, g);
			float plus[8] = {0, 0, 0, 0, 0, 0, 0, 0};
			if (a.add.at) get8(a.add, a.d.w, row, col, c, n, plus);
			UNROLL for (int k = 0; k < 8; k++) g[k] = r * (p.gamma[k] * g[k] - x[k] * dot) + plus[k];
			put8(a.y, a.d.w, row, col, c, n, g);
		}
	}
}

// channelNormGrad8 leaves each part's dγ = Σ silu'·dy·x̂ and dβ = Σ silu'·dy too.
KERNEL(channelNormGrad8, NormArgs, 256, 2) {
	__shared__ float shared[VOXEL_SUMS];
	i32 voxels = a.d.n * a.d.d * a.d.h * a.d.w, per = 256 / a.lanes, lane = threadIdx.x % a.lanes, c = lane * 8, step = gridDim.x * per;
	bool has = c < a.d.c;
	Params p = params8(a, c, has ? 8 : 0);
	float dgamma[8], dbeta[8];
	UNROLL for (int k = 0; k < 8; k++) dgamma[k] = dbeta[k] = 0;
	i32 v = blockIdx.x * per + threadIdx.x / a.lanes;
	Course at = courseOf(v, step, a.d.w);
	Quad nextX, nextG, nextAdd = {{0, 0, 0, 0}}; // of the next voxel, on their way
	float nextR;
	auto load = [&] {
		nextX = nextG = Quad{{0, 0, 0, 0}}, nextR = 0;
		if (!has || v >= voxels) return;
		nextX = getQuad(a.x, a.d.w, at.row, at.x, c);
		nextG = getQuad(a.dy, a.d.w, at.row, at.x, c);
		if (a.add.at) nextAdd = getQuad(a.add, a.d.w, at.row, at.x, c);
		nextR = ((const float *)a.stats)[v];
	};
	load();
	for (i32 left = voxels - blockIdx.x * per; left > 0; left -= step) { // of all lanes of a warp alike
		float x[8], g[8], u[8], plus[8], r = nextR, dot = 0;
		unpack(nextX, x), unpack(nextG, g), unpack(nextAdd, plus);
		Course to = at;
		bool mine = has && v < voxels;
		at.next(a.d.w), v += step;
		load();
		UNROLL for (int k = 0; k < 8; k++) x[k] *= r, u[k] = p.gamma[k] * x[k] + p.beta[k];
		slope8(a, u, g);
		UNROLL for (int k = 0; k < 8; k++) {
			dgamma[k] += g[k] * x[k];
			dbeta[k] += g[k];
			g[k] *= p.gamma[k];
			dot += g[k] * x[k];
		}
		dot = sumLanes(dot, a.lanes) / a.d.c;
		if (!mine) continue;
		UNROLL for (int k = 0; k < 8; k++) g[k] = r * (g[k] - x[k] * dot) + plus[k];
		putQuad(a.y, a.d.w, to.row, to.x, c, g);
	}
	float *out = (float *)a.parts + (u64)blockIdx.x * 2 * a.d.c;
	sumVoxels(dgamma, shared, a.lanes, a.d.c, out);
	sumVoxels(dbeta, shared, a.lanes, a.d.c, out + a.d.c);
}

// Slope is what eight channels of a sample want of their groups: u = scale·(x - mean) + beta, scale = γ·rstd.
struct Slope { float mean[8], scale[8], beta[8]; };

DEVICE Slope slopeOf(const NormArgs &a, i32 c, i32 n) {
	const float *stats = (const float *)a.stats + (u64)blockIdx.y * a.groups * 2;
	i32 wide = a.d.c / a.groups;
	Params p = params8(a, c, n);
	Slope s;
	UNROLL for (int k = 0; k < 8; k++) {
		i32 g = k < n ? (c + k) / wide : 0;
		s.mean[k] = stats[2 * g], s.scale[k] = p.gamma[k] * stats[2 * g + 1], s.beta[k] = p.beta[k];
	}
	return s;
}

// rstd8 multiplies eight channels' sums of what is x - mean by rstd.
DEVICE void rstd8(const NormArgs &a, i32 c, i32 n, float (&v)[8]) {
	const float *stats = (const float *)a.stats + (u64)blockIdx.y * a.groups * 2;
	i32 wide = a.d.c / a.groups;
	UNROLL for (int k = 0; k < 8; k++) v[k] *= stats[2 * (k < n ? (c + k) / wide : 0) + 1];
}

// Rest is what the gradient wants besides: dx = scale·silu'·dy - level - tilt·(x - mean).
struct Rest { float level[8], tilt[8]; };

DEVICE Rest restOf(const NormArgs &a, i32 c, i32 n) {
	u64 sample = (u64)blockIdx.y * a.groups * 2;
	const float *stats = (const float *)a.stats + sample, *means = (const float *)a.means + sample;
	i32 wide = a.d.c / a.groups;
	Rest r;
	UNROLL for (int k = 0; k < 8; k++) {
		i32 g = 2 * (k < n ? (c + k) / wide : 0);
		r.level[k] = stats[g + 1] * means[g], r.tilt[k] = stats[g + 1] * stats[g + 1] * means[g + 1];
	}
	return r;
}

enum { ABOUT_FIRST, OF_GROUPS, OF_CHANNELS };

// Sums leave, for each part of a sample's voxels (blockIdx.y), two numbers for each channel. ABOUT_FIRST: Σ (x - o) and Σ (x - o)², o the
// sample's first voxel, so that a large mean costs no digits. Of the gradients: Σ silu'·dy·x̂ and Σ silu'·dy.
template <int KIND> DEVICE void sumsOf(const NormArgs &a) {
	__shared__ float shared[VOXEL_SUMS];
	i32 voxels = a.d.d * a.d.h * a.d.w, first = blockIdx.y * a.d.d * a.d.h;
	i32 per = 256 / a.lanes, lane = threadIdx.x % a.lanes, c0 = lane * 8, step = a.lanes * 8;
	NOUNROLL for (i32 c = c0; c - lane * 8 < a.d.c; c += step) {
		i32 n = eight(c, a.d.c);
		float sum[8], square[8], o[8];
		UNROLL for (int k = 0; k < 8; k++) sum[k] = square[k] = o[k] = 0;
		if (n > 0) {
			Params p;
			Slope f;
			if (KIND == OF_CHANNELS) p = params8(a, c, n);
			if (KIND == OF_GROUPS) f = slopeOf(a, c, n);
			if (KIND == ABOUT_FIRST) get8(a.x, a.d.w, first, 0, c, n, o);
			NOUNROLL for (i32 v = blockIdx.x * per + threadIdx.x / a.lanes; v < voxels; v += gridDim.x * per) {
				float x[8], g[8];
				i32 row = first + v / a.d.w, col = v % a.d.w;
				if (KIND == ABOUT_FIRST) {
					get8(a.x, a.d.w, row, col, c, n, x);
					UNROLL for (int k = 0; k < 8; k++) g[k] = x[k] - o[k], sum[k] += g[k], square[k] += g[k] * g[k];
					continue;
				}
				if (KIND == OF_CHANNELS) {
					slopes8(a, p, row, col, c, n, ((const float *)a.stats)[(u64)blockIdx.y * voxels + v], x, g);
				} else {
					float u[8];
					get8(a.x, a.d.w, row, col, c, n, x);
					get8(a.dy, a.d.w, row, col, c, n, g);
					UNROLL for (int k = 0; k < 8; k++) x[k] -= f.mean[k], u[k] = f.scale[k] * x[k] + f.beta[k];
					slope8(a, u, g);
				}
				UNROLL for (int k = 0; k < 8; k++) sum[k] += g[k] * x[k], square[k] += g[k];
			}
			if (KIND == OF_GROUPS) rstd8(a, c, n, sum);
		}
		i32 base = c - lane * 8;
		float *out = (float *)a.parts + ((u64)blockIdx.y * gridDim.x + blockIdx.x) * 2 * a.d.c + base;
		sumVoxels(sum, shared, a.lanes, a.d.c - base, out);
		sumVoxels(square, shared, a.lanes, a.d.c - base, out + a.d.c);
	}
}

KERNEL(groupSums, NormArgs, 256) { sumsOf<ABOUT_FIRST>(a); }
KERNEL(groupGradSums, NormArgs, 256) { sumsOf<OF_GROUPS>(a); }
KERNEL(channelGradSums, NormArgs, 256) { sumsOf<OF_CHANNELS>(a); }

// sumsOf8 is sumsOf for wholes, with several voxels on their way.
template <bool GRAD> DEVICE void sumsOf8(const NormArgs &a) {
	__shared__ float shared[VOXEL_SUMS];
	constexpr int U = GRAD ? 2 : 4;
	i32 voxels = a.d.d * a.d.h * a.d.w, first = blockIdx.y * a.d.d * a.d.h;
	i32 per = 256 / a.lanes, lane = threadIdx.x % a.lanes, wide = a.lanes * 8, step = gridDim.x * per;
	NOUNROLL for (i32 c = lane * 8; c - lane * 8 < a.d.c; c += wide) {
		bool has = c < a.d.c;
		float sum[8], square[8], o[8];
		UNROLL for (int k = 0; k < 8; k++) sum[k] = square[k] = o[k] = 0;
		if (has) {
			Slope f;
			if (GRAD) f = slopeOf(a, c, 8);
			else unpack(getQuad(a.x, a.d.w, first, 0, c), o);
			i32 v = blockIdx.x * per + threadIdx.x / a.lanes;
			Course at = courseOf(v, step, a.d.w);
			for (; v < voxels; v += U * step) {
				Quad qx[U], qg[U];
				UNROLL for (int i = 0; i < U; i++) {
					if (v + i * step < voxels) {
						qx[i] = getQuad(a.x, a.d.w, first + at.row, at.x, c);
						if (GRAD) qg[i] = getQuad(a.dy, a.d.w, first + at.row, at.x, c);
					}
					at.next(a.d.w);
				}
				UNROLL for (int i = 0; i < U; i++) {
					if (v + i * step >= voxels) break;
					float x[8], g[8];
					unpack(qx[i], x);
					if (GRAD) {
						float u[8];
						unpack(qg[i], g);
						UNROLL for (int k = 0; k < 8; k++) x[k] -= f.mean[k], u[k] = f.scale[k] * x[k] + f.beta[k];
						slope8(a, u, g);
						UNROLL for (int k = 0; k < 8; k++) sum[k] += g[k] * x[k], square[k] += g[k];
					} else {
						UNROLL for (int k = 0; k < 8; k++) g[k] = x[k] - o[k], sum[k] += g[k], square[k] += g[k] * g[k];
					}
				}
			}
			if (GRAD) rstd8(a, c, 8, sum);
		}
		i32 base = c - lane * 8;
		float *out = (float *)a.parts + ((u64)blockIdx.y * gridDim.x + blockIdx.x) * 2 * a.d.c + base;
		sumVoxels(sum, shared, a.lanes, a.d.c - base, out);
		sumVoxels(square, shared, a.lanes, a.d.c - base, out + a.d.c);
	}
}

KERNEL(groupSums8, NormArgs, 256, 4) { sumsOf8<false>(a); }
KERNEL(groupGradSums8, NormArgs, 256, 2) { sumsOf8<true>(a); }

struct GroupArgs {
	View x;
	Dims d;
	u64 parts, out, gamma, moments; // parts as of groupSums, n of them; out: floats [n][groups][2]; moments: floats mean [groups], variance [groups], or 0
	i32 n, groups;
	float eps;
};

// groupStats makes mean and 1/√(var + ε) of groupSums. A block has a group of a sample.
KERNEL(groupStats, GroupArgs, 128) {
	__shared__ double shared[128];
	i32 sample = blockIdx.x / a.groups, wide = a.d.c / a.groups, first = blockIdx.x % a.groups * wide;
	double voxels = (double)a.d.d * a.d.h * a.d.w, means = 0, squares = 0, m2 = 0;
	for (i32 c = first; c < first + wide; c++) {
		const float *p = (const float *)a.parts + (u64)sample * a.n * 2 * a.d.c + c;
		double s = 0, q = 0;
		for (i32 k = threadIdx.x; k < a.n; k += 128) {
			s += p[(u64)k * 2 * a.d.c];
			q += p[(u64)k * 2 * a.d.c + a.d.c];
		}
		s = sumBlock(s, shared);
		q = sumBlock(q, shared);
		double mean = load1(a.x, cell(a.x, a.d.w, sample * a.d.d * a.d.h, 0) + c) + s / voxels, off = q - s * s / voxels;
		means += mean;
		squares += mean * mean;
		m2 += off > 0 ? off : 0;
	}
	if (threadIdx.x > 0) return;
	double mean = means / wide, apart = squares - wide * mean * mean;
	m2 += voxels * (apart > 0 ? apart : 0);
	double variance = m2 / (voxels * wide);
	float *out = (float *)a.out + 2 * blockIdx.x;
	out[0] = (float)mean;
	out[1] = (float)(1 / root(variance + (double)a.eps));
	if (a.moments) {
		((float *)a.moments)[blockIdx.x] = (float)mean;
		((float *)a.moments)[gridDim.x + blockIdx.x] = (float)variance;
	}
}

// groupMeans makes mean(g) and mean(g·x̂) of the sums of groupGradSums, which columns has added up for each sample.
KERNEL(groupMeans, GroupArgs, 128) {
	i32 i = blockIdx.x * 128 + threadIdx.x;
	if (i >= a.d.n * a.groups) return;
	i32 sample = i / a.groups, wide = a.d.c / a.groups;
	const float *s = (const float *)a.parts + (u64)sample * 2 * a.d.c, *gamma = (const float *)a.gamma;
	double g = 0, gx = 0, count = (double)a.d.d * a.d.h * a.d.w * wide;
	for (i32 c = i % a.groups * wide, end = c + wide; c < end; c++) {
		gx += (double)gamma[c] * s[c];
		g += (double)gamma[c] * s[a.d.c + c];
	}
	((float *)a.out)[2 * i] = (float)(g / count);
	((float *)a.out)[2 * i + 1] = (float)(gx / count);
}

// groupNorm: y = silu(γ·(x - mean)·rstd + β), of a sample (blockIdx.y). A thread keeps its channels and what belongs to them.
KERNEL(groupNorm, NormArgs, 256) {
	i32 voxels = a.d.d * a.d.h * a.d.w, first = blockIdx.y * a.d.d * a.d.h;
	i32 per = 256 / a.lanes, lane = threadIdx.x % a.lanes, step = a.lanes * 8;
	NOUNROLL for (i32 c = lane * 8; c < a.d.c; c += step) {
		i32 n = eight(c, a.d.c);
		Slope f = slopeOf(a, c, n);
		NOUNROLL for (i32 v = blockIdx.x * per + threadIdx.x / a.lanes; v < voxels; v += gridDim.x * per) {
			i32 row = first + v / a.d.w, col = v % a.d.w;
			float x[8];
			get8(a.x, a.d.w, row, col, c, n, x);
			UNROLL for (int k = 0; k < 8; k++) x[k] = f.scale[k] * (x[k] - f.mean[k]) + f.beta[k];
			act8(a, x);
			put8(a.y, a.d.w, row, col, c, n, x);
		}
	}
}

KERNEL(groupNorm8, NormArgs, 256, 3) {
	i32 voxels = a.d.d * a.d.h * a.d.w, first = blockIdx.y * a.d.d * a.d.h;
	i32 per = 256 / a.lanes, lane = threadIdx.x % a.lanes, wide = a.lanes * 8, step = gridDim.x * per;
	NOUNROLL for (i32 c = lane * 8; c < a.d.c; c += wide) {
		Slope f = slopeOf(a, c, 8);
		i32 v = blockIdx.x * per + threadIdx.x / a.lanes;
		Course at = courseOf(v, step, a.d.w);
		for (; v < voxels; v += 2 * step) {
			Course to = at;
			Quad q[2];
			UNROLL for (int i = 0; i < 2; i++) {
				if (v + i * step < voxels) q[i] = getQuad(a.x, a.d.w, first + at.row, at.x, c);
				at.next(a.d.w);
			}
			UNROLL for (int i = 0; i < 2; i++) {
				if (v + i * step >= voxels) break;
				float x[8];
				unpack(q[i], x);
				UNROLL for (int k = 0; k < 8; k++) x[k] = f.scale[k] * (x[k] - f.mean[k]) + f.beta[k];
				act8(a, x);
				putQuad(a.y, a.d.w, first + to.row, to.x, c, x);
				to.next(a.d.w);
			}
		}
	}
}

// groupGrad: dx = rstd·(g - mean(g) - x̂·mean(g·x̂)) + add, g = γ·silu'·dy, of a sample (blockIdx.y).
KERNEL(groupGrad, NormArgs, 256) {
	i32 voxels = a.d.d * a.d.h * a.d.w, first = blockIdx.y * a.d.d * a.d.h;
	i32 per = 256 / a.lanes, lane = threadIdx.x % a.lanes, step = a.lanes * 8;
	NOUNROLL for (i32 c = lane * 8; c < a.d.c; c += step) {
		i32 n = eight(c, a.d.c);
		Slope f = slopeOf(a, c, n);
		Rest r = restOf(a, c, n);
		NOUNROLL for (i32 v = blockIdx.x * per + threadIdx.x / a.lanes; v < voxels; v += gridDim.x * per) {
			i32 row = first + v / a.d.w, col = v % a.d.w;
			float x[8], g[8], u[8], plus[8] = {0, 0, 0, 0, 0, 0, 0, 0};
			get8(a.x, a.d.w, row, col, c, n, x);
			get8(a.dy, a.d.w, row, col, c, n, g);
			if (a.add.at) get8(a.add, a.d.w, row, col, c, n, plus);
			UNROLL for (int k = 0; k < 8; k++) x[k] -= f.mean[k], u[k] = f.scale[k] * x[k] + f.beta[k], plus[k] -= r.level[k] + r.tilt[k] * x[k];
			slope8(a, u, g);
			UNROLL for (int k = 0; k < 8; k++) x[k] = f.scale[k] * g[k] + plus[k];
			put8(a.y, a.d.w, row, col, c, n, x);
		}
	}
}

KERNEL(groupGrad8, NormArgs, 256, 2) {
	i32 voxels = a.d.d * a.d.h * a.d.w, first = blockIdx.y * a.d.d * a.d.h;
	i32 per = 256 / a.lanes, lane = threadIdx.x % a.lanes, wide = a.lanes * 8, step = gridDim.x * per;
	NOUNROLL for (i32 c = lane * 8; c < a.d.c; c += wide) {
		Slope f = slopeOf(a, c, 8);
		Rest r = restOf(a, c, 8);
		i32 v = blockIdx.x * per + threadIdx.x / a.lanes;
		Course at = courseOf(v, step, a.d.w);
		Quad nextX, nextG, nextAdd = {{0, 0, 0, 0}}; // of the next voxel, on their way
		auto load = [&] {
			if (v >= voxels) return;
			nextX = getQuad(a.x, a.d.w, first + at.row, at.x, c);
			nextG = getQuad(a.dy, a.d.w, first + at.row, at.x, c);
			if (a.add.at) nextAdd = getQuad(a.add, a.d.w, first + at.row, at.x, c);
		};
		load();
		while (v < voxels) {
			float x[8], g[8], u[8], plus[8];
			unpack(nextX, x), unpack(nextG, g), unpack(nextAdd, plus);
			Course to = at;
			at.next(a.d.w), v += step;
			load();
			UNROLL for (int k = 0; k < 8; k++) x[k] -= f.mean[k], u[k] = f.scale[k] * x[k] + f.beta[k], plus[k] -= r.level[k] + r.tilt[k] * x[k];
			slope8(a, u, g);
			UNROLL for (int k = 0; k < 8; k++) x[k] = f.scale[k] * g[k] + plus[k];
			putQuad(a.y, a.d.w, first + to.row, to.x, c, x);
		}
	}
}
