package gpu

import "slices"

// Axis is one axis of a convolution: which of its taps join which inputs and outputs. Engines cut their passes by it. Of a pass, targets
// are what is computed (outputs; for the input's gradient, inputs), sources what it is computed from.
type Axis struct {
	In, Out    int
	K, S, Lo   int
	Transposed bool
	Pad        Padding
	Halo       int // columns of the sources that are stored beyond their ends; 0 along z and y
}

// Axis is axis i: 0 z, 1 y, 2 x.
func (c Conv) Axis(i int) Axis {
	size := func(d Dims) int { return [3]int{d.D, d.H, d.W}[i] }
	a := Axis{In: size(c.In), Out: size(c.Out), K: c.K[i], S: c.S[i], Lo: c.Lo[i], Transposed: c.Transposed, Pad: c.Pad}
	if i == 2 {
		a.Halo = c.Halo()
	}
	return a
}

// Pair is one product along an axis: a source and the tap that it meets.
type Pair struct{ Source, Tap int }

// input is the input that tap k joins to output o, wherever it lies.
func (a Axis) input(o, k int) (i int, ok bool) {
	if !a.Transposed {
		return o*a.S - a.Lo + k, true
	}
	i = o + a.Lo - k
	return floorDiv(i, a.S), i%a.S == 0
}

// output is the output that tap k joins to input i, wherever it lies.
func (a Axis) output(i, k int) (o int, ok bool) {
	if a.Transposed {
		return i*a.S - a.Lo + k, true
	}
	o = i + a.Lo - k
	return floorDiv(o, a.S), o%a.S == 0
}

func floorDiv(a, b int) int {
	if a < 0 {
		return -((-a + b - 1) / b)
	}
	return a / b
}

// Input is the stored input that tap k joins to output o: where there is no halo, the one that padding copied; none where it is a zero.
func (a Axis) Input(o, k int) (i int, ok bool) {
	i, ok = a.input(o, k)
	switch {
	case !ok:
		return 0, false
	case a.Halo > 0:
		return i, true
	case a.Pad == Replicate:
		return min(max(i, 0), a.In-1), true
	}
	return i, i >= 0 && i < a.In
}

// Overlap gives the inputs (they may begin and end in the halo) and outputs that tap k joins: from which input and which output on, and
// how many. Of a convolution inputs are S apart, of a transposed one outputs.
func (a Axis) Overlap(k int) (in, out, count int) {
	if !a.Transposed {
		return k - a.Lo, 0, a.Out
	}
	in = -floorDiv(k-a.Lo, a.S) // out = in*S - Lo + k with 0 ≤ out < Out
	out = in*a.S - a.Lo + k
	return in, out, (max(a.Out-out, 0) + a.S - 1) / a.S
}

// forward gives the pairs of output o, inputs ascending as they lie before padding folds them: a voxel's order of sums
// is the same at a border and inside.
func (a Axis) forward(o int) []Pair {
	var ps []Pair
	for _, k := range a.Order(true) {
		if i, ok := a.Input(o, k); ok {
			ps = append(ps, Pair{i, k})
		}
	}
	return ps
}

// backward gives the pairs (output, tap) of input i before padding folds anything, outputs ascending. Gradients beyond the ends are
// zeros: they are left out or, where they are stored, read.
func (a Axis) backward(i int) []Pair { return a.meet(i, a.Halo) }

// folded gives the pairs of the padding that was copied from input i.
func (a Axis) folded(i int) []Pair {
	if a.Pad != Replicate {
		return nil
	}
	var ps []Pair
	for j := 1; j <= a.K; j++ {
		if i == 0 {
			ps = append(ps, a.meet(-j, 0)...)
		}
		if i == a.In-1 {
			ps = append(ps, a.meet(i+j, 0)...)
		}
	}
	return ps
}

// meet gives the pairs of input i, inside or beyond the ends, with outputs up to halo beyond theirs.
func (a Axis) meet(i, halo int) []Pair {
	var ps []Pair
	for _, k := range a.Order(false) {
		if o, ok := a.output(i, k); ok && o >= -halo && o < a.Out+halo {
			ps = append(ps, Pair{o, k})
		}
	}
	return ps
}

// Order is the order of taps in which the sources of a forward or backward pass ascend.
func (a Axis) Order(forward bool) []int {
	ks := make([]int, a.K)
	for k := range ks {
		ks[k] = k
	}
	if forward == a.Transposed {
		slices.Reverse(ks)
	}
	return ks
}

// Fine says whether the targets of a forward or backward pass step by the stride, from phase to phase; else its sources do.
func (a Axis) Fine(forward bool) bool { return forward == a.Transposed }

// Span is a run of targets that share their taps: target First + Step*j takes sources Pairs[·].Source + SourceStep*j, j < Count.
type Span struct {
	First, Step, Count int
	SourceStep         int
	Pairs              []Pair
}

// Forward covers the outputs.
func (a Axis) Forward() []Span { return a.spans(a.Out, true, a.forward) }

// Backward covers the inputs: what padding copied from one counts as it, its pairs behind the input's own.
func (a Axis) Backward() []Span {
	return a.spans(a.In, false, func(i int) []Pair { return append(a.backward(i), a.folded(i)...) })
}

// BackwardInside is Backward without what padding copied: where there is a halo, borders are like the inside.
func (a Axis) BackwardInside() []Span { return a.spans(a.In, false, a.backward) }

// BackwardFolded covers the inputs that padding copied, with that alone.
func (a Axis) BackwardFolded() []Span {
	return slices.DeleteFunc(a.spans(a.In, false, a.folded), func(s Span) bool { return len(s.Pairs) == 0 })
}

// spans covers the targets 0 ≤ t < n of a pass.
func (a Axis) spans(n int, forward bool, pairs func(t int) []Pair) []Span {
	step, sourceStep := 1, a.S
	if a.Fine(forward) {
		step, sourceStep = a.S, 1
	}
	var out []Span
	for phase := range min(step, n) {
		open := false
		for t := phase; t < n; t += step {
			ps := pairs(t)
			if open {
				s := &out[len(out)-1]
				shift := s.Count * sourceStep
				if slices.EqualFunc(s.Pairs, ps, func(p, q Pair) bool { return p.Tap == q.Tap && p.Source+shift == q.Source }) {
					s.Count++
					continue
				}
			}
			out, open = append(out, Span{t, step, 1, sourceStep, ps}), true
		}
	}
	return out
}
