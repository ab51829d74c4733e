// What the convolutions' kernels share: boxes of targets, how both operands come into shared memory, and how sums leave.
#pragma once
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

enum { DEPTH = 32, THREADS = 256, LONGEST = 3 }; // channels of a stage, threads of a block, taps of a run

// boxOf is the box that a tile is in: mostly the first, the largest.
DEVICE const Box *boxOf(const ConvArgs &a, i32 tile) {
	const Box *b = (const Box *)a.boxes;
	if (a.count == 1 || b[1].tile > tile) return b;
	i32 lo = 1, hi = a.count;
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

// Target is a voxel of the target, by row.
struct Target { i32 row, x; };

DEVICE Target targetOf(const ConvArgs &a, const Box *b, const Place &p) {
	return Target{(p.n * a.t.d + b->first[0] + p.z * b->step[0]) * a.t.h + b->first[1] + p.y * b->step[1], b->first[2] + p.x * b->step[2]};
}

// voxelOf is its stored voxel: tensors have fewer than 2^31.
DEVICE u32 voxelOf(const View &v, i32 w, const Target &t) { return (u32)t.row * (u32)(w + 2 * v.halo) + (u32)(t.x + v.halo); }

// finish adds bias and add to n sums of a target and writes them.
DEVICE void finish(const ConvArgs &a, const Target &to, i32 c, i32 n, float (&v)[8]) {
	if (a.bias) UNROLL for (int k = 0; k < 8; k++) v[k] += k < n ? ((const float *)a.bias)[c + k] : 0;
	if (a.add.at) {
		float plus[8];
		get8(a.add, a.t.w, to.row, to.x, c, n, plus);
		UNROLL for (int k = 0; k < 8; k++) v[k] += plus[k];
	}
	put8(a.dst, a.t.w, to.row, to.x, c, n, v);
}

// Stages brings what a block multiplies into a ring in shared memory. A stage is a run of taps of a chunk of channels, of both operands:
// rows of 64 bytes with the sources of TM positions and of those behind them that the run's later taps meet, then TN rows of weights for
// each tap. Chunks are the outer loop: the order of sums doesn't depend on how taps fall into runs. A later tap meets the next row; where
// the rows are WOVEN it meets the row eight further, and row r holds position r%8 * TM/8 + r/8.
template <int TM, int TN, int RING, bool WOVEN> struct Stages {
	static constexpr int ROWS = TM / 64, APART = WOVEN ? 8 : 64, LATER = WOVEN ? 8 : 1; // positions between a thread's rows; rows to a later tap
	static constexpr int AHEAD = (TM + 8 * (WOVEN ? LONGEST - 1 : 1)) * DEPTH * 2, STAGE = AHEAD + LONGEST * TN * DEPTH * 2;
	const ConvArgs &a;
	const Run *run;
	Run r; // the next stage's
	Shared ring;
	i32 t, length, runs, steps, n0, piece, first, last, to, nextRun, nextChunk;
	u32 source[ROWS + 1], pitch;

	// begin is at tile m0 of a box and its columns from n0 on.
	__device__ __attribute__((always_inline)) Stages(const ConvArgs &a, const Box *box, Shared ring, i32 m0, i32 n0) : a(a), ring(ring), n0(n0) {
		t = threadIdx.x, length = box->length, runs = box->runs, steps = runs * a.chunks, last = positionsOf(a, box);
		run = (const Run *)a.runs + box->run, r = run[0], nextRun = nextChunk = 0;
		// What this thread copies of each stage: piece t%4 of rows t/4 + 64i; of the rows behind the tile the first threads.
		piece = t % 4, first = m0 + (WOVEN ? t / 4 % 8 * (TM / 8) + t / 32 : t / 4), to = t / 4 * 64 + swizzle<4>(t / 4, piece) * 16;
		Place place = placeOf(box, first);
		UNROLL for (int i = 0; i <= ROWS; i++) {
			source[i] = sourceOf(a, box, place);
			advance(box, place, APART);
		}
		pitch = (u32)a.src.pitch * 2;
	}

	// load has a stage come, if there is one: they are asked for one after the other.
	__device__ __attribute__((always_inline)) void load(i32 step) {
		if (step < steps) {
			Shared at = ring + step % RING * STAGE + to;
			i32 c = nextChunk * DEPTH + piece * 8, bytes = (a.s.c - c) * 2;
			bytes = bytes < 0 ? 0 : bytes > 16 ? 16 : bytes;
			const u8 *from = (const u8 *)a.src.at + (bytes > 0 ? c * 2 : 0);
			UNROLL for (int i = 0; i <= ROWS; i++) {
				if (i == ROWS && t / 4 >= (length - 1) * LATER) break;
				copyAsync(at + i * 64 * 64, from + (u64)(source[i] + r.at) * pitch, first + APART * i < last ? bytes : 0);
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
	}
};

// fetchAdd has what is added to a tile's sums come to the L2 cache while they are summed up.
template <int TM, int TN> DEVICE void fetchAdd(const ConvArgs &a, const Box *box, i32 m0, i32 n0) {
	if (!a.add.at) return;
	i32 positions = positionsOf(a, box), size = a.add.type == BFLOAT16 ? 2 : 4, n = (a.t.c - n0 < TN ? a.t.c - n0 : TN) * size;
	NOUNROLL for (i32 m = m0 + threadIdx.x; m < m0 + TM && m < positions; m += THREADS) {
		Place p = placeOf(box, m);
		if (p.x >= box->count[2]) continue;
		const u8 *from = (const u8 *)a.add.at + ((u64)voxelOf(a.add, a.t.w, targetOf(a, box, p)) * a.add.pitch + n0) * size;
		NOUNROLL for (i32 i = 0; i < n; i += 128) prefetch(from + i);
	}
}

// Way is how the sums of a block's rows leave: through shared memory, with the targets of rows behind them. A row is of position m0 + at(row)
// of a box and turned by turn(row).
template <int ROWS, int TN> struct Way {
	static constexpr int GROUPS = TN / 8, STRIDE = THREADS / GROUPS, AT_ONCE = ROWS / STRIDE % 8 == 0 ? 8 : 4;
	static_assert(ROWS % (AT_ONCE * STRIDE) == 0, "rows that threads share out");
	float *tile; // [ROWS][TN]
	i32 *y, *x; // [ROWS] of targets, x -1 where there is none

	__device__ __attribute__((always_inline)) Way(void *memory) : tile((float *)memory), y((i32 *)(tile + ROWS * TN)), x(y + ROWS) {}

	// targets notes the rows' targets.
	template <class At> __device__ __attribute__((always_inline)) void targets(const ConvArgs &a, const Box *box, i32 m0, At at) {
		i32 positions = positionsOf(a, box);
		NOUNROLL for (i32 row = threadIdx.x; row < ROWS; row += THREADS) {
			i32 m = m0 + at(row);
			Place p = placeOf(box, m);
			Target to = targetOf(a, box, p);
			y[row] = to.row, x[row] = m < positions && p.x < box->count[2] ? to.x : -1;
		}
	}

	// leave writes the sums with bias and add, 16 bytes of a target at a time. A thread has the same channels of each of its rows; where all is
	// bfloat16, what is added to a few of them comes before it needs the first.
	template <class Turn> __device__ __attribute__((always_inline)) void leave(const ConvArgs &a, i32 n0, Turn turn) {
		i32 t = threadIdx.x, c = n0 + t % GROUPS * 8, n = eight(c, a.t.c);
		if (n == 0) return;
		if (a.dst.type != BFLOAT16 || (a.add.at && a.add.type != BFLOAT16)) {
			NOUNROLL for (i32 row = t / GROUPS; row < ROWS; row += STRIDE) {
				if (x[row] < 0) continue;
				float v[8];
				UNROLL for (int k = 0; k < 8; k++) v[k] = tile[row * TN + (c - n0 + turn(row)) % TN + k];
				finish(a, Target{y[row], x[row]}, c, n, v);
			}
			return;
		}
		const u16 *add = (const u16 *)a.add.at + c;
		u16 *out = (u16 *)a.dst.at + c;
		float bias[8];
		UNROLL for (int k = 0; k < 8; k++) bias[k] = a.bias && k < n ? ((const float *)a.bias)[c + k] : 0;
		NOUNROLL for (i32 first = t / GROUPS; first < ROWS; first += AT_ONCE * STRIDE) {
			Target here[AT_ONCE];
			Quad q[AT_ONCE];
			UNROLL for (int i = 0; i < AT_ONCE; i++) {
				here[i] = Target{y[first + i * STRIDE], x[first + i * STRIDE]};
				q[i] = Quad{};
				if (a.add.at && here[i].x >= 0) q[i] = *(const Quad *)(add + (u64)voxelOf(a.add, a.t.w, here[i]) * a.add.pitch);
			}
			UNROLL for (int i = 0; i < AT_ONCE; i++) {
				i32 row = first + i * STRIDE, at = here[i].x;
				if (at < 0) continue;
				const float *from = tile + row * TN + (c - n0 + turn(row)) % TN;
				UNROLL for (int k = 0; k < 4; k++) {
					u32 plus = q[i].v[k];
					q[i].v[k] = narrow2(from[2 * k] + bias[2 * k] + widen((u16)plus), from[2 * k + 1] + bias[2 * k + 1] + widen((u16)(plus >> 16)));
				}
				u16 *dst = out + (u64)voxelOf(a.dst, a.t.w, here[i]) * a.dst.pitch;
				*(Quad *)dst = q[i];
				if (at > 0 && at < a.t.w - 1) continue;
				if (a.dst.pad != REPLICATE) q[i] = Quad{};
				NOUNROLL for (i32 k = a.dst.pitch; k <= a.dst.halo * a.dst.pitch; k += a.dst.pitch) {
					if (at == 0) *(Quad *)(dst - k) = q[i];
					if (at == a.t.w - 1) *(Quad *)(dst + k) = q[i];
				}
			}
		}
	}
};
