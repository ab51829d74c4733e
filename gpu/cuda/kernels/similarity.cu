// MS-SSIM of dense volumes, in terms of s = y + t and d = y - t, whose windowed means and variances are m and v with the window's
// index:
//
//	luminance l = (ms² - md² + 2·C1)/(ms² + md² + 2·C1)      contrast-structure c = (vs - vd + 2·C2)/(vs + vd + 2·C2)
#include "device.h"

enum { TAPS = 11, SCALES = 8 };

struct VolumeArgs {
	View y, t; // t only at the start
	Dims d; // of the tensors
	u64 s, d_, scale; // floats; at the end s is the gradient, and scale a float
	i32 sample;
};

// volumes: s = y + t, d = y - t of a sample.
KERNEL(volumes, VolumeArgs, 256) {
	i32 n = a.d.d * a.d.h * a.d.w;
	for (i32 i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) {
		i32 row = a.sample * a.d.d * a.d.h + i / a.d.w, x = i % a.d.w;
		float y = load1(a.y, cell(a.y, a.d.w, row, x)), t = load1(a.t, cell(a.t, a.d.w, row, x));
		((float *)a.s)[i] = y + t;
		((float *)a.d_)[i] = y - t;
	}
}

// gradientOut: y = scale/samples·s of a sample.
KERNEL(gradientOut, VolumeArgs, 256) {
	i32 n = a.d.d * a.d.h * a.d.w;
	float by = *(const float *)a.scale / a.d.n;
	for (i32 i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) {
		float v[8] = {by * ((const float *)a.s)[i], 0, 0, 0, 0, 0, 0, 0};
		put8(a.y, a.d.w, a.sample * a.d.d * a.d.h + i / a.d.w, i % a.d.w, 0, 1, v);
	}
}

struct ScaleArgs {
	u64 fine, coarse, slope; // floats; slope is the fine one's
	i32 z, y, x, cz, cy, cx; // sizes
};

DEVICE i32 stepOf(i32 n) { return n < 2 ? n : 2; }

// halve: coarse = averages of 2 voxels of fine along each axis longer than 1.
KERNEL(halve, ScaleArgs, 256) {
	i32 n = a.cz * a.cy * a.cx, sz = stepOf(a.z), sy = stepOf(a.y), sx = stepOf(a.x);
	for (i32 i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) {
		i32 x = i % a.cx, y = i / a.cx % a.cy, z = i / a.cx / a.cy;
		float s = 0;
		for (i32 p = 0; p < sz; p++) for (i32 q = 0; q < sy; q++) for (i32 r = 0; r < sx; r++) {
			s += ((const float *)a.fine)[((z * sz + p) * a.y + y * sy + q) * a.x + x * sx + r];
		}
		((float *)a.coarse)[i] = s / (sz * sy * sx);
	}
}

// spread: fine = slope·fine + the gradient of the coarser scale (0 where there is none).
KERNEL(spread, ScaleArgs, 256) {
	i32 n = a.z * a.y * a.x, sz = stepOf(a.z), sy = stepOf(a.y), sx = stepOf(a.x);
	float slope = *(const float *)a.slope;
	for (i32 i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) {
		i32 x = i % a.x / sx, y = i / a.x % a.y / sy, z = i / a.x / a.y / sz;
		float g = slope * ((float *)a.fine)[i];
		if (a.coarse && z < a.cz && y < a.cy && x < a.cx) g += ((const float *)a.coarse)[(z * a.cy + y) * a.cx + x] / (sz * sy * sx);
		((float *)a.fine)[i] = g;
	}
}

struct BlurArgs {
	u64 in0, in1, in2, in3, out0, out1, out2, out3; // map blockIdx.y
	i32 z, y, x, axis, taps, back; // size of what comes in
	i32 squares; // in2 and in3 are squared
	float w[TAPS];
};

