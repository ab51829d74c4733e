package merge

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/volume"
)

// One axis by hand: tiles of 4 at 0 and 2 of a volume of 5, padded to 6. The second is twice too large.
func TestMergeByHand(t *testing.T) {
	g := volume.Grid{Dims: [3]int{5, 1, 1}, Padded: [3]int{6, 1, 1}, Patch: [3]int{4, 1, 1}, N: [3]int{2, 1, 1}, Origins: [3][]int{{0, 2}, {0}, {0}}}
	v, freed := scan("a", g.Dims)
	tiles := [][]float32{{0.5, 0.5, 0, 0}, {1, 1, -2, float32(math.Copysign(0, -1))}}
	got := whole(t, Merge(stream(v, g, tiles, upTo(2)), Options{Window: Linear}, same(g), nil))["a"]
	if want := []float32{0.5, 0.5, 0.25, 0.75, -1}; !slices.Equal(got, want) {
		t.Errorf("%v (want %v)", got, want)
	}
	if !*freed {
		t.Error("the volume is still held")
	}
}

// The bits depend neither on the order, nor on other scans, nor on the workers; and they are close to the blend in float64.
func TestAnyOrderGivesTheSameBits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := draw(t, 20)
		if g.Len() > 1000 {
			t.Skip("too many tiles")
		}
		o := Options{Window: rapid.SampledFrom(windows).Draw(t, "window")}
		a, b := noise(g, 1), noise(g, 2)
		va, freedA := scan("a", g.Dims)
		vb, freedB := scan("b", g.Dims)
		var mixed []*volume.Output
		for i := range g.Len() {
			mixed = append(mixed, output(va, g, i, a[i]), output(vb, g, i, b[i]))
		}
		va.Release()
		vb.Release()
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "order"), 0))
		r.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
		got := whole(t, merge(slices.Values(mixed), o, same(g), nil, rapid.IntRange(1, 4).Draw(t, "workers")))
		if !*freedA || !*freedB {
			t.Fatal("a volume is still held")
		}
		for id, tiles := range map[string][][]float32{"a": a, "b": b} {
			v, _ := scan(id, g.Dims)
			inOrder := whole(t, merge(stream(v, g, tiles, upTo(g.Len())), o, same(g), nil, 1))[id]
			if !equal(got[id], inOrder) {
				t.Fatal("another order gives other bits")
			}
			// 32 units in the last place of a float32 just below full scale are 2^-19.
			bound := min(float64(cover(g))*0x1p-31+0x1p-25+1e-14, 0x1p-19)
			for i, want := range reference(g, o.Window, tiles) {
				if d := math.Abs(float64(inOrder[i]) - want); d > bound {
					t.Fatalf("voxel %d: %v, in float64 %v: off by %g (bound %g)", i, inOrder[i], want, d, bound)
				}
			}
		}
	})
}

// identity cuts a volume as the graph does, and gives the patches as they are.
func identity(t fataler, v *volume.Volume, o tile.Options, multiple [3]int) []*volume.Output {
	var outs []*volume.Output
	s := batch.NewScratch(1)
	for p, err := range tile.Tiles(v, o, 0, multiple) {
		if err != nil {
			t.Fatal(err)
		}
		voxels := make([]float32, p.Size[0]*p.Size[1]*p.Size[2])
		if err := batch.Cut(voxels, p, s); err != nil {
			t.Fatal(err)
		}
		outs = append(outs, &volume.Output{Tag: p.Tag, Volume: p.Volume, Voxels: voxels})
	}
	return outs
}

