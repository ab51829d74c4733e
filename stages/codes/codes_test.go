package codes

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

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
		Model: strings.Repeat("0f", 32), Count: 12, Channels: 2,
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
type lazy struct{ safetensors.File }

func (lazy) Sync() error { return nil }

func fast() safetensors.Disk {
	disk := safetensors.Local()
	disk.Create = func(path string) (safetensors.File, error) {
		f, err := safetensors.Local().Create(path)
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
	c.Channels = rapid.IntRange(0, 3).Draw(t, "channels")
	n := c.Cells()
	cells := len(c.Tiles) * n[0] * n[1] * n[2]
	r := volume.Rand(rapid.Uint64().Draw(t, "seed"))
	c.Index = make([]int32, cells)
	for i := range c.Index {
		c.Index[i] = int32(r.IntN(c.Count))
	}
	c.Index[0], c.Index[cells-1] = 0, int32(c.Count-1)
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

// rewrite is a file as another program would write it: entry spoils or edits the metadata, head the tensors' descriptions.
func rewrite(t testing.TB, c *volume.Codes, latents bool, edit func(info map[string]any, head map[string]any)) string {
	t.Helper()
	path := save1(t, c, SaveOptions{Latents: latents})
	b, err := os.ReadFile(path)
	check1(t, err)
	start := 8 + binary.LittleEndian.Uint64(b)
	head := map[string]any{}
	check1(t, json.Unmarshal(b[8:start], &head))
	meta := head["__metadata__"].(map[string]any)
	delete(meta, "sha256")
	info := map[string]any{}
	check1(t, json.Unmarshal([]byte(meta[infoKey].(string)), &info))
	edit(info, head)
	text, err := json.Marshal(info)
	check1(t, err)
	if meta, ok := head["__metadata__"].(map[string]any); ok && meta[infoKey] != nil {
		meta[infoKey] = string(text)
	}
	text, err = json.Marshal(head)
	check1(t, err)
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(text)))
	check1(t, os.WriteFile(path, slices.Concat(out, text, b[start:]), 0o666))
	return path
}

