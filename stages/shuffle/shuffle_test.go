package shuffle_test

import (
	"fmt"
	"iter"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/stages/shuffle"
	"github.com/flowrun/flowrun/stages/volume"
)

// stream gives the tiles of scans in order and counts the volumes that are held.
type stream struct {
	epochs [][]int // tiles of each scan in each epoch
	held   int     // volumes now
	given  int     // patches
}

func (s *stream) all() iter.Seq[*volume.Patch] {
	return func(yield func(*volume.Patch) bool) {
		for e, scans := range s.epochs {
			for i, n := range scans {
				if !s.scan(e, i, n, yield) {
					return
				}
			}
		}
	}
}

func (s *stream) scan(epoch, i, n int, yield func(*volume.Patch) bool) bool {
	v := s.volume()
	defer v.Release()
	for k := range n {
		s.given++
		if !yield(patch(v, epoch, i, k, n)) {
			return false
		}
	}
	return true
}

func (s *stream) volume() *volume.Volume {
	s.held++
	return (&volume.Volume{Scan: &volume.Scan{}}).Own(nil, func() { s.held-- })
}

func patch(v *volume.Volume, epoch, scan, tile, tiles int) *volume.Patch {
	return &volume.Patch{Volume: v.Retain(), Tag: volume.Tag{Scan: fmt.Sprint("scan ", scan), Index: scan, Epoch: epoch, Tile: tile, Tiles: tiles}}
}

func run(in iter.Seq[*volume.Patch], volumes int, seed uint64) (tags []volume.Tag) {
	for p, err := range shuffle.Shuffle(in, shuffle.Options{Volumes: volumes}, seed) {
		if err != nil {
			panic(err)
		}
		tags = append(tags, p.Tag)
		p.Release()
	}
	return tags
}

func TestShuffle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &stream{epochs: rapid.SliceOfN(rapid.SliceOfN(rapid.IntRange(1, 6), 0, 8), 0, 3).Draw(t, "epochs")}
		volumes := rapid.IntRange(1, 5).Draw(t, "volumes")
		seed := rapid.Uint64().Draw(t, "seed")
		var want []volume.Tag
		for p := range s.all() {
			want = append(want, p.Tag)
			p.Release()
		}
		var got []volume.Tag
		for p, err := range shuffle.Shuffle(s.all(), shuffle.Options{Volumes: volumes}, seed) {
			if err != nil {
				t.Fatal(err)
			}
			// The window, and the volume of p.
			if s.held > volumes+1 {
				t.Fatalf("%d volumes are held in a window of %d", s.held, volumes)
			}
			got = append(got, p.Tag)
			p.Release()
		}
		if s.held != 0 {
			t.Fatalf("%d volumes are still held", s.held)
		}
		if !slices.IsSortedFunc(got, func(a, b volume.Tag) int { return a.Epoch - b.Epoch }) {
			t.Fatalf("epochs are mixed: %v", got)
		}
		if !slices.Equal(got, run(s.all(), volumes, seed)) {
			t.Fatal("the same input gives another order")
		}
		slices.SortFunc(got, func(a, b volume.Tag) int {
			return 10000*(a.Epoch-b.Epoch) + 100*(a.Index-b.Index) + a.Tile - b.Tile
		})
		if !slices.Equal(got, want) {
			t.Fatalf("%d patches in, %d out", len(want), len(got))
		}
	})
}

func TestShuffleTakesInNoMoreThanItMust(t *testing.T) {
	s := &stream{epochs: [][]int{{}, {3, 3, 3, 3, 3}}} // of epoch 1
	left := map[string]int{}
	for p, err := range shuffle.Shuffle(s.all(), shuffle.Options{Volumes: 2}, 1) {
		if err != nil {
			t.Fatal(err)
		}
		// Each scan that was used up before p let one more in, after the first two.
		used := 0
		for _, n := range left {
			if n == 3 {
				used++
			}
		}
		if want := min(6+3*used, 15); s.given != want {
			t.Errorf("took in %d patches after %d scans were used up, want %d", s.given, used, want)
		}
		left[p.Scan]++
		p.Release()
	}
}

func TestShuffleBrokenOff(t *testing.T) {
	for stop := 1; stop <= 12; stop++ {
		s := &stream{epochs: [][]int{{2, 3}, {4, 2}, {1}}}
		n := 0
		for p, err := range shuffle.Shuffle(s.all(), shuffle.Options{Volumes: 2}, 1) {
			if err != nil {
				t.Fatal(err)
			}
			p.Release()
			if n++; n == stop {
				break
			}
		}
		if n != stop || s.held != 0 {
			t.Errorf("broken off after %d of %d: %d volumes are still held", n, stop, s.held)
		}
	}
}

