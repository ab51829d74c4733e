//go:build cuda

// One program for machines with and without an NVIDIA driver: every cu… symbol that it links against is defined here, as a jump
// through a table. shim_open fills the table from libcuda.so.1; until then each of them returns CUDA_ERROR_NOT_INITIALIZED.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include "shim.h"

#define HIDDEN __attribute__((visibility("hidden")))

enum {
#define X(f) ID_##f,
#include "shim.inc"
#undef X
	COUNT
};

static const char *const names[COUNT] = {
#define X(f) #f,
#include "shim.inc"
#undef X
};

static int missing(void) { return 3; } // CUDA_ERROR_NOT_INITIALIZED

__attribute__((used)) HIDDEN void *shim_table[COUNT] = {
#define X(f) (void *)missing,
#include "shim.inc"
#undef X
};

// Package cu calls cuInit as the program starts, and ends the process where it fails: nothing has failed yet.
HIDDEN int cuInit(unsigned flags) {
	(void)flags;
	return 0;
}

#if defined(__x86_64__)
#define JUMP "jmp *shim_table+8*shim_i(%rip)\n"
#elif defined(__aarch64__)
#define JUMP "adrp x16, shim_table+8*shim_i\nldr x16, [x16, :lo12:shim_table+8*shim_i]\nbr x16\n"
#else
#error "the CUDA engine is for amd64 and arm64"
#endif
#define X(f) ".globl " #f "\n.hidden " #f "\n.type " #f ", @function\n" #f ":\n" JUMP ".set shim_i, shim_i+1\n"
__asm__(".text\n.set shim_i, 0\n"
#include "shim.inc"
);
#undef X

int shim_open(const char *library, char *reason, int n) {
	static void *open;
	if (open) return 0;
	// Kernels are brought to the device when they are compiled, not at their first launch, for which no memory may be left.
	setenv("CUDA_MODULE_LOADING", "EAGER", 0);
	void *l = dlopen(library, RTLD_NOW | RTLD_LOCAL);
	if (!l) {
		snprintf(reason, n, "%s", dlerror());
		return SHIM_NO_LIBRARY;
	}
	int (*init)(unsigned) = (int (*)(unsigned))dlsym(l, "cuInit");
	int rc = init ? init(0) : 999;
	if (rc) {
		int (*text)(int, const char **) = (int (*)(int, const char **))dlsym(l, "cuGetErrorString");
		const char *s = 0;
		if (text) text(rc, &s);
		snprintf(reason, n, "cuInit: error %d (%s)", rc, s ? s : "unknown");
		dlclose(l);
		return rc;
	}
	for (int i = 0; i < COUNT; i++) {
		void *p = dlsym(l, names[i]);
		if (p) shim_table[i] = p;
	}
	open = l;
	return 0;
}
