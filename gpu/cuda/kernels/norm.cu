// Norms, with SiLU behind them unless plain: y = silu(γ·x̂ + β).
//
// Lanes of a warp share a voxel: lane j has channels 8j to 8j+7, 8(j+lanes) and so on, K groups of eight in all.
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

// channelNorm: x̂ = x/√(mean over channels of x² + ε) at each voxel. It leaves 1/√… in stats, or takes it from there. Where a lane
// has ONE group of channels, it keeps what belongs to them.
template <bool ONE> DEVICE void channelNormOf(const NormArgs &a) {
	i32 voxels = a.d.n * a.d.d * a.d.h * a.d.w, per = 256 / a.lanes, lane = threadIdx.x % a.lanes, c0 = lane * 8;
	i32 step = a.lanes * 8, end = ONE ? c0 + 1 : a.d.c, n = eight(c0, a.d.c);
	Params p;
	if (ONE) p = params8(a, c0, n);
	for (i32 base = blockIdx.x * per; base < voxels; base += gridDim.x * per) {
		i32 v = base + threadIdx.x / a.lanes, row = v / a.d.w, col = v % a.d.w;
		bool mine = v < voxels && n > 0;
		float x[8], r;
		if (ONE && mine) get8(a.x, a.d.w, row, col, c0, n, x);
		if (a.measure) {
			float s = 0;
			for (i32 c = c0; mine && c < end; c += step) {
				if (!ONE) get8(a.x, a.d.w, row, col, c, eight(c, a.d.c), x);
				UNROLL for (int k = 0; k < 8; k++) s += x[k] * x[k];
			}
			s = sumLanes(s, a.lanes);
			r = 1 / root(s / a.d.c + a.eps);
			if (mine && lane == 0) ((float *)a.stats)[v] = r;
		} else {
			r = mine ? ((const float *)a.stats)[v] : 0;
		}
		for (i32 c = c0; mine && c < end; c += step) {
			i32 some = ONE ? n : eight(c, a.d.c);
			if (!ONE) {
				p = params8(a, c, some);
				get8(a.x, a.d.w, row, col, c, some, x);
			}
			UNROLL for (int k = 0; k < 8; k++) x[k] = p.gamma[k] * (x[k] * r) + p.beta[k];
			act8(a, x);
			put8(a.y, a.d.w, row, col, c, some, x);
		}
	}
}

KERNEL(channelNorm1, NormArgs, 256) { channelNormOf<true>(a); }
KERNEL(channelNorm, NormArgs, 256) { channelNormOf<false>(a); }

// slopes8 reads x̂ and silu'·dy.
DEVICE void slopes8(const NormArgs &a, const Params &p, i32 row, i32 col, i32 c, i32 n, float r, float (&x)[8], float (&d)[8]) {
	get8(a.x, a.d.w, row, col, c, n, x);
	get8(a.dy, a.d.w, row, col, c, n, d);
	float u[8];
	UNROLL for (int k = 0; k < 8; k++) x[k] *= r, u[k] = p.gamma[k] * x[k] + p.beta[k];
	slope8(a, u, d);
}

