// Gradients of convolutions' weights and biases. Rows of the product are taps × channels of the shifted operand (the input; of a
// transposed convolution the output's gradient), columns the channels of the straight one, and the sum goes over the points of
// the coarser grid, in parts that are added up in order. Taps that meet the same points are a group and computed together: rows of
// a block's tile are groups × channels, each of them for all taps of a group.
#include "weight.h"

enum { AHEAD = 3 }; // stages under way

// weightTile computes KY × KX taps of WM*FM*16 rows × WN*FN*8 columns with WM*WN warps. A part walks along y in strips: the straight
// operand's last KY rows are kept, so that nothing is loaded twice but what lies behind a strip.
template <int KY, int KX, int WM, int WN, int FM, int FN> DEVICE void weightTile(const WeightArgs &a) {
	constexpr int TM = WM * FM * 16, TN = WN * FN * 8;
	typedef Copier<KY, KX, TM, TN, WM * WN * 32> Copy;
	constexpr int MC = Copy::MC, NC = Copy::NC, STRAIGHT = Copy::SHIFTED, STAGE = STRAIGHT + Copy::STRAIGHT, STAGES = AHEAD + KY;
	SHARED(u8, memory);
	i32 t = threadIdx.x, lane = t % 32, wm = t / 32 / WN, wn = t / 32 % WN, m0 = blockIdx.x * TM, n0 = blockIdx.y * TN;
	Shared ring = sharedAddress(memory), end = ring + STAGES * STAGE, from = ring, to = ring;
	i32 first = blockIdx.z * a.share, row = 0; // of the strip
	Walk at = walkOf(a, first, least(a.steps - first, a.share));
	Copy copier(a, at, m0, n0);
	auto load = [&] {
		if (copier.copy(a, to, to + STRAIGHT) && (to += STAGE) == end) to = ring;
		copyCommit();
	};

	float sums[KY][KX * FM][FN][4];
	UNROLL for (int y = 0; y < KY; y++) {
		UNROLL for (int i = 0; i < KX * FM; i++) UNROLL for (int j = 0; j < FN; j++) UNROLL for (int k = 0; k < 4; k++) sums[y][i][j][k] = 0;
	}
	bool adds = a.bias && blockIdx.x == 0;
	Columns<TN> bias = {{0, 0}};
	// Of two warps of a block that share a scheduler, the later copies when it has begun to multiply. An idle warp has no rows, or no columns.
	bool idle = m0 + wm * FM * 16 >= a.kz * (a.ky / KY) * (a.kx / KX) * groupsOf(a.q.c) * 8 || n0 + wn * FN * 8 >= a.p.c, late = t >= 128 && !idle;
	// all: the strip has each of the KY rows
	auto product = [&](bool all) __attribute__((always_inline)) {
		UNROLL for (int k = 0; k < STRIP / 16; k++) {
			u32 x[KX * FM][4];
			UNROLL for (int shift = 0; shift < KX; shift++) {
				UNROLL for (int i = 0; i < FM; i++) {
					i32 point = k * 16 + lane % 8 + lane / 16 * 8 + shift, chunk = (wm * FM + i) * 2 + lane / 8 % 2;
					loadTransposed(x[shift * FM + i], from + point * TM * 2 + swizzle<MC>(point, chunk) * 16);
				}
			}
			UNROLL for (int y = 0; y < KY; y++) {
				if (!all && (row < y || row - y >= at.rows)) continue;
				Shared straight = from - y * STAGE;
				if ((i32)(straight - ring) < 0) straight += STAGES * STAGE; // an address may pass 0
				u32 w[FN][2];
				UNROLL for (int j = 0; j < FN; j += 2) {
					i32 point = k * 16 + lane % 16, chunk = wn * FN + j + lane / 16;
					u32 r[4];
					loadTransposed(r, straight + STRAIGHT + pieceOf<NC>(point, chunk));
					w[j][0] = r[0], w[j][1] = r[1], w[j + 1][0] = r[2], w[j + 1][1] = r[3];
				}
				multiply<KX * FM, FN>(sums[y], x, w);
			}
			if (late && k == 0) load();
		}
	};
	NOUNROLL for (i32 s = 0; s < AHEAD; s++) load();
	while (at.left > 0) {
		copyWait<AHEAD - 1>();
		barrier();
		if (!late) load();
		if (adds && row < at.rows) bias.add(memory + (from - ring) + STRAIGHT);
		if (!idle) {
			if (row >= KY - 1 && row < at.rows) product(true);
			else product(false);
		}
		if ((from += STAGE) == end) from = ring;
		if (++row == at.rows + KY - 1) row = 0, goOn(a, at);
	}
	copyWait<0>();
	u64 rows = gridDim.x * TM, columns = gridDim.y * TN;
	if (adds) bias.leave((float *)memory, (float *)a.bias + blockIdx.z * columns + n0);
	if (idle) return;
	float *out = (float *)a.out + (blockIdx.z * (KY * KX) * rows + m0) * columns + n0;
	UNROLL for (int y = 0; y < KY; y++) {
		UNROLL for (int i = 0; i < KX * FM; i++) {
			UNROLL for (int j = 0; j < FN; j++) {
				UNROLL for (int half = 0; half < 2; half++) {
					i32 r = (wm * FM + i % FM) * 16 + half * 8 + lane / 4;
					float *p = out + ((y * KX + i / FM) * rows + r) * columns + (wn * FN + j) * 8 + lane % 4 * 2;
					p[0] = sums[y][i][j][half * 2], p[1] = sums[y][i][j][half * 2 + 1];
				}
			}
		}
	}
}