// What a model leaves alone comes back exactly, clipped to the window: any volume, patch, stride, window function and
// window of at least 2000 HU, in any order.
func TestIdentity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := tile.Options{Mode: tile.ModeGrid}
		var dims, multiple [3]int
		for a := range 3 {
			dims[a] = rapid.IntRange(1, 24).Draw(t, "dims")
			multiple[a] = rapid.SampledFrom([]int{1, 2, 4}).Draw(t, "multiple")
			o.Patch[a] = multiple[a] * rapid.IntRange(1, 5).Draw(t, "patch")
			o.Stride[a] = rapid.IntRange(max(multiple[a], o.Patch[a]/3), o.Patch[a]).Draw(t, "stride")
		}
		if tile.Count(dims, o, multiple) > 1000 {
			t.Skip("too many tiles")
		}
		lo := float64(rapid.IntRange(-20000, 10000).Draw(t, "low"))
		hi := lo + float64(rapid.IntRange(2000, 22767).Draw(t, "width"))
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "voxels"), 0))
		data := make([]int16, dims[0]*dims[1]*dims[2])
		for i := range data {
			data[i] = int16(lo) - 100 + int16(r.IntN(int(hi-lo)+200)) // some outside the window
		}
		v := &volume.Volume{Scan: &volume.Scan{ID: "a"}, Dims: dims, Window: [2]float64{lo, hi}, Slope: 1}
		v.Own(&volume.Memory{Data: data, Dims: dims}, nil)
		outs := identity(t, v, o, multiple)
		r.Shuffle(len(outs), func(i, j int) { outs[i], outs[j] = outs[j], outs[i] })
		grid := func(v *volume.Volume) (volume.Grid, error) {
			g, err := o.Grid(v.Dims, multiple)
			return g, err
		}
		got := whole(t, Merge(slices.Values(outs), Options{Window: rapid.SampledFrom(windows).Draw(t, "window")}, grid, nil))["a"]
		if len(got) != len(data) {
			t.Fatalf("%d voxels (want %d)", len(got), len(data))
		}
		for i, x := range got {
			want := min(max(float64(data[i]), lo), hi)
			if hu := (lo+hi)/2 + (hi-lo)/2*float64(x); math.Round(hu) != want {
				t.Fatalf("voxel %d: %v HU (want %v)", i, hu, want)
			}
		}
	})
}

// Slices leave as soon as they can, and memory stays within what Bytes says for a disorder.
func TestStreaming(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := draw(t, 30)
		if g.Len() > 1000 {
			t.Skip("too many tiles")
		}
		o := Options{Window: rapid.SampledFrom(windows).Draw(t, "window")}
		reorder := rapid.SampledFrom([]int{0, 1, 3, g.Len()}).Draw(t, "reorder")
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "order"), 0))
		late := make([]int, g.Len())
		for i := range late {
			late[i] = i + r.IntN(reorder+1)
		}
		order := upTo(g.Len())
		slices.SortStableFunc(order, func(a, b int) int { return late[a] - late[b] })

		v, _ := scan("a", g.Dims)
		m := &merger{window: o.Window, grid: same(g), workers: 2, open: map[key]*image{}, done: map[key]bool{}}
		tiles := noise(g, 3)
		most, given, made := 0, 0, map[*float32]bool{}
		missing := map[int]bool{}
		for i := range g.Len() {
			missing[i] = true
		}
		for _, i := range order {
			im, err := m.add(output(v, g, i, tiles[i]))
			if err != nil {
				t.Fatal(err)
			}
			held := 0
			for _, b := range im.slices {
				if b != nil {
					held++
					made[&b[0]] = true
				}
			}
			most = max(most, held)
			m.give(im, func(s *volume.Slab, _ error) bool {
				given = s.Z1
				s.Release()
				return true
			})
			delete(missing, i)
			// No slice waits that no missing tile touches.
			want := g.Dims[2]
			for j := range missing {
				z := im.axes[2][g.Place(j)[2]]
				want = min(want, g.Tile(j)[2]+z.lo)
			}
			if given != want {
				t.Fatalf("%d slices given after tile %d, %d are finished", given, i, want)
			}
		}
		slice := int64(4 * g.Dims[0] * g.Dims[1])
		whole := slice * int64(g.Dims[2])
		switch bound := Bytes(g, o, reorder); {
		case int64(most)*slice > bound, bound > whole:
			t.Fatalf("%d slices of %d bytes held, %d bytes said, %d are all", most, slice, bound, whole)
		case int64(len(made))*slice > bound:
			t.Fatalf("%d buffers made of %d bytes, %d bytes said", len(made), slice, bound)
		case reorder == 0 && int64(most)*slice != bound:
			t.Fatalf("in order: %d slices of %d bytes held, %d bytes said", most, slice, bound)
		}
		v.Release()
		m.close()
	})
}

func TestBytesOfACT(t *testing.T) {
	g := mustGrid(t, [3]int{512, 512, 604}, [3]int{256, 256, 128}, [3]int{192, 192, 96})
	for _, c := range []struct{ reorder, slices int }{{0, 128}, {1, 224}, {9, 224}, {10, 320}, {1000, 604}} {
		if got := Bytes(g, Options{Window: Hann}, c.reorder); got > int64(c.slices)<<20 || got < int64(c.slices-4)<<20 {
			t.Errorf("reorder %d: %d MiB (want about %d)", c.reorder, got>>20, c.slices)
		}
	}
}

