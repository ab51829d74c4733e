package infer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/merge"
	"github.com/flowrun/flowrun/stages/volume"
	"pgregory.net/rapid"
)

// grids are those of the tiles that are encoded and that are decoded.
func grids(m Model, dims [3]int, o Tiling) (encode, decode volume.Grid, err error) {
	if encode, err = exactEncode(m, dims, o); err == nil {
		decode, err = exactDecode(m, dims, o)
	}
	return encode, decode, err
}

// TestExactTilingIsTheWhole codes and decodes odd volumes in tiles of several sizes, some larger than the volume: the codes, the latents
// and the voxels are those of the whole volume in one go, bit for bit.
func TestExactTilingIsTheWhole(t *testing.T) {
	for _, row := range []struct {
		config  vqgan.Config
		dims    [3]int
		patches [][3]int
	}{
		{vqgan.Config{Hidden: 4, Downsample: [3]int{2, 2, 2}, Padding: "replicate", Decoder: "lean"},
			[3]int{33, 22, 29}, [][3]int{{16, 16, 18}, {14, 22, 24}, {34, 40, 14}}},
		{vqgan.Config{Hidden: 3, Downsample: [3]int{2, 1, 2}, Padding: "zero", Decoder: "full", Quantizer: vqgan.Residual},
			[3]int{21, 19, 5}, [][3]int{{16, 15, 16}, {20, 17, 14}}},
		{vqgan.Config{Hidden: 2, Downsample: [3]int{4, 2, 1}, Padding: "replicate", Decoder: "full", Quantizer: vqgan.FSQ, Levels: []int{4, 4, 3}},
			[3]int{51, 23, 6}, [][3]int{{40, 32, 32}, {36, 64, 32}}},
		{vqgan.Config{Hidden: 2, Downsample: [3]int{1, 1, 4}, Padding: "zero", Decoder: "lean", Quantizer: vqgan.Cosine},
			[3]int{3, 31, 45}, [][3]int{{28, 28, 40}, {4, 30, 36}}},
	} {
		c := row.config
		c.Norm, c.Embedding, c.Codes = "channel", 3, 48
		t.Run(fmt.Sprint(c.Downsample, c.Padding, c.Decoder, c.Quantizer), func(t *testing.T) {
			v, _ := scan(t, row.dims, 4)
			w := weights(t, c, 11)
			src, size := padded(t, v, c.Downsample)
			whole := coder(t, c, w, size, 0)
			n := product(cells(size, c.Downsample))
			idx, latents, voxels := make([]int32, n*c.Depth()), make([]float32, 3*n), make([]float32, len(src))
			if err := whole.Encode(idx, latents, nil, src, size); err != nil {
				t.Fatal(err)
			}
			if err := whole.Decode(voxels, idx, nil, size); err != nil {
				t.Fatal(err)
			}
			if len(slices.Compact(slices.Sorted(slices.Values(idx)))) < 8 {
				t.Error("the model uses next to no codes: equal ones prove little")
			}
			want := decoded(t, encode(t, v, whole, Tiling{}), v, whole, Tiling{})
			for _, patch := range row.patches {
				m := coder(t, c, w, patch, 0)
				o := Tiling{Latents: true}
				e, d, err := grids(m, v.Dims, o)
				if err != nil {
					t.Fatal(err)
				}
				if e.Len()*d.Len() == 1 {
					t.Errorf("%v: one tile", patch)
				}
				got := encode(t, v, m, o)
				if got.Padded != size || len(got.Tiles) != 1 || got.Model != whole.Fingerprint() || got.Factor != c.Downsample || got.Count != 48 {
					t.Errorf("%v: codes %+v", patch, got)
				}
				if !slices.Equal(got.Index, idx) || !same(got.Latents, latents) {
					t.Fatalf("%v: other codes than of the whole", patch)
				}
				halo := seen(m)
				for out, err := range Decode(context.Background(), got, v, m, o) {
					if err != nil {
						t.Fatal(err)
					}
					// Not only in the middle: wherever nothing of a tile's inner border is seen.
					from, n := inside(&d, out.Tile, halo)
					at := out.Origin
					for a := range at {
						at[a] += from[a]
					}
					if !same(block(out.Voxels, out.Size, from, n), block(voxels, size, at, n)) {
						t.Fatalf("%v: %s: other voxels than of the whole", patch, out.Tag)
					}
					out.Release()
				}
				for _, o := range []Tiling{{}, {Quantised: true}} {
					if !same(decoded(t, got, v, m, o), want) {
						t.Errorf("%v: the merged volume differs", patch)
					}
				}
			}
		})
	}
}

