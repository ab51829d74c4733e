// Convolutions between one channel of float32 and many of bfloat16: first and last layers. What they cost is to read the wide
// operand, or write it, once: lanes share its voxel and a thread has CH of its channels for all taps, or those of a plane, in registers. It
// goes along a row with a window of the thin operand's columns, whose rows a block keeps in shared memory.
//
// Along each axis the wide operand's voxel v meets the thin one's v*s - lo + k at tap k; where flip is 1, taps count from the end.
#include "device.h"

enum { WARPS = 8, POINTS = 288 }; // of a block, voxels of a row that it keeps the window's rows of

// Window is how many columns of ROWS values there are, a multiple of 16 bytes apart, and how many voxels it takes until the same registers
// hold the first column again.
template <int KZ, int KY, int KX, int S> struct Window {
	enum { ROWS = KZ * KY, PITCH = (ROWS + 3) / 4 * 4, TURN = KX / S, COLUMNS = (POINTS + TURN - 1) * S + KX };
};

// column reads one of the block's.
template <int ROWS> DEVICE void column(float (&v)[ROWS], const float *from) {
	UNROLL for (int r = 0; r < ROWS; r += 4) {
		if (r + 4 <= ROWS) {
			Quad q = *(const Quad *)(from + r);
			UNROLL for (int i = 0; i < 4 && r + i < ROWS; i++) v[r + i] = __builtin_bit_cast(float, q.v[i]);
		} else {
			UNROLL for (int i = r; i < ROWS; i++) v[i] = from[i];
		}
	}
}

DEVICE i32 nearest(i32 i, i32 n) { return i < 0 ? 0 : i >= n ? n - 1 : i; }

struct ThinWeightArgs {
	View wide, thin;
	Dims w, t;
	u64 out; // floats [part][taps, and one that sums the wide operand up][channel]
	i32 fromZ, fromY, fromX, countZ, countY, countX; // the wide operand's voxels
	i32 loZ, loY, loX, sz; // along y and x the step is the kernel's
	i32 clampWide, clampThin; // rows beyond the ends are the nearest; else they are zeros
	i32 least, most; // columns of the thin operand that there are
	i32 planes, flip; // taps along z
	i32 lanes, segment; // of a voxel; voxels of a row that follow each other
	i32 share, unused; // rows of a part
};

