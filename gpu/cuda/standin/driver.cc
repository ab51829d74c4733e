// A libcuda.so.1 for machines without a GPU: device memory is host memory, a launch runs the kernel's emulation. Fresh
// memory holds NaN (the rest of a large piece zeros). What is put on a stream happens at once or
// when somebody waits for it, by chance: who forgets to wait, or to have others wait, finds out. FLOWRUN_STANDIN_TRACE=FILE has each call appended to a file, a line "CALL STREAM"
// (streams count from 1; 0 is none). FLOWRUN_STANDIN_FAULT=CALL=CODE@N makes the Nth of a call give a result (CALL async: the Nth launch breaks
// the device, which later calls say).
#define FLOWRUN_EMULATION
#define FLOWRUN_EMULATION_BODY
#include "../kernels/device.h"
namespace adversary {
#include "../kernels/adversary.cu"
}
namespace codebook {
#include "../kernels/codebook.cu"
}
namespace conv {
#include "../kernels/conv.cu"
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
namespace weight {
#include "../kernels/weight.cu"
}

#include "../include/cuda.h"
#include <cstdlib>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

namespace {

const size_t memory = 1ull << 30, poisoned = 24 << 20; // of an allocation, from its start
size_t used;
thread_local CUcontext current;
CUresult broken; // the device's, once it is lost
std::map<std::string, int> calls;
std::map<CUdeviceptr, size_t> allocated; // with the guard behind each

struct Function {
	void (*run)(const emu::Shape *, const void *);
	size_t size;
	int shared;
	unsigned threads; // of a block: the PTX's .maxntid, which kernels count on
};

typedef std::function<void()> Work;
typedef std::vector<Work> Recording;
Recording *recording;

// Event is a place on a stream; none before it is recorded.
struct Event {
	struct Stream *stream;
	size_t at;