func TestFilesOfOtherProgramsLoad(t *testing.T) {
	path := rewrite(t, small(), true, func(info, _ map[string]any) { info["mine"] = 1 })
	got, err := Read(path)
	check1(t, err)
	want := small()
	want.Scan.Path = path
	if got.Sealed || !reflect.DeepEqual(got.Codes, want) {
		t.Errorf("sealed %v, %+v", got.Sealed, got.Codes)
	}
	for dtype, data := range map[string]string{
		"U8":  "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b",
		"I64": "\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x09\x00\x00\x00\x00\x00\x00\x00\x0a\x00\x00\x00\x00\x00\x00\x00\x0b\x00\x00\x00\x00\x00\x00\x00",
	} {
		path := rewrite(t, small(), false, func(_, head map[string]any) {
			head["codes"] = map[string]any{"dtype": dtype, "shape": []int{2, 2, 3}, "data_offsets": []int{0, len(data)}}
			head["mask"] = map[string]any{"dtype": "BOOL", "shape": []int{3}, "data_offsets": []int{len(data), len(data) + 3}}
		})
		b, err := os.ReadFile(path)
		check1(t, err)
		start := 8 + binary.LittleEndian.Uint64(b)
		check1(t, os.WriteFile(path, slices.Concat(b[:start], []byte(data), []byte{1, 0, 1}), 0o666))
		got, err := Read(path)
		if err != nil {
			t.Errorf("%s: %v", dtype, err)
		} else if !slices.Equal(got.Index, small().Index) {
			t.Errorf("%s: %v", dtype, got.Index)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	geometry := func(info map[string]any) map[string]any { return info["geometry"].(map[string]any) }
	set := func(key string, value any) func(info, head map[string]any) {
		return func(info, _ map[string]any) { info[key] = value }
	}
	for _, c := range []struct {
		want string
		edit func(info, head map[string]any)
	}{
		{"no file of codes", func(_, head map[string]any) { head["__metadata__"] = map[string]any{"format": "pt"} }},
		{"leave sha256 out", func(_, head map[string]any) {
			head["__metadata__"].(map[string]any)["sha256"] = strings.Repeat("0", 64)
		}},
		{"leave sha256 out", func(_, head map[string]any) { head["__metadata__"].(map[string]any)["sha256"] = "" }},
		{"codes of layout 2 (this flowrun reads up to 1)", func(info, _ map[string]any) { info["version"], info["dims"] = 2, "new" }},
		{"metadata flowrun.codes: version: 0", set("version", 0)},
		{"cannot unmarshal", set("dims", "5x4x6")},
		{"dims: 2 values (want 3)", set("dims", []int{5, 4})},
		{"dims: 4 values (want 3)", set("dims", []int{5, 4, 6, 1})},
		{"dims: 0 along x", set("dims", []int{0, 4, 6})},
		{"dims: 7 along x (want 1 to 6", set("dims", []int{7, 4, 6})},
		{"padded: 5 along x", set("padded", []int{5, 4, 6})},
		{"padded: 2097152 along z", set("padded", []int{6, 4, 1 << 21})},
		{"tiles: 1 of [6 4 6] voxels don't cover [8 4 6]", set("padded", []int{8, 4, 6})},
		{"factor: 0 along y", set("factor", []int{2, 0, 3})},
		{"factor: 512 along x", set("factor", []int{512, 2, 3})},
		{"tile: 5 along x", set("tile", []int{5, 4, 6})},
		{"tile: 8 along x", set("tile", []int{8, 4, 6})},
		{"tiles: 0 (want 1", set("tiles", []int{})},
		{"tiles: 2 values", set("tiles", [][]int{{0, 0}})},
		{"tiles: origin [0 0 3]", set("tiles", [][]int{{0, 0, 3}})},
		{"tiles: origin [-2 0 0]", set("tiles", [][]int{{-2, 0, 0}})},
		{"tiles: origin [0 0 0] twice", set("tiles", [][]int{{0, 0, 0}, {0, 0, 0}})},
		{`tensor "latents": shape [2 2 3 2] (want [2 2 2 1 2])`, func(info, _ map[string]any) {
			info["tile"], info["padded"], info["dims"], info["tiles"] = []int{2, 4, 6}, []int{4, 4, 6}, []int{4, 4, 6}, [][]int{{0, 0, 0}, {2, 0, 0}}
			geometry(info)["source_dims"] = []int{4, 4, 6}
		}},
		{"window_hu: [1000 -1000] isn't a window", set("window_hu", []int{1000, -1000})},
		{"window_hu: 1 values", set("window_hu", []int{1000})},
		{"codebook: 0 codes", set("codebook", 0)},
		{"codebook: 4294967296 codes", set("codebook", 1<<32)},
		{`tensor "codes": 11 at place 11 (want 0 to 10)`, set("codebook", 11)},
		{"channels: -1", set("channels", -1)},
		{"metadata says 0 channels", set("channels", 0)},
		{`tensor "latents": shape [2 2 3 2] (want [2 2 3 3])`, set("channels", 3)},
		{"scan.id", func(info, _ map[string]any) { info["scan"].(map[string]any)["id"] = "" }},
		{"scan.spacing: 0 values", func(info, _ map[string]any) { delete(info, "scan"); info["scan"] = map[string]any{"id": "a"} }},
		{"geometry.spacing: 0", func(info, _ map[string]any) { geometry(info)["spacing"] = []float64{1, 0, 1} }},
		{"geometry.axes: [0 0 2]", func(info, _ map[string]any) { geometry(info)["axes"] = []int{0, 0, 2} }},
		{"geometry.axes: [0 1 3]", func(info, _ map[string]any) { geometry(info)["axes"] = []int{0, 1, 3} }},
		{"geometry.source_dims: [5 4 6]", func(info, _ map[string]any) { geometry(info)["source_dims"] = []int{5, 4, 6} }},
		{"geometry.affine: 2 rows", func(info, _ map[string]any) { geometry(info)["affine"] = [][]int{{1, 2, 3, 4}, {5, 6, 7, 8}} }},
		{"geometry.source_affine: 3 values", func(info, _ map[string]any) {
			geometry(info)["source_affine"] = [][]int{{1, 2, 3, 4}, {5, 6, 7}, {1, 2, 3, 4}}
		}},
		{"illegal base64", func(info, _ map[string]any) { geometry(info)["source_header"] = "*" }},
		{`no tensor "codes"`, func(_, head map[string]any) { head["kodes"] = head["codes"]; delete(head, "codes") }},
		{`tensor "codes": shape [12] (want [2 2 3])`, func(_, head map[string]any) { head["codes"].(map[string]any)["shape"] = []int{12} }},
		{`tensor "codes": dtype "F16" (want integers)`, func(_, head map[string]any) { head["codes"].(map[string]any)["dtype"] = "F16" }},
		{`tensor "quantised": dtype "I32" (want floats)`, func(_, head map[string]any) { head["quantised"].(map[string]any)["dtype"] = "I32" }},
	} {
		path := rewrite(t, small(), true, c.edit)
		got, err := Read(path)
		if err == nil || got != nil || !strings.HasPrefix(err.Error(), path+": ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got  %v\nwant %s", err, c.want)
		}
	}
	path := rewrite(t, small(), true, func(_, _ map[string]any) {})
	b, err := os.ReadFile(path)
	check1(t, err)
	copy(b[8+binary.LittleEndian.Uint64(b)+4:], "\x00\x00\xc0\x7f")
	check1(t, os.WriteFile(path, b, 0o666))
	if _, err := Read(path); err == nil || err.Error() != path+": latents: NaN at place 1 (want finite numbers)" {
		t.Errorf("got %v", err)
	}
	c := several()
	c.Tiles[1] = [3]int{1, 0, 0}
	if _, err := Save(t.TempDir(), c, SaveOptions{}); err == nil || err.Error() != "scan a/b.nii.gz: tiles: origin [1 0 0] (want 0 to 2 along x, a multiple of the factor 2)" {
		t.Errorf("got %v", err)
	}
	c.Tiles[1] = [3]int{0, 0, 0}
	if _, err := Save(t.TempDir(), c, SaveOptions{}); err == nil || err.Error() != "scan a/b.nii.gz: tiles: origin [0 0 0] twice" {
		t.Errorf("got %v", err)
	}
}

// Enough tiles, but not where they should be.
func TestTilesThatLeaveAGapAreRefused(t *testing.T) {
	c := small()
	c.Tile, c.Tiles = [3]int{2, 4, 6}, [][3]int{{0, 0, 0}, {4, 0, 0}, {2, 0, 0}}
	save1(t, c, SaveOptions{})
	c.Dims[0], c.Padded[0], c.Scan.Dims[0], c.Geometry.Dims[1] = 8, 8, 8, 8
	c.Tile[0], c.Tiles = 4, [][3]int{{0, 0, 0}, {2, 0, 0}}
	c.Index = make([]int32, 16)
	if _, err := Save(t.TempDir(), c, SaveOptions{}); err == nil || !strings.HasSuffix(err.Error(), ": tiles: the voxels from [6 0 0] on are in none") {
		t.Errorf("got %v", err)
	}
	path := rewrite(t, several(), false, func(info, _ map[string]any) {
		info["padded"], info["dims"] = []int{8, 4, 6}, []int{8, 4, 6}
		info["geometry"].(map[string]any)["source_dims"] = []int{4, 8, 6}
	})
	if _, err := Read(path); err == nil || err.Error() != path+": tiles: the voxels from [6 0 0] on are in none" {
		t.Errorf("got %v", err)
	}
}

func TestSaveRefuses(t *testing.T) {
	nan := float32(math.NaN())
	for want, spoil := range map[string]func(*volume.Codes){
		"codes of no scan": func(c *volume.Codes) { c.Scan = nil },
		"scan a/b.nii.gz: dims: [5 4 7], but the scan has [5 4 6]":                  func(c *volume.Codes) { c.Dims[2] = 7 },
		"scan a/b.nii.gz: window_hu: [NaN 1000] isn't a window (want low < high)":   func(c *volume.Codes) { c.Window[0] = math.NaN() },
		"scan a/b.nii.gz: geometry.affine: not finite":                              func(c *volume.Codes) { c.Geometry.Affine[1][2] = math.Inf(1) },
		"b.codes.safetensors: 11 codes for cells [2 2 3]":                           func(c *volume.Codes) { c.Index = c.Index[1:] },
		"b.codes.safetensors: code 12 at place 3 (want 0 to 11)":                    func(c *volume.Codes) { c.Index[3] = 12 },
		"b.codes.safetensors: code -1 at place 3 (want 0 to 11)":                    func(c *volume.Codes) { c.Index[3] = -1 },
		"b.codes.safetensors: latents: 23 values for cells [2 2 3] of 2 channels":   func(c *volume.Codes) { c.Latents = c.Latents[1:] },
		"b.codes.safetensors: quantised: 24 values for cells [2 2 3] of 0 channels": func(c *volume.Codes) { c.Channels, c.Latents = 0, nil },
		"b.codes.safetensors: latents: NaN at place 5 (want finite numbers)":        func(c *volume.Codes) { c.Latents[5] = nan },
		"b.codes.safetensors: latents: the codes come without":                      func(c *volume.Codes) { c.Latents, c.Quantised = nil, nil },
		"scan ../a.nii: its name is no file below a folder":                         func(c *volume.Codes) { c.Scan.ID = "../a.nii" },
		"scan /etc/a: its name is no file below a folder":                           func(c *volume.Codes) { c.Scan.ID = "/etc/a" },
		"scan a/: its name is no file below a folder":                               func(c *volume.Codes) { c.Scan.ID = "a/" },
		"scan b/../../a: its name is no file below a folder":                        func(c *volume.Codes) { c.Scan.ID = "b/../../a" },
		"scan a\x00b: its name is no file below a folder":                           func(c *volume.Codes) { c.Scan.ID = "a\x00b" },
	} {
		c, dir := small(), t.TempDir()
		spoil(c)
		if path, err := Save(dir, c, SaveOptions{Latents: true}); err == nil || path != "" || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		if files, _ := filepath.Glob(filepath.Join(dir, "*/*")); files != nil {
			t.Errorf("%s: left behind %s", want, files)
		}
	}
	if _, err := Save(t.TempDir(), small(), SaveOptions{Name: "../x"}); err == nil {
		t.Error("a name led out of the folder")
	}
}

func TestAnotherScansFileIsNotReplaced(t *testing.T) {
	dir := t.TempDir()
	c := small()
	path, err := Save(dir, c, SaveOptions{})
	check1(t, err)
	before, err := os.ReadFile(path)
	check1(t, err)
	c.Scan.ID = "a/b.nii"
	if _, err := Save(dir, c, SaveOptions{}); err == nil || err.Error() != path+": holds the codes of another scan, a/b.nii.gz (want another dir)" {
		t.Errorf("got %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Error("the file has changed")
	}
	check1(t, os.WriteFile(path, before[:99], 0o666)) // what no one can read is replaced
	if _, err := Save(dir, c, SaveOptions{}); err != nil {
		t.Error(err)
	}
}

// full fails to sync.
type full struct{ safetensors.File }

func (full) Sync() error { return syscall.ENOSPC }

func TestAFailedSaveChangesNothing(t *testing.T) {
	dir := t.TempDir()
	c := small()
	path, err := Save(dir, c, SaveOptions{})
	check1(t, err)
	disk := safetensors.Local()
	disk.Create = func(path string) (safetensors.File, error) {
		f, err := safetensors.Local().Create(path)
		return full{f}, err
	}
	c.Index[0] = 5
	if _, err := save(disk, dir, c, SaveOptions{}); !errors.Is(err, syscall.ENOSPC) || err.Error() != path+": no space left on device" {
		t.Errorf("got %v", err)
	}
	got, err := Load(path)
	check1(t, err)
	if got.Index[0] != 0 {
		t.Error("the file has changed")
	}
	if left, _ := filepath.Glob(path + ".*"); left != nil {
		t.Errorf("left behind %s", left)
	}
}

func TestNames(t *testing.T) {
	ids := []string{"a.nii", "a.nii.gz", "A.nii", "b/c.hdr", "b/d.nii.gz", ".nii", "e"}
	var scans []*volume.Scan
	for _, id := range ids {
		scans = append(scans, &volume.Scan{ID: id})
	}
	got, err := Names(scans)
	check1(t, err)
	want := map[string]string{
		"a.nii": "a.nii.codes.safetensors", "a.nii.gz": "a.nii.gz.codes.safetensors", "A.nii": "A.nii~2.codes.safetensors",
		"b/c.hdr": "b/c.codes.safetensors", "b/d.nii.gz": "b/d.codes.safetensors", ".nii": ".nii.codes.safetensors", "e": "e.codes.safetensors",
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if _, err := Names([]*volume.Scan{{ID: "../a"}}); err == nil {
		t.Error("a name led out of the folder")
	}
	if _, err := Names([]*volume.Scan{{ID: "a"}, {ID: "a"}}); err == nil || err.Error() != "scan a: listed twice" {
		t.Errorf("got %v", err)
	}
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.SampledFrom([]string{"a", "A", "b", "a.nii", "a~2", "a.codes"})
		id := rapid.Custom(func(t *rapid.T) *volume.Scan {
			return &volume.Scan{ID: strings.Join(rapid.SliceOfN(part, 1, 2).Draw(t, "parts"), "/") +
				rapid.SampledFrom([]string{"", ".nii", ".nii.gz", ".NII", ".hdr", "~2", ".nii~2"}).Draw(t, "ending")}
		})
		scans := rapid.SliceOfNDistinct(id, 1, 8, func(s *volume.Scan) string { return s.ID }).Draw(t, "scans")
		names, err := Names(scans)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]string{}
		for id, n := range names {
			low := strings.ToLower(n)
			if other, ok := seen[low]; ok || !filepath.IsLocal(n) || !strings.HasSuffix(n, Ending) {
				t.Fatalf("%s and %s: %s", id, other, n)
			}
			seen[low] = id
		}
	})
}

