package metrics

import "fmt"

// Trilinear is the naive baseline: src made smaller by factor along x, y, z and brought back to its size, into dst,
// which may be src. Both ways are torch.nn.functional.interpolate(mode="trilinear", align_corners=False), which samples
// at (i+½)·from/to-½ and does not average over the voxels in between; the small volume has size/factor voxels along
// each axis, rounded down, at least one.
func Trilinear(dst, src []float32, size, factor [3]int) error {
	n := size[0] * size[1] * size[2]
	var low [3]int
	for a := range 3 {
		if size[a] < 1 || factor[a] < 1 {
			return fmt.Errorf("size %v, factor %v (want at least 1)", size, factor)
		}
		low[a] = max(1, size[a]/factor[a])
	}
	if len(src) != n || len(dst) != n {
		return fmt.Errorf("%d and %d voxels (want %d)", len(src), len(dst), n)
	}
	small := make([]float32, low[0]*low[1]*low[2])
	interpolate(small, low, src, size)
	interpolate(dst, size, small, low)
	return nil
}

// lerp is the two samples and the weight of the second, for each output voxel of an axis.
type lerp struct {
	a, b int
	w    float32
}

func lerps(from, to int) []lerp {
	scale := float32(from) / float32(to)
	ls := make([]lerp, to)
	for i := range ls {
		at := max(0, (float32(i)+0.5)*scale-0.5)
		a := min(int(at), from-1)
		ls[i] = lerp{a, min(a+1, from-1), at - float32(a)}
	}
	return ls
}

// interpolate brings src to dst's size, an axis at a time: z, then y, then x.
func interpolate(dst []float32, to [3]int, src []float32, from [3]int) {
	xs, ys, zs := lerps(from[0], to[0]), lerps(from[1], to[1]), lerps(from[2], to[2])
	plane, row := make([]float32, from[0]*from[1]), make([]float32, from[0])
	for z, l := range zs {
		mix(plane, src[l.a*len(plane):], src[l.b*len(plane):], l.w)
		for y, l := range ys {
			mix(row, plane[l.a*len(row):], plane[l.b*len(row):], l.w)
			out := dst[(z*to[1]+y)*to[0]:][:to[0]]
			for i, l := range xs {
				out[i] = (1-l.w)*row[l.a] + l.w*row[l.b]
			}
		}
	}
}

func mix(dst, a, b []float32, w float32) {
	a, b = a[:len(dst)], b[:len(dst)]
	for i := range dst {
		dst[i] = (1-w)*a[i] + w*b[i]
	}
}
