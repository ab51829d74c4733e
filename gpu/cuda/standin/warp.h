// What operations see while a block runs.
#pragma once
#include "ptx.h"
#include <deque>

namespace ptx {

// Landing is an asynchronous copy that was issued.
struct Landing {
	u32 to;
	const char *from;
	u8 bytes, all; // the rest is zeros
};

// Product is a matrix product that was asked for.
struct Product {
	const Op *op;
	u64 a, b; // descriptors
	bool add; // to what the sums are
	std::vector<u32> own; // a of each lane, where it is in registers: four of 32
};

struct Group {
	u32 pc, mask;
	bool waits; // for other lanes
};

struct Block;

struct Warp {
	Block *block;
	const Kernel *kernel;
	u32 number, live, pc; // pc of what runs, for who asks
	std::vector<Unit> units;
	std::vector<u32> known; // by unit: the lanes that have a value
	std::vector<Group> groups;
	u32 waitsAt; // a barrier, or none
	std::vector<Landing> copies[32];
	std::vector<size_t> batches[32]; // ends in copies
	std::vector<Product> products;   // of four warps together: this one has rows 16*(number%4) and on
	std::vector<size_t> productBatches;
	u64 asked;                       // which, so far: the same of all four
	bool fenced;                     // the sums are safe to be added to
	std::vector<u8> busy;            // by unit: sums that products are to change
	std::vector<Cell *> unfenced[32]; // what lanes wrote and products don't see yet

	template <class T> T *lanes(u32 unit) { return (T *)units[unit].v; }
	[[noreturn]] void fail(u32 lane, const std::string &check, const std::string &why, Failure::Kind kind = Failure::OTHER);
};

constexpr u32 none = ~0u;

struct Block {
	const Kernel *kernel;
	const char *parameters;
	Outside *outside;
	u32 id[3], grid[3], threads;
	u32 sharedBytes; // that it has, from sharedBase on
	std::vector<char> shared;
	std::vector<Cell> cells; // of shared memory
	u32 serial, first;       // of the block, of the launch's first block
	std::vector<Warp> warps;
	u32 clocks[32][32];      // what each warp knows of the others' clocks; of itself: its clock
	const Piece *piece = nullptr; // that was found last
};

// eachLane calls f for the lanes of a mask.
template <class F> inline void eachLane(u32 mask, F f) {
	for (; mask; mask &= mask - 1) f((u32)__builtin_ctz(mask));
}

} // namespace ptx
