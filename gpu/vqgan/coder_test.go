package vqgan

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu/cpu"
	"github.com/flowrun/flowrun/gpu/nn"
	"pgregory.net/rapid"
)

// drawn are the weights of a model that was never trained: convolutions as they start, norms and codes drawn.
func drawn(t testing.TB, c Config, seed uint64) []Array {
	t.Helper()
	e := cpu.New(1)
	defer func() { _ = e.Close() }()
	s, err := assembleCoder(e, c, CoderOptions{Patch: c.Downsample})
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(seed, 0))
	var out []Array
	for _, p := range s.params.All() {
		a := Array{Name: p.Name, Shape: fileShape(p), Data: make([]float32, p.Len())}
		scale, shift := 1/math.Sqrt(float64(p.Len()/p.Shape[len(p.Shape)-1])), 0.0
		switch p.Role {
		case nn.Gain:
			scale, shift = 0.3, 1
		case nn.Shift, nn.Bias:
			scale = 0.2
		}
		for i := range a.Data {
			a.Data[i] = float32(shift + scale*r.NormFloat64())
		}
		out = append(out, a)
	}
	book := Array{Name: nameVectors, Shape: []int{c.Codes, c.Embedding}, Data: make([]float32, c.Codes*c.Embedding)}
	for i := range book.Data {
		book.Data[i] = float32(r.NormFloat64())
	}
	return append(out, book)
}

