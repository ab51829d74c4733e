package checkpoint

import (
	"context"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/flowrun/flowrun/stages/safetensors"
	"github.com/flowrun/flowrun/stages/volume"
	"pgregory.net/rapid"
)

func TestWhatIsSavedIsLoaded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "checkpoints")
	s := open1(t, dir, 1, "psnr")
	want := snap(1500, 31.25)
	want.Metrics["val/odd"], want.Metrics["val/best"] = math.Inf(1), math.Inf(-1)
	path, err := s.Save(t.Context(), want)
	check(t, err)
	if path != filepath.Join(dir, "step-00001500.safetensors") {
		t.Errorf("saved as %s", path)
	}
	check(t, Verify(path))
	got, err := Load(filepath.Join(dir, LastName))
	check(t, err)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	latest, from, skipped, err := open1(t, dir, 1, "psnr").Latest()
	check(t, err)
	if !reflect.DeepEqual(latest, want) || from != path || len(skipped) > 0 {
		t.Errorf("latest: %s, skipped %v", from, skipped)
	}

	info, err := Peek(path)
	check(t, err)
	stat, err := os.Stat(path)
	check(t, err)
	if info.Bytes != stat.Size() || info.Step != 1500 || !info.Checkpoint || len(info.SHA256) != 64 || info.SHA256 == strings.Repeat("0", 64) ||
		info.Tags != 1 || info.Reason != "every" || info.Cursor != want.Cursor || !maps.Equal(info.Metrics, want.Metrics) || !maps.Equal(info.Meta, want.Meta) {
		t.Errorf("peek: %+v", info)
	}
	tensors := []safetensors.Tensor{
		{Name: "encoder.conv_first.conv.weight", DType: "F32", Shape: []int{2, 1, 1, 1, 3}, Bytes: 24},
		{Name: "codebook.N", DType: "F32", Shape: []int{2}, Bytes: 8},
	}
	if !reflect.DeepEqual(info.Tensors, tensors) {
		t.Errorf("tensors %+v", info.Tensors)
	}

	want.Metrics["val/odd"] = math.NaN()
	save(t, s, want)
	got, err = Load(path)
	check(t, err)
	if !math.IsNaN(got.Metrics["val/odd"]) {
		t.Errorf("NaN became %v", got.Metrics["val/odd"])
	}
}

func TestTagsRoundTripInLittleSpace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.IntRange(-1, 1<<40)
		triple := rapid.Custom(func(t *rapid.T) [3]int {
			return [3]int{number.Draw(t, "x"), number.Draw(t, "y"), number.Draw(t, "z")}
		})
		x := snap(1, 30)
		x.Tags = rapid.SliceOf(rapid.Custom(func(t *rapid.T) volume.Tag {
			return volume.Tag{Scan: rapid.SampledFrom([]string{"", "a", "b/ü"}).Draw(t, "scan"), Index: number.Draw(t, "i"),
				Epoch: number.Draw(t, "e"), Tile: number.Draw(t, "tile"), Tiles: number.Draw(t, "tiles"),
				Origin: triple.Draw(t, "origin"), Size: triple.Draw(t, "size"), Seq: number.Draw(t, "seq")}
		})).Draw(t, "tags")
		meta, err := encodeMeta(x)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeMeta(meta)
		if err != nil || !slices.Equal(got.Tags, x.Tags) {
			t.Fatalf("%v, %v", got, err)
		}
	})
	x := snap(1, 30)
	for i := range 100_000 {
		x.Tags = append(x.Tags, volume.Tag{Scan: fmt.Sprintf("patient%03d/series.nii.gz", i%500), Index: i % 500, Tile: i % 54, Tiles: 54,
			Origin: [3]int{192, 192, 96}, Size: [3]int{256, 256, 128}, Seq: i})
	}
	meta, err := encodeMeta(x)
	check(t, err)
	if n := len(meta[stateKey]); n > 6_000_000 {
		t.Errorf("100000 tags take %d bytes", n)
	}
	if _, err := decodeMeta(map[string]string{stateKey: `{"version":1,"tags":{"scans":["a"],"rows":[[1]]}}`}); err == nil ||
		err.Error() != "metadata flowrun: tag 0: scan 1 of 1" {
		t.Errorf("got %v", err)
	}
}

