// Convolutions as matrix products on shifted windows: a block computes a tile of target voxels × channels, summing over taps and
// source channels. The same kernels serve the forward pass and the input's gradient; boxes and taps (grid.go) differ.
#include "device.h"

// Box is targets that share their taps; axes are z, y, x. Its taps lie in runs of length, one source step along x apart: so a run
// meets the sources of the positions p, p+1, … of a tile, and they are loaded once. A row has wide positions, count[2] targets and
// length-1 behind them that only sources are taken from. See box.go.
struct Box { i32 first[3], step[3], count[3], srcStep[3], run, runs, tile, length, wide, unused[3]; };

// Run's tap k meets the weights of tap weight + k*next.
struct alignas(16) Run { i32 at, weight, next, unused; };

struct ConvArgs {
	View src, dst, add; // add may be none
	Dims s, t; // of source and target
	u64 weights, bias, boxes, runs; // bias may be 0
	i32 count, chunks, padded, tiled; // boxes; of packed weights: chunks of 32 source channels, target channels; 0 where they are plain floats
};

enum { DEPTH = 32, THREADS = 256, LONGEST = 3 };

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

DEVICE i32 positionsOf(const ConvArgs &a, const Box *b) { return a.s.n * b->count[0] * b->count[1] * b->wide; }

// Place is a position of a box: sample and steps along z, y, x.
struct Place { i32 n, z, y, x; };

DEVICE Place placeOf(const Box *b, i32 m) {
	i32 row = m / b->wide, plane = row / b->count[1];
	return Place{plane / b->count[0], plane % b->count[0], row % b->count[1], m % b->wide};
}

// advance goes on by so many positions: without a division, and mostly without a step of the loop.
DEVICE void advance(const Box *b, Place &p, i32 by) {
	for (p.x += by; p.x >= b->wide;) {
		p.x -= b->wide;
		if (++p.y < b->count[1]) continue;
		p.y = 0;
		if (++p.z < b->count[0]) continue;
		p.z = 0, p.n++;
	}
}

// sourceOf is the stored voxel that a run's offset is added to.
DEVICE u32 sourceOf(const ConvArgs &a, const Box *b, const Place &p) {
	u32 row = a.s.w + 2 * a.src.halo;
	return (((u32)p.n * a.s.d + p.z * b->srcStep[0]) * a.s.h + p.y * b->srcStep[1]) * row + p.x * b->srcStep[2];
}

