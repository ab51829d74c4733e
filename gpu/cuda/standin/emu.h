// Runs the kernels on the CPU, under the names of kernels/device.h: the threads of a block are fibers, the warps of a block take
// turns in a random order, shuffles and matrix instructions are done by the last lane of a warp to arrive. Asynchronous copies
// happen when they are waited for, and shared memory starts as NaN, so that a wait or a barrier that is missing has a chance to
// be seen.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define __device__
#define __shared__ static
#define __restrict__ __restrict
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;
typedef int32_t i32;
typedef int64_t i64;
#define DEVICE static inline
#define UNROLL
#define NOUNROLL
#define SHARED(T, name) T *name = (T *)emu::block.shared
#define KERNEL(name, Args, ...) \
	static void name(const Args a); \
	extern "C" __attribute__((visibility("default"))) void name##__run(const emu::Shape *s, const void *args) { \
		emu::launch(*s, [](const void *p) { name(*(const Args *)p); }, args); \
	} \
	extern "C" __attribute__((visibility("default"))) size_t name##__size(void) { return sizeof(Args); } \
	static void name(const Args a)

namespace emu {

struct Index { u32 x, y, z; };
struct Shape { Index grid; u32 threads; size_t shared; };
struct Copy { char *to; const char *from; int n; };

struct Fiber {
	void *sp;
	Index id;
	int lane;
	bool done, waiting; // at the block's barrier
	std::vector<Copy> copies;
	std::vector<size_t> groups; // ends in copies
};

struct Warp {
	int size, live, arrived;
	u32 turn;
	void *data[32]; // what lanes bring to a collective
};

struct Block {
	Index id, grid, dim;
	std::vector<Fiber> fibers;
	std::vector<Warp> warps;
	std::vector<char> stacks;
	Fiber *current;
	void *scheduler;
	char *shared;
	void (*kernel)(const void *);
	const void *args;
};
inline Block block;
inline u64 random = 88172645463325252ull;
inline u32 draw(u32 n) {
	random ^= random << 13, random ^= random >> 7, random ^= random << 17;
	return (u32)(random >> 33) % n;
}

inline void fail(const char *why) {
	fprintf(stderr, "stand-in: block %u,%u,%u thread %u: %s\n", block.id.x, block.id.y, block.id.z, block.current->id.x, why);
	abort();
}

extern "C" void emu_switch(void **save, void *to);
#ifdef FLOWRUN_EMULATION_BODY
__asm__(".text\n.globl emu_switch\n.hidden emu_switch\n.type emu_switch,@function\nemu_switch:\n"
	"push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\nmov %rsp,(%rdi)\nmov %rsi,%rsp\n"
	"pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
#endif

inline Warp &warp() { return block.warps[(block.current - block.fibers.data()) / 32]; }

// next hands over to another lane of the warp that can run, or to the scheduler.
inline void next() {
	Fiber *me = block.current;
	Warp &w = warp();
	Fiber *first = me - me->lane;
	for (int k = 1; k < w.size; k++) {
		Fiber *f = first + (me->lane + k) % w.size;
		if (f->done || f->waiting) continue;
		block.current = f;
		emu_switch(&me->sp, f->sp);
		return;
	}
	if (!me->done && !me->waiting) fail("a collective that not every lane reaches");
	emu_switch(&me->sp, block.scheduler);
}

inline void entry() {
	block.kernel(block.args);
	block.current->done = true;
	warp().live--;
	next();
	__builtin_unreachable();
}

// collect runs f once, when the last live lane of the warp has come with its data.
template <class F> inline void collect(void *data, F f) {
	Warp &w = warp();
	u32 turn = w.turn;
	w.data[block.current->lane] = data;
	if (++w.arrived == w.live) {
		f(w);
		w.arrived = 0;
		w.turn++;
		return;
	}
	do next(); while (w.turn == turn);
}

inline void runBlock() {
	Block &b = block;
	const size_t stack = 64 << 10;
	for (size_t i = 0; i < b.fibers.size(); i++) {
		Fiber &f = b.fibers[i];
		void **sp = (void **)(((uintptr_t)&b.stacks[0] + (i + 1) * stack - 64) & ~(uintptr_t)15);
		*--sp = 0;
		*--sp = (void *)entry;
		for (int k = 0; k < 6; k++) *--sp = 0;
		f.sp = sp, f.done = f.waiting = false;
		f.copies.clear(), f.groups.clear();
	}
	int n = (int)b.warps.size();
	for (int i = 0; i < n; i++) {
		int size = (int)b.fibers.size() - i * 32;
		b.warps[i] = Warp{size < 32 ? size : 32, size < 32 ? size : 32, 0, 0, {}};
	}
	std::vector<int> order(n);
	for (int i = 0; i < n; i++) order[i] = i;
	for (bool alive = true; alive;) {
		alive = false;
		for (int i = n - 1; i > 0; i--) std::swap(order[i], order[draw(i + 1)]);
		for (int i : order) {
			Warp &w = b.warps[i];
			Fiber *first = &b.fibers[i * 32];
			if (!w.live) continue;
			int start = (int)draw(w.size);
			for (int k = 0; k < w.size; k++) {
				Fiber *f = first + (start + k) % w.size;
				if (f->done) continue;
				b.current = f;
				emu_switch(&b.scheduler, f->sp);
				break;
			}
			// Back when every lane is done or at the barrier.
			if (w.arrived) fail("a barrier that some lanes reach in a collective");
		}
		for (Fiber &f : b.fibers) f.waiting = false, alive = alive || !f.done;
	}
}

inline void launch(const Shape &s, void (*kernel)(const void *), const void *args) {
	Block &b = block;
	b.grid = s.grid, b.dim = Index{s.threads, 1, 1}, b.kernel = kernel, b.args = args;
	b.fibers.resize(s.threads), b.warps.resize((s.threads + 31) / 32);
	if (b.stacks.size() < s.threads * (size_t)(64 << 10)) b.stacks.resize(s.threads * (size_t)(64 << 10));
	for (u32 i = 0; i < s.threads; i++) b.fibers[i].id = Index{i, 0, 0}, b.fibers[i].lane = i % 32;
	b.shared = (char *)aligned_alloc(1024, (s.shared + 2047) & ~(size_t)1023);
	u64 all = (u64)s.grid.x * s.grid.y * s.grid.z, from = draw(all < 1u << 31 ? (u32)all : 1u << 31);
	for (u64 k = 0; k < all; k++) {
		u64 i = (from + k) % all;
		b.id = Index{(u32)(i % s.grid.x), (u32)(i / s.grid.x % s.grid.y), (u32)(i / s.grid.x / s.grid.y)};
		memset(b.shared, 0xff, s.shared);
		runBlock();
	}
	free(b.shared);
}
} // namespace emu

#define threadIdx (emu::block.current->id)
#define blockIdx (emu::block.id)
#define blockDim (emu::block.dim)
#define gridDim (emu::block.grid)

DEVICE void barrier() {
	emu::block.current->waiting = true;
	emu::next();
}

template <class T> DEVICE T exchange(T v, int from) {
	struct { T v, out; int from; } mine = {v, v, from};
	typedef decltype(mine) Mine;
	emu::collect(&mine, [](emu::Warp &w) {
		for (int i = 0; i < w.size; i++) {
			if (Mine *m = (Mine *)w.data[i]) m->out = w.data[m->from & 31] ? ((Mine *)w.data[m->from & 31])->v : m->v;
		}
	});
	return mine.out;
}

DEVICE float shflXor(float v, int mask) { return exchange(v, emu::block.current->lane ^ mask); }
DEVICE int shfl(int v, int lane) { return exchange(v, lane); }
DEVICE u32 ballot(bool p) {
	struct Vote { bool p; u32 out; } mine = {p, 0};
	emu::collect(&mine, [](emu::Warp &w) {
		u32 all = 0;
		for (int i = 0; i < w.size; i++) all |= (u32)((Vote *)w.data[i])->p << i;
		for (int i = 0; i < w.size; i++) ((Vote *)w.data[i])->out = all;
	});
	return mine.out;
}
DEVICE int firstBit(u32 v) { return __builtin_ctz(v); }

DEVICE u32 bitsOf(float f) {
	u32 u;
	memcpy(&u, &f, 4);
	return u;
}
DEVICE float widen(u16 h) {
	u32 u = (u32)h << 16;
	float f;
	memcpy(&f, &u, 4);
	return f;
}
DEVICE u16 narrow(float f) {
	u32 u = bitsOf(f);
	if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
	return (u16)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
DEVICE u32 narrow2(float lo, float hi) { return narrow(lo) | (u32)narrow(hi) << 16; }
DEVICE float exp2Fast(float x) { return exp2f(x); }
DEVICE float log2Fast(float x) { return log2f(x); }
DEVICE float reciprocal(float x) { return 1 / x; }
DEVICE float root(float x) { return sqrtf(x); }
DEVICE double root(double x) { return sqrt(x); }
DEVICE float absolute(float x) { return fabsf(x); }
DEVICE void count(i32 *p) { ++*p; }

typedef char *Shared;
DEVICE Shared sharedAddress(const void *p) { return (Shared)p; }

DEVICE void copyAsync(Shared to, const void *from, int n) {
	if (((uintptr_t)to | (uintptr_t)from) & 15) emu::fail("an asynchronous copy that isn't aligned to 16 bytes");
	emu::block.current->copies.push_back({to, (const char *)from, n});
}
DEVICE void copyCommit() { emu::block.current->groups.push_back(emu::block.current->copies.size()); }
template <int N> DEVICE void copyWait() {
	emu::Fiber &f = *emu::block.current;
	if (f.groups.size() <= N) return;
	size_t groups = f.groups.size() - N, end = f.groups[groups - 1];
	for (size_t i = 0; i < end; i++) {
		memcpy(f.copies[i].to, f.copies[i].from, f.copies[i].n);
		memset(f.copies[i].to + f.copies[i].n, 0, 16 - f.copies[i].n);
	}
	f.copies.erase(f.copies.begin(), f.copies.begin() + end);
	f.groups.erase(f.groups.begin(), f.groups.begin() + groups);
	for (size_t &g : f.groups) g -= end;
}

template <bool TRANSPOSED> DEVICE void matrices(u32 (&r)[4], Shared at) {
	struct Mine { u32 *r; Shared at; } mine = {r, at};
	emu::collect(&mine, [](emu::Warp &w) {
		for (int m = 0; m < 4; m++) {
			const u16 *row[8];
			for (int k = 0; k < 8; k++) row[k] = (const u16 *)((Mine *)w.data[m * 8 + k])->at;
			for (int l = 0; l < 32; l++) {
				int g = l / 4, c = l % 4 * 2;
				u32 lo = TRANSPOSED ? row[c][g] : row[g][c], hi = TRANSPOSED ? row[c + 1][g] : row[g][c + 1];
				((Mine *)w.data[l])->r[m] = lo | hi << 16;
			}
		}
	});
}
DEVICE void loadMatrices(u32 (&r)[4], Shared at) { matrices<false>(r, at); }
DEVICE void loadTransposed(u32 (&r)[4], Shared at) { matrices<true>(r, at); }

template <int M, int N> DEVICE void multiply(float (&c)[M][N][4], const u32 (&a)[M][4], const u32 (&b)[N][2]) {
	struct Mine { float (*c)[N][4]; const u32 (*a)[4]; const u32 (*b)[2]; } mine = {c, a, b};
	emu::collect(&mine, [](emu::Warp &w) {
		static float x[M * 16][16], y[16][N * 8];
		for (int l = 0; l < 32; l++) {
			Mine *m = (Mine *)w.data[l];
			int g = l / 4, k = l % 4 * 2;
			for (int i = 0; i < M; i++) {
				for (int q = 0; q < 4; q++) {
					u32 v = m->a[i][q];
					float *to = &x[i * 16 + g + q % 2 * 8][k + q / 2 * 8];
					to[0] = widen((u16)v), to[1] = widen((u16)(v >> 16));
				}
			}
			for (int j = 0; j < N; j++) {
				for (int q = 0; q < 2; q++) {
					u32 v = m->b[j][q];
					y[k + q * 8][j * 8 + g] = widen((u16)v), y[k + q * 8 + 1][j * 8 + g] = widen((u16)(v >> 16));
				}
			}
		}
		bool finite[16]; // of rows of y
		for (int k = 0; k < 16; k++) {
			float sum = 0;
			for (int n = 0; n < N * 8; n++) sum += y[k][n] * 0;
			finite[k] = sum == 0;
		}
		for (int r = 0; r < M * 16; r++) {
			float s[N * 8] = {};
			bool any = false; // what fills a tile up is zeros: most, where tensors are small
			for (int k = 0; k < 16; k++) {
				float v = x[r][k];
				if (v == 0 && finite[k]) continue;
				any = true;
				for (int n = 0; n < N * 8; n++) s[n] += v * y[k][n];
			}
			if (!any) continue;
			for (int n = 0; n < N * 8; n++) {
				int l = r % 8 * 4 + n % 8 / 2;
				((Mine *)w.data[l])->c[r / 16][n / 8][r / 8 % 2 * 2 + n % 2] += s[n];
			}
		}
	});
}