func TestWhatIsDecoded(t *testing.T) {
	path := save1(t, small(), SaveOptions{Latents: true})
	plain := save1(t, small(), SaveOptions{})
	for _, c := range []struct {
		use, path string
		want      []float32
		err       string
	}{
		{"codes", path, nil, ""},
		{"", plain, nil, ""},
		{"quantised", path, small().Quantised, ""},
		{"latents", path, small().Latents, ""},
		{"quantised", plain, nil, `: no tensor "quantised" to decode (want use: codes, or a file saved with latents)`},
		{"latents", plain, nil, `: no tensor "latents" to decode (want use: codes, or a file saved with latents)`},
		{"mine", path, nil, `: use: "mine" (want codes, quantised or latents)`},
	} {
		o := LoadOptions{Codes: []string{c.path}, Use: c.use}
		scans, bad, err := List(o)
		check1(t, err)
		if len(scans) != 1 || bad != nil || scans[0].ID != "b" || scans[0].Dims != [3]int{5, 4, 6} || scans[0].Spacing != small().Scan.Spacing {
			t.Fatalf("%+v, %v", scans, bad)
		}
		got, err := o.Load(scans[0])
		if c.err != "" {
			if err == nil || err.Error() != c.path+c.err {
				t.Errorf("%s: got  %v\nwant %s", c.use, err, c.path+c.err)
			}
			continue
		}
		check1(t, err)
		if !slices.Equal(got.Quantised, c.want) || got.Latents != nil || got.Scan != scans[0] {
			t.Errorf("%s: %+v", c.use, got.Codes)
		}
	}
	o := LoadOptions{Codes: []string{plain}}
	if _, err := o.Load(&volume.Scan{ID: "b", Path: plain, Dims: [3]int{1, 2, 3}}); err == nil || err.Error() != plain+": holds [5 4 6] voxels (want [1 2 3], as when it was listed)" {
		t.Errorf("got %v", err)
	}
}