// With g = γ·silu'(u)·dy: dx = r·(g - x̂·mean(g·x̂)) + add, dγ = Σ silu'·dy·x̂, dβ = Σ silu'·dy. What doesn't fit into registers
// (more than two groups) is read a second time.
template <int K> DEVICE void channelNormGradOf(const NormArgs &a) {
	__shared__ float shared[256];
	constexpr bool TWICE = K > 2;
	i32 voxels = a.d.n * a.d.d * a.d.h * a.d.w, per = 256 / a.lanes, lane = threadIdx.x % a.lanes, c0 = lane * 8, step = a.lanes * 8;
	float dgamma[K][8], dbeta[K][8];
	UNROLL for (int q = 0; q < K; q++) UNROLL for (int k = 0; k < 8; k++) dgamma[q][k] = dbeta[q][k] = 0;
	for (i32 base = blockIdx.x * per; base < voxels; base += gridDim.x * per) {
		i32 v = base + threadIdx.x / a.lanes, row = v / a.d.w, col = v % a.d.w;
		bool mine = v < voxels;
		float r = mine ? ((const float *)a.stats)[v] : 0, dot = 0;
		float g[TWICE ? 1 : K][8], x[TWICE ? 1 : K][8];
		UNROLL for (int q = 0; q < K; q++) {
			i32 c = c0 + q * step, n = mine ? eight(c, a.d.c) : 0, to = TWICE ? 0 : q;
			if (n == 0) continue;
			Params p = params8(a, c, n);
			slopes8(a, p, row, col, c, n, r, x[to], g[to]);
			UNROLL for (int k = 0; k < 8; k++) {
				dgamma[q][k] += g[to][k] * x[to][k];
				dbeta[q][k] += g[to][k];
				g[to][k] *= p.gamma[k];
				dot += g[to][k] * x[to][k];
			}
		}
		dot = sumLanes(dot, a.lanes) / a.d.c;
		UNROLL for (int q = 0; q < K; q++) {
			i32 c = c0 + q * step, n = mine ? eight(c, a.d.c) : 0, from = TWICE ? 0 : q;
			if (n == 0) continue;
			if (TWICE) {
				Params p = params8(a, c, n);
				slopes8(a, p, row, col, c, n, r, x[from], g[from]);
				UNROLL for (int k = 0; k < 8; k++) g[from][k] *= p.gamma[k];
			}
			float plus[8] = {0, 0, 0, 0, 0, 0, 0, 0};
			if (a.add.at) get8(a.add, a.d.w, row, col, c, n, plus);
			UNROLL for (int k = 0; k < 8; k++) g[from][k] = r * (g[from][k] - x[from][k] * dot) + plus[k];
			put8(a.y, a.d.w, row, col, c, n, g[from]);
		}
	}
	UNROLL for (int q = 0; q < K; q++) {
		UNROLL for (int k = 0; k < 8; k++) {
			i32 c = c0 + q * step + k;
			float *out = c < a.d.c ? (float *)a.parts + (u64)blockIdx.x * 2 * a.d.c + c : 0;
			sumVoxels(dgamma[q][k], shared, a.lanes, out);
			sumVoxels(dbeta[q][k], shared, a.lanes, out ? out + a.d.c : 0);
		}
	}
}

KERNEL(channelNormGrad1, NormArgs, 256) { channelNormGradOf<1>(a); }
KERNEL(channelNormGrad2, NormArgs, 256) { channelNormGradOf<2>(a); }
KERNEL(channelNormGrad8, NormArgs, 256) { channelNormGradOf<8>(a); }

// affine is x̂ = (x - mean)·rstd of eight channels of a sample.
struct Affine { float mean[8], rstd[8]; };

DEVICE Affine affine8(const NormArgs &a, i32 sample, i32 c, i32 n) {
	Affine f;
	const float *s = (const float *)a.stats + (u64)sample * a.groups * 2;
	i32 wide = a.d.c / a.groups;
	UNROLL for (int k = 0; k < 8; k++) {
		i32 g = k < n ? (c + k) / wide : 0;
		f.mean[k] = s[2 * g], f.rstd[k] = s[2 * g + 1];
	}
	return f;
}

// groupSums leaves, for each part of a sample's voxels (blockIdx.y), Σ (x - o) and Σ (x - o)² by channel, o the sample's first
// voxel: so a large mean costs no digits. Of the gradient: Σ silu'·dy·x̂ and Σ silu'·dy.
template <bool GRAD> DEVICE void groupSumsOf(const NormArgs &a) {
	__shared__ float shared[256];
	i32 voxels = a.d.d * a.d.h * a.d.w, first = blockIdx.y * a.d.d * a.d.h;
	i32 per = 256 / a.lanes, lane = threadIdx.x % a.lanes, c0 = lane * 8, step = a.lanes * 8;
	NOUNROLL for (i32 c = c0; c - lane * 8 < a.d.c; c += step) {
		i32 n = eight(c, a.d.c);
		float sum[8], square[8], o[8];
		UNROLL for (int k = 0; k < 8; k++) sum[k] = square[k] = o[k] = 0;
		if (n > 0) {
			Params p = params8(a, c, n);
			Affine f;
			if (GRAD) f = affine8(a, blockIdx.y, c, n);
			else get8(a.x, a.d.w, first, 0, c, n, o);
			for (i32 v = blockIdx.x * per + threadIdx.x / a.lanes; v < voxels; v += gridDim.x * per) {
				float x[8], g[8];
				get8(a.x, a.d.w, first + v / a.d.w, v % a.d.w, c, n, x);
				if (GRAD) get8(a.dy, a.d.w, first + v / a.d.w, v % a.d.w, c, n, g);
				if (GRAD) {
					float u[8];
					UNROLL for (int k = 0; k < 8; k++) x[k] = (x[k] - f.mean[k]) * f.rstd[k], u[k] = p.gamma[k] * x[k] + p.beta[k];
					slope8(a, u, g);
					UNROLL for (int k = 0; k < 8; k++) sum[k] += g[k] * x[k], square[k] += g[k];
				} else {
					UNROLL for (int k = 0; k < 8; k++) {
						float e = x[k] - o[k];
						sum[k] += e;
						square[k] += e * e;
					}
				}
			}
		}
		UNROLL for (int k = 0; k < 8; k++) {
			float *out = c + k < a.d.c ? (float *)a.parts + ((u64)blockIdx.y * gridDim.x + blockIdx.x) * 2 * a.d.c + c + k : 0;
			sumVoxels(sum[k], shared, a.lanes, out);
			sumVoxels(square[k], shared, a.lanes, out ? out + a.d.c : 0);
		}
	}
}

