// Work on streams: it happens at once or when somebody waits for it, by chance.
#pragma once
#include "order.h"
#include "settings.h"
#include <deque>
#include <functional>
#include <memory>
#include <vector>

namespace {

// Work is something to be done on a stream, under a number that order knows.
struct Work {
	std::string name;
	std::function<void(ptx::u32, int)> f;
	const void *host = nullptr; // memory that it reads or writes
	bool writes = false;
};
typedef std::vector<Work> Recording;
Recording *recording;
order::Order sequence;

// Event is a place on a stream; none before it is recorded.
struct Event {
	struct Stream *stream;
	size_t at;
	order::Clock clock;
	bool timed;
	std::shared_ptr<double> when; // milliseconds, once it has happened; of one that is timed

	bool happened();
	void wait();
};

// Step is work, behind an event.
struct Step {
	Event behind;
	std::function<void()> work;
};

// breaks is what a failure does, as on a card.
void breaks(const ptx::Failure &f) {
	report = f.what();
	broken = f.kind == ptx::Failure::ADDRESS ? CUDA_ERROR_ILLEGAL_ADDRESS : f.kind == ptx::Failure::ALIGNMENT ? CUDA_ERROR_MISALIGNED_ADDRESS : CUDA_ERROR_LAUNCH_FAILED;
}

// Stream is what is yet to happen. Behind a failure it never does.
struct Stream {
	int number;
	std::deque<Step> steps;
	size_t done; // before the first of steps
	unsigned left;
	bool lazy;

	void next() {
		Step s = std::move(steps.front());
		steps.pop_front();
		s.behind.wait();
		done++;
		if (broken || !s.work) return;
		try {
			s.work();
		} catch (const ptx::Failure &f) {
			breaks(f);
		}
	}
	void run(size_t until) {
		while (done < until && !steps.empty()) next();
	}
	void put(Step s) {
		static unsigned chance = 1;
		steps.push_back(s);
		if (left-- == 0) { // for a while it is lazy, or isn't
			chance = chance * 1664525 + 1013904223;
			lazy = chance >> 31, left = chance >> 8 & 1023;
		}
		while (!lazy && !getenv("FLOWRUN_STANDIN_LAZY") && !steps.empty() && steps.front().behind.happened()) next();
	}
	size_t end() { return done + steps.size(); }
};
std::vector<Stream *> streams;

bool Event::happened() { return !stream || stream->done >= at; }
void Event::wait() {
	if (stream) stream->run(at);
}

void runAll() {
	for (Stream *s : streams) s->run(s->end());
}
} // namespace
