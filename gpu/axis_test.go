package gpu

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// shapes are those in use (see Conv), along one axis.
var shapes = []struct {
	k, s, lo   int
	transposed bool
	more       int // outputs beyond those of the stride
}{
	{k: 1, s: 1}, {k: 3, s: 1, lo: 1}, {k: 4, s: 2, lo: 1}, {k: 4, s: 1, lo: 2}, {k: 4, s: 2, lo: 1, transposed: true},
	{k: 4, s: 1, lo: 1, transposed: true}, {k: 4, s: 2, lo: 2, more: 1}, {k: 4, s: 1, lo: 2, more: 1},
}

func drawAxis(t *rapid.T) Axis {
	s := rapid.SampledFrom(shapes).Draw(t, "shape")
	n := rapid.IntRange(1, 7).Draw(t, "size")
	in, out := n*s.s, n+s.more
	if s.transposed {
		in, out = n, n*s.s
	}
	c := Conv{In: Dims{D: 1, H: 1, W: in}, Out: Dims{D: 1, H: 1, W: out}, K: [3]int{1, 1, s.k}, S: [3]int{1, 1, s.s}, Lo: [3]int{0, 0, s.lo},
		Transposed: s.transposed}
	if s.more == 0 && rapid.Bool().Draw(t, "replicate") {
		c.Pad = Replicate
	}
	a := c.Axis(2)
	if rapid.Bool().Draw(t, "not stored") {
		a.Halo = 0
	}
	return a
}

// product is one of a convolution's: input i, as padding has it, times tap k, added to output o.
type product struct{ i, k, o int }

// products are those that the contract of Conv names, sorted; with halo, those of what lies beyond the ends too.
func (a Axis) products(halo bool) []product {
	var all []product
	for i := -a.K; i < a.In+a.K; i++ {
		for k := range a.K {
			for o := range a.Out {
				if !a.Transposed && o*a.S-a.Lo+k != i || a.Transposed && i*a.S-a.Lo+k != o {
					continue
				}
				at := i
				switch beyond := i < 0 || i >= a.In; {
				case beyond && halo:
				case beyond && a.Pad == Replicate:
					at = min(max(i, 0), a.In-1)
				case beyond:
					continue
				}
				all = append(all, product{at, k, o})
			}
		}
	}
	return sorted(all)
}

func sorted(ps []product) []product {
	slices.SortFunc(ps, func(a, b product) int {
		return slices.Compare([]int{a.i, a.k, a.o}, []int{b.i, b.k, b.o})
	})
	return ps
}

// of lists the products that spans are; backward ones without the zeros that gradients have beyond their ends.
func of(t *rapid.T, spans []Span, targets int, a Axis, forward bool) []product {
	var all []product
	met := make([]int, targets)
	for _, s := range spans {
		for j := range s.Count {
			target := s.First + s.Step*j
			met[target]++
			for _, p := range s.Pairs {
				switch source := p.Source + s.SourceStep*j; {
				case forward:
					all = append(all, product{source, p.Tap, target})
				case source >= 0 && source < a.Out:
					all = append(all, product{target, p.Tap, source})
				case source < -a.Halo || source >= a.Out+a.Halo:
					t.Fatalf("input %d reads gradient %d, of %d with a halo of %d", target, source, a.Out, a.Halo)
				}
			}
		}
	}
	if i := slices.IndexFunc(met, func(n int) bool { return n > 1 }); i >= 0 {
		t.Fatalf("target %d is in two spans", i)
	}
	return sorted(all)
}

// The spans of each pass are the products of the contract, each once.
func TestSpans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := drawAxis(t)
		same := func(what string, got, want []product) {
			if !slices.Equal(got, want) {
				t.Fatalf("%s of %+v: %v, want %v", what, a, got, want)
			}
		}
		same("forward", of(t, a.Forward(), a.Out, a, true), a.products(a.Halo > 0))
		same("backward", of(t, a.Backward(), a.In, a, false), a.products(false))
		parts := append(of(t, a.BackwardInside(), a.In, a, false), of(t, a.BackwardFolded(), a.In, a, false)...)
		same("backward in two", sorted(parts), a.products(false))
		var taps []product
		for k := range a.K {
			i, o, n := a.Overlap(k)
			for ; n > 0; n-- {
				taps = append(taps, product{i, k, o})
				if a.Transposed {
					i, o = i+1, o+a.S
				} else {
					i, o = i+a.S, o+1
				}
			}
		}
		same("overlaps", sorted(taps), a.products(true))
	})
}

// A voxel's order of sums is that of its sources, at a border as inside: k4 s2 of 6 by replicate padding.
func TestSpansByHand(t *testing.T) {
	c := Conv{In: Dims{D: 6, H: 1, W: 6}, Out: Dims{D: 3, H: 1, W: 3}, K: [3]int{4, 1, 4}, S: [3]int{2, 1, 2}, Lo: [3]int{1, 0, 1}, Pad: Replicate}
	equal := func(got []Span, want ...Span) {
		t.Helper()
		if !slices.EqualFunc(got, want, func(a, b Span) bool {
			return a.First == b.First && a.Step == b.Step && a.Count == b.Count && a.SourceStep == b.SourceStep && slices.Equal(a.Pairs, b.Pairs)
		}) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	z, x := c.Axis(0), c.Axis(2)
	equal(z.Forward(), Span{0, 1, 1, 2, []Pair{{0, 0}, {0, 1}, {1, 2}, {2, 3}}}, Span{1, 1, 1, 2, []Pair{{1, 0}, {2, 1}, {3, 2}, {4, 3}}},
		Span{2, 1, 1, 2, []Pair{{3, 0}, {4, 1}, {5, 2}, {5, 3}}})
	equal(x.Forward(), Span{0, 1, 3, 2, []Pair{{-1, 0}, {0, 1}, {1, 2}, {2, 3}}})
	equal(x.BackwardInside(), Span{0, 2, 3, 1, []Pair{{-1, 3}, {0, 1}}}, Span{1, 2, 3, 1, []Pair{{0, 2}, {1, 0}}})
	equal(x.BackwardFolded(), Span{0, 2, 1, 1, []Pair{{0, 0}}}, Span{5, 2, 1, 1, []Pair{{2, 3}}})
}
