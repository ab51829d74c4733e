// Latents on a sphere, and finite scalar quantisation.
#include "device.h"

struct UnitArgs {
	View x, dy, y; // dy only of the gradient
	Dims d;
	i32 lanes;
};

// unit: y = x/max(‖x‖, 1e-12) over channels.
KERNEL(unit, UnitArgs, 256) {
	i32 voxels = a.d.n * a.d.d * a.d.h * a.d.w, per = 256 / a.lanes, lane = threadIdx.x % a.lanes, step = a.lanes * 8;
	for (i32 base = blockIdx.x * per; base < voxels; base += gridDim.x * per) {
		i32 v = base + threadIdx.x / a.lanes, row = v / a.d.w, col = v % a.d.w;
		bool mine = v < voxels;
		float x[8], s = 0;
		for (i32 c = lane * 8; mine && c < a.d.c; c += step) {
			get8(a.x, a.d.w, row, col, c, eight(c, a.d.c), x);
			UNROLL for (int k = 0; k < 8; k++) s += x[k] * x[k];
		}
		float length = root(sumLanes(s, a.lanes)), by = 1 / (length < 1e-12f ? 1e-12f : length);
		for (i32 c = lane * 8; mine && c < a.d.c; c += step) {
			get8(a.x, a.d.w, row, col, c, eight(c, a.d.c), x);
			UNROLL for (int k = 0; k < 8; k++) x[k] *= by;
			put8(a.y, a.d.w, row, col, c, eight(c, a.d.c), x);
		}
	}
}

// unitGrad: y = (dy - u·<dy, u>)/‖x‖ with u = x/‖x‖, 0 where ‖x‖ ≤ 1e-12.
KERNEL(unitGrad, UnitArgs, 256, 4) {
	i32 voxels = a.d.n * a.d.d * a.d.h * a.d.w, per = 256 / a.lanes, lane = threadIdx.x % a.lanes, step = a.lanes * 8;
	for (i32 base = blockIdx.x * per; base < voxels; base += gridDim.x * per) {
		i32 v = base + threadIdx.x / a.lanes, row = v / a.d.w, col = v % a.d.w;
		bool mine = v < voxels;
		float x[8], g[8], s = 0, dot = 0;
		for (i32 c = lane * 8; mine && c < a.d.c; c += step) {
			get8(a.x, a.d.w, row, col, c, eight(c, a.d.c), x);
			get8(a.dy, a.d.w, row, col, c, eight(c, a.d.c), g);
			UNROLL for (int k = 0; k < 8; k++) s += x[k] * x[k], dot += g[k] * x[k];
		}
		float length = root(sumLanes(s, a.lanes)), by = length <= 1e-12f ? 0 : 1 / length;
		dot = sumLanes(dot, a.lanes) * by * by;
		for (i32 c = lane * 8; mine && c < a.d.c; c += step) {
			get8(a.x, a.d.w, row, col, c, eight(c, a.d.c), x);
			get8(a.dy, a.d.w, row, col, c, eight(c, a.d.c), g);
			UNROLL for (int k = 0; k < 8; k++) g[k] = by == 0 ? 0 : (g[k] - x[k] * dot) * by;
			put8(a.y, a.d.w, row, col, c, eight(c, a.d.c), g);
		}
	}
}

enum { CHANNELS = 32 };

struct RoundArgs {
	View z, dq, q; // dq only of the gradient
	Dims d;
	u64 idx;
	i32 levels[CHANNELS];
	float half[CHANNELS], shift[CHANNELS];
};

// bound is tanh(z + shift)·half - offset, and its slope.
DEVICE float bound(const RoundArgs &a, i32 c, float z, float &slope) {
	float u = z + a.shift[c], e = exp2Fast(absolute(u) * -2.885390081777927f), t = (1 - e) / (1 + e);
	t = u < 0 ? -t : t;
	slope = (1 - t * t) * a.half[c];
	return t * a.half[c] - (a.levels[c] % 2 == 0 ? 0.5f : 0);
}

// roundCodes: q = round(bound)/(L div 2), idx = the code. A thread has a voxel.
KERNEL(roundCodes, RoundArgs, 128) {
	i32 voxels = a.d.n * a.d.d * a.d.h * a.d.w;
	for (i32 v = blockIdx.x * 128 + threadIdx.x; v < voxels; v += gridDim.x * 128) {
		i32 row = v / a.d.w, col = v % a.d.w, code = 0, place = 1;
		NOUNROLL for (i32 c = 0; c < a.d.c; c += 8) {
			i32 n = eight(c, a.d.c);
			float z[8];
			get8(a.z, a.d.w, row, col, c, n, z);
			UNROLL for (int k = 0; k < 8; k++) {
				if (k >= n) continue;
				i32 middle = a.levels[c + k] / 2;
				float slope, whole = __builtin_rintf(bound(a, c + k, z[k], slope));
				z[k] = whole / middle;
				if (whole == whole) code += ((i32)whole + middle) * place;
				place *= a.levels[c + k];
			}
			put8(a.q, a.d.w, row, col, c, n, z);
		}
		((i32 *)a.idx)[v] = code;
	}
}

// roundGrad: q = dq·slope/(L div 2).
KERNEL(roundGrad, RoundArgs, 128) {
	i32 voxels = a.d.n * a.d.d * a.d.h * a.d.w;
	for (i32 v = blockIdx.x * 128 + threadIdx.x; v < voxels; v += gridDim.x * 128) {
		i32 row = v / a.d.w, col = v % a.d.w;
		NOUNROLL for (i32 c = 0; c < a.d.c; c += 8) {
			i32 n = eight(c, a.d.c);
			float z[8], g[8];
			get8(a.z, a.d.w, row, col, c, n, z);
			get8(a.dq, a.d.w, row, col, c, n, g);
			UNROLL for (int k = 0; k < 8; k++) {
				if (k >= n) continue;
				float slope;
				bound(a, c + k, z[k], slope);
				g[k] *= slope / (a.levels[c + k] / 2);
			}
			put8(a.q, a.d.w, row, col, c, n, g);
		}
	}
}

struct TallyArgs {
	u64 idx, counts; // floats [codes]
	i32 voxels, codes;
};

enum { TALLY = 4096 };

// tally adds to counts how often each code is in idx. A block has 4096 codes.
KERNEL(tally, TallyArgs, 256) {
	__shared__ i32 seen[TALLY];
	i32 first = blockIdx.x * TALLY;
	for (i32 i = threadIdx.x; i < TALLY; i += 256) seen[i] = 0;
	barrier();
	for (i32 v = threadIdx.x; v < a.voxels; v += 256) {
		i32 k = ((const i32 *)a.idx)[v] - first;
		if (k >= 0 && k < TALLY) count(seen + k);
	}
	barrier();
	for (i32 i = threadIdx.x; i < TALLY && i < a.codes - first; i += 256) ((float *)a.counts)[first + i] += seen[i];
}
