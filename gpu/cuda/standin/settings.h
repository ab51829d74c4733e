// What the environment tells the stand-in to be, and what it is told to write down. See driver.cc.
#pragma once
#include "../include/cuda.h"
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <unistd.h>

namespace {

CUresult broken; // the device's, once it is lost
std::string report; // what broke it
std::map<std::string, int> calls;

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

// trace notes a call on a stream, or on none.
void trace(const char *call, int stream) {
	const char *file = getenv("FLOWRUN_STANDIN_TRACE");
	if (!file || !*file) return;
	if (FILE *f = fopen(file, "a")) {
		fprintf(f, "%s %d\n", call, stream);
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

// watches says whether what happens in memory is looked at.
bool watches() { return number("FLOWRUN_STANDIN_PTX", 0) != 0; }
} // namespace
