// Makes operations of instructions: finds registers, constants and labels, and who decodes what.
#include "decode.h"

namespace ptx {

u32 Decoder::declare(const std::string &name, int bytes) {
	u32 unit = k.units;
	k.units += bytes == 8 ? 2 : 1;
	registers[name] = {unit, bytes}; // in a scope of its own, a name may come again
	return unit;
}

u32 Decoder::constant(u64 bits, bool wide) {
	auto key = std::make_pair(wide ? bits : (u32)bits, wide);
	auto it = numbers.find(key);
	if (it != numbers.end()) return it->second;
	u32 unit = k.units;
	k.units += wide ? 2 : 1;
	k.constants.push_back({unit, wide, key.first});
	return numbers[key] = unit;
}

bool Decoder::special(const std::string &name, u32 &unit) {
	static const char *const names[SPECIALS] = {"%tid.x", "%tid.y", "%tid.z", "%ntid.x", "%ntid.y", "%ntid.z", "%ctaid.x", "%ctaid.y",
		"%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z", "%laneid"};
	for (u32 i = 0; i < SPECIALS; i++) {
		if (name != names[i]) continue;
		if (!k.special[i]) k.special[i] = k.units++;
		unit = k.special[i];
		return true;
	}
	return false;
}

const Operand &Decoder::operand(size_t i) const {
	if (i >= at->operands.size()) fail(at->name + " wants more operands");
	return at->operands[i];
}

u32 Decoder::wordOf(const Operand &o, int bytes, bool wider) {
	auto r = registers.find(o.name);
	if (r == registers.end()) fail("unknown register " + o.name);
	int have = r->second.bytes;
	if (have != bytes && !(wider && bytes && have > bytes)) fail(at->name + ": " + o.name + " is of another size");
	return r->second.unit;
}

u32 Decoder::read(Op &, const Operand &o, int bytes, bool wider) {
	u32 unit;
	switch (o.kind) {
	case Operand::REGISTER:
		if (special(o.name, unit)) {
			if (bytes != 4) fail(at->name + ": " + o.name + " has 32 bits");
			return unit;
		}
		unit = wordOf(o, bytes, wider);
		reading.push_back(unit);
		return unit;
	case Operand::NUMBER:
		if (o.number != 'i' && bytes != (o.number == 'f' ? 4 : 8)) fail(at->name + ": a number of another size");
		if (!bytes) return constant(o.bits ? ~0ull : 0, false); // true for all lanes: the mask
		return constant(bytes == 2 ? (u16)o.bits : o.bits, bytes == 8);
	case Operand::SYMBOL: {
		auto s = symbols.find(o.name);
		if (s == symbols.end()) fail("unknown symbol " + o.name);
		if (bytes < 4) fail(at->name + ": an address of " + std::to_string(bytes) + " bytes");
		return constant(s->second, bytes == 8);
	}
	default:
		fail(at->name + ": an odd operand");
	}
}

u32 Decoder::write(Op &, const Operand &o, int bytes, bool wider) {
	if (o.kind != Operand::REGISTER) fail(at->name + ": it must write a register");
	u32 unit = wordOf(o, bytes, wider);
	writing.push_back(unit);
	return unit;
}

u32 Decoder::listed(const std::vector<u32> &units) {
	u32 from = (u32)k.lists.size();
	k.lists.insert(k.lists.end(), units.begin(), units.end());
	return from;
}

void Decoder::base(Op &op, const Operand &o) {
	if (o.kind != Operand::ADDRESS) fail(at->name + ": an address in brackets expected");
	op.offset = o.offset;
	Operand b;
	b.kind = o.name[0] == '%' ? Operand::REGISTER : Operand::SYMBOL, b.name = o.name;
	auto r = registers.find(o.name);
	op.wide = b.kind == Operand::SYMBOL || (r != registers.end() && r->second.bytes == 8);
	op.a = read(op, b, op.wide ? 8 : 4);
}

void Decoder::finish(Op &op) {
	op.reads = listed(reading), op.readers = (u8)reading.size();
	op.writes = listed(writing), op.writers = (u8)writing.size();
	reading.clear(), writing.clear();
}

namespace {

u32 labelOf(Decoder &d) {
	const Operand &o = d.operand(0);
	auto l = d.labels.find(o.name);
	if (o.kind != Operand::SYMBOL || l == d.labels.end()) d.fail("unknown label " + o.name);
	return l->second;
}

bool decodeControl(Decoder &d, Op &op) {
	const std::string &name = d.at->name;
	if (name == "bra" || name == "bra.uni") {
		op.kind = Kind::BRANCH, op.target = labelOf(d);
	} else if (name == "ret") {
		op.kind = Kind::RETURN;
	} else if (name == "bar.sync") {
		const Operand &o = d.operand(0);
		if (o.kind != Operand::NUMBER || o.bits > 15 || d.at->operands.size() > 1) d.fail("bar.sync of anything but a number below 16");
		op.kind = Kind::BARRIER, op.target = (u32)o.bits;
	} else {
		return false;
	}
	return true;
}
} // namespace

Op Decoder::decode() {
	Op op;
	if (!at->guard.empty()) {
		Operand o;
		o.kind = Operand::REGISTER, o.name = at->guard;
		op.guard = read(op, o, 0), op.unless = at->unless;
		reading.clear(); // it is looked at apart: it says which lanes are active
	}
	if (!decodeArithmetic(*this, op) && !decodeAccess(*this, op) && !decodeCollective(*this, op) && !decodeProduct(*this, op) && !decodeControl(*this, op)) fail("unknown instruction " + at->name);
	finish(op);
	return op;
}

} // namespace ptx
