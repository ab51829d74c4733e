// The part of CUDA C++ that the kernels use, for clang without a CUDA toolkit. The stand-in driver has an emu.h of the same
// names that runs them on the CPU.
#pragma once
#ifdef FLOWRUN_EMULATION
#include "emu.h"
#else
#define __device__ __attribute__((device))
#define __global__ __attribute__((global))
#define __shared__ __attribute__((shared))
#define __launch_bounds__(...) __attribute__((launch_bounds(__VA_ARGS__)))
#include <__clang_cuda_builtin_vars.h>
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;
#define DEVICE static __device__ __inline__ __attribute__((always_inline))
#define DEVICE_MEMBER __device__ __inline__ __attribute__((always_inline))
// A kernel has one parameter, a struct that Go mirrors field by field.
#define KERNEL(name, Args, ...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(const Args a)
#define SHARED(T, name) extern __shared__ __attribute__((aligned(1024))) T name[]
#define UNROLL _Pragma("unroll")
#define NOUNROLL _Pragma("unroll 1")

DEVICE void barrier() { __syncthreads(); }
DEVICE float shflXor(float v, int mask) { return __nvvm_shfl_sync_bfly_f32(~0u, v, mask, 31); }
DEVICE int shfl(int v, int lane) { return __nvvm_shfl_sync_idx_i32(~0u, v, lane, 31); }
DEVICE u32 ballot(bool p) { return __nvvm_vote_ballot_sync(~0u, p); }
DEVICE int firstBit(u32 v) { return __builtin_ctz(v); }

// bfloat16, as its bits
DEVICE float widen(u16 h) { return __builtin_bit_cast(float, (u32)h << 16); }
DEVICE u16 narrow(float f) {
	u16 r;
	asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(f));
	return r;
}
// narrow2 has lo in the lower half: one instruction, where two of narrow go through the slow units.
DEVICE u32 narrow2(float lo, float hi) {
	u32 r;
	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
	return r;
}
DEVICE u32 bitsOf(float f) { return __builtin_bit_cast(u32, f); }
DEVICE float exp2Fast(float x) { return __nvvm_ex2_approx_ftz_f(x); }
DEVICE float log2Fast(float x) { return __nvvm_lg2_approx_f(x); }
DEVICE float reciprocal(float x) { return __nvvm_rcp_approx_ftz_f(x); }
DEVICE float root(float x) { return __nvvm_sqrt_rn_f(x); }
DEVICE double root(double x) { return __nvvm_sqrt_rn_d(x); }
DEVICE float absolute(float x) { return __builtin_fabsf(x); }
// count adds 1 in shared memory: whole numbers, so the order of threads doesn't matter.
DEVICE void count(i32 *p) { __nvvm_atom_add_gen_i(p, 1); }

// An address in shared memory.
typedef u32 Shared;
DEVICE Shared sharedAddress(const void *p) { return (u32)(u64)(__attribute__((address_space(3))) const void *)p; }

