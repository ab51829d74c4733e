// A libcuda.so.1 for machines without a GPU: device memory is host memory, a launch runs the kernel's emulation, or its PTX. Fresh
// memory holds NaN (the rest of a large piece zeros). What is put on a stream happens at once or when somebody waits for it, by
// chance: who forgets to wait, or to have others wait, finds out. One thread calls it at a time. The environment tells it what to be:
//
//     FLOWRUN_STANDIN_FAULT=CALL=CODE@N   the Nth of a call gives a result, or with a path for N those since there is such a file; of
//                                         CALL async, the launch breaks the device, which later calls say; of skip, it does nothing; of wait,
//                                         neither a stream nor the host waits for an event
//     FLOWRUN_STANDIN_MEMORY=BYTES        of a card, 1 GiB without it
//     FLOWRUN_STANDIN_CARDS=N             that it lists, 1 without it; CUDA_VISIBLE_DEVICES hides them as a driver does
//     FLOWRUN_STANDIN_CAPABILITY=7.5      of the cards, 8.0 without it
//     FLOWRUN_STANDIN_VERSION=10020       of CUDA that it says it supports, 12040 without it
//     FLOWRUN_STANDIN_LAZY=1              nothing happens before somebody waits for it
//     FLOWRUN_STANDIN_TRACE=FILE          gets a line for each call, "CALL STREAM"; streams count from 1, 0 is none
//     FLOWRUN_STANDIN_PTX=1               a launch runs the PTX that was loaded, and fails with what NVIDIA's compute-sanitizer would say of it
//                                         (ptx.h); without it, the emulation of the kernels' sources (emu.h)
//     FLOWRUN_STANDIN_KERNELS=FILE        gets a line for each kernel that this runs for the first time
//     FLOWRUN_STANDIN_LOG=FILE            gets a line for each change of the device memory in use: its bytes
#define FLOWRUN_EMULATION
#define FLOWRUN_EMULATION_BODY
#include "../kernels/conv.h"
#include "../kernels/weight.h"
namespace adversary {
#include "../kernels/adversary.cu"
}
namespace codebook {
#include "../kernels/codebook.cu"
}
namespace conv {
#include "../kernels/conv.cu"
}
namespace conv90 {
#include "../kernels/conv90.cu"
}
namespace elementwise {
#include "../kernels/elementwise.cu"
}
namespace latent {
#include "../kernels/latent.cu"
}
namespace norm {
#include "../kernels/norm.cu"
}
namespace optim {
#include "../kernels/optim.cu"
}
namespace pointwise {
#include "../kernels/pointwise.cu"
}
namespace similarity {
#include "../kernels/similarity.cu"
}
namespace spectral {
#include "../kernels/spectral.cu"
}
namespace thin {
#include "../kernels/thin.cu"
}
namespace weight {
#include "../kernels/weight.cu"
}
namespace weight90 {
#include "../kernels/weight90.cu"
}

#include "../include/cuda.h"
#include "order.h"
#include "ptx.h"
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

