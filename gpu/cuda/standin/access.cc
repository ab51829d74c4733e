// Loads, stores, atomics and asynchronous copies, and what is checked of them.
#include "check.h"
#include "decode.h"
#include <cstdio>
#include <cstring>
#pragma GCC target("avx2,fma")

namespace ptx {
namespace {

std::string hex(u64 v) {
	char s[32];
	snprintf(s, sizeof s, "0x%llx", (unsigned long long)v);
	return s;
}

const char *verb(Touch how) {
	return how == Touch::READ ? "read" : how == Touch::WRITE ? "write" : how == Touch::ATOMIC ? "atomic" : how == Touch::FETCH ? "product's read" : "asynchronous copy";
}

std::string who(const Warp &w, u64 stamp) {
	std::string s = "thread " + std::to_string(threadOf(stamp));
	return serialOf(stamp) == w.block->serial ? s : s + " of another block";
}

[[noreturn]] void race(Warp &w, u32 lane, const char *space, u64 at, Touch how, const Cell &c, u64 other) {
	const char *did = other == c.write ? other & PENDING ? "an asynchronous copy into it that is in flight, by " : "a write by "
		: other & PENDING ? "a product that is in flight, by " : "a read by ";
	w.fail(lane, "racecheck", std::string(verb(how)) + " of " + space + " memory at " + hex(at) + ", unordered with " + did + who(w, other));
}

// The cells of bytes from offset on, of a memory whose first cell is cells.
template <class F> inline void eachCell(const Warp &w, Cell *cells, u64 offset, u32 bytes, F f) {
	int g = w.kernel->granule;
	for (u64 i = offset >> g, end = (offset + bytes + (1 << g) - 1) >> g; i < end; i++) f(cells[i]);
}

// unfenced notes a write that products don't see yet.
inline void unfenced(Warp &w, u32 lane, Cell &c) {
	if (!w.kernel->products) return;
	c.write |= UNFENCED;
	w.unfenced[lane].push_back(&c);
}

char *shared(Warp &w, u32 lane, u64 at, u32 bytes, Touch how) {
	Block &b = *w.block;
	if (at < sharedBase || at - sharedBase + bytes > b.sharedBytes)
		w.fail(lane, "memcheck", std::string(verb(how)) + " of " + std::to_string(bytes) + " bytes at " + hex(at) + " of shared memory, which is " + hex(sharedBase) + " to " +
			hex(sharedBase + b.sharedBytes), Failure::ADDRESS);
	u64 now = stampOf(w, lane);
	eachCell(w, b.cells.data(), at - sharedBase, bytes, [&](Cell &c) {
		if ((how == Touch::READ || how == Touch::ATOMIC || how == Touch::FETCH) && serialOf(c.write) != b.serial)
			w.fail(lane, "initcheck", std::string(verb(how)) + " of shared memory at " + hex(at) + ", which nobody has written");
		if (u64 other = touched(w, c, how, now, b.serial)) race(w, lane, "shared", at, how, c, other);
		if (how == Touch::FETCH && c.write & UNFENCED)
			w.fail(lane, "racecheck", "a product's read of shared memory at " + hex(at) + ", whose writer, " + who(w, c.write) + ", did no fence.proxy.async behind the write");
		if (how == Touch::WRITE) unfenced(w, lane, c);
	});
	return b.shared.data() + (at - sharedBase);
}

char *global(Warp &w, u32 lane, u64 at, u32 bytes, Touch how) {
	Block &b = *w.block;
	const Piece *p = b.piece;
	if (!p || at - p->at >= p->bytes) p = b.piece = b.outside->find(at);
	if (!p || at - p->at + bytes > p->bytes)
		w.fail(lane, "memcheck", std::string(verb(how)) + " of " + std::to_string(bytes) + " bytes at " + hex(at) + ", which isn't in an allocation", Failure::ADDRESS);
	u64 now = stampOf(w, lane);
	eachCell(w, p->cells, at - p->at, bytes, [&](Cell &c) {
		if (u64 other = touched(w, c, how, now, b.first)) race(w, lane, "global", at, how, c, other);
	});
	std::string wrong = b.outside->touch(*p, at, bytes, how != Touch::READ);
	if (!wrong.empty()) w.fail(lane, "racecheck", wrong);
	return (char *)at;
}

u64 addressOf(Warp &w, const Op &op, u32 lane) {
	return op.wide ? w.lanes<u64>(op.a)[lane] + op.offset : (u32)(w.lanes<u32>(op.a)[lane] + op.offset);
}

// Where all elements of the active lanes lie.
inline void reachAll(Warp &w, const Op &op, u32 active, Touch how, char *(&at)[32]) {
	u32 bytes = op.size * op.count;
	eachLane(active, [&](u32 l) { at[l] = reach(w, op, l, addressOf(w, op, l), op.space, bytes, how, bytes); });
}

// load reads elements of type M into registers that hold R.
template <class R, class M> void load(Warp &w, const Op &op, u32 active) {
	char *at[32];
	reachAll(w, op, active, Touch::READ, at);
	const u32 *to = &w.kernel->lists[op.list];
	for (u32 k = 0; k < op.count; k++) {
		R *r = w.lanes<R>(to[k]);
		eachLane(active, [&](u32 l) {
			M m;
			memcpy(&m, at[l] + k * sizeof m, sizeof m);
			r[l] = (R)m;
		});
	}
}

template <class R, class M> void store(Warp &w, const Op &op, u32 active) {
	char *at[32];
	reachAll(w, op, active, Touch::WRITE, at);
	const u32 *from = &w.kernel->lists[op.list];
	for (u32 k = 0; k < op.count; k++) {
		const R *r = w.lanes<R>(from[k]);
		eachLane(active, [&](u32 l) {
			M m = (M)r[l];
			memcpy(at[l] + k * sizeof m, &m, sizeof m);
		});
	}
}

void atomicAdd(Warp &w, const Op &op, u32 active) {
	const u32 *b = w.lanes<u32>(op.b);
	eachLane(active, [&](u32 l) {
		u32 *at = (u32 *)reach(w, op, l, addressOf(w, op, l), op.space, 4, Touch::ATOMIC, 4), old = *at;
		*at = old + b[l];
		w.lanes<u32>(op.to)[l] = old;
	});
}

// The copy's bytes arrive when they are waited for. Until then who touches them, the copying thread too, is told so.
void copyAsync(Warp &w, const Op &op, u32 active) {
	eachLane(active, [&](u32 l) {
		u64 from = w.lanes<u64>(op.b)[l], to = addressOf(w, op, l);
		u32 n = op.c ? w.lanes<u32>(op.c)[l] : op.size;
		if (n > op.size) w.fail(l, "memcheck", "an asynchronous copy of more than " + std::to_string(op.size) + " bytes");
		if (from % op.size) w.fail(l, "memcheck", "an asynchronous copy from " + hex(from) + ", which isn't aligned to " + std::to_string(op.size) + " bytes", Failure::ALIGNMENT);
		const char *source = n ? reach(w, op, l, from, Space::GLOBAL, n, Touch::READ, 1) : nullptr;
		reach(w, op, l, to, Space::SHARED, op.size, Touch::ISSUE, op.size);
		w.copies[l].push_back({(u32)to, source, (u8)n, op.size});
	});
}

void commit(Warp &w, const Op &, u32 active) {
	eachLane(active, [&](u32 l) { w.batches[l].push_back(w.copies[l].size()); });
}

void waitGroup(Warp &w, const Op &op, u32 active) {
	eachLane(active, [&](u32 l) {
		std::vector<size_t> &b = w.batches[l];
		if (b.size() <= op.target) return;
		size_t done = b.size() - op.target, copies = b[done - 1];
		land(w, l, copies);
		b.erase(b.begin(), b.begin() + (long)done);
		for (size_t &end : b) end -= copies;
	});
}
} // namespace

char *reach(Warp &w, const Op &, u32 lane, u64 at, Space space, u32 bytes, Touch how, u32 align) {
	if (at % align)
		w.fail(lane, "memcheck", std::string(verb(how)) + " of " + std::to_string(bytes) + " bytes at " + hex(at) + ", which isn't aligned", Failure::ALIGNMENT);
	if (space == Space::GENERIC) {
		space = at >= window && at - window < 1ull << 32 ? Space::SHARED : Space::GLOBAL;
		if (space == Space::SHARED) at -= window;
	}
	if (space == Space::SHARED) return shared(w, lane, at, bytes, how);
	if (space == Space::GLOBAL) return global(w, lane, at, bytes, how);
	if (how != Touch::READ || at + bytes > w.kernel->parameters) w.fail(lane, "memcheck", "an access beyond the parameters", Failure::ADDRESS);
	return (char *)w.block->parameters + at;
}

void land(Warp &w, u32 lane, size_t copies) {
	Block &b = *w.block;
	u64 now = stampOf(w, lane);
	for (size_t i = 0; i < copies; i++) {
		const Landing &c = w.copies[lane][i];
		char *to = b.shared.data() + (c.to - sharedBase);
		memcpy(to, c.from, c.bytes);
		memset(to + c.bytes, 0, c.all - c.bytes);
		eachCell(w, b.cells.data(), c.to - sharedBase, c.all, [&](Cell &cell) {
			touched(w, cell, Touch::LAND, now, b.serial);
			unfenced(w, lane, cell);
		});
	}
	w.copies[lane].erase(w.copies[lane].begin(), w.copies[lane].begin() + (long)copies);
}

namespace {

// Type of memory: bytes, and whether it is extended with its sign in wider registers.
struct Type {
	int bytes;
	bool sign;
};

bool typeOf(const std::string &s, Type &t) {
	static const std::map<std::string, Type> all = {{"u16", {2, false}}, {"u32", {4, false}}, {"s32", {4, true}}, {"f32", {4, false}}, {"b32", {4, false}},
		{"u64", {8, false}}, {"b64", {8, false}}, {"f64", {8, false}}};
	auto it = all.find(s);
	if (it != all.end()) t = it->second;
	return it != all.end();
}

// access decodes ld and st: NAME[.SPACE][.vN].TYPE.
bool access(Decoder &d, Op &op) {
	std::vector<std::string> parts = split(d.at->name, '.');
	if (parts[0] != "ld" && parts[0] != "st") return false;
	bool loads = parts[0] == "ld";
	size_t i = 1;
	static const std::map<std::string, Space> spaces = {{"global", Space::GLOBAL}, {"shared", Space::SHARED}, {"param", Space::PARAM}};
	if (i < parts.size() && spaces.count(parts[i])) op.space = spaces.at(parts[i++]);
	if (i < parts.size() && (parts[i] == "v2" || parts[i] == "v4")) op.count = (u8)(parts[i++][1] - '0');
	Type type;
	if (i + 1 != parts.size() || !typeOf(parts[i], type) || d.at->operands.size() != 2) return false;
	if (type.bytes * op.count > 16) return false;
	op.size = (u8)type.bytes;
	d.base(op, d.operand(loads ? 1 : 0));
	const Operand &data = d.operand(loads ? 0 : 1);
	std::vector<Operand> each = op.count > 1 ? data.list : std::vector<Operand>{data};
	if (each.size() != op.count) d.fail(d.at->name + " of " + std::to_string(each.size()) + " registers");
	std::vector<u32> units;
	int bytes = 0;
	for (const Operand &o : each) {
		units.push_back(loads ? d.write(op, o, type.bytes, true) : d.read(op, o, type.bytes, true));
		auto r = d.registers.find(o.name);
		int b = r == d.registers.end() ? type.bytes : r->second.bytes;
		if (bytes && b != bytes) d.fail(d.at->name + " of registers of several sizes");
		bytes = b;
	}
	op.list = d.listed(units);
	bool wide = bytes == 8;
	switch (type.bytes) {
	case 2: op.act = loads ? (wide ? load<u64, u16> : load<u32, u16>) : (wide ? store<u64, u16> : store<u32, u16>); break;
	case 4:
		if (!loads) op.act = wide ? store<u64, u32> : store<u32, u32>;
		else op.act = !wide ? load<u32, u32> : type.sign ? load<u64, i32> : load<u64, u32>;
		break;
	default: op.act = loads ? load<u64, u64> : store<u64, u64>;
	}
	if (!loads && type.bytes == 2) d.k.granule = 1;
	return true;
}
} // namespace

bool decodeAccess(Decoder &d, Op &op) {
	const std::string &name = d.at->name;
	if (name == "cp.async.cg.shared.global") {
		op.act = copyAsync;
		d.base(op, d.operand(0));
		const Operand from = d.operand(1), n = d.operand(2);
		if (n.kind != Operand::NUMBER || n.bits != 16 || from.kind != Operand::ADDRESS || from.offset || d.at->operands.size() > 4) d.fail(name + " of an odd form");
		Operand r;
		r.kind = Operand::REGISTER, r.name = from.name;
		op.b = d.read(op, r, 8), op.size = 16;
		if (d.at->operands.size() == 4) op.c = d.read(op, d.operand(3), 4);
	} else if (name == "cp.async.commit_group") {
		op.act = commit;
	} else if (name == "prefetch.global.L2") { // a cache changes nothing
		op.act = [](Warp &, const Op &, u32) {};
		d.base(op, d.operand(0));
	} else if (name == "cp.async.wait_group") {
		if (d.operand(0).kind != Operand::NUMBER) d.fail(name + " of anything but a number");
		op.act = waitGroup, op.target = (u32)d.operand(0).bits;
	} else if (name == "atom.shared.add.u32") {
		op.act = atomicAdd, op.space = Space::SHARED;
		op.to = d.write(op, d.operand(0), 4);
		d.base(op, d.operand(1));
		op.b = d.read(op, d.operand(2), 4);
	} else {
		return access(d, op);
	}
	return true;
}

} // namespace ptx
