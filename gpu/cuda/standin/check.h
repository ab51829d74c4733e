// What the machine knows of each few bytes of memory: who touched them last, and whether that is ordered before who touches them now.
#pragma once
#include "warp.h"

namespace ptx {

// A stamp is a thread at a time: the block's serial number (of all blocks ever run), the warp's clock, which goes on at each barrier,
// flags, warp and lane. 0 is nobody.
// UNFENCED is a write that products don't see before its thread does fence.proxy.async.
enum : u64 { PENDING = 1 << 10, ATOMIC = 1 << 11, UNFENCED = 1 << 12 };
constexpr int clockAt = 13, serialAt = 32;

inline u32 threadOf(u64 stamp) { return stamp & 1023; }
inline u32 serialOf(u64 stamp) { return (u32)(stamp >> serialAt); }
inline u32 clockOf(u64 stamp) { return (u32)(stamp >> clockAt) & 0x7ffff; }

// The bytes that an asynchronous copy writes are pending from ISSUE to LAND, those that a product reads from FETCH to FETCHED.
enum class Touch { READ, WRITE, ATOMIC, ISSUE, LAND, FETCH, FETCHED };

inline u64 stampOf(const Warp &w, u32 lane) {
	const Block &b = *w.block;
	return (u64)b.serial << serialAt | (u64)b.clocks[w.number][w.number] << clockAt | w.number << 5 | lane;
}

// before says that a stamp's thread had got there before this one, which has stamp now: the same thread, or one that met it at a barrier.
inline bool before(const Warp &w, u64 stamp, u64 now) {
	if (serialOf(stamp) != w.block->serial) return false;
	return threadOf(stamp) == threadOf(now) || w.block->clocks[w.number][threadOf(stamp) >> 5] > clockOf(stamp);
}

// touched notes an access of a cell. It returns the stamp of an access that it races with, or 0. Stamps of blocks before first don't count.
inline u64 touched(const Warp &w, Cell &c, Touch how, u64 now, u32 first) {
	auto races = [&](u64 s) { return serialOf(s) >= first && (s & PENDING || !before(w, s, now)); };
	if (how == Touch::LAND) {
		c.write = now;
		return 0;
	}
	if (how == Touch::FETCHED) {
		for (u64 &r : c.read) {
			if (r & PENDING && threadOf(r) == threadOf(now) && serialOf(r) == serialOf(now)) r = now;
		}
		return 0;
	}
	if (races(c.write) && !(how == Touch::ATOMIC && c.write & ATOMIC)) return c.write;
	if (how == Touch::READ || how == Touch::FETCH) {
		// Two readers are enough to see any later writer that isn't ordered behind all of them.
		for (u64 &r : c.read) {
			if (serialOf(r) < first || (!(r & PENDING) && before(w, r, now))) {
				r = now | (how == Touch::FETCH ? (u64)PENDING : 0);
				return 0;
			}
		}
		return 0;
	}
	for (u64 r : c.read) {
		if (races(r)) return r;
	}
	c.write = now | (how == Touch::ATOMIC ? (u64)ATOMIC : how == Touch::ISSUE ? (u64)PENDING : 0);
	return 0;
}

// reach gives the host's address of bytes that a lane touches, or fails: memcheck, initcheck, racecheck.
// It doesn't do so for FETCHED, where all was in order at FETCH.
char *reach(Warp &w, const Op &op, u32 lane, u64 at, Space space, u32 bytes, Touch how, u32 align);

// land makes a lane's oldest copies happen, so many of them.
void land(Warp &w, u32 lane, size_t copies);

} // namespace ptx
