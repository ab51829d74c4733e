package tile_test

import (
	"errors"
	"iter"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/volume"
)

// scan returns a volume whose samples are given (nil for a dry one) and what says whether it was let go.
func scan(dims [3]int, s volume.Samples) (*volume.Volume, *bool) {
	freed := new(bool)
	v := &volume.Volume{Scan: &volume.Scan{ID: "p/1", Index: 7, Dims: dims}, Epoch: 2, Dims: dims, Slope: 2, Inter: -1000}
	return v.Own(s, func() { *freed = true }), freed
}

func collect(t interface{ Fatal(...any) }, seq iter.Seq2[*volume.Patch, error]) []volume.Tag {
	var tags []volume.Tag
	for p, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		tags = append(tags, p.Tag)
		p.Release()
	}
	return tags
}

func TestTilesOfGrid(t *testing.T) {
	v, freed := scan([3]int{20, 9, 30}, nil)
	o := tile.Options{Mode: "grid", Patch: [3]int{16, 16, 8}}
	tags := collect(t, tile.Tiles(v, o, 1, cube(4)))
	if !*freed {
		t.Error("the volume is still held")
	}
	g, err := tile.NewGrid(v.Dims, o.Patch, [3]int{12, 12, 4}, cube(4)) // 8·¾ = 6, rounded down to 4
	if err != nil {
		t.Fatal(err)
	}
	if len(tags) != g.Len() || len(tags) != tile.Count(v.Dims, o, cube(4)) {
		t.Fatalf("%d patches, the grid has %d", len(tags), g.Len())
	}
	for i, tag := range tags {
		want := volume.Tag{Scan: "p/1", Index: 7, Epoch: 2, Tile: i, Tiles: g.Len(), Origin: g.Tile(i), Size: o.Patch}
		if tag != want {
			t.Errorf("%v, want %v", tag, want)
		}
	}
}

func TestTilesAreLetGo(t *testing.T) {
	for stop := range 4 {
		v, freed := scan(cube(8), nil)
		var held []*volume.Patch
		for p, err := range tile.Tiles(v, tile.Options{Mode: "random", Patch: cube(4), PerScan: 3}, 1, cube(4)) {
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, p)
			if len(held) == stop {
				break
			}
		}
		for _, p := range held {
			if *freed {
				t.Fatal("the volume went while a patch referred to it")
			}
			p.Release()
		}
		if !*freed {
			t.Errorf("stopped after %d: the volume is still held", stop)
		}
	}
}

func TestRandomTiles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := tile.Options{Mode: "random", PerScan: rapid.IntRange(0, 9).Draw(t, "per_scan")}
		var dims [3]int
		for a := range 3 {
			o.Patch[a] = 2 * rapid.IntRange(1, 8).Draw(t, "patch")
			dims[a] = rapid.IntRange(1, 20).Draw(t, "dims")
		}
		seed := rapid.Uint64().Draw(t, "seed")
		draw := func(o tile.Options, s volume.Samples) []volume.Tag {
			v, freed := scan(dims, s)
			tags := collect(t, tile.Tiles(v, o, seed, cube(2)))
			if !*freed {
				t.Fatal("the volume is still held")
			}
			return tags
		}
		tags := draw(o, nil)
		if n := tile.Count(dims, o, cube(2)); len(tags) != n || o.PerScan > 0 && n != o.PerScan {
			t.Fatalf("%d patches, counted %d, asked for %d", len(tags), n, o.PerScan)
		}
		for _, tag := range tags {
			for a := range 3 {
				if tag.Origin[a] < 0 || tag.Origin[a] > max(0, dims[a]-o.Patch[a]) {
					t.Fatalf("%v leaves a volume of %v", tag, dims)
				}
			}
		}
		for i, tag := range draw(o, &volume.Memory{Data: make([]int16, dims[0]*dims[1]*dims[2]), Dims: dims}) {
			if tag != tags[i] {
				t.Fatalf("%v with samples, %v without", tag, tags[i])
			}
		}
		more := o
		more.PerScan = len(tags) + 3
		for i, tag := range draw(more, nil)[:len(tags)] {
			if tag.Origin != tags[i].Origin {
				t.Fatalf("tile %d moves when there are more of them", i)
			}
		}
	})
}

