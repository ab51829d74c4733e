package codes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/files"
	"github.com/flowrun/flowrun/stages/safetensors"
	"github.com/flowrun/flowrun/stages/volume"
	"pgregory.net/rapid"
)

func check1(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// small is codes that a reader can follow: 5×4×6 voxels, padded to 6×4×6, by 2×2×3: 3×2×2 cells in one tile.
func small() *volume.Codes {
	c := &volume.Codes{
		Scan: &volume.Scan{ID: "a/b.nii.gz", Dims: [3]int{5, 4, 6}, Spacing: [3]float64{0.5, 0.75, 1.25}, Digest: "beef"},
		Geometry: volume.Geometry{
			Affine: volume.Affine{{0.5, 0, 0, -10}, {0, 0.75, 0, 20}, {0, 0, 1.25, 0.1}},
			Source: volume.Affine{{0, -0.5, 0, -8}, {0.75, 0, 0, 20}, {0, 0, 1.25, 0.1}},
			Dims:   [3]int{4, 5, 6}, Axes: [3]int{1, 0, 2}, Flip: [3]bool{true, false, false}, Spacing: [3]float64{0.5, 0.75, 1.25},
			Header: []byte("header\x00\xff"),
		},
		Window: [2]float64{-1000, 1000},
		Dims:   [3]int{5, 4, 6}, Padded: [3]int{6, 4, 6}, Factor: [3]int{2, 2, 3}, Tile: [3]int{6, 4, 6}, Tiles: [][3]int{{0, 0, 0}},
		Model: strings.Repeat("0f", 32), Count: 12, Depth: 1, Channels: 2,
	}
	for i := range 12 {
		c.Index = append(c.Index, int32(i))
		c.Latents = append(c.Latents, float32(i), -2)
		c.Quantised = append(c.Quantised, float32(i)/2, 1)
	}
	return c
}

// several is small in two tiles along x that share a column of cells.
func several() *volume.Codes {
	c := small()
	c.Tile, c.Tiles = [3]int{4, 4, 6}, [][3]int{{0, 0, 0}, {2, 0, 0}}
	c.Index = append(c.Index, 0, 1, 2, 3)
	c.Latents, c.Quantised = nil, nil
	return c
}

// lazy never syncs, which takes most of the time of a Save.
type lazy struct{ files.File }

func (lazy) Sync() error { return nil }

func fast() files.Disk {
	disk := files.Local()
	disk.Create = func(path string) (files.File, error) {
		f, err := files.Local().Create(path)
		return lazy{f}, err
	}
	disk.SyncDir = func(string) error { return nil }
	return disk
}

func save1(t testing.TB, c *volume.Codes, o SaveOptions) string {
	t.Helper()
	path, err := save(fast(), t.TempDir(), c, o)
	check1(t, err)
	return path
}

func TestAFileIsWhatTheDocsSay(t *testing.T) {
	dir := t.TempDir()
	path, err := Save(dir, small(), SaveOptions{Latents: true})
	check1(t, err)
	if want := filepath.Join(dir, "a", "b.codes.safetensors"); path != want {
		t.Errorf("saved as %s, want %s", path, want)
	}
	h, err := safetensors.Peek(path)
	check1(t, err)
	tensors := []safetensors.Tensor{
		{Name: "latents", DType: "F32", Shape: []int{2, 2, 3, 2}, Bytes: 96},
		{Name: "latents.mean", DType: "F32", Shape: []int{2}, Bytes: 8},
		{Name: "latents.std", DType: "F32", Shape: []int{2}, Bytes: 8},
		{Name: "quantised", DType: "F32", Shape: []int{2, 2, 3, 2}, Bytes: 96},
		{Name: "quantised.mean", DType: "F32", Shape: []int{2}, Bytes: 8},
		{Name: "quantised.std", DType: "F32", Shape: []int{2}, Bytes: 8},
		{Name: "codes", DType: "U16", Shape: []int{2, 2, 3}, Bytes: 24},
	}
	if !reflect.DeepEqual(h.Tensors, tensors) {
		t.Errorf("tensors %+v", h.Tensors)
	}
	info := `{"version":1,"scan":{"id":"a/b.nii.gz","spacing":[0.5,0.75,1.25],"digest":"beef"},"dims":[5,4,6],"padded":[6,4,6],"factor":[2,2,3],` +
		`"tile":[6,4,6],"tiles":[[0,0,0]],"window_hu":[-1000,1000],"model":"` + strings.Repeat("0f", 32) + `","codebook":12,"channels":2,` +
		`"geometry":{"affine":[[0.5,0,0,-10],[0,0.75,0,20],[0,0,1.25,0.1]],"source_affine":[[0,-0.5,0,-8],[0.75,0,0,20],[0,0,1.25,0.1]],` +
		`"source_dims":[4,5,6],"axes":[1,0,2],"flip":[true,false,false],"spacing":[0.5,0.75,1.25],"resampled":false,"source_header":"aGVhZGVyAP8="}}`
	if len(h.Meta) != 1 || h.Meta["flowrun.codes"] != info || len(h.Seal) != 64 {
		t.Errorf("seal %s, metadata %s", h.Seal, h.Meta)
	}
	arrays, _, err := safetensors.Read(path)
	check1(t, err)
	// Mean of 0 … 11 is 5.5, its variance (12²-1)/12.
	std := float32(math.Sqrt(143.0 / 12))
	for name, want := range map[string][]float32{"latents.mean": {5.5, -2}, "latents.std": {std, 0}, "quantised.mean": {2.75, 1}, "quantised.std": {std / 2, 0}} {
		i := slices.IndexFunc(arrays, func(a volume.Array) bool { return a.Name == name })
		if !slices.Equal(arrays[i].Data, want) {
			t.Errorf("%s is %v, want %v", name, arrays[i].Data, want)
		}
	}
}

// gen draws codes of any grid: dims that are no multiples, tiles that overlap, codebooks of either type.
func gen(t *rapid.T) *volume.Codes {
	finite := rapid.Float64Range(-1e6, 1e6)
	positive := rapid.Float64Range(1e-3, 10)
	c := &volume.Codes{Scan: &volume.Scan{ID: rapid.SampledFrom([]string{"a", "a.nii", "é/ü.nii.gz", "x/y/z.hdr"}).Draw(t, "id"), Digest: rapid.StringMatching(`[0-9a-f]*`).Draw(t, "digest")}}
	g := &c.Geometry
	g.Axes = [3]int(rapid.Permutation([]int{0, 1, 2}).Draw(t, "axes"))
	g.Resample = rapid.Bool().Draw(t, "resample")
	g.Header = []byte(rapid.StringN(1, 20, 40).Draw(t, "header"))
	var grid [3][]int
	for a := range 3 {
		f := rapid.IntRange(1, 4).Draw(t, "factor")
		cells := rapid.IntRange(1, 6).Draw(t, "cells")
		tile := rapid.IntRange(1, cells).Draw(t, "tile")
		c.Factor[a], c.Padded[a], c.Tile[a] = f, f*cells, f*tile
		c.Dims[a] = c.Padded[a] - rapid.IntRange(0, f-1).Draw(t, "pad")
		for at := 0; ; at += rapid.IntRange(1, tile).Draw(t, "step") {
			grid[a] = append(grid[a], min(at, cells-tile)*f)
			if at >= cells-tile {
				break
			}
		}
		g.Dims[g.Axes[a]] = c.Dims[a]
		g.Flip[a] = rapid.Bool().Draw(t, "flip")
		g.Spacing[a], c.Scan.Spacing[a] = positive.Draw(t, "spacing"), positive.Draw(t, "scan spacing")
		for i := range 4 {
			g.Affine[a][i], g.Source[a][i] = finite.Draw(t, "affine"), finite.Draw(t, "source")
		}
	}
	if g.Resample {
		g.Dims = [3]int{rapid.IntRange(1, 9).Draw(t, "source"), 7, 1 << 20}
	}
	for _, z := range grid[2] {
		for _, y := range grid[1] {
			for _, x := range grid[0] {
				c.Tiles = append(c.Tiles, [3]int{x, y, z})
			}
		}
	}
	c.Scan.Dims = c.Dims
	c.Window[0] = finite.Draw(t, "low")
	c.Window[1] = c.Window[0] + positive.Draw(t, "width")
	c.Model = rapid.StringN(0, 8, -1).Draw(t, "model")
	c.Count = rapid.SampledFrom([]int{1, 2, 16384, 65535, 65536, 65537, math.MaxInt32}).Draw(t, "count")
	c.Depth = rapid.IntRange(1, 3).Draw(t, "depth")
	c.Channels = rapid.IntRange(0, 3).Draw(t, "channels")
	n := c.Cells()
	cells := len(c.Tiles) * n[0] * n[1] * n[2]
	r := volume.Rand(rapid.Uint64().Draw(t, "seed"))
	c.Index = make([]int32, cells*c.Depth)
	for i := range c.Index {
		c.Index[i] = int32(r.IntN(c.Count))
	}
	c.Index[0], c.Index[len(c.Index)-1] = 0, int32(c.Count-1)
	if c.Channels > 0 {
		fill := func() []float32 {
			data := make([]float32, cells*c.Channels)
			for i := range data {
				data[i] = float32(r.NormFloat64())
			}
			return data
		}
		if rapid.Bool().Draw(t, "latents") {
			c.Latents = fill()
		}
		if rapid.Bool().Draw(t, "quantised") {
			c.Quantised = fill()
		}
	}
	return c
}

func TestWhatIsSavedIsLoaded(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		c := gen(t)
		latents := (c.Latents != nil || c.Quantised != nil) && rapid.Bool().Draw(t, "save latents")
		path, err := save(fast(), filepath.Join(dir, rapid.StringMatching(`[a-z]{8}`).Draw(t, "dir")), c, SaveOptions{Latents: latents, Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		got, err := Read(path)
		if err != nil {
			t.Fatal(err)
		}
		if !got.Sealed || got.Scan.Path != path {
			t.Fatalf("sealed %v, path %s", got.Sealed, got.Scan.Path)
		}
		h, err := safetensors.Peek(path)
		if err != nil {
			t.Fatal(err)
		}
		if last := h.Tensors[len(h.Tensors)-1]; last.Name != "codes" || (last.DType == "U16") != (c.Count <= 65536) {
			t.Fatalf("the last tensor is %+v of %d codes", last, c.Count)
		}
		got.Scan.Path = ""
		want := *c
		if !latents {
			want.Latents, want.Quantised = nil, nil
		}
		if !reflect.DeepEqual(got.Codes, &want) {
			t.Fatalf("got  %+v %+v\nwant %+v %+v", got.Scan, got.Codes, want.Scan, &want)
		}
		first, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := save(fast(), filepath.Dir(path), c, SaveOptions{Latents: latents, Name: "x"}); err != nil {
			t.Fatal(err)
		}
		if again, err := os.ReadFile(path); err != nil || !bytes.Equal(first, again) {
			t.Fatal("saved twice, other bytes")
		}
	})
}

// With one code of a cell files are as they were before there could be more.
func TestDepth(t *testing.T) {
	for depth, want := range map[int]string{1: "1 <nil> [2 2 3]", 2: "2 2 [2 2 3 2]"} {
		c := small()
		c.Depth = depth
		c.Index = slices.Repeat(c.Index, depth)
		path := save1(t, c, SaveOptions{})
		h, err := safetensors.Peek(path)
		check1(t, err)
		var said map[string]any
		check1(t, json.Unmarshal([]byte(h.Meta[infoKey]), &said))
		if got := fmt.Sprint(said["version"], said["depth"], h.Tensors[0].Shape); got != want {
			t.Errorf("depth %d: %s (want %s)", depth, got, want)
		}
	}
}

// 512×512×604 at a factor of 4: 2 bytes a code and a header that doesn't count.
func TestAWholeScanIsFiveMegabytes(t *testing.T) {
	c := small()
	c.Dims, c.Padded, c.Factor, c.Count = [3]int{512, 512, 604}, [3]int{512, 512, 604}, [3]int{4, 4, 4}, 16384
	c.Scan.Dims, c.Geometry.Dims, c.Tile = c.Dims, c.Dims, c.Padded
	c.Index = make([]int32, 128*128*151)
	c.Geometry.Header = make([]byte, 352)
	path := save1(t, c, SaveOptions{})
	info, err := os.Stat(path)
	check1(t, err)
	if size := info.Size(); size > 2*128*128*151+2048 {
		t.Errorf("%d bytes", size)
	}
}

// readBytes is Read of the bytes of a file.
func readBytes(b []byte) (f *File, err error) {
	_, err = safetensors.Decode(bytes.NewReader(b), int64(len(b)), func(r io.Reader, h *safetensors.Header) (err error) {
		f, err = read(r, h)
		return err
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

func TestEveryChangedBitIsNoticed(t *testing.T) {
	whole, err := os.ReadFile(save1(t, small(), SaveOptions{Latents: true}))
	check1(t, err)
	want, err := readBytes(whole)
	check1(t, err)
	for n := range whole {
		if _, err := readBytes(whole[:n]); err == nil {
			t.Errorf("cut at %d: loaded", n)
		}
	}
	if _, err := readBytes(append(slices.Clone(whole), 0)); err == nil {
		t.Error("one byte more: loaded")
	}
	for i := range whole {
		for bit := range 8 {
			b := slices.Clone(whole)
			b[i] ^= 1 << bit
			// A file whose key sha256 is broken is one without a seal; nothing else of it is.
			if got, err := readBytes(b); err == nil && (got.Sealed || !reflect.DeepEqual(got.Codes, want.Codes)) {
				t.Errorf("bit %d of byte %d: loaded, sealed %v", bit, i, got.Sealed)
			}
		}
	}
	path := filepath.Join(t.TempDir(), "a")
	whole[len(whole)-2]-- // the last code, 11
	check1(t, os.WriteFile(path, whole, 0o666))
	if _, err := Read(path); err == nil || !strings.HasPrefix(err.Error(), path+": damaged: SHA-256 is ") || !strings.HasSuffix(err.Error(), "; if it was edited, leave sha256 out of its metadata") {
		t.Errorf("got %v", err)
	}
}
