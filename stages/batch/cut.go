package batch

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/flowrun/flowrun/stages/volume"
)

// stripBytes is how many bytes of samples one worker asks of a volume at a time, where a row isn't larger.
const stripBytes = 1 << 20

// Scratch is what cutting needs beside its result: a table of intensities, and samples for each worker. It is for one Cut at a
// time and can be used again.
type Scratch struct {
	table   table
	plan    plan
	workers []worker

	// The patch being cut.
	patch         *volume.Patch
	input, target []float32
	next          atomic.Int64 // slice
	failed        atomic.Bool
	group         sync.WaitGroup
}

type worker struct {
	samples  []int16
	pcg      rand.PCG
	rand     *rand.Rand
	run      func()
	err      error
	panicked error
}

// NewScratch returns scratch for a number of goroutines, at least one. What is cut doesn't depend on the number.
func NewScratch(workers int) *Scratch {
	s := &Scratch{workers: make([]worker, max(1, workers))}
	for i := range s.workers {
		w := &s.workers[i]
		w.rand = rand.New(&w.pcg)
		w.run = func() {
			defer s.group.Done()
			defer func() {
				if p := recover(); p != nil {
					s.failed.Store(true)
					w.panicked = fmt.Errorf("%v\n%s", p, debug.Stack())
				}
			}()
			s.work(w)
		}
	}
	return s
}

func scratchBytes(workers int) int64 {
	return 4<<16 + int64(max(1, workers))*stripBytes
}

// Cut writes the voxels of p to dst [D, H, W], transformed as p.Ops say and scaled by its volume's window to [-1, 1]. Voxels beyond the
// volume's high ends repeat the edge. It doesn't release p.
func Cut(dst []float32, p *volume.Patch, s *Scratch) error {
	if n := p.Size[0] * p.Size[1] * p.Size[2]; len(dst) != n {
		return fmt.Errorf("%s: room for %d voxels, want %d", p.Tag, len(dst), n)
	}
	return s.cut(dst, nil, p)
}

// cut writes p with its noise to input and, where target isn't nil, p without it to target.
func (s *Scratch) cut(input, target []float32, p *volume.Patch) error {
	for a := range 3 {
		if p.Size[a] < 1 || p.Origin[a] < 0 || p.Origin[a] >= p.Volume.Dims[a] {
			return fmt.Errorf("%s: outside the volume of %v", p.Tag, p.Volume.Dims)
		}
	}
	if err := s.plan.set(p); err != nil {
		return err
	}
	s.table.set(s.plan.a, s.plan.b, len(s.plan.noise) == 0)
	s.patch, s.input, s.target = p, input, target
	s.next.Store(0)
	s.failed.Store(false)
	n := min(len(s.workers), p.Size[2])
	s.group.Add(n)
	for i := range s.workers[:n-1] {
		go s.workers[i].run()
	}
	s.workers[n-1].run()
	s.group.Wait()
	s.patch, s.input, s.target = nil, nil, nil
	var err error
	for i := range s.workers {
		w := &s.workers[i]
		if p := w.panicked; p != nil {
			w.panicked = nil
			panic(p) // where the caller can recover it
		}
		if w.err != nil {
			err = fmt.Errorf("%s: %w", p.Tag, w.err)
		}
		w.err = nil
	}
	return err
}

// work cuts slices until there are none left.
func (s *Scratch) work(w *worker) {
	d, h, wd := s.patch.Size[2], s.patch.Size[1], s.patch.Size[0]
	n := h * wd
	for !s.failed.Load() {
		z := int(s.next.Add(1)) - 1
		if z >= d {
			return
		}
		input := s.input[z*n : (z+1)*n]
		if err := s.slice(w, z, input); err != nil {
			s.failed.Store(true)
			w.err = err
			return
		}
		var target []float32
		if s.target != nil {
			target = s.target[z*n : (z+1)*n]
		}
		switch {
		case len(s.plan.noise) > 0:
			s.noise(w, z, input, target)
		case target != nil:
			copy(target, input)
		}
	}
}

// slice cuts slice z of the result.
func (s *Scratch) slice(w *worker, z int, dst []float32) error {
	v, o, size := s.patch.Volume, s.patch.Origin, s.patch.Size
	if s.plan.against[2] {
		z = size[2] - 1 - z
	}
	z = min(o[2]+z, v.Dims[2]-1)
	width := v.Dims[0]
	columns := min(size[0], width-o[0])  // columns and rows that the volume has;
	rows := min(size[1], v.Dims[1]-o[1]) // the last one is repeated beyond
	strip := min(rows, max(1, stripBytes/2/width))
	if len(w.samples) < strip*width {
		w.samples = make([]int16, strip*width)
	}
	for y := 0; y < rows; y += strip {
		end := min(y+strip, rows)
		src, err := v.Rows(z, o[1]+y, o[1]+end, w.samples)
		if err != nil {
			return err
		}
		if len(src) != (end-y)*width {
			return fmt.Errorf("slice %d: got %d samples for %d rows of %d", z, len(src), end-y, width)
		}
		if end == rows {
			end = size[1]
		}
		if s.plan.swap {
			s.turned(dst, src[o[0]:], width, columns, rows-y, y, end)
		} else {
			s.straight(dst, src[o[0]:], width, columns, rows-y, y, end)
		}
	}
	return nil
}

