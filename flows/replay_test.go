package flows

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/volume"
)

// errCut ends a process of a history where it was killed.
var errCut = errors.New("killed")

// history is what happens to one run on its way through several processes: the data, and the quarantine that each
// leaves to the next.
type history struct {
	t          rapid.TB
	job        *Job
	scans      []*volume.Scan
	quarantine string
	epochs     int
	trained    map[volume.Tag]int // without Seq
}

// process runs the real graph, up to batches of one, from a cursor, with some of the scans broken. It is killed behind
// n patches; n < 0 lets it end. It returns the tags that it trained.
func (h *history) process(at volume.Cursor, broken map[string]bool, n int) ([]volume.Tag, map[string]int) {
	t := h.t
	scans := make([]*volume.Scan, len(h.scans))
	for i, s := range h.scans {
		c := *s
		if scans[i] = &c; broken[s.ID] {
			c.Digest = "another file"
		}
	}
	d, err := h.job.freeze(scans, nil)
	if err != nil {
		t.Fatal(err)
	}
	q, err := read.OpenQuarantine(h.quarantine)
	if err != nil {
		t.Fatal(err)
	}
	r := &run{job: h.job, data: d, quarantine: q, log: zerolog.Nop(), warned: map[string]bool{}, budget: pipe.NewBudget(1 << 30),
		maker: h.job.maker([3]int{4, 4, 4}), start: at, epochs: h.epochs}
	if r.left, err = h.job.replay(d, q, at); err != nil {
		t.Fatal(err)
	}
	g := pipe.New(context.Background())
	w := &wiring{run: r, g: g}
	for _, p := range h.job.pieces {
		p.wire(w, p)
	}
	var tags []volume.Tag
	pipe.Into(w.batches, "sink", func(_ context.Context, b *volume.Batch) error {
		defer b.Release()
		if len(tags) == n {
			return errCut
		}
		tags = append(tags, b.Tags...)
		return nil
	})
	if err := g.Wait(); err != nil && !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	if used := r.budget.InUse(); used != 0 {
		t.Fatalf("%d bytes of the budget never came back", used)
	}
	for _, tag := range tags {
		tag.Seq = 0
		h.trained[tag]++
	}
	return tags, r.left
}

// cursor is the place behind a tag.
func cursor(t volume.Tag) volume.Cursor { return volume.Cursor{Epoch: t.Epoch, Seq: t.Seq + 1} }

// TestReplay kills and resumes runs in which scans break, at any patch, inside shuffle windows, in any order:
// each patch of a sound scan trains once in every epoch, and a resumed run is the rest of the one before it.
func TestReplay(t *testing.T) {
	_, pool := scanFiles(t, [3]int{4, 4, 4}, [3]int{1, 2, 3}, [3]int{9, 4, 4}, [3]int{5, 9, 4}, [3]int{4, 4, 13}, [3]int{8, 8, 4})
	dir := t.TempDir()
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		upTo := func(name string, from, to int) int { return rapid.IntRange(from, to).Draw(t, name) }
		var b strings.Builder
		fmt.Fprintf(&b, "run: {seed: %d, memory: 1GiB, workers: 2}\nmodel: {downsample: [2, 2, 2]}\nflow:\n", upTo("seed", 0, 1000))
		fmt.Fprintf(&b, "  - read: {scans: [x], bad_share: 1, ahead: %d}\n", upTo("ahead", 1, 3))
		fmt.Fprintf(&b, "  - tile: {mode: %s, patch: [4, 4, 4], stride: [4, 4, 2], per_scan: %d}\n",
			rapid.SampledFrom([]string{"grid", "random"}).Draw(t, "mode"), upTo("per scan", 0, 4))
		for range upTo("shuffles", 0, 2) {
			fmt.Fprintf(&b, "  - shuffle: {volumes: %d}\n", upTo("volumes", 1, 4))
		}
		b.WriteString("  - augment: {flip: [x]}\n  - batch: {size: 1}\n")
		job, err := Load("train.yaml", []byte(b.String()), nil)
		if err != nil {
			t.Fatal(err)
		}
		runs++
		h := &history{t: t, job: job, scans: pool[:upTo("scans", 1, len(pool))], epochs: upTo("epochs", 1, 3),
			quarantine: filepath.Join(dir, fmt.Sprintf("%d.jsonl", runs)), trained: map[volume.Tag]int{}}
		defer func() { _ = os.Remove(h.quarantine) }()

		broken := map[string]bool{}
		at, done := volume.Cursor{}, []volume.Tag{}
		var left map[string]int
		var whole []volume.Tag // all that the last process trained
		for range upTo("crashes", 0, 3) {
			for _, s := range h.scans[1:] { // one stays sound
				if upTo("breaks", 0, 5) == 0 {
					broken[s.ID] = true
				}
			}
			tags, _ := h.process(at, maps.Clone(broken), upTo("patches until the crash", 0, 40))
			if done = append(done, tags...); len(done) > 0 {
				at = cursor(done[len(done)-1])
			}
		}
		begin := at
		whole, left = h.process(at, broken, -1)

		frozen, err := job.freeze(h.scans, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range h.scans {
			for epoch := range h.epochs {
				n, twice := 0, 0
				for tag, k := range h.trained {
					if tag.Scan == s.ID && tag.Epoch == epoch {
						n += k
						twice = max(twice, k)
					}
				}
				if want := frozen.tiles(s); twice > 1 || n > want || n != want && !broken[s.ID] {
					t.Fatalf("scan %s, broken %v, epoch %d: %d of %d patches trained, one %d times", s.ID, broken[s.ID], epoch, n, want, twice)
				}
			}
			rest := 0
			for _, tag := range whole {
				if tag.Scan == s.ID && tag.Epoch == begin.Epoch {
					rest++
				}
			}
			if n, ok := left[s.ID]; ok && n != rest && (rest > n || !broken[s.ID]) {
				t.Fatalf("scan %s had %d patches left in epoch %d, but %d came", s.ID, n, begin.Epoch, rest)
			}
		}

		// Whoever resumes from a checkpoint of the last process sees what that one saw behind it.
		k := upTo("checkpoint", 0, len(whole))
		from := begin
		if k > 0 {
			from = cursor(whole[k-1])
		}
		if again, _ := h.process(from, broken, -1); !slices.Equal(again, whole[k:]) {
			t.Fatalf("from %v on\ngot  %v\nwant %v", from, again, whole[k:])
		}
	})
}

