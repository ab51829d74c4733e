package codes

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/volume"
)

// rewrite is a file as another program would write it: without a seal, and with what edit makes of the metadata and the
// header.
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
		{"codes of layout 3 (this flowrun reads up to 2)", func(info, _ map[string]any) { info["version"], info["dims"] = 3, "new" }},
		{"metadata flowrun.codes: depth: 0 codes of a cell (want 1 to 16)", func(info, _ map[string]any) { info["version"] = 2 }},
		{`tensor "codes": shape [2 2 3] (want [2 2 3 2])`, func(info, _ map[string]any) { info["version"], info["depth"] = 2, 2 }},
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
		{"window_hu: [1000, -1000] isn't a window", set("window_hu", []int{1000, -1000})},
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
		{`no tensor "codes", "quantised" or "latents"`, func(_, head map[string]any) {
			for _, name := range []string{"codes", "quantised", "latents"} {
				head["my "+name] = head[name]
				delete(head, name)
			}
		}},
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
		again, err := Read(path)
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
