package read

import (
	"context"
	"fmt"

	"github.com/flowrun/flowrun/stages/volume"
)

// Resampler interpolates an image trilinearly to another grid, slice by slice. It holds two slices of the result's
// width and height, and one of the source's height.
type Resampler struct {
	from, to [3]int
	taps     [3][]tap
	rows     []float32    // [from y, to x] of the slice being taken in
	planes   [2][]float32 // [to y, to x] of the last two slices taken in
	out      []float32
	in, next int // slices taken in and given
}

// tap says that a result's voxel is (1-t)·in[lo] + t·in[hi].
type tap struct {
	lo, hi int
	t      float32
}

// taps of one axis. Voxel o of the result lies at (o+½)·scale-½ of the source, in canonical direction, so that both
// grids begin at the same face; beyond the outermost centres the edge repeats. Where the file runs the other way both
// indices count from the other end.
func taps(from, to int, scale float64, flip bool) []tap {
	list := make([]tap, to)
	for i := range list {
		o := i
		if flip {
			o = to - 1 - i
		}
		c := min(max((float64(o)+0.5)*scale-0.5, 0), float64(from-1))
		if flip {
			c = float64(from-1) - c
		}
		lo := int(c)
		list[i] = tap{lo: lo, hi: lo, t: float32(c - float64(lo))}
		if list[i].t > 0 {
			list[i].hi++
		}
	}
	return list
}

func newResampler(from, to [3]int, scale [3]float64, flip [3]bool) *Resampler {
	r := &Resampler{from: from, to: to}
	for i := range 3 {
		r.taps[i] = taps(from[i], to[i], scale[i], flip[i])
	}
	return r
}

// bytes is what the resampler holds once it runs.
func (r *Resampler) bytes() int64 {
	return 4 * (int64(r.from[1])*int64(r.to[0]) + 3*int64(r.to[0])*int64(r.to[1]))
}

// Restore brings an image on the grid that a volume was loaded on (dims and spacing as its Scan has them) back to the
// canonical grid of its file. Push it the slices in order of z.
func Restore(scan *volume.Scan, g volume.Geometry) *Resampler {
	var to [3]int
	scale := [3]float64{1, 1, 1}
	for c, f := range g.Axes {
		to[c] = g.Dims[f]
		if g.Resample {
			scale[c] = g.Spacing[c] / scan.Spacing[c]
		}
	}
	return newResampler(scan.Dims, to, scale, [3]bool{})
}

// Push takes in the next slice of the source, [from y, from x], and emits those slices of the result, [to y, to x],
// that it completes, in order. A slice is valid until emit returns.
func (r *Resampler) Push(slice []float32, emit func(z int, slice []float32) error) error {
	if len(slice) != r.from[0]*r.from[1] || r.in >= r.from[2] {
		return fmt.Errorf("resample: slice %d of %d voxels (want %d slices of %d)", r.in, len(slice), r.from[2], r.from[0]*r.from[1])
	}
	if r.out == nil {
		r.rows = make([]float32, r.from[1]*r.to[0])
		r.out = make([]float32, r.to[0]*r.to[1])
		r.planes = [2][]float32{make([]float32, len(r.out)), make([]float32, len(r.out))}
	}
	w := r.to[0]
	for y := range r.from[1] {
		row := slice[y*r.from[0] : (y+1)*r.from[0]]
		dst := r.rows[y*w : (y+1)*w]
		for x, t := range r.taps[0] {
			a := row[t.lo]
			dst[x] = a + t.t*(row[t.hi]-a)
		}
	}
	r.planes[0], r.planes[1] = r.planes[1], r.planes[0]
	for y, t := range r.taps[1] {
		blend(r.planes[1][y*w:(y+1)*w], r.rows[t.lo*w:(t.lo+1)*w], r.rows[t.hi*w:(t.hi+1)*w], t.t)
	}
	r.in++
	for r.next < r.to[2] && r.taps[2][r.next].hi < r.in {
		t := r.taps[2][r.next]
		lo := r.planes[1]
		if t.lo < r.in-1 {
			lo = r.planes[0]
		}
		blend(r.out, lo, r.planes[1], t.t)
		if err := emit(r.next, r.out); err != nil {
			return err
		}
		r.next++
	}
	return nil
}

func blend(dst, a, b []float32, t float32) {
	a, b = a[:len(dst)], b[:len(dst)]
	for i := range dst {
		dst[i] = a[i] + t*(b[i]-a[i])
	}
}

// resampling is a Resampler over the file's own axes: interpolation is per axis, so that the result turns to canonical
// axes only when it is put in place.
type resampling struct {
	*Resampler
	put    [3]int    // dims of the result in the file's axes
	slice  []float32 // of the source
	result []int16   // a slice of the result
}

func newResampling(p *plan, o *Options) *resampling {
	var to [3]int
	var scale [3]float64
	var flip [3]bool
	for c, f := range p.geometry.Axes {
		to[f] = p.dims[c]
		scale[f] = o.Spacing[c] / p.geometry.Spacing[c]
		flip[f] = p.geometry.Flip[c]
	}
	return &resampling{Resampler: newResampler(p.grid.Dims, to, scale, flip), put: to}
}

// bytes adds the source's slice and the result's samples.
func (r *resampling) bytes() int64 {
	return r.Resampler.bytes() + 4*int64(r.from[0])*int64(r.from[1]) + 2*int64(r.put[0])*int64(r.put[1])
}

// burst is the most slices that one of the source completes.
func (r *resampling) burst() int {
	most, n := 0, 0
	for i, t := range r.taps[2] {
		if i > 0 && t.hi != r.taps[2][i-1].hi {
			n = 0
		}
		n++
		most = max(most, n)
	}
	return most
}

// resampled reads the next slice of the file, clips it to the window, and emits those of the result that it completes, rounded to
// the steps that span the window, in order. A slice is valid until emit returns.
func (l *loader) resampled(ctx context.Context, r *resampling, emit func(z int, samples []int16) error) error {
	plane := r.from[0] * r.from[1]
	if r.slice == nil {
		r.slice, r.result = make([]float32, plane), make([]int16, r.put[0]*r.put[1])
	}
	err := l.each(ctx, int64(plane), func(at int64, n int, b []byte) error {
		l.intensities(l.hu[:n], b)
		for i, x := range l.hu[:n] {
			r.slice[at+int64(i)] = float32(x)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.Push(r.slice, func(z int, slice []float32) error {
		for i, x := range slice {
			r.result[i] = l.q.sample(float64(x))
		}
		return emit(z, r.result)
	})
}