KERNEL(weight9x64, WeightArgs, 256, 1) { weightTile<3, 3, 4, 2, 1, 4>(a); }
KERNEL(weight9x32, WeightArgs, 256, 1) { weightTile<3, 3, 8, 1, 1, 4>(a); }
KERNEL(weight4x128, WeightArgs, 256, 1) { weightTile<2, 2, 2, 4, 2, 4>(a); }
KERNEL(weight4x64, WeightArgs, 256, 1) { weightTile<2, 2, 4, 2, 2, 4>(a); }
KERNEL(weight4x32, WeightArgs, 256, 1) { weightTile<2, 2, 8, 1, 2, 4>(a); }
KERNEL(weight1x128, WeightArgs, 256, 1) { weightTile<1, 1, 4, 2, 4, 8>(a); }
KERNEL(weight1x32, WeightArgs, 256, 1) { weightTile<1, 1, 8, 1, 2, 4>(a); }

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
	i32 n, rows, columns, taps, wide, q, p, swapped; // rows of a tap of a group; wide of them are one group's
	i32 ky, kx, sy, sx, groupY, groupX; // taps, steps, and taps of a group
};

// placeOf is where tap k is: in which group, and there which.
struct TapPlace { i32 group, tap; };

DEVICE TapPlace placeOf(i32 k, i32 taps, i32 step) { return taps > 1 && step > 1 ? TapPlace{k % step, k / step} : TapPlace{k / taps, k % taps}; }

// gatherWeights adds the parts of a weight gradient to it, in order.
KERNEL(gatherWeights, GatherWeightsArgs, 256) {
	i32 all = a.taps * a.q * a.p;
	for (i32 i = blockIdx.x * 256 + threadIdx.x; i < all; i += gridDim.x * 256) {
		i32 p = i % a.p, q = i / a.p % a.q, tap = i / a.p / a.q;
		TapPlace y = placeOf(tap / a.kx % a.ky, a.groupY, a.sy), x = placeOf(tap % a.kx, a.groupX, a.sx);
		i32 group = (tap / a.kx / a.ky * (a.ky / a.groupY) + y.group) * (a.kx / a.groupX) + x.group;
		u64 part = (u64)a.groupY * a.groupX * a.rows * a.columns;
		const float *from = (const float *)a.parts + ((u64)(y.tap * a.groupX + x.tap) * a.rows + group * a.wide + q) * a.columns + p;
		float s = 0;
		for (i32 k = 0; k < a.n; k++) s += from[k * part];
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
	__shared__ float shared[VOXEL_SUMS];
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
		sumVoxels(sum, shared, a.lanes, a.d.c - base, (float *)a.parts + (u64)blockIdx.x * a.d.c + base);
	}
}