// finish adds bias and add to n sums of a target and writes them.
DEVICE void finish(const ConvArgs &a, const Box *b, const Place &p, i32 c, i32 n, float (&v)[8]) {
	i32 row = (p.n * a.t.d + b->first[0] + p.z * b->step[0]) * a.t.h + b->first[1] + p.y * b->step[1], x = b->first[2] + p.x * b->step[2];
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

// convTile computes WM*64 targets × WN*FN*8 channels with WM*WN = 8 warps. A stage is a run of taps of a chunk of channels, of
// both operands; there are two, so that one comes while the other is multiplied. Chunks are the outer loop: the order of sums
// doesn't depend on how taps fall into runs.
template <int WM, int WN, int FN> DEVICE void convTile(const ConvArgs &a) {
	constexpr int TM = WM * 64, TN = WN * FN * 8, ROWS = TM / 64, AHEAD = (TM + 8) * DEPTH * 2, STAGE = AHEAD + LONGEST * TN * DEPTH * 2;
	SHARED(u8, memory);
	i32 t = threadIdx.x, lane = t % 32, wm = t / 32 / WN, wn = t / 32 % WN, n0 = blockIdx.y * TN;
	const Box *box = boxOf(a, blockIdx.x);
	i32 positions = positionsOf(a, box), m0 = (blockIdx.x - box->tile) * TM, length = box->length, runs = box->runs;
	const Run *run = (const Run *)a.runs + box->run;
	Shared ring = sharedAddress(memory);

	// What this thread copies of each stage: piece t%4 of rows t/4 + 64i; of the rows behind the tile, which the run's later taps
	// meet, the first threads.
	i32 piece = t % 4, first = m0 + t / 4, to = t / 4 * 64 + swizzle<4>(t / 4, piece) * 16;
	u32 source[ROWS + 1];
	Place place = placeOf(box, first);
	UNROLL for (int i = 0; i <= ROWS; i++) {
		source[i] = sourceOf(a, box, place);
		advance(box, place, 64);
	}
	u32 pitch = (u32)a.src.pitch * 2;
	i32 steps = runs * a.chunks, nextRun = 0, nextChunk = 0;
	Run r = run[0];
	auto load = [&](i32 step) {
		if (step < steps) {
			Shared at = ring + step % 2 * STAGE + to;
			i32 c = nextChunk * DEPTH + piece * 8, bytes = (a.s.c - c) * 2;
			bytes = bytes < 0 ? 0 : bytes > 16 ? 16 : bytes;
			const u8 *from = (const u8 *)a.src.at + (bytes > 0 ? c * 2 : 0);
			UNROLL for (int i = 0; i <= ROWS; i++) {
				if (i == ROWS && t / 4 >= length - 1) break;
				copyAsync(at + i * 64 * 64, from + (u64)(source[i] + r.at) * pitch, first + 64 * i < positions ? bytes : 0);
			}
			const u8 *w = (const u8 *)a.weights + (u64)((u32)(r.weight * a.chunks + nextChunk) * a.padded + n0) * (DEPTH * 2) + t * 16;
			i32 next = r.next * a.chunks * a.padded * (DEPTH * 2);
			UNROLL for (i32 k = 0; k < LONGEST; k++) {
				if (k >= length) break;
				UNROLL for (int i = 0; i < TN / 64; i++) copyAsync(at + AHEAD + (k * TN + i * 64) * 64, w + i * 64 * 64, 16);
				if (TN == 32 && t < TN * 4) copyAsync(at + AHEAD + k * TN * 64, w, 16);
				w += next;
			}
			if (++nextRun == runs) nextRun = 0, nextChunk++;
			r = run[nextRun]; // for the next time
		}
		copyCommit();
	};

	float sums[4][FN][4];
	UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < FN; j++) UNROLL for (int k = 0; k < 4; k++) sums[i][j][k] = 0;
	i32 wRow = wn * FN * 8 + lane % 8 + lane / 16 * 8, wAt = AHEAD + wRow * 64 + swizzle<4>(wRow, lane / 8 % 2) * 16;
	// Two warps share a scheduler. The later of them copies when it has begun to multiply, so that the tensor cores don't wait for both.
	bool idle = m0 + wm * 64 >= positions, late = t >= THREADS / 2 && !idle;
	load(0);
	for (i32 step = 0; step < steps; step++) {
		copyWait<0>();
		barrier(); // the stage has come, and nobody reads the other any more
		if (!late) load(step + 1);
		if (idle) continue; // the warp has no targets
		Shared from = ring + step % 2 * STAGE, weights = from + wAt;
		NOUNROLL for (i32 tap = 0; tap < length; tap++) {
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
				if (late && tap == 0 && k == 0) load(step + 1);
			}
			weights = weights + TN * 64;
		}
	}

	// The sums go through shared memory, half of each warp's rows at a time, turned by eight floats each, so that targets are
	// written 16 bytes at a time. A thread has the same channels of each of its rows.
	float *tile = (float *)memory;
	constexpr int GROUPS = TN / 8, STRIDE = THREADS / GROUPS;
	i32 c = n0 + t % GROUPS * 8, n = eight(c, a.t.c);
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
		if (n == 0) continue;
		Place p = placeOf(box, m0);
		i32 at = m0;
		NOUNROLL for (i32 row = t / GROUPS; row < TM / 2; row += STRIDE) {
			i32 m = m0 + row / 32 * 64 + half * 32 + row % 32;
			if (m >= positions) break;
			advance(box, p, m - at);
			at = m;
			if (p.x >= box->count[2]) continue;
			float v[8];
			UNROLL for (int k = 0; k < 8; k++) v[k] = tile[row * TN + (c - n0 + row * 8) % TN + k];
			finish(a, box, p, c, n, v);
		}
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
