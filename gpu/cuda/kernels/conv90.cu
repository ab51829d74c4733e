// Convolutions for Hopper: conv.cu's tiles, with its own matrix instructions. They take both operands from shared memory, 64 × 16 of weights
// and 16 × 256 of sources, so sums lie the other way round: rows are target channels, columns positions.
#include "conv.h"

// Of the ring, one stage is multiplied, the one in front of it may be yet, and two are coming.
enum { RING = 4 };

// multiplyStages goes through all stages, of LENGTH taps: 64 channels from channel on × the 256 positions of 32 times eight rows from eights
// on. The next 16 source channels lie 32 bytes further, the next tap's weights TN rows, its sources eight.
template <int TN, int LENGTH, class Ring> DEVICE void multiplyStages(Ring &stages, i32 channel, i32 eights, float (&sums)[128]) {
	for (i32 step = 0; step < stages.steps; step++) {
		copyWait<1>();
		fenceShared();
		barrier(); // the stage has come, and that in front of the last has been multiplied
		u32 at = sharedOffset(stages.ring) + step % RING * Ring::STAGE;
		u64 weights = describe(at + Ring::AHEAD + channel * 64, 16, 512, SPREAD64), sources = describe(at + eights * 512, 16, 512, SPREAD64);
		fenceSums();
		UNROLL for (int tap = 0; tap < LENGTH; tap++) {
			UNROLL for (int k = 0; k < DEPTH / 16; k++) multiplyAsync(sums, weights + (tap * TN * 64 + k * 32) / 16, sources + (tap * 8 * 64 + k * 32) / 16);
		}
		commitProducts();
		stages.load(step + 2);
		waitProducts<1>();
	}
	waitProducts<0>();
	settled(sums);
}

// convTile computes TM targets × TN channels, each group of four warps 256 × 64 of them. Rows of sources are woven: the operand of a tap
// begins at a multiple of eight rows, as descriptors want it. See stages.
template <int TM, int TN> DEVICE void convTile(const ConvArgs &a) {
	typedef Stages<TM, TN, RING, true> Ring;
	SHARED(u8, memory);
	i32 t = threadIdx.x, lane = t % 32, n0 = blockIdx.y * TN;
	const Box *box = boxOf(a, blockIdx.x);
	i32 m0 = (blockIdx.x - box->tile) * TM;
	i32 group = shfl(t / 128, 0), channel = TN == 128 ? group * 64 : 0, eights = TN == 128 ? 0 : group * 32; // this group's channels, and its first eight rows
	Ring stages(a, box, sharedAddress(memory), m0, n0);
	float sums[128];
	UNROLL for (int i = 0; i < 128; i++) sums[i] = 0;
	stages.load(0);
	stages.load(1);
	if (stages.length == 3) multiplyStages<TN, 3>(stages, channel, eights, sums);
	else if (stages.length == 2) multiplyStages<TN, 2>(stages, channel, eights, sums);
	else multiplyStages<TN, 1>(stages, channel, eights, sums);

	// The sums go through shared memory, turned so that a warp meets no bank twice.
	float *tile = (float *)memory;
	barrier();
	UNROLL for (int j = 0; j < 32; j++) {
		UNROLL for (int part = 0; part < 4; part++) {
			i32 m = (lane % 4 * 2 + part % 2) * (TM / 8) + eights + j, c = channel + t / 32 % 4 * 16 + part / 2 * 8 + lane / 4;
			tile[m * TN + (c + lane % 4 * 8) % TN] = sums[j * 4 + part];
		}
	}
	barrier();
	leave<TN>(a, box, tile, TM, m0, n0, [](i32 row) { return row; }, [](i32 row) { return row / (TM / 4) * 8; });
}

KERNEL(conv256x128Hopper, ConvArgs, THREADS, 1) { convTile<256, 128>(a); }
KERNEL(conv512x64Hopper, ConvArgs, THREADS, 1) { convTile<512, 64>(a); }
