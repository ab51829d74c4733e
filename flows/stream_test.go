package flows

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/infer"
	"github.com/flowrun/flowrun/stages/merge"
	"github.com/flowrun/flowrun/stages/metrics"
	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/volume"
)

// slot is Samples that can't be had once they lie more than so many slices below one that was asked for.
type slot struct {
	volume.Memory
	slices int
	top    atomic.Int64 // one above the highest that was asked for
}

func (s *slot) Rows(z, y0, y1 int, buf []int16) ([]int16, error) {
	for top := s.top.Load(); int64(z) >= top && !s.top.CompareAndSwap(top, int64(z)+1); top = s.top.Load() {
	}
	if top := int(s.top.Load()); z < top-s.slices {
		return nil, fmt.Errorf("slice %d is gone: %d are kept below %d", z, s.slices, top)
	}
	return s.Memory.Rows(z, y0, y1, buf)
}

// However slow measure is, and however fast the stages before it, span covers what it wants.
func TestSpanCoversWhatMeasureWants(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dims := [3]int{rapid.IntRange(1, 9).Draw(rt, "x"), rapid.IntRange(1, 9).Draw(rt, "y"), rapid.IntRange(1, 60).Draw(rt, "z")}
		patch := [3]int{4, 4, rapid.IntRange(1, 12).Draw(rt, "patch")}
		stride := [3]int{4, 4, rapid.IntRange(1, patch[2]).Draw(rt, "stride")}
		size := rapid.IntRange(1, 3).Draw(rt, "batch")
		g, err := tile.NewGrid(dims, patch, stride, [3]int{1, 1, 1})
		if err != nil {
			rt.Fatal(err)
		}
		s := &slot{Memory: volume.Memory{Data: make([]int16, dims[0]*dims[1]*dims[2]), Dims: dims}, slices: span(g, batchBuffers*size)}
		v := (&volume.Volume{Scan: &volume.Scan{ID: "a", Dims: dims}, Dims: dims, Window: [2]float64{-1000, 1000}, Slope: 1}).Own(s, nil)
		slow := rapid.IntRange(1, 5).Draw(rt, "slow")
		synctest.Test(t, func(*testing.T) {
			p := pipe.New(context.Background())
			volumes := pipe.From(p, "read", func(_ context.Context, emit func(*volume.Volume) error) error { return emit(v) })
			patches := pipe.Expand(volumes, "tile", func(_ context.Context, v *volume.Volume) iter.Seq2[*volume.Patch, error] {
				return tile.Tiles(v, tile.Options{Mode: tile.ModeGrid, Patch: patch, Stride: stride}, 0, [3]int{1, 1, 1})
			})
			maker := batch.New(batch.Options{Size: size}, patch, batchBuffers)
			maker.Keep, maker.Workers = true, 1
			batches := pipe.Transform(patches, "batch", maker.Batches)
			model := infer.NewIdentity(patch)
			outputs := pipe.Transform(batches, "infer", func(ctx context.Context, in iter.Seq[*volume.Batch]) iter.Seq2[*volume.Output, error] {
				return infer.Blend(ctx, in, model, nil)
			})
			slabs := pipe.Transform(outputs, "merge", func(_ context.Context, in iter.Seq[*volume.Output]) iter.Seq2[*volume.Slab, error] {
				return merge.Merge(in, merge.Options{Window: merge.Hann}, func(*volume.Volume) (volume.Grid, error) { return g, nil }, nil)
			})
			n := 0
			late := func(in iter.Seq[*volume.Slab]) iter.Seq[*volume.Slab] { // all others run as far as they can meanwhile
				return func(yield func(*volume.Slab) bool) {
					for s := range in {
						if n++; n%slow == 0 {
							time.Sleep(time.Hour)
						}
						if !yield(s) {
							return
						}
					}
				}
			}
			pipe.Discard(pipe.Transform(slabs, "measure", func(_ context.Context, in iter.Seq[*volume.Slab]) iter.Seq2[*volume.Slab, error] {
				return metrics.Measure(late(in), &metrics.Study{})
			}), "end")
			if err := p.Wait(); err != nil || n != dims[2] {
				rt.Errorf("%d of %d slices: %v", n, dims[2], err)
			}
		})
	})
}

