//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/cpu"
	"github.com/flowrun/flowrun/gpu/vqgan"
)

// Each quantiser trains as on the CPU, one for so long that codes move to latents of recent batches, and what was trained encodes, decodes and reconstructs: the two halves give the bits of the whole, at a patch's size and, what lies inside, at others.
func TestQuantisers(t *testing.T) {
	for _, q := range []string{vqgan.EMA, vqgan.Cosine, vqgan.FSQ, vqgan.Residual} {
		t.Run(q, func(t *testing.T) {
			c, o := tiny("channel", false)
			if c.Quantizer = q; q == vqgan.FSQ {
				c.Levels, c.Embedding, c.Codes = []int{5, 4, 3}, 3, 60
			}
			if o.Codebook.Decay = 0.5; q != vqgan.FSQ {
				c.Codes = 64 // more than such patches use
			}
			steps := 2
			switch q {
			case vqgan.EMA:
				o.Batch = 2 // of micro-batches of one
			case vqgan.Residual:
				steps = 13 // codes move from the eleventh on
			}
			host, card := cpu.New(1), open(t)
			want, _ := train(t, host, c, o, steps)
			got, state := train(t, card, c, o, steps)
			agree(t, got[:1], want[:1]) // from then on a latent between two codes may go either way
			if steps > 10 && !slices.ContainsFunc(got, func(s vqgan.Stats) bool { return s.Restarted > 0 }) {
				t.Error("no code moved")
			}
			whole, off := coded(t, card, c, o, state), 0.0
			for i, v := range coded(t, host, c, o, state) {
				off += math.Abs(float64(v - whole[i]))
			}
			if off /= float64(len(whole)); off > 0.01 {
				t.Errorf("the reconstruction is %v off that of the CPU", off)
			}
			for _, e := range []gpu.Engine{host, card} {
				if err := e.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// coded takes a patch through the whole model and through its halves.
func coded(t *testing.T, e gpu.Engine, c vqgan.Config, o vqgan.Options, state []vqgan.Array) []float32 {
	t.Helper()
	coder, err := vqgan.OpenCoder(e, c, state, false, vqgan.CoderOptions{Patch: o.Patch, Batch: 2})
	if err != nil {
		t.Fatal(err)
	}
	x := waves(o.Patch, 2)
	whole, codes := make([]float32, len(x)), make([]int32, 2*coder.Depth()*volume(c.Latents(o.Patch)))
	if err := coder.Reconstruct(whole, x, 2, codes); err != nil {
		t.Fatal(err)
	}
	n, cells := len(x)/2, len(codes)/2
	for i := range 2 {
		idx, half := make([]int32, cells), make([]float32, n)
		if err := coder.Encode(idx, nil, nil, x[i*n:(i+1)*n], o.Patch); err != nil {
			t.Fatal(err)
		}
		if err := coder.Decode(half, idx, nil, o.Patch); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(idx, codes[i*cells:(i+1)*cells]) || !slices.Equal(half, whole[i*n:(i+1)*n]) {
			t.Errorf("patch %d: the halves give other codes or voxels than the whole", i)
		}
	}
	low := [3]int{o.Patch[0], o.Patch[1], o.Patch[2] / 2} // its first slices see nothing of those that are missing
	idx := make([]int32, cells/2)
	if err := coder.Encode(idx, nil, nil, x[:n/2], low); err != nil {
		t.Fatal(err)
	}
	if err := coder.Decode(make([]float32, n/2), idx, nil, low); err != nil {
		t.Fatal(err)
	}
	return whole
}

// LPIPS is a loss as on the CPU, with VGG16 whole, beside discriminators.
func TestPerceptualStep(t *testing.T) {
	c, o := tiny("group", true)
	o.Patch, o.GAN.R1 = [3]int{16, 16, 4}, 0
	o.Perceptual, o.LPIPS = vqgan.Perceptual{Weight: 1, Share: 0.25, Planes: []string{"z"}, Chunk: 1}, made(t)
	host, card := cpu.New(1), open(t)
	want, _ := train(t, host, c, o, 1)
	got, _ := train(t, card, c, o, 1)
	agree(t, got, want)
	if g, w := got[0].Perceptual, want[0].Perceptual; w <= 0 || math.Abs(g-w) > 0.05*w {
		t.Errorf("LPIPS is %v, on the CPU %v", g, w)
	}
	for _, e := range []gpu.Engine{host, card} {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

// made is VGG16 and LPIPS' heads with weights by chance.
func made(t *testing.T) *vqgan.LPIPS {
	t.Helper()
	shapes, from, place := map[string][]int{}, 3, 0
	for i, widths := range [][]int{{64, 64}, {128, 128}, {256, 256, 256}, {512, 512, 512}, {512, 512, 512}} {
		for _, to := range widths {
			name := fmt.Sprintf("features.%d.", place)
			shapes[name+"weight"], shapes[name+"bias"] = []int{to, from, 3, 3}, []int{to}
			from, place = to, place+2
		}
		shapes[fmt.Sprintf("lin%d.model.1.weight", i)] = []int{1, from, 1, 1}
		place++ // a pool
	}
	names, err := vqgan.FindLPIPS(shapes)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(5, 0))
	var all []vqgan.Array
	for _, name := range names {
		a := vqgan.Array{Name: name, Shape: shapes[name]}
		n, spread := 1, 0.1 // of biases
		for _, d := range a.Shape {
			n *= d
		}
		if len(a.Shape) == 4 {
			spread = math.Sqrt(2 / float64(n/a.Shape[0])) // He et al., 2015
		}
		for range n {
			v := spread * r.NormFloat64()
			if a.Shape[0] == 1 { // heads
				v = math.Abs(v)
			}
			a.Data = append(a.Data, float32(v))
		}
		all = append(all, a)
	}
	l, err := vqgan.NewLPIPS(all)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
