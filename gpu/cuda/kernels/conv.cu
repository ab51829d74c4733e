// Convolutions as matrix products on shifted windows: a block computes a tile of target voxels × channels, summing over taps and
// source channels. The same kernels serve the forward pass and the input's gradient; boxes and taps (grid.go) differ.
#include "conv.h"

// convTile computes WM*64 targets × WN*FN*8 channels with WM*WN = 8 warps. There are two stages, so that one comes while the other is
// multiplied.
template <int WM, int WN, int FN> DEVICE void convTile(const ConvArgs &a) {
	constexpr int TM = WM * 64, TN = WN * FN * 8;
	typedef Stages<TM, TN, 2, false> Pair;
	SHARED(u8, memory);
	i32 t = threadIdx.x, lane = t % 32, wm = t / 32 / WN, wn = t / 32 % WN, n0 = blockIdx.y * TN;
	const Box *box = boxOf(a, blockIdx.x);
	i32 m0 = (blockIdx.x - box->tile) * TM;
	Pair stages(a, box, sharedAddress(memory), m0, n0);
	float sums[4][FN][4];
	UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < FN; j++) UNROLL for (int k = 0; k < 4; k++) sums[i][j][k] = 0;
	i32 wRow = wn * FN * 8 + lane % 8 + lane / 16 * 8, wAt = Pair::AHEAD + wRow * 64 + swizzle<4>(wRow, lane / 8 % 2) * 16;
	// Two warps share a scheduler. The later of them copies when it has begun to multiply, so that the tensor cores don't wait for both.
	bool idle = m0 + wm * 64 >= stages.last, late = t >= THREADS / 2 && !idle;
	stages.load(0);
	fetchAdd<TM, TN>(a, box, m0, n0);
	for (i32 step = 0; step < stages.steps; step++) {
		copyWait<0>();
		barrier(); // the stage has come, and nobody reads the other any more
		if (!late) stages.load(step + 1);
		if (idle) continue; // the warp has no targets
		Shared from = stages.ring + step % 2 * Pair::STAGE, weights = from + wAt;
		NOUNROLL for (i32 tap = 0; tap < stages.length; tap++) {
			i32 xRow = wm * 64 + lane % 16 + tap, xAt = xRow * 64 + swizzle<4>(xRow, lane / 16) * 16;
			UNROLL for (int k = 0; k < DEPTH / 16; k++) {
				u32 x[4][4], w[FN][2];
				UNROLL for (int i = 0; i < 4; i++) loadMatrices(x[i], from + (xAt ^ k * 32) + i * 16 * 64);
				UNROLL for (int j = 0; j < FN; j += 2) {
					u32 r[4];
					loadMatrices(r, weights + ((wAt ^ k * 32) - wAt) + j * 8 * 64);
					w[j][0] = r[0], w[j][1] = r[1], w[j + 1][0] = r[2], w[j + 1][1] = r[3];
				}
				multiply<4, FN>(sums, x, w);
				if (late && tap == 0 && k == 0) stages.load(step + 1);
			}
			weights = weights + TN * 64;
		}
	}

	// Half of each warp's rows at a time, turned by eight floats each.
	Way<TM / 2, TN> way(memory);
	UNROLL for (int half = 0; half < 2; half++) {
		barrier();
		way.targets(a, box, m0, [=](i32 row) { return row / 32 * 64 + half * 32 + row % 32; });
		UNROLL for (int i = 0; i < 2; i++) {
			UNROLL for (int j = 0; j < FN; j++) {
				UNROLL for (int part = 0; part < 2; part++) {
					i32 row = wm * 32 + i * 16 + part * 8 + lane / 4, column = (wn * FN + j) * 8 + lane % 4 * 2;
					float *p = way.tile + row * TN + (column + row * 8) % TN;
					p[0] = sums[half * 2 + i][j][part * 2], p[1] = sums[half * 2 + i][j][part * 2 + 1];
				}
			}
		}
		barrier();
		way.leave(a, n0, [](i32 row) { return row * 8; });
	}
}

KERNEL(conv256x128, ConvArgs, THREADS, 1) { convTile<4, 2, 8>(a); }
KERNEL(conv512x64, ConvArgs, THREADS, 1) { convTile<8, 1, 8>(a); }
KERNEL(conv512x32, ConvArgs, THREADS, 1) { convTile<8, 1, 4>(a); }