// tower is a folder of tall scans, some of which are torn: cut, or with another checksum at their end.
func tower(t *testing.T, spoilt ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i, how := range spoilt {
		plain := filepath.Join(dir, "plain")
		writeScan(t, plain, [3]int{12, 10, 90}, func(k int) int16 { return int16((k*7919+i*31)%1900 - 950) })
		b, err := os.ReadFile(plain)
		if err != nil {
			t.Fatal(err)
		}
		var gz bytes.Buffer
		w := gzip.NewWriter(&gz)
		_, err = w.Write(b)
		if err := errors.Join(err, w.Close(), os.Remove(plain)); err != nil {
			t.Fatal(err)
		}
		b = gz.Bytes()
		switch how {
		case "cut":
			b = b[:len(b)/2]
		case "checksum":
			b[len(b)-6] ^= 1
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("s%d.nii.gz", i)), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const ways = `
run: {dir: %q, memory: 4GiB}
flow:
  - read:    {scans: [%q], ahead: 2, bad_share: 0.5}
  - tile:    {patch: [8, 8, 8], stride: [6, 6, 5]}
  - batch:   {size: 2}
  - infer:   {checkpoint: identity}
  - merge:   {mode: blend}
  - measure: {pictures: 0}
  - write:   {dir: %q}
`

// Streamed or whole, the same files are written and the same is measured; a scan that is bad in the middle or at its very end
// leaves nothing behind, and the others go on.
func TestStreamedScansOnTheWayBack(t *testing.T) {
	for _, c := range []struct {
		mode   string
		spoilt []string
	}{
		{"blend", []string{"", "", ""}},
		{"exact", []string{"", "", ""}},
		{"blend", []string{"cut", "", "checksum", ""}},
		{"exact", []string{"", "checksum", "cut", ""}},
	} {
		scans := tower(t, c.spoilt...)
		texts := map[bool]map[string]string{}
		for _, whole := range []bool{false, true} {
			dir := t.TempDir()
			text := fmt.Sprintf(strings.Replace(ways, "blend", c.mode, 1), filepath.Join(dir, "run"), scans, filepath.Join(dir, "out"))
			if c.mode == "exact" {
				text = strings.Replace(text, ", stride: [6, 6, 5]", "", 1)
				text = strings.Replace(text, "  - measure: {pictures: 0}\n", "", 1)
			}
			if whole {
				text = strings.Replace(text, "read:    {", fmt.Sprintf("read:    {cache: %q, ", filepath.Join(dir, "cache")), 1)
			}
			j := mustLoad(t, text)
			listed, err := j.findScans(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if n := j.slices(listed.all[0]); (n == 0) != whole || n > 60 {
				t.Fatalf("%s: %d slices are held", c.mode, n)
			}
			if err := j.Run(t.Context(), nil, UI{Out: io.Discard, Err: io.Discard}); err != nil {
				t.Fatalf("%s, whole %v: %v", c.mode, whole, err)
			}
			texts[whole] = map[string]string{}
			for _, name := range []string{"out", "run"} {
				entries, err := os.ReadDir(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range entries {
					if name == "out" || strings.HasPrefix(e.Name(), "measures.") || e.Name() == "quarantine.jsonl" {
						b, err := os.ReadFile(filepath.Join(dir, name, e.Name()))
						if err != nil {
							t.Fatal(err)
						}
						texts[whole][e.Name()] = string(b)
					}
				}
			}
		}
		bad := 0
		for i, how := range c.spoilt {
			name := fmt.Sprintf("s%d_recon.nii.gz", i)
			if _, ok := texts[false][name]; ok != (how == "") {
				t.Errorf("%s, %q: is %s written: %v", c.mode, how, name, ok)
			}
			if how != "" {
				bad++
			}
		}
		if lines := strings.Count(texts[false]["quarantine.jsonl"], "\n"); lines != bad || len(texts[false]) != len(texts[true]) {
			t.Errorf("%s: %d of %d bad scans set aside; %d files, %d of whole scans", c.mode, lines, bad, len(texts[false]), len(texts[true]))
		}
		for name, text := range texts[false] {
			if name != "quarantine.jsonl" && text != texts[true][name] {
				t.Errorf("%s: %s differs:\n%s\n%s", c.mode, name, text, texts[true][name])
			}
		}
	}
}

// What is too much is said by the run that meets it, in the words of the scans that were.
func TestTooManyAreBadInTheMiddle(t *testing.T) {
	scans := tower(t, "checksum", "checksum", "")
	dir := t.TempDir()
	j := mustLoad(t, fmt.Sprintf(ways, filepath.Join(dir, "run"), scans, filepath.Join(dir, "out")), "read.bad_share=0.2")
	err := j.Run(t.Context(), nil, UI{Out: io.Discard, Err: io.Discard})
	if ExitCode(err) != 3 || !strings.Contains(err.Error(), "2 of 3 scans are bad") || !strings.Contains(err.Error(), "; the last: s1.nii.gz: corrupt: gzip checksum or size differs") {
		t.Errorf("exit %d: %v", ExitCode(err), err)
	}
	for _, e := range must(os.ReadDir(filepath.Join(dir, "out"))) {
		if e.Name() != "s2_recon.nii.gz" {
			t.Errorf("%s is left", e.Name())
		}
	}
}

// Where the only scan is bad, what ends the run says why.
func TestTheOnlyScanIsBad(t *testing.T) {
	dir := t.TempDir()
	j := mustLoad(t, fmt.Sprintf(ways, filepath.Join(dir, "run"), tower(t, "cut"), filepath.Join(dir, "out")))
	err := j.Run(t.Context(), nil, UI{Out: io.Discard, Err: io.Discard})
	if ExitCode(err) != 3 || !strings.Contains(err.Error(), "all 1 scans are bad; the last: s0.nii.gz: truncated: ") {
		t.Errorf("exit %d: %v", ExitCode(err), err)
	}
	if left := must(os.ReadDir(filepath.Join(dir, "out"))); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
}

// Who waits for slices waits for read. In exact mode measure wants what was cut long ago: then a scan is held whole.
func TestWhoCutsAStream(t *testing.T) {
	_, scans := scanFiles(t, [3]int{12, 10, 900})
	exact := strings.NewReplacer("blend", "exact", ", stride: [6, 6, 5]", "").Replace(ways)
	for _, c := range []struct{ text, cutter string }{
		{ways, "batch"},
		{exact, ""},
		{strings.Replace(exact, "  - measure: {pictures: 0}\n", "", 1), "infer"},
	} {
		j := mustLoad(t, fmt.Sprintf(c.text, t.TempDir(), "scans", t.TempDir()))
		if n := j.slices(scans[0]); (n == 0) != (c.cutter == "") {
			t.Errorf("%s: %d slices are held", c.text, n)
		}
		if reader, cutter := j.delivers(); c.cutter != "" && (reader != "read" || cutter != c.cutter) {
			t.Errorf("%s waits for %s, want %s", cutter, reader, c.cutter)
		}
	}
}

// The memory that is asked for doesn't grow with z.
func TestCostIsFlatInZ(t *testing.T) {
	_, scans := scanFiles(t, [3]int{12, 10, 90}, [3]int{12, 10, 900}, [3]int{12, 10, 9})
	j := mustLoad(t, fmt.Sprintf(ways, t.TempDir(), "scans", t.TempDir()))
	a, b, small := j.cost(scans[0]), j.cost(scans[1]), j.cost(scans[2])
	if a != b || small > a || a >= 4<<20+2*12*10*90 {
		t.Errorf("%d bytes for 90 slices, %d for 900, %d for 9", a, b, small)
	}
	if n := mustLoad(t, strings.Replace(fmt.Sprintf(ways, t.TempDir(), "scans", t.TempDir()), "  - batch", "  - shuffle:\n  - batch", 1)).slices(scans[1]); n != 0 {
		t.Errorf("shuffled tiles of a stream of %d slices", n)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
