// Convolutions as matrix products on shifted windows: a block computes a tile of target voxels × channels, summing over taps and
// source channels. The same kernels serve the forward pass and the input's gradient; boxes and taps (grid.go) differ.
#include "device.h"

// Box is targets that share their taps; axes are z, y, x. See grid.go.
struct Box { i32 first[3], step[3], count[3], srcStep[3], tap, taps, tile, unused; };
struct Tap { i32 at, weight; };

struct ConvArgs {
	View src, dst, add; // add may be none
	Dims s, t; // of source and target
	u64 weights, bias, boxes, taps; // bias may be 0
	i32 count, chunks, padded, tiled; // boxes; of packed weights: chunks of 32 source channels, target channels; 0 where they are plain floats
};

enum { DEPTH = 32, STAGES = 4 };

DEVICE const Box *boxOf(const ConvArgs &a, i32 tile) {
	const Box *b = (const Box *)a.boxes;
	i32 lo = 0, hi = a.count;
	while (hi - lo > 1) {
		i32 mid = (lo + hi) / 2;
		if (b[mid].tile <= tile) lo = mid;
		else hi = mid;
	}
	return b + lo;
}

// Place is a target of a box: sample and steps along z, y, x.
struct Place { i32 n, z, y, x; };

DEVICE Place placeOf(const Box *b, i32 m) {
	i32 row = m / b->count[2], plane = row / b->count[1];
	return Place{plane / b->count[0], plane % b->count[0], row % b->count[1], m % b->count[2]};
}

// sourceOf is the stored voxel that a tap's offset is added to.
DEVICE u32 sourceOf(const ConvArgs &a, const Box *b, const Place &p) {
	u32 row = a.s.w + 2 * a.src.halo;
	return (((u32)p.n * a.s.d + p.z * b->srcStep[0]) * a.s.h + p.y * b->srcStep[1]) * row + p.x * b->srcStep[2];
}

DEVICE i32 rowOf(const ConvArgs &a, const Box *b, const Place &p) {
	return (p.n * a.t.d + b->first[0] + p.z * b->step[0]) * a.t.h + b->first[1] + p.y * b->step[1];
}

DEVICE i32 columnOf(const Box *b, const Place &p) { return b->first[2] + p.x * b->step[2]; }

// finish adds bias and add to n sums and writes them.
DEVICE void finish(const ConvArgs &a, const Box *b, const Place &p, i32 c, i32 n, float (&v)[8]) {
	i32 row = rowOf(a, b, p), x = columnOf(b, p);
	if (a.bias) UNROLL for (int k = 0; k < 8; k++) v[k] += k < n ? ((const float *)a.bias)[c + k] : 0;
	if (a.add.at) {
		float plus[8];
		get8(a.add, a.t.w, row, x, c, n, plus);
		UNROLL for (int k = 0; k < 8; k++) v[k] += plus[k];
	}
	put8(a.dst, a.t.w, row, x, c, n, v);
}

// swizzle spreads the 16-byte pieces of rows of CHUNKS of them over the banks.
template <int CHUNKS> DEVICE i32 swizzle(i32 row, i32 chunk) { return chunk ^ (CHUNKS >= 8 ? row & 7 : row / 2 & 3); }