// weightThin sums up products of voxels and windows. Where KZ is 1, a block has one of the planes of taps.
template <int KZ, int KY, int KX, int S, int CH> DEVICE void weightThin(const ThinWeightArgs &a) {
	typedef Window<KZ, KY, KX, S> W;
	constexpr int ROWS = W::ROWS, PITCH = W::PITCH, TURN = W::TURN, TAPS = ROWS * KX, PARTIAL = (TAPS + 1) * CH, SIZE = W::COLUMNS * PITCH;
	__shared__ Quad memory[(SIZE > WARPS * 256 ? SIZE : WARPS * 256) / 4];
	__shared__ i32 starts[ROWS]; // of the window's rows: their voxel 0, -1 where they are zeros
	float *kept = (float *)memory;
	i32 t = threadIdx.x, lane = t % a.lanes, segment = t / a.lanes, segments = WARPS * 32 / a.lanes;
	i32 split = KZ == 1 ? a.planes : 1, plane = blockIdx.x % split, c = (blockIdx.x / split * a.lanes + lane) * CH;
	i32 points = segments * a.segment, columns = (points + TURN - 1) * S + KX;
	i32 rows = a.w.n * a.countZ * a.countY, row = blockIdx.z * a.share, end = row + a.share < rows ? row + a.share : rows;
	float sums[TAPS + 1][CH];
	UNROLL for (int k = 0; k <= TAPS; k++) UNROLL for (int i = 0; i < CH; i++) sums[k][i] = 0;
	for (; row < end; row++) {
		i32 y = a.fromY + row % a.countY, z = a.fromZ + row / a.countY % a.countZ, n = row / a.countY / a.countZ;
		i32 wideZ = a.clampWide ? nearest(z, a.w.d) : z, wideY = a.clampWide ? nearest(y, a.w.h) : y;
		const u16 *wide = (const u16 *)a.wide.at + cell(a.wide, a.w.w, (n * a.w.d + wideZ) * a.w.h + wideY, a.fromX) + c;
		if (t < ROWS) {
			i32 tz = z * a.sz - a.loZ + plane + t / KY, ty = y * S - a.loY + t % KY;
			if (a.clampThin) tz = nearest(tz, a.t.d), ty = nearest(ty, a.t.h);
			bool in = tz >= 0 && tz < a.t.d && ty >= 0 && ty < a.t.h;
			starts[t] = in ? (i32)cell(a.thin, a.t.w, (n * a.t.d + tz) * a.t.h + ty, 0) : -1;
		}
		NOUNROLL for (i32 x0 = 0; x0 < a.countX; x0 += points) {
			barrier();
			i32 first = (a.fromX + x0) * S - a.loX;
			NOUNROLL for (i32 i = t; i < columns; i += WARPS * 32) {
				i32 x = first + i;
				bool there = x >= a.least && x < a.most;
				float v[ROWS];
				UNROLL for (int r = 0; r < ROWS; r++) {
					i32 start = starts[r];
					v[r] = there && start >= 0 ? ((const float *)a.thin.at)[start + x] : 0;
				}
				UNROLL for (int r = 0; r < ROWS; r++) kept[i * PITCH + r] = v[r];
			}
			barrier();
			i32 at = segment * a.segment, left = a.countX - x0 - at;
			left = left < a.segment ? left : a.segment;
			if (c >= a.w.c) left = 0;
			const u16 *p = wide + (i64)(x0 + at) * a.wide.pitch;
			const float *from = kept + at * S * PITCH;
			float window[KX][ROWS];
			u32 next[TURN][CH / 2];
			auto load = [&](i32 j) {
				UNROLL for (int u = 0; u < TURN; u++) {
					UNROLL for (int i = 0; i < CH / 2; i++) next[u][i] = 0;
					if (j + u >= left) continue;
					const u32 *q = (const u32 *)(p + (j + u) * a.wide.pitch);
					UNROLL for (int i = 0; i < CH / 2; i++) next[u][i] = q[i];
				}
			};
			UNROLL for (int k = 0; k < KX - S; k++) column<ROWS>(window[k], from + k * PITCH);
			load(0);
			NOUNROLL for (i32 j = 0; j < left; j += TURN) {
				u32 raw[TURN][CH / 2];
				UNROLL for (int u = 0; u < TURN; u++) UNROLL for (int i = 0; i < CH / 2; i++) raw[u][i] = next[u][i];
				load(j + TURN);
				UNROLL for (int u = 0; u < TURN; u++) {
					UNROLL for (int k = KX - S; k < KX; k++) column<ROWS>(window[(u * S + k) % KX], from + (u * S + k) * PITCH);
					float v[CH];
					UNROLL for (int i = 0; i < CH; i++) v[i] = widen((u16)(raw[u][i / 2] >> i % 2 * 16));
					UNROLL for (int k = 0; k < TAPS; k++) {
						UNROLL for (int i = 0; i < CH; i++) sums[k][i] += window[(u * S + k % KX) % KX][k / KX] * v[i];
					}
					UNROLL for (int i = 0; i < CH; i++) sums[TAPS][i] += v[i];
				}
				from += TURN * S * PITCH;
			}
		}
	}
	// Segments are added up in order, eight of each thread's sums at a time.
	i32 taps = split * TAPS, mine = t % 32, channel = (blockIdx.x / split * a.lanes + mine) * CH;
	UNROLL for (int base = 0; base < PARTIAL; base += WARPS) {
		barrier();
		UNROLL for (int i = 0; i < WARPS; i++) {
			int f = base + i;
			if (f < PARTIAL) kept[i * WARPS * 32 + t] = sums[f / CH][f % CH];
		}
		barrier();
		i32 f = base + t / 32, k = f / CH, to = channel + f % CH, tap = plane * TAPS + k;
		if (f >= PARTIAL || mine >= a.lanes || to >= a.w.c || k == TAPS && plane > 0) continue;
		float s = 0;
		for (i32 i = mine; i < WARPS * 32; i += a.lanes) s += kept[t / 32 * WARPS * 32 + i];
		((float *)a.out)[((u64)blockIdx.z * (taps + 1) + (k == TAPS ? taps : a.flip ? taps - 1 - tap : tap)) * a.w.c + to] = s;
	}
}

KERNEL(weightThin3, ThinWeightArgs, 256, 2) { weightThin<3, 3, 3, 1, 2>(a); }
KERNEL(weightThin4, ThinWeightArgs, 256, 2) { weightThin<1, 4, 4, 1, 4>(a); }
KERNEL(weightThin4by2, ThinWeightArgs, 256, 2) { weightThin<1, 4, 4, 2, 4>(a); }

struct ThinConvArgs {
	View thin, wide;
	Dims s, t; // of thin and wide
	u64 weights, bias; // bias may be 0
	i32 firstZ, firstY, firstX, countZ, countY, countX; // the wide operand's voxels
	i32 at; // stored voxel of the thin operand that the first of them meets at the first tap
	i32 padded, tiled, flip; // of packed weights: see ConvArgs
	i32 lanes, segment;
};