func TestShuffleOfOneVolumeKeepsScansInOrder(t *testing.T) {
	s := &stream{epochs: [][]int{{5, 5, 5}}}
	tags := run(s.all(), 1, 1)
	shuffled := false
	for i, tag := range tags {
		if tag.Index != i/5 {
			t.Fatalf("%v at %d", tag, i)
		}
		shuffled = shuffled || tag.Tile != i%5
	}
	if !shuffled {
		t.Error("tiles come as they went in")
	}
}

// Scans that come interleaved, as from a shuffle before, are whole when their last tile has come.
func TestShuffleOfInterleavedScans(t *testing.T) {
	s := new(stream)
	interleaved := func(yield func(*volume.Patch) bool) {
		for pair := range 10 {
			a, b := s.volume(), s.volume()
			ok := true
			for k := 0; k < 4 && ok; k++ {
				if ok = yield(patch(a, 0, 2*pair, k, 4)); ok {
					ok = yield(patch(b, 0, 2*pair+1, k, 4))
				}
			}
			a.Release()
			b.Release()
			if !ok {
				return
			}
		}
	}
	n := 0
	for p, err := range shuffle.Shuffle(interleaved, shuffle.Options{Volumes: 2}, 1) {
		if err != nil {
			t.Fatal(err)
		}
		if s.held > 5 {
			t.Fatalf("%d volumes are held in a window of 2 over pairs", s.held)
		}
		p.Release()
		n++
	}
	if n != 80 || s.held != 0 {
		t.Errorf("%d patches (want 80), %d volumes still held", n, s.held)
	}
}

// In a window of n scans two patches in a row are of one scan about once in n times, however long the stream.
func TestShuffleMixes(t *testing.T) {
	scans := make([]int, 60)
	for i := range scans {
		scans[i] = 54
	}
	s := &stream{epochs: [][]int{{1}, scans}}
	for _, volumes := range []int{2, 4, 8} {
		tags := run(s.all(), volumes, 1)[1:]
		same := 0
		for i := 1; i < len(tags); i++ {
			if tags[i].Scan == tags[i-1].Scan {
				same++
			}
		}
		if got, want := float64(same)/float64(len(tags)-1), 1/float64(volumes); got > 1.2*want || got < 0.8*want {
			t.Errorf("window of %d: %.3f of neighbours are of one scan, want about %.3f", volumes, got, want)
		}
	}
}

func TestShuffleDependsOnItsKey(t *testing.T) {
	s := &stream{epochs: [][]int{{20, 20}, {20, 20}}}
	a, b := run(s.all(), 2, 1), run(s.all(), 2, 2)
	if slices.Equal(a, b) {
		t.Error("the seed doesn't matter")
	}
	same := 0
	for i := range 40 {
		if a[i].Index == a[40+i].Index && a[i].Tile == a[40+i].Tile {
			same++
		}
	}
	if same > 10 {
		t.Errorf("%d of 40 places are alike in two epochs", same)
	}
}

func BenchmarkShuffle(b *testing.B) {
	scans := make([]int, 40)
	for i := range scans {
		scans[i] = 54
	}
	s := &stream{epochs: [][]int{scans}}
	b.ReportAllocs()
	for b.Loop() {
		for p, err := range shuffle.Shuffle(s.all(), shuffle.Options{Volumes: 8}, 1) {
			if err != nil {
				b.Fatal(err)
			}
			p.Release()
		}
	}
	b.ReportMetric(float64(b.N)*40*54/b.Elapsed().Seconds(), "patches/s")
}

// A window of patches gives each once, waits for no scan to be whole, and never holds more than it may.
func TestWindowOfPatches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		window, n := rapid.IntRange(1, 9).Draw(t, "window"), rapid.IntRange(0, 40).Draw(t, "patches")
		s := &stream{}
		v := s.volume()
		taken, given, seen := 0, 0, map[int]bool{}
		in := func(yield func(*volume.Patch) bool) {
			for i := range n {
				if taken++; taken-given > window {
					t.Fatalf("holds %d patches", taken-given)
				}
				if !yield(patch(v, 0, i%7, i, 1000)) { // no scan ever is whole
					return
				}
			}
		}
		stop := rapid.IntRange(0, 50).Draw(t, "stop")
		for p, err := range shuffle.Shuffle(in, shuffle.Options{Volumes: 1, Patches: window}, 7) {
			if err != nil || seen[p.Tile] {
				t.Fatal(p.Tag, err)
			}
			seen[p.Tile] = true
			p.Release()
			if given++; given == stop {
				break
			}
		}
		if stop == 0 || stop > n {
			if len(seen) != n {
				t.Fatalf("%d of %d patches", len(seen), n)
			}
		}
		v.Release()
		if s.held != 0 {
			t.Fatalf("%d volumes are held", s.held)
		}
	})
}
