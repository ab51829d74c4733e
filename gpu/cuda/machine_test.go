//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/cpu"
	"github.com/flowrun/flowrun/gpu/enginetest"
	x86 "golang.org/x/sys/cpu"
)

// onMachine has launches run the very PTX that a card would get, on the stand-in's machine for it, which fails a kernel as NVIDIA's
// compute-sanitizer would. The emulation, that other tests run on, has the kernels' sources.
func onMachine(t *testing.T) {
	t.Helper()
	if !strings.Contains(os.Getenv(Library), "standin") {
		t.Skip("a real driver runs PTX anyway")
	}
	if !x86.X86.HasAVX2 || !x86.X86.HasFMA {
		t.Skip("the machine wants AVX2 and FMA")
	}
	t.Setenv("FLOWRUN_STANDIN_PTX", "1")
}

// Every op, shapes as wide as models have, and steps of training do on the kernels' PTX what they do elsewhere, and no kernel is left out.
func TestMachine(t *testing.T) {
	onMachine(t)
	ran := filepath.Join(t.TempDir(), "kernels")
	t.Setenv("FLOWRUN_STANDIN_KERNELS", ran)
	enginetest.Run(t, func() gpu.Engine { return open(t) })
	t.Run("wide", wide)
	t.Run("Hopper", func(t *testing.T) {
		asHopper(t)
		e := open(t) // it holds them against the others
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	for name, gan := range map[string]bool{"autoencoder": false, "GAN": true} {
		t.Run(name, func(t *testing.T) {
			c, o := tiny("channel", false)
			if gan {
				c, o = tiny("group", true)
				o.Patch, o.Loss.L2, o.Loss.SSIM, o.GAN.R1Every = [3]int{12, 12, 12}, 1, 1, 1
			}
			host, card := cpu.New(1), open(t)
			want, _ := train(t, host, c, o, 1)
			got, _ := train(t, card, c, o, 1)
			agree(t, got, want)
			for _, e := range []gpu.Engine{host, card} {
				if err := e.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	text, err := os.ReadFile(ran)
	if err != nil {
		t.Fatal(err)
	}
	all, err := modules()
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(string(text))
	for _, m := range all {
		for _, name := range entries(m.text) {
			if !slices.Contains(names, name) {
				t.Errorf("nothing ran %s", name)
			}
		}
	}
}

// side is an engine and its memory.
type side struct {
	gpu.Engine
	next gpu.Ptr
}

func (s *side) alloc(bytes int64) gpu.Ptr {
	p := s.next
	s.next += gpu.Ptr(aligned(bytes))
	return p
}

func (s *side) floats(v []float32) gpu.Ptr {
	p := s.alloc(4 * int64(len(v)))
	s.Write(p, v)
	return p
}

func (s *side) tensor(d gpu.Dims, halo int, kind gpu.Type, v []float32) gpu.Tensor {
	t := gpu.Tensor{Dims: d, Halo: halo, Type: kind, At: s.alloc(s.Bytes(d, halo, kind))}
	if v != nil {
		s.WriteTensor(t, v)
	}
	return t
}

func (s *side) read(t gpu.Tensor) []float32 {
	v := make([]float32, t.Len())
	s.ReadTensor(v, t)
	return v
}

// errorer is testing.TB, or what keeps the first thing that it would say.
type errorer interface {
	Helper()
	Errorf(format string, args ...any)
}

// both runs f on the CPU engine in float32 and on the card in bfloat16, and compares what it returns.
func both(t *testing.T, f func(s *side, kind gpu.Type) [][]float32) {
	t.Helper()
	bothOn(t, open(t), f)
}

func bothOn(t errorer, card gpu.Engine, f func(s *side, kind gpu.Type) [][]float32) {
	t.Helper()
	var all [2][][]float32
	for i, e := range []gpu.Engine{cpu.New(1), card} {
		if err := e.Reserve(32 << 20); err != nil {
			t.Errorf("%v", errors.Join(err, e.Close()))
			return
		}
		all[i] = f(&side{Engine: e}, []gpu.Type{gpu.Float32, gpu.BFloat16}[i])
		err := e.Sync()
		if closing := e.Close(); err != nil || closing != nil {
			t.Errorf("%v", errors.Join(err, closing))
			return
		}
	}
	for i, want := range all[0] {
		var size float64
		for _, w := range want {
			size = max(size, math.Abs(float64(w)))
		}
		for j, w := range want {
			if off := math.Abs(float64(all[1][i][j] - w)); !(off <= size/100) {
				t.Errorf("result %d [%d] is %v, on the CPU %v", i, j, all[1][i][j], w)
				return
			}
		}
	}
}

// noise is n numbers that bfloat16 has.
func noise(n int) []float32 {
	r := rand.New(rand.NewPCG(3, uint64(n)))
	v := make([]float32, n)
	for i := range v {
		v[i] = math.Float32frombits(math.Float32bits(float32(r.NormFloat64())) &^ 0xffff)
	}
	return v
}

// convolve does a convolution and its gradients.
func convolve(c gpu.Conv) func(s *side, kind gpu.Type) [][]float32 {
	return func(s *side, kind gpu.Type) [][]float32 {
		c.Type = kind
		sizes := s.ConvSizes(c)
		weights := c.Taps() * c.In.C * c.Out.C
		packed, grad, work := s.alloc(sizes.Packed), s.alloc(sizes.PackedGrad), s.alloc(sizes.Workspace)
		s.PackConv(c, s.floats(noise(weights)), packed, grad)
		x, dy := s.tensor(c.In, c.Halo(), kind, noise(c.In.Len())), s.tensor(c.Out, c.Halo(), kind, noise(c.Out.Len()))
		y, dx := s.tensor(c.Out, 1, kind, nil), s.tensor(c.In, 0, kind, nil)
		s.Conv(c, x, packed, s.floats(noise(c.Out.C)), nil, y)
		s.ConvGradInput(c, dy, grad, dx)
		dw, db := s.floats(make([]float32, weights)), s.floats(make([]float32, c.Out.C))
		s.ConvGradWeight(c, x, dy, dw, db, work)
		gotW, gotB := make([]float32, weights), make([]float32, c.Out.C)
		s.Read(gotW, dw)
		s.Read(gotB, db)
		return [][]float32{s.read(y), s.read(dx), gotW, gotB}
	}
}

// normalise does a channel norm and its gradients.
func normalise(d gpu.Dims) func(s *side, kind gpu.Type) [][]float32 {
	return func(s *side, kind gpu.Type) [][]float32 {
		n := gpu.Norm{Eps: 1e-6}
		x, dy, y, dx := s.tensor(d, 1, kind, noise(d.Len())), s.tensor(d, 1, kind, noise(d.Len())), s.tensor(d, 1, kind, nil), s.tensor(d, 1, kind, nil)
		gamma, beta, stats, work := s.floats(noise(d.C)), s.floats(noise(d.C)), s.alloc(s.NormStats(n, d)), s.alloc(s.NormWork(n, d))
		s.NormAct(n, x, gamma, beta, stats, y)
		dgamma, dbeta := s.floats(make([]float32, d.C)), s.floats(make([]float32, d.C))
		s.NormActGrad(n, x, gamma, beta, stats, dy, nil, dx, dgamma, dbeta, work)
		gotG, gotB := make([]float32, d.C), make([]float32, d.C)
		s.Read(gotG, dgamma)
		s.Read(gotB, dbeta)
		return [][]float32{s.read(y), s.read(dx), gotG, gotB}
	}
}

// filter is a convolution of 1, 3 or, down by two, 4 taps along each axis, from ci channels of d to co.
func filter(k int, d gpu.Dims, ci, co int) gpu.Conv {
	c := gpu.Conv{K: [3]int{k, k, k}, S: [3]int{1, 1, 1}, Lo: [3]int{(k - 1) / 2, (k - 1) / 2, (k - 1) / 2}, In: d, Out: d}
	if k == 4 {
		c.S = [3]int{2, 2, 2}
		c.In.D, c.In.H, c.In.W = 2*d.D, 2*d.H, 2*d.W
	}
	c.In.C, c.Out.C = ci, co
	return c
}

// wide has more channels than enginetest.
func wide(t *testing.T) {
	d := gpu.Dims{N: 1, D: 2, H: 3, W: 37}
	for _, c := range [][3]int{{1, 40, 32}, {1, 40, 136}, {3, 40, 32}, {3, 72, 64}, {3, 40, 136}, {4, 40, 32}, {4, 24, 64}, {4, 24, 72}} {
		t.Run(fmt.Sprintf("k%d from %d to %d", c[0], c[1], c[2]), func(t *testing.T) { both(t, convolve(filter(c[0], d, c[1], c[2]))) })
	}
	t.Run("few channels, and more taps at borders than there is room for", func(t *testing.T) {
		c := gpu.Conv{K: [3]int{1, 4, 4}, S: [3]int{1, 1, 1}, Lo: [3]int{0, 2, 2}, Pad: gpu.Replicate}
		c.In = gpu.Dims{N: 1, D: 1, H: 4, W: 5, C: 1}
		c.Out = c.In
		c.Out.C = 256
		both(t, func(s *side, kind gpu.Type) [][]float32 {
			sizes := s.ConvSizes(c)
			packed, grad := s.alloc(sizes.Packed), s.alloc(sizes.PackedGrad)
			s.PackConv(c, s.floats(noise(c.Taps()*c.Out.C)), packed, grad)
			dy, dx := s.tensor(c.Out, c.Halo(), kind, noise(c.Out.Len())), s.tensor(c.In, 0, gpu.Float32, nil)
			s.ConvGradInput(c, dy, grad, dx)
			return [][]float32{s.read(dx)}
		})
	})
	for name, channels := range map[string]int{"1": 64, "2": 384, "8": 1032} {
		t.Run("channel norm of "+name, func(t *testing.T) {
			both(t, normalise(gpu.Dims{N: 1, D: 1, H: 2, W: 9, C: channels}))
		})
	}
}
