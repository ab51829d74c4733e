// Memory: the device's, which is the host's here, and what is pinned; who touches it, where that is watched.
#pragma once
#include "stream.h"
#include <algorithm>
#include <cstring>
#include <sys/mman.h>

namespace {

const size_t poisoned = 24 << 20; // of an allocation, from its start
size_t used;
// Pinned is host memory that copies reach while the program runs. Until the host has waited for them, it may not read what they write nor write
// what they read: where memory is watched, that is a fault.
struct Pinned {
	size_t n;
	std::vector<std::pair<ptx::u32, bool>> pending; // copies; whether they write here
};
std::map<uintptr_t, Pinned> pinned;
struct Piece {
	size_t n, mapped;  // as asked for; with the guard behind it
	ptx::Piece shadow; // of what runs PTX
};
std::map<CUdeviceptr, Piece> allocated;

size_t page() { return (size_t)sysconf(_SC_PAGESIZE); }
size_t pages(size_t n) { return (n + page() - 1) / page() * page(); }

// holds notes a change of the memory in use.
void holds(size_t n) {
	used = n;
	const char *name = getenv("FLOWRUN_STANDIN_LOG");
	FILE *f = name && *name ? fopen(name, "a") : 0;
	if (!f) return;
	fprintf(f, "%zu\n", used);
	fclose(f);
}

size_t cellBytes(size_t n) { return pages((n / 2 + 16) * sizeof(ptx::Cell)); }
size_t lineBytes(size_t n) { return pages((n / ptx::Line::BYTES + 2) * sizeof(ptx::Line)); }

// zeros is memory that takes none before it is used.
void *zeros(size_t n) {
	void *p = mmap(0, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED) throw ptx::Failure(ptx::Failure::OTHER, "machine: no memory to keep watch over an allocation");
	return p;
}

// pinnedAt finds the pinned memory that an address is in.
std::map<uintptr_t, Pinned>::iterator pinnedAt(const void *p) {
	auto at = pinned.upper_bound((uintptr_t)p);
	if (at == pinned.begin() || (uintptr_t)p >= (--at)->first + at->second.n) return pinned.end();
	return at;
}

// guard lets the host do what it may with pinned memory.
void guard(std::map<uintptr_t, Pinned>::iterator p) {
	int may = PROT_READ | PROT_WRITE;
	for (auto &c : p->second.pending) may &= c.second ? PROT_NONE : PROT_READ;
	mprotect((void *)p->first, pages(p->second.n), may);
}

// waited tells memory that the host has waited for something.
void waited() {
	for (auto p = pinned.begin(); p != pinned.end(); p++) {
		auto &c = p->second.pending;
		size_t before = c.size();
		c.erase(std::remove_if(c.begin(), c.end(), [](auto &one) { return sequence.known(one.first); }), c.end());
		if (c.size() != before) guard(p);
	}
}

void unpin(uintptr_t at) {
	auto p = pinned.find(at);
	if (p == pinned.end()) return;
	p->second.pending.clear();
	guard(p);
	free((void *)at);
	pinned.erase(p);
}

// moves copies between the host and a device, whatever the host may do.
void moves(void *to, const void *from, size_t n) {
	for (const void *side : {(const void *)to, from}) {
		auto p = pinnedAt(side);
		if (p != pinned.end() && !p->second.pending.empty()) mprotect((void *)p->first, pages(p->second.n), PROT_READ | PROT_WRITE);
	}
	memcpy(to, from, n);
	for (const void *side : {(const void *)to, from}) {
		auto p = pinnedAt(side);
		if (p != pinned.end() && !p->second.pending.empty()) guard(p);
	}
}

// Watch is work on a stream that touches memory.
struct Watch : ptx::Outside {
	Watch(ptx::u32 number, int on) { deed = number, stream = on; }

	const ptx::Piece *find(ptx::u64 at) override {
		auto it = allocated.upper_bound(at);
		if (it == allocated.begin()) return nullptr;
		Piece &p = (--it)->second;
		if (at - it->first >= p.n) return nullptr;
		if (!p.shadow.cells) p.shadow = {it->first, p.n, (ptx::Cell *)zeros(cellBytes(p.n)), (ptx::Line *)zeros(lineBytes(p.n))};
		return &p.shadow;
	}
	std::string touches(ptx::Line &l, bool writes) override { return sequence.touches(l, deed, writes); }

	// copies notes that a copy touches device memory.
	void copies(ptx::u64 at, size_t n, bool writes) {
		if (!watches() || n == 0) return;
		const ptx::Piece *p = find(at);
		if (!p || at - p->at + n > p->bytes) throw ptx::Failure(ptx::Failure::ADDRESS, "memcheck: " + sequence.name(deed) + ": memory that isn't in an allocation");
		std::string wrong = touch(*p, at, n, writes);
		if (!wrong.empty()) throw ptx::Failure(ptx::Failure::OTHER, "racecheck: " + wrong);
	}
};

void release(std::map<CUdeviceptr, Piece>::iterator it) {
	const Piece &p = it->second;
	munmap((void *)(it->first / page() * page()), p.mapped);
	if (p.shadow.cells) munmap(p.shadow.cells, cellBytes(p.n)), munmap(p.shadow.lines, lineBytes(p.n));
	holds(used - p.n);
	allocated.erase(it);
}

// does puts work on a stream, or records it.
CUresult does(CUstream stream, const Work &w) {
	if (recording) {
		recording->push_back(w);
		return CUDA_SUCCESS;
	}
	Stream *s = (Stream *)stream;
	ptx::u32 deed = sequence.put(s->number, w.name);
	auto p = pinnedAt(w.host);
	if (watches() && p != pinned.end()) {
		p->second.pending.push_back({deed, w.writes});
		guard(p);
	}
	int number = s->number;
	s->put({{}, [=] { w.f(deed, number); }});
	return CUDA_SUCCESS;
}
} // namespace