// Asynchronous copies from global to shared memory: n of 16 bytes, the rest zeros.
DEVICE void copyAsync(Shared to, const void *from, int n) {
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(n) : "memory");
}
DEVICE void copyCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void copyWait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// prefetch has the 128 bytes around an address come to the L2 cache.
DEVICE void prefetch(const void *at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

// Four 8×8 matrices of 16 bits: lane l gives the address of row l%8 of matrix l/8 and gets of matrix m, in r[m], row l/4,
// columns 2*(l%4) and the next; transposed, column l/4 and rows.
DEVICE void loadMatrices(u32 (&r)[4], Shared at) {
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
		: "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
DEVICE void loadTransposed(u32 (&r)[4], Shared at) {
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
		: "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

// c += a·b of M × N fragments, 16 × 8 each, over 16: mma.m16n8k16 of bfloat16 with float32 sums.
template <int M, int N> DEVICE void multiply(float (&c)[M][N][4], const u32 (&a)[M][4], const u32 (&b)[N][2]) {
	UNROLL for (int i = 0; i < M; i++) {
		UNROLL for (int j = 0; j < N; j++) {
			float(&d)[4] = c[i][j];
			asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
				: "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
				: "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
		}
	}
}

// Hopper's matrix instructions, in what is compiled for sm_90a. They run behind the back of the four warps that ask for them and
// read shared memory otherwise than threads do: what these wrote is fenced first. Between products and their wait nobody touches the sums.
#if __CUDA_ARCH__ == 900
DEVICE void fenceShared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void fenceSums() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void commitProducts() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// waitProducts waits until at most the last N groups are under way.
template <int N> DEVICE void waitProducts() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

#define TEN(p) "%" #p "0,%" #p "1,%" #p "2,%" #p "3,%" #p "4,%" #p "5,%" #p "6,%" #p "7,%" #p "8,%" #p "9,"
#define SUMS32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," TEN(1) TEN(2) "%30,%31"
#define SUMS64 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) "%60,%61,%62,%63"
#define SUMS96 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) TEN(6) TEN(7) TEN(8) "%90,%91,%92,%93,%94,%95"
#define SUMS128 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) TEN(6) TEN(7) TEN(8) TEN(9) TEN(10) TEN(11) \
	"%120,%121,%122,%123,%124,%125,%126,%127"
#define SUM8(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), "+f"(c[i + 7])
#define SUM32(i) SUM8(i), SUM8(i + 8), SUM8(i + 16), SUM8(i + 24)
#define PRODUCT(n, sums, a, b, turned) \
	"{.reg .pred p; setp.eq.u32 p, 0, 0;\n\twgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" sums "}, " a ", " b ", p, 1, 1, " turned ";}"

// c += a·b of 64 rows × N columns over 16, of bfloat16 with float32 sums: a is 64 × 16 and b 16 × N, as descriptors tell. Where ACROSS
// they lie row by row of the 16 (a transposed, b as it is), otherwise column by column. Warp w of the four has rows 16w and on; lane l in
// c[4j + 2h + e] row l/4 + 8h, column 8j + l%4*2 + e.
template <bool ACROSS_A = false, bool ACROSS_B = false> DEVICE void multiplyAsync(float (&c)[32], u64 a, u64 b) {
	asm volatile(PRODUCT(64, SUMS32, "%32", "%33", "%34, %35") : SUM32(0) : "l"(a), "l"(b), "n"((int)ACROSS_A), "n"((int)ACROSS_B));
}
template <bool ACROSS_A = false, bool ACROSS_B = false> DEVICE void multiplyAsync(float (&c)[64], u64 a, u64 b) {
	asm volatile(PRODUCT(128, SUMS64, "%64", "%65", "%66, %67") : SUM32(0), SUM32(32) : "l"(a), "l"(b), "n"((int)ACROSS_A), "n"((int)ACROSS_B));
}
template <bool ACROSS_A = false, bool ACROSS_B = false> DEVICE void multiplyAsync(float (&c)[96], u64 a, u64 b) {
	asm volatile(PRODUCT(192, SUMS96, "%96", "%97", "%98, %99") : SUM32(0), SUM32(32), SUM32(64) : "l"(a), "l"(b), "n"((int)ACROSS_A), "n"((int)ACROSS_B));
}
template <bool ACROSS_A = false, bool ACROSS_B = false> DEVICE void multiplyAsync(float (&c)[128], u64 a, u64 b) {
	asm volatile(PRODUCT(256, SUMS128, "%128", "%129", "%130, %131")
		: SUM32(0), SUM32(32), SUM32(64), SUM32(96) : "l"(a), "l"(b), "n"((int)ACROSS_A), "n"((int)ACROSS_B));
}
// multiplyAsync with a in registers, warp w's as loadMatrices gives its rows: they stay as they are until the wait.
template <bool ACROSS_B = false> DEVICE void multiplyAsync(float (&c)[32], const u32 (&a)[4], u64 b) {
	asm volatile(PRODUCT(64, SUMS32, "{%32,%33,%34,%35}", "%36", "%37")
		: SUM32(0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"((int)ACROSS_B));
}
template <bool ACROSS_B = false> DEVICE void multiplyAsync(float (&c)[64], const u32 (&a)[4], u64 b) {
	asm volatile(PRODUCT(128, SUMS64, "{%64,%65,%66,%67}", "%68", "%69")
		: SUM32(0), SUM32(32) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"((int)ACROSS_B));
}
// settled keeps the compiler from using sums before the wait in front of it.
template <int N> DEVICE void settled(float (&c)[N]) {
	UNROLL for (int i = 0; i < N; i += 8) asm volatile("" : SUM8(i)::"memory");
}
DEVICE u32 sharedOffset(Shared at) { return at; }
#endif
#endif

// SPREAD is how the 16-byte pieces of rows of 32, 64 or 128 bytes lie in shared memory for Hopper's matrix instructions: bits 7 and on of an
// address are added, without carry, to bits 4 and on. PLAIN pieces of eight rows lie next to each other.
enum { PLAIN, SPREAD128, SPREAD64, SPREAD32 };

// describe tells of an operand where it begins and how far apart its pieces are, in bytes. Its outer axis is the rows of a, the columns of
// b; eight of them and eight of the 16 summed over are a piece, of 16 bytes for each of eight.
//   Not ACROSS: stride is from eight to the next eight along the outer axis; leading, if PLAIN, from eight to eight along the other.
//   ACROSS and PLAIN: the same. ACROSS and SPREAD: stride is from eight to eight along the 16, leading from one row's length to the next along the outer axis.
DEVICE u64 describe(u32 at, u32 leading, u32 stride, u64 spread) {
	return (u64)((at & 0x3ffff) >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | spread << 62;
}

// swizzle spreads the 16-byte pieces of rows of CHUNKS of them over the banks.
template <int CHUNKS> DEVICE i32 swizzle(i32 row, i32 chunk) { return chunk ^ (CHUNKS >= 8 ? row & 7 : row / 2 & 3); }

struct alignas(16) Quad { u32 v[4]; };

enum { FLOAT32, BFLOAT16 };
enum { ZERO, REPLICATE };

// A tensor in memory: rows of w + 2*halo voxels of pitch elements. at is 0 where there is none.
struct View {
	u64 at;
	i32 halo, pitch, type, pad;
};

// The extent of tensors.
struct Dims { i32 n, d, h, w, c; };

// How a launch walks voxels in groups of up to eight channels.
// A tensor's voxels are counted in 32 bits.
DEVICE u64 cell(const View &t, i32 w, i32 row, i32 x) { return (u64)((i64)(row * (w + 2 * t.halo) + x + t.halo) * t.pitch); }

DEVICE float load1(const View &t, u64 i) {
	return t.type == BFLOAT16 ? widen(((const u16 *)t.at)[i]) : ((const float *)t.at)[i];
}

DEVICE void store1(const View &t, u64 i, float v) {
	if (t.type == BFLOAT16) ((u16 *)t.at)[i] = narrow(v);
	else ((float *)t.at)[i] = v;
}

// load8 reads n ≤ 8 elements from i on, i a multiple of 8 from the beginning of a voxel; the others are 0.
DEVICE void load8(const View &t, u64 i, i32 n, float (&v)[8]) {
	if (t.type == BFLOAT16) {
		Quad q = *(const Quad *)((const u16 *)t.at + i);
		UNROLL for (int k = 0; k < 8; k++) v[k] = k < n ? widen((u16)(q.v[k / 2] >> (k % 2 * 16))) : 0;
	} else if (t.pitch % 4 == 0 && n == 8) {
		const Quad *p = (const Quad *)((const float *)t.at + i);
		Quad lo = p[0], hi = p[1];
		UNROLL for (int k = 0; k < 4; k++) {
			v[k] = __builtin_bit_cast(float, lo.v[k]);
			v[k + 4] = __builtin_bit_cast(float, hi.v[k]);
		}
	} else {
		UNROLL for (int k = 0; k < 8; k++) v[k] = k < n ? ((const float *)t.at)[i + k] : 0;
	}
}

DEVICE void store8(const View &t, u64 i, i32 n, const float (&v)[8]) {
	if (t.type == BFLOAT16) {
		Quad q;
		UNROLL for (int k = 0; k < 4; k++) q.v[k] = narrow2(v[2 * k], v[2 * k + 1]);
		*(Quad *)((u16 *)t.at + i) = q;
	} else if (t.pitch % 4 == 0 && n == 8) {
		Quad lo, hi;
		UNROLL for (int k = 0; k < 4; k++) {
			lo.v[k] = bitsOf(v[k]);
			hi.v[k] = bitsOf(v[k + 4]);
		}
		Quad *p = (Quad *)((float *)t.at + i);
		p[0] = lo;
		p[1] = hi;
	} else {
		UNROLL for (int k = 0; k < 8; k++) {
			if (k < n) ((float *)t.at)[i + k] = v[k];
		}
	}
}

// put8 writes n ≤ 8 channels of a voxel, and the halo where it is the first or last of its row: nobody else reads or writes
// those, so operands in the same memory are safe.
DEVICE void put8(const View &t, i32 w, i32 row, i32 x, i32 c, i32 n, const float (&v)[8]) {
	u64 i = cell(t, w, row, x) + c;
	store8(t, i, n, v);
	if (t.halo == 0 || (x > 0 && x < w - 1)) return;
	float h[8];
	UNROLL for (int k = 0; k < 8; k++) h[k] = t.pad == REPLICATE ? v[k] : 0;
	NOUNROLL for (i32 k = -t.halo; k <= t.halo; k++) {
		if (k < 0 && x == 0 || k > 0 && x == w - 1) store8(t, i + (i64)k * t.pitch, n, h);
	}
}

DEVICE void get8(const View &t, i32 w, i32 row, i32 x, i32 c, i32 n, float (&v)[8]) { load8(t, cell(t, w, row, x) + c, n, v); }

// Wholes are tensors of bfloat16 whose channels are a multiple of eight: quads read and write them eight at a time, and many can
// be on their way.
DEVICE Quad getQuad(const View &t, i32 w, i32 row, i32 x, i32 c) { return *(const Quad *)((const u16 *)t.at + cell(t, w, row, x) + c); }

DEVICE void unpack(const Quad &q, float (&v)[8]) {
	UNROLL for (int k = 0; k < 8; k++) v[k] = widen((u16)(q.v[k / 2] >> (k % 2 * 16)));
}

// putQuad is put8 of a whole.
DEVICE void putQuad(const View &t, i32 w, i32 row, i32 x, i32 c, const float (&v)[8]) {
	Quad q;
	UNROLL for (int k = 0; k < 4; k++) q.v[k] = narrow2(v[2 * k], v[2 * k + 1]);
	u16 *p = (u16 *)t.at + cell(t, w, row, x) + c;
	*(Quad *)p = q;
	if (t.halo == 0 || (x > 0 && x < w - 1)) return;
	if (t.pad != REPLICATE) q = Quad{{0, 0, 0, 0}};
	NOUNROLL for (i32 k = -t.halo; k <= t.halo; k++) {
		if (k < 0 && x == 0 || k > 0 && x == w - 1) *(Quad *)(p + (i64)k * t.pitch) = q;
	}
}

// Course goes over voxels of rows of w in steps of so many, without a division.
struct Course {
	i32 row, x, rows, columns; // rows and columns of a step

	DEVICE_MEMBER void next(i32 w) {
		row += rows, x += columns;
		if (x >= w) x -= w, row++;
	}
};

DEVICE Course courseOf(i32 voxel, i32 step, i32 w) { return Course{voxel / w, voxel % w, step / w, step % w}; }

// Where thread i of a walk over voxels in groups of eight channels is.
struct Spot { i32 row, x, c, n; };

DEVICE i32 groupsOf(i32 channels) { return (channels + 7) / 8; }

DEVICE Spot spotOf(u32 i, const Dims &d) {
	u32 groups = groupsOf(d.c), voxel = i / groups;
	i32 c = (i32)(i % groups) * 8;
	return Spot{(i32)(voxel / d.w), (i32)(voxel % d.w), c, d.c - c < 8 ? d.c - c : 8};
}

DEVICE u32 spotsOf(const Dims &d) { return (u32)d.n * d.d * d.h * d.w * groupsOf(d.c); }

// The sigmoid. ex2 is good to 2 units in the last place, the reciprocal to 1.
DEVICE float sigmoid(float u) { return reciprocal(1 + exp2Fast(u * -1.4426950408889634f)); }

// sumBlock adds up over the block's threads (a multiple of 32, at most 1024), in a fixed order; every thread gets the sum.
template <class T> DEVICE T sumBlock(T v, T *shared) {
	i32 t = threadIdx.x;
	barrier();
	shared[t] = v;
	barrier();
	for (i32 n = blockDim.x; n > 1;) {
		i32 half = (n + 1) / 2;
		if (t < n - half) shared[t] += shared[t + half];
		n = half;
		barrier();
	}
	return shared[0];
}

// eight is how many of eight channels from c on there are.
DEVICE i32 eight(i32 c, i32 channels) { return c >= channels ? 0 : channels - c < 8 ? channels - c : 8; }

enum { APART = 256 + 4, VOXEL_SUMS = 8 * APART }; // floats of its shared memory

// sumVoxels adds up over the block's voxels what each lane has of eight channels, in order, and writes what there is of out's n channels
// from the block's first on.
DEVICE void sumVoxels(const float (&v)[8], float *shared, i32 lanes, i32 n, float *out) {
	i32 t = threadIdx.x;
	barrier();
	UNROLL for (int k = 0; k < 8; k++) shared[k * APART + t] = v[k];
	barrier();
	if (t >= 8 * lanes || t >= n) return;
	float s = 0;
	for (i32 i = t / 8; i < 256; i += lanes) s += shared[t % 8 * APART + i];
	out[t] = s;
}

// sumLanes adds up over the lanes of a voxel.
DEVICE float sumLanes(float s, i32 lanes) {
	for (i32 m = lanes / 2; m > 0; m /= 2) s += shflXor(s, m);
	return s;
}
