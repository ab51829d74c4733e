package infer

import (
	"context"
	"errors"
	"iter"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/merge"
	"github.com/flowrun/flowrun/stages/volume"
	"pgregory.net/rapid"
)

// batches are a volume's tiles as batch makes them.
func batches(v *volume.Volume, g volume.Grid, size int) iter.Seq[*volume.Batch] {
	return func(yield func(*volume.Batch) bool) {
		m := batch.New(batch.Options{Size: size}, g.Patch, 2)
		m.Workers, m.Keep = 1, true
		patches := func(yield func(*volume.Patch) bool) {
			for i := range g.Len() {
				if !yield(&volume.Patch{Tag: tag(&g, v, i), Volume: v.Retain()}) {
					return
				}
			}
		}
		for b, err := range m.Batches(context.Background(), patches) {
			if err != nil {
				panic(err)
			}
			if !yield(b) {
				return
			}
		}
	}
}

// TestIdentityGivesTheInputBack goes both ways, over volumes, patches and strides of any size.
func TestIdentityGivesTheInputBack(t *testing.T) {
	t.Run("by property", rapid.MakeCheck(func(rt *rapid.T) {
		var dims, patch, stride [3]int
		for a := range 3 {
			dims[a] = rapid.IntRange(1, 24).Draw(rt, "dims")
			patch[a] = rapid.IntRange(1, 12).Draw(rt, "patch")
			stride[a] = rapid.IntRange(max(1, patch[a]/2), patch[a]).Draw(rt, "stride")
		}
		v, _ := scan(t, dims, rapid.Uint64().Draw(rt, "seed"))
		var data []int16
		for z := range dims[2] {
			rows, err := v.Rows(z, 0, dims[1], nil)
			if err != nil {
				rt.Fatal(err)
			}
			data = append(data, rows...)
		}
		m := NewIdentity(patch)
		g, err := regular(patch, stride, m.Downsample())(dims)
		if err != nil {
			rt.Fatal(err)
		}
		size := rapid.IntRange(1, 4).Draw(rt, "batch")
		blend := merged(t, v, g, merge.Hann, Blend(context.Background(), batches(v, g, size), m, nil))
		exact := decoded(t, encode(t, v, m, Tiling{}), v, m, Tiling{})
		for i, x := range data {
			want := math.Min(math.Max(float64(x), -1000), 1000)
			if got := math.Round(1000 * float64(blend[i])); got != want {
				rt.Fatalf("voxel %d is %v, blended %v", i, x, got)
			}
			if got := math.Round(1000 * float64(exact[i])); got != want {
				rt.Fatalf("voxel %d is %v, coded %v", i, x, got)
			}
		}
	}))
}

func TestIdentityOfCodes(t *testing.T) {
	m := NewIdentity([3]int{2, 1, 1})
	src := []float32{-1, 0.7}
	idx, latents, quantised := make([]int32, 2), make([]float32, 2), make([]float32, 2)
	if err := m.Encode(idx, latents, quantised, src, m.Patch()); err != nil {
		t.Fatal(err)
	}
	if idx[0] != 0 || idx[1] != 55705 || !slices.Equal(latents, src) || quantised[0] != -1 || math.Abs(float64(quantised[1])-0.7) > 1.0/65535 {
		t.Errorf("codes %v, latents %v, %v", idx, latents, quantised)
	}
	dst := make([]float32, 2)
	if err := m.Decode(dst, idx, nil, m.Patch()); err != nil || !slices.Equal(dst, quantised) {
		t.Errorf("decoded %v: %v", dst, err)
	}
	if err := m.Decode(dst, nil, src, m.Patch()); err != nil || !slices.Equal(dst, src) {
		t.Errorf("decoded %v: %v", dst, err)
	}
	again := make([]int32, 2)
	if err := m.Reconstruct(quantised, src, 1, again); err != nil || !slices.Equal(quantised, src) || !slices.Equal(again, idx) {
		t.Errorf("reconstructed %v, codes %v: %v", quantised, again, err)
	}
	for _, err := range []error{
		m.Decode(dst, []int32{0, 1 << 16}, nil, m.Patch()), m.Decode(dst, []int32{-1, 0}, nil, m.Patch()), m.Decode(dst, idx[1:], nil, m.Patch()),
		m.Encode(idx, nil, nil, src, [3]int{3, 1, 1}), m.Reconstruct(dst, src, 2, nil), m.Reconstruct(dst, src, 1, idx[1:]),
	} {
		if err == nil {
			t.Error("what doesn't fit is accepted")
		}
	}
}

