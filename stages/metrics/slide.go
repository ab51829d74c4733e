package metrics

import (
	"sync"
	"sync/atomic"
)

// chunk is the number of rows that a worker takes at a time; each chunk filters as many rows more as a window has beside
// its middle.
const chunk = 48

// slide passes two volumes, given slice by slice, under a cubic window of taps voxels, an odd number. Windows lie inside; an
// axis shorter than one is mirrored at its ends, the edge repeated (d c b a | a b c d | d c b a), and has a window for each of
// its voxels. It holds taps slices of both images, clipped, as float32.
type slide struct {
	in, out [3]int // voxels, windows
	taps    int
	x       []int // padded column → column
	ring    [][2][]float32
	n       int // slices so far
}

func newSlide(size [3]int, taps int) slide {
	s := slide{in: size, out: size, taps: taps}
	for a, n := range size {
		if n >= taps {
			s.out[a] = n - taps + 1
		}
	}
	s.x = make([]int, s.out[0]+taps-1)
	for i := range s.x {
		s.x[i] = s.source(i, 0)
	}
	s.ring = make([][2][]float32, min(taps, size[2]))
	for i := range s.ring {
		s.ring[i] = [2][]float32{make([]float32, len(s.x)*size[1]), make([]float32, len(s.x)*size[1])}
	}
	return s
}

// source is the voxel at padded position i of an axis: i itself, or, on an axis too short for a window, the mirror image of
// i less half a window.
func (s *slide) source(i, axis int) int {
	n := s.in[axis]
	if n >= s.taps {
		return i
	}
	i = (i - s.taps/2) % (2 * n)
	if i < 0 {
		i += 2 * n
	}
	return min(i, 2*n-1-i)
}

// row is a row of both volumes at padded y and z, as long as x.
func (s *slide) row(z, y int) (orig, recon []float32) {
	slot, at := &s.ring[s.source(z, 2)%len(s.ring)], s.source(y, 1)*len(s.x)
	return slot[0][at:][:len(s.x)], slot[1][at:][:len(s.x)]
}

// add takes the next slice of both volumes, x fastest, and keeps neither. It calls full with the first padded slice of each
// slice of windows that is whole by now.
func (s *slide) add(orig, recon []float32, full func(z int)) {
	slot := s.ring[s.n%len(s.ring)]
	width := len(s.x)
	for y := range s.in[1] {
		o, r := orig[y*s.in[0]:][:s.in[0]], recon[y*s.in[0]:][:s.in[0]]
		for i, x := range s.x {
			slot[0][y*width+i], slot[1][y*width+i] = clip(o[x]), clip(r[x])
		}
	}
	s.n++
	switch {
	case s.in[2] >= s.taps && s.n >= s.taps:
		full(s.n - s.taps)
	case s.in[2] < s.taps && s.n == s.in[2]:
		for z := range s.in[2] {
			full(z)
		}
	}
}

// windows is the number of windows so far.
func (s *slide) windows() int64 {
	slices := s.n - (s.in[2] - s.out[2])
	if s.in[2] < s.taps && s.n < s.in[2] {
		slices = 0
	}
	return int64(max(0, slices)) * int64(s.out[0]) * int64(s.out[1])
}

func (s *slide) chunks() int { return (s.out[1] + chunk - 1) / chunk }

// share runs work on the rows lo ≤ y < hi of windows, a chunk at a time, on so many workers, each with a number of its own.
func (s *slide) share(workers int, work func(worker, lo, hi int)) {
	chunks := s.chunks()
	var next atomic.Int64
	run := func(worker int) {
		for c := int(next.Add(1)) - 1; c < chunks; c = int(next.Add(1)) - 1 {
			work(worker, c*chunk, min((c+1)*chunk, s.out[1]))
		}
	}
	var wg sync.WaitGroup
	for worker := 1; worker < workers; worker++ {
		wg.Go(func() { run(worker) })
	}
	run(0)
	wg.Wait()
}