func TestSameSnapshotSameBytes(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	save(t, open1(t, a, 3, "psnr"), snap(7, 30))
	save(t, open1(t, b, 3, "psnr"), snap(7, 30))
	x, err := os.ReadFile(filepath.Join(a, Name(7)))
	check(t, err)
	y, err := os.ReadFile(filepath.Join(b, Name(7)))
	check(t, err)
	if string(x) != string(y) {
		t.Error("two files of one snapshot differ")
	}
}

func TestWriteIsASaveOutsideAStore(t *testing.T) {
	dir := t.TempDir()
	saved, err := open1(t, dir, 1, "psnr").Save(t.Context(), snap(7, 30))
	check(t, err)
	path := filepath.Join(dir, "mine.safetensors")
	for range 2 { // a file that is there is replaced
		n, err := Write(t.Context(), path, snap(7, 30))
		check(t, err)
		want, err := os.ReadFile(saved)
		check(t, err)
		got, err := os.ReadFile(path)
		check(t, err)
		if !slices.Equal(got, want) || n != int64(len(got)) {
			t.Errorf("%d bytes, %d said (want those of Save, %d)", len(got), n, len(want))
		}
	}
	if _, err := Write(t.Context(), filepath.Join(dir, "none", "a.safetensors"), snap(7, 30)); err == nil || !strings.Contains(err.Error(), "a.safetensors: no such file") {
		t.Errorf("into no folder: %v", err)
	}
}

func TestKeepsTheLastTwoAndTheBest(t *testing.T) {
	for _, c := range []struct {
		keep int
		best string
		psnr []float64 // of steps 1, 2, …
		want string
	}{
		{1, "psnr", []float64{30, 33, 31, 32, 30}, "best=2 last=5 2 4 5"},
		{2, "psnr", []float64{30, 33, 31, 32, 30}, "best=2 last=5 2 4 5"},
		{3, "psnr", []float64{30, 33, 31, 32, 30}, "best=2 last=5 2 3 4 5"},
		{2, "mae_hu", []float64{30, 33, 31, 32, 30}, "best=2 last=5 2 4 5"}, // 100 - psnr: lower is better
		{1, "ssim", []float64{30, 33, 31, 32, 30}, "last=5 4 5"},            // which nobody measured
		{1, "psnr", []float64{-1, 30, -1, -1, -1}, "best=2 last=5 2 4 5"},
		{1, "psnr", []float64{-1, -1, -1}, "last=3 2 3"},
		{1, "psnr", []float64{30, 30, 30, 30}, "best=1 last=4 1 3 4"}, // of equals the first
		{1, "psnr", []float64{math.NaN(), 30, math.NaN(), 29}, "best=2 last=4 2 3 4"},
		{1, "psnr", []float64{1}, "best=1 last=1 1"},
		{3, "psnr", nil, ""},
	} {
		dir := t.TempDir()
		for i, psnr := range c.psnr {
			// A store opened anew for each save knows no more than one that stays open: the files are the list.
			save(t, open1(t, dir, c.keep, c.best), snap(i+1, psnr))
		}
		if got := list(t, dir); got != c.want {
			t.Errorf("keep %d of %v by %s: %s, want %s", c.keep, c.psnr, c.best, got, c.want)
		}
	}
}

func TestTheMetricOfEMAWeightsRanksFirst(t *testing.T) {
	o := Options{Best: "psnr"}
	if got, ok := o.score(map[string]float64{"val/psnr": 30, "val/ema_psnr": 29}); got != 29 || !ok {
		t.Errorf("%v %v", got, ok)
	}
	if got, ok := o.score(map[string]float64{"val/psnr": 30}); got != 30 || !ok {
		t.Errorf("%v %v", got, ok)
	}
}

