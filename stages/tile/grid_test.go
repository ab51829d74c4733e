package tile_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/stages/tile"
)

func cube(n int) [3]int { return [3]int{n, n, n} }

func TestGridByHand(t *testing.T) {
	for _, c := range []struct {
		name                                  string
		size, patch, stride, multiple, padded int
		origins                               []int
	}{
		{"one tile", 8, 8, 8, 4, 8, []int{0}},
		{"smaller than a patch", 3, 8, 6, 4, 8, []int{0}},
		{"side by side", 16, 8, 8, 4, 16, []int{0, 8}},
		{"evenly, not by stride", 10, 4, 4, 1, 10, []int{0, 3, 6}},
		{"rounded down to the downsampling", 10, 4, 3, 2, 10, []int{0, 2, 6}},
		{"padded to the downsampling", 9, 8, 4, 4, 12, []int{0, 4}},
		{"long axis of a CT", 604, 128, 96, 4, 604, []int{0, 92, 188, 284, 380, 476}},
	} {
		g, err := tile.NewGrid(cube(c.size), cube(c.patch), cube(c.stride), cube(c.multiple))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for a := range 3 {
			if g.Padded[a] != c.padded || !slices.Equal(g.Origins[a], c.origins) {
				t.Errorf("%s: padded to %d with tiles at %v (want %d, %v)", c.name, g.Padded[a], g.Origins[a], c.padded, c.origins)
			}
		}
	}
}

func TestGridOfACT(t *testing.T) {
	for _, multiple := range []int{4, 8} {
		g, err := tile.NewGrid([3]int{512, 512, 604}, [3]int{256, 256, 128}, [3]int{192, 192, 96}, cube(multiple))
		if err != nil {
			t.Fatal(err)
		}
		if g.N != [3]int{3, 3, 6} || g.Len() != 54 {
			t.Errorf("%v = %d tiles (want 3 × 3 × 6 = 54)", g.N, g.Len())
		}
		if want := (604 + multiple - 1) / multiple * multiple; g.Padded != [3]int{512, 512, want} {
			t.Errorf("downsampling %d: padded to %v (want 512 × 512 × %d)", multiple, g.Padded, want)
		}
	}
}

func TestGridCoversEveryVoxel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var dims, patch, stride, multiple [3]int
		for a := range 3 {
			multiple[a] = rapid.IntRange(1, 8).Draw(t, "multiple")
			patch[a] = multiple[a] * rapid.IntRange(1, 8).Draw(t, "patch")
			stride[a] = rapid.IntRange(multiple[a], patch[a]).Draw(t, "stride")
			dims[a] = rapid.IntRange(1, 200).Draw(t, "dims")
		}
		g, err := tile.NewGrid(dims, patch, stride, multiple)
		if err != nil {
			t.Fatal(err)
		}
		for a := range 3 {
			p, at := g.Padded[a], g.Origins[a]
			if p < dims[a] || p < patch[a] || p%multiple[a] != 0 || p >= max(dims[a]+multiple[a], patch[a]+1) {
				t.Fatalf("%d padded to %d", dims[a], p)
			}
			if n := 1 + (p-patch[a]+stride[a]-1)/stride[a]; len(at) != n || g.N[a] != n {
				t.Fatalf("%d tiles, want %d", len(at), n)
			}
			if at[0] != 0 || at[len(at)-1] != p-patch[a] {
				t.Fatalf("tiles at %v aren't flush with 0 and %d", at, p)
			}
			for i, o := range at {
				if o%multiple[a] != 0 || o >= dims[a] {
					t.Fatalf("tile at %d of %d", o, dims[a])
				}
				if i > 0 && (o <= at[i-1] || o > at[i-1]+patch[a]) {
					t.Fatalf("tiles of %d at %v overlap wholly or leave a gap", patch[a], at)
				}
			}
		}
		i := 0
		for _, z := range g.Origins[2] {
			for _, y := range g.Origins[1] {
				for _, x := range g.Origins[0] {
					if g.Tile(i) != [3]int{x, y, z} {
						t.Fatalf("tile %d is at %v, want %v", i, g.Tile(i), [3]int{x, y, z})
					}
					i++
				}
			}
		}
		if i != g.Len() {
			t.Fatalf("%d tiles, Len is %d", i, g.Len())
		}
	})
}

func TestGridRefuses(t *testing.T) {
	for _, c := range []struct {
		dims, patch, stride, multiple [3]int
		want                          string
	}{
		{cube(64), [3]int{16, 16, 8}, [3]int{16, 17, 8}, cube(4), "stride: 17 is larger than patch 16 along y"},
		{cube(64), [3]int{16, 16, 10}, cube(8), cube(4), "patch: 10 along z is not divisible by the model's downsampling 4"},
		{cube(64), cube(16), [3]int{2, 8, 8}, cube(4), "stride: 2 along x is smaller than the model's downsampling 4"},
		{cube(64), cube(16), cube(0), cube(1), "stride: 0 along x"},
		{[3]int{64, 0, 64}, cube(16), cube(8), cube(4), "volume has 0 voxels along y"},
		{cube(64), cube(0), cube(8), cube(4), "patch: 0 along x"},
		{cube(64), cube(16), cube(8), cube(0), "downsampling 0 along x"},
	} {
		if _, err := tile.NewGrid(c.dims, c.patch, c.stride, c.multiple); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}