func TestList(t *testing.T) {
	top := t.TempDir()
	for _, id := range []string{"one/b.nii.gz", "one/a.nii", "two/c.nii", "two/deep/d.nii"} {
		c := small()
		c.Scan.ID = id
		_, err := Save(top, c, SaveOptions{})
		check1(t, err)
	}
	at := func(name string) string { return filepath.Join(top, filepath.FromSlash(name)) }
	copyOf := func(to string, cut int) {
		b, err := os.ReadFile(at("one/a" + Ending))
		check1(t, err)
		check1(t, os.WriteFile(at(to), b[:len(b)-cut], 0o666))
	}
	copyOf("one/a-edited"+Ending, 0)
	copyOf("one/torn"+Ending, 1)
	copyOf("one/._a"+Ending, 0)
	copyOf("one/a"+Ending+".tmp", 0)
	copyOf("two/odd.safetensors", 0)
	check1(t, os.Mkdir(at("empty"), 0o777))
	for _, c := range []struct {
		codes []string
		want  string // IDs
		bad   string
	}{
		{[]string{at("")}, "one/a one/a-edited one/b two/c two/deep/d", "one/torn"},
		{[]string{at("one")}, "a a-edited b", "torn"},
		{[]string{at("two")}, "c deep/d", ""},
		{[]string{at("one"), at("two")}, "one/a one/a-edited one/b two/c two/deep/d", "one/torn"},
		{[]string{at("one"), at("one"), at("one/a" + Ending)}, "a a-edited b", "torn"},
		{[]string{at("**/d*")}, "two/deep/d", ""},
		{[]string{at("one/a*")}, "a a-edited", ""},
		{[]string{at("two/*")}, "c", ""},
		{[]string{at("two/odd.safetensors")}, "odd", ""},
		{[]string{at("one/a" + Ending + ".tmp")}, "a.codes.safetensors.tmp", ""},
	} {
		scans, bad, err := List(LoadOptions{Codes: c.codes})
		if err != nil {
			t.Errorf("%s: %v", c.codes, err)
			continue
		}
		var ids, bads []string
		for i, s := range scans {
			ids = append(ids, s.ID)
			if s.Index != i {
				t.Errorf("%s: %s has index %d", c.codes, s.ID, s.Index)
			}
			if _, err := Load(s.Path); err != nil {
				t.Error(err)
			}
		}
		for _, b := range bad {
			bads = append(bads, b.Scan)
			if !strings.HasSuffix(b.Reason, "torn or damaged") || strings.Contains(b.Reason, top) || !strings.HasPrefix(b.Path, top) {
				t.Errorf("%+v", b)
			}
		}
		if got := strings.Join(ids, " "); got != c.want || strings.Join(bads, " ") != c.bad {
			t.Errorf("%s: got %s and bad %s", c.codes, got, bads)
		}
	}
	for place, want := range map[string]string{
		"":                          "an empty name",
		at("none"):                  "no such file or folder (want a folder, a file or a pattern)",
		at("none/*"):                "folder " + at("none") + ": no such file or directory",
		at("empty"):                 "no .codes.safetensors file",
		at("*.nii"):                 "no .codes.safetensors file",
		at("one/[" + Ending):        "pattern: syntax error in pattern",
		at("one/torn" + Ending)[1:]: "no such file or folder (want a folder, a file or a pattern)",
	} {
		if _, _, err := List(LoadOptions{Codes: []string{place}}); err == nil || err.Error() != "codes: "+place+": "+want {
			t.Errorf("got  %v\nwant codes: %s: %s", err, place, want)
		}
	}
	if _, bad, err := List(LoadOptions{Codes: []string{at("one/torn" + Ending)}}); err == nil || len(bad) != 1 || !strings.HasPrefix(err.Error(), "codes: none of 1 files can be used; the first, ") {
		t.Errorf("%v, %v", bad, err)
	}
	if _, _, err := List(LoadOptions{}); err == nil {
		t.Error("nothing was named")
	}
	if _, err := Load(at("none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// What loads can be saved, and is then loaded as the same; nothing else may happen to any bytes.
func FuzzRead(f *testing.F) {
	for _, c := range []*volume.Codes{small(), several()} {
		for _, latents := range []bool{false, c.Latents != nil} {
			b, err := os.ReadFile(save1(f, c, SaveOptions{Latents: latents}))
			check1(f, err)
			f.Add(b)
		}
	}
	b, err := os.ReadFile(rewrite(f, small(), true, func(_, _ map[string]any) {}))
	check1(f, err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := readBytes(b)
		if err != nil {
			return
		}
		path, err := save(fast(), t.TempDir(), got.Codes, SaveOptions{Latents: got.Latents != nil || got.Quantised != nil, Name: "a"})
		if err != nil {
			t.Fatal(err)
		}
		again, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		again.Scan.Path = ""
		if !reflect.DeepEqual(again.Index, got.Index) || !reflect.DeepEqual(again.Tiles, got.Tiles) ||
			!slices.Equal(again.Latents, got.Latents) || !slices.Equal(again.Quantised, got.Quantised) || *again.Scan != *got.Scan {
			t.Fatalf("got  %+v\nwant %+v", again, got.Codes)
		}
	})
}

// What the metadata says is kept, or refused.
func FuzzInfo(f *testing.F) {
	for _, c := range []*volume.Codes{small(), several()} {
		text, err := encodeInfo(c)
		check1(f, err)
		f.Add(text)
	}
	f.Add(`{"version":2}`)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := decodeInfo(map[string]string{infoKey: text})
		if err != nil {
			return
		}
		again, err := encodeInfo(c)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decodeInfo(map[string]string{infoKey: again}); err != nil || !reflect.DeepEqual(got, c) {
			t.Fatalf("%v: got  %+v\nwant %+v", err, got, c)
		}
	})
}