func TestRandomTilesDependOnTheirKey(t *testing.T) {
	o := tile.Options{Mode: "random", Patch: cube(4), PerScan: 20}
	origins := func(seed uint64, id string, epoch int) (out [20][3]int) {
		v, _ := scan(cube(100), nil)
		v.Scan.ID, v.Epoch = id, epoch
		for i, tag := range collect(t, tile.Tiles(v, o, seed, cube(4))) {
			out[i] = tag.Origin
		}
		return out
	}
	base := origins(1, "a", 0)
	if base != origins(1, "a", 0) {
		t.Error("the same key gives other origins")
	}
	if base == origins(2, "a", 0) || base == origins(1, "b", 0) || base == origins(1, "a", 1) {
		t.Error("seed, scan or epoch doesn't matter")
	}
}

func TestBodyTiles(t *testing.T) {
	// HU = 2·sample - 1000: air but for a corner of an eighth of the volume.
	dims := cube(32)
	m := &volume.Memory{Data: make([]int16, 32*32*32), Dims: dims}
	inside := func(p [3]int) bool { return p[0] >= 16 && p[1] >= 16 && p[2] >= 16 }
	for i := range m.Data {
		m.Data[i] = 250 // -500 HU: not above it
		if inside([3]int{i % 32, i / 32 % 32, i / 1024}) {
			m.Data[i] = 251
		}
	}
	for _, body := range []float64{0, 0.5, 1} {
		v, freed := scan(dims, &volume.Memory{Data: m.Data, Dims: dims})
		n := 0
		for _, tag := range collect(t, tile.Tiles(v, tile.Options{Mode: "random", Patch: cube(2), PerScan: 400, Body: body}, 3, cube(2))) {
			if inside([3]int{tag.Origin[0] + 1, tag.Origin[1] + 1, tag.Origin[2] + 1}) {
				n++
			}
		}
		// A share is sure of the body (32 tries miss it with probability 0.014), the rest finds it by chance.
		want := body + (1-body)*0.136
		if got := float64(n) / 400; got < want-0.08 || got > want+0.08 {
			t.Errorf("body %g: %.2f of the centres inside, want about %.2f", body, got, want)
		}
		if !*freed {
			t.Error("the volume is still held")
		}
	}
}

type broken struct{}

func (broken) Rows(int, int, int, []int16) ([]int16, error) {
	return nil, errors.New("input/output error")
}
func (broken) Close() error { return nil }

func TestTilesReportErrors(t *testing.T) {
	for _, c := range []struct {
		o    tile.Options
		want string
	}{
		{tile.Options{Mode: "random", Patch: cube(8), Body: 1}, "scan p/1: input/output error"},
		{tile.Options{Mode: "grid", Patch: cube(6)}, "scan p/1: patch: 6 along x is not divisible by the model's downsampling 4"},
	} {
		v, freed := scan(cube(32), broken{})
		var got error
		for _, err := range tile.Tiles(v, c.o, 1, cube(4)) {
			got = err
		}
		if got == nil || got.Error() != c.want || !*freed {
			t.Errorf("%v, volume let go: %v; want %s", got, *freed, c.want)
		}
	}
	if n := tile.Count(cube(32), tile.Options{Mode: "grid", Patch: cube(6)}, cube(4)); n != 0 {
		t.Errorf("%d patches of a size that can't be", n)
	}
}

func TestOptionsCheck(t *testing.T) {
	o := tile.Options{Patch: [3]int{256, 256, 128}, Stride: [3]int{192, 192, 192}}
	want := "stride: 192 is larger than patch 128 along z (voxels between tiles would be lost)"
	if err := o.Check(); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	o.Stride[2] = 0
	if err := errors.Join(o.Check(), o.CheckMultiple(cube(4))); err != nil {
		t.Error(err)
	}
	if err := o.CheckMultiple(cube(3)); err == nil || !strings.Contains(err.Error(), "256 along x is not divisible") {
		t.Errorf("got %v", err)
	}
	// A patch as small as the downsampling has no ¾: its tiles lie side by side.
	small := tile.Options{Mode: "grid", Patch: cube(4)}
	if n := tile.Count(cube(16), small, cube(4)); n != 64 {
		t.Errorf("%d tiles, want 4 × 4 × 4", n)
	}
}