namespace {

const size_t poisoned = 24 << 20; // of an allocation, from its start
size_t used;
thread_local CUcontext current;
CUresult broken; // the device's, once it is lost
std::string report; // what broke it
// Pinned is host memory that copies reach while the program runs. Until the host has waited for them, it may not read what they write nor write
// what they read: where memory is watched, that is a fault.
struct Pinned {
	size_t n;
	std::vector<std::pair<ptx::u32, bool>> pending; // copies; whether they write here
};
std::map<uintptr_t, Pinned> pinned;
std::map<std::string, int> calls;
struct Piece {
	size_t n, mapped;  // as asked for; with the guard behind it
	ptx::Piece shadow; // of what runs PTX
};
std::map<CUdeviceptr, Piece> allocated;
int contexts; // how often the primary one is retained

// number reads one from the environment.
size_t number(const char *name, size_t otherwise) {
	const char *s = getenv(name);
	return s && *s ? strtoull(s, 0, 10) : otherwise;
}
size_t memory() { return number("FLOWRUN_STANDIN_MEMORY", 1ull << 30); }

void capability(int &major, int &minor) {
	major = 8, minor = 0;
	if (const char *s = getenv("FLOWRUN_STANDIN_CAPABILITY")) sscanf(s, "%d.%d", &major, &minor);
}

// sharedLimit is the bytes of shared memory that a block of the cards may have (CUDA C++ Programming Guide, technical specifications).
int sharedLimit() {
	int major, minor;
	capability(major, minor);
	return major == 8 && minor == 0 ? 163 << 10 : major == 9 ? 227 << 10 : 99 << 10;
}

// cards is how many of them the program may see: those that CUDA_VISIBLE_DEVICES lists in front of the first that isn't there.
int cards() {
	int all = (int)number("FLOWRUN_STANDIN_CARDS", 1), n = 0;
	const char *s = getenv("CUDA_VISIBLE_DEVICES");
	if (!s) return all;
	for (char *end; n < all; n++, s = end + 1) {
		long card = strtol(s, &end, 10);
		if (end == s || card < 0 || card >= all) return n;
		if (*end != ',') return n + 1;
	}
	return n;
}

// holds notes a change of the memory in use.
void holds(size_t n) {
	used = n;
	const char *name = getenv("FLOWRUN_STANDIN_LOG");
	FILE *f = name && *name ? fopen(name, "a") : 0;
	if (!f) return;
	fprintf(f, "%zu\n", used);
	fclose(f);
}

// Module is a text and, where it is to be run itself, what was read of it.
struct Module {
	std::string text;
	std::unique_ptr<ptx::Module> program;
};

struct Function {
	ptx::Kernel *kernel; // or nil: run is the emulation
	void (*run)(const emu::Shape *, const void *);
	size_t size;
	int shared;
	unsigned threads; // of a block: the PTX's .maxntid, which kernels count on
};

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

std::mutex alone;

void trace(const char *call, CUstream s) {
	const char *file = getenv("FLOWRUN_STANDIN_TRACE");
	if (!file || !*file) return;
	if (FILE *f = fopen(file, "a")) {
		fprintf(f, "%s %d\n", call, s ? ((Stream *)s)->number : 0);
		fclose(f);
	}
}

// fault is what a call is told to give.
CUresult fault(const char *call) {
	if (broken) return broken;
	const char *f = getenv("FLOWRUN_STANDIN_FAULT");
	if (!f || !*f) {
		calls.clear();
		return CUDA_SUCCESS;
	}
	std::string text = f, name = text.substr(0, text.find('='));
	if (name != call) return CUDA_SUCCESS;
	char *at;
	CUresult code = (CUresult)strtol(f + name.size() + 1, &at, 10);
	if (*at++ != '@') return CUDA_SUCCESS;
	if (*at < '0' || *at > '9') return access(at, F_OK) ? CUDA_SUCCESS : code;
	return ++calls[name] == atoi(at) ? code : CUDA_SUCCESS;
}

size_t page() { return (size_t)sysconf(_SC_PAGESIZE); }
size_t pages(size_t n) { return (n + page() - 1) / page() * page(); }

size_t cellBytes(size_t n) { return pages((n / 2 + 16) * sizeof(ptx::Cell)); }
size_t lineBytes(size_t n) { return pages((n / ptx::Line::BYTES + 2) * sizeof(ptx::Line)); }

// zeros is memory that takes none before it is used.
void *zeros(size_t n) {
	void *p = mmap(0, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED) throw ptx::Failure(ptx::Failure::OTHER, "machine: no memory to keep watch over an allocation");
	return p;
}

// watches says whether what happens in memory is looked at.
bool watches() { return number("FLOWRUN_STANDIN_PTX", 0) != 0; }

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

// ran notes a kernel that runs for the first time.
void ran(const std::string &kernel) {
	static std::set<std::string> all;
	const char *name = getenv("FLOWRUN_STANDIN_KERNELS");
	if (!name || !*name || !all.insert(name + kernel).second) return;
	if (FILE *f = fopen(name, "a")) {
		fprintf(f, "%s\n", kernel.c_str());
		fclose(f);
	}
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

// accepted says whether a card and its driver take a text: a later PTX than CUDA 11.0's 7.0 wants a later driver; sm_90a is that very card.
CUresult accepted(const std::string &text) {
	int ofPtx[2], target, major, minor;
	char only = 0;
	size_t version = text.find(".version "), card = text.find(".target sm_");
	if (version == std::string::npos || card == std::string::npos) return CUDA_ERROR_INVALID_PTX;
	sscanf(text.c_str() + version, ".version %d.%d", &ofPtx[0], &ofPtx[1]);
	sscanf(text.c_str() + card, ".target sm_%d%c", &target, &only);
	if ((ofPtx[0] + 4) * 1000 + ofPtx[1] * 10 > (int)number("FLOWRUN_STANDIN_VERSION", 12040)) return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
	capability(major, minor);
	int mine = major * 10 + minor;
	return (only == 'a' ? target == mine : target <= mine) ? CUDA_SUCCESS : CUDA_ERROR_NO_BINARY_FOR_GPU;
}
} // namespace

#define API(name) extern "C" __attribute__((visibility("default"))) CUresult name
#define ENTER_ON(name, stream) \
	std::lock_guard<std::mutex> one(alone); \
	trace(#name, stream); \
	if (CUresult rc = fault(#name)) return rc
#define ENTER(name) ENTER_ON(name, nullptr)
#define INSIDE_ON(name, stream) \
	ENTER_ON(name, stream); \
	if (!current) return CUDA_ERROR_INVALID_CONTEXT
#define INSIDE(name) INSIDE_ON(name, nullptr)

API(cuInit)(unsigned) {
	ENTER(cuInit);
	return cards() ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}
API(cuGetErrorString)(CUresult rc, const char **text) {
	static std::string s;
	s = rc == broken && !report.empty() ? report : "stand-in result " + std::to_string((int)rc);
	*text = s.c_str();
	return CUDA_SUCCESS;
}
API(cuDriverGetVersion)(int *v) {
	*v = (int)number("FLOWRUN_STANDIN_VERSION", 12040);
	return CUDA_SUCCESS;
}
API(cuDeviceGetCount)(int *n) {
	ENTER(cuDeviceGetCount);
	*n = cards();
	return CUDA_SUCCESS;
}
API(cuDeviceGet)(CUdevice *d, int ordinal) {
	if (ordinal < 0 || ordinal >= cards()) return CUDA_ERROR_INVALID_DEVICE;
	*d = ordinal;
	return CUDA_SUCCESS;
}
API(cuDeviceGetName)(char *s, int n, CUdevice) {
	snprintf(s, (size_t)n, "stand-in for a GPU");
	return CUDA_SUCCESS;
}
API(cuDeviceTotalMem)(size_t *n, CUdevice) {
	*n = memory();
	return CUDA_SUCCESS;
}
API(cuDeviceGetAttribute)(int *v, CUdevice_attribute a, CUdevice) {
	int major, minor;
	capability(major, minor);
	*v = a == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? major : a == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? minor
		: a == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT ? 2 : 0;
	return CUDA_SUCCESS;
}
API(cuDevicePrimaryCtxRetain)(CUcontext *c, CUdevice) {
	ENTER(cuDevicePrimaryCtxRetain);
	static char it;
	contexts++;
	*c = (CUcontext)&it;
	return CUDA_SUCCESS;
}
static unsigned flags; // of the primary context
API(cuDevicePrimaryCtxSetFlags)(CUdevice, unsigned f) {
	flags = f;
	return CUDA_SUCCESS;
}
API(cuDevicePrimaryCtxGetState)(CUdevice, unsigned *f, int *active) {
	*f = flags, *active = 1;
	return CUDA_SUCCESS;
}
API(cuDevicePrimaryCtxRelease)(CUdevice) {
	std::lock_guard<std::mutex> one(alone);
	runAll();
	broken = CUDA_SUCCESS; // a new context works again
	report.clear();
	if (--contexts == 0) { // all that it had goes with it
		sequence = {};
		while (!allocated.empty()) release(allocated.begin());
		while (!pinned.empty()) unpin(pinned.begin()->first);
	}
	return CUDA_SUCCESS;
}
API(cuCtxSetCurrent)(CUcontext c) {
	current = c;
	return CUDA_SUCCESS;
}
API(cuCtxSynchronize)(void) {
	INSIDE(cuCtxSynchronize);
	runAll();
	for (Stream *s : streams) sequence.hostWaitsFor(s->number);
	waited();
	return CUDA_SUCCESS;
}
API(cuMemGetInfo)(size_t *unused, size_t *total) {
	INSIDE(cuMemGetInfo);
	*total = memory();
	*unused = memory() - used;
	return CUDA_SUCCESS;
}
API(cuMemAlloc)(CUdeviceptr *at, size_t n) {
	INSIDE(cuMemAlloc);
	if (used + n > memory()) return CUDA_ERROR_OUT_OF_MEMORY;
	size_t whole = pages(n);
	char *p = (char *)mmap(0, whole + page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
	mprotect(p + whole, page(), PROT_NONE); // who reads on is stopped
	*at = (CUdeviceptr)(p + (whole - (n + 255) / 256 * 256));
	memset((void *)*at, 0xff, n < poisoned ? n : poisoned);
	allocated[*at] = {n, whole + page(), {}};
	holds(used + n);
	return CUDA_SUCCESS;
}
API(cuMemFree)(CUdeviceptr at) {
	std::lock_guard<std::mutex> one(alone);
	runAll();
	if (!current) return CUDA_ERROR_INVALID_CONTEXT;
	auto it = allocated.find(at);
	if (it == allocated.end()) return CUDA_ERROR_INVALID_VALUE;
	release(it);
	return broken;
}
API(cuMemHostAlloc)(void **p, size_t n, unsigned) {
	INSIDE(cuMemHostAlloc);
	*p = aligned_alloc(page(), pages(n));
	pinned[(uintptr_t)*p].n = n;
	return CUDA_SUCCESS;
}
API(cuMemFreeHost)(void *p) {
	std::lock_guard<std::mutex> one(alone);
	runAll();
	unpin((uintptr_t)p);
	return broken;
}
API(cuMemcpyHtoD)(CUdeviceptr to, const void *from, size_t n) {
	INSIDE(cuMemcpyHtoD);
	if (recording) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
	memcpy((void *)to, from, n);
	return CUDA_SUCCESS;
}
API(cuMemcpyHtoDAsync)(CUdeviceptr to, const void *from, size_t n, CUstream s) {
	INSIDE_ON(cuMemcpyHtoDAsync, s);
	bool stays = pinnedAt(from) != pinned.end();
	std::string staged(stays ? "" : std::string((const char *)from, n)); // what is pageable may change when the call has returned
	return does(s, {"cuMemcpyHtoDAsync", [=](ptx::u32 deed, int stream) {
		Watch(deed, stream).copies(to, n, true);
		moves((void *)to, stays ? from : staged.data(), n);
	}, from, false});
}
API(cuMemcpyDtoHAsync)(void *to, CUdeviceptr from, size_t n, CUstream s) {
	INSIDE_ON(cuMemcpyDtoHAsync, s);
	return does(s, {"cuMemcpyDtoHAsync", [=](ptx::u32 deed, int stream) {
		Watch(deed, stream).copies(from, n, false);
		moves(to, (void *)from, n);
	}, to, true});
}
API(cuMemcpyDtoDAsync)(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream s) {
	INSIDE_ON(cuMemcpyDtoDAsync, s);
	return does(s, {"cuMemcpyDtoDAsync", [=](ptx::u32 deed, int stream) {
		Watch(deed, stream).copies(from, n, false);
		Watch(deed, stream).copies(to, n, true);
		memmove((void *)to, (void *)from, n);
	}});
}
API(cuMemsetD32Async)(CUdeviceptr at, unsigned v, size_t n, CUstream s) {
	INSIDE_ON(cuMemsetD32Async, s);
	return does(s, {"cuMemsetD32Async", [=](ptx::u32 deed, int stream) {
		Watch(deed, stream).copies(at, 4 * n, true);
		for (size_t i = 0; i < n; i++) ((unsigned *)at)[i] = v;
	}});
}
API(cuStreamCreate)(CUstream *s, unsigned) {
	INSIDE(cuStreamCreate);
	streams.push_back(new Stream{(int)streams.size() + 1});
	*s = (CUstream)streams.back();
	return CUDA_SUCCESS;
}
API(cuStreamDestroy)(CUstream s) {
	std::lock_guard<std::mutex> one(alone);
	runAll(); // events may still lie on it: it stays
	sequence.ends(((Stream *)s)->number);
	return CUDA_SUCCESS;
}
API(cuStreamSynchronize)(CUstream s) {
	INSIDE_ON(cuStreamSynchronize, s);
	if (recording) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	((Stream *)s)->run(((Stream *)s)->end());
	sequence.hostWaitsFor(((Stream *)s)->number);
	waited();
	return broken;
}
API(cuStreamWaitEvent)(CUstream s, CUevent e, unsigned) {
	INSIDE_ON(cuStreamWaitEvent, s);
	if (recording) return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
	if (fault("wait")) return CUDA_SUCCESS;
	((Stream *)s)->put({*(Event *)e, nullptr});
	sequence.waits(((Stream *)s)->number, ((Event *)e)->clock);
	return CUDA_SUCCESS;
}
API(cuStreamBeginCapture)(CUstream, CUstreamCaptureMode) {
	INSIDE(cuStreamBeginCapture);
	if (recording) return CUDA_ERROR_ILLEGAL_STATE;
	recording = new Recording;
	return CUDA_SUCCESS;
}
API(cuStreamEndCapture)(CUstream, CUgraph *g) {
	std::lock_guard<std::mutex> one(alone);
	*g = (CUgraph)recording;
	recording = nullptr;
	if (CUresult rc = fault("cuStreamEndCapture")) return rc;
	return *g ? CUDA_SUCCESS : CUDA_ERROR_ILLEGAL_STATE;
}
API(cuGraphInstantiateWithFlags)(CUgraphExec *e, CUgraph g, unsigned long long) {
	INSIDE(cuGraphInstantiateWithFlags);
	*e = (CUgraphExec) new Recording(*(Recording *)g);
	return CUDA_SUCCESS;
}
API(cuGraphLaunch)(CUgraphExec e, CUstream s) {
	INSIDE_ON(cuGraphLaunch, s);
	for (auto &f : *(Recording *)e) does(s, f);
	return CUDA_SUCCESS;
}
API(cuGraphDestroy)(CUgraph g) {
	delete (Recording *)g;
	return CUDA_SUCCESS;
}
API(cuGraphExecDestroy)(CUgraphExec e) {
	delete (Recording *)e;
	return CUDA_SUCCESS;
}
API(cuEventCreate)(CUevent *e, unsigned flags) {
	INSIDE(cuEventCreate);
	*e = (CUevent) new Event{nullptr, 0, {}, !(flags & CU_EVENT_DISABLE_TIMING), nullptr};
	return CUDA_SUCCESS;
}
API(cuEventDestroy)(CUevent e) {
	delete (Event *)e;
	return CUDA_SUCCESS;
}
API(cuEventRecord)(CUevent e, CUstream s) {
	INSIDE_ON(cuEventRecord, s);
	if (recording) return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
	Event *event = (Event *)e;
	if (event->timed) {
		auto when = event->when = std::make_shared<double>();
		((Stream *)s)->put({{}, [=] { *when = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count(); }});
	}
	event->stream = (Stream *)s, event->at = ((Stream *)s)->end(), event->clock = sequence.at(((Stream *)s)->number);
	return CUDA_SUCCESS;
}
API(cuEventQuery)(CUevent e) {
	INSIDE(cuEventQuery);
	if (!((Event *)e)->happened()) return CUDA_ERROR_NOT_READY;
	sequence.hostWaits(((Event *)e)->clock);
	waited();
	return CUDA_SUCCESS;
}
API(cuEventSynchronize)(CUevent e) {
	INSIDE(cuEventSynchronize);
	if (fault("wait")) return CUDA_SUCCESS;
	((Event *)e)->wait();
	sequence.hostWaits(((Event *)e)->clock);
	waited();
	return broken;
}
API(cuEventElapsedTime)(float *ms, CUevent start, CUevent end) {
	INSIDE(cuEventElapsedTime);
	Event *a = (Event *)start, *b = (Event *)end;
	if (!a->when || !b->when) return CUDA_ERROR_INVALID_HANDLE;
	if (!a->happened() || !b->happened()) return CUDA_ERROR_NOT_READY;
	*ms = (float)(*b->when - *a->when);
	return broken;
}
API(cuModuleLoadDataEx)(CUmodule *m, const void *image, unsigned n, CUjit_option *options, void **values) {
	CUresult rc = fault("cuModuleLoadDataEx");
	if (!current) return CUDA_ERROR_INVALID_CONTEXT;
	std::string log = "ptxas application ptx input, line 1; fatal: stand-in";
	std::unique_ptr<Module> module(new Module{(const char *)image, nullptr});
	if (!rc) rc = accepted(module->text);
	if (!rc && number("FLOWRUN_STANDIN_PTX", 0)) {
		try {
			module->program = ptx::parse(module->text.c_str());
		} catch (const ptx::Error &e) {
			rc = CUDA_ERROR_INVALID_PTX, log = e.what();
		}
	}
	if (rc) {
		unsigned long size = 0;
		for (unsigned i = 0; i < n; i++) {
			if (options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES) size = (unsigned long)(uintptr_t)values[i];
		}
		for (unsigned i = 0; i < n; i++) {
			if (options[i] == CU_JIT_ERROR_LOG_BUFFER) snprintf((char *)values[i], size, "%s", log.c_str());
		}
		return rc;
	}
	*m = (CUmodule)module.release();
	return CUDA_SUCCESS;
}
API(cuModuleUnload)(CUmodule m) {
	delete (Module *)m;
	return CUDA_SUCCESS;
}
API(cuModuleGetFunction)(CUfunction *f, CUmodule m, const char *name) {
	INSIDE(cuModuleGetFunction);
	const Module *module = (const Module *)m;
	if (module->program) {
		auto k = module->program->kernels.find(name);
		if (k == module->program->kernels.end()) return CUDA_ERROR_NOT_FOUND;
		*f = (CUfunction) new Function{k->second.get(), nullptr, k->second->parameters, (48 << 10) - (int)k->second->shared, k->second->threads};
		return CUDA_SUCCESS;
	}
	const char *text = strstr(module->text.c_str(), (std::string(".entry ") + name + "(").c_str()), *most = text ? strstr(text, ".maxntid ") : nullptr;
	if (!most) return CUDA_ERROR_NOT_FOUND;
	Dl_info own;
	dladdr((void *)cuInit, &own);
	void *lib = dlopen(own.dli_fname, RTLD_NOW), *run = dlsym(lib, (std::string(name) + "__run").c_str());
	size_t (*size)(void) = (size_t(*)(void))dlsym(lib, (std::string(name) + "__size").c_str());
	if (!run || !size) return CUDA_ERROR_NOT_FOUND;
	*f = (CUfunction) new Function{nullptr, (void (*)(const emu::Shape *, const void *))run, size(), 48 << 10, (unsigned)atoi(most + 9)};
	return CUDA_SUCCESS;
}
API(cuFuncSetAttribute)(CUfunction fn, CUfunction_attribute a, int v) {
	Function *f = (Function *)fn;
	if (a != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
	if (v < 0 || v + (f->kernel ? f->kernel->shared : 0) > (size_t)sharedLimit()) return CUDA_ERROR_INVALID_VALUE;
	f->shared = v;
	return CUDA_SUCCESS;
}
API(cuLaunchKernel)(CUfunction fn, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, CUstream s,
	void **params, void **) {
	INSIDE_ON(cuLaunchKernel, s);
	Function *f = (Function *)fn;
	if (!gx || !gy || !gz || gx > 0x7fffffff || gy > 65535 || gz > 65535 || bx != f->threads || by != 1 || bz != 1) return CUDA_ERROR_INVALID_VALUE;
	if ((int)shared > f->shared) return CUDA_ERROR_INVALID_VALUE;
	if (CUresult rc = fault("async")) {
		broken = rc;
		return CUDA_SUCCESS;
	}
	if (fault("skip")) return CUDA_SUCCESS;
	std::string args((const char *)params[0], f->size);
	if (const ptx::Kernel *k = f->kernel) {
		return does(s, {k->name, [=](ptx::u32 deed, int stream) {
			const ptx::u32 grid[3] = {gx, gy, gz};
			Watch watch(deed, stream);
			ran(k->name);
			ptx::launch(*k, grid, bx, shared, args.data(), watch);
		}});
	}
	return does(s, {"a kernel", [=](ptx::u32, int) {
		emu::Shape shape = {{gx, gy, gz}, bx, shared};
		f->run(&shape, args.data());
	}});
}