// TestBlendIsTheModelOfEachPatch compares outputs with patches run one by one.
func TestBlendIsTheModelOfEachPatch(t *testing.T) {
	config := tiny("channel")
	patch := [3]int{8, 12, 8}
	m := coder(t, config, weights(t, config, 3), patch, 2)
	v, freed := scan(t, [3]int{19, 13, 9}, 6)
	g, err := regular(patch, [3]int{6, 8, 8}, config.Downsample)(v.Dims)
	if err != nil {
		t.Fatal(err)
	}
	var usage []int32
	var tags []volume.Tag
	note := func(t volume.Tag, codes []int32) error {
		usage, tags = append(usage, codes...), append(tags, t)
		return nil
	}
	cut := cutter()
	i := 0
	for out, err := range Blend(context.Background(), batches(v, g, 3), m, note) {
		if err != nil {
			t.Fatal(err)
		}
		if out.Tag != tag(&g, v, i) || out.Volume != v {
			t.Errorf("output %d is %s", i, out.Tag)
		}
		src, idx := make([]float32, product(patch)), make([]int32, product(patch)/8)
		if err := cut(src, &volume.Patch{Tag: out.Tag, Volume: v}); err != nil {
			t.Fatal(err)
		}
		if err := m.Reconstruct(src, src, 1, idx); err != nil {
			t.Fatal(err)
		}
		if !same(out.Voxels, src) || tags[i] != out.Tag || !slices.Equal(usage[i*len(idx):(i+1)*len(idx)], idx) {
			t.Errorf("%s: other voxels or codes", out.Tag)
		}
		out.Release()
		i++
	}
	if i != g.Len() || len(usage) != i*product(patch)/8 || *freed {
		t.Errorf("%d outputs of %d, %d codes, freed %v", i, g.Len(), len(usage), *freed)
	}
}

// failing is an identity that fails at its n-th call.
type failing struct {
	*Identity
	n int
}

func (f *failing) Reconstruct(dst, src []float32, n int, codes []int32) error {
	if f.n--; f.n < 0 {
		return errors.New("the device is gone")
	}
	return f.Identity.Reconstruct(dst, src, n, codes)
}

// TestBlendReleasesInEveryEnding breaks off at every place.
func TestBlendReleasesInEveryEnding(t *testing.T) {
	patch := [3]int{4, 4, 4}
	for stop := range 9 {
		for _, how := range []string{"break", "cancel", "fail", "use"} {
			v, freed := scan(t, [3]int{8, 8, 8}, 1)
			g, _ := regular(patch, patch, [3]int{1, 1, 1})(v.Dims)
			ctx, cancel := context.WithCancelCause(context.Background())
			m := &failing{NewIdentity(patch), 99}
			if how == "fail" {
				m.n = stop / 3
			}
			left := 0 // batches in flight
			counted := func(yield func(*volume.Batch) bool) {
				for b := range batches(v, g, 3) {
					free := b.Free
					left++
					b.Free = func() { left--; free() }
					if !yield(b) {
						return
					}
				}
			}
			var held []*volume.Output
			var last error
			use := func(t volume.Tag, _ []int32) error {
				if how == "use" && t.Tile == stop {
					return errors.New("nobody counts")
				}
				return nil
			}
			for out, err := range Blend(ctx, counted, m, use) {
				if last = err; err != nil {
					break
				}
				held = append(held, out)
				if len(held) > 3 { // later than the batch that it is of
					held[0].Release()
					held = held[1:]
				}
				if i := out.Tile; how == "break" && i == stop {
					break
				} else if how == "cancel" && i == stop {
					cancel(errors.New("enough"))
				}
			}
			for _, out := range held {
				out.Release()
			}
			if left != 0 || *freed {
				t.Errorf("%s at %d: %d batches left, freed %v", how, stop, left, *freed)
			}
			if want := map[string]string{"cancel": "enough", "fail": "and 2 more: the device is gone", "use": "nobody counts"}[how]; want != "" && stop < 6 && (last == nil || !strings.Contains(last.Error(), want)) {
				t.Errorf("%s at %d: error %v", how, stop, last)
			}
			cancel(nil)
		}
	}
}