// seen is what a voxel sees, in voxels.
func seen(m Model) [3]int {
	_, d := m.Fields()
	for a, f := range m.Downsample() {
		d[a] *= f
	}
	return d
}

// inside is the part of tile i that is a halo away from borders which aren't faces of the volume.
func inside(g *volume.Grid, i int, halo [3]int) (from, n [3]int) {
	for a, k := range g.Place(i) {
		to := g.Patch[a]
		if k > 0 {
			from[a] = halo[a]
		}
		if k < g.N[a]-1 {
			to -= halo[a]
		}
		n[a] = to - from[a]
	}
	return from, n
}

// TestNothingKeptHasSeenABorder lays exact grids over volumes of any size: they cover, nothing is taken twice, and what is taken, by
// Encode or by merge's window crop, is a halo away from every border inside the volume.
func TestNothingKeptHasSeenABorder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var dims, patch, unit, halo [3]int
		for a := range 3 {
			unit[a] = 1 << rapid.IntRange(0, 3).Draw(t, "unit")
			halo[a] = unit[a] * rapid.IntRange(0, 4).Draw(t, "halo")
			patch[a] = 2*halo[a] + unit[a]*rapid.IntRange(1, 9).Draw(t, "patch")
			dims[a] = rapid.IntRange(1, 150).Draw(t, "dims")
		}
		g, err := overlapping(dims, patch, unit, halo, "encoder")
		if err != nil {
			t.Fatal(err)
		}
		for a := range 3 {
			at, p, u := g.Origins[a], g.Patch[a], unit[a]
			if g.Padded[a]%u != 0 || g.Padded[a] < dims[a] || g.Padded[a] >= dims[a]+u || p != min(patch[a], g.Padded[a]) {
				t.Fatalf("tiles of %d over %d voxels padded to %d", p, dims[a], g.Padded[a])
			}
			if at[0] != 0 || at[len(at)-1]+p != g.Padded[a] || len(at) != g.N[a] {
				t.Fatalf("tiles of %d at %v over %d", p, at, g.Padded[a])
			}
			next := 0
			for i, o := range at {
				from, to := kept(&g, a, i, u)
				if o%u != 0 || o/u+from != next || to <= from {
					t.Fatalf("tile %d at %d keeps cells %d to %d, those before end at %d", i, o, from, to, next)
				}
				if next = o/u + to; i > 0 && from*u < halo[a] || i < len(at)-1 && p-to*u < halo[a] {
					t.Fatalf("tile %d of %d keeps cells %d to %d: nearer than %d to its border", i, p, from, to, halo[a])
				}
				if i == 0 {
					continue
				}
				if overlap := at[i-1] + p - o; overlap/2 < halo[a] || o <= at[i-1] { // crop cuts in the middle
					t.Fatalf("tiles of %d at %d and %d overlap by %d, the halo is %d", p, at[i-1], o, overlap, halo[a])
				}
			}
			if next*u != g.Padded[a] {
				t.Fatalf("cells to %d are kept of %d", next, g.Padded[a]/u)
			}
			// No grid of fewer tiles could.
			if n := len(at); n > 1 && p+(n-2)*(p-2*halo[a]) >= g.Padded[a] {
				t.Fatalf("%d tiles of %d with a halo of %d over %d voxels", n, p, halo[a], g.Padded[a])
			}
		}
	})
}

func TestExactRefusals(t *testing.T) {
	m := coder(t, tiny("channel"), weights(t, tiny("channel"), 1), [3]int{16, 16, 16}, 0)
	group := coder(t, tiny("group"), weights(t, tiny("group"), 1), [3]int{16, 16, 16}, 0)
	for _, row := range []struct {
		m     Model
		dims  [3]int
		patch [3]int
		want  string
	}{
		{group, [3]int{8, 8, 8}, [3]int{}, "with norm: group each voxel depends on its whole tile"},
		{m, [3]int{20, 20, 13}, [3]int{16, 12, 16}, "patch: 12 along y is too small to tile 20 voxels exactly: the encoder sees a halo of 6 to either side (want a patch of at least 14)"},
		{m, [3]int{20, 20, 20}, [3]int{16, 16, 15}, "patch: 15 along z isn't a multiple of the downsampling 2"},
		{m, [3]int{20, 0, 20}, [3]int{}, "volume has 0 voxels along y"},
	} {
		if _, _, err := grids(row.m, row.dims, Tiling{Patch: row.patch}); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("error %v, want %s", err, row.want)
		}
	}
	// A tile as large as the volume needs no halo.
	if _, _, err := grids(m, [3]int{11, 12, 1}, Tiling{Patch: [3]int{12, 12, 2}}); err != nil {
		t.Error(err)
	}
	v, _ := scan(t, [3]int{20, 20, 20}, 1)
	if _, err := Encode(context.Background(), v, m, Tiling{Patch: [3]int{12, 12, 12}}, cutter()); err == nil || !strings.HasPrefix(err.Error(), "scan a/b.nii: patch: 12") {
		t.Errorf("error %v", err)
	}
	if _, err := Encode(context.Background(), v, group, Tiling{}, cutter()); err == nil || !strings.Contains(err.Error(), "there is no grid of tiles") {
		t.Errorf("error %v", err)
	}
}

