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

	// The sums go through shared memory, half of each warp's rows at a time, turned by eight floats each.
	float *tile = (float *)memory;
	UNROLL for (int half = 0; half < 2; half++) {
		barrier();
		UNROLL for (int i = 0; i < 2; i++) {
			UNROLL for (int j = 0; j < FN; j++) {
				UNROLL for (int part = 0; part < 2; part++) {
					i32 row = wm * 32 + i * 16 + part * 8 + lane / 4, column = (wn * FN + j) * 8 + lane % 4 * 2;
					float *p = tile + row * TN + (column + row * 8) % TN;
					p[0] = sums[half * 2 + i][j][part * 2], p[1] = sums[half * 2 + i][j][part * 2 + 1];
				}
			}
		}
		barrier();
		leave<TN>(a, box, tile, TM / 2, m0, n0, [=](i32 row) { return row / 32 * 64 + half * 32 + row % 32; }, [](i32 row) { return row * 8; });
	}
}

KERNEL(conv256x128, ConvArgs, THREADS, 1) { convTile<4, 2, 8>(a); }
KERNEL(conv512x64, ConvArgs, THREADS, 1) { convTile<8, 1, 8>(a); }
KERNEL(conv512x32, ConvArgs, THREADS, 1) { convTile<8, 1, 4>(a); }

DEVICE float weightAt(const ConvArgs &a, i32 tap, i32 k, i32 n) {
	if (a.tiled) return widen(((const u16 *)a.weights)[(((u64)tap * a.chunks + k / DEPTH) * a.padded + n) * DEPTH + k % DEPTH]);
	return ((const float *)a.weights)[((u64)tap * a.s.c + k) * a.t.c + n];
}

enum { DIRECT = 128, KEPT = 4096 }; // targets of a block, weights in shared memory

// convDirect serves operands of any type: a thread sums up eight channels of a target in float32. The few weights of a thin layer
// are kept in shared memory.
KERNEL(convDirect, ConvArgs, 256, 4) {
	const Box *box = boxOf(a, blockIdx.x);
	i32 positions = positionsOf(a, box), m0 = (blockIdx.x - box->tile) * DIRECT, groups = groupsOf(a.t.c);
	const Run *taps = (const Run *)a.runs + box->run; // of length 1
	__shared__ Quad kept[KEPT / 4];
	i32 weights = box->runs * a.s.c * groups * 8;
	bool fits = weights <= KEPT;
	for (i32 i = threadIdx.x; fits && i < weights; i += 256) {
		i32 n = i % (groups * 8), row = i / (groups * 8);
		((float *)kept)[i] = n < a.t.c ? weightAt(a, taps[row / a.s.c].weight, row % a.s.c, n) : 0;
	}
	barrier();
	for (i32 i = threadIdx.x; i < DIRECT * groups; i += 256) {
		i32 m = m0 + i / groups, group = i % groups, c = group * 8, n = eight(c, a.t.c);
		if (m >= positions) break;
		Place p = placeOf(box, m);
		u32 source = sourceOf(a, box, p);
		float sum[8];
		UNROLL for (int k = 0; k < 8; k++) sum[k] = 0;
		for (i32 tap = 0; tap < box->runs; tap++) {
			Run r = taps[tap];
			u64 at = (u64)(source + r.at) * a.src.pitch;
			for (i32 s = 0; s < a.s.c; s++) {
				float x = load1(a.src, at + s), w[8];
				if (fits) {
					const float *from = (const float *)(kept + ((tap * a.s.c + s) * groups + group) * 2);
					UNROLL for (int k = 0; k < 8; k++) w[k] = from[k];
				} else {
					UNROLL for (int k = 0; k < 8; k++) w[k] = k < n ? weightAt(a, r.weight, s, c + k) : 0;
				}
				UNROLL for (int k = 0; k < 8; k++) sum[k] += x * w[k];
			}
		}
		finish(a, box, p, c, n, sum);
	}
}

struct PackArgs {
	u64 w, out;
	i32 taps, k, n, stepK, stepN; // w[tap*k*n + i*stepK + j*stepN] is the weight from channel i to j
	i32 chunks, padded, tiled;
};

// pack lays weights out as [tap][chunk of 32 sources][target][32] bfloat16, or as [tap][source][target] floats.
KERNEL(pack, PackArgs, 256) {
	i64 all = a.tiled ? (i64)a.taps * a.chunks * a.padded * DEPTH : (i64)a.taps * a.k * a.n;
	for (i64 o = (i64)blockIdx.x * 256 + threadIdx.x; o < all; o += (i64)gridDim.x * 256) {
		i32 i, j, tap;
		if (a.tiled) {
			i64 row = o / DEPTH, slab = row / a.padded;
			j = (i32)(row % a.padded);
			i = (i32)(slab % a.chunks) * DEPTH + (i32)(o % DEPTH);
			tap = (i32)(slab / a.chunks);
		} else {
			i64 row = o / a.n;
			j = (i32)(o % a.n);
			i = (i32)(row % a.k);
			tap = (i32)(row / a.k);
		}
		float v = i < a.k && j < a.n ? ((const float *)a.w)[(i64)tap * a.k * a.n + (i64)i * a.stepK + (i64)j * a.stepN] : 0;
		if (a.tiled) ((u16 *)a.out)[o] = narrow(v);
		else ((float *)a.out)[o] = v;
	}
}