DEVICE float weightAt(const ConvArgs &a, i32 tap, i32 k, i32 n) {
	if (a.tiled) return widen(((const u16 *)a.weights)[(((u64)tap * a.chunks + k / DEPTH) * a.padded + n) * DEPTH + k % DEPTH]);
	return ((const float *)a.weights)[((u64)tap * a.s.c + k) * a.t.c + n];
}

// Plain kernels: targets of a block, and of a thread at a time; weights in shared memory; groups of eight channels of a block.
enum { DIRECT = 128, TOGETHER = 4, KEPT = 4096, GROUPS = 8 };

// convDirect serves operands of any type: a thread sums up eight channels of four targets in float32. The few weights of a thin layer
// are kept in shared memory.
KERNEL(convDirect, ConvArgs, 256, 2) {
	const Box *box = boxOf(a, blockIdx.x);
	i32 positions = positionsOf(a, box), m0 = (blockIdx.x - box->tile) * DIRECT, group0 = blockIdx.y * GROUPS, groups = groupsOf(a.t.c) - group0;
	groups = groups < GROUPS ? groups : GROUPS;
	const Run *taps = (const Run *)a.runs + box->run; // of length 1
	__shared__ Quad kept[KEPT / 4]; // [tap][source][half of a group][group]
	i32 weights = box->runs * a.s.c * groups * 8;
	bool fits = weights <= KEPT;
	for (i32 i = threadIdx.x; fits && i < weights; i += 256) {
		i32 part = i % 4 + i / 4 / groups % 2 * 4, n = (group0 + i / 4 % groups) * 8 + part, row = i / (groups * 8);
		((float *)kept)[i] = n < a.t.c ? weightAt(a, taps[row / a.s.c].weight, row % a.s.c, n) : 0;
	}
	barrier();
	for (i32 i = threadIdx.x; i < DIRECT / TOGETHER * groups; i += 256) {
		i32 m = m0 + i / groups, group = i % groups, c = (group0 + group) * 8, n = eight(c, a.t.c);
		u32 source[TOGETHER];
		float sum[TOGETHER][8];
		UNROLL for (int u = 0; u < TOGETHER; u++) {
			i32 at = m + u * (DIRECT / TOGETHER);
			source[u] = sourceOf(a, box, placeOf(box, at < positions ? at : 0));
			UNROLL for (int k = 0; k < 8; k++) sum[u][k] = 0;
		}
		NOUNROLL for (i32 tap = 0; tap < box->runs; tap++) {
			Run r = taps[tap];
			NOUNROLL for (i32 s = 0; s < a.s.c; s++) {
				float x[TOGETHER], w[8];
				UNROLL for (int u = 0; u < TOGETHER; u++) x[u] = load1(a.src, (u64)(source[u] + r.at) * a.src.pitch + s);
				if (fits) {
					const Quad *from = kept + (tap * a.s.c + s) * 2 * groups + group;
					UNROLL for (int k = 0; k < 8; k++) w[k] = __builtin_bit_cast(float, from[k / 4 * groups].v[k % 4]);
				} else {
					UNROLL for (int k = 0; k < 8; k++) w[k] = k < n ? weightAt(a, r.weight, s, c + k) : 0;
				}
				UNROLL for (int u = 0; u < TOGETHER; u++) UNROLL for (int k = 0; k < 8; k++) sum[u][k] += x[u] * w[k];
			}
		}
		NOUNROLL for (i32 u = 0; u < TOGETHER; u++) {
			i32 at = m + u * (DIRECT / TOGETHER);
			float v[8];
			UNROLL for (int k = 0; k < 8; k++) {
				UNROLL for (int j = 0; j < TOGETHER; j++) v[k] = j == 0 || u == j ? sum[j][k] : v[k];
			}
			if (at < positions) finish(a, targetOf(a, box, placeOf(box, at)), c, n, v);
		}
	}
}