// fillHalo copies the two channels at p, which this thread wrote, to the halo in one direction.
DEVICE void fillHalo(const View &t, u16 *p, i32 step) {
	u32 v = t.pad == REPLICATE ? *(u32 *)p : 0;
	NOUNROLL for (i32 h = 1; h <= t.halo; h++) *(u32 *)(p + (i64)h * step * t.pitch) = v;
}

// convThin3 computes a box of targets that meet all taps of a k3 convolution, in convDirect's order of sums.
KERNEL(convThin3, ThinConvArgs, 256, 2) {
	typedef Window<3, 3, 3, 1> W;
	__shared__ Quad memory[W::COLUMNS * W::PITCH / 4];
	__shared__ i32 starts[10]; // stored voxels: of the window's rows, and the wide operand's row
	float *kept = (float *)memory;
	i32 t = threadIdx.x, lane = t % a.lanes, segment = t / a.lanes, c = (blockIdx.y * a.lanes + lane) * 2;
	i32 points = WARPS * 32 / a.lanes * a.segment, columns = points + 4, rows = a.s.n * a.countZ * a.countY, wide = a.s.w + 2 * a.thin.halo;
	float w[9][3][2], bias[2];
	UNROLL for (int i = 0; i < 2; i++) {
		bool in = c + i < a.t.c;
		bias[i] = in && a.bias ? ((const float *)a.bias)[c + i] : 0;
		UNROLL for (int k = 0; k < 27; k++) {
			i32 tap = a.flip ? 26 - k : k;
			float v = 0;
			if (in && a.tiled) v = widen(((const u16 *)a.weights)[(tap * a.padded + c + i) * 32]);
			else if (in) v = ((const float *)a.weights)[tap * a.t.c + c + i];
			w[k / 3][k % 3][i] = v;
		}
	}
	for (i32 row = blockIdx.x; row < rows; row += gridDim.x) {
		i32 y = row % a.countY, z = row / a.countY % a.countZ, n = row / a.countY / a.countZ;
		if (t < 9) starts[t] = ((n * a.s.d + z + t / 3) * a.s.h + y + t % 3) * wide + a.at;
		if (t == 9) starts[t] = ((n * a.t.d + a.firstZ + z) * a.t.h + a.firstY + y) * (a.t.w + 2 * a.wide.halo) + a.wide.halo;
		NOUNROLL for (i32 x0 = 0; x0 < a.countX; x0 += points) {
			barrier();
			NOUNROLL for (i32 i = t; i < columns; i += WARPS * 32) {
				float v[9];
				UNROLL for (int r = 0; r < 9; r++) v[r] = x0 + i < a.countX + 2 ? ((const float *)a.thin.at)[starts[r] + x0 + i] : 0;
				UNROLL for (int r = 0; r < 9; r++) kept[i * W::PITCH + r] = v[r];
			}
			i32 start = starts[9]; // it changes behind the barrier
			barrier();
			i32 at = segment * a.segment, left = a.countX - x0 - at;
			left = left < a.segment ? left : a.segment;
			if (c >= a.t.c) left = 0;
			const float *from = kept + at * W::PITCH;
			i32 x = a.firstX + x0 + at;
			u16 *to = (u16 *)a.wide.at + (i64)start * a.wide.pitch + c, *p = to + (i64)x * a.wide.pitch;
			float window[3][9];
			UNROLL for (int k = 0; k < 2; k++) column<9>(window[k], from + k * W::PITCH);
			NOUNROLL for (i32 j = 0; j < left; j += 3) {
				UNROLL for (int u = 0; u < 3; u++) {
					column<9>(window[(u + 2) % 3], from + (u + 2) * W::PITCH);
					float v[2] = {0, 0};
					UNROLL for (int k = 0; k < 27; k++) {
						UNROLL for (int i = 0; i < 2; i++) v[i] += window[(u + k % 3) % 3][k / 3] * w[k / 3][k % 3][i];
					}
					if (j + u < left) *(u32 *)(p + u * a.wide.pitch) = narrow2(v[0] + bias[0], v[1] + bias[1]);
				}
				from += 3 * W::PITCH;
				p += 3 * a.wide.pitch;
			}
			if (a.wide.halo == 0 || left <= 0) continue;
			if (x == 0) fillHalo(a.wide, to, -1);
			if (x + left == a.t.w) fillHalo(a.wide, to + (i64)(a.t.w - 1) * a.wide.pitch, 1);
		}
	}
}