// TestEditedCodesDecode changes one code, or one latent: what lies within its field changes, and nothing else.
func TestEditedCodesDecode(t *testing.T) {
	config := tiny("channel")
	m := coder(t, config, weights(t, config, 3), [3]int{16, 16, 16}, 0)
	v, _ := scan(t, [3]int{25, 18, 16}, 5)
	o := Tiling{Latents: true}
	c := encode(t, v, m, o)
	before := decoded(t, c, v, m, o)
	at := [3]int{7, 4, 3}
	_, field := m.Fields()
	i := (at[2]*c.Cells()[1]+at[1])*c.Cells()[0] + at[0]
	c.Index[i] = (c.Index[i] + 1) % int32(c.Count)
	c.Quantised[i*c.Channels] += 0.5
	for _, o := range []Tiling{{}, {Quantised: true}} {
		changed := 0
		for j, x := range decoded(t, c, v, m, o) {
			if x == before[j] {
				continue
			}
			changed++
			for a, p := range [3]int{j % v.Dims[0], j / v.Dims[0] % v.Dims[1], j / v.Dims[0] / v.Dims[1]} {
				if d := p/c.Factor[a] - at[a]; max(d, -d) > field[a] {
					t.Fatalf("voxel %d along %c changes with code %v", p, "xyz"[a], at)
				}
			}
		}
		if changed < 8 {
			t.Errorf("%+v: only %d voxels change", o, changed)
		}
	}
}

// TestTiledCodesGiveTheBlend is for models that aren't tileable: their codes, tile by tile, decode to what reconstruct blends.
func TestTiledCodesGiveTheBlend(t *testing.T) {
	config := tiny("group")
	patch := [3]int{12, 8, 8}
	m := coder(t, config, weights(t, config, 3), patch, 2)
	v, _ := scan(t, [3]int{31, 7, 18}, 6)
	o := Tiling{Grid: regular(patch, [3]int{8, 6, 6}, config.Downsample), Latents: true}
	want, _ := o.Grid(v.Dims)
	c := encode(t, v, m, o)
	if len(c.Tiles) != want.Len() || c.Tile != patch || c.Padded != want.Padded || len(c.Index) != want.Len()*6*4*4 {
		t.Fatalf("%d tiles of %v, %d codes, want %+v", len(c.Tiles), c.Tile, len(c.Index), want)
	}
	g, err := DecodeGrid(c, m, o)
	if err != nil || fmt.Sprint(g) != fmt.Sprint(want) {
		t.Fatalf("grid %+v, want %+v: %v", g, want, err)
	}
	if c.Scan != v.Scan || c.Window != v.Window || c.Dims != v.Dims || c.Geometry.Spacing != v.Geometry.Spacing || c.Channels != 3 {
		t.Errorf("codes %+v of %+v", c, v)
	}
	blend := merged(t, v, g, merge.Hann, Blend(context.Background(), batches(v, g, 2), m, nil))
	for _, o := range []Tiling{{}, {Quantised: true}} {
		if !same(blend, merged(t, v, g, merge.Hann, Decode(context.Background(), c, v, m, o))) {
			t.Errorf("%+v: decode isn't reconstruct", o)
		}
	}
	c.Quantised[len(c.Quantised)-1] += 0.5 // of the last tile
	if same(blend, merged(t, v, g, merge.Hann, Decode(context.Background(), c, v, m, Tiling{Quantised: true}))) {
		t.Error("an edited latent changes nothing")
	}

	// One tile for all of a volume is no code grid that could be cut elsewhere.
	small, _ := scan(t, [3]int{5, 8, 3}, 6)
	c = encode(t, small, m, o)
	if g, err = DecodeGrid(c, m, o); err != nil || g.Len() != 1 || g.Patch != patch {
		t.Errorf("grid %+v: %v", g, err)
	}
}
