// The codebook: search, counts and sums by code, gradients.
#include "device.h"

struct NormsArgs {
	u64 codes, half; // floats [codes][dim], floats [codes]
	i32 count, dim;
};

// codeNorms: half[k] = ½‖codes[k]‖².
KERNEL(codeNorms, NormsArgs, 128) {
	i32 k = blockIdx.x * 128 + threadIdx.x;
	if (k >= a.count) return;
	const float *c = (const float *)a.codes + (u64)k * a.dim;
	double s = 0;
	for (i32 i = 0; i < a.dim; i++) s += (double)c[i] * c[i];
	((float *)a.half)[k] = (float)(s / 2);
}

struct NearestArgs {
	View z;
	Dims d;
	u64 codes, half, idx, parts; // parts: doubles [blocks], Σ (z-q)²
	i32 count;
};

enum { BATCH = 8, TILE = 64, KEPT = 32 }; // codes at once, codes in shared memory, dims in shared memory

// nearest: idx[v] = the code with the least ½‖c‖² - z·c, the lowest on a tie. A thread has a voxel.
KERNEL(nearest, NearestArgs, 128) {
	__shared__ float z[KEPT][128], codes[KEPT][TILE], half[TILE];
	__shared__ double sums[128];
	i32 t = threadIdx.x, dim = a.d.c, voxels = a.d.n * a.d.d * a.d.h * a.d.w;
	double off = 0;
	for (i32 v0 = blockIdx.x * 128; v0 < voxels; v0 += gridDim.x * 128) {
		i32 v = v0 + t < voxels ? v0 + t : voxels - 1;
		u64 at = cell(a.z, a.d.w, v / a.d.w, v % a.d.w);
		float best = __builtin_inff();
		i32 found = 0;
		for (i32 first = 0; first < a.count; first += TILE) {
			float dist[TILE / BATCH][BATCH];
			UNROLL for (int b = 0; b < TILE / BATCH; b++) UNROLL for (int k = 0; k < BATCH; k++) dist[b][k] = 0;
			for (i32 d0 = 0; d0 < dim; d0 += KEPT) {
				i32 n = dim - d0 < KEPT ? dim - d0 : KEPT;
				barrier();
				if (dim > KEPT || first == 0) {
					for (i32 i = 0; i < n; i++) z[i][t] = load1(a.z, at + d0 + i);
				}
				for (i32 i = t; i < TILE * n; i += 128) {
					i32 k = i / n, d = i % n;
					codes[d][k] = first + k < a.count ? ((const float *)a.codes)[(u64)(first + k) * dim + d0 + d] : 0;
				}
				if (t < TILE) half[t] = first + t < a.count ? ((const float *)a.half)[first + t] : __builtin_inff();
				barrier();
				for (i32 d = 0; d < n; d++) {
					float zd = z[d][t];
					UNROLL for (int b = 0; b < TILE / BATCH; b++) UNROLL for (int k = 0; k < BATCH; k++) dist[b][k] += zd * codes[d][b * BATCH + k];
				}
			}
			UNROLL for (int b = 0; b < TILE / BATCH; b++) {
				UNROLL for (int k = 0; k < BATCH; k++) {
					float d = half[b * BATCH + k] - dist[b][k];
					if (d < best) best = d, found = first + b * BATCH + k;
				}
			}
		}
		if (v0 + t < voxels) {
			((i32 *)a.idx)[v] = found;
			for (i32 i = 0; i < dim; i++) {
				float e = load1(a.z, at + i) - ((const float *)a.codes)[(u64)found * dim + i];
				off += (double)e * e;
			}
		}
		barrier();
	}
	off = sumBlock(off, sums);
	if (t == 0) ((double *)a.parts)[blockIdx.x] = off;
}

struct CountArgs {
	View z;
	Dims d;
	u64 idx, parts; // parts: floats [blockIdx.y][codes][dim + 1], the count last
	i32 count, share; // voxels of a part
	i32 wide, unused; // codes of a block
};