// TestBlendThatWasCutShort ends with the reason, though all that it was given is done.
func TestBlendThatWasCutShort(t *testing.T) {
	v, _ := scan(t, [3]int{4, 4, 4}, 1)
	m := NewIdentity([3]int{4, 4, 4})
	g, err := regular(m.Patch(), m.Patch(), m.Downsample())(v.Dims)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	n := 0
	for out, e := range Blend(ctx, batches(v, g, 1), m, nil) {
		if err = e; e == nil {
			n++
			out.Release()
			cancel(errors.New("enough"))
		}
	}
	if n != 1 || err == nil || err.Error() != "enough" {
		t.Errorf("%d outputs, error %v", n, err)
	}
}

func TestBlendRefusals(t *testing.T) {
	v, _ := scan(t, [3]int{4, 4, 4}, 1)
	m := NewIdentity([3]int{4, 4, 4})
	tags := []volume.Tag{{Scan: "a/b.nii"}}
	for want, b := range map[string]*volume.Batch{
		"batch of 1 patches with 0 volumes": {Tags: tags, Size: m.Patch(), Input: make([]float32, 64)},
		"opened for patches of [4 4 4]":     {Tags: tags, Volumes: []*volume.Volume{v.Retain()}, Size: [3]int{4, 4, 2}, Input: make([]float32, 32)},
		"0 more: reconstruct: 1 patches":    {Tags: tags, Volumes: []*volume.Volume{v.Retain()}, Size: m.Patch(), Input: make([]float32, 63)},
	} {
		freed := false
		b.Free = func() { freed = true }
		for _, err := range Blend(context.Background(), slices.Values([]*volume.Batch{b}), m, nil) {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want %s", err, want)
			}
		}
		if !freed {
			t.Errorf("%s: the batch is kept", want)
		}
	}
}

// TestDecodeWaitsForOutputs holds outputs back: no third one comes, until one is released or the run ends.
func TestDecodeWaitsForOutputs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, _ := scan(t, [3]int{12, 4, 4}, 1)
		m := NewIdentity([3]int{4, 4, 4})
		c := encode(t, v, m, Tiling{})
		ctx, cancel := context.WithCancelCause(context.Background())
		var last error
		decode := func() <-chan *volume.Output {
			got := make(chan *volume.Output, 9)
			go func() {
				for out, err := range Decode(ctx, c, v, m, Tiling{}) {
					if last = err; err == nil {
						got <- out
					}
				}
				close(got)
			}()
			synctest.Wait()
			return got
		}
		got := decode()
		if len(got) != 2 {
			t.Errorf("%d outputs at a time", len(got))
		}
		first := <-got
		buffer := &first.Voxels[0]
		first.Release()
		synctest.Wait()
		if len(got) != 2 {
			t.Errorf("%d outputs after one was released", len(got))
		}
		(<-got).Release()
		third := <-got
		if &third.Voxels[0] != buffer {
			t.Error("a buffer of its own for each output")
		}
		third.Release()
		synctest.Wait()
		if _, more := <-got; more || last != nil {
			t.Errorf("more %v, error %v", more, last)
		}

		got = decode()
		cancel(errors.New("enough"))
		synctest.Wait()
		for out := range got {
			out.Release()
		}
		if last == nil || last.Error() != "enough" {
			t.Errorf("error %v", last)
		}
		if _, err := Encode(ctx, v, m, Tiling{}, cutter()); err == nil || err.Error() != "enough" {
			t.Errorf("error %v", err)
		}
	})
}

