package batch_test

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/volume"
)

var size = [3]int{4, 3, 2}

// patches gives a patch of each value in HU, with noise where asked, each of a volume of its own, and counts what is held.
func patches(held *int, values []int16, noise func(i int) float64) iter.Seq[*volume.Patch] {
	return func(yield func(*volume.Patch) bool) {
		for i, hu := range values {
			v := made(size, func(int, int, int) int16 { return hu })
			*held++
			m := &volume.Memory{Data: slices.Repeat([]int16{hu}, 24), Dims: size}
			v.Own(m, func() { *held-- })
			p := patch(v, [3]int{}, size, volume.Op{Scale: 1, Noise: noise(i), Key: uint64(i)})
			p.Tile = i
			if !yield(p) {
				return
			}
		}
	}
}

func quiet(int) float64 { return 0 }

func TestBatches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Int16Range(-900, 900), 0, 20).Draw(t, "values")
		noisy := rapid.SliceOfN(rapid.Bool(), 20, 20).Draw(t, "noisy")
		n := rapid.IntRange(1, 5).Draw(t, "size")
		m := batch.New(batch.Options{Size: n}, size, 2)
		m.Workers, m.Noise = rapid.IntRange(1, 3).Draw(t, "workers"), true
		held, i := 0, 0
		noise := func(i int) float64 {
			if noisy[i] {
				return 30
			}
			return 0
		}
		for b, err := range m.Batches(context.Background(), patches(&held, values, noise)) {
			if err != nil {
				t.Fatal(err)
			}
			if held != 0 {
				t.Fatalf("%d volumes are held after their patches were cut", held)
			}
			if want := min(n, len(values)-i); len(b.Tags) != want || len(b.Input) != 24*want || len(b.Target) != 24*want {
				t.Fatalf("a batch of %d, %d and %d voxels; want %d", len(b.Tags), len(b.Input), len(b.Target), want)
			}
			if b.Size != size || b.Window != [2]float64{-1000, 1000} {
				t.Fatalf("size %v, window %v", b.Size, b.Window)
			}
			any := false
			for k, tag := range b.Tags {
				if tag.Tile != i {
					t.Fatalf("tile %d at %d", tag.Tile, i)
				}
				want := float32(values[i]) / 1000
				changed := false
				for j := 24 * k; j < 24*(k+1); j++ {
					changed = changed || b.Input[j] != want
					if b.Target[j] != want {
						t.Fatalf("target %v, want %v", b.Target[j], want)
					}
				}
				if changed != noisy[i] {
					t.Fatalf("patch %d has noise: %v, want %v", i, changed, noisy[i])
				}
				any = any || noisy[i]
				i++
			}
			if one := &b.Input[0] == &b.Target[0]; one == any {
				t.Fatalf("input and target are one: %v, with noise: %v", one, any)
			}
			b.Release()
		}
		if i != len(values) {
			t.Fatalf("%d of %d patches", i, len(values))
		}
	})
}

func TestBatchesWaitForABuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := batch.New(batch.Options{Size: 1}, size, 2)
		out := make(chan *volume.Batch)
		held := 0
		go func() {
			defer close(out)
			for b, err := range m.Batches(t.Context(), patches(&held, make([]int16, 5), quiet)) {
				if err != nil {
					t.Error(err)
					return
				}
				out <- b
			}
		}()
		a, b := <-out, <-out
		time.Sleep(time.Second)
		synctest.Wait()
		select {
		case <-out:
			t.Fatal("a third batch in two buffers")
		default:
		}
		for c := range 3 {
			a.Release()
			next, ok := <-out
			if !ok {
				t.Fatalf("no batch %d", c+2)
			}
			if &next.Input[0] != &a.Input[0] {
				t.Error("the buffer isn't the one that was released")
			}
			a, b = b, next
		}
		a.Release()
		b.Release()
		<-out
	})
}

func TestBatchesEndWithTheirContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("told to")
		m := batch.New(batch.Options{Size: 2}, size, 1)
		var got error
		held, n := 0, 0
		time.AfterFunc(time.Minute, func() { cancel(why) })
		for b, err := range m.Batches(ctx, patches(&held, make([]int16, 5), quiet)) {
			if got = err; b != nil {
				n++ // and isn't released
			}
		}
		if n != 1 || !errors.Is(got, why) || held != 0 {
			t.Errorf("%d batches, then %v; %d volumes held", n, got, held)
		}
	})
}

// A batch that isn't full when the context ends is dropped.
func TestBatchesDropWhatIsLeftAtCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	m := batch.New(batch.Options{Size: 2}, size, 1)
	held := 0
	in := func(yield func(*volume.Patch) bool) {
		patches(&held, make([]int16, 1), quiet)(yield)
		cancel()
	}
	for b, err := range m.Batches(ctx, in) {
		if b != nil || !errors.Is(err, context.Canceled) {
			t.Errorf("%v, %v", b, err)
		}
	}
	// Its buffer is free again.
	for b, err := range m.Batches(t.Context(), patches(&held, make([]int16, 1), quiet)) {
		if err != nil {
			t.Fatal(err)
		}
		b.Release()
	}
	if held != 0 {
		t.Errorf("%d volumes held", held)
	}
}

func TestBatchesBrokenOff(t *testing.T) {
	m := batch.New(batch.Options{Size: 2}, size, 1)
	for range 3 {
		held, n := 0, 0
		for b, err := range m.Batches(t.Context(), patches(&held, make([]int16, 9), quiet)) {
			if err != nil {
				t.Fatal(err)
			}
			b.Release()
			if n++; n == 2 {
				break
			}
		}
		if held != 0 {
			t.Errorf("%d volumes held", held)
		}
	}
}

func TestBatchesReportErrors(t *testing.T) {
	for _, c := range []struct {
		change func(p *volume.Patch)
		want   string
	}{
		{func(p *volume.Patch) { p.Size[2] = 1 }, "a epoch 0 tile 1/1 at [0 0 0] size [4 3 1]: want patches of size [4 3 2]"},
		{func(p *volume.Patch) { p.Volume.Window[0] = -900 }, "window [-900 1000] HU, but the batch began with [-1000 1000]"},
		{func(p *volume.Patch) { p.Ops[0].Noise = 1 }, "has noise, but the maker has no room for a target"},
		{func(p *volume.Patch) { p.Origin[0] = 4 }, "outside the volume"},
	} {
		m := batch.New(batch.Options{Size: 2}, size, 1)
		held := 0
		in := func(yield func(*volume.Patch) bool) {
			for p := range patches(&held, make([]int16, 4), quiet) {
				if p.Tile == 1 {
					c.change(p)
				}
				if !yield(p) {
					return
				}
			}
		}
		for range 2 { // the second time shows that the buffer was given back
			var got error
			for b, err := range m.Batches(t.Context(), in) {
				if got = err; b != nil {
					t.Errorf("%s: a batch of %d", c.want, len(b.Tags))
					b.Release()
				}
			}
			if got == nil || !strings.Contains(got.Error(), c.want) || held != 0 {
				t.Errorf("%v, %d volumes held; want %s", got, held, c.want)
			}
		}
	}
}

func TestReleasedTwice(t *testing.T) {
	m := batch.New(batch.Options{Size: 1}, size, 2)
	held := 0
	for b, err := range m.Batches(t.Context(), patches(&held, make([]int16, 1), quiet)) {
		if err != nil {
			t.Fatal(err)
		}
		b.Release()
		defer func() {
			if recover() == nil {
				t.Error("a buffer was given back twice")
			}
		}()
		b.Release()
	}
}

func TestBytes(t *testing.T) {
	m := batch.New(batch.Options{Size: 4}, [3]int{256, 256, 128}, 3)
	m.Workers = 2
	buffers, scratch := int64(3*4*256*256*128*4), int64(65536*4+2<<20)
	if got := m.Bytes(); got != buffers+scratch {
		t.Errorf("%d bytes, want %d", got, buffers+scratch)
	}
	if m.Noise = true; m.Bytes() != 2*buffers+scratch {
		t.Errorf("%d bytes with noise, want %d", m.Bytes(), 2*buffers+scratch)
	}
}

