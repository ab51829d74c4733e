// What reading a kernel's text shares between files.
#pragma once
#include "ptx.h"
#include <functional>

namespace ptx {

// Register is where one lies, and its bytes: 0 is a predicate.
struct Register {
	u32 unit;
	int bytes;
};

// Decoder makes a kernel's operations.
struct Decoder {
	Kernel &k;
	std::map<std::string, Register> registers;
	std::map<std::string, u32> labels;  // to operations
	std::map<std::string, u64> symbols; // addresses in their own spaces
	std::map<std::pair<u64, bool>, u32> numbers; // constants that there are already
	const Instruction *at = nullptr;

	explicit Decoder(Kernel &of) : k(of) {}

	[[noreturn]] void fail(const std::string &why) const;
	u32 declare(const std::string &name, int bytes);
	u32 constant(u64 bits, bool wide);
	// read gives the unit of an operand of so many bytes (0: a predicate) and notes that op reads it; write that it writes it.
	u32 read(Op &op, const Operand &o, int bytes, bool wider = false);
	u32 write(Op &op, const Operand &o, int bytes, bool wider = false);
	const Operand &operand(size_t i) const;
	// listed appends units to the kernel's lists and gives where.
	u32 listed(const std::vector<u32> &units);
	// base takes an address apart.
	void base(Op &op, const Operand &o);
	void finish(Op &op);
	Op decode();

private:
	std::vector<u32> reading, writing;
	bool special(const std::string &name, u32 &unit);
	u32 wordOf(const Operand &o, int bytes, bool wider);
};

// Each decodes what it knows.
bool decodeArithmetic(Decoder &d, Op &op);
bool decodeAccess(Decoder &d, Op &op);
bool decodeCollective(Decoder &d, Op &op);
bool decodeProduct(Decoder &d, Op &op);

std::vector<std::string> split(const std::string &name, char by);

} // namespace ptx