// retain against what its comment says, said another way.
func TestRetain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		steps := rapid.SliceOfNDistinct(rapid.IntRange(0, 100), 1, 12, rapid.ID).Draw(t, "steps")
		slices.Sort(steps)
		var all []ranked
		for _, s := range steps {
			all = append(all, ranked{s, float64(rapid.IntRange(0, 5).Draw(t, "score")), rapid.Bool().Draw(t, "valid"), false, false})
		}
		n := rapid.IntRange(1, 5).Draw(t, "n")
		saved := rapid.SampledFrom(steps).Draw(t, "saved")
		keep, best := retain(all, saved, n, 0)
		for i, r := range all {
			better := 0
			for j, o := range all {
				if o.valid && (o.score > r.score || o.score == r.score && j < i) {
					better++
				}
			}
			want := i >= len(all)-2 || r.step == saved || r.valid && better < n
			if keep[r.step] != want {
				t.Fatalf("step %d kept %v", r.step, keep[r.step])
			}
			if (best == r.step) != (r.valid && better == 0) {
				t.Fatalf("best is %d, step %d has %d better", best, r.step, better)
			}
		}
	})
}

// The state at a step is one state: a stop right after a validation must not lose what was measured.
func TestSavingAStepAgainKeepsItsMetrics(t *testing.T) {
	dir := t.TempDir()
	s := open1(t, dir, 1, "psnr")
	save(t, s, snap(5, 30), snap(5, -1))
	if got := list(t, dir); got != "best=5 last=5 5" {
		t.Error(got)
	}
	save(t, s, snap(5, 31), snap(6, -1))
	info, err := Peek(filepath.Join(dir, BestName))
	check(t, err)
	if info.Metrics["val/psnr"] != 31 {
		t.Errorf("metrics %v", info.Metrics)
	}
	if info, err = Peek(filepath.Join(dir, LastName)); err != nil || info.Metrics != nil {
		t.Errorf("step 6 has metrics %v, %v", info.Metrics, err)
	}
}

func TestOpenSweepsWhatAKilledSaveLeft(t *testing.T) {
	dir := t.TempDir()
	save(t, open1(t, dir, 3, "psnr"), snap(1, 30))
	for _, name := range []string{Name(2) + ".tmp", "last.safetensors.tmp", "best.safetensors.tmp", "mine.tmp", "step-2.safetensors.tmp", "notes.safetensors"} {
		check(t, os.WriteFile(filepath.Join(dir, name), nil, 0o666))
	}
	open1(t, dir, 3, "psnr")
	if got := list(t, dir); got != "best=1 last=1 mine.tmp notes 2.safetensors.tmp 1" && got != "best=1 last=1 mine.tmp notes 1 2.safetensors.tmp" {
		t.Error(got)
	}
}

func TestAFileInTheLinksPlaceIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, BestName), []byte("mine"), 0o666))
	save(t, open1(t, dir, 3, "psnr"), snap(1, 30))
	if b, err := os.ReadFile(filepath.Join(dir, BestName)); err != nil || string(b) != "mine" {
		t.Errorf("%q, %v", b, err)
	}
	if got := list(t, dir); got != "best last=1 1" {
		t.Error(got)
	}
}

func TestDamagedCheckpointsArePassedOverAndStay(t *testing.T) {
	dir := t.TempDir()
	s := open1(t, dir, 1, "psnr")
	save(t, s, snap(1, 33), snap(2, 31), snap(3, 32))
	damage(t, filepath.Join(dir, Name(3)))
	s = open1(t, dir, 1, "psnr")
	got, path, skipped, err := s.Latest()
	check(t, err)
	if got.Step != 2 || filepath.Base(path) != Name(2) || len(skipped) != 1 || !strings.HasPrefix(skipped[0].Error(), filepath.Join(dir, Name(3))+": damaged: ") {
		t.Errorf("latest is step %d, skipped %v", got.Step, skipped)
	}
	// It counts neither as one of the last two nor as one to remove, until a whole file takes its place.
	save(t, s, snap(4, 30))
	if got := list(t, dir); got != "best=1 last=4 1 2 3 4" {
		t.Error(got)
	}
	save(t, s, snap(3, 30))
	if got := list(t, dir); got != "best=1 last=4 1 3 4" {
		t.Error(got)
	}

	for _, step := range []int{1, 3, 4} {
		damage(t, filepath.Join(dir, Name(step)))
	}
	got, _, skipped, err = open1(t, dir, 1, "psnr").Latest()
	if err != nil || got != nil || len(skipped) != 3 || !strings.Contains(skipped[0].Error(), Name(4)) {
		t.Errorf("none is whole: %v, skipped %v, %v", got, skipped, err)
	}
}

