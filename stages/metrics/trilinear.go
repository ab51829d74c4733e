package metrics

import "fmt"

// Trilinear is the naive baseline: src made smaller by factor along x, y, z and brought back to its size, into dst,
// which may be src. Both ways are torch.nn.functional.interpolate(mode="trilinear", align_corners=False), which samples
// at (i+½)·from/to-½ and does not average over the voxels in between; the small volume has size/factor voxels along
// each axis, rounded down, at least one.
func Trilinear(dst, src []float32, size, factor [3]int) error {
	b, err := NewBaseline(size, factor)
	if err != nil {
		return err
	}
	n := size[0] * size[1] * size[2]
	if len(src) != n || len(dst) != n {
		return fmt.Errorf("%d and %d voxels (want %d)", len(src), len(dst), n)
	}
	plane := size[0] * size[1]
	for z := range size[2] {
		err := b.Add(src[z*plane:][:plane], func(z int, vox []float32) error {
			copy(dst[z*plane:], vox)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Baseline is Trilinear of a volume that comes slice by slice, to the bit. A slice of the result follows its original
// by about one and a half factors; Baseline holds two slices of the volume, two of the small one, and one of the result.
type Baseline struct {
	down, up *resizer
}

// NewBaseline makes a volume of size x, y, z smaller by factor, and brings it back.
func NewBaseline(size, factor [3]int) (*Baseline, error) {
	var low [3]int
	for a := range 3 {
		if size[a] < 1 || factor[a] < 1 {
			return nil, fmt.Errorf("size %v, factor %v (want at least 1)", size, factor)
		}
		low[a] = max(1, size[a]/factor[a])
	}
	return &Baseline{newResizer(size, low), newResizer(low, size)}, nil
}

// Add takes the next slice, x fastest, and gives the slices of the result that it completes, in order; none comes before
// its original, all have come with the last one. A slice given is valid until give returns. An error of give ends Add.
func (b *Baseline) Add(slice []float32, give func(z int, vox []float32) error) error {
	if n := len(b.down.last[0]); len(slice) != n || b.down.taken == b.down.from[2] {
		return fmt.Errorf("slice %d: %d voxels (want %d slices of %d)", b.down.taken, len(slice), b.down.from[2], n)
	}
	b.down.take(slice)
	if err := b.give(give); err != nil {
		return err
	}
	for b.down.ready() {
		b.up.take(b.down.next())
		if err := b.give(give); err != nil {
			return err
		}
	}
	return nil
}

// give gives what is ready, up to the last slice taken.
func (b *Baseline) give(give func(z int, vox []float32) error) error {
	for z := b.up.given; z < b.down.taken && b.up.ready(); z++ {
		if err := give(z, b.up.next()); err != nil {
			return err
		}
	}
	return nil
}

// resizer brings a volume from one size to another slice by slice, an axis at a time: z, then y, then x.
type resizer struct {
	from       [3]int
	xs, ys, zs []lerp
	last       [2][]float32 // slice i of the last two taken is last[i%2]
	plane, row []float32    // between axes
	out        []float32
	taken      int
	given      int
}

func newResizer(from, to [3]int) *resizer {
	n := from[0] * from[1]
	return &resizer{
		from: from,
		xs:   lerps(from[0], to[0]), ys: lerps(from[1], to[1]), zs: lerps(from[2], to[2]),
		last:  [2][]float32{make([]float32, n), make([]float32, n)},
		plane: make([]float32, n), row: make([]float32, from[0]), out: make([]float32, to[0]*to[1]),
	}
}

func (r *resizer) take(slice []float32) {
	copy(r.last[r.taken%2], slice)
	r.taken++
}

// ready says whether the next slice of the result lies between the last two taken.
func (r *resizer) ready() bool { return r.given < len(r.zs) && r.zs[r.given].b < r.taken }

func (r *resizer) next() []float32 {
	z := r.zs[r.given]
	mix(r.plane, r.last[z.a%2], r.last[z.b%2], z.w)
	nx := len(r.xs)
	for i, y := range r.ys {
		mix(r.row, r.plane[y.a*len(r.row):], r.plane[y.b*len(r.row):], y.w)
		out := r.out[i*nx:][:nx]
		for i, x := range r.xs {
			out[i] = (1-x.w)*r.row[x.a] + x.w*r.row[x.b]
		}
	}
	r.given++
	return r.out
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

func mix(dst, a, b []float32, w float32) {
	a, b = a[:len(dst)], b[:len(dst)]
	for i := range dst {
		dst[i] = (1-w)*a[i] + w*b[i]
	}
}
