// Convolutions for Hopper: conv.cu's tiles, with its own matrix instructions. They take both operands from shared memory, 64 × 16 of weights
// and 16 × 256 of sources, so sums lie the other way round: rows are target channels, columns positions.
#include "conv.h"

// multiplyStages goes through all stages, of LENGTH taps: 64 channels from channel on × the positions of eight rows from eights on, PARTS times
// N of them. The next 16 source channels lie 32 bytes further, the next tap's weights TN rows, its sources eight. Of the ring one stage is
// multiplied, the one in front of it may be yet, and the others are coming.
template <int TN, int LENGTH, int RING, int PARTS, int N, class Ring> DEVICE void multiplyStages(Ring &stages, i32 channel, i32 eights, float (&sums)[PARTS][N / 2]) {
	for (i32 step = 0; step < stages.steps; step++) {
		copyWait<RING - 3>();
		fenceShared();
		barrier(); // the stage has come, and that in front of the last has been multiplied
		u32 at = sharedOffset(stages.ring) + step % RING * Ring::STAGE;
		u64 weights = describe(at + Ring::AHEAD + channel * 64, 16, 512, SPREAD64), sources = describe(at + eights * 512, 16, 512, SPREAD64);
		fenceSums();
		UNROLL for (int tap = 0; tap < LENGTH; tap++) {
			UNROLL for (int k = 0; k < DEPTH / 16; k++) {
				UNROLL for (int part = 0; part < PARTS; part++) {
					multiplyAsync(sums[part], weights + (tap * TN * 64 + k * 32) / 16, sources + ((tap * 8 + part * N) * 64 + k * 32) / 16);
				}
			}
		}
		commitProducts();
		stages.load(step + RING - 2);
		waitProducts<1>();
	}
	waitProducts<0>();
	UNROLL for (int part = 0; part < PARTS; part++) settled(sums[part]);
}

// convTile computes TM targets × TN channels, each group of four warps 64 channels × PARTS times N positions of them. Rows of sources are
// woven: the operand of a tap begins at a multiple of eight rows, as descriptors want it. See Stages.
template <int TM, int TN, int RING, int PARTS> DEVICE void convTile(const ConvArgs &a) {
	constexpr int N = TM * TN / 128 / PARTS;
	typedef Stages<TM, TN, RING, true> Ring;
	SHARED(u8, memory);
	i32 t = threadIdx.x, lane = t % 32, n0 = blockIdx.y * TN;
	const Box *box = boxOf(a, blockIdx.x);
	i32 m0 = (blockIdx.x - box->tile) * TM;
	i32 group = shfl(t / 128, 0), channel = TN == 128 ? group * 64 : 0, eights = TN == 128 ? 0 : group * (TM / 16); // this group's channels, and its first eight rows
	Ring stages(a, box, sharedAddress(memory), m0, n0);
	float sums[PARTS][N / 2];
	UNROLL for (int part = 0; part < PARTS; part++) UNROLL for (int i = 0; i < N / 2; i++) sums[part][i] = 0;
	UNROLL for (int i = 0; i < RING - 2; i++) stages.load(i);
	fetchAdd<TM, TN>(a, box, m0, n0);
	if (stages.length == 3) multiplyStages<TN, 3, RING, PARTS, N>(stages, channel, eights, sums);
	else if (stages.length == 2) multiplyStages<TN, 2, RING, PARTS, N>(stages, channel, eights, sums);
	else multiplyStages<TN, 1, RING, PARTS, N>(stages, channel, eights, sums);

	// The sums leave turned so that a warp meets no bank twice.
	Way<TM, TN> way(memory);
	barrier();
	way.targets(a, box, m0, [](i32 row) { return row; });
	UNROLL for (int part = 0; part < PARTS; part++) {
		UNROLL for (int i = 0; i < N / 2; i++) {
			i32 m = (lane % 4 * 2 + i % 2) * (TM / 8) + eights + part * (N / 8) + i / 4, c = channel + t / 32 % 4 * 16 + i / 2 % 2 * 8 + lane / 4;
			way.tile[m * TN + (c + lane % 4 * 8) % TN] = sums[part][i];
		}
	}
	barrier();
	way.leave(a, n0, [](i32 row) { return row / (TM / 4) * 8; });
}

// The larger of two with as many channels asks the L2 cache for less, the smaller has the last round of blocks end sooner.
KERNEL(conv256x128Hopper, ConvArgs, THREADS, 1) { convTile<256, 128, 4, 1>(a); }
KERNEL(conv384x128Hopper, ConvArgs, THREADS, 1) { convTile<384, 128, 4, 2>(a); }
KERNEL(conv512x64Hopper, ConvArgs, THREADS, 1) { convTile<512, 64, 4, 1>(a); }
KERNEL(conv768x64Hopper, ConvArgs, THREADS, 1) { convTile<768, 64, 3, 2>(a); }