func TestAFileUnderAnotherStepsNameIsPassedOver(t *testing.T) {
	dir := t.TempDir()
	s := open1(t, dir, 1, "psnr")
	save(t, s, snap(1, 30))
	check(t, os.Rename(filepath.Join(dir, Name(1)), filepath.Join(dir, Name(9))))
	if got, _, skipped, err := s.Latest(); got != nil || err != nil || len(skipped) != 1 || !strings.HasSuffix(skipped[0].Error(), ": holds step 1") {
		t.Errorf("%v, skipped %v, %v", got, skipped, err)
	}
}

func TestSetAside(t *testing.T) {
	dir := t.TempDir()
	s := open1(t, dir, 3, "psnr")
	save(t, s, snap(1, 30), snap(2, 31), snap(3, 33), snap(4, 32))
	damage(t, filepath.Join(dir, Name(4)))
	moved, err := s.SetAside(2)
	check(t, err)
	want := []string{filepath.Join(dir, Name(3)+".aside"), filepath.Join(dir, Name(4)+".aside")}
	if !slices.Equal(moved, want) {
		t.Errorf("moved %v", moved)
	}
	if got := list(t, dir); got != "best=2 last=2 2 3.safetensors.aside 4.safetensors.aside" {
		t.Error(got)
	}
	if got, _, skipped, err := s.Latest(); err != nil || got.Step != 2 || len(skipped) > 0 {
		t.Errorf("latest %v, skipped %v, %v", got, skipped, err)
	}
	save(t, s, snap(3, 30))
	if moved, err = s.SetAside(2); err != nil || len(moved) != 1 || moved[0] != want[0]+"2" {
		t.Errorf("moved %v, %v", moved, err)
	}
	if moved, err = s.SetAside(2); err != nil || moved != nil {
		t.Errorf("moved %v, %v", moved, err)
	}
}