func TestErrors(t *testing.T) {
	g := mustGrid(t, [3]int{10, 8, 6}, [3]int{4, 4, 4}, [3]int{3, 4, 4}) // 3 × 2 × 2 tiles
	other := g
	other.Dims[0] = 9
	tag := func(i int, at, size string) string {
		return "a epoch 2 tile " + string(rune('0'+i)) + "/12 at " + at + " size " + size
	}
	for _, c := range []struct {
		name string
		poke func(outs []*volume.Output) []*volume.Output
		grid volume.Grid
		want string
	}{
		{"twice", func(o []*volume.Output) []*volume.Output {
			o[7].Release()
			o[7] = output(o[1].Volume, g, 1, o[1].Voxels)
			return o
		}, g, tag(1, "[3 0 0]", "[4 4 4]") + ": arrived twice"},
		{"after its scan", func(o []*volume.Output) []*volume.Output {
			return append(o, output(o[0].Volume, g, 2, o[2].Voxels))
		}, g, tag(2, "[6 0 0]", "[4 4 4]") + ": arrived twice: its scan is finished"},
		{"missing", func(o []*volume.Output) []*volume.Output {
			o[3].Release()
			o[8].Release()
			return slices.Delete(slices.Delete(o, 8, 9), 3, 4)
		}, g, "missing: " + tag(3, "[0 4 0]", "[4 4 4]") + "; " + tag(8, "[6 0 2]", "[4 4 4]")},
		{"no such tile", func(o []*volume.Output) []*volume.Output { o[5].Tile = 12; return o }, g,
			"a epoch 2 tile 12/12 at [6 4 0] size [4 4 4]: foreign: the grid has tiles 0 to 11"},
		{"negative", func(o []*volume.Output) []*volume.Output { o[5].Tile = -1; return o }, g,
			"a epoch 2 tile -1/12 at [6 4 0] size [4 4 4]: foreign: the grid has tiles 0 to 11"},
		{"another grid", func(o []*volume.Output) []*volume.Output { o[5].Tiles = 13; return o }, g,
			"a epoch 2 tile 5/13 at [6 4 0] size [4 4 4]: foreign: the grid has tiles 0 to 11"},
		{"another place", func(o []*volume.Output) []*volume.Output { o[5].Origin[0]--; return o }, g,
			tag(5, "[5 4 0]", "[4 4 4]") + ": foreign: the grid has this tile at [6 4 0]"},
		{"another size", func(o []*volume.Output) []*volume.Output {
			o[5].Size, o[5].Voxels = [3]int{4, 4, 2}, o[5].Voxels[:32]
			return o
		}, g, tag(5, "[6 4 0]", "[4 4 2]") + ": wrong size: the grid's tiles have [4 4 4] voxels"},
		{"too few voxels", func(o []*volume.Output) []*volume.Output { o[5].Voxels = o[5].Voxels[:63]; return o }, g,
			tag(5, "[6 4 0]", "[4 4 4]") + ": wrong size: 63 voxels (want 64)"},
		{"another volume", func(o []*volume.Output) []*volume.Output {
			v, _ := scan("b", g.Dims)
			o[5].Volume.Release()
			o[5].Volume = v
			return o
		}, g, tag(5, "[6 4 0]", "[4 4 4]") + ": foreign: its volume is b epoch 2"},
		{"another epoch", func(o []*volume.Output) []*volume.Output { o[5].Epoch = 3; return o }, g,
			"a epoch 3 tile 5/12 at [6 4 0] size [4 4 4]: foreign: its volume is a epoch 2"},
		{"another window", func(o []*volume.Output) []*volume.Output {
			v, _ := scan("a", g.Dims)
			v.Window[1] = 400
			o[5].Volume.Release()
			o[5].Volume = v
			return o
		}, g, tag(5, "[6 4 0]", "[4 4 4]") + ": foreign: of a volume of [10 8 6] voxels with window [-1000 400], the scan's others are of [10 8 6] with [-1000 1000]"},
		{"NaN", func(o []*volume.Output) []*volume.Output { o[5].Voxels[13] = float32(math.NaN()); return o }, g,
			tag(5, "[6 4 0]", "[4 4 4]") + ": a voxel isn't a finite number (has the model diverged?)"},
		{"Inf", func(o []*volume.Output) []*volume.Output { o[5].Voxels[13] = float32(math.Inf(-1)); return o }, g,
			tag(5, "[6 4 0]", "[4 4 4]") + ": a voxel isn't a finite number (has the model diverged?)"},
		{"grid of another volume", func(o []*volume.Output) []*volume.Output { return o }, other,
			"scan a: grid of [9 8 6] voxels for a volume of [10 8 6]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, freed := scan("a", g.Dims)
			var outs []*volume.Output
			for i, voxels := range noise(g, 1) {
				outs = append(outs, output(v, g, i, voxels))
			}
			outs = c.poke(outs)
			v.Release()
			var got error
			taken := 0
			in := func(yield func(*volume.Output) bool) {
				for _, out := range outs {
					taken++
					if !yield(out) {
						return
					}
				}
			}
			for s, err := range Merge(in, Options{Window: Hann}, same(c.grid), nil) {
				if got = err; err == nil {
					s.Release()
				}
			}
			if got == nil || got.Error() != c.want {
				t.Errorf("got  %v\nwant %s", got, c.want)
			}
			for _, out := range outs[taken:] {
				out.Release()
			}
			if !*freed {
				t.Error("the volume is still held")
			}
		})
	}
}

