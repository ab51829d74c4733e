//go:build cuda

package cuda

import (
	"slices"

	"github.com/flowrun/flowrun/gpu"
)

// A convolution is, for each tap, a matrix product on a shifted window: target voxels by channels, from source voxels by
// channels. Targets fall into boxes that share their taps: one inside, others where a border folds taps or a stride has phases.
// A block of threads computes a tile of one box, so the kernel neither branches on borders nor clamps.

// axis is one axis of a convolution.
type axis struct {
	in, out, k, s, lo int
	transposed        bool
	pad               gpu.Padding
	stored            bool // sources beyond the ends are in the halo
}

func axisOf(c gpu.Conv, i int) axis {
	size := func(d gpu.Dims) int { return [3]int{d.D, d.H, d.W}[i] }
	return axis{in: size(c.In), out: size(c.Out), k: c.K[i], s: c.S[i], lo: c.Lo[i], transposed: c.Transposed, pad: c.Pad, stored: i == 2}
}

// input is the input index that tap k joins to output o.
func (a axis) input(o, k int) (i int, ok bool) {
	if !a.transposed {
		return o*a.s - a.lo + k, true
	}
	i = o + a.lo - k
	return floorDiv(i, a.s), i%a.s == 0
}

// output is the output index that tap k joins to input i.
func (a axis) output(i, k int) (o int, ok bool) {
	if a.transposed {
		return i*a.s - a.lo + k, true
	}
	o = i + a.lo - k
	return floorDiv(o, a.s), o%a.s == 0
}

func floorDiv(a, b int) int {
	if a < 0 {
		return -((-a + b - 1) / b)
	}
	return a / b
}

// pair is one product along an axis: a source index and the tap that it meets.
type pair struct{ src, k int }

// forward gives the pairs of output o by ascending tap, so that the order of sums is the same at a border and inside.
func (a axis) forward(o int) []pair {
	var ps []pair
	for k := range a.k {
		i, ok := a.input(o, k)
		switch {
		case !ok:
			continue
		case a.stored:
		case a.pad == gpu.Replicate:
			i = min(max(i, 0), a.in-1)
		case i < 0 || i >= a.in:
			continue
		}
		ps = append(ps, pair{i, k})
	}
	return ps
}

// backward gives the pairs (output, tap) of input i, and behind them those of the padding that was copied from i.
func (a axis) backward(i int) []pair {
	reach := 0
	if a.stored { // zeros
		reach = a.k
	}
	ps := a.meet(i, reach)
	if a.pad != gpu.Replicate {
		return ps
	}
	for j := 1; j <= a.k; j++ {
		if i == 0 {
			ps = append(ps, a.meet(-j, 0)...)
		}
		if i == a.in-1 {
			ps = append(ps, a.meet(i+j, 0)...)
		}
	}
	return ps
}

// meet gives the pairs of input i before padding folds anything, with outputs up to reach beyond the ends.
func (a axis) meet(i, reach int) []pair {
	var ps []pair
	for k := range a.k {
		if o, ok := a.output(i, k); ok && o >= -reach && o < a.out+reach {
			ps = append(ps, pair{o, k})
		}
	}
	return ps
}

// span is a run of targets that share their taps: target first + step*j takes sources pairs[·].src + srcStep*j.
type span struct {
	first, step, count, srcStep int
	pairs                       []pair
}

// spans covers the targets of a pass.
func (a axis) spans(forward bool) []span {
	n, pairs, fine := a.out, a.forward, a.transposed // fine: targets step by the stride, else sources do
	if !forward {
		n, pairs, fine = a.in, a.backward, !a.transposed
	}
	step, srcStep := 1, a.s
	if fine {
		step, srcStep = a.s, 1
	}
	var out []span
	for phase := range min(step, n) {
		open := false
		for t := phase; t < n; t += step {
			ps := pairs(t)
			if open {
				s := &out[len(out)-1]
				shift := s.count * srcStep
				if slices.EqualFunc(s.pairs, ps, func(p, q pair) bool { return p.k == q.k && p.src+shift == q.src }) {
					s.count++
					continue
				}
			}
			out, open = append(out, span{t, step, 1, srcStep, ps}), true
		}
	}
	return out
}

// box is a block of targets that share their taps, as the kernels read it. Axes are z, y, x.
type box struct {
	First, Step, Count, SrcStep [3]int32
	Tap, Taps                   int32 // the first of its taps, and how many
	Tile, _                     int32 // its first tile
}

// tap is where a source lies, in voxels from its sample's first stored one, and the tap of the weights that it meets.
type tap struct{ At, Weight int32 }

// boxes cuts a pass of n samples into boxes of tiles of m targets, largest first. The source's rows have halo columns at each end.
func boxes(c gpu.Conv, forward bool, n, halo, m int) (bs []box, taps []tap, tiles int) {
	src := c.In
	if !forward {
		src = c.Out
	}
	row := src.W + 2*halo
	for _, z := range axisOf(c, 0).spans(forward) {
		for _, y := range axisOf(c, 1).spans(forward) {
			for _, x := range axisOf(c, 2).spans(forward) {
				b := box{Tap: int32(len(taps))}
				for i, s := range []span{z, y, x} {
					b.First[i], b.Step[i], b.Count[i], b.SrcStep[i] = int32(s.first), int32(s.step), int32(s.count), int32(s.srcStep)
				}
				for _, pz := range z.pairs {
					for _, py := range y.pairs {
						for _, px := range x.pairs {
							taps = append(taps, tap{
								At:     int32((pz.src*src.H+py.src)*row + px.src + halo),
								Weight: int32((pz.k*c.K[1]+py.k)*c.K[2] + px.k),
							})
						}
					}
				}
				b.Taps = int32(len(taps)) - b.Tap
				bs = append(bs, b)
			}
		}
	}
	slices.SortStableFunc(bs, func(a, b box) int { return int(b.voxels() - a.voxels()) })
	for i := range bs {
		bs[i].Tile = int32(tiles)
		tiles += divUp(n*int(bs[i].voxels()), m)
	}
	return bs, taps, tiles
}

func (b *box) voxels() int32 { return b.Count[0] * b.Count[1] * b.Count[2] }