func TestSaveRefuses(t *testing.T) {
	dir := t.TempDir()
	s := open1(t, dir, 3, "psnr")
	for want, spoil := range map[string]func(*volume.Snapshot){
		`step-00000001.safetensors: metadata "flowrun": the name is taken`:       func(x *volume.Snapshot) { x.Meta[stateKey] = "" },
		`step-00000001.safetensors: metadata "sha256": the name is taken`:        func(x *volume.Snapshot) { x.Meta[safetensors.SealKey] = "" },
		`step-00000001.safetensors: tensor "codebook.N": the name is taken`:      func(x *volume.Snapshot) { x.Arrays[0].Name = "codebook.N" },
		`step-00000001.safetensors: tensor "codebook.N": 1 values for shape [2]`: func(x *volume.Snapshot) { x.Arrays[1].Data = x.Arrays[1].Data[:1] },
		`step--0000001.safetensors: step -1`:                                     func(x *volume.Snapshot) { x.Step = -1 },
	} {
		x := snap(1, 30)
		spoil(x)
		if _, err := s.Save(t.Context(), x); err == nil || err.Error() != filepath.Join(dir, want) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	if got := list(t, dir); got != "" {
		t.Errorf("left behind: %s", got)
	}
}

func TestLoadRefusesWhatSaveDidNotWrite(t *testing.T) {
	foreign := put(t, "format", "pt")
	unsealed := put(t, "flowrun", `{"version":1,"step":3}`)
	newer := put(t, "flowrun", `{"version":2,"step":"three"}`)
	odd := put(t, "flowrun", `{"version":1,"step":-3}`)
	text := put(t, "flowrun", "three")
	for path, want := range map[string]string{
		foreign:  "not a checkpoint: no flowrun entry in the metadata",
		unsealed: "no checksum: not written by flowrun, or damaged",
		newer:    "checkpoint of layout 2 (this flowrun reads up to 1): use a newer flowrun",
		odd:      "metadata flowrun: version 1, step -3, cursor {Epoch:0 Seq:0}",
		text:     "metadata flowrun: invalid character 'h' in literal true (expecting 'r')",
	} {
		for what, err := range map[string]error{"Load": second(Load(path)), "Verify": Verify(path)} {
			if err == nil || err.Error() != path+": "+want {
				t.Errorf("%s: got %v\nwant %s", what, err, want)
			}
		}
	}
	if info, err := Peek(foreign); err != nil || info.Checkpoint || info.Meta["format"] != "pt" || info.SHA256 != "" {
		t.Errorf("peek: %+v, %v", info, err)
	}
	if info, err := Peek(unsealed); err != nil || !info.Checkpoint || info.Step != 3 {
		t.Errorf("peek: %+v, %v", info, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestDisk(t *testing.T) {
	dir := t.TempDir()
	o := Options{Keep: 2, Best: "psnr"}
	s, err := Open(dir, o)
	check(t, err)
	most := 0
	s.disk.Rename = func(from, to string) error {
		files, err := filepath.Glob(filepath.Join(dir, "step-*"))
		most = max(most, len(files))
		if err != nil {
			return err
		}
		return os.Rename(from, to)
	}
	for step := range 20 {
		_, err := s.Save(context.Background(), snap(step, float64(50-step)))
		check(t, err)
	}
	if got := o.Disk(100, false); got != int64(100*most) {
		t.Errorf("Disk says %d files, %d were seen", got/100, most)
	}
}

func ExampleName() {
	fmt.Println(Name(1500), Name(123456789))
	// Output: step-00001500.safetensors step-123456789.safetensors
}

// What a header says of a run is read as it was written, or refused.
func FuzzMeta(f *testing.F) {
	meta, err := encodeMeta(snap(3, 30))
	check(f, err)
	f.Add(meta[stateKey])
	f.Add(`{"version":2}`)
	f.Add(`{"version":1,"metrics":{"a":"+Inf","b":"NaN"},"tags":{"scans":["a"],"rows":[[1]]}}`)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := decodeMeta(map[string]string{stateKey: text, "config": "c"})
		if err != nil {
			return
		}
		if s.Meta["config"] != "c" || len(s.Meta) != 1 {
			t.Fatalf("metadata %q", s.Meta)
		}
		again, err := encodeMeta(s)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeMeta(again)
		if err != nil || got.Step != s.Step || got.Cursor != s.Cursor || got.Reason != s.Reason && utf8.ValidString(s.Reason) ||
			!slices.Equal(got.Tags, s.Tags) || len(got.Metrics) != len(s.Metrics) {
			t.Fatalf("got %+v, %v\nwant %+v", got, err, s)
		}
	})
}

func TestRankingBeginsAnewWithDiscriminators(t *testing.T) {
	list := []ranked{{step: 10, score: 30, valid: true}, {step: 20, score: 31, valid: true}}
	for _, c := range []struct {
		more []ranked
		best int
		keep []int
	}{
		{nil, 20, []int{10, 20}},
		{[]ranked{{step: 30, late: true}}, 20, []int{10, 20, 30}}, // not measured
		{[]ranked{{step: 30, late: true}, {step: 40, score: 28, valid: true, late: true}}, 40, []int{30, 40}},
		{[]ranked{{step: 30, score: 29, valid: true, late: true}, {step: 40, score: 28, valid: true, late: true}, {step: 50, score: 27, valid: true, late: true}}, 30, []int{30, 40, 50}},
	} {
		keep, best := retain(append(slices.Clone(list), c.more...), 10+10*(1+len(c.more)), 2, 0)
		if got := slices.Sorted(maps.Keys(keep)); best != c.best || !slices.Equal(got, c.keep) {
			t.Errorf("%v: best %d of %v (want %d of %v)", c.more, best, got, c.best, c.keep)
		}
	}
}