// TestReplayDry: a scan of which nothing is left in the epoch isn't opened again.
func TestReplayDry(t *testing.T) {
	_, scans := scanFiles(t, [3]int{4, 4, 4}, [3]int{8, 4, 4}, [3]int{4, 8, 4}, [3]int{4, 4, 8}, [3]int{8, 8, 4})
	job := mustLoad(t, windowed)
	h := &history{t: t, job: job, scans: scans, epochs: 1, trained: map[volume.Tag]int{}, quarantine: filepath.Join(t.TempDir(), "quarantine.jsonl")}
	tags, _ := h.process(volume.Cursor{}, nil, 8)
	done := map[string]int{}
	for _, tag := range tags {
		done[tag.Scan]++
	}
	broken := map[string]bool{}
	for _, s := range scans {
		broken[s.ID] = done[s.ID] == int(s.Voxels()/64)
	}
	_, left := h.process(cursor(tags[7]), broken, -1)
	for id, b := range broken {
		if b != (left[id] == 0) {
			t.Errorf("%s: %d patches trained, %d left", id, done[id], left[id])
		}
	}
	if _, err := os.Stat(h.quarantine); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("one of %v was opened: %v", broken, err)
	}
}

// windowed is a job whose patches go through a window of two scans.
const windowed = `
run: {memory: 1GiB}
model: {downsample: [2, 2, 2]}
flow: [read: {scans: [x], bad_share: 1}, tile: {mode: grid, patch: [4, 4, 4], stride: [4, 4, 4]}, shuffle: {volumes: 2}, batch: {size: 1}]
`

// TestReplayWindow loses a scan that waited in the shuffle's window at the crash, with none, some or all of its patches
// trained: its places must not close, for the order of what was trained hung on them; not even when it is found to be
// lost only in the next epoch, and the run begins again from the same checkpoint.
func TestReplayWindow(t *testing.T) {
	_, scans := scanFiles(t, [3]int{4, 4, 4}, [3]int{8, 4, 4}, [3]int{4, 8, 4}, [3]int{4, 4, 8}, [3]int{8, 8, 4})
	for seed := range 3 {
		job := mustLoad(t, windowed, fmt.Sprint("run.seed=", seed))
		for _, lost := range scans {
			for n := range 8 {
				h := &history{t: t, job: job, scans: scans, epochs: 2, trained: map[volume.Tag]int{},
					quarantine: filepath.Join(t.TempDir(), "quarantine.jsonl")}
				at := volume.Cursor{}
				if tags, _ := h.process(at, nil, n); n > 0 {
					at = cursor(tags[n-1])
				}
				whole, _ := h.process(at, map[string]bool{lost.ID: true}, -1)
				count := 0
				for tag, k := range h.trained {
					if k != 1 {
						t.Fatalf("seed %d, %s lost after %d patches: %s trained %d times", seed, lost.ID, n, tag, k)
					}
					if tag.Scan != lost.ID {
						count++
					}
				}
				if want := 2 * (1 + 2 + 2 + 2 + 4 - int(lost.Voxels()/64)); count != want {
					t.Fatalf("seed %d, %s lost after %d patches: %d patches of the others trained, want %d", seed, lost.ID, n, count, want)
				}
				if again, _ := h.process(at, nil, -1); !slices.Equal(again, whole) {
					t.Fatalf("seed %d, %s lost after %d patches, once more\ngot  %v\nwant %v", seed, lost.ID, n, again, whole)
				}
			}
		}
	}
}