// blur filters along an axis, where the window lies inside; or back, its transpose.
KERNEL(blur, BlurArgs, 256) {
	const float *in = (const float *)(blockIdx.y == 0 ? a.in0 : blockIdx.y == 1 ? a.in1 : blockIdx.y == 2 ? a.in2 : a.in3);
	float *out = (float *)(blockIdx.y == 0 ? a.out0 : blockIdx.y == 1 ? a.out1 : blockIdx.y == 2 ? a.out2 : a.out3);
	bool square = a.squares && blockIdx.y >= 2;
	i32 grow = a.back ? a.taps - 1 : 1 - a.taps, length = a.axis == 0 ? a.z : a.axis == 1 ? a.y : a.x, stride = a.axis == 0 ? a.y * a.x : a.axis == 1 ? a.x : 1;
	i32 oz = a.z + (a.axis == 0 ? grow : 0), oy = a.y + (a.axis == 1 ? grow : 0), ox = a.x + (a.axis == 2 ? grow : 0);
	for (i32 i = blockIdx.x * 256 + threadIdx.x; i < oz * oy * ox; i += gridDim.x * 256) {
		i32 x = i % ox, y = i / ox % oy, z = i / ox / oy, at = a.axis == 0 ? z : a.axis == 1 ? y : x;
		i32 base = ((a.axis == 0 ? 0 : z) * a.y + (a.axis == 1 ? 0 : y)) * a.x + (a.axis == 2 ? 0 : x);
		float s = 0;
		UNROLL for (int k = 0; k < TAPS; k++) {
			i32 from = a.back ? at - k : at + k;
			if (k >= a.taps || from < 0 || from >= length) continue;
			float v = in[base + from * stride];
			s += a.w[k] * (square ? v * v : v);
		}
		out[i] = s;
	}
}

struct MapArgs {
	u64 s, d, s2, d2; // windowed means of s, d, s², d²
	u64 squareS, squareD, means; // slopes of them, written; s and d alike have a slope of 1 in y
	u64 parts; // doubles [blocks]
	u64 grad; // of gradientMap
	i32 n, last;
	float per;
};

// similarityMap leaves each block's Σ l·c (Σ c but for the last scale) and the slopes.
KERNEL(similarityMap, MapArgs, 256) {
	__shared__ double sums[256];
	const float C1 = 0.02f * 0.02f, C2 = 0.06f * 0.06f;
	double sum = 0;
	for (i32 i = blockIdx.x * 256 + threadIdx.x; i < a.n; i += gridDim.x * 256) {
		float ms = ((const float *)a.s)[i], md = ((const float *)a.d)[i], s2 = ms * ms, d2 = md * md;
		float vs = ((const float *)a.s2)[i] - s2, vd = ((const float *)a.d2)[i] - d2;
		float over = vs + vd + 2 * C2, c = (vs - vd + 2 * C2) / over, bright = s2 + d2 + 2 * C1;
		float l = a.last ? (s2 - d2 + 2 * C1) / bright : 1;
		sum += l * c;
		float p = l * (1 - c) / over, q = -l * (1 + c) / over, g = -2 * (p * ms + q * md);
		if (a.last) g += 2 * c * (ms * (1 - l) - md * (1 + l)) / bright;
		((float *)a.squareS)[i] = p;
		((float *)a.squareD)[i] = q;
		((float *)a.means)[i] = g;
	}
	sum = sumBlock(sum, sums);
	if (threadIdx.x == 0) ((double *)a.parts)[blockIdx.x] = sum;
}

// gradientMap: grad = per·(2·(s·squareS + d·squareD) + means), the maps blurred back.
KERNEL(gradientMap, MapArgs, 256) {
	for (i32 i = blockIdx.x * 256 + threadIdx.x; i < a.n; i += gridDim.x * 256) {
		float v = ((const float *)a.s)[i] * ((const float *)a.squareS)[i] + ((const float *)a.d)[i] * ((const float *)a.squareD)[i];
		((float *)a.grad)[i] = a.per * (2 * v + ((const float *)a.means)[i]);
	}
}

struct FactorsArgs {
	u64 parts[SCALES]; // doubles [blocks]
	u64 factors, out; // floats: slope of each scale, and at SCALES the sum over samples
	i32 blocks[SCALES], voxels[SCALES];
	float weights[SCALES];
	i32 n, sample, samples;
};

// factors makes each scale's mean, their product and its slopes, and of the last sample the loss (one block).
KERNEL(factors, FactorsArgs, 256) {
	__shared__ double sums[256];
	float mean[SCALES], product = 1;
	UNROLL for (int i = 0; i < SCALES; i++) {
		mean[i] = 1;
		if (i >= a.n) continue;
		double s = 0;
		for (i32 k = threadIdx.x; k < a.blocks[i]; k += 256) s += ((const double *)a.parts[i])[k];
		mean[i] = (float)(sumBlock(s, sums) / a.voxels[i]);
		float least = mean[i] <= 1e-6f ? 1e-6f : mean[i];
		product *= exp2Fast(a.weights[i] * log2Fast(least));
	}
	if (threadIdx.x > 0) return;
	float *out = (float *)a.factors;
	UNROLL for (int i = 0; i < SCALES; i++) {
		if (i < a.n) out[i] = mean[i] <= 1e-6f ? 0 : -product * a.weights[i] / mean[i];
	}
	float all = (a.sample ? out[SCALES] : 0) + product;
	out[SCALES] = all;
	if (a.sample == a.samples - 1) *(float *)a.out = 1 - all / a.samples;
}
