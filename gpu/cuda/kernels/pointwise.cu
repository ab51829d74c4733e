// What works voxel by voxel, and on planes.
#include "device.h"

struct PointArgs {
	View a, b, y;
	Dims d;
	u64 scale; // a float, or 0 for 1
	float by;
};

// combine: y = a + by·scale·b.
KERNEL(combine, PointArgs, 256) {
	float by = a.by * (a.scale ? *(const float *)a.scale : 1);
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < spotsOf(a.d); i += gridDim.x * 256) {
		Spot s = spotOf(i, a.d);
		float u[8], v[8];
		get8(a.a, a.d.w, s.row, s.x, s.c, s.n, u);
		get8(a.b, a.d.w, s.row, s.x, s.c, s.n, v);
		UNROLL for (int k = 0; k < 8; k++) u[k] += by * v[k];
		put8(a.y, a.d.w, s.row, s.x, s.c, s.n, u);
	}
}

// activate: y = max(a, 0) + by·min(a, 0).
KERNEL(activate, PointArgs, 256) {
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < spotsOf(a.d); i += gridDim.x * 256) {
		Spot s = spotOf(i, a.d);
		float v[8];
		get8(a.a, a.d.w, s.row, s.x, s.c, s.n, v);
		UNROLL for (int k = 0; k < 8; k++) v[k] = v[k] <= 0 ? a.by * v[k] : v[k];
		put8(a.y, a.d.w, s.row, s.x, s.c, s.n, v);
	}
}

struct GradArgs {
	View x, dy, add, dx; // add may be none
	Dims d;
	float slope;
};

DEVICE void plus8(const View &add, i32 w, const Spot &s, float (&v)[8]) {
	if (!add.at) return;
	float u[8];
	get8(add, w, s.row, s.x, s.c, s.n, u);
	UNROLL for (int k = 0; k < 8; k++) v[k] += u[k];
}

// activateGrad: dx = dy where x > 0, slope·dy elsewhere, + add. x is activate's y.
KERNEL(activateGrad, GradArgs, 256) {
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < spotsOf(a.d); i += gridDim.x * 256) {
		Spot s = spotOf(i, a.d);
		float y[8], v[8];
		get8(a.x, a.d.w, s.row, s.x, s.c, s.n, y);
		get8(a.dy, a.d.w, s.row, s.x, s.c, s.n, v);
		UNROLL for (int k = 0; k < 8; k++) v[k] *= y[k] > 0 ? 1 : a.slope;
		plus8(a.add, a.d.w, s, v);
		put8(a.dx, a.d.w, s.row, s.x, s.c, s.n, v);
	}
}

// first4 gives the maxima of a 2×2 window and which voxel (2y + x) is the first of them.
DEVICE void first4(const View &x, const Dims &d, i32 plane, i32 h, i32 w, i32 c, i32 n, float (&best)[8], i32 (&at)[8]) {
	UNROLL for (int q = 0; q < 4; q++) {
		float v[8];
		get8(x, d.w, plane * d.h + 2 * h + q / 2, 2 * w + q % 2, c, n, v);
		UNROLL for (int k = 0; k < 8; k++) {
			if (q == 0 || v[k] > best[k]) best[k] = v[k], at[k] = q;
		}
	}
}

// maxPool: b = maxima of a over 2×2; d is a's.
KERNEL(maxPool, PointArgs, 256) {
	Dims p = a.d;
	p.h /= 2, p.w /= 2;
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < spotsOf(p); i += gridDim.x * 256) {
		Spot s = spotOf(i, p);
		float v[8];
		i32 at[8];
		first4(a.a, a.d, s.row / p.h, s.row % p.h, s.x, s.c, s.n, v, at);
		put8(a.y, p.w, s.row, s.x, s.c, s.n, v);
	}
}

