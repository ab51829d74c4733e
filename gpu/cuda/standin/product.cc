// Hopper's matrix products: four warps ask for them, and they read shared memory and add to registers while the kernel goes on. "Parallel
// Thread Execution ISA", asynchronous warpgroup-level matrix instructions; layouts in shared memory as CUTLASS's mma_traits_sm90_gmma.hpp
// has them.
#include "check.h"
#include "decode.h"
#include <cstring>
#pragma GCC target("avx2,fma")

namespace ptx {
namespace {

// Matrix is where a descriptor says that an operand lies. Its outer axis is the rows of a, the columns of b.
struct Matrix {
	u32 at, leading, stride;
	int swizzle; // log2 of the 16-byte pieces of a row that change places
	bool across; // pieces lie along the outer axis, not along the 16

	Matrix(u64 d, bool lies) : at((u32)(d & 0x3fff) << 4), leading((u32)(d >> 16 & 0x3fff) << 4), stride((u32)(d >> 32 & 0x3fff) << 4), across(lies) {
		static const int swizzles[4] = {0, 3, 2, 1};
		swizzle = swizzles[d >> 62];
	}

	// piece gives the address of the eight values with outer index i (of the first, where pieces lie across) and index k along the 16.
	u32 piece(u32 i, u32 k) const {
		u32 wide = 1u << swizzle, a = at;
		if (!across) a += i % 8 * 16 * wide + i / 8 * stride + k / 8 * (swizzle ? 16 : leading);
		else if (swizzle) a += i / 8 % wide * 16 + i / 8 / wide * leading + k % 8 * 16 * wide + k / 8 * stride;
		else a += i / 8 * stride + k % 8 * 16 + k / 8 * leading;
		return a ^ ((a >> 7 & (wide - 1)) << 4);
	}
};

// eachPiece calls f(address, outer index, k) for the pieces of outer indices from first to last.
template <class F> void eachPiece(const Matrix &m, u32 first, u32 last, F f) {
	for (u32 i = first; i < last; i += m.across ? 8 : 1) {
		for (u32 k = 0; k < 16; k += m.across ? 1 : 8) f(m.piece(i, k), i, k);
	}
}

float widened(u16 h) {
	u32 u = (u32)h << 16;
	float f;
	memcpy(&f, &u, 4);
	return f;
}

u32 columnsOf(const Op &op) { return op.target & 0xffff; }
bool inRegisters(const Op &op) { return op.target >> 18 & 1; } // a, the four behind the sums
Matrix left(const Product &p) { return Matrix(p.a, p.op->target >> 16 & 1); }
Matrix right(const Product &p) { return Matrix(p.b, p.op->target >> 17 & 1); }

// touch notes this warp's share of what a product reads: its rows of a, a quarter of b.
void touch(Warp &w, const Product &p, Touch how) {
	u32 part = w.number % 4, n = columnsOf(*p.op);
	auto one = [&](u32 at, u32, u32) { reach(w, *p.op, 0, at, Space::SHARED, 16, how, 16); };
	if (!inRegisters(*p.op)) eachPiece(left(p), part * 16, part * 16 + 16, one);
	eachPiece(right(p), part * n / 32 * 8, (part + 1) * n / 32 * 8, one);
}

// perform does a product: of row i and column j of the warp's 16 × n, lane i%8*4 + j%8/2 has sum j/8*4 + i/8*2 + j%2.
void perform(Warp &w, const Product &p) {
	const u32 *d = &w.kernel->lists[p.op->list], n = columnsOf(*p.op), first = w.number % 4 * 16;
	const char *shared = w.block->shared.data() - sharedBase;
	static float a[16][16], b[16][256];
	auto spread = [&](const Matrix &m, u32 from, u32 to, auto put) {
		eachPiece(m, from, to, [&](u32 at, u32 i, u32 k) {
			u16 v[8];
			memcpy(v, shared + at, 16);
			for (u32 e = 0; e < 8; e++) {
				if (m.across) put(i + e, k, widened(v[e]));
				else put(i, k + e, widened(v[e]));
			}
		});
	};
	if (inRegisters(*p.op)) {
		for (u32 q = 0; q < 4; q++) {
			for (u32 l = 0; l < 32; l++) {
				u32 v = w.lanes<u32>(d[n / 2 + q])[l];
				if (v != p.own[q * 32 + l]) w.fail(l, "racecheck", "a register that a product reads has been written before the wait");
				float *to = &a[l / 4 + q % 2 * 8][l % 4 * 2 + q / 2 * 8];
				to[0] = widened((u16)v), to[1] = widened((u16)(v >> 16));
			}
		}
	} else {
		spread(left(p), first, first + 16, [&](u32 i, u32 k, float v) { a[i - first][k] = v; });
	}
	spread(right(p), 0, n, [&](u32 j, u32 k, float v) { b[k][j] = v; });
	for (u32 i = 0; i < 16; i++) {
		float s[256] = {};
		for (u32 k = 0; k < 16; k++) {
			for (u32 j = 0; j < n; j++) s[j] += a[i][k] * b[k][j];
		}
		for (u32 j = 0; j < n; j++) {
			float &sum = w.lanes<float>(d[j / 8 * 4 + i / 8 * 2 + j % 2])[i % 8 * 4 + j % 8 / 2];
			sum = p.add ? sum + s[j] : s[j];
		}
	}
}

void ask(Warp &w, const Op &op, u32 active) {
	bool own = inRegisters(op);
	const u64 *b = w.lanes<u64>(op.b), *a = own ? b : w.lanes<u64>(op.a);
	u32 adds = *w.lanes<u32>(op.c);
	if (active != ~0u) w.fail(0, "synccheck", "a product of less than a warp");
	if (!w.fenced) w.fail(0, "racecheck", "a product without wgmma.fence in front of it");
	for (u32 l = 1; l < 32; l++) {
		if (a[l] != a[0] || b[l] != b[0]) w.fail(l, "synccheck", "a product whose lanes have different descriptors");
	}
	Product p{&op, a[0], b[0], adds != 0, {}};
	for (u64 d : {p.a, p.b}) {
		Matrix m(d, false);
		u32 phase = (1u << m.swizzle) - 1; // base offsets, for matrices that begin inside the pattern, aren't in use here
		if (m.at >> 7 & phase || d >> 49 & 7) w.fail(0, "memcheck", "a descriptor that begins inside its swizzle's pattern", Failure::ALIGNMENT);
	}
	touch(w, p, Touch::FETCH);
	const u32 *d = &w.kernel->lists[op.list];
	for (u32 q = 0; own && q < 4; q++) {
		const u32 *v = w.lanes<u32>(d[columnsOf(op) / 2 + q]);
		p.own.insert(p.own.end(), v, v + 32);
	}
	for (u32 i = 0; i < columnsOf(op) / 2; i++) {
		if (p.add && !w.busy[d[i]] && ~w.known[d[i]]) w.fail(0, "initcheck", "a product is added to a register that has no value");
		w.busy[d[i]] = 1, w.known[d[i]] = 0; // who reads it, finds no value
	}
	w.products.push_back(p);
	w.asked = (w.asked ^ p.a ^ w.pc) * 0x9e3779b97f4a7c15ull + p.b;
}

void commit(Warp &w, const Op &, u32) { w.productBatches.push_back(w.products.size()); }

void waitGroup(Warp &w, const Op &op, u32) {
	std::vector<size_t> &batches = w.productBatches;
	if (batches.size() > op.target) {
		size_t done = batches.size() - op.target, end = batches[done - 1];
		for (size_t i = 0; i < end; i++) {
			perform(w, w.products[i]);
			touch(w, w.products[i], Touch::FETCHED);
			const u32 *d = &w.kernel->lists[w.products[i].op->list];
			for (u32 k = 0; k < columnsOf(*w.products[i].op) / 2; k++) w.busy[d[k]] = 0, w.known[d[k]] = ~0u;
		}
		w.products.erase(w.products.begin(), w.products.begin() + (long)end);
		batches.erase(batches.begin(), batches.begin() + (long)done);
		for (size_t &b : batches) b -= end;
		for (const Product &p : w.products) { // sums that later products add to are still busy
			const u32 *d = &w.kernel->lists[p.op->list];
			for (u32 k = 0; k < columnsOf(*p.op) / 2; k++) w.busy[d[k]] = 1, w.known[d[k]] = 0;
		}
	}
	if (w.products.empty()) w.fenced = false;
}

void fenceSums(Warp &w, const Op &, u32) { w.fenced = true; }

void fenceShared(Warp &w, const Op &, u32 active) {
	u64 now = stampOf(w, 0);
	eachLane(active, [&](u32 l) {
		for (Cell *c : w.unfenced[l]) {
			if (threadOf(c->write) == (threadOf(now) | l) && serialOf(c->write) == serialOf(now)) c->write &= ~(u64)UNFENCED;
		}
		w.unfenced[l].clear();
	});
}
} // namespace

bool decodeProduct(Decoder &d, Op &op) {
	const std::string &name = d.at->name, mma = "wgmma.mma_async.sync.aligned.m64n", types = "k16.f32.bf16.bf16";
	if (name == "fence.proxy.async.shared::cta") {
		op.act = fenceShared;
		return true;
	}
	if (name.compare(0, 6, "wgmma.") != 0) return false;
	op.kind = Kind::COLLECTIVE;
	d.k.products = true;
	if (name == "wgmma.fence.sync.aligned") {
		op.act = fenceSums;
	} else if (name == "wgmma.commit_group.sync.aligned") {
		op.act = commit;
	} else if (name == "wgmma.wait_group.sync.aligned") {
		if (d.operand(0).kind != Operand::NUMBER) d.fail(name + " of anything but a number");
		op.act = waitGroup, op.target = (u32)d.operand(0).bits;
	} else if (name.compare(0, mma.size(), mma) == 0 && name.size() > mma.size() + types.size() && name.substr(name.size() - types.size()) == types) {
		u32 n = (u32)atoi(name.c_str() + mma.size());
		bool own = d.at->operands.size() == 7; // a has no descriptor, and is never turned
		if ((d.at->operands.size() != 8 && !own) || n % 32 || n < 32 || n > 256) d.fail(name + " of an odd form");
		if (d.operand(0).kind != Operand::LIST || d.operand(0).list.size() != n / 2) d.fail(name + " has " + std::to_string(n / 2) + " sums");
		op.act = ask;
		std::vector<u32> sums;
		for (const Operand &o : d.operand(0).list) {
			auto r = d.registers.find(o.name);
			if (r == d.registers.end() || r->second.bytes != 4) d.fail(name + ": sums are registers of 32 bits");
			sums.push_back(r->second.unit);
		}
		if (own) {
			const Operand &a = d.operand(1);
			if (a.kind != Operand::LIST || a.list.size() != 4) d.fail(name + ": a is a descriptor or four registers");
			for (const Operand &o : a.list) sums.push_back(d.read(op, o, 4));
		} else {
			op.a = d.read(op, d.operand(1), 8);
		}
		op.list = d.listed(sums);
		op.b = d.read(op, d.operand(2), 8), op.c = d.read(op, d.operand(3), 0);
		u32 across[2] = {};
		for (size_t i = 4; i < d.at->operands.size(); i++) {
			const Operand &o = d.operand(i);
			if (o.kind != Operand::NUMBER || (i < 6 ? o.bits != 1 : o.bits > 1)) d.fail(name + " of an odd form");
			if (i >= 6) across[own ? 1 : i - 6] = (u32)o.bits;
		}
		op.target = n | across[0] << 16 | across[1] << 17 | (u32)own << 18;
	} else {
		op.kind = Kind::PLAIN;
		return false;
	}
	return true;
}

} // namespace ptx
