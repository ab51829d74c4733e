// What the gradients of weights share: how a part goes through the points, and how both operands come into shared memory.
#pragma once
#include "device.h"

struct WeightArgs {
	View shifted, straight;
	Dims q, p; // of shifted and straight
	Dims grid; // points
	i32 fromZ, fromY, fromX; // the first point
	i32 kz, ky, kx, sz, sy, sx, lz, ly, lx; // point j meets shifted j*s - l + k
	i32 stored, clampQ, clampP; // shifted's columns beyond the ends are in the halo; rows beyond the ends are the nearest
	i32 steps, share; // of a part: it has steps blockIdx.z*share and on
	u64 out; // floats [part][rows][columns]
	u64 bias; // floats [part][columns], sums of the straight operand; or 0
};

enum { STRIP = 32 }; // points of a stage

DEVICE i32 least(i32 i, i32 j) { return i < j ? i : j; }

DEVICE i32 clamp(i32 i, i32 n) { return i < 0 ? 0 : i >= n ? n - 1 : i; }

// Row is a row of grid points.
struct Row { i32 n, z, y; };

DEVICE Row rowOf(const WeightArgs &a, i32 r) {
	i32 plane = r / a.grid.h;
	return Row{plane / a.grid.d, a.fromZ + plane % a.grid.d, a.fromY + r % a.grid.h};
}

// shiftedRow is the row of the shifted operand that tap kz, ky meets; ok is false where there is none.
DEVICE i32 shiftedRow(const WeightArgs &a, const Row &r, i32 kz, i32 ky, bool &ok) {
	i32 z = r.z * a.sz - a.lz + kz, y = r.y * a.sy - a.ly + ky;
	if (a.clampQ) z = clamp(z, a.q.d), y = clamp(y, a.q.h);
	ok = z >= 0 && z < a.q.d && y >= 0 && y < a.q.h;
	return (r.n * a.q.d + z) * a.q.h + y;
}

// firstTap is the first of a group of K taps that lie one step of the grid apart.
template <int K> DEVICE i32 firstTap(i32 group, i32 step) { return K > 1 && step > 1 ? group : group * K; }

DEVICE i32 straightRow(const WeightArgs &a, const Row &r) {
	i32 z = a.clampP ? clamp(r.z, a.p.d) : r.z, y = a.clampP ? clamp(r.y, a.p.h) : r.y;
	return (r.n * a.p.d + z) * a.p.h + y;
}

// Walk is where a part's walk is: in a strip of up to 32 points across a plane of the grid, at row y, with so many rows of it
// from there on, and then left - rows of the strips behind. The next strip is the next plane's: what taps along z share, which is other
// blocks' business, has been read a strip ago and is in the L2 cache yet.
struct Walk { i32 n, z, y, x0, rows, left; };

DEVICE Walk walkOf(const WeightArgs &a, i32 first, i32 left) {
	i32 across = (a.grid.w + STRIP - 1) / STRIP, strip = first / a.grid.h, column = strip / a.grid.d;
	i32 y = first % a.grid.h;
	return Walk{column / across, strip % a.grid.d, y, column % across * STRIP, least(left, a.grid.h - y), left};
}

// goOn enters the next strip.
DEVICE void goOn(const WeightArgs &a, Walk &w) {
	w.left -= w.rows;
	w.rows = least(w.left, a.grid.h);
	w.y = 0;
	if (++w.z < a.grid.d) return;
	w.z = 0;
	if ((w.x0 += STRIP) >= a.grid.w) w.x0 = 0, w.n++;
}

// pieceOf is where chunk of a point lies: points of CHUNKS 16-byte pieces, at most eight next to each other, the next eight behind a strip.
template <int CHUNKS> DEVICE i32 pieceOf(i32 point, i32 chunk) {
	if (CHUNKS <= 8) return point * CHUNKS * 16 + swizzle<CHUNKS>(point, chunk) * 16;
	return chunk / 8 * STRIP * 128 + point * 128 + swizzle<8>(point, chunk % 8) * 16;
}

