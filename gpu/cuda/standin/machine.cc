// Runs kernels: blocks one after the other from a random one on, their warps in a random order from barrier to barrier, lanes
// of a warp together while they are at the same instruction.
#include "check.h"
#include "decode.h"
#include <algorithm>
#include <climits>
#include <cstring>
#pragma GCC target("avx2,fma")

namespace ptx {
namespace {

u64 random = 88172645463325252ull;
u32 draw(u32 n) {
	random ^= random << 13, random ^= random >> 7, random ^= random << 17;
	return (u32)(random >> 33) % n;
}

std::string lanesOf(u32 mask) {
	std::string s;
	eachLane(mask, [&](u32 l) { s += (s.empty() ? "" : ",") + std::to_string(l); });
	return s;
}

std::string textOf(const Kernel &k, u32 pc) {
	const Instruction &n = k.text[k.ops[pc].instruction];
	return "line " + std::to_string(n.line) + " (" + n.name + (n.source.empty() ? "" : ", " + n.source) + ")";
}

// check fails where a lane reads a register that it hasn't written.
void check(Warp &w, const Op &op, u32 active) {
	const u32 *read = w.kernel->lists.data() + op.reads;
	for (u32 i = 0; i < op.readers; i++) {
		if (u32 lanes = active & ~w.known[read[i]]) w.fail((u32)__builtin_ctz(lanes), "initcheck", "a register is read that has no value");
	}
}

void know(Warp &w, const Op &op, u32 active) {
	const u32 *wrote = w.kernel->lists.data() + op.writes;
	for (u32 i = 0; i < op.writers; i++) {
		if (!w.busy.empty() && w.busy[wrote[i]]) w.fail((u32)__builtin_ctz(active), "racecheck", "a register is written that a product in flight adds to");
		w.known[wrote[i]] |= active;
	}
}

// copy is know for moves: a value that isn't there may be moved, and isn't there afterwards.
void copied(Warp &w, const Op &op, u32 active) {
	const u32 *read = w.kernel->lists.data() + op.reads;
	u32 are = active, &known = w.known[w.kernel->lists[op.writes]];
	for (u32 i = 0; i < op.readers; i++) are &= w.known[read[i]];
	if (!w.busy.empty() && w.busy[w.kernel->lists[op.writes]]) w.fail((u32)__builtin_ctz(active), "racecheck", "a register is written that a product in flight adds to");
	known = (known & ~active) | are;
}

// together says whether all lanes are there that a collective is for.
bool together(Warp &w, const Op &op, u32 active) {
	if (!op.members) return active == w.live;
	const u32 *m = w.lanes<u32>(op.members);
	u32 members = m[__builtin_ctz(active)];
	eachLane(active, [&](u32 l) {
		if (!(members >> l & 1)) w.fail(l, "synccheck", "a collective whose mask leaves the lane out");
		if (m[l] != members) w.fail(l, "synccheck", "a collective whose lanes have different masks");
	});
	return active == (members & w.live);
}

// gather joins groups at the same instruction, and puts what can run and is farthest behind in front.
void gather(Warp &w) {
	std::vector<Group> &g = w.groups;
	std::sort(g.begin(), g.end(), [](const Group &a, const Group &b) { return a.pc < b.pc; });
	size_t n = 0;
	for (size_t i = 0; i < g.size(); i++) {
		if (n && g[n - 1].pc == g[i].pc) g[n - 1].mask |= g[i].mask, g[n - 1].waits = false;
		else g[n++] = g[i];
	}
	g.resize(n);
	auto run = std::find_if(g.begin(), g.end(), [](const Group &a) { return !a.waits; });
	if (run == g.end()) {
		const Group &a = g.front(), &b = g.back();
		w.pc = a.pc;
		w.fail((u32)__builtin_ctz(a.mask), "synccheck", g.size() == 1 ? "lanes that it is for aren't there: only " + lanesOf(a.mask) + " are"
			: "lanes " + lanesOf(a.mask) + " wait for lanes " + lanesOf(b.mask) + ", which wait at " + textOf(*w.kernel, b.pc));
	}
	std::iter_swap(g.begin(), run);
}

// run goes on until all lanes have ended or are at a barrier.
void run(Warp &w) {
	const Op *ops = w.kernel->ops.data();
	while (!w.groups.empty()) {
		gather(w);
		u32 pc = w.groups[0].pc, mask = w.groups[0].mask;
		bool alone = w.groups.size() == 1;
		u32 until = none; // where others are met
		for (const Group &g : w.groups) {
			if (g.pc > pc) until = std::min(until, g.pc);
		}
		for (bool on = true; on;) {
			const Op &op = ops[pc];
			w.pc = pc;
			u32 active = mask;
			if (op.guard) {
				if (u32 lanes = mask & ~w.known[op.guard]) w.fail((u32)__builtin_ctz(lanes), "initcheck", "a predicate is read that has no value");
				u32 p = *w.lanes<u32>(op.guard);
				active &= op.unless ? ~p : p;
			}
			switch (op.kind) {
			case Kind::PLAIN:
				if (active) {
					check(w, op, active);
					op.act(w, op, active);
					know(w, op, active);
				}
				pc++;
				break;
			case Kind::COPY:
				if (active) {
					op.act(w, op, active);
					copied(w, op, active);
				}
				pc++;
				break;
			case Kind::BRANCH:
				if (active == mask) {
					pc = op.target, on = alone;
				} else {
					pc++;
					if (active) {
						w.groups.push_back({op.target, active, false});
						mask &= ~active, on = false;
					}
				}
				break;
			case Kind::RETURN:
				w.live &= ~active, mask &= ~active;
				for (Group &g : w.groups) g.waits = false; // for lanes that are gone now, perhaps
				pc++, on = mask && alone;
				break;
			case Kind::BARRIER:
				if (active != mask) {
					w.fail((u32)__builtin_ctz(mask & ~active), "synccheck", "a barrier that its guard keeps a lane from");
				}
				if (active == w.live) {
					w.groups[0] = {pc + 1, mask, false};
					w.waitsAt = op.target;
					return;
				}
				w.groups[0].waits = true, on = false;
				break;
			case Kind::COLLECTIVE:
				if (active && active != mask) w.fail((u32)__builtin_ctz(mask & ~active), "synccheck", "a collective that its guard keeps a lane from");
				if (!active) {
					pc++;
				} else if (together(w, op, active)) {
					check(w, op, active);
					op.act(w, op, active);
					know(w, op, active);
					pc++;
				} else {
					w.groups[0].waits = true, on = false;
				}
			}
			on = on && pc < until;
		}
		w.groups[0].pc = pc, w.groups[0].mask = mask;
		if (!mask) w.groups.erase(w.groups.begin());
	}
}

void setUp(Warp &w, Block &b, u32 number) {
	const Kernel &k = *b.kernel;
	w.block = &b, w.kernel = &k, w.number = number;
	w.units.resize(k.units);
	for (const Constant &c : k.constants) {
		for (u32 l = 0; l < 32; l++) {
			if (c.wide) w.lanes<u64>(c.unit)[l] = c.bits;
			else w.lanes<u32>(c.unit)[l] = (u32)c.bits;
		}
	}
	u32 same[SPECIALS] = {};
	same[NTID_X] = b.threads, same[NTID_Y] = same[NTID_Z] = 1;
	for (int i = 0; i < 3; i++) same[NCTAID_X + i] = b.grid[i];
	for (u32 s = 0; s < SPECIALS; s++) {
		if (!k.special[s]) continue;
		for (u32 l = 0; l < 32; l++) w.lanes<u32>(k.special[s])[l] = s == TID_X ? number * 32 + l : s == LANEID ? l : same[s];
	}
}

void start(Warp &w, Block &b) {
	const Kernel &k = *b.kernel;
	u32 lanes = std::min(32u, b.threads - w.number * 32);
	w.live = lanes == 32 ? ~0u : (1u << lanes) - 1;
	w.groups.assign(1, {0, w.live, false});
	w.waitsAt = none;
	w.known.assign(k.units, 0);
	for (int i = 0; i < 3; i++) {
		if (u32 unit = k.special[CTAID_X + i]) std::fill_n(w.lanes<u32>(unit), 32, b.id[i]);
	}
	for (u32 l = 0; l < 32; l++) w.copies[l].clear(), w.batches[l].clear(), w.unfenced[l].clear();
	w.products.clear(), w.productBatches.clear();
	w.busy.assign(k.products ? k.units : 0, 0);
	w.fenced = false, w.asked = 0;
}

// meet lets the warps at a barrier go on: each knows from now on what the others did before.
void meet(Block &b, u32 barrier) {
	u32 now[32] = {};
	for (size_t i = 0; i < b.warps.size(); i++) {
		if (b.warps[i].waitsAt != barrier) continue;
		for (u32 j = 0; j < 32; j++) now[j] = std::max(now[j], b.clocks[i][j]);
		now[i] = std::max(now[i], b.clocks[i][i] + 1);
	}
	for (size_t i = 0; i < b.warps.size(); i++) {
		Warp &w = b.warps[i];
		if (w.waitsAt != barrier) continue;
		memcpy(b.clocks[i], now, sizeof now);
		if (now[i] >= 1 << 19) w.fail(0, "machine", "more than half a million barriers");
		w.waitsAt = none;
	}
}

void runBlock(Block &b) {
	memset(b.shared.data(), 0xff, b.shared.size());
	memset(b.clocks, 0, sizeof b.clocks);
	for (u32 i = 0; i < b.warps.size(); i++) b.clocks[i][i] = 1;
	for (Warp &w : b.warps) start(w, b);
	std::vector<u32> order(b.warps.size());
	for (u32 i = 0; i < order.size(); i++) order[i] = i;
	for (;;) {
		for (size_t i = order.size() - 1; i > 0; i--) std::swap(order[i], order[draw((u32)i + 1)]);
		u32 live = 0;
		for (u32 i : order) {
			Warp &w = b.warps[i];
			if (w.live && w.waitsAt == none) run(w);
			live += w.live != 0;
		}
		if (!live) break;
		const Warp *at = nullptr;
		for (Warp &w : b.warps) {
			if (!w.live) continue;
			if (at && at->waitsAt != w.waitsAt) {
				w.fail((u32)__builtin_ctz(w.live), "synccheck", "warps wait at barriers " + std::to_string(at->waitsAt) + " and " + std::to_string(w.waitsAt));
			}
			at = &w;
		}
		meet(b, at->waitsAt);
	}
	for (Warp &w : b.warps) {
		if (w.asked != b.warps[w.number / 4 * 4].asked) w.fail(0, "synccheck", "the four warps of a group asked for different products");
	}
}

u32 serial = 1;
} // namespace

void Warp::fail(u32 lane, const std::string &check, const std::string &why, Failure::Kind kind) {
	const Block &b = *block;
	throw Failure(kind, check + ": " + kernel->name + ", block " + std::to_string(b.id[0]) + "," + std::to_string(b.id[1]) + "," + std::to_string(b.id[2]) +
		", thread " + std::to_string(number * 32 + lane) + ", " + textOf(*kernel, pc) + ": " + why);
}

void launch(const Kernel &k, const u32 grid[3], u32 threads, size_t dynamic, const void *parameters, Outside &outside) {
	Block b;
	b.kernel = &k, b.parameters = (const char *)parameters, b.outside = &outside, b.threads = threads;
	std::copy(grid, grid + 3, b.grid);
	b.sharedBytes = (u32)(k.dynamicAt() - sharedBase + dynamic);
	b.shared.resize(b.sharedBytes + 16), b.cells.resize((b.sharedBytes >> k.granule) + 16);
	u64 all = (u64)grid[0] * grid[1] * grid[2], from = draw((u32)std::min<u64>(all, 1u << 31));
	if (serial + all < serial || serial + all > ~0u) throw Failure(Failure::OTHER, "machine: " + k.name + ": more than 4e9 blocks in all");
	b.first = serial;
	b.warps.resize((threads + 31) / 32);
	for (u32 i = 0; i < b.warps.size(); i++) setUp(b.warps[i], b, i);
	for (u64 n = 0; n < all; n++, serial++) {
		u64 i = (from + n) % all;
		b.id[0] = (u32)(i % grid[0]), b.id[1] = (u32)(i / grid[0] % grid[1]), b.id[2] = (u32)(i / grid[0] / grid[1]);
		b.serial = serial;
		runBlock(b);
	}
}

} // namespace ptx
