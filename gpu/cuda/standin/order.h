// What orders the work on streams: a stream's own order, events that it waits for, and what the host had waited for before it put the work there.
// Two pieces of work that touch the same memory, one of them writing, must be ordered; which of them runs first here doesn't matter.
#pragma once
#include "ptx.h"
#include <deque>
#include <map>
#include <string>

namespace order {

// Clock says how much of each stream's work has been before. The host's own is stream 0's.
typedef std::map<int, ptx::u64> Clock;

inline void join(Clock &to, const Clock &from) {
	for (auto &c : from) {
		ptx::u64 &mine = to[c.first];
		if (mine < c.second) mine = c.second;
	}
}

// Deed is work that was put on a stream.
struct Deed {
	int stream;
	Clock before;
	std::string name;
};

// Order knows all deeds, by numbers from 1 on. Of very old ones it knows nothing: they count as ordered.
class Order {
	std::deque<Deed> deeds;
	ptx::u32 forgotten = 0;
	std::map<int, Clock> streams;
	Clock host;

	const Deed *of(ptx::u32 deed) const { return deed > forgotten && deed - forgotten <= deeds.size() ? &deeds[deed - forgotten - 1] : nullptr; }

public:
	// put notes work on a stream: it comes after what was there and what the host had waited for.
	ptx::u32 put(int stream, const std::string &name) {
		Clock &c = streams[stream];
		join(c, host);
		c[stream]++;
		deeds.push_back({stream, c, name});
		if (deeds.size() > 1 << 16) deeds.pop_front(), forgotten++;
		return forgotten + (ptx::u32)deeds.size();
	}
	// at is what an event on a stream stands for.
	Clock at(int stream) {
		join(streams[stream], host);
		return streams[stream];
	}
	void waits(int stream, const Clock &event) { join(streams[stream], event); }
	void hostWaits(const Clock &event) { join(host, event); }
	void hostWaitsFor(int stream) { join(host, at(stream)); }
	// ends forgets a stream, whose work has been done.
	void ends(int stream) {
		streams.erase(stream), host.erase(stream);
		for (auto &s : streams) s.second.erase(stream);
	}

	bool before(ptx::u32 a, ptx::u32 b) const {
		const Deed *first = of(a), *then = of(b);
		if (!first || !then || first->stream == then->stream || !streams.count(first->stream)) return true;
		auto known = then->before.find(first->stream);
		return known != then->before.end() && known->second >= first->before.at(first->stream);
	}
	// known says whether the host has waited for a deed.
	bool known(ptx::u32 deed) const {
		const Deed *d = of(deed);
		if (!d || !streams.count(d->stream)) return true;
		auto h = host.find(d->stream);
		return h != host.end() && h->second >= d->before.at(d->stream);
	}
	std::string name(ptx::u32 deed) const {
		const Deed *d = of(deed);
		return d ? d->name + " on stream " + std::to_string(d->stream) : "nothing";
	}

	// touches notes that a deed touches a line, for the first time so far. It returns what the deed isn't ordered behind, or "".
	std::string touches(ptx::Line &l, ptx::u32 deed, bool writes) const {
		auto wrong = [&](ptx::u32 other, const char *did) {
			return before(other, deed) ? std::string() : name(deed) + (writes ? " writes" : " reads") + " what " + name(other) + did + ", and nothing orders them";
		};
		std::string said = wrong(l.writer, " wrote");
		for (ptx::u32 r : l.readers) {
			if (writes && said.empty()) said = wrong(r, " read");
		}
		const Deed *d = of(deed);
		if (writes) l.writer = deed;
		else if (d) l.readers[d->stream % ptx::Line::STREAMS] = deed;
		return said;
	}
};

} // namespace order
