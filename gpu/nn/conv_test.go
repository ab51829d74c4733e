package nn

import (
	"fmt"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu"
)

// TestMargin builds PatchGAN's convolutions, of images and of a volume, with PyTorch's sizes for a padding of 2.
func TestMargin(t *testing.T) {
	for _, c := range []struct {
		in      gpu.Dims
		flat    int // axes that k1 leaves alone, from z on
		h, w, d []int
	}{
		{gpu.Dims{N: 3, D: 1, H: 64, W: 65, C: 1}, 1, []int{33, 17, 9, 10, 11}, []int{33, 17, 9, 10, 11}, []int{1, 1, 1, 1, 1}},
		{gpu.Dims{N: 2, D: 16, H: 33, W: 2, C: 1}, 0, []int{17, 9, 5, 6, 7}, []int{2, 2, 2, 3, 4}, []int{9, 5, 3, 4, 5}},
	} {
		var params Params
		g := NewGraph(&params)
		x := g.Conv("first", g.Input("x", c.in), Conv{Channels: 2, Kernel: k3, Stride: s1}) // its gradient is wanted
		for i := range c.h {
			kernel, stride := k4, s2
			if i > 2 {
				stride = s1
			}
			for a := range c.flat {
				kernel[a], stride[a] = 1, 1
			}
			x = g.Conv(fmt.Sprint("conv", i), x, Conv{Channels: 2, Kernel: kernel, Stride: stride, Margin: 2})
			if g.Err() != nil {
				t.Fatal(g.Err())
			}
			want := gpu.Dims{N: c.in.N, D: c.d[i], H: c.h[i], W: c.w[i], C: 2}
			k := x.by.(*convOp).conv
			lo := [3]int{2, 2, 2}
			for a := range c.flat {
				lo[a] = 0
			}
			if x.Dims != want || k.Out != want || k.Lo != lo {
				t.Errorf("%v: convolution %d gives %v with Lo %v, want %v with %v", c.in, i, x.Dims, k.Lo, want, lo)
			}
			if halo, pad := k.Halo(), k.Pad; halo != 2 || pad != gpu.Zero {
				t.Errorf("%v: convolution %d wants a halo of %d, pad %v", c.in, i, halo, pad)
			}
		}
		g.ReconLoss("loss", x, g.Input("target", x.Dims), 1, 0)
		p, err := Compile(g, newLedger(0), Options{Train: true})
		if err != nil {
			t.Fatal(err)
		}
		if e := books(p, g); len(e.faults) > 0 {
			t.Error(strings.Join(e.faults, "\n"))
		}
	}
}

func TestWrongMarginsAreErrors(t *testing.T) {
	for _, c := range []Conv{
		{Kernel: k4, Stride: s2, Margin: 1},
		{Kernel: k4, Stride: s2, Margin: -2},
		{Kernel: k4, Stride: s2, Margin: 2, Pad: gpu.Replicate},
		{Kernel: k4, Stride: s2, Margin: 2, Transposed: true},
		{Kernel: [3]int{1, 3, 3}, Stride: s1, Margin: 2},
	} {
		c.Channels = 1
		g := NewGraph(&Params{})
		g.Conv("c", g.Input("x", gpu.Dims{N: 1, D: 8, H: 8, W: 8, C: 1}), c)
		if err := g.Err(); err == nil || !strings.HasPrefix(err.Error(), "c: margin") {
			t.Errorf("%+v: error %v", c, err)
		}
	}
}
