// Losses of a GAN, and what balances them.
#include "device.h"

struct JudgeArgs {
	View x, dx; // dx may be none
	Dims d;
	u64 scale, lecam, parts; // a float; two floats λ and a, or 0; doubles [blocks][2]
	i32 loss, side;
};

enum { HINGE, VANILLA, SQUARES, MEAN };
enum { ON_REAL, ON_FAKE, OF_GENERATOR };

// lossOf gives a logit's loss and its slope: the table of gpu.Judge.
DEVICE float lossOf(const JudgeArgs &a, float l, float &slope) {
	float sign = a.side == ON_FAKE ? 1 : -1;
	switch (a.loss) {
	case HINGE: {
		if (a.side == OF_GENERATOR) {
			slope = -1;
			return -l;
		}
		float m = 1 + sign * l;
		slope = m <= 0 ? 0 : sign; // NaN keeps its slope
		return m <= 0 ? 0 : m;
	}
	case VANILLA: {
		float u = sign * l, e = exp2Fast(-absolute(u) * 1.4426950408889634f);
		slope = sign * sigmoid(u);
		return (u > 0 ? u : u <= 0 ? 0 : u) + log2Fast(1 + e) * 0.6931471805599453f;
	}
	case SQUARES: {
		float m = a.side == ON_FAKE ? l : l - 1;
		slope = 2 * m;
		return m * m;
	}
	}
	slope = 1;
	return l;
}

// judge leaves each block's Σ loss and Σ logit, and writes dx = scale/len·slope.
KERNEL(judge, JudgeArgs, 256) {
	__shared__ double sums[256];
	double sum[2] = {0, 0};
	float per = a.dx.at ? *(const float *)a.scale / (float)((double)a.d.n * a.d.d * a.d.h * a.d.w * a.d.c) : 0;
	float lambda = 0, anchor = 0;
	if (a.lecam && a.side != OF_GENERATOR) lambda = ((const float *)a.lecam)[0], anchor = ((const float *)a.lecam)[1];
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < spotsOf(a.d); i += gridDim.x * 256) {
		Spot s = spotOf(i, a.d);
		float x[8], g[8];
		get8(a.x, a.d.w, s.row, s.x, s.c, s.n, x);
		UNROLL for (int k = 0; k < 8; k++) {
			float slope, loss = lossOf(a, x[k], slope), off = a.side == ON_REAL ? x[k] - anchor : anchor - x[k];
			if (lambda != 0 && off > 0) {
				loss += lambda * off * off;
				slope += (a.side == ON_REAL ? 2 : -2) * lambda * off;
			}
			g[k] = per * slope;
			if (k < s.n) sum[0] += loss, sum[1] += x[k];
		}
		if (a.dx.at) put8(a.dx, a.d.w, s.row, s.x, s.c, s.n, g);
	}
	for (i32 k = 0; k < 2; k++) {
		double s = sumBlock(sum[k], sums);
		if (threadIdx.x == 0) ((double *)a.parts)[blockIdx.x * 2 + k] = s;
	}
}

struct PerceptualArgs {
	View a, b, add, da; // add and da may be none
	Dims d;
	u64 w, scale, parts; // floats [c], a float, doubles [blocks]
	i32 lanes;
};

