//go:build cuda

package cuda

import (
	"slices"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"pgregory.net/rapid"
)

// drawConv gives a convolution along x and y of a shape in use.
func drawConv(t *rapid.T) gpu.Conv {
	c := gpu.Conv{K: [3]int{1, 3, 3}, S: [3]int{1, 1, 1}, Lo: [3]int{0, 1, 1}, Pad: gpu.Replicate}
	h, w := rapid.IntRange(1, 4).Draw(t, "h"), rapid.IntRange(1, 30).Draw(t, "w")
	c.In, c.Out = gpu.Dims{N: 2, D: 2, H: h, W: w, C: 1}, gpu.Dims{N: 2, D: 2, H: h, W: w, C: 1}
	switch rapid.IntRange(0, 4).Draw(t, "shape") {
	case 1: // down
		c.K, c.S, c.In.H, c.In.W = [3]int{1, 4, 4}, [3]int{1, 2, 2}, 2*h, 2*w
	case 2: // up
		c.K, c.S, c.Out.H, c.Out.W, c.Transposed = [3]int{1, 4, 4}, [3]int{1, 2, 2}, 2*h, 2*w, true
	case 3: // up along y alone
		c.K, c.S, c.Out.H, c.Transposed = [3]int{1, 4, 4}, [3]int{1, 2, 1}, 2*h, true
	case 4:
		c.K, c.Lo, c.Pad = [3]int{1, 1, 1}, [3]int{}, gpu.Zero
	}
	return c
}

// The products of boxes, whatever runs their taps fall into, are those of the axes, each once; and what a block loads lies inside
// the source.
func TestBoxes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, forward := drawConv(t), rapid.Bool().Draw(t, "forward")
		halo, m := c.Halo()+rapid.IntRange(0, 1).Draw(t, "more halo"), rapid.SampledFrom([]int{7, 64}).Draw(t, "tile")
		src, spans := c.In, gpu.Axis.Forward
		if !forward {
			src, spans = c.Out, gpu.Axis.Backward
		}
		row := src.W + 2*halo
		type product [5]int // target along z, y, x; stored voxel of the source's first sample; tap
		var want []product
		for _, z := range spans(c.Axis(0)) {
			for _, y := range spans(c.Axis(1)) {
				for _, x := range spans(c.Axis(2)) {
					for j := range z.Count * y.Count * x.Count {
						jz, jy, jx := j/x.Count/y.Count, j/x.Count%y.Count, j%x.Count
						for _, pz := range z.Pairs {
							for _, py := range y.Pairs {
								for _, px := range x.Pairs {
									at := ((pz.Source+jz*z.SourceStep)*src.H+py.Source+jy*y.SourceStep)*row + px.Source + jx*x.SourceStep + halo
									want = append(want, product{z.First + jz*z.Step, y.First + jy*y.Step, x.First + jx*x.Step, at,
										(pz.Tap*c.K[1]+py.Tap)*c.K[2] + px.Tap})
								}
							}
						}
					}
				}
			}
		}
		bs, runs, tiles := boxes(c, forward, c.In.N, halo, m, rapid.Bool().Draw(t, "runs"))
		var got []product
		next := 0
		for _, b := range bs {
			if int(b.Tile) != next {
				t.Fatalf("a box begins with tile %d, want %d", b.Tile, next)
			}
			next += divUp(c.In.N*int(b.positions()), m)
			for p := range b.positions() {
				source := func(p int32) int {
					y := p / b.Wide
					return int((y/b.Count[1]*b.SrcStep[0]*int32(src.H)+y%b.Count[1]*b.SrcStep[1])*int32(row) + p%b.Wide*b.SrcStep[2])
				}
				for _, r := range runs[b.Run : b.Run+b.Runs] {
					if at := source(p) + int(r.At); at < 0 || at >= src.D*src.H*row {
						t.Fatalf("box %+v loads stored voxel %d of %d", b, at, src.D*src.H*row)
					}
					if p%b.Wide >= b.Count[2] {
						continue
					}
					for k := range b.Length {
						y := p / b.Wide
						got = append(got, product{int(b.First[0] + y/b.Count[1]*b.Step[0]), int(b.First[1] + y%b.Count[1]*b.Step[1]),
							int(b.First[2] + p%b.Wide*b.Step[2]), source(p+k) + int(r.At), int(r.Weight + k*r.Next)})
					}
				}
			}
		}
		if next != tiles {
			t.Fatalf("%d tiles, want %d", tiles, next)
		}
		order := func(a, b product) int { return slices.Compare(a[:], b[:]) }
		slices.SortFunc(want, order)
		slices.SortFunc(got, order)
		if !slices.Equal(got, want) {
			t.Fatalf("%d products that aren't the %d of the axes", len(got), len(want))
		}
	})
}

// A k3 convolution has runs of three, the phases of a transposed one and the two halves of a k4 s2 one runs of two; a few targets
// have none, nor have borders that fold taps.
func TestRuns(t *testing.T) {
	conv := func(k, s int, transposed bool) gpu.Conv {
		c := gpu.Conv{K: [3]int{1, 1, k}, S: [3]int{1, 1, s}, Lo: [3]int{0, 0, 1}, Transposed: transposed, Pad: gpu.Replicate,
			In: gpu.Dims{N: 1, D: 1, H: 1, W: 32, C: 1}, Out: gpu.Dims{N: 1, D: 1, H: 1, W: 32, C: 1}}
		if transposed {
			c.Out.W *= s
		} else {
			c.Out.W /= s
		}
		return c
	}
	for _, test := range []struct {
		name    string
		c       gpu.Conv
		forward bool
		lengths []int32 // of boxes, largest first
		runs    int32   // of the first
	}{
		{"k3", conv(3, 1, false), true, []int32{3}, 1},
		{"k3 back", conv(3, 1, false), false, []int32{3, 1, 1}, 1},
		{"k4 s2", conv(4, 2, false), true, []int32{2}, 2},
		{"transposed k4 s2", conv(4, 2, true), true, []int32{2, 2}, 1},
		{"transposed k4 s2 back", conv(4, 2, true), false, []int32{2, 1, 1}, 2},
		{"transposed k4", conv(4, 1, true), true, []int32{2}, 2},
	} {
		bs, _, _ := boxes(test.c, test.forward, 1, test.c.Halo(), 64, true)
		var lengths []int32
		for _, b := range bs {
			lengths = append(lengths, b.Length)
		}
		if !slices.Equal(lengths, test.lengths) || bs[0].Runs != test.runs {
			t.Errorf("%s: runs of %v, %d of them first, want %v, %d", test.name, lengths, bs[0].Runs, test.lengths, test.runs)
		}
	}
}

// What put was given may change when it has been handed over, though the device copies it later.
func TestPut(t *testing.T) {
	e := open(t).(*Engine)
	if err := e.Reserve(1 << 20); err != nil {
		t.Fatal(err)
	}
	v := []int32{1, 2, 3}
	at := put(e, v)
	if err := e.o.wait(func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	v[0] = 9
	got := make([]int32, len(v))
	e.Codes(got, gpu.Ptr(at-e.base))
	if want := []int32{1, 2, 3}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}