func TestMissingTilesAreCounted(t *testing.T) {
	g := mustGrid(t, [3]int{40, 1, 1}, [3]int{4, 1, 1}, [3]int{4, 1, 1})
	v, _ := scan("a", g.Dims)
	for _, err := range Merge(stream(v, g, noise(g, 1), []int{9}), Options{Window: Hann}, same(g), nil) {
		if want := "size [4 1 1]; and 1 more of this scan"; !strings.HasSuffix(err.Error(), want) || strings.Count(err.Error(), "tile") != 8 {
			t.Error(err)
		}
	}
}

func TestBadGrids(t *testing.T) {
	good := mustGrid(t, [3]int{10, 8, 6}, [3]int{4, 4, 4}, [3]int{3, 4, 4})
	if err := check(&good, good.Dims); err != nil {
		t.Fatal(err)
	}
	for name, poke := range map[string]func(*volume.Grid){
		"no patch":    func(g *volume.Grid) { g.Patch[1] = 0 },
		"no tiles":    func(g *volume.Grid) { g.N[1], g.Origins[1] = 0, nil },
		"count":       func(g *volume.Grid) { g.N[0] = 2 },
		"low end":     func(g *volume.Grid) { g.Origins[1] = []int{1, 4} },
		"high end":    func(g *volume.Grid) { g.Origins[1] = []int{0, 3} },
		"too small":   func(g *volume.Grid) { g.Padded[1], g.Origins[1] = 7, []int{0, 3} },
		"gap":         func(g *volume.Grid) { g.Origins[0] = []int{0, 1, 6} },
		"twice there": func(g *volume.Grid) { g.N[0], g.Origins[0] = 4, []int{0, 3, 3, 6} },
	} {
		g := good
		poke(&g)
		if check(&g, g.Dims) == nil {
			t.Errorf("%s: %+v is taken", name, g)
		}
		if Bytes(g, Options{Window: Hann}, 0) != 0 {
			t.Errorf("%s: has bytes", name)
		}
	}
}

// A grid that can't be had, or a window that isn't one, names the scan.
func TestNoGrid(t *testing.T) {
	g := mustGrid(t, [3]int{4, 4, 4}, [3]int{4, 4, 4}, [3]int{4, 4, 4})
	none := func(*volume.Volume) (volume.Grid, error) { return volume.Grid{}, errors.New("no grid") }
	for _, c := range []struct {
		o    Options
		grid func(*volume.Volume) (volume.Grid, error)
		want string
	}{
		{Options{Window: Hann}, none, "scan a: no grid"},
		{Options{Window: "tukey"}, same(g), `scan a: window: "tukey" isn't one (want hann, gaussian, linear, crop or constant)`},
	} {
		v, freed := scan("a", g.Dims)
		for _, err := range Merge(stream(v, g, noise(g, 1), upTo(1)), c.o, c.grid, nil) {
			if err == nil || err.Error() != c.want {
				t.Errorf("%v (want %s)", err, c.want)
			}
		}
		if !*freed {
			t.Error("the volume is still held")
		}
	}
}

// However it ends, all is let go: broken off after any number of slabs, or stopped after any number of tiles.
func TestEverythingIsReleased(t *testing.T) {
	g := mustGrid(t, [3]int{8, 8, 12}, [3]int{4, 4, 4}, [3]int{3, 3, 3})
	tiles := noise(g, 1)
	for n := range 13 {
		v, freed := scan("a", g.Dims)
		var held []*volume.Slab
		for s, err := range Merge(stream(v, g, tiles, upTo(g.Len())), Options{Window: Hann}, same(g), nil) {
			if err != nil {
				t.Fatal(err)
			}
			if held = append(held, s); len(held) == n {
				break
			}
		}
		for _, s := range held {
			if *freed {
				t.Fatal("the volume went while a slab referred to it")
			}
			s.Release()
		}
		if !*freed {
			t.Fatalf("broken off after %d slabs: the volume is still held", n)
		}
	}
	for n := range g.Len() + 1 {
		v, freed := scan("a", g.Dims)
		slabs := 0
		for s, err := range Merge(stream(v, g, tiles, upTo(n)), Options{Window: Hann}, same(g), func() bool { return true }) {
			if err != nil {
				t.Fatal(err)
			}
			slabs++
			s.Release()
		}
		if !*freed || (slabs == 12) != (n == g.Len()) {
			t.Fatalf("stopped after %d tiles: %d slabs, volume let go: %v", n, slabs, *freed)
		}
	}
}

