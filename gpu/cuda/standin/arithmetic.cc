// Instructions that compute on registers.
#include "decode.h"
#include "warp.h"
#include <cmath>
#include <cstring>
#pragma GCC target("avx2,fma")

namespace ptx {
namespace {

// Slot is how a register keeps a T: 16 bits lie in 32.
template <class T, int N = sizeof(T)> struct Slot { typedef T type; };
template <class T> struct Slot<T, 2> { typedef u32 type; };
template <class T> using slot = typename Slot<T>::type;

struct None {};

// All lanes at once where all are active, else one by one.
template <class R, class F> inline void put(Warp &w, const Op &op, u32 active, F f) {
	slot<R> *to = w.lanes<slot<R>>(op.to);
	if (active == ~0u) {
		slot<R> r[32];
		for (u32 l = 0; l < 32; l++) r[l] = (slot<R>)f(l);
		memcpy(to, r, sizeof r);
	} else {
		eachLane(active, [&](u32 l) { to[l] = (slot<R>)f(l); });
	}
}

template <class F, class R, class A> void unary(Warp &w, const Op &op, u32 active) {
	const slot<A> *a = w.lanes<slot<A>>(op.a);
	put<R>(w, op, active, [=](u32 l) { return F::of((A)a[l]); });
}
template <class F, class R, class A, class B> void binary(Warp &w, const Op &op, u32 active) {
	const slot<A> *a = w.lanes<slot<A>>(op.a);
	const slot<B> *b = w.lanes<slot<B>>(op.b);
	put<R>(w, op, active, [=](u32 l) { return F::of((A)a[l], (B)b[l]); });
}
template <class F, class R, class A, class C> void ternary(Warp &w, const Op &op, u32 active) {
	const slot<A> *a = w.lanes<slot<A>>(op.a), *b = w.lanes<slot<A>>(op.b);
	const slot<C> *c = w.lanes<slot<C>>(op.c);
	put<R>(w, op, active, [=](u32 l) { return F::of((A)a[l], (A)b[l], (C)c[l]); });
}
template <class F, class A> void compare(Warp &w, const Op &op, u32 active) {
	const slot<A> *a = w.lanes<slot<A>>(op.a), *b = w.lanes<slot<A>>(op.b);
	u32 &to = *w.lanes<u32>(op.to), is = 0;
	for (u32 l = 0; l < 32; l++) is |= (u32)F::of((A)a[l], (A)b[l]) << l;
	to = (to & ~active) | (is & active);
}
template <class T> void select(Warp &w, const Op &op, u32 active) {
	const slot<T> *a = w.lanes<slot<T>>(op.a), *b = w.lanes<slot<T>>(op.b);
	u32 p = *w.lanes<u32>(op.c);
	put<T>(w, op, active, [=](u32 l) { return p >> l & 1 ? a[l] : b[l]; });
}
// Predicates, all lanes in a word.
template <class F> void logical(Warp &w, const Op &op, u32 active) {
	u32 &to = *w.lanes<u32>(op.to);
	to = (to & ~active) | (F::of(*w.lanes<u32>(op.a), op.b ? *w.lanes<u32>(op.b) : 0) & active);
}
// A division by zero gives what the machine likes: no kernel should do it.
template <class F, class T> void divide(Warp &w, const Op &op, u32 active) {
	const T *a = w.lanes<T>(op.a), *b = w.lanes<T>(op.b);
	T *to = w.lanes<T>(op.to);
	eachLane(active, [&](u32 l) {
		if (b[l] == 0) w.fail(l, "memcheck", "a division by zero");
		to[l] = (T)(b[l] == (T)-1 && (T)-1 < 0 ? F::byMinusOne(a[l]) : F::of(a[l], b[l]));
	});
}

float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

template <class T, class F> T bitsAs(F f) {
	T t;
	static_assert(sizeof t == sizeof f, "");
	memcpy(&t, &f, sizeof t);
	return t;
}

u16 bfloat(float f) {
	u32 u = bitsAs<u32>(f);
	if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
	return (u16)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

i32 toward(float x) { // cvt.rzi.s32: what doesn't fit is the nearest that does, NaN 0
	return x != x ? 0 : x >= 0x1p31f ? INT32_MAX : x <= -0x1p31f ? INT32_MIN : (i32)x;
}

// Row says which registers an instruction has: bytes of the result and of the operands, -1 where there is none, 0 for a predicate.
struct Row {
	Action act;
	int to, a, b, c;
	Kind kind = Kind::PLAIN;
};

template <class T> constexpr int bytesOf() { return sizeof(T); }

typedef std::map<std::string, Row> Table;

#define UNARY(name, R, A, value) \
	{ struct F { static R of(A a) { return (R)(value); } }; t[name] = {unary<F, R, A>, bytesOf<R>(), bytesOf<A>(), -1, -1}; }
#define BINARY(name, R, A, B, value) \
	{ struct F { static R of(A a, B b) { return (R)(value); } }; t[name] = {binary<F, R, A, B>, bytesOf<R>(), bytesOf<A>(), bytesOf<B>(), -1}; }
#define TERNARY(name, R, A, C, value) \
	{ struct F { static R of(A a, A b, C c) { return (R)(value); } }; t[name] = {ternary<F, R, A, C>, bytesOf<R>(), bytesOf<A>(), bytesOf<A>(), bytesOf<C>()}; }
#define COMPARE(name, A, value) \
	{ struct F { static bool of(A a, A b) { return value; } }; t[name] = {compare<F, A>, 0, bytesOf<A>(), bytesOf<A>(), -1}; }
#define LOGICAL(name, operands, value) \
	{ struct F { static u32 of(u32 a, u32 b) { (void)b; return value; } }; t[name] = {logical<F>, 0, 0, operands == 2 ? 0 : -1, -1}; }
#define DIVIDE(name, T, value, minus) \
	{ struct F { static T of(T a, T b) { return (T)(value); } static T byMinusOne(T a) { (void)a; return (T)(minus); } }; \
		t[name] = {divide<F, T>, bytesOf<T>(), bytesOf<T>(), bytesOf<T>(), -1}; }
#define SELECT(name, T) t[name] = {select<T>, bytesOf<T>(), bytesOf<T>(), bytesOf<T>(), 0, Kind::COPY};
#define MOVE(name, T) UNARY(name, T, T, a) t[name].kind = Kind::COPY;

template <class T> void comparisons(Table &t, const std::string &type) {
	COMPARE("setp.eq." + type, T, a == b)
	COMPARE("setp.ne." + type, T, a != b && a == a && b == b)
	COMPARE("setp.lt." + type, T, a < b)
	COMPARE("setp.le." + type, T, a <= b)
	COMPARE("setp.gt." + type, T, a > b)
	COMPARE("setp.ge." + type, T, a >= b)
}

template <class T> void unordered(Table &t, const std::string &type) {
	COMPARE("setp.equ." + type, T, !(a < b) && !(a > b))
	COMPARE("setp.neu." + type, T, a != b)
	COMPARE("setp.ltu." + type, T, !(a >= b))
	COMPARE("setp.leu." + type, T, !(a > b))
	COMPARE("setp.gtu." + type, T, !(a <= b))
	COMPARE("setp.geu." + type, T, !(a < b))
	COMPARE("setp.num." + type, T, a == a && b == b)
	COMPARE("setp.nan." + type, T, a != a || b != b)
}

// Numbers of n bits: signed, unsigned, and signed ones of twice the bits.
template <class S, class U, class Double> void whole(Table &t, const std::string &n) {
	BINARY("add.s" + n, U, U, U, a + b)
	BINARY("sub.s" + n, U, U, U, a - b)
	UNARY("neg.s" + n, U, U, 0 - a)
	BINARY("mul.lo.s" + n, U, U, U, (u64)a * b)
	BINARY("mul.hi.s" + n, S, S, S, (Double)a * b >> 8 * sizeof(S))
	BINARY("mul.hi.u" + n, U, U, U, (unsigned __int128)a * b >> 8 * sizeof(U))
	TERNARY("mad.lo.s" + n, U, U, U, (u64)a * b + c)
	DIVIDE("div.s" + n, S, a / b, 0 - (U)a)
	DIVIDE("div.u" + n, U, a / b, 0)
	DIVIDE("rem.s" + n, S, a % b, 0)
	DIVIDE("rem.u" + n, U, a % b, 0)
	BINARY("min.s" + n, S, S, S, a < b ? a : b)
	BINARY("max.s" + n, S, S, S, a > b ? a : b)
	BINARY("min.u" + n, U, U, U, a < b ? a : b)
	BINARY("max.u" + n, U, U, U, a > b ? a : b)
	BINARY("and.b" + n, U, U, U, a & b)
	BINARY("or.b" + n, U, U, U, a | b)
	BINARY("xor.b" + n, U, U, U, a ^ b)
	UNARY("not.b" + n, U, U, ~a)
	BINARY("shl.b" + n, U, U, u32, b >= 8 * sizeof(U) ? 0 : (u64)a << b)
	BINARY("shr.u" + n, U, U, u32, b >= 8 * sizeof(U) ? 0 : a >> b)
	BINARY("shr.s" + n, S, S, u32, a >> (b >= 8 * sizeof(S) ? 8 * sizeof(S) - 1 : b))
	comparisons<S>(t, "s" + n);
	comparisons<U>(t, "u" + n);
	COMPARE("setp.eq.b" + n, U, a == b)
	COMPARE("setp.ne.b" + n, U, a != b)
}

void wholeNumbers(Table &t) {
	whole<i16, u16, i32>(t, "16");
	whole<i32, u32, i64>(t, "32");
	whole<i64, u64, __int128>(t, "64");
	BINARY("mul.wide.s32", i64, i32, i32, (i64)a * b)
	BINARY("mul.wide.u32", u64, u32, u32, (u64)a * b)
	UNARY("popc.b32", u32, u32, __builtin_popcount(a))
	TERNARY("bfe.u32", u32, u32, u32, (b & 255) > 31 || !(c & 255) ? 0 : a >> (b & 255) & ((c & 255) > 31 ? ~0u : (1u << (c & 255)) - 1))
	LOGICAL("and.pred", 2, a & b)
	LOGICAL("or.pred", 2, a | b)
	LOGICAL("xor.pred", 2, a ^ b)
	LOGICAL("not.pred", 1, ~a)
	LOGICAL("mov.pred", 1, a)
	t["mov.pred"].kind = Kind::COPY;
}

void conversions(Table &t) {
	UNARY("cvt.s64.s32", i64, i32, a)
	UNARY("cvt.s64.s32 of 64 bits", i64, i64, (i32)a) // a source's register may be wider than its type
	UNARY("cvt.u64.u32", u64, u32, a)
	UNARY("cvt.u32.u64", u32, u64, a)
	UNARY("cvt.u32.u16", u32, u16, a)
	UNARY("cvt.s32.s16", i32, i16, a)
	UNARY("cvt.u16.u32", u16, u32, a)
	UNARY("cvt.u64.u16", u64, u16, a)
	UNARY("cvt.u16.u64", u16, u64, a)
	UNARY("cvt.f64.f32", double, float, a)
	UNARY("cvt.rn.f32.s32", float, i32, a)
	UNARY("cvt.rn.f32.u32", float, u32, a)
	UNARY("cvt.rn.f64.u32", double, u32, a)
	UNARY("cvt.rn.f32.f64", float, double, a)
	UNARY("cvt.rn.f64.s32", double, i32, a)
	UNARY("cvt.rni.f32.f32", float, float, std::nearbyint(a))
	UNARY("cvt.rzi.s32.f32", i32, float, toward(a))
	UNARY("cvt.rn.bf16.f32", u16, float, bfloat(a))
	BINARY("cvt.rn.bf16x2.f32", u32, float, float, (u32)bfloat(a) << 16 | bfloat(b)) // the first operand is the upper half
	UNARY("cvta.to.global.u64", u64, u64, a)
	UNARY("cvta.global.u64", u64, u64, a)
	MOVE("mov.u16", u16) MOVE("mov.b16", u16) MOVE("mov.u32", u32) MOVE("mov.b32", u32) MOVE("mov.f32", u32)
	MOVE("mov.u64", u64) MOVE("mov.b64", u64) MOVE("mov.f64", u64)
	SELECT("selp.u16", u16) SELECT("selp.b16", u16) SELECT("selp.b32", u32) SELECT("selp.u32", u32) SELECT("selp.f32", u32)
	SELECT("selp.b64", u64) SELECT("selp.f64", u64)
}

// rough is v as an approximation may give it: off by so many units in the last place, one way or the other as its bits have it.
float rough(float v, i32 units) {
	if (v == 0 || v - v != 0) return v;
	u32 bits = bitsAs<u32>(v), up = bits * 0x9e3779b9u >> 31;
	float r = bitsAs<float>(up ? bits + units : bits - units);
	return r - r != 0 || std::fabs(r) < 0x1p-126f ? v : r;
}

float exp2Approx(float a) { return a == 0 ? 1 : rough(std::exp2(a), 1); } // 2^-22 of it
float log2Approx(float a) { // 2^-22
	float v = std::log2(a);
	return v - v != 0 ? v : v + (bitsAs<u32>(a) * 0x9e3779b9u >> 31 ? 0x1p-23f : -0x1p-23f);
}

// Approximations are within what NVIDIA promises; a card's own are others.
void floats(Table &t) {
	BINARY("add.f32", float, float, float, a + b)
	BINARY("sub.f32", float, float, float, a - b)
	BINARY("mul.f32", float, float, float, a * b)
	TERNARY("fma.rn.f32", float, float, float, __builtin_fmaf(a, b, c))
	BINARY("div.rn.f32", float, float, float, a / b)
	UNARY("rcp.rn.f32", float, float, 1 / a)
	UNARY("sqrt.rn.f32", float, float, std::sqrt(a))
	UNARY("neg.f32", float, float, -a)
	UNARY("abs.f32", float, float, std::fabs(a))
	BINARY("min.f32", float, float, float, std::fmin(a, b)) // of a number and NaN the number
	BINARY("max.f32", float, float, float, std::fmax(a, b))
	UNARY("ex2.approx.f32", float, float, exp2Approx(a))
	UNARY("ex2.approx.ftz.f32", float, float, flushed(exp2Approx(flushed(a))))
	UNARY("lg2.approx.f32", float, float, log2Approx(a))
	UNARY("ex2.approx.ftz.f32", float, float, flushed(exp2Approx(flushed(a))))
	UNARY("lg2.approx.ftz.f32", float, float, flushed(log2Approx(flushed(a))))
	UNARY("rcp.approx.f32", float, float, rough(1 / a, 1))
	UNARY("rcp.approx.ftz.f32", float, float, flushed(rough(1 / flushed(a), 1)))
	BINARY("add.f64", double, double, double, a + b)
	BINARY("sub.f64", double, double, double, a - b)
	BINARY("mul.f64", double, double, double, a * b)
	TERNARY("fma.rn.f64", double, double, double, __builtin_fma(a, b, c))
	BINARY("div.rn.f64", double, double, double, a / b)
	UNARY("rcp.rn.f64", double, double, 1 / a)
	UNARY("sqrt.rn.f64", double, double, std::sqrt(a))
	UNARY("neg.f64", double, double, -a)
	UNARY("abs.f64", double, double, std::fabs(a))
	BINARY("min.f64", double, double, double, std::fmin(a, b))
	BINARY("max.f64", double, double, double, std::fmax(a, b))
	comparisons<float>(t, "f32");
	comparisons<double>(t, "f64");
	unordered<float>(t, "f32");
	unordered<double>(t, "f64");
}

const Table &table() {
	static const Table all = [] {
		Table t;
		wholeNumbers(t);
		conversions(t);
		floats(t);
		return t;
	}();
	return all;
}
} // namespace

bool decodeArithmetic(Decoder &d, Op &op) {
	std::string name = d.at->name;
	if (name == "cvt.s64.s32" && d.at->operands.size() == 2) {
		auto r = d.registers.find(d.operand(1).name);
		if (r != d.registers.end() && r->second.bytes == 8) name += " of 64 bits";
	}
	auto it = table().find(name);
	if (it == table().end()) return false;
	const Row &r = it->second;
	size_t n = 2 + (r.b >= 0) + (r.c >= 0);
	if (d.at->operands.size() != n) d.fail(d.at->name + " has " + std::to_string(n) + " operands");
	op.act = r.act, op.kind = r.kind;
	op.to = d.write(op, d.operand(0), r.to);
	op.a = d.read(op, d.operand(1), r.a);
	if (r.b >= 0) op.b = d.read(op, d.operand(2), r.b);
	if (r.c >= 0) op.c = d.read(op, d.operand(3), r.c);
	return true;
}

} // namespace ptx