// maxPoolGrad gives dy to the first maximum of each window, 0 to the others, + add.
KERNEL(maxPoolGrad, GradArgs, 256) {
	i32 ph = a.d.h / 2, pw = a.d.w / 2;
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < spotsOf(a.d); i += gridDim.x * 256) {
		Spot s = spotOf(i, a.d);
		i32 plane = s.row / a.d.h, h = s.row % a.d.h;
		float v[8], best[8];
		UNROLL for (int k = 0; k < 8; k++) v[k] = 0;
		if (h / 2 < ph && s.x / 2 < pw) {
			i32 at[8];
			first4(a.x, a.d, plane, h / 2, s.x / 2, s.c, s.n, best, at);
			get8(a.dy, pw, plane * ph + h / 2, s.x / 2, s.c, s.n, v);
			UNROLL for (int k = 0; k < 8; k++) v[k] = at[k] == h % 2 * 2 + s.x % 2 ? v[k] : 0;
		}
		plus8(a.add, a.d.w, s, v);
		put8(a.dx, a.d.w, s.row, s.x, s.c, s.n, v);
	}
}

struct SliceArgs {
	View x, plane, add; // add may be none
	Dims d, p; // of x and of the planes
	u64 at; // floats [p.n]
	i32 axis, each; // planes of a sample
};

// slice: plane i is x cut at at[i] along an axis.
KERNEL(slice, SliceArgs, 256) {
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < spotsOf(a.p); i += gridDim.x * 256) {
		Spot s = spotOf(i, a.p);
		i32 image = s.row / a.p.h, r = s.row % a.p.h, at = (i32)((const float *)a.at)[image];
		i32 z = a.axis == 0 ? at : r, y = a.axis == 1 ? at : a.axis == 0 ? r : s.x, x = a.axis == 2 ? at : s.x;
		float v[8];
		get8(a.x, a.d.w, (image / a.each * a.d.d + z) * a.d.h + y, x, s.c, s.n, v);
		put8(a.plane, a.p.w, s.row, s.x, s.c, s.n, v);
	}
}

// sliceGrad: x = add + what planes that a voxel is in have, in their order.
KERNEL(sliceGrad, SliceArgs, 256) {
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < spotsOf(a.d); i += gridDim.x * 256) {
		Spot s = spotOf(i, a.d);
		i32 y = s.row % a.d.h, z = s.row / a.d.h % a.d.d, n = s.row / a.d.h / a.d.d;
		i32 place = a.axis == 0 ? z : a.axis == 1 ? y : s.x, r = a.axis == 0 ? y : z, c = a.axis == 2 ? y : s.x;
		float v[8];
		UNROLL for (int k = 0; k < 8; k++) v[k] = 0;
		plus8(a.add, a.d.w, s, v);
		for (i32 k = 0; k < a.each; k++) {
			i32 image = n * a.each + k;
			if ((i32)((const float *)a.at)[image] != place) continue;
			float u[8];
			get8(a.plane, a.p.w, image * a.p.h + r, c, s.c, s.n, u);
			UNROLL for (int q = 0; q < 8; q++) v[q] += u[q];
		}
		put8(a.x, a.d.w, s.row, s.x, s.c, s.n, v);
	}
}

struct TintArgs {
	View one, many;
	Dims d; // of many
	u64 scale, shift;
};

// tint: many[c] = scale[c]·one + shift[c].
KERNEL(tint, TintArgs, 256) {
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < spotsOf(a.d); i += gridDim.x * 256) {
		Spot s = spotOf(i, a.d);
		float x = load1(a.one, cell(a.one, a.d.w, s.row, s.x)), v[8];
		UNROLL for (int k = 0; k < 8; k++) v[k] = k < s.n ? ((const float *)a.scale)[s.c + k] * x + ((const float *)a.shift)[s.c + k] : 0;
		put8(a.many, a.d.w, s.row, s.x, s.c, s.n, v);
	}
}

// tintGrad: one = Σ scale[c]·many[c].
KERNEL(tintGrad, TintArgs, 256) {
	Dims d = a.d;
	d.c = 1;
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < spotsOf(d); i += gridDim.x * 256) {
		Spot s = spotOf(i, d);
		u64 at = cell(a.many, d.w, s.row, s.x);
		float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
		for (i32 c = 0; c < a.d.c; c++) v[0] += ((const float *)a.scale)[c] * load1(a.many, at + c);
		put8(a.one, d.w, s.row, s.x, 0, 1, v);
	}
}