// A panic in a worker is one of the caller's goroutine, which can recover it.
func TestPanic(t *testing.T) {
	defer func() {
		if err, ok := recover().(error); !ok || !strings.HasPrefix(err.Error(), "oh") {
			t.Error(err)
		}
	}()
	each(3, 100, func(i int) {
		if i == 50 {
			panic("oh")
		}
	})
	t.Error("no panic")
}

func TestNothingGivesNothing(t *testing.T) {
	for s, err := range Merge(func(func(*volume.Output) bool) {}, Options{Window: Hann}, nil, nil) {
		t.Error(s, err)
	}
}

// broken is Samples that can't be read.
type broken struct{ volume.Memory }

func (*broken) Rows(int, int, int, []int16) ([]int16, error) { return nil, errors.New("torn") }

// A scan that is lost in the middle is let go at once: what comes of it later is dropped, others are whole, nothing is missing.
func TestLostScansAreDropped(t *testing.T) {
	g := mustGrid(t, [3]int{4, 4, 12}, [3]int{4, 4, 4}, [3]int{4, 4, 4})
	for _, after := range []int{0, 1, 2} {
		lost, freed := scan("lost", g.Dims)
		lost.Own(&broken{}, func() { *freed = true })
		good, goodFreed := scan("good", g.Dims)
		tiles := noise(g, 7)
		refs := 0
		in := func(yield func(*volume.Output) bool) {
			defer lost.Release()
			defer good.Release()
			for i := range g.Len() {
				if i == after {
					if _, err := lost.Rows(0, 0, 1, nil); err == nil {
						t.Error("it can be read")
					}
				}
				out := output(lost, g, i, tiles[i])
				refs++
				out.Free = func() { refs-- }
				if !yield(out) || !yield(output(good, g, i, tiles[i])) {
					return
				}
			}
		}
		got := whole(t, Merge(in, Options{Window: Hann}, same(g), nil))
		if len(got["good"]) != 4*4*12 || len(got["lost"]) != 4*4*4*after || refs != 0 || !*freed || !*goodFreed {
			t.Errorf("lost after %d tiles: %d and %d voxels, %d outputs held, freed %v, %v", after, len(got["good"]), len(got["lost"]), refs, *freed, *goodFreed)
		}
	}
}

// The last to come may be the lost one's.
func TestNothingIsMissingOfALostScan(t *testing.T) {
	g := mustGrid(t, [3]int{4, 4, 12}, [3]int{4, 4, 4}, [3]int{4, 4, 4})
	v, _ := scan("lost", g.Dims)
	v.Own(&broken{}, nil)
	in := func(yield func(*volume.Output) bool) {
		defer v.Release()
		if yield(output(v, g, 0, noise(g, 7)[0])) {
			_, _ = v.Rows(0, 0, 1, nil)
		}
	}
	if got := whole(t, Merge(in, Options{Window: Hann}, same(g), nil)); len(got["lost"]) != 4*4*4 {
		t.Errorf("%d voxels", len(got["lost"]))
	}
}

// Merge doesn't keep a lost scan until its end.
func TestALostScanIsLetGo(t *testing.T) {
	g := mustGrid(t, [3]int{4, 4, 12}, [3]int{4, 4, 4}, [3]int{4, 4, 4})
	lost, _ := scan("lost", g.Dims)
	lost.Own(&broken{}, nil)
	good, _ := scan("good", g.Dims)
	tiles := noise(g, 7)
	held := func() (held bool) {
		defer func() { held = recover() == nil }()
		lost.Retain()
		return
	}
	in := func(yield func(*volume.Output) bool) {
		defer good.Release()
		if !yield(output(lost, g, 0, tiles[0])) {
			return
		}
		_, _ = lost.Rows(0, 0, 1, nil)
		lost.Release()
		for i := range g.Len() {
			if !yield(output(good, g, i, tiles[i])) {
				return
			}
			if i == 0 && held() { // asked once: the question takes a reference
				t.Error("it is held")
			}
		}
	}
	whole(t, Merge(in, Options{Window: Hann}, same(g), nil))
}
