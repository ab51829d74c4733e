// A machine for PTX: the very text that a card's driver would compile runs on the CPU, and what NVIDIA's compute-sanitizer would
// find on a card is found here. It knows the instructions that the kernels use; any other is refused when a module is loaded.
// What they do is in NVIDIA's document "Parallel Thread Execution ISA".
//
// parse.cc reads text, decode.cc makes operations of instructions (arithmetic.cc, access.cc, matrix.cc have them), machine.cc runs them:
// warp by warp, an operation for all lanes at once. Lanes that part go on by themselves, those that are farthest behind first.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int16_t i16;
typedef int32_t i32;
typedef int64_t i64;

// Error is of the text: what a driver's compiler would say, or that the machine doesn't know it.
struct Error : std::runtime_error {
	using std::runtime_error::runtime_error;
};

// Where generic addresses of shared memory begin: no address of the host's.
constexpr u64 window = 1ull << 56;
// Where a block's own shared memory begins, as on a card: the system has what lies before.
constexpr u32 sharedBase = 1024;

// Unit is 32 lanes of a register of up to 32 bits; of 64 bits it takes two. A predicate is a mask, in the first.
struct alignas(64) Unit {
	u32 v[32];
};

enum class Space : u8 { GENERIC, GLOBAL, SHARED, PARAM };

enum class Kind : u8 {
	PLAIN,
	COPY,       // of a register to another: what was never written may be copied
	BRANCH,
	RETURN,
	BARRIER,
	COLLECTIVE, // all lanes of the warp that live, or of a mask, do it together
};

// Operand as it is written.
struct Operand {
	enum { REGISTER, NUMBER, SYMBOL, ADDRESS, LIST } kind;
	std::string name;             // of a register or symbol; of an address's base
	u64 bits = 0;                 // of a number
	char number = 'i';            // i, f (float bits) or d (double bits)
	i64 offset = 0;               // of an address
	std::vector<Operand> list;
};

struct Instruction {
	std::string name;             // with its modifiers
	std::vector<Operand> operands;
	std::string guard;            // a predicate or none
	bool unless = false;          // the guard's negation
	int line = 0;
	std::string source;           // FILE:LINE of .loc, or none
};

struct Warp;
struct Op;
typedef void (*Action)(Warp &, const Op &, u32 active);

// Op is a decoded instruction. Registers are units of a warp's file.
struct Op {
	Action act = nullptr;
	u32 to = 0, a = 0, b = 0, c = 0;
	u32 list = 0, reads = 0, writes = 0; // into the kernel's lists; reads and writes are what is checked for being known
	u8 lists = 0, readers = 0, writers = 0;
	Kind kind = Kind::PLAIN;
	Space space = Space::GENERIC;
	u8 size = 0, count = 1;  // of an access: bytes of an element, elements
	u32 members = 0;         // of a collective: the mask of lanes that do it, 0 for all that live
	bool wide = false;       // of an address: 64 bits
	bool unless = false;
	u32 guard = 0;           // 0 is none
	i64 offset = 0;          // of an address
	u32 target = 0;          // of a branch; of collectives a variant
	u32 instruction = 0;
};

// Constants and special registers are units with a value from the beginning.
struct Constant {
	u32 unit;
	bool wide;
	u64 bits;
};

enum Special : u32 { TID_X, TID_Y, TID_Z, NTID_X, NTID_Y, NTID_Z, CTAID_X, CTAID_Y, CTAID_Z, NCTAID_X, NCTAID_Y, NCTAID_Z, LANEID, SPECIALS };

struct Kernel {
	std::string name;
	u32 threads = 0;         // .maxntid; 0 is none
	size_t parameters = 0;   // bytes
	size_t shared = 0;       // bytes that it declares; dynamic memory begins behind them, at the alignment of dynamicAlign
	size_t dynamicAlign = 1;
	bool products = false;   // that run while the kernel goes on: Hopper's
	int granule = 2;         // log2 of the bytes that one cell of a shadow is for: nothing smaller is written
	u32 units = 0;           // of a warp's file
	std::vector<Instruction> text;
	std::vector<Op> ops;
	std::vector<u32> lists;
	std::vector<Constant> constants;
	u32 special[SPECIALS] = {}; // units, 0 where it isn't read
	long launches = 0;

	u32 dynamicAt() const { return (u32)((sharedBase + shared + dynamicAlign - 1) / dynamicAlign * dynamicAlign); }
};

struct Module {
	std::string version, target;
	std::map<std::string, std::unique_ptr<Kernel>> kernels;
};

// parse reads a module's text. It throws Error.
std::unique_ptr<Module> parse(const char *text);

// Cell is the shadow of a few bytes: who wrote and who read them last. See check.h.
struct Cell {
	u64 write, read[2];
};

// Line is what is known of LINE bytes of an allocation beyond a launch: the last work on streams that wrote and that read them.
struct Line {
	enum { STREAMS = 3, BYTES = 64 };
	u32 writer, readers[STREAMS]; // of some streams each
};

// Piece is an allocation of global memory. Its cells, one for 1 << granule bytes, and lines are its own, zeros at first.
struct Piece {
	u64 at;
	size_t bytes;
	Cell *cells;
	Line *lines;
};

// Outside is what a launch asks for.
struct Outside {
	u32 deed; // the launch's number among all work
	int stream;
	virtual const Piece *find(u64 at) = 0; // the allocation that has an address, or none
	virtual std::string touches(Line &l, bool writes) = 0; // what is wrong with that, or ""
	// touch notes the lines of bytes.
	std::string touch(const Piece &p, u64 at, size_t n, bool writes) {
		for (u64 i = (at - p.at) / Line::BYTES, end = (at - p.at + n + Line::BYTES - 1) / Line::BYTES; i < end; i++) {
			Line &l = p.lines[i];
			if ((writes ? l.writer : l.readers[stream % Line::STREAMS]) == deed) continue;
			std::string wrong = touches(l, writes);
			if (!wrong.empty()) return wrong;
		}
		return "";
	}
};

// Failure is what a kernel did wrong: memcheck, initcheck, racecheck or synccheck in front of it, where and what.
struct Failure : std::runtime_error {
	enum Kind { ADDRESS, ALIGNMENT, OTHER } kind;
	Failure(Kind k, const std::string &s) : std::runtime_error(s), kind(k) {}
};

// launch runs all blocks. It throws Failure.
void launch(const Kernel &k, const u32 grid[3], u32 threads, size_t dynamic, const void *parameters, Outside &outside);

} // namespace ptx
