// What the lanes of a warp do together: shuffles, votes, and products of matrices on tensor cores.
#include "check.h"
#include "decode.h"
#include <cstring>
#pragma GCC target("avx2,fma")

namespace ptx {
namespace {

enum Shuffle : u32 { UP, DOWN, BUTTERFLY, INDEX };

// shfl.sync d, a, b, c: "Parallel Thread Execution ISA", 9.7.8.6.
void shuffle(Warp &w, const Op &op, u32 active) {
	const u32 *a = w.lanes<u32>(op.a), *b = w.lanes<u32>(op.b), *c = w.lanes<u32>(op.c);
	u32 r[32];
	eachLane(active, [&](u32 l) {
		u32 by = b[l] & 31, clamp = c[l] & 31, segment = c[l] >> 8 & 31, from;
		u32 most = (l & segment) | (clamp & ~segment), least = l & segment;
		bool in;
		switch (op.target) {
		case UP: from = l - by, in = (i32)from >= (i32)most; break;
		case DOWN: from = l + by, in = from <= most; break;
		case BUTTERFLY: from = l ^ by, in = from <= most; break;
		default: from = least | (by & ~segment), in = from <= most;
		}
		if (!in) from = l;
		if (!(active >> from & 1)) w.fail(l, "synccheck", "a shuffle from lane " + std::to_string(from) + ", which doesn't take part");
		r[l] = a[from];
	});
	eachLane(active, [&](u32 l) { w.lanes<u32>(op.to)[l] = r[l]; });
}

void ballot(Warp &w, const Op &op, u32 active) {
	u32 p = *w.lanes<u32>(op.a) & active;
	eachLane(active, [&](u32 l) { w.lanes<u32>(op.to)[l] = p; });
}

// ldmatrix.x4: lane l gives the address of row l%8 of matrix l/8 and gets, of each matrix, row l/4, columns 2*(l%4) and the next;
// transposed, column l/4 and rows.
template <bool TRANSPOSED> void loadMatrices(Warp &w, const Op &op, u32) {
	u16 rows[4][8][8];
	for (u32 l = 0; l < 32; l++) {
		u64 at = op.wide ? w.lanes<u64>(op.a)[l] + op.offset : (u32)(w.lanes<u32>(op.a)[l] + op.offset);
		memcpy(rows[l / 8][l % 8], reach(w, op, l, at, Space::SHARED, 16, Touch::READ, 16), 16);
	}
	const u32 *to = &w.kernel->lists[op.list];
	for (u32 m = 0; m < 4; m++) {
		u32 *r = w.lanes<u32>(to[m]);
		for (u32 l = 0; l < 32; l++) {
			u32 i = l / 4, j = l % 4 * 2;
			r[l] = TRANSPOSED ? rows[m][j][i] | (u32)rows[m][j + 1][i] << 16 : rows[m][i][j] | (u32)rows[m][i][j + 1] << 16;
		}
	}
}

float widened(u32 h) {
	u32 u = h << 16;
	float f;
	memcpy(&f, &u, 4);
	return f;
}

// mma.m16n8k16 of bfloat16: d = a·b + c. Lane l has, with g = l/4 and k = 2*(l%4), of a rows g and g+8 at columns k, k+1, then both at
// k+8, k+9; of b column g at rows k, k+1, then k+8, k+9; of c and d columns k, k+1 of row g, then of row g+8. The sum goes over 16
// products in order, then c is added: a card's order isn't known.
void multiply(Warp &w, const Op &op, u32) {
	const u32 *r = &w.kernel->lists[op.list]; // d, a, b, c
	float a[16][16], b[16][8];
	for (u32 q = 0; q < 4; q++) {
		const u32 *v = w.lanes<u32>(r[4 + q]);
		for (u32 l = 0; l < 32; l++) {
			float *to = &a[l / 4 + q % 2 * 8][l % 4 * 2 + q / 2 * 8];
			to[0] = widened(v[l] & 0xffff), to[1] = widened(v[l] >> 16);
		}
	}
	for (u32 q = 0; q < 2; q++) {
		const u32 *v = w.lanes<u32>(r[8 + q]);
		for (u32 l = 0; l < 32; l++) {
			b[l % 4 * 2 + q * 8][l / 4] = widened(v[l] & 0xffff), b[l % 4 * 2 + 1 + q * 8][l / 4] = widened(v[l] >> 16);
		}
	}
	float sums[16][8];
	for (u32 i = 0; i < 16; i++) {
		float s[8] = {};
		for (u32 k = 0; k < 16; k++) {
			for (u32 j = 0; j < 8; j++) s[j] += a[i][k] * b[k][j];
		}
		memcpy(sums[i], s, sizeof s);
	}
	for (u32 q = 0; q < 4; q++) {
		float *d = w.lanes<float>(r[q]);
		const float *c = w.lanes<float>(r[10 + q]);
		for (u32 l = 0; l < 32; l++) d[l] = sums[l / 4 + q / 2 * 8][l % 4 * 2 + q % 2] + c[l];
	}
}

// registersOf reads the registers of a list in braces.
std::vector<u32> registersOf(Decoder &d, Op &op, size_t i, size_t n, bool writes) {
	const Operand &o = d.operand(i);
	if (o.kind != Operand::LIST || o.list.size() != n) d.fail(d.at->name + ": operand " + std::to_string(i + 1) + " has " + std::to_string(n) + " registers");
	std::vector<u32> units;
	for (const Operand &r : o.list) units.push_back(writes ? d.write(op, r, 4) : d.read(op, r, 4));
	return units;
}
} // namespace

bool decodeCollective(Decoder &d, Op &op) {
	const std::string &name = d.at->name;
	size_t operands = d.at->operands.size();
	static const std::map<std::string, u32> shuffles = {{"shfl.sync.up.b32", UP}, {"shfl.sync.down.b32", DOWN}, {"shfl.sync.bfly.b32", BUTTERFLY}, {"shfl.sync.idx.b32", INDEX}};
	auto s = shuffles.find(name);
	op.kind = Kind::COLLECTIVE;
	if (s != shuffles.end() && operands == 5) {
		op.act = shuffle, op.target = s->second;
		op.to = d.write(op, d.operand(0), 4);
		op.a = d.read(op, d.operand(1), 4), op.b = d.read(op, d.operand(2), 4), op.c = d.read(op, d.operand(3), 4);
		op.members = d.read(op, d.operand(4), 4);
	} else if (name == "vote.sync.ballot.b32" && operands == 3) {
		op.act = ballot;
		op.to = d.write(op, d.operand(0), 4);
		op.a = d.read(op, d.operand(1), 0);
		op.members = d.read(op, d.operand(2), 4);
	} else if ((name == "ldmatrix.sync.aligned.m8n8.x4.shared.b16" || name == "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16") && operands == 2) {
		op.act = name.find("trans") == std::string::npos ? loadMatrices<false> : loadMatrices<true>;
		op.list = d.listed(registersOf(d, op, 0, 4, true));
		d.base(op, d.operand(1));
	} else if (name == "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" && operands == 4) {
		op.act = multiply;
		std::vector<u32> units;
		for (size_t i = 0; i < 4; i++) {
			std::vector<u32> some = registersOf(d, op, i, i == 2 ? 2 : 4, i == 0);
			units.insert(units.end(), some.begin(), some.end());
		}
		op.list = d.listed(units);
	} else {
		op.kind = Kind::PLAIN;
		return false;
	}
	return true;
}

} // namespace ptx