	bool happened();
	void wait();
};

// Step is work, behind an event.
struct Step {
	Event behind;
	Work work;
};

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
		if (!broken && s.work) s.work();
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
		while (!lazy && !steps.empty() && steps.front().behind.happened()) next();
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
	int code = 0, at = 0;
	sscanf(f + name.size() + 1, "%d@%d", &code, &at);
	return ++calls[name] == at ? (CUresult)code : CUDA_SUCCESS;
}

// does puts f on a stream, or records it.
CUresult does(CUstream s, Work f) {
	if (recording) recording->push_back(f);
	else ((Stream *)s)->put({{}, f});
	return CUDA_SUCCESS;
}

size_t page() { return (size_t)sysconf(_SC_PAGESIZE); }
size_t pages(size_t n) { return (n + page() - 1) / page() * page(); }
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
	return CUDA_SUCCESS;
}
API(cuGetErrorString)(CUresult rc, const char **text) {
	static std::string s;
	s = "stand-in result " + std::to_string((int)rc);
	*text = s.c_str();
	return CUDA_SUCCESS;
}
API(cuDriverGetVersion)(int *v) {
	*v = 12040;
	return CUDA_SUCCESS;
}
API(cuDeviceGetCount)(int *n) {
	ENTER(cuDeviceGetCount);
	*n = getenv("FLOWRUN_STANDIN_NONE") ? 0 : 1;
	return CUDA_SUCCESS;
}
API(cuDeviceGet)(CUdevice *d, int ordinal) {
	if (ordinal) return CUDA_ERROR_INVALID_DEVICE;
	*d = 0;
	return CUDA_SUCCESS;
}
API(cuDeviceGetName)(char *s, int n, CUdevice) {
	snprintf(s, (size_t)n, "stand-in for a GPU");
	return CUDA_SUCCESS;
}
API(cuDeviceTotalMem)(size_t *n, CUdevice) {
	*n = memory;
	return CUDA_SUCCESS;
}
API(cuDeviceGetAttribute)(int *v, CUdevice_attribute a, CUdevice) {
	const char *old = getenv("FLOWRUN_STANDIN_OLD");
	*v = a == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? old ? 7 : 8 : a == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT ? 2 : 0;
	return CUDA_SUCCESS;
}
API(cuDevicePrimaryCtxRetain)(CUcontext *c, CUdevice) {
	ENTER(cuDevicePrimaryCtxRetain);
	static char it;
	*c = (CUcontext)&it;
	return CUDA_SUCCESS;
}
API(cuDevicePrimaryCtxRelease)(CUdevice) {
	std::lock_guard<std::mutex> one(alone);
	runAll();
	broken = CUDA_SUCCESS; // a new context works again
	return CUDA_SUCCESS;
}
API(cuCtxSetCurrent)(CUcontext c) {
	current = c;
	return CUDA_SUCCESS;
}
API(cuCtxSynchronize)(void) {
	INSIDE(cuCtxSynchronize);
	runAll();
	return CUDA_SUCCESS;
}
API(cuMemGetInfo)(size_t *unused, size_t *total) {
	INSIDE(cuMemGetInfo);
	*total = memory;
	*unused = memory - used;
	return CUDA_SUCCESS;
}
API(cuMemAlloc)(CUdeviceptr *at, size_t n) {
	INSIDE(cuMemAlloc);
	if (used + n > memory) return CUDA_ERROR_OUT_OF_MEMORY;
	size_t whole = pages(n);
	char *p = (char *)mmap(0, whole + page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
	mprotect(p + whole, page(), PROT_NONE); // who reads on is stopped
	*at = (CUdeviceptr)(p + (whole - (n + 255) / 256 * 256));
	memset((void *)*at, 0xff, n < poisoned ? n : poisoned);
	allocated[*at] = whole + page();
	used += n;
	return CUDA_SUCCESS;
}
API(cuMemFree)(CUdeviceptr at) {
	std::lock_guard<std::mutex> one(alone);
	runAll();
	if (!current) return CUDA_ERROR_INVALID_CONTEXT;
	auto it = allocated.find(at);
	if (it == allocated.end()) return CUDA_ERROR_INVALID_VALUE;
	munmap((void *)((uintptr_t)at / page() * page()), it->second);
	allocated.erase(it);
	used = 0;
	return broken;
}
API(cuMemHostAlloc)(void **p, size_t n, unsigned) {
	INSIDE(cuMemHostAlloc);
	*p = aligned_alloc(4096, (n + 4095) / 4096 * 4096);
	return CUDA_SUCCESS;
}
API(cuMemFreeHost)(void *p) {
	std::lock_guard<std::mutex> one(alone);
	runAll();
	free(p);
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
	return does(s, [=] { memcpy((void *)to, from, n); });
}
API(cuMemcpyDtoHAsync)(void *to, CUdeviceptr from, size_t n, CUstream s) {
	INSIDE_ON(cuMemcpyDtoHAsync, s);
	return does(s, [=] { memcpy(to, (void *)from, n); });
}
API(cuMemcpyDtoDAsync)(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream s) {
	INSIDE_ON(cuMemcpyDtoDAsync, s);
	return does(s, [=] { memmove((void *)to, (void *)from, n); });
}
API(cuMemsetD32Async)(CUdeviceptr at, unsigned v, size_t n, CUstream s) {
	INSIDE_ON(cuMemsetD32Async, s);
	return does(s, [=] {
		for (size_t i = 0; i < n; i++) ((unsigned *)at)[i] = v;
	});
}
API(cuStreamCreate)(CUstream *s, unsigned) {
	INSIDE(cuStreamCreate);
	streams.push_back(new Stream{(int)streams.size() + 1});
	*s = (CUstream)streams.back();
	return CUDA_SUCCESS;
}
API(cuStreamDestroy)(CUstream) {
	std::lock_guard<std::mutex> one(alone);
	runAll(); // events may still lie on it: it stays
	return CUDA_SUCCESS;
}
API(cuStreamSynchronize)(CUstream s) {
	INSIDE_ON(cuStreamSynchronize, s);
	if (recording) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	((Stream *)s)->run(((Stream *)s)->end());
	return broken;
}
API(cuStreamWaitEvent)(CUstream s, CUevent e, unsigned) {
	INSIDE_ON(cuStreamWaitEvent, s);
	if (recording) return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
	((Stream *)s)->put({*(Event *)e, nullptr});
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
API(cuEventCreate)(CUevent *e, unsigned) {
	INSIDE(cuEventCreate);
	*e = (CUevent) new Event{};
	return CUDA_SUCCESS;
}
API(cuEventDestroy)(CUevent e) {
	delete (Event *)e;
	return CUDA_SUCCESS;
}
API(cuEventRecord)(CUevent e, CUstream s) {
	INSIDE_ON(cuEventRecord, s);
	if (recording) return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
	*(Event *)e = {(Stream *)s, ((Stream *)s)->end()};
	return CUDA_SUCCESS;
}
API(cuEventSynchronize)(CUevent e) {
	INSIDE(cuEventSynchronize);
	((Event *)e)->wait();
	return broken;
}
API(cuModuleLoadDataEx)(CUmodule *m, const void *image, unsigned n, CUjit_option *options, void **values) {
	CUresult rc = fault("cuModuleLoadDataEx");
	if (!current) return CUDA_ERROR_INVALID_CONTEXT;
	if (!rc && !strstr((const char *)image, ".version")) rc = CUDA_ERROR_INVALID_PTX;
	if (rc) {
		for (unsigned i = 0; i < n; i++) {
			if (options[i] == CU_JIT_ERROR_LOG_BUFFER) strcpy((char *)values[i], "ptxas application ptx input, line 1; fatal: stand-in");
		}
		return rc;
	}
	*m = (CUmodule)strdup((const char *)image);
	return CUDA_SUCCESS;
}
API(cuModuleUnload)(CUmodule m) {
	free(m);
	return CUDA_SUCCESS;
}
API(cuModuleGetFunction)(CUfunction *f, CUmodule m, const char *name) {
	INSIDE(cuModuleGetFunction);
	const char *text = strstr((const char *)m, (std::string(".entry ") + name + "(").c_str()), *most = text ? strstr(text, ".maxntid ") : nullptr;
	if (!most) return CUDA_ERROR_NOT_FOUND;
	Dl_info own;
	dladdr((void *)cuInit, &own);
	void *lib = dlopen(own.dli_fname, RTLD_NOW), *run = dlsym(lib, (std::string(name) + "__run").c_str());
	size_t (*size)(void) = (size_t(*)(void))dlsym(lib, (std::string(name) + "__size").c_str());
	if (!run || !size) return CUDA_ERROR_NOT_FOUND;
	*f = (CUfunction) new Function{(void (*)(const emu::Shape *, const void *))run, size(), 48 << 10, (unsigned)atoi(most + 9)};
	return CUDA_SUCCESS;
}
API(cuFuncSetAttribute)(CUfunction f, CUfunction_attribute a, int v) {
	if (a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) ((Function *)f)->shared = v;
	return v > 99 << 10 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
API(cuLaunchKernel)(CUfunction fn, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, CUstream s,
	void **params, void **) {
	INSIDE_ON(cuLaunchKernel, s);
	Function *f = (Function *)fn;
	if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || bx != f->threads || by != 1 || bz != 1) return CUDA_ERROR_INVALID_VALUE;
	if ((int)shared > f->shared) return CUDA_ERROR_INVALID_VALUE;
	if (CUresult rc = fault("async")) {
		broken = rc;
		return CUDA_SUCCESS;
	}
	std::string args((const char *)params[0], f->size);
	return does(s, [=] {
		emu::Shape shape = {{gx, gy, gz}, bx, shared};
		f->run(&shape, args.data());
	});
}
