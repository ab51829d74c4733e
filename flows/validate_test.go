package flows

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/report"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/volume"
)

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		n, limit int
		want     []int
	}{
		{5, 0, []int{0, 1, 2, 3, 4}},
		{5, 9, []int{0, 1, 2, 3, 4}},
		{5, 5, []int{0, 1, 2, 3, 4}},
		{1, 1, []int{0}},
		{9, 1, []int{4}},
		{8, 2, []int{2, 6}},
		{9, 3, []int{1, 4, 7}},
	} {
		if got := spread(c.n, c.limit); !slices.Equal(got, c.want) {
			t.Errorf("%d of %d: got %v, want %v", c.limit, c.n, got, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 500).Draw(t, "n")
		limit := rapid.IntRange(1, n).Draw(t, "limit")
		got := spread(n, limit)
		if len(got) != limit || got[0] < 0 || got[limit-1] >= n {
			t.Fatalf("%v", got)
		}
		for i := range got[1:] {
			if d := got[i+1] - got[i]; d != n/limit && d != (n+limit-1)/limit {
				t.Fatalf("%v: steps of %d", got, d)
			}
		}
	})
}

// TestShare: what a pass measures of the scans is what the option allows, as even as can be, the first one among it.
func TestShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := &validator{held: make([]*volume.Scan, rapid.IntRange(1, 100).Draw(t, "scans")), limit: rapid.IntRange(1, 200).Draw(t, "limit")}
		sum, least, most := 0, v.limit, 0
		for i := range v.held {
			n := v.share(i)
			sum, least, most = sum+n, min(least, n), max(most, n)
		}
		if sum != v.limit || most-least > 1 || v.share(0) < 1 {
			t.Fatalf("%d patches of %d scans: %d in all, %d to %d each", v.limit, len(v.held), sum, least, most)
		}
	})
}

func TestInside(t *testing.T) {
	patch := [3]int{4, 4, 4}
	for _, c := range []struct{ origin, dims, want [3]int }{
		{[3]int{0, 0, 0}, [3]int{8, 8, 8}, patch},
		{[3]int{4, 4, 4}, [3]int{8, 8, 8}, patch},
		{[3]int{4, 0, 4}, [3]int{7, 3, 5}, [3]int{3, 3, 1}},
		{[3]int{0, 0, 0}, [3]int{1, 2, 3}, [3]int{1, 2, 3}},
	} {
		if got := inside(c.origin, patch, c.dims); got != c.want {
			t.Errorf("at %v in %v: got %v, want %v", c.origin, c.dims, got, c.want)
		}
	}
	if patch != [3]int{4, 4, 4} {
		t.Error("inside changed its argument")
	}
}

func TestCrop(t *testing.T) {
	// x, y, z of 3×2×2 voxels, each as 100z + 10y + x.
	block := []float32{0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112}
	size := [3]int{3, 2, 2}
	if got := crop(block, size, size); &got[0] != &block[0] || len(got) != len(block) {
		t.Error("a whole block was copied")
	}
	for part, want := range map[[3]int][]float32{
		{2, 2, 2}: {0, 1, 10, 11, 100, 101, 110, 111},
		{3, 1, 2}: {0, 1, 2, 100, 101, 102},
		{3, 2, 1}: {0, 1, 2, 10, 11, 12},
		{1, 1, 1}: {0},
	} {
		if got := crop(block, size, part); !slices.Equal(got, want) {
			t.Errorf("%v: got %v, want %v", part, got, want)
		}
	}
}

// TestPicture pastes patches as they were cut: the planes of the reconstruction are those of the scan, bit for bit.
func TestPicture(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var dims, patch, stride, multiple [3]int
		for a := range dims {
			multiple[a] = rapid.SampledFrom([]int{1, 2, 4}).Draw(t, "downsampling")
			patch[a] = multiple[a] * rapid.IntRange(1, 4).Draw(t, "patch")
			stride[a] = rapid.IntRange(multiple[a], patch[a]).Draw(t, "stride")
			dims[a] = rapid.IntRange(1, 19).Draw(t, "dims")
		}
		data := make([]int16, dims[0]*dims[1]*dims[2])
		for i := range data {
			data[i] = int16(i*37%3000 - 1500)
		}
		// All places in this window are exact in float32.
		v := &volume.Volume{Scan: &volume.Scan{ID: "a", Dims: dims}, Dims: dims, Window: [2]float64{-1024, 1024}, Slope: 1}
		v.Own(&volume.Memory{Data: data, Dims: dims}, nil)
		defer v.Release()
		p, err := newPicture(v)
		if err != nil {
			t.Fatal(err)
		}
		black := func(c report.Cuts) bool {
			return !slices.ContainsFunc(slices.Concat(c.Axial, c.Coronal, c.Sagittal), func(x float32) bool { return x != -1 })
		}
		if !black(p.recon) {
			t.Fatal("the reconstruction doesn't begin black")
		}
		grid, err := tile.NewGrid(dims, patch, stride, multiple)
		if err != nil {
			t.Fatal(err)
		}
		scratch := batch.NewScratch(1)
		block := make([]float32, patch[0]*patch[1]*patch[2])
		for _, crossing := range []bool{false, true} {
			for i := range grid.Len() {
				origin := grid.Tile(i)
				through := false
				for a := range 3 {
					through = through || origin[a] <= dims[a]/2 && dims[a]/2 <= origin[a]+patch[a]-1
				}
				if got := p.crosses(origin, patch); got != through {
					t.Fatalf("patch of %v at %v in %v crosses: %v", patch, origin, dims, got)
				}
				if through != crossing {
					continue
				}
				tag := volume.Tag{Origin: origin, Size: patch}
				if err := batch.Cut(block, &volume.Patch{Tag: tag, Volume: v}, scratch); err != nil {
					t.Fatal(err)
				}
				p.paste(origin, patch, block)
			}
			if !crossing && !black(p.recon) {
				t.Fatal("a patch that crosses no plane was pasted")
			}
		}
		if !slices.Equal(p.recon.Axial, p.orig.Axial) || !slices.Equal(p.recon.Coronal, p.orig.Coronal) || !slices.Equal(p.recon.Sagittal, p.orig.Sagittal) {
			t.Fatalf("got  %v\nwant %v", p.recon, p.orig)
		}
	})
}