// convTile computes WM*64 targets × WN*FN*8 channels with WM*WN = 4 warps, bfloat16 operands through a ring of STAGES.
template <int WM, int WN, int FN> DEVICE void convTile(const ConvArgs &a) {
	constexpr int TM = WM * 64, TN = WN * FN * 8, ROWS = TM / 32, STAGE = (TM + TN) * DEPTH * 2;
	SHARED(u8, memory);
	i32 t = threadIdx.x, lane = t % 32, wm = t / 32 / WN, wn = t / 32 % WN, n0 = blockIdx.y * TN;
	const Box *box = boxOf(a, blockIdx.x);
	i32 voxels = a.s.n * box->count[0] * box->count[1] * box->count[2], m0 = (blockIdx.x - box->tile) * TM;
	const Tap *taps = (const Tap *)a.taps + box->tap;
	Shared ring = sharedAddress(memory);

	// What this thread copies of each stage: piece t%4 of rows t/4 + 32i.
	i32 piece = t % 4;
	u32 source[ROWS];
	bool inside[ROWS];
	UNROLL for (int i = 0; i < ROWS; i++) {
		i32 m = m0 + t / 4 + 32 * i;
		inside[i] = m < voxels;
		source[i] = inside[i] ? sourceOf(a, box, placeOf(box, m)) : 0;
	}
	i32 steps = box->taps * a.chunks, nextTap = 0, nextChunk = 0;
	auto load = [&](i32 step) {
		if (step < steps) {
			Tap tap = taps[nextTap];
			Shared to = ring + step % STAGES * STAGE;
			i32 c = nextChunk * DEPTH + piece * 8, bytes = (a.s.c - c) * 2;
			bytes = bytes < 0 ? 0 : bytes > 16 ? 16 : bytes;
			UNROLL for (int i = 0; i < ROWS; i++) {
				i32 row = t / 4 + 32 * i, n = inside[i] ? bytes : 0;
				const u16 *from = (const u16 *)a.src.at + (n ? (u64)(source[i] + tap.at) * a.src.pitch + c : 0);
				copyAsync(to + row * 64 + swizzle<4>(row, piece) * 16, from, n);
			}
			const u16 *w = (const u16 *)a.weights + (((u64)tap.weight * a.chunks + nextChunk) * a.padded + n0) * DEPTH;
			UNROLL for (int i = 0; i < TN / 32; i++) {
				i32 row = t / 4 + 32 * i;
				copyAsync(to + TM * 64 + row * 64 + swizzle<4>(row, piece) * 16, w + row * DEPTH + piece * 8, 16);
			}
			if (++nextChunk == a.chunks) nextChunk = 0, nextTap++;
		}
		copyCommit();
	};

	float sums[4][FN][4];
	UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < FN; j++) UNROLL for (int k = 0; k < 4; k++) sums[i][j][k] = 0;
	for (i32 s = 0; s < STAGES - 1; s++) load(s);
	for (i32 step = 0; step < steps; step++) {
		copyWait<STAGES - 2>();
		barrier(); // the stage has come, and nobody reads the one before it any more
		load(step + STAGES - 1);
		Shared from = ring + step % STAGES * STAGE;
		if (m0 + wm * 64 >= voxels) continue; // the warp has no targets
		UNROLL for (int k = 0; k < DEPTH / 16; k++) {
			u32 x[4][4], w[FN][2];
			UNROLL for (int i = 0; i < 4; i++) {
				i32 row = wm * 64 + i * 16 + lane % 16;
				loadMatrices(x[i], from + row * 64 + swizzle<4>(row, k * 2 + lane / 16) * 16);
			}
			UNROLL for (int j = 0; j < FN; j += 2) {
				i32 row = (wn * FN + j) * 8 + lane % 8 + lane / 16 * 8;
				u32 r[4];
				loadMatrices(r, from + TM * 64 + row * 64 + swizzle<4>(row, k * 2 + lane / 8 % 2) * 16);
				w[j][0] = r[0], w[j][1] = r[1], w[j + 1][0] = r[2], w[j + 1][1] = r[3];
			}
			multiply<4, FN>(sums, x, w);
		}
	}
	copyWait<0>();
	barrier();

	// The sums go through shared memory, rows turned by eight floats each, so that targets are written 16 bytes at a time.
	float *tile = (float *)memory;
	UNROLL for (int i = 0; i < 4; i++) {
		UNROLL for (int j = 0; j < FN; j++) {
			UNROLL for (int half = 0; half < 2; half++) {
				i32 m = wm * 64 + i * 16 + half * 8 + lane / 4, n = (wn * FN + j) * 8 + lane % 4 * 2;
				float *p = tile + m * TN + (n + m * 8) % TN;
				p[0] = sums[i][j][half * 2], p[1] = sums[i][j][half * 2 + 1];
			}
		}
	}
	barrier();
	i32 rows = voxels - m0 < TM ? voxels - m0 : TM;
	NOUNROLL for (i32 i = t; i < rows * TN / 8; i += 128) {
		i32 m = i / (TN / 8), c = n0 + i % (TN / 8) * 8, n = eight(c, a.t.c);
		if (n == 0) continue;
		float v[8];
		UNROLL for (int k = 0; k < 8; k++) v[k] = tile[m * TN + (c - n0 + m * 8) % TN + k];
		finish(a, box, placeOf(box, m0 + m), c, n, v);
	}
}

KERNEL(conv128x128, ConvArgs, 128, 2) { convTile<2, 2, 8>(a); }
KERNEL(conv256x64, ConvArgs, 128, 2) { convTile<4, 1, 8>(a); }
KERNEL(conv256x32, ConvArgs, 128, 2) { convTile<4, 1, 4>(a); }

DEVICE float weightAt(const ConvArgs &a, i32 tap, i32 k, i32 n) {
	if (a.tiled) return widen(((const u16 *)a.weights)[(((u64)tap * a.chunks + k / DEPTH) * a.padded + n) * DEPTH + k % DEPTH]);
	return ((const float *)a.weights)[((u64)tap * a.s.c + k) * a.t.c + n];
}

enum { DIRECT = 64 }; // targets of a block

// convDirect serves operands of any type: a thread sums up eight channels of a target in float32.
KERNEL(convDirect, ConvArgs, 256, 4) {
	const Box *box = boxOf(a, blockIdx.x);
	i32 voxels = a.s.n * box->count[0] * box->count[1] * box->count[2], m0 = (blockIdx.x - box->tile) * DIRECT, groups = groupsOf(a.t.c);
	const Tap *taps = (const Tap *)a.taps + box->tap;
	for (i32 i = threadIdx.x; i < DIRECT * groups; i += 256) {
		i32 m = m0 + i / groups, c = i % groups * 8, n = eight(c, a.t.c);
		if (m >= voxels) break;
		Place p = placeOf(box, m);
		u32 source = sourceOf(a, box, p);
		float sum[8];
		UNROLL for (int k = 0; k < 8; k++) sum[k] = 0;
		for (i32 tap = 0; tap < box->taps; tap++) {
			u64 at = (u64)(source + taps[tap].at) * a.src.pitch;
			for (i32 s = 0; s < a.s.c; s++) {
				float x = load1(a.src, at + s);
				UNROLL for (int k = 0; k < 8; k++) {
					if (k < n) sum[k] += x * weightAt(a, taps[tap].weight, s, c + k);
				}
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
