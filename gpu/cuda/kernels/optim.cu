// Sums and optimiser: what works on blocks of parameters.
#include "device.h"

struct SumArgs {
	u64 x, out; // floats, doubles [parts]
	i64 n;
};

// sumSquares leaves each block's share of Σ x².
KERNEL(sumSquares, SumArgs, 256) {
	__shared__ double sums[256];
	const float *x = (const float *)a.x;
	double s = 0;
	for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < a.n; i += (i64)gridDim.x * 256) s += (double)x[i] * x[i];
	s = sumBlock(s, sums);
	if (threadIdx.x == 0) ((double *)a.out)[blockIdx.x] = s;
}

struct TotalArgs {
	u64 parts, out; // doubles [parts][columns], floats [columns]
	i32 n, columns, plain; // the last column isn't divided where plain is 1
	double divisor;
};

// total adds up parts, column by column (one block), and divides.
KERNEL(total, TotalArgs, 256) {
	__shared__ double sums[256];
	const double *parts = (const double *)a.parts;
	for (i32 c = 0; c < a.columns; c++) {
		double s = 0;
		for (i32 i = threadIdx.x; i < a.n; i += 256) s += parts[(u64)i * a.columns + c];
		s = sumBlock(s, sums);
		if (threadIdx.x == 0) ((float *)a.out)[c] = (float)(a.plain && c == a.columns - 1 ? s : s / a.divisor);
	}
}

struct ColumnsArgs {
	u64 parts, out; // floats [groups][parts][stride], floats [groups][columns]
	i32 n, stride, columns, offset;
	i32 add, groups; // add: to the one out of all groups
};

// columns adds up columns of parts: out[g][c] = Σ parts[g][·][offset + c], or one out += all of them. A block has 8 columns.
KERNEL(columns, ColumnsArgs, 256) {
	__shared__ double sums[256];
	i32 t = threadIdx.x, i = blockIdx.x * 8 + t % 8, all = (a.add ? 1 : a.groups) * a.columns;
	i32 g = i / a.columns, c = i % a.columns, n = a.add ? a.groups * a.n : a.n;
	double s = 0;
	if (i < all) {
		const float *p = (const float *)a.parts + (u64)g * a.n * a.stride + a.offset + c;
		for (i32 k = t / 8; k < n; k += 32) s += p[(u64)k * a.stride];
	}
	sums[t] = s;
	barrier();
	if (t >= 8 || i >= all) return;
	for (i32 k = 1; k < 32; k++) s += sums[t + 8 * k];
	float *out = (float *)a.out + i;
	*out = a.add ? *out + (float)s : (float)s;
}

struct AdamArgs {
	u64 p, grad, m, v, ema; // ema may be 0
	i64 n;
	float gradScale, beta1, beta2, one1, one2, rate, root, eps, decay, blend;
};

// adam: g = gradScale·grad; m = beta1·m + one1·g; v = beta2·v + one2·g²; p = p - decay·p - rate·m/(√v·root + eps);
// ema = ema + (p - ema)·blend.
KERNEL(adam, AdamArgs, 256) {
	for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < a.n; i += (i64)gridDim.x * 256) {
		float g = a.gradScale * ((const float *)a.grad)[i];
		float m = a.beta1 * ((float *)a.m)[i] + a.one1 * g;
		float v = a.beta2 * ((float *)a.v)[i] + a.one2 * (g * g);
		((float *)a.m)[i] = m;
		((float *)a.v)[i] = v;
		float p = ((float *)a.p)[i];
		p -= a.decay * p;
		p -= a.rate * m / (root(v) * a.root + a.eps);
		((float *)a.p)[i] = p;
		if (a.ema) {
			float *e = (float *)a.ema + i;
			*e += (p - *e) * a.blend;
		}
	}
}