func openCoder(t testing.TB, c Config, weights []Array, ema bool, o CoderOptions) *Coder {
	t.Helper()
	e := cpu.New(1)
	t.Cleanup(func() { _ = e.Close() })
	s, err := OpenCoder(e, c, weights, ema, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// encoded is what Encode gives for a size.
func encoded(t testing.TB, s *Coder, src []float32, size [3]int) (idx []int32, latents, quantised []float32) {
	t.Helper()
	n := product(s.c.Latents(size))
	idx, latents, quantised = make([]int32, n*s.c.Depth()), make([]float32, n*s.c.Embedding), make([]float32, n*s.c.Embedding)
	if err := s.Encode(idx, latents, quantised, src, size); err != nil {
		t.Fatal(err)
	}
	return idx, latents, quantised
}

func bitsOf(x []float32) []uint32 {
	out := make([]uint32, len(x))
	for i, v := range x {
		out[i] = math.Float32bits(v)
	}
	return out
}

func TestCoderGivesTheBitsOfTheSession(t *testing.T) {
	for _, norm := range []string{"channel", "group"} {
		c, o := tiny()
		c.Norm = norm
		s := open(t, c, o, 1)
		for i := range 12 {
			step(t, s, uint64(i), 2)
		}
		x := smooth(o.Patch, 3, 99)
		for _, ema := range []bool{false, true} {
			want, wantCodes := make([]float32, len(x)), make([]int32, 3*s.codesLen())
			if err := s.Reconstruct(want, x, 3, ema, wantCodes); err != nil {
				t.Fatal(err)
			}
			coder := openCoder(t, c, state(t, s), ema, CoderOptions{Patch: o.Patch, Batch: 2})
			got, codes := slices.Clone(x), make([]int32, len(wantCodes))
			if err := coder.Reconstruct(got, got, 3, codes); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(bitsOf(got), bitsOf(want)) || !slices.Equal(codes, wantCodes) {
				t.Errorf("%s ema %v: Reconstruct differs from the session's", norm, ema)
			}
			n := s.voxels()
			for k := range 3 {
				idx, _, quantised := encoded(t, coder, x[k*n:(k+1)*n], o.Patch)
				if !slices.Equal(idx, wantCodes[k*len(idx):(k+1)*len(idx)]) {
					t.Fatalf("%s ema %v: Encode gives other codes", norm, ema)
				}
				for _, q := range [][]float32{nil, quantised} {
					y := make([]float32, n)
					if err := coder.Decode(y, idx, q, o.Patch); err != nil {
						t.Fatal(err)
					}
					if !slices.Equal(bitsOf(y), bitsOf(want[k*n:(k+1)*n])) {
						t.Fatalf("%s ema %v: Decode gives other voxels", norm, ema)
					}
				}
			}
		}
	}
}

func TestLatentsGoToTheNearestCode(t *testing.T) {
	c, _ := tiny()
	size := [3]int{12, 8, 6}
	s := openCoder(t, c, drawn(t, c, 1), false, CoderOptions{Patch: size})
	idx, latents, quantised := encoded(t, s, smooth(size, 1, 3), size)
	far := func(z []float32, k int) (sum float64) {
		for i, v := range s.vectors[0][k*c.Embedding:][:c.Embedding] {
			sum += (float64(z[i]) - float64(v)) * (float64(z[i]) - float64(v))
		}
		return sum
	}
	for i, k := range idx {
		z := latents[i*c.Embedding:][:c.Embedding]
		for other := range c.Codes {
			if far(z, other) < far(z, int(k))-1e-5 {
				t.Fatalf("latent %d: code %d at %g, but %d at %g", i, k, far(z, int(k)), other, far(z, other))
			}
		}
		if !slices.Equal(quantised[i*c.Embedding:][:c.Embedding], s.vectors[0][int(k)*c.Embedding:][:c.Embedding]) {
			t.Fatalf("latent %d: quantised isn't the vector of code %d", i, k)
		}
	}
	// Latents that aren't in the codebook decode too, and one moves what is near.
	y, moved := make([]float32, product(size)), make([]float32, product(size))
	quantised[0] += 0.25
	if err := errors.Join(s.Decode(y, idx, nil, size), s.Decode(moved, nil, quantised, size)); err != nil {
		t.Fatal(err)
	}
	if slices.Equal(y, moved) {
		t.Error("an edited latent changes nothing")
	}
}

// part copies a block out of an array [z, y, x] of per floats each.
func part(src []float32, of, from, size [3]int, per int) []float32 {
	var out []float32
	for z := range size[2] {
		for y := range size[1] {
			i := ((from[2]+z)*of[1]+from[1]+y)*of[0] + from[0]
			out = append(out, src[i*per:(i+size[0])*per]...)
		}
	}
	return out
}

// TestPartsSeeWhatTheWholeSees takes parts out of a whole at random: what is at least Fields away from where the part was cut
// is the same to the bit.
func TestPartsSeeWhatTheWholeSees(t *testing.T) {
	variants := []Config{
		{Hidden: 4, Downsample: [3]int{2, 2, 2}, Padding: "replicate", Decoder: "lean"},
		{Hidden: 3, Downsample: [3]int{4, 2, 1}, Padding: "zero", Decoder: "full"},
		{Hidden: 2, Downsample: [3]int{1, 2, 4}, Padding: "replicate", Decoder: "full"},
		{Hidden: 5, Downsample: [3]int{2, 1, 2}, Padding: "zero", Decoder: "lean"},
		{Hidden: 9, Downsample: [3]int{2, 2, 1}, Padding: "replicate", Decoder: "lean"},
	}
	for i, c := range variants {
		c.Embedding, c.Codes, c.Norm = 3, 32, "channel"
		level := []string{"avx512", "avx2", "go"}[i%3]
		t.Run(fmt.Sprint(level, c.Downsample, c.Padding, c.Decoder), func(t *testing.T) {
			e, err := cpu.NewWith(level, 1)
			if err != nil {
				t.Skip(err)
			}
			defer func() { _ = e.Close() }()
			f := c.Downsample
			patch := [3]int{36, 32, 36}
			s, err := OpenCoder(e, c, drawn(t, c, 5), false, CoderOptions{Patch: patch})
			if err != nil {
				t.Fatal(err)
			}
			src := smooth(patch, 1, 2)
			enc, dec := s.Fields()
			cells := c.Latents(patch)
			_, latents, quantised := encoded(t, s, src, patch)
			whole := make([]float32, product(patch))
			if err := s.Decode(whole, nil, quantised, patch); err != nil {
				t.Fatal(err)
			}
			compared := 0
			for seed := range uint64(5) {
				r := rand.New(rand.NewPCG(seed, 7))
				var from, size, fromCell, sizeCell [3]int
				for a := range 3 {
					cut := stretch(r, cells[a])
					fromCell[a], sizeCell[a] = cut[0], cut[1]
					from[a], size[a] = fromCell[a]*f[a], sizeCell[a]*f[a]
				}
				_, got, _ := encoded(t, s, part(src, patch, from, size, 1), size)
				keep := func(margin, unit [3]int) (lo, n [3]int) {
					for a := range 3 {
						end := sizeCell[a]
						if fromCell[a] > 0 {
							lo[a] = margin[a]
						}
						if fromCell[a]+end < cells[a] {
							end -= margin[a]
						}
						lo[a], n[a] = lo[a]*unit[a], max(0, end-lo[a])*unit[a]
					}
					return lo, n
				}
				add := func(a, b [3]int) [3]int { return [3]int{a[0] + b[0], a[1] + b[1], a[2] + b[2]} }
				lo, n := keep([3]int{enc[0] / f[0], enc[1] / f[1], enc[2] / f[2]}, [3]int{1, 1, 1})
				if !slices.Equal(bitsOf(part(got, sizeCell, lo, n, 3)), bitsOf(part(latents, cells, add(fromCell, lo), n, 3))) {
					t.Errorf("latents of %v at %v differ", size, from)
				}
				compared += product(n)
				y := make([]float32, product(size))
				if err := s.Decode(y, nil, part(quantised, cells, fromCell, sizeCell, 3), size); err != nil {
					t.Fatal(err)
				}
				lo, n = keep(dec, f)
				if !slices.Equal(bitsOf(part(y, size, lo, n, 1)), bitsOf(part(whole, patch, add(from, lo), n, 1))) {
					t.Errorf("voxels of %v at %v differ", size, from)
				}
				compared += product(n)
			}
			if compared < 1000 {
				t.Errorf("only %d compared", compared)
			}
		})
	}
}

// stretch is a stretch of n cells that often reaches one end or both.
func stretch(r *rand.Rand, n int) [2]int {
	size := n - r.IntN(n/4+1)
	return [2]int{[]int{0, n - size, r.IntN(n - size + 1)}[r.IntN(3)], size}
}

// TestAnySizeFits asks for many sizes in turn: each fits the arena that was reserved, and comes out as from a coder of its own.
func TestAnySizeFits(t *testing.T) {
	c, _ := tiny()
	weights := drawn(t, c, 2)
	patch := [3]int{16, 16, 8}
	s := openCoder(t, c, weights, false, CoderOptions{Patch: patch, Batch: 2})
	rapid.Check(t, func(rt *rapid.T) {
		var size [3]int
		for a, f := range c.Downsample {
			size[a] = f * rapid.IntRange(1, patch[a]/f).Draw(rt, "cells")
		}
		src := smooth(size, 1, 3)
		_, z, _ := encoded(t, s, src, size)
		own := openCoder(t, c, weights, false, CoderOptions{Patch: size})
		if _, want, _ := encoded(t, own, src, size); !slices.Equal(bitsOf(z), bitsOf(want)) {
			rt.Errorf("latents of %v differ", size)
		}
		y, want := make([]float32, len(src)), make([]float32, len(src))
		if err := errors.Join(s.Decode(y, nil, z, size), own.Decode(want, nil, z, size)); err != nil {
			rt.Fatal(err)
		}
		if !slices.Equal(bitsOf(y), bitsOf(want)) {
			rt.Errorf("voxels of %v differ", size)
		}
		if len(s.recent) > recentHalves {
			rt.Errorf("%d programs are kept", len(s.recent))
		}
	})
}

func TestCoderPlanIsWhatIsReserved(t *testing.T) {
	c, _ := tiny()
	for _, batch := range []int{0, 1, 3} {
		o := CoderOptions{Patch: [3]int{16, 16, 8}, Batch: batch}
		e := &reserved{Engine: cpu.New(1)}
		p, err := PlanCoder(e, c, o)
		if err != nil || len(e.bytes) != 0 {
			t.Fatalf("planning reserves %v, %v", e.bytes, err)
		}
		s, err := OpenCoder(e, c, drawn(t, c, 1), false, o)
		if err != nil {
			t.Fatal(err)
		}
		if len(e.bytes) != 1 || e.bytes[0] != p.Total || p.Of(nn.Moments)+p.Of(nn.Gradients)+p.Of(nn.Deltas) != 0 || p.Parameters != s.params.Count() {
			t.Errorf("batch %d: plan %+v, reserved %v", batch, p, e.bytes)
		}
		_ = e.Close()
		o.MemoryLimit = p.Total - 1
		var tight *MemoryError
		if again, err := PlanCoder(e, c, o); !errors.As(err, &tight) || !reflect.DeepEqual(again, p) || (batch > 1) != strings.Contains(err.Error(), "one patch at a time needs") {
			t.Errorf("batch %d: %v", batch, err)
		}
	}
}

func TestEncodingAloneNeedsLess(t *testing.T) {
	c, _ := tiny()
	size := [3]int{16, 16, 8}
	weights := drawn(t, c, 1)
	both := openCoder(t, c, weights, false, CoderOptions{Patch: size})
	s := openCoder(t, c, weights, false, CoderOptions{Patch: size, EncodeOnly: true})
	src := smooth(size, 1, 1)
	_, want, _ := encoded(t, both, src, size)
	_, got, _ := encoded(t, s, src, size)
	if !slices.Equal(bitsOf(got), bitsOf(want)) || s.Fingerprint() != both.Fingerprint() || s.layout.Bytes() >= both.layout.Bytes() {
		t.Errorf("%d bytes of %d, fingerprints %s and %s", s.layout.Bytes(), both.layout.Bytes(), s.Fingerprint(), both.Fingerprint())
	}
	if err := s.Decode(src, nil, got, size); err == nil || err.Error() != "decode: the coder was opened to encode alone" {
		t.Errorf("error %v", err)
	}
}

func TestFingerprintIsOfWhatIsUsed(t *testing.T) {
	c, _ := tiny()
	weights := drawn(t, c, 1)
	hashed := func(c Config, weights []Array, ema bool, o CoderOptions) string {
		return openCoder(t, c, weights, ema, o).Fingerprint()
	}
	small := CoderOptions{Patch: c.Downsample}
	first := hashed(c, weights, false, small)
	if len(first) != 64 {
		t.Fatalf("fingerprint %q", first)
	}
	// The running means of one checkpoint are the raw weights of another.
	means := slices.Clone(drawn(t, c, 9))
	means = means[:len(means)-1]
	for _, a := range weights {
		if a.Name != nameVectors {
			a.Name = prefixAverage + a.Name
		}
		means = append(means, a)
	}
	named := c
	named.Preset = "demo"
	for what, got := range map[string]string{
		"running means":     hashed(c, means, true, small),
		"larger patches":    hashed(c, weights, false, CoderOptions{Patch: [3]int{16, 8, 8}, Batch: 2}),
		"a preset's name":   hashed(named, weights, false, small),
		"another order":     hashed(c, append(slices.Clone(weights[1:]), weights[0]), false, small),
		"groups not in use": func() string { d := c; d.Groups = 2; return hashed(d, weights, false, small) }(),
	} {
		if got != first {
			t.Errorf("%s: another fingerprint", what)
		}
	}
	seen := map[string]string{first: "itself"}
	note := func(what, got string) {
		if seen[got] != "" {
			t.Errorf("%s has the fingerprint of %s", what, seen[got])
		}
		seen[got] = what
	}
	for i := range weights {
		changed := slices.Clone(weights)
		changed[i].Data = slices.Clone(changed[i].Data)
		last := &changed[i].Data[len(changed[i].Data)-1]
		*last = math.Nextafter32(*last, 9)
		note(changed[i].Name, hashed(c, changed, false, small))
	}
	zero, group := c, c
	zero.Padding, group.Norm = "zero", "group"
	note("zero padding", hashed(zero, weights, false, small))
	note("group norm", hashed(group, weights, false, small))
	group.Groups = 2
	note("two groups", hashed(group, weights, false, small))
}

func TestCoderRefusals(t *testing.T) {
	c, _ := tiny()
	weights := drawn(t, c, 1)
	e := cpu.New(1)
	defer func() { _ = e.Close() }()
	opened := func(weights []Array, ema bool, o CoderOptions) error {
		_, err := OpenCoder(e, c, weights, ema, o)
		return err
	}
	s := openCoder(t, c, weights, false, CoderOptions{Patch: [3]int{8, 8, 4}})
	voxels, cells := make([]float32, 256), make([]int32, 8)
	wrong := slices.Clone(cells)
	wrong[3] = 16
	for _, row := range []struct {
		err  error
		want string
	}{
		{opened(weights, false, CoderOptions{Patch: [3]int{8, 6, 8}}), "patch: 6 along y isn't a multiple of the downsampling 4"},
		{opened(weights, false, CoderOptions{Patch: [3]int{8, 8, 8}, Batch: -1}), "batch: -1"},
		{opened(weights, false, CoderOptions{Patch: [3]int{8, 8, 8}, Batch: 2, EncodeOnly: true}), "batch: 2 (want 0 to encode alone)"},
		{opened(weights, true, CoderOptions{Patch: [3]int{8, 8, 8}}), "weights: there are no running means"},
		{opened(weights[1:], false, CoderOptions{Patch: [3]int{8, 8, 8}}), "weights: another model's: " + weights[0].Name + " is missing"},
		{opened(weights[:len(weights)-1], false, CoderOptions{Patch: [3]int{8, 8, 8}}), "codebook.embeddings is missing"},
		{s.Reconstruct(voxels, voxels, 1, nil), "reconstruct: the coder was opened for codes alone"},
		{s.Encode(cells, nil, nil, voxels, [3]int{8, 8, 3}), "encode: size: 3 along z isn't a multiple of the downsampling 2"},
		{s.Encode(cells, nil, nil, voxels, [3]int{16, 8, 2}), "encode: size: 16 along x is larger than the patch, 8"},
		{s.Encode(cells[1:], nil, nil, voxels, [3]int{8, 8, 4}), "encode: 256 voxels to 7 codes"},
		{s.Encode(cells, voxels, nil, voxels, [3]int{8, 8, 4}), "256 and 0 latents (want 256 to 8, 32)"},
		{s.Decode(voxels, cells, nil, [3]int{0, 8, 4}), "decode: size: 0 along x"},
		{s.Decode(voxels, nil, nil, [3]int{8, 8, 4}), "decode: 0 codes or 0 latents"},
		{s.Decode(voxels, cells, voxels, [3]int{8, 8, 4}), "decode: 8 codes or 256 latents"},
		{s.Decode(voxels, wrong, nil, [3]int{8, 8, 4}), "decode: code 3 is 16 (the codebook has 16)"},
	} {
		if row.err == nil || !strings.Contains(row.err.Error(), row.want) {
			t.Errorf("error %v, want %s", row.err, row.want)
		}
	}
	batch := openCoder(t, c, weights, false, CoderOptions{Patch: [3]int{8, 8, 4}, Batch: 1})
	if err := batch.Reconstruct(voxels, voxels, 2, nil); err == nil || !strings.Contains(err.Error(), "2 patches, 256 voxels") {
		t.Errorf("error %v", err)
	}
}