// countCodes sums the voxels of some codes, in the order of voxels. A block is one warp.
KERNEL(countCodes, CountArgs, 32) {
	SHARED(float, sums); // [wide][dim + 1]
	i32 lane = threadIdx.x, dim = a.d.c, voxels = a.d.n * a.d.d * a.d.h * a.d.w, first = blockIdx.x * a.wide;
	for (i32 i = lane; i < a.wide * (dim + 1); i += 32) sums[i] = 0;
	barrier();
	i32 from = blockIdx.y * a.share, to = from + a.share < voxels ? from + a.share : voxels;
	for (i32 v0 = from; v0 < to; v0 += 32) {
		i32 code = v0 + lane < to ? ((const i32 *)a.idx)[v0 + lane] - first : -1;
		for (u32 left = ballot(code >= 0 && code < a.wide); left; left &= left - 1) {
			i32 l = firstBit(left), k = shfl(code, l), v = v0 + l;
			u64 at = cell(a.z, a.d.w, v / a.d.w, v % a.d.w);
			for (i32 i = lane; i <= dim; i += 32) sums[k * (dim + 1) + i] += i < dim ? load1(a.z, at + i) : 1;
		}
	}
	barrier();
	float *out = (float *)a.parts + ((u64)blockIdx.y * a.count + first) * (dim + 1);
	for (i32 i = lane; i < a.wide * (dim + 1); i += 32) {
		if (first + i / (dim + 1) < a.count) out[i] = sums[i];
	}
}

struct GatherArgs {
	u64 parts, counts, sums; // floats [codes], floats [codes][dim]; either may be 0
	i32 n, count, dim;
};

// gatherCodes adds the parts of countCodes to counts and sums.
KERNEL(gatherCodes, GatherArgs, 128) {
	i32 i = blockIdx.x * 128 + threadIdx.x, wide = a.dim + 1;
	if (i >= a.count * wide) return;
	float s = 0;
	for (i32 p = 0; p < a.n; p++) s += ((const float *)a.parts)[(u64)p * a.count * wide + i];
	i32 k = i / wide, d = i % wide;
	if (d < a.dim) {
		if (a.sums) ((float *)a.sums)[(u64)k * a.dim + d] += s;
	} else if (a.counts) {
		((float *)a.counts)[k] += s;
	}
}

struct LookupArgs {
	View q, z, dq; // q is written; z and dq may be none
	Dims d;
	u64 codes, idx, scale;
};

DEVICE void code8(const LookupArgs &a, const Spot &s, float (&v)[8]) {
	i32 k = ((const i32 *)a.idx)[s.row * a.d.w + s.x];
	const float *c = (const float *)a.codes + (u64)k * a.d.c + s.c;
	UNROLL for (int i = 0; i < 8; i++) v[i] = i < s.n ? c[i] : 0;
}

// lookup: q = codes[idx].
KERNEL(lookup, LookupArgs, 256) {
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < spotsOf(a.d); i += gridDim.x * 256) {
		Spot s = spotOf(i, a.d);
		float v[8];
		code8(a, s, v);
		put8(a.q, a.d.w, s.row, s.x, s.c, s.n, v);
	}
}

// quantizeGrad: q = dq + scale*(z - codes[idx]).
KERNEL(quantizeGrad, LookupArgs, 256) {
	float scale = *(const float *)a.scale;
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < spotsOf(a.d); i += gridDim.x * 256) {
		Spot s = spotOf(i, a.d);
		float v[8], z[8], g[8] = {0, 0, 0, 0, 0, 0, 0, 0};
		code8(a, s, v);
		get8(a.z, a.d.w, s.row, s.x, s.c, s.n, z);
		if (a.dq.at) get8(a.dq, a.d.w, s.row, s.x, s.c, s.n, g);
		UNROLL for (int k = 0; k < 8; k++) g[k] += scale * (z[k] - v[k]);
		put8(a.q, a.d.w, s.row, s.x, s.c, s.n, g);
	}
}
