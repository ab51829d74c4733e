// Spectral normalisation: w/σ with σ by one power iteration.
#include "device.h"

struct SpectralArgs {
	u64 w, u, v, out, sigma; // floats [rows][columns], [columns], [rows], [rows][columns], one; w is the gradient's g
	u64 products, shares, sums, length; // floats [rows], [parts][columns], doubles [n], a float: 0 where w has no direction
	i32 rows, columns, parts, n;
};

// spectralRows: products = w·u. A block has a row.
KERNEL(spectralRows, SpectralArgs, 128) {
	__shared__ double sums[128];
	const float *w = (const float *)a.w + (u64)blockIdx.x * a.columns;
	double s = 0;
	for (i32 c = threadIdx.x; c < a.columns; c += 128) s += (double)w[c] * ((const float *)a.u)[c];
	s = sumBlock(s, sums);
	if (threadIdx.x == 0) ((float *)a.products)[blockIdx.x] = (float)s;
}

// spectralLeft: v = products/‖products‖ (one block).
KERNEL(spectralLeft, SpectralArgs, 256) {
	__shared__ double sums[256];
	const float *p = (const float *)a.products;
	double s = 0;
	for (i32 r = threadIdx.x; r < a.rows; r += 256) s += (double)p[r] * p[r];
	double length = root(sumBlock(s, sums));
	bool none = length < 1e-12;
	if (threadIdx.x == 0) *(float *)a.length = none ? 0 : 1;
	for (i32 r = threadIdx.x; r < a.rows && !none; r += 256) ((float *)a.v)[r] = (float)(p[r] / length);
}

// spectralColumns: shares of wᵀ·v, by part of the rows (blockIdx.y).
KERNEL(spectralColumns, SpectralArgs, 128) {
	i32 c = blockIdx.x * 128 + threadIdx.x;
	if (c >= a.columns || *(const float *)a.length == 0) return;
	double s = 0;
	for (i32 r = blockIdx.y; r < a.rows; r += a.parts) s += (double)((const float *)a.w)[(u64)r * a.columns + c] * ((const float *)a.v)[r];
	((float *)a.shares)[(u64)blockIdx.y * a.columns + c] = (float)s;
}

// spectralRight: σ = ‖wᵀ·v‖, u = wᵀ·v/σ (one block).
KERNEL(spectralRight, SpectralArgs, 256) {
	__shared__ double sums[256];
	if (*(const float *)a.length == 0) {
		if (threadIdx.x == 0) *(float *)a.sigma = 1;
		return;
	}
	double s = 0;
	for (i32 c = threadIdx.x; c < a.columns; c += 256) {
		double t = 0;
		for (i32 p = 0; p < a.parts; p++) t += ((const float *)a.shares)[(u64)p * a.columns + c];
		((float *)a.shares)[c] = (float)t; // read by this thread alone
		s += t * t;
	}
	double sigma = root(sumBlock(s, sums));
	for (i32 c = threadIdx.x; c < a.columns; c += 256) ((float *)a.u)[c] = (float)(((const float *)a.shares)[c] / sigma);
	if (threadIdx.x == 0) *(float *)a.sigma = (float)sigma;
}

// spectralDivide: out = w/σ.
KERNEL(spectralDivide, SpectralArgs, 256) {
	float sigma = *(const float *)a.sigma;
	for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < (i64)a.rows * a.columns; i += (i64)gridDim.x * 256) {
		((float *)a.out)[i] = ((const float *)a.w)[i] / sigma;
	}
}

// spectralAlong leaves each block's share of <g, w̄>.
KERNEL(spectralAlong, SpectralArgs, 256) {
	__shared__ double sums[256];
	double s = 0;
	for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < (i64)a.rows * a.columns; i += (i64)gridDim.x * 256) {
		s += (double)((const float *)a.w)[i] * ((const float *)a.out)[i];
	}
	s = sumBlock(s, sums);
	if (threadIdx.x == 0) ((double *)a.sums)[blockIdx.x] = s;
}

// spectralGrad: g = (g - <g, w̄>·v·uᵀ)/σ.
KERNEL(spectralGrad, SpectralArgs, 256) {
	__shared__ double sums[256];
	double along = 0;
	for (i32 i = threadIdx.x; i < a.n; i += 256) along += ((const double *)a.sums)[i];
	along = sumBlock(along, sums);
	float sigma = *(const float *)a.sigma;
	for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < (i64)a.rows * a.columns; i += (i64)gridDim.x * 256) {
		float *g = (float *)a.w + i;
		*g = (*g - (float)along * ((const float *)a.v)[i / a.columns] * ((const float *)a.u)[i % a.columns]) / sigma;
	}
}