// straight writes the patch's rows y to end, whose samples src begins with: have rows of columns samples, width apart. The last of
// either is repeated.
func (s *Scratch) straight(dst []float32, src []int16, width, columns, have, y, end int) {
	wd, h := s.patch.Size[0], s.patch.Size[1]
	for r := y; r < end; r++ {
		at := min(r-y, have-1) * width
		from := src[at : at+columns]
		row := r
		if s.plan.against[1] {
			row = h - 1 - r
		}
		to := dst[row*wd : (row+1)*wd]
		edge := s.table.value[uint16(from[columns-1])]
		if s.plan.against[0] {
			fill(to[:wd-columns], edge)
			backward(to[wd-columns:], from, &s.table.value)
		} else {
			forward(to[:columns], from, &s.table.value)
			fill(to[columns:], edge)
		}
	}
}

// turned is straight where rows become columns. The patch is square.
func (s *Scratch) turned(dst []float32, src []int16, width, columns, have, y, end int) {
	size := s.patch.Size[0]
	first, down := 0, size // of the result: where column 0 of the patch goes, and from each column to the next
	if s.plan.against[1] {
		first, down = (size-1)*size, -size
	}
	row := func(r int) []int16 {
		at := min(r-y, have-1) * width
		return src[at : at+columns]
	}
	r := y
	for ; r+8 <= end; r += 8 {
		if s.plan.against[0] {
			turn8(dst, first+size-8-r, down, size, &s.table.value,
				row(r+7), row(r+6), row(r+5), row(r+4), row(r+3), row(r+2), row(r+1), row(r))
		} else {
			turn8(dst, first+r, down, size, &s.table.value,
				row(r), row(r+1), row(r+2), row(r+3), row(r+4), row(r+5), row(r+6), row(r+7))
		}
	}
	for ; r < end; r++ {
		at := first + r
		if s.plan.against[0] {
			at = first + size - 1 - r
		}
		from := row(r)
		for c := range size {
			dst[at+c*down] = s.table.value[uint16(from[min(c, columns-1)])]
		}
	}
}

// turn8 writes eight rows of one length as columns, next to each other from dst[at]. The next row of dst is down
// further, and there are size of them; the rows' last samples are repeated.
func turn8(dst []float32, at, down, size int, t *[1 << 16]float32, a, b, c, d, e, f, g, h []int16) {
	b, c, d, e, f, g, h = b[:len(a)], c[:len(a)], d[:len(a)], e[:len(a)], f[:len(a)], g[:len(a)], h[:len(a)]
	var to *[8]float32
	for i := range a {
		to = (*[8]float32)(dst[at:])
		to[0], to[1], to[2], to[3] = t[uint16(a[i])], t[uint16(b[i])], t[uint16(c[i])], t[uint16(d[i])]
		to[4], to[5], to[6], to[7] = t[uint16(e[i])], t[uint16(f[i])], t[uint16(g[i])], t[uint16(h[i])]
		at += down
	}
	for range size - len(a) {
		*(*[8]float32)(dst[at:]) = *to
		at += down
	}
}

// noise turns slice z of the input, not yet clipped, into target (unless nil) and input.
func (s *Scratch) noise(w *worker, z int, input, target []float32) {
	wd, h := s.patch.Size[0], s.patch.Size[1]
	for y := range h {
		row := input[y*wd : (y+1)*wd]
		if target != nil {
			to := target[y*wd : (y+1)*wd]
			for i, x := range row {
				to[i] = min(max(x, -1), 1)
			}
		}
		for _, n := range s.plan.noise {
			w.pcg.Seed(n.key, mix(uint64(z*h+y)))
			for i := range row {
				row[i] += float32(n.std * w.rand.NormFloat64())
			}
		}
		for i, x := range row {
			row[i] = min(max(x, -1), 1)
		}
	}
}

// mix is splitmix64's: rows next to each other get seeds that are far apart.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// forward writes the table's value of each sample. dst and src are of one length.
func forward(dst []float32, src []int16, t *[1 << 16]float32) {
	for len(src) >= 8 && len(dst) >= 8 {
		d, s := (*[8]float32)(dst), (*[8]int16)(src)
		d[0], d[1], d[2], d[3] = t[uint16(s[0])], t[uint16(s[1])], t[uint16(s[2])], t[uint16(s[3])]
		d[4], d[5], d[6], d[7] = t[uint16(s[4])], t[uint16(s[5])], t[uint16(s[6])], t[uint16(s[7])]
		dst, src = dst[8:], src[8:]
	}
	for i := range min(len(dst), len(src)) {
		dst[i] = t[uint16(src[i])]
	}
}

// backward is forward with dst from its end.
func backward(dst []float32, src []int16, t *[1 << 16]float32) {
	for len(src) >= 8 && len(dst) >= 8 {
		d, s := (*[8]float32)(dst[len(dst)-8:]), (*[8]int16)(src)
		d[7], d[6], d[5], d[4] = t[uint16(s[0])], t[uint16(s[1])], t[uint16(s[2])], t[uint16(s[3])]
		d[3], d[2], d[1], d[0] = t[uint16(s[4])], t[uint16(s[5])], t[uint16(s[6])], t[uint16(s[7])]
		dst, src = dst[:len(dst)-8], src[8:]
	}
	for i, x := range src[:len(dst)] {
		dst[len(dst)-1-i] = t[uint16(x)]
	}
}

func fill(dst []float32, x float32) {
	for i := range dst {
		dst[i] = x
	}
}
