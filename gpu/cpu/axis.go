package cpu

import (
	"slices"

	"github.com/flowrun/flowrun/gpu"
)

// axis is one axis of a convolution, seen from what is computed (targets: outputs of the forward pass, inputs of the
// input gradient) and what it is computed from (sources).
type axis struct {
	in, out    int
	k, s, lo   int
	transposed bool
	pad        gpu.Padding
	halo       int // source columns stored outside; 0 on z and y
}

func axisOf(c gpu.Conv, i int) axis {
	size := func(d gpu.Dims) int { return [3]int{d.D, d.H, d.W}[i] }
	a := axis{in: size(c.In), out: size(c.Out), k: c.K[i], s: c.S[i], lo: c.Lo[i], transposed: c.Transposed, pad: c.Pad}
	if i == 2 {
		a.halo = c.Halo()
	}
	return a
}

// pair is one product along an axis: a source index and the tap it meets.
type pair struct{ src, k int }

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

// forward gives the pairs of output o, inputs ascending as they lie before padding folds them: a voxel's order of sums
// is the same at a border and inside.
func (a axis) forward(o int) []pair {
	var ps []pair
	for _, k := range a.order(a.transposed) {
		i, ok := a.input(o, k)
		switch {
		case !ok:
			continue
		case a.halo > 0: // stored
		case a.pad == gpu.Replicate:
			i = min(max(i, 0), a.in-1)
		case i < 0 || i >= a.in:
			continue
		}
		ps = append(ps, pair{i, k})
	}
	return ps
}

// backward gives the pairs (output, tap) of input i: what padding copied from i counts as i. Gradients beyond the ends
// are zeros: they are left out or, where they are stored, read. There what padding copied is left to folded.
func (a axis) backward(i int) []pair {
	ps := a.meet(i, a.halo)
	if a.halo == 0 {
		ps = append(ps, a.folded(i)...)
	}
	return ps
}

// folded gives the pairs of the padding that was copied from input i.
func (a axis) folded(i int) []pair {
	if a.pad != gpu.Replicate {
		return nil
	}
	var ps []pair
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

// meet gives the pairs of input i before padding folds anything.
func (a axis) meet(i, halo int) []pair {
	var ps []pair
	for _, k := range a.order(!a.transposed) {
		if o, ok := a.output(i, k); ok && o >= -halo && o < a.out+halo {
			ps = append(ps, pair{o, k})
		}
	}
	return ps
}

// order is the order of taps in which sources ascend.
func (a axis) order(reverse bool) []int {
	ks := make([]int, a.k)
	for k := range ks {
		ks[k] = k
	}
	if reverse {
		slices.Reverse(ks)
	}
	return ks
}

// span is a run of targets that share their taps: target first + step*j takes sources pairs[·].src + srcStep*j.
type span struct {
	first, step, count int
	srcStep            int
	pairs              []pair
}

// spans covers the targets 0 ≤ t < n. Of each pass one side steps by the stride: fine is whether targets do.
func (a axis) spans(n int, fine bool, pairs func(t int) []pair) []span {
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

// forwardSpans covers the outputs.
func (a axis) forwardSpans() []span { return a.spans(a.out, a.transposed, a.forward) }

// backwardSpans covers the inputs.
func (a axis) backwardSpans() []span { return a.spans(a.in, !a.transposed, a.backward) }

// foldedSpans covers the inputs that padding copied.
func (a axis) foldedSpans() []span {
	return slices.DeleteFunc(a.spans(a.in, !a.transposed, a.folded), func(s span) bool { return len(s.pairs) == 0 })
}

// packOrder says where each tap lies among the packed weights, such that taps which meet neighbouring sources lie side by
// side: products over them and their channels are then one run.
func (a axis) packOrder(forward bool) []int {
	reverse, fine := !a.transposed, !a.transposed
	if forward {
		reverse, fine = a.transposed, a.transposed
	}
	ks := a.order(reverse)
	if fine {
		slices.SortStableFunc(ks, func(p, q int) int { return p%a.s - q%a.s })
	}
	at := make([]int, a.k)
	for i, k := range ks {
		at[k] = i
	}
	return at
}
