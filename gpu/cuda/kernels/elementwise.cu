// Copies between hosts' layout and the engine's, and the reconstruction's loss.
#include "device.h"

struct CopyArgs {
	u64 dense; // floats [rows][w][c]
	View t;
	Dims d;
	i32 row, rows; // of the tensor
};

// storeTensor writes rows of dense data into a tensor, fetchTensor is its inverse.
KERNEL(storeTensor, CopyArgs, 256) {
	Dims d = a.d;
	d.n = a.rows, d.d = d.h = 1;
	View dense = {a.dense, 0, d.c, FLOAT32, ZERO};
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < spotsOf(d); i += gridDim.x * 256) {
		Spot s = spotOf(i, d);
		float v[8];
		UNROLL for (int k = 0; k < 8; k++) v[k] = k < s.n ? ((const float *)a.dense)[cell(dense, d.w, s.row, s.x) + s.c + k] : 0;
		put8(a.t, d.w, a.row + s.row, s.x, s.c, s.n, v);
	}
}

KERNEL(fetchTensor, CopyArgs, 256) {
	Dims d = a.d;
	d.n = a.rows, d.d = d.h = 1;
	View dense = {a.dense, 0, d.c, FLOAT32, ZERO};
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < spotsOf(d); i += gridDim.x * 256) {
		Spot s = spotOf(i, d);
		float v[8];
		get8(a.t, d.w, a.row + s.row, s.x, s.c, s.n, v);
		UNROLL for (int k = 0; k < 8; k++) {
			if (k < s.n) ((float *)a.dense)[cell(dense, d.w, s.row, s.x) + s.c + k] = v[k];
		}
	}
}

struct LossArgs {
	View y, t, dy; // dy may be none
	Dims d;
	u64 scale, parts; // a float (0 is none), doubles [blocks][4]
	float l1, l2;
};

DEVICE float clip(float v) { return v > 1 ? 1 : v < -1 ? -1 : v; }

// loss leaves each block's Σ |y-t|, Σ (y-t)², Σ (clip(y)-clip(t))² and the count of y that aren't finite, and writes
// dy = scale*(l1*sign(y-t) + l2*2*(y-t))/len.
KERNEL(loss, LossArgs, 256) {
	__shared__ double sums[256];
	double sum[4] = {0, 0, 0, 0};
	float per = a.dy.at ? *(const float *)a.scale / (float)((double)a.d.n * a.d.d * a.d.h * a.d.w * a.d.c) : 0;
	float l1 = a.l1 * per, l2 = 2 * a.l2 * per;
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < spotsOf(a.d); i += gridDim.x * 256) {
		Spot s = spotOf(i, a.d);
		float y[8], t[8], g[8];
		get8(a.y, a.d.w, s.row, s.x, s.c, s.n, y);
		get8(a.t, a.d.w, s.row, s.x, s.c, s.n, t);
		float some[4] = {0, 0, 0, 0}; // of eight: few cards are quick with doubles
		UNROLL for (int k = 0; k < 8; k++) {
			float e = y[k] - t[k], c = clip(y[k]) - clip(t[k]);
			g[k] = l2 * e + (e > 0 ? l1 : e < 0 ? -l1 : 0);
			if (k >= s.n) continue;
			some[0] += absolute(e);
			some[1] += e * e;
			some[2] += c * c;
			some[3] += y[k] - y[k] != 0;
		}
		UNROLL for (int k = 0; k < 4; k++) sum[k] += some[k];
		if (a.dy.at) put8(a.dy, a.d.w, s.row, s.x, s.c, s.n, g);
	}
	for (i32 k = 0; k < 4; k++) {
		double s = sumBlock(sum[k], sums);
		if (threadIdx.x == 0) ((double *)a.parts)[blockIdx.x * 4 + k] = s;
	}
}
