// Gradients of convolutions' weights for Hopper: weight.cu's tiles, with its own matrix instructions. The shifted operand comes from
// registers, where a shift by any number of points is one, the straight one from shared memory.
#include "weight.h"

enum { AHEAD = 4 }; // stages under way

// weightTile computes KY × KX taps of 64 rows × TN columns, four warps the taps of one shift along x. While the products of a stage are
// under way, the next begins: so there is a stage more than a block reads and awaits.
template <int KY, int KX, int TN> DEVICE void weightTile(const WeightArgs &a) {
	constexpr int TM = 64, STAGES = AHEAD + KY + 1;
	typedef Copier<KY, KX, TM, TN, KX * 128> Copy;
	constexpr int ZEROS = STAGES * Copy::STRAIGHT, SHIFTED = ZEROS + Copy::STRAIGHT; // behind the straight operand's rows is one of zeros
	SHARED(u8, memory);
	i32 t = threadIdx.x, lane = t % 32, shift = shfl(t / 128, 0), m0 = blockIdx.x * TM, n0 = blockIdx.y * TN;
	Shared ring = sharedAddress(memory);
	i32 first = blockIdx.z * a.share, row = 0, slot = 0, to = 0; // row: of the strip
	Walk at = walkOf(a, first, least(a.steps - first, a.share));
	Copy copier(a, at, m0, n0);
	auto load = [&] {
		if (copier.copy(a, ring + SHIFTED + to * Copy::SHIFTED, ring + to * Copy::STRAIGHT) && ++to == STAGES) to = 0;
		copyCommit();
	};

	float sums[KY][TN / 2];
	UNROLL for (int y = 0; y < KY; y++) UNROLL for (int i = 0; i < TN / 2; i++) sums[y][i] = 0;
	bool adds = a.bias && blockIdx.x == 0;
	Columns<TN> bias = {{0, 0}};
	u32 x[STRIP / 16][4];
	i32 point = lane % 8 + lane / 16 * 8 + shift, chunk = t / 32 % 4 * 2 + lane / 8 % 2, xAt = SHIFTED + point * TM * 2 + swizzle<TM / 8>(point, chunk) * 16;
	for (i32 i = t; i < Copy::STRAIGHT / 16; i += KX * 128) copyAsync(ring + ZEROS + i * 16, (const void *)a.straight.at, 0);
	NOUNROLL for (i32 s = 0; s < AHEAD; s++) load();
	while (at.left > 0) {
		copyWait<AHEAD - 1>();
		fenceShared();
		barrier(); // the stage has come, and what was asked for two stages ago has been multiplied
		u64 straight[KY];
		UNROLL for (int y = 0; y < KY; y++) {
			i32 s = slot < y ? slot - y + STAGES : slot - y;
			straight[y] = describe(sharedOffset(ring) + (row < y || row - y >= at.rows ? STAGES : s) * Copy::STRAIGHT, STRIP * 128, 1024, SPREAD128);
		}
		UNROLL for (int k = 0; k < STRIP / 16; k++) {
			waitProducts<1>();
			loadTransposed(x[k], ring + slot * Copy::SHIFTED + xAt + k * 16 * TM * 2);
			fenceSums();
			UNROLL for (int y = 0; y < KY; y++) multiplyAsync<true>(sums[y], x[k], straight[y] + k * 2048 / 16);
			commitProducts();
		}
		load();
		if (adds && row < at.rows) bias.add(memory + slot * Copy::STRAIGHT);
		if (++slot == STAGES) slot = 0;
		if (++row == at.rows + KY - 1) row = 0, goOn(a, at);
	}
	waitProducts<0>();
	copyWait<0>();
	u64 all = gridDim.x * TM, columns = gridDim.y * TN;
	if (adds) bias.leave((float *)memory, (float *)a.bias + blockIdx.z * columns + n0);
	UNROLL for (int y = 0; y < KY; y++) {
		settled(sums[y]);
		float *out = (float *)a.out + ((blockIdx.z * (KY * KX) + y * KX + shift) * all + m0 + t / 32 % 4 * 16 + lane / 4) * columns + n0 + lane % 4 * 2;
		UNROLL for (int j = 0; j < TN / 8; j++) {
			UNROLL for (int half = 0; half < 2; half++) {
				float *p = out + half * 8 * columns + j * 8;
				p[0] = sums[y][j * 4 + half * 2], p[1] = sums[y][j * 4 + half * 2 + 1];
			}
		}
	}
}

KERNEL(weight9x64Hopper, WeightArgs, 384, 1) { weightTile<3, 3, 64>(a); }
KERNEL(weight4x128Hopper, WeightArgs, 256, 1) { weightTile<2, 2, 128>(a); }