KERNEL(groupSums, NormArgs, 256) { groupSumsOf<false>(a); }
KERNEL(groupGradSums, NormArgs, 256) { groupSumsOf<true>(a); }

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
		Params p = params8(a, c, n);
		Affine f = affine8(a, blockIdx.y, c, n);
		NOUNROLL for (i32 v = blockIdx.x * per + threadIdx.x / a.lanes; v < voxels; v += gridDim.x * per) {
			i32 row = first + v / a.d.w, col = v % a.d.w;
			float x[8];
			get8(a.x, a.d.w, row, col, c, n, x);
			UNROLL for (int k = 0; k < 8; k++) x[k] = p.gamma[k] * ((x[k] - f.mean[k]) * f.rstd[k]) + p.beta[k];
			act8(a, x);
			put8(a.y, a.d.w, row, col, c, n, x);
		}
	}
}

// groupGrad: dx = rstd·(g - mean(g) - x̂·mean(g·x̂)) + add, g = γ·silu'·dy, of a sample (blockIdx.y).
KERNEL(groupGrad, NormArgs, 256, 2) {
	i32 voxels = a.d.d * a.d.h * a.d.w, first = blockIdx.y * a.d.d * a.d.h, wide = a.d.c / a.groups;
	i32 per = 256 / a.lanes, lane = threadIdx.x % a.lanes, step = a.lanes * 8;
	const float *means = (const float *)a.means + (u64)blockIdx.y * a.groups * 2;
	NOUNROLL for (i32 c = lane * 8; c < a.d.c; c += step) {
		i32 n = eight(c, a.d.c);
		Params p = params8(a, c, n);
		Affine f = affine8(a, blockIdx.y, c, n);
		float meanG[8], meanGX[8];
		UNROLL for (int k = 0; k < 8; k++) {
			i32 group = k < n ? (c + k) / wide : 0;
			meanG[k] = means[2 * group], meanGX[k] = means[2 * group + 1];
		}
		NOUNROLL for (i32 v = blockIdx.x * per + threadIdx.x / a.lanes; v < voxels; v += gridDim.x * per) {
			i32 row = first + v / a.d.w, col = v % a.d.w;
			float x[8], g[8], u[8], plus[8] = {0, 0, 0, 0, 0, 0, 0, 0};
			get8(a.x, a.d.w, row, col, c, n, x);
			get8(a.dy, a.d.w, row, col, c, n, g);
			if (a.add.at) get8(a.add, a.d.w, row, col, c, n, plus);
			UNROLL for (int k = 0; k < 8; k++) x[k] = (x[k] - f.mean[k]) * f.rstd[k], u[k] = p.gamma[k] * x[k] + p.beta[k], g[k] *= p.gamma[k];
			slope8(a, u, g);
			UNROLL for (int k = 0; k < 8; k++) x[k] = f.rstd[k] * (g[k] - meanG[k] - x[k] * meanGX[k]) + plus[k];
			put8(a.y, a.d.w, row, col, c, n, x);
		}
	}
}
