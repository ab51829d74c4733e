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

#include "memory.h"
#include <chrono>
#include <dlfcn.h>
#include <mutex>

namespace {

thread_local CUcontext current;
int contexts; // how often the primary one is retained

// Module is a text and, where it is to be run itself, what was read of it.
struct Module {
	std::string text;
	std::shared_ptr<ptx::Module> program;
};

// read gives what a text says. The machine is asked once for each.
std::shared_ptr<ptx::Module> read(const std::string &text) {
	static std::map<std::string, std::shared_ptr<ptx::Module>> all;
	auto &m = all[text];
	if (!m) m = ptx::parse(text.c_str());
	return m;
}

struct Function {
	ptx::Kernel *kernel; // or nil: run is the emulation
	void (*run)(const emu::Shape *, const void *);
	size_t size;
	int shared;
	unsigned threads; // of a block: the PTX's .maxntid, which kernels count on
};

int numberOf(CUstream s) { return s ? ((Stream *)s)->number : 0; }

std::mutex alone;

} // namespace

#define API(name) extern "C" __attribute__((visibility("default"))) CUresult name
#define ENTER_ON(name, stream) \
	std::lock_guard<std::mutex> one(alone); \
	trace(#name, numberOf(stream)); \
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
			module->program = read(module->text);
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