// Copier is what a thread of a block copies of each stage: the same piece of some points' rows, so always the same group of taps and
// channels. A stage is a row of TM shifted channels at 32 points of a strip and at the KX-1 behind it, and of TN straight ones at the 32. The
// taps of a group lie one step of the grid apart: tap i meets at point j what tap 0 meets at point j+i. So there are KY-1 more rows of
// the shifted operand to a strip than of the straight one, and the last KY of these meet a row of that.
template <int KY, int KX, int TM, int TN, int THREADS> struct Copier {
	static constexpr int MC = TM / 8, NC = TN / 8, MPER = THREADS / MC, NPER = THREADS / NC, POINTS = STRIP + KX - 1;
	static constexpr int MINE = (POINTS + MPER - 1) / MPER, NINE = (STRIP + NPER - 1) / NPER; // at most so many points
	static constexpr int SHIFTED = POINTS * TM * 2, STRAIGHT = STRIP * TN * 2; // bytes of a stage
	static_assert(MPER % 8 == 0 && NPER % 8 == 0, "the swizzle of a thread's points is one");
	Walk at;
	i32 row; // of the strip, counted from at.y on
	i32 group, qc, pc, qTo, pTo;
	const u8 *q, *p; // row 0 of the strip's planes, at this thread's first point
	i32 qy, py; // the next rows, before they are clamped
	bool qIn[MINE], pIn[NINE]; // whether there is a point and a piece of it

	// One for a block with rows from m0 and columns from n0 on.
	__device__ Copier(const WeightArgs &a, const Walk &from, i32 m0, i32 n0) : at(from), row(0) {
		i32 t = threadIdx.x, wide = groupsOf(a.q.c) * 8, m = m0 + t % MC * 8;
		group = m / wide, qc = m % wide, pc = n0 + t % NC * 8;
		qTo = t / MC * TM * 2 + swizzle<MC>(t / MC, t % MC) * 16, pTo = pieceOf<NC>(t / NC, t % NC);
		enter(a);
	}

	// enter is at the beginning of a strip.
	__device__ void enter(const WeightArgs &a) {
		i32 t = threadIdx.x, groupsX = a.kx / KX, groupsY = a.ky / KY, kz = group / (groupsX * groupsY);
		i32 ky = firstTap<KY>(group / groupsX % groupsY, a.sy), kx = firstTap<KX>(group % groupsX, a.sx);
		i32 z = (a.fromZ + at.z) * a.sz - a.lz + kz, x = (a.fromX + at.x0 + t / MC) * a.sx - a.lx + kx;
		if (a.clampQ) z = clamp(z, a.q.d);
		bool ok = kz < a.kz && z >= 0 && z < a.q.d;
		q = (const u8 *)a.shifted.at + (i64)(cell(a.shifted, a.q.w, ok ? (at.n * a.q.d + z) * a.q.h : 0, x) + qc) * 2;
		qy = (a.fromY + at.y) * a.sy - a.ly + ky;
		i32 lowest = a.stored ? -a.shifted.halo : 0, most = a.stored ? a.q.w + a.shifted.halo : a.q.w; // columns that there are
		UNROLL for (int i = 0; i < MINE; i++) {
			i32 point = t / MC + i * MPER, column = x + i * MPER * a.sx;
			qIn[i] = ok & (at.x0 + point < a.grid.w + KX - 1) & (column >= lowest) & (column < most);
		}
		z = a.fromZ + at.z, x = a.fromX + at.x0 + t / NC;
		if (a.clampP) z = clamp(z, a.p.d);
		p = (const u8 *)a.straight.at + (i64)(cell(a.straight, a.p.w, (at.n * a.p.d + z) * a.p.h, x) + pc) * 2;
		py = a.fromY + at.y;
		UNROLL for (int i = 0; i < NINE; i++) pIn[i] = pc < a.p.c && at.x0 + t / NC + i * NPER < a.grid.w;
	}

	// copy brings the next stage, if there is one. Channels that fill up a piece of eight come as they are: their rows and columns of
	// the product are nobody's.
	__device__ bool copy(const WeightArgs &a, Shared shiftedTo, Shared straightTo) {
		if (at.left <= 0) return false;
		i32 y = a.clampQ ? clamp(qy, a.q.h) : qy, t = threadIdx.x;
		bool ok = y >= 0 && y < a.q.h;
		const u8 *from = q + (i64)y * ((a.q.w + 2 * a.shifted.halo) * a.shifted.pitch * 2);
		UNROLL for (int i = 0; i < MINE; i++) {
			if ((i + 1) * MPER > POINTS && t >= (POINTS - i * MPER) * MC) break;
			copyAsync(shiftedTo + qTo + i * MPER * TM * 2, from + i * MPER * (i64)(a.sx * a.shifted.pitch * 2), (ok & qIn[i]) ? 16 : 0);
		}
		if (row < at.rows) {
			y = a.clampP ? clamp(py, a.p.h) : py;
			from = p + (i64)y * ((a.p.w + 2 * a.straight.halo) * a.straight.pitch * 2);
			UNROLL for (int i = 0; i < NINE; i++) {
				if ((i + 1) * NPER > STRIP && t >= (STRIP - i * NPER) * NC) break;
				copyAsync(straightTo + pTo + i * NPER * (NC < 8 ? NC : 8) * 16, from + i * NPER * (i64)(a.straight.pitch * 2), pIn[i] ? 16 : 0);
			}
		}
		qy += a.sy, py++;
		if (++row == at.rows + KY - 1) row = 0, goOn(a, at), enter(a);
		return true;
	}
};

// Columns adds up the straight operand's channels, for blocks that are the first of their columns: a thread of the first 256 has two
// channels of some points of each stage.
template <int TN> struct Columns {
	static constexpr int PAIRS = TN / 2, PER = 256 / PAIRS; // points that the threads have at a time
	float sum[2];

	__device__ __attribute__((always_inline)) void add(const u8 *stage) {
		i32 t = threadIdx.x, pair = t % PAIRS;
		if (t >= 256) return;
		UNROLL for (int i = 0; i < STRIP / PER; i++) {
			u32 v = *(const u32 *)(stage + pieceOf<TN / 8>(t / PAIRS + i * PER, pair / 4) + pair % 4 * 4);
			sum[0] += widen((u16)v), sum[1] += widen((u16)(v >> 16));
		}
	}

	// leave writes the sums, in order, by way of the stages' memory, that nobody reads any more.
	__device__ __attribute__((always_inline)) void leave(float *shared, float *out) {
		i32 t = threadIdx.x;
		barrier();
		if (t < 256) shared[2 * t] = sum[0], shared[2 * t + 1] = sum[1];
		barrier();
		if (t >= TN) return;
		float s = 0;
		for (i32 i = t; i < 512; i += TN) s += shared[i];
		out[t] = s;
	}
};