func TestCodesThatDoNotFit(t *testing.T) {
	config := tiny("channel")
	m := coder(t, config, weights(t, config, 3), [3]int{16, 16, 16}, 0)
	v, _ := scan(t, [3]int{9, 8, 7}, 1)
	other, _ := scan(t, [3]int{9, 8, 8}, 1)
	good := encode(t, v, m, Tiling{Latents: true})
	first := func(c *volume.Codes, v *volume.Volume, o Tiling) (err error) {
		for out, e := range Decode(context.Background(), c, v, m, o) {
			if err = e; e == nil {
				out.Release()
			}
		}
		return err
	}
	dry := (&volume.Volume{Scan: v.Scan, Epoch: v.Epoch, Dims: v.Dims, Window: v.Window}).Own(nil, nil)
	if err := first(good, dry, Tiling{}); err != nil {
		t.Errorf("a dry volume: %v", err)
	}
	dry.Release()
	unsigned := *good
	unsigned.Model = ""
	if err := first(&unsigned, v, Tiling{}); err != nil {
		t.Errorf("codes without a model: %v", err)
	}
	for _, row := range []struct {
		edit func(c *volume.Codes)
		v    *volume.Volume
		o    Tiling
		want string
	}{
		{func(*volume.Codes) {}, other, Tiling{}, "codes: of [9 8 7] voxels, the volume has [9 8 8]"},
		{func(c *volume.Codes) { c.Model = "00112233445566" }, v, Tiling{}, "codes: they are of model 001122334455, not "},
		{func(c *volume.Codes) { c.Factor[1] = 4 }, v, Tiling{}, "codes: [2 4 2] voxels a code"},
		{func(c *volume.Codes) { c.Count = 25 }, v, Tiling{}, "codes: of a codebook of 25 (the model's has 24)"},
		{func(c *volume.Codes) { c.Tiles = nil }, v, Tiling{}, "codes: there are no tiles"},
		{func(c *volume.Codes) { c.Tile[2] = 7 }, v, Tiling{}, "codes: a tile of 7 voxels along z"},
		{func(c *volume.Codes) { c.Tile[2] = 0 }, v, Tiling{}, "codes: a tile of 0 voxels along z"},
		{func(c *volume.Codes) { c.Index = c.Index[1:] }, v, Tiling{}, "codes: there are 79 (want 80"},
		{func(c *volume.Codes) { c.Index[7] = -1 }, v, Tiling{}, "code 7 is -1"},
		{func(c *volume.Codes) { c.Quantised = nil }, v, Tiling{Quantised: true}, "codes: 0 floats of quantised latents (want 240)"},
		{func(c *volume.Codes) { c.Channels = 4 }, v, Tiling{Quantised: true}, "codes: latents of 4 channels (the model has 3)"},
		{func(c *volume.Codes) { c.Padded[0] = 12 }, v, Tiling{}, "codes: one tile of [10 8 8] at [0 0 0] for [9 8 7] voxels padded to [12 8 8] (want all of [10 8 8])"},
		{func(c *volume.Codes) { c.Tiles = [][3]int{{2, 0, 0}} }, v, Tiling{}, "codes: one tile of [10 8 8] at [2 0 0]"},
		{func(c *volume.Codes) {
			c.Tile, c.Tiles = [3]int{10, 8, 4}, [][3]int{{}, {0, 2, 4}}
		}, v, Tiling{}, "codes: 2 tiles of [10 8 4] don't make a grid"},
		{func(c *volume.Codes) {
			c.Tile, c.Tiles = [3]int{10, 4, 4}, [][3]int{{}, {0, 4, 0}, {0, 0, 4}, {0, 2, 4}}
		}, v, Tiling{}, "codes: 4 tiles of [10 4 4] don't make a grid"},
	} {
		c := *good
		c.Index, c.Tiles = slices.Clone(c.Index), slices.Clone(c.Tiles)
		row.edit(&c)
		if err := first(&c, row.v, row.o); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("error %v, want %s", err, row.want)
		}
	}
}

func TestOptions(t *testing.T) {
	for device, good := range map[string]bool{"auto": true, "cpu": true, "cuda:0": true, "cuda:": false, "gpu": false, "": false} {
		if err := (&Options{Device: device}).Check(); (err == nil) != good {
			t.Errorf("device %q: %v", device, err)
		}
	}
}