// perceptual: â = a/(‖a‖ + 1e-10) and so on; each block's Σ w·(â-b̂)², and da = (g - a/‖a‖·<g, â>)/(‖a‖ + 1e-10) with
// g = 2·scale/voxels·w·(â-b̂).
KERNEL(perceptual, PerceptualArgs, 256) {
	__shared__ double sums[256];
	i32 voxels = a.d.n * a.d.d * a.d.h * a.d.w, per = 256 / a.lanes, lane = threadIdx.x % a.lanes, step = a.lanes * 8;
	float by = a.da.at ? 2 * *(const float *)a.scale / voxels : 0;
	double sum = 0;
	for (i32 base = blockIdx.x * per; base < voxels; base += gridDim.x * per) {
		i32 v = base + threadIdx.x / a.lanes, row = v / a.d.w, col = v % a.d.w;
		bool mine = v < voxels;
		float x[8], y[8], xx = 0, yy = 0, dot = 0;
		for (i32 c = lane * 8; mine && c < a.d.c; c += step) {
			get8(a.a, a.d.w, row, col, c, eight(c, a.d.c), x);
			get8(a.b, a.d.w, row, col, c, eight(c, a.d.c), y);
			UNROLL for (int k = 0; k < 8; k++) xx += x[k] * x[k], yy += y[k] * y[k];
		}
		float length = root(sumLanes(xx, a.lanes)), p = 1 / (length + 1e-10f), q = 1 / (root(sumLanes(yy, a.lanes)) + 1e-10f);
		for (i32 c = lane * 8; mine && c < a.d.c; c += step) {
			i32 n = eight(c, a.d.c);
			get8(a.a, a.d.w, row, col, c, n, x);
			get8(a.b, a.d.w, row, col, c, n, y);
			float some = 0; // of eight: few cards are quick with doubles
			UNROLL for (int k = 0; k < 8; k++) {
				float e = x[k] * p - y[k] * q, w = k < n ? ((const float *)a.w)[c + k] : 0;
				some += w * e * e;
				dot += w * e * x[k] * p;
			}
			sum += some;
		}
		dot = sumLanes(dot, a.lanes);
		if (!a.da.at) continue;
		for (i32 c = lane * 8; mine && c < a.d.c; c += step) {
			i32 n = eight(c, a.d.c);
			float plus[8] = {0, 0, 0, 0, 0, 0, 0, 0};
			get8(a.a, a.d.w, row, col, c, n, x);
			get8(a.b, a.d.w, row, col, c, n, y);
			if (a.add.at) get8(a.add, a.d.w, row, col, c, n, plus);
			UNROLL for (int k = 0; k < 8; k++) {
				float g = k < n ? ((const float *)a.w)[c + k] * (x[k] * p - y[k] * q) : 0;
				x[k] = (length > 0 ? by * (g - x[k] / length * dot) * p : length - length) + plus[k]; // a NaN stays one
			}
			put8(a.da, a.d.w, row, col, c, n, x);
		}
	}
	sum = sumBlock(sum, sums);
	if (threadIdx.x == 0) ((double *)a.parts)[blockIdx.x] = sum;
}

struct BalanceArgs {
	u64 a, b, factor, out; // floats, two of out
	float limit;
};

// balance: w = min(√a/(√b + 1e-4), limit) and factor·w.
KERNEL(balance, BalanceArgs, 32) {
	if (threadIdx.x > 0) return;
	float r = root(*(const float *)a.a) / (root(*(const float *)a.b) + 1e-4f), *out = (float *)a.out;
	out[0] = r > a.limit ? a.limit : r;
	out[1] = out[0] * *(const float *)a.factor;
}

struct NudgeArgs {
	View x, g, y;
	Dims d;
	u64 factor, out, parts; // a float, three floats, doubles [n]
	i32 n;
	float h;
};

// squaresOf leaves each block's Σ g².
KERNEL(squaresOf, NudgeArgs, 256) {
	__shared__ double sums[256];
	double sum = 0;
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < spotsOf(a.d); i += gridDim.x * 256) {
		Spot s = spotOf(i, a.d);
		float v[8];
		get8(a.g, a.d.w, s.row, s.x, s.c, s.n, v);
		UNROLL for (int k = 0; k < 8; k++) sum += k < s.n ? (double)v[k] * v[k] : 0;
	}
	sum = sumBlock(sum, sums);
	if (threadIdx.x == 0) ((double *)a.parts)[blockIdx.x] = sum;
}

// nudgeNorm: out = ‖g‖, f·‖g‖, -f·‖g‖ (one block).
KERNEL(nudgeNorm, NudgeArgs, 256) {
	__shared__ double sums[256];
	double s = 0;
	for (i32 i = threadIdx.x; i < a.n; i += 256) s += ((const double *)a.parts)[i];
	s = sumBlock(s, sums);
	if (threadIdx.x > 0) return;
	float *out = (float *)a.out, norm = (float)root(s), f = *(const float *)a.factor;
	out[0] = norm, out[1] = f * norm, out[2] = -f * norm;
}

// nudge: y = x + h·g/‖g‖.
KERNEL(nudge, NudgeArgs, 256) {
	float norm = *(const float *)a.out, by = norm == 0 ? 0 : a.h / norm;
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < spotsOf(a.d); i += gridDim.x * 256) {
		Spot s = spotOf(i, a.d);
		float x[8], g[8];
		get8(a.x, a.d.w, s.row, s.x, s.c, s.n, x);
		get8(a.g, a.d.w, s.row, s.x, s.c, s.n, g);
		UNROLL for (int k = 0; k < 8; k++) x[k] += by * g[k];
		put8(a.y, a.d.w, s.row, s.x, s.c, s.n, x);
	}
}