// convNarrow computes up to N channels of targets from a whole (device.h): lanes share the channels of a source voxel, and have four targets
// on their way. All weights of a box are in shared memory.
template <int N> DEVICE void convNarrow(const ConvArgs &a) {
	const Box *box = boxOf(a, blockIdx.x);
	i32 positions = positionsOf(a, box), m0 = (blockIdx.x - box->tile) * DIRECT, groups = a.s.c / 8, lanes = 1;
	while (lanes < 32 && lanes < groups) lanes *= 2;
	const Run *taps = (const Run *)a.runs + box->run; // of length 1
	__shared__ Quad kept[KEPT / 4]; // [tap][target channel][half of a group][group]
	for (i32 i = threadIdx.x; i < box->runs * N * groups * 8; i += 256) {
		i32 row = i / (groups * 8), s = i / 4 % groups * 8 + i / 4 / groups % 2 * 4 + i % 4;
		((float *)kept)[i] = row % N < a.t.c ? weightAt(a, taps[row / N].weight, s, row % N) : 0;
	}
	barrier();
	i32 lane = threadIdx.x % lanes, each = 256 / lanes;
	for (i32 first = 0; first < DIRECT; first += each * TOGETHER) {
		i32 m = m0 + first + threadIdx.x / lanes;
		u32 source[TOGETHER];
		float sum[TOGETHER][N];
		UNROLL for (int u = 0; u < TOGETHER; u++) {
			i32 at = m + u * each;
			source[u] = sourceOf(a, box, placeOf(box, at < positions ? at : 0));
			UNROLL for (int o = 0; o < N; o++) sum[u][o] = 0;
		}
		NOUNROLL for (i32 group = lane; group < groups; group += lanes) {
			NOUNROLL for (i32 tap = 0; tap < box->runs; tap++) {
				i32 at = taps[tap].at;
				Quad q[TOGETHER];
				UNROLL for (int u = 0; u < TOGETHER; u++) q[u] = *(const Quad *)((const u16 *)a.src.at + (u64)(source[u] + at) * a.src.pitch + group * 8);
				float w[N][8];
				UNROLL for (int o = 0; o < N; o++) {
					const Quad *from = kept + (tap * N + o) * 2 * groups + group;
					UNROLL for (int k = 0; k < 8; k++) w[o][k] = __builtin_bit_cast(float, from[k / 4 * groups].v[k % 4]);
				}
				UNROLL for (int u = 0; u < TOGETHER; u++) {
					float x[8];
					unpack(q[u], x);
					UNROLL for (int o = 0; o < N; o++) UNROLL for (int k = 0; k < 8; k++) sum[u][o] += x[k] * w[o][k];
				}
			}
		}
		UNROLL for (int u = 0; u < TOGETHER; u++) UNROLL for (int o = 0; o < N; o++) sum[u][o] = sumLanes(sum[u][o], lanes);
		NOUNROLL for (i32 u = lane; u < TOGETHER; u += lanes) { // a lane writes one of the targets
			float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
			UNROLL for (int o = 0; o < N; o++) {
				UNROLL for (int j = 0; j < TOGETHER; j++) v[o] = j == 0 || u == j ? sum[j][o] : v[o];
			}
			i32 at = m + u * each;
			if (at < positions && at < m0 + DIRECT) finish(a, targetOf(a, box, placeOf(box, at)), 0, a.t.c, v);
		}
	}
}

KERNEL(convNarrow1, ConvArgs, 256, 2) { convNarrow<1>(a); }
KERNEL(convNarrow3, ConvArgs, 256, 2) { convNarrow<3>(a); }

struct PackArgs {
	u64 w, out;
	i32 taps, k, n, stepK, stepN; // w[tap*k*n + i*stepK + j*stepN] is the weight from channel i to j
	i32 chunks, padded, tiled;
};

// pack lays weights out as [tap][chunk of 32 sources][target][32] bfloat16, or as [tap][source][target] floats. A thread makes eight, or one.
KERNEL(pack, PackArgs, 256) {
	u32 all = a.tiled ? a.taps * a.chunks * a.padded * (DEPTH / 8) : a.taps * a.k * a.n;
	for (u32 o = blockIdx.x * 256 + threadIdx.x; o < all; o += gridDim.x * 256) {
		if (!a.tiled) {
			u32 row = o / a.n, j = o % a.n, i = row % a.k, tap = row / a.k;
			((float *)a.out)[o] = ((const float *)a.w)[tap * (u32)(a.k * a.n) + i * a.stepK + j * a.stepN];
			continue;
		}
		u32 rest = o / a.padded, slab = rest / (DEPTH / 8), tap = slab / a.chunks;
		i32 j = o % a.padded, piece = rest % (DEPTH / 8) * 8, i = slab % a.chunks * DEPTH + piece;
		const float *w = (const float *)a.w + (u64)tap * (u32)(a.k * a.n) + (u64)i * a.stepK + (u64)j * a.stepN;
		float v[8];
		UNROLL for (int e = 0; e < 8; e++) v[e] = i + e < a.k && j < a.n ? w[e * a.stepK] : 0;
		Quad q;
		UNROLL for (int e = 0; e < 4; e++) q.v[e] = narrow2(v[2 * e], v[2 * e + 1]);
		*(Quad *)((u16 *)a.out + ((u64)slab * a.padded + j) * DEPTH + piece) = q;
	}
}
