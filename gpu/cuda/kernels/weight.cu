// Gradients of convolutions' weights and biases. Rows of the product are taps × channels of the shifted operand (the input; of a
// transposed convolution the output's gradient), columns the channels of the straight one, and the sum goes over the points of
// the coarser grid, in parts that are added up in order.
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
};

enum { DEPTH = 32, STAGES = 4 };

template <int CHUNKS> DEVICE i32 swizzle(i32 row, i32 chunk) { return chunk ^ (CHUNKS >= 8 ? row & 7 : row / 2 & 3); }

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

DEVICE i32 straightRow(const WeightArgs &a, const Row &r) {
	i32 z = a.clampP ? clamp(r.z, a.p.d) : r.z, y = a.clampP ? clamp(r.y, a.p.h) : r.y;
	return (r.n * a.p.d + z) * a.p.h + y;
}

// weightTile computes WM*64 rows × WN*FN*8 columns with WM*WN warps. A step is 32 points of a row of the grid.
template <int WM, int WN, int FN> DEVICE void weightTile(const WeightArgs &a) {
	constexpr int THREADS = WM * WN * 32, TM = WM * 64, TN = WN * FN * 8, MC = TM / 8, NC = TN / 8, STAGE = (TM + TN) * DEPTH * 2;
	SHARED(u8, memory);
	i32 t = threadIdx.x, lane = t % 32, wm = t / 32 / WN, wn = t / 32 % WN, m0 = blockIdx.x * TM, n0 = blockIdx.y * TN;
	Shared ring = sharedAddress(memory);

	// What this thread copies of each stage: one piece of some points' rows, so always the same tap and channels.
	i32 wide = groupsOf(a.q.c) * 8, m = m0 + t % MC * 8, tap = m / wide, qc = m % wide, pc = n0 + t % NC * 8;
	i32 kx = tap % a.kx, ky = tap / a.kx % a.ky, kz = tap / a.kx / a.ky;
	i32 qBytes = kz < a.kz ? eight(qc, a.q.c) * 2 : 0, pBytes = eight(pc, a.p.c) * 2, qPitch = a.shifted.pitch * 2, pPitch = a.straight.pitch * 2;
	i32 across = (a.grid.w + DEPTH - 1) / DEPTH, first = blockIdx.z * a.share;
	i32 steps = a.steps - first < a.share ? a.steps - first : a.share;

	// Where the next stage begins: point x0 of a row of the grid, and both operands' voxels 0 of that row.
	i32 x0 = first % across * DEPTH, qFirst = (a.fromX + t / MC) * a.sx - a.lx + kx, pFirst = a.fromX + t / NC;
	i32 least = a.stored ? -a.shifted.halo : 0, most = a.stored ? a.q.w + a.shifted.halo : a.q.w; // columns that there are
	Row at = rowOf(a, first / across);
	bool ok;
	const u8 *q, *p;
	auto enter = [&] {
		i32 shifted = shiftedRow(a, at, kz, ky, ok);
		q = (const u8 *)a.shifted.at + (ok ? (cell(a.shifted, a.q.w, shifted, 0) + qc) * 2 : 0);
		p = (const u8 *)a.straight.at + (cell(a.straight, a.p.w, straightRow(a, at), 0) + pc) * 2;
	};
	enter();
	auto load = [&](i32 step) {
		if (step < steps) {
			Shared to = ring + step % STAGES * STAGE;
			UNROLL for (int i = 0; i < DEPTH * MC / THREADS; i++) {
				i32 point = t / MC + i * (THREADS / MC), x = qFirst + (x0 + i * (THREADS / MC)) * a.sx;
				bool in = ok & (x0 + point < a.grid.w) & (x >= least) & (x < most);
				copyAsync(to + point * TM * 2 + swizzle<MC>(point, t % MC) * 16, q + (i64)x * qPitch, in ? qBytes : 0);
			}
			UNROLL for (int i = 0; i < DEPTH * NC / THREADS; i++) {
				i32 point = t / NC + i * (THREADS / NC), x = pFirst + x0 + i * (THREADS / NC);
				copyAsync(to + DEPTH * TM * 2 + point * TN * 2 + swizzle<NC>(point, t % NC) * 16, p + (i64)x * pPitch, x0 + point < a.grid.w ? pBytes : 0);
			}
			if ((x0 += DEPTH) >= a.grid.w) {
				x0 = 0;
				if (++at.y == a.fromY + a.grid.h) {
					at.y = a.fromY;
					if (++at.z == a.fromZ + a.grid.d) at.z = a.fromZ, at.n++;
				}
				enter();
			}
		}
		copyCommit();
	};

	float sums[4][FN][4];
	UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < FN; j++) UNROLL for (int k = 0; k < 4; k++) sums[i][j][k] = 0;
	// Of two warps of a block that share a scheduler, the later copies when it has begun to multiply.
	bool idle = m0 + wm * 64 >= a.kz * a.ky * a.kx * wide, late = t >= 128 && !idle; // idle: the warp has no rows
	NOUNROLL for (i32 s = 0; s < STAGES - 1; s++) load(s);
	for (i32 step = 0; step < steps; step++) {
		copyWait<STAGES - 2>();
		barrier();
		if (!late) load(step + STAGES - 1);
		Shared from = ring + step % STAGES * STAGE;
		if (idle) continue;
		UNROLL for (int k = 0; k < DEPTH / 16; k++) {
			u32 x[4][4], w[FN][2];
			UNROLL for (int i = 0; i < 4; i++) {
				i32 row = k * 16 + lane % 8 + lane / 16 * 8, chunk = wm * 8 + i * 2 + lane / 8 % 2;
				loadTransposed(x[i], from + row * TM * 2 + swizzle<MC>(row, chunk) * 16);
			}
			UNROLL for (int j = 0; j < FN; j += 2) {
				i32 row = k * 16 + lane % 16, chunk = wn * FN + j + lane / 16;
				u32 r[4];
				loadTransposed(r, from + DEPTH * TM * 2 + row * TN * 2 + swizzle<NC>(row, chunk) * 16);
				w[j][0] = r[0], w[j][1] = r[1], w[j + 1][0] = r[2], w[j + 1][1] = r[3];
			}
			multiply<4, FN>(sums, x, w);
			if (late && k == 0) load(step + STAGES - 1);
		}
	}
	copyWait<0>();
	i32 columns = gridDim.y * TN;
	float *out = (float *)a.out + ((u64)blockIdx.z * gridDim.x * TM + m0) * columns + n0;
	UNROLL for (int i = 0; i < 4; i++) {
		UNROLL for (int j = 0; j < FN; j++) {
			UNROLL for (int half = 0; half < 2; half++) {
				float *p = out + (u64)(wm * 64 + i * 16 + half * 8 + lane / 4) * columns + (wn * FN + j) * 8 + lane % 4 * 2;
				p[0] = sums[i][j][half * 2], p[1] = sums[i][j][half * 2 + 1];
			}
		}
	}
}

