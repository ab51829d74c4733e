package merge

import (
	"math"
	"unsafe"
)

const (
	scale = 1 << 30    // of the accumulator: 1.0
	magic = 3 << 51    // added to |x| < 2^51, a float64 has x rounded to even in its low bits
	one   = 0x3f800000 // float32 bits of 1; those of larger numbers, Inf and NaN are above
	sign  = uint32(1) << 31
)

// fixed views a buffer of float32 as the fixed-point numbers that it holds until its slice is finished.
func fixed(b []float32) []int32 {
	return unsafe.Slice((*int32)(unsafe.Pointer(unsafe.SliceData(b))), len(b))
}

// add adds src, clipped to [-1, 1] and weighed by w·s, to acc in steps of 1/scale. It stops at a voxel that isn't a
// finite number, and says so. The three are of one length.
func add(acc []int32, src []float32, w []float64, s float64) bool {
	acc, w = acc[:len(src)], w[:len(src)]
	s *= scale
	// Eight at a time: each has a register of its own, so that none waits for another.
	for len(src) >= 8 && len(w) >= 8 && len(acc) >= 8 {
		a, x, v := (*[8]int32)(acc), (*[8]float32)(src), (*[8]float64)(w)
		if within(x[0])|within(x[1])|within(x[2])|within(x[3])|within(x[4])|within(x[5])|within(x[6])|within(x[7]) < 0 {
			if !add1(acc[:8], src[:8], w[:8], s) {
				return false
			}
		} else {
			p0, p1, p2, p3 := step(x[0], v[0], s), step(x[1], v[1], s), step(x[2], v[2], s), step(x[3], v[3], s)
			p4, p5, p6, p7 := step(x[4], v[4], s), step(x[5], v[5], s), step(x[6], v[6], s), step(x[7], v[7], s)
			a[0], a[1], a[2], a[3] = a[0]+p0, a[1]+p1, a[2]+p2, a[3]+p3
			a[4], a[5], a[6], a[7] = a[4]+p4, a[5]+p5, a[6]+p6, a[7]+p7
		}
		acc, src, w = acc[8:], src[8:], w[8:]
	}
	return add1(acc, src, w, s)
}

// add1 is add, a voxel at a time. s has the scale in it.
func add1(acc []int32, src []float32, w []float64, s float64) bool {
	for i, x := range src {
		if x-x != 0 { // NaN or Inf
			return false
		}
		acc[i] += step(min(max(x, -1), 1), w[i], s)
	}
	return true
}

// within is negative for what is outside [-1, 1] or isn't a number.
func within(x float32) int32 { return one - int32(math.Float32bits(x)&^sign) }

// step rounds x·w·s. The conversion keeps the product from being fused with the sum, which would round elsewhere on
// some machines.
func step(x float32, w, s float64) int32 {
	return int32(math.Float64bits(float64(float64(x)*(w*s)) + magic))
}

// finish turns a slice of fixed-point numbers into float32, in place.
func finish(b []float32) {
	for i, a := range fixed(b) {
		b[i] = float32(min(max(a, -scale), scale)) * (1.0 / scale)
	}
}
