package write

import "math"

// scale turns voxels in [-1, 1] into HU = half·x + middle.
type scale struct{ half, middle float64 }

func newScale(window [2]float64) scale {
	return scale{half: (window[1] - window[0]) / 2, middle: (window[0] + window[1]) / 2}
}

// The conversions around products keep them from being fused with sums, which would round elsewhere on some machines.

func (s scale) hu(x float32) float64 { return float64(float64(x)*s.half) + s.middle }

// int16s rounds to whole HU, halves up. What rounding to float32 took from a half on its way here, at most 2^-24 of full
// scale, is given back, so that a half in the scan comes out as a half. src lies in [-1, 1].
func (s scale) int16s(dst []int16, src []float32) {
	const base = 1 << 15 // positive, so that truncation rounds down
	half, middle := s.half, s.middle+(base+0.5)+s.half*0x1p-22
	round := func(x float32) int16 { return int16(int32(float64(float64(x)*half)+middle) - base) }
	// Four at a time: each has a register of its own, so that none waits for another.
	for len(src) >= 4 && len(dst) >= 4 {
		d, x := (*[4]int16)(dst), (*[4]float32)(src)
		d[0], d[1], d[2], d[3] = round(x[0]), round(x[1]), round(x[2]), round(x[3])
		dst, src = dst[4:], src[4:]
	}
	for i, x := range src {
		dst[i] = round(x)
	}
}

func (s scale) float32s(dst []float32, src []float32) {
	for i, x := range src {
		dst[i] = float32(s.hu(x))
	}
}

// clean gives src if its voxels lie in [-1, 1], as elements promise but a resampling may miss by a rounding; else what
// they are clipped to, in tmp. It is false if one isn't a number.
func clean(src, tmp []float32) ([]float32, bool) {
	const one, sign = 0x3f800000, uint32(1) << 31 // bits of 1; those of larger numbers, Inf and NaN are above
	inside := int32(0)                            // negative once one isn't
	for _, v := range src {
		inside |= one - int32(math.Float32bits(v)&^sign)
	}
	if inside >= 0 {
		return src, true
	}
	for i, v := range src {
		if v != v {
			return nil, false
		}
		tmp[i] = min(max(v, -1), 1)
	}
	return tmp[:len(src)], true
}