KERNEL(weight256x128, WeightArgs, 256, 1) { weightTile<4, 2, 8>(a); }
KERNEL(weight256x64, WeightArgs, 128, 2) { weightTile<4, 1, 8>(a); }
KERNEL(weight256x32, WeightArgs, 128, 2) { weightTile<4, 1, 4>(a); }

// weightDirect serves operands of any type: a thread has one weight, [tap][shifted][straight], and steps are whole rows.
KERNEL(weightDirect, WeightArgs, 256, 3) {
	i32 i = blockIdx.x * 256 + threadIdx.x, all = a.kz * a.ky * a.kx * a.q.c * a.p.c;
	if (i >= all) return;
	i32 pc = i % a.p.c, qc = i / a.p.c % a.q.c, tap = i / a.p.c / a.q.c;
	i32 kx = tap % a.kx, ky = tap / a.kx % a.ky, kz = tap / a.kx / a.ky;
	i32 first = blockIdx.z * a.share, last = first + a.share < a.steps ? first + a.share : a.steps;
	i32 x = a.fromX * a.sx - a.lx + kx, from = 0, to = a.grid.w; // the shifted column of point 0; which points have one
	if (!a.stored) {
		from = x < 0 ? (a.sx - 1 - x) / a.sx : 0;
		to = a.q.w <= x ? 0 : (a.q.w - x + a.sx - 1) / a.sx;
		to = to < a.grid.w ? to : a.grid.w;
	}
	u32 qStep = a.sx * a.shifted.pitch, pStep = a.straight.pitch;
	float sum = 0;
	for (i32 step = first; step < last; step++) {
		Row r = rowOf(a, step);
		bool ok;
		i32 q = shiftedRow(a, r, kz, ky, ok), p = straightRow(a, r);
		if (!ok) continue;
		u64 qAt = cell(a.shifted, a.q.w, q, x + from * a.sx) + qc, pAt = cell(a.straight, a.p.w, p, a.fromX + from) + pc;
		for (i32 j = from; j < to; j++, qAt += qStep, pAt += pStep) sum += load1(a.shifted, qAt) * load1(a.straight, pAt);
	}
	((float *)a.out)[(u64)blockIdx.z * all + i] = sum;
}

struct GatherWeightsArgs {
	u64 parts, dw; // floats [part][rows][columns], [tap][q][p], or [tap][p][q] where swapped
	i32 n, rows, columns, taps, wide, q, p, swapped; // wide: rows of a tap
};

// gatherWeights adds the parts of a weight gradient to it, in order.
KERNEL(gatherWeights, GatherWeightsArgs, 256) {
	i32 all = a.taps * a.q * a.p;
	for (i32 i = blockIdx.x * 256 + threadIdx.x; i < all; i += gridDim.x * 256) {
		i32 p = i % a.p, q = i / a.p % a.q, tap = i / a.p / a.q;
		const float *from = (const float *)a.parts + (u64)(tap * a.wide + q) * a.columns + p;
		float s = 0;
		for (i32 k = 0; k < a.n; k++) s += from[(u64)k * a.rows * a.columns];
		((float *)a.dw)[a.swapped ? (tap * a.p + p) * a.q + q : i] += s;
	}
}

struct BiasArgs {
	View dy;
	Dims d;
	u64 parts; // floats [blocks][c]
	i32 lanes;
};

// biasSums leaves Σ dy by channel for each part of the voxels. Lanes share a voxel as in norm.cu.
KERNEL(biasSums, BiasArgs, 256) {
	__shared__ float shared[256];
	i32 voxels = a.d.n * a.d.d * a.d.h * a.d.w, per = 256 / a.lanes, lane = threadIdx.x % a.lanes;
	NOUNROLL for (i32 base = 0; base < a.d.c; base += a.lanes * 8) {
		i32 c = base + lane * 8, n = eight(c, a.d.c);
		float sum[8];
		UNROLL for (int k = 0; k < 8; k++) sum[k] = 0;
		for (i32 v = blockIdx.x * per + threadIdx.x / a.lanes; n > 0 && v < voxels; v += gridDim.x * per) {
			float x[8];
			get8(a.dy, a.d.w, v / a.d.w, v % a.d.w, c, n, x);
			UNROLL for (int k = 0; k < 8; k++) sum[k] += x[k];
		}
		UNROLL for (int k = 0; k < 8; k++) sumVoxels(sum[k], shared, a.lanes, c + k < a.d.c ? (float *)a.parts + (u64)blockIdx.x * a.d.c + c + k : 0);
	}
}