func TestFrom(t *testing.T) {
	epochs := []int{2, 2, 2, 3, 3, 4}
	for _, c := range []struct {
		at   volume.Cursor
		want []volume.Cursor
	}{
		{volume.Cursor{}, []volume.Cursor{{Epoch: 2, Seq: 0}, {Epoch: 2, Seq: 1}, {Epoch: 2, Seq: 2}, {Epoch: 3, Seq: 0}, {Epoch: 3, Seq: 1}, {Epoch: 4, Seq: 0}}},
		{volume.Cursor{Epoch: 2, Seq: 2}, []volume.Cursor{{Epoch: 2, Seq: 2}, {Epoch: 3, Seq: 0}, {Epoch: 3, Seq: 1}, {Epoch: 4, Seq: 0}}},
		{volume.Cursor{Epoch: 3, Seq: 2}, []volume.Cursor{{Epoch: 4, Seq: 0}}},
		{volume.Cursor{Epoch: 5}, nil},
	} {
		held := 0
		in := func(yield func(*volume.Patch) bool) {
			for p := range patches(&held, make([]int16, len(epochs)), quiet) {
				p.Epoch = epochs[p.Tile]
				if !yield(p) {
					return
				}
			}
		}
		var got []volume.Cursor
		for p, err := range batch.From(in, c.at) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, volume.Cursor{Epoch: p.Epoch, Seq: p.Seq})
			p.Release()
		}
		if !slices.Equal(got, c.want) || held != 0 {
			t.Errorf("from %+v: %v, %d volumes held; want %v", c.at, got, held, c.want)
		}
	}
}

// Patches of a lost scan are dropped where somebody wants to be told; others make whole batches.
func TestBatchesGoOnWithoutLostScans(t *testing.T) {
	torn := errors.New("input/output error")
	run := func(lost func(*volume.Volume) error) (tiles [][]int, held int, err error) {
		m := batch.New(batch.Options{Size: 2}, size, 1)
		m.Lost = lost
		in := func(yield func(*volume.Patch) bool) {
			for p := range patches(&held, []int16{0, 1, 2, 3, 4, 5, 6, 7}, quiet) {
				if slices.Contains([]int{0, 3, 5, 7}, p.Tile) { // the first and the second of a batch, and one alone at the end
					p.Volume.Own(&failing{Memory: volume.Memory{Data: make([]int16, 8*24), Dims: [3]int{4, 3, 16}}}, func() { held-- })
					p.Volume.Dims[2], p.Origin[2] = 16, 3
					if p.Tile != 5 {
						p.Volume.Window[1] = 500 // the batch's is that of the first patch in it
					}
				}
				if !yield(p) {
					return
				}
			}
		}
		for b, e := range m.Batches(t.Context(), in) {
			if err = e; b == nil {
				continue
			}
			var list []int
			for i, tag := range b.Tags {
				list = append(list, tag.Tile)
				if want := float32(tag.Tile) / 1000; b.Input[24*i] != want {
					t.Errorf("tile %d: %v, want %v", tag.Tile, b.Input[24*i], want)
				}
			}
			tiles = append(tiles, list)
			b.Release()
		}
		return tiles, held, err
	}
	told := 0
	tiles, held, err := run(func(v *volume.Volume) error {
		told++
		if v.Lost() == nil {
			t.Error("told of a sound volume")
		}
		return nil
	})
	if err != nil || held != 0 || told != 4 || len(tiles) != 2 || !slices.Equal(slices.Concat(tiles...), []int{1, 2, 4, 6}) {
		t.Errorf("batches %v, told %d times, %d held: %v", tiles, told, held, err)
	}
	if tiles, held, err := run(func(*volume.Volume) error { return torn }); !errors.Is(err, torn) || held != 0 || len(tiles) != 0 {
		t.Errorf("batches %v, %d held: %v", tiles, held, err)
	}
	if _, held, err := run(nil); err == nil || held != 0 || !strings.Contains(err.Error(), "tile 0/1 at [0 0 3]") {
		t.Errorf("%d held: %v", held, err)
	}
}
