package flows

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

// phantomDir is for phantoms.
var phantomDir string

// phantoms writes three phantoms of 24³ voxels, once for all tests that ask, and returns their folder.
var phantoms = sync.OnceValues(func() (string, error) {
	return phantomDir, Phantoms(context.Background(), phantomDir, PhantomOptions{Count: 3, Size: [3]int{24, 24, 24}, Seed: 1, Noise: 12})
})

func TestMain(m *testing.M) {
	var err error
	if phantomDir, err = os.MkdirTemp("", "flows-test-"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(phantomDir)
	os.Exit(code)
}

// tiny is a job that trains a tiny model on the phantoms: 2 epochs of 3 scans of 5 patches, 10 steps of 3 patches. With
// validated it is 2 epochs of 2 scans, 7 steps, the last of which has 2 patches.
func tiny(t testing.TB, dir string, words ...string) *Job {
	t.Helper()
	scans, err := phantoms()
	if err != nil {
		t.Fatal(err)
	}
	return mustLoad(t, fmt.Sprintf(`
run: {dir: %q, memory: 1GiB, workers: 2}
model: {hidden: 4, downsample: [2, 2, 2], embedding: 4, codes: 16}
flow:
  - read: {scans: [%q]}
  - tile: {patch: [8, 8, 8], per_scan: 5, body: 0.5}
  - shuffle: {volumes: 2}
  - augment: {flip: [x], noise_hu: 5}
  - batch: {size: 3}
  - train: {epochs: 2, lr: 1e-3, warmup: 2, validate: {share: 0, every: 4, patches: 2}}
  - checkpoint: {every: 2, keep: 1}
`, dir, scans), words...)
}

// validated holds one of the phantoms out.
const validated = "train.validate.share=0.1"

// do runs a job and returns its last checkpoint, and sees to it that nothing of the run is left behind.
func do(t testing.TB, ctx context.Context, soft <-chan struct{}, j *Job) (*volume.Snapshot, error) {
	t.Helper()
	before := runtime.NumGoroutine()
	var out, errs bytes.Buffer
	err := j.Run(ctx, soft, UI{Out: &out, Err: &errs})
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines before the run, %d after\n%s", before, runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
		}
	}
	if torn, _ := filepath.Glob(filepath.Join(j.run.Dir, "*", "*.tmp")); len(torn) > 0 {
		t.Errorf("left behind: %v", torn)
	}
	store, e := checkpoint.Open(filepath.Join(j.run.Dir, "checkpoints"), checkpoint.Options{Keep: 1})
	if e != nil {
		return nil, err
	}
	last, _, skipped, e := store.Latest()
	if e != nil || len(skipped) > 0 {
		t.Fatal(e, skipped)
	}
	return last, err
}

// lines are the objects of a file of JSON lines.
func lines(t testing.TB, path string) (list []map[string]any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		var o map[string]any
		if err := json.Unmarshal(line, &o); err != nil {
			t.Fatalf("%s: %v in %s", path, err, line)
		}
		list = append(list, o)
	}
	return list
}

// TestRun trains to the end and looks at all that a run leaves; then once more, for nothing; then for one epoch more.
func TestRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "run")
	last, err := do(t, t.Context(), nil, tiny(t, dir, validated))
	if err != nil || last.Step != 7 || last.Reason != "end" || last.Cursor != (volume.Cursor{Epoch: 1, Seq: 10}) {
		t.Fatalf("%+v, %v", last, err)
	}
	for _, key := range []string{"val/psnr", "val/ema_psnr", "val/psnr_trilinear", "val/ssim", "val/codebook_usage"} {
		if _, ok := last.Metrics[key]; !ok {
			t.Errorf("the last checkpoint has no %s: %v", key, last.Metrics)
		}
	}
	if n := last.Metrics["val/patches"]; n != 2 {
		t.Errorf("%v patches measured", n)
	}
	var steps, validations []float64
	for _, o := range lines(t, filepath.Join(dir, "metrics.jsonl")) {
		if _, ok := o["val/psnr"]; ok {
			validations = append(validations, o["step"].(float64))
		} else {
			steps = append(steps, o["step"].(float64))
		}
	}
	if want := []float64{1, 2, 3, 4, 5, 6, 7}; !slices.Equal(steps, want) || !slices.Equal(validations, []float64{4, 7}) {
		t.Errorf("steps %v, validations %v", steps, validations)
	}
	for _, name := range []string{"config.yaml", "log.jsonl", "metrics.csv", "samples/step-00000004.png", "samples/step-00000007.png", "checkpoints/last.safetensors", "checkpoints/best.safetensors"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	saved := ""
	for _, o := range lines(t, filepath.Join(dir, "log.jsonl")) {
		if o["event"] == "checkpoint" {
			saved += fmt.Sprint(o["step"], o["reason"], " ")
		}
	}
	if want := "2every 4every 6every 7end "; saved != want {
		t.Errorf("saved %s, want %s", saved, want)
	}

	config, err := Load(filepath.Join(dir, "config.yaml"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := do(t, t.Context(), nil, config)
	if err != nil || again.Step != 7 || !reflect.DeepEqual(again.Arrays, last.Arrays) {
		t.Errorf("the same again: step %d, %v", again.Step, err)
	}
	more, err := do(t, t.Context(), nil, tiny(t, dir, validated, "train.epochs=3"))
	if err != nil || more.Step != 11 || more.Cursor != (volume.Cursor{Epoch: 2, Seq: 10}) { // the 7th step had 2 patches, the 11th has one
		t.Errorf("an epoch more: step %d at %v, %v", more.Step, more.Cursor, err)
	}
}

// A run that was stopped in its last validation makes it when it goes on.
func TestLastValidationIsMadeUp(t *testing.T) {
	dir := t.TempDir()
	job := func() *Job { return tiny(t, dir, validated, "train.max_steps=1") }
	want, err := do(t, t.Context(), nil, job())
	if err != nil || len(want.Metrics) == 0 {
		t.Fatal(err, want.Metrics)
	}
	stopped := *want
	stopped.Reason, stopped.Metrics = "stop", nil
	store, err := checkpoint.Open(filepath.Join(dir, "checkpoints"), checkpoint.Options{Keep: 1, Best: "psnr"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Save(t.Context(), &stopped); err != nil {
		t.Fatal(err)
	}
	got, err := do(t, t.Context(), nil, job())
	if err != nil || got.Step != want.Step || !reflect.DeepEqual(got.Metrics, want.Metrics) {
		t.Errorf("%v: step %d, %v, want %v", err, got.Step, got.Metrics, want.Metrics)
	}
}

// TestRunStops stops and resumes runs at moments of all kinds, softly and at once: they end where the run does that
// nobody stopped, bit for bit, whatever the number of workers.
func TestRunStops(t *testing.T) {
	want, err := do(t, t.Context(), nil, tiny(t, filepath.Join(t.TempDir(), "whole"), validated))
	if err != nil {
		t.Fatal(err)
	}
	for seed := range 2 {
		dir := filepath.Join(t.TempDir(), "run")
		r := volume.Rand(uint64(seed))
		soft, hard := 0, 0
		limit := 10 * time.Millisecond
		for n := 0; ; n++ {
			ctx, cancel := context.WithCancel(t.Context())
			stop := make(chan struct{})
			after := time.Duration(r.Int64N(int64(limit)))
			limit += limit / 4 // so that there is an end, soon also where the machine is busy
			timer := time.AfterFunc(after, func() { close(stop) })
			if n%2 == 1 {
				timer.Stop()
				timer = time.AfterFunc(after, cancel)
			}
			got, err := do(t, ctx, stop, tiny(t, dir, validated, fmt.Sprintf("run.workers=%d", 1+r.IntN(3)), fmt.Sprintf("read.ahead=%d", 1+r.IntN(3))))
			timer.Stop()
			cancel()
			if err == nil {
				if got.Step != want.Step || got.Cursor != want.Cursor || !reflect.DeepEqual(got.Arrays, want.Arrays) || !reflect.DeepEqual(got.Metrics, want.Metrics) {
					t.Errorf("seed %d: after %d soft and %d hard stops the run ends otherwise: step %d, %v", seed, soft, hard, got.Step, got.Metrics)
				}
				break
			}
			if ExitCode(err) != ExitInterrupted {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if n%2 == 1 {
				hard++
			} else {
				soft++
			}
		}
		if soft == 0 || hard == 0 {
			t.Errorf("seed %d: %d soft and %d hard stops", seed, soft, hard)
		}
	}
}

// TestRunFails has each stage fail that can: the error says which and why, its exit code is right, what was saved before
// is whole, and the run goes on from there once the fault is gone.
func TestRunFails(t *testing.T) {
	scans := func(t *testing.T) string { // a copy to break
		from, err := phantoms()
		if err != nil {
			t.Fatal(err)
		}
		to := t.TempDir()
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
		return to
	}
	truncate := func(t *testing.T, path string) {
		if err := os.Truncate(path, 400); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("no scan can be read", func(t *testing.T) {
		dir, data := t.TempDir(), scans(t)
		j := tiny(t, dir, "read.scans="+data, "read.bad_share=1")
		truncated, err := filepath.Glob(filepath.Join(data, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range truncated {
			truncate(t, path)
		}
		_, err = do(t, t.Context(), nil, j)
		if ExitCode(err) != ExitData || !strings.Contains(err.Error(), "read.scans: none of 3 files can be used") {
			t.Error(err)
		}
		log := lines(t, filepath.Join(dir, "log.jsonl"))
		if end := log[len(log)-1]; end["event"] != "failed" || end["exit"] != float64(ExitData) || !strings.Contains(end["error"].(string), "none of 3 files") {
			t.Errorf("the log ends with %v", end)
		}
	})
	t.Run("every scan breaks", func(t *testing.T) {
		dir, data := t.TempDir(), scans(t)
		j := tiny(t, dir, "read.scans="+data, "read.bad_share=1", "shuffle.volumes=1", "train.max_steps=1")
		if _, err := do(t, t.Context(), nil, j); err != nil {
			t.Fatal(err)
		}
		paths, _ := filepath.Glob(filepath.Join(data, "*"))
		for _, path := range paths {
			truncate(t, path)
		}
		last, err := do(t, t.Context(), nil, tiny(t, dir, "read.scans="+data, "read.bad_share=1", "shuffle.volumes=1"))
		if ExitCode(err) != ExitData || !strings.Contains(err.Error(), ": all 3 training scans are bad; the last: ") || !strings.Contains(err.Error(), "; see "+dir) || last.Step != 1 {
			t.Error(err)
		}
		if q := lines(t, filepath.Join(dir, "quarantine.jsonl")); len(q) != 2 || !strings.Contains(q[0]["reason"].(string), "truncated: 400 of 28000 bytes") {
			t.Errorf("quarantine %v", q)
		}
	})
	t.Run("too many scans break", func(t *testing.T) {
		dir, data := t.TempDir(), scans(t)
		if _, err := do(t, t.Context(), nil, tiny(t, dir, "read.scans="+data, "train.max_steps=1")); err != nil {
			t.Fatal(err)
		}
		paths, _ := filepath.Glob(filepath.Join(data, "*"))
		for _, path := range paths {
			truncate(t, path)
		}
		_, err := do(t, t.Context(), nil, tiny(t, dir, "read.scans="+data))
		if ExitCode(err) != ExitData || !strings.Contains(err.Error(), "2 of 3 scans are bad, more than bad_share 0.1 allows") {
			t.Error(err)
		}
	})
	t.Run("too many scans are away for a while", func(t *testing.T) {
		dir, data, away := t.TempDir(), scans(t), t.TempDir()
		words := []string{"read.scans=" + data, "read.bad_share=0"}
		if _, err := do(t, t.Context(), nil, tiny(t, dir, append(words, "train.max_steps=1")...)); err != nil {
			t.Fatal(err)
		}
		names := []string{"phantom-0001.nii", "phantom-0003.nii"}
		for _, name := range names {
			must(0, os.Rename(filepath.Join(data, name), filepath.Join(away, name)))
		}
		if _, err := do(t, t.Context(), nil, tiny(t, dir, words...)); ExitCode(err) != ExitData || !strings.Contains(err.Error(), "1 of 3 scans are bad, more than bad_share 0 allows") {
			t.Error(err)
		}
		for _, name := range names {
			must(0, os.Rename(filepath.Join(away, name), filepath.Join(data, name)))
		}
		last, err := do(t, t.Context(), nil, tiny(t, dir, words...))
		if err != nil || last.Reason != "end" || last.Cursor != (volume.Cursor{Epoch: 1, Seq: 15}) {
			t.Errorf("with all of them again: %v, %v", last.Cursor, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "quarantine.jsonl")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("some are in quarantine: %v", err)
		}
	})
	t.Run("one scan breaks", func(t *testing.T) {
		dir, data := t.TempDir(), scans(t)
		words := []string{"read.scans=" + data, "read.bad_share=0.5"}
		if _, err := do(t, t.Context(), nil, tiny(t, dir, append(words, "train.max_steps=1")...)); err != nil {
			t.Fatal(err)
		}
		truncate(t, filepath.Join(data, "phantom-0002.nii"))
		last, err := do(t, t.Context(), nil, tiny(t, dir, words...))
		if err != nil || last.Reason != "end" || last.Cursor != (volume.Cursor{Epoch: 1, Seq: 10}) {
			t.Errorf("%v, %v", last.Cursor, err)
		}
	})
	t.Run("the held-out scan breaks", func(t *testing.T) {
		dir, data := t.TempDir(), scans(t)
		words := []string{"read.scans=" + data, "read.bad_share=0.5", "train.validate.scans=[phantom-0003.nii]", "train.validate.every=2"}
		if _, err := do(t, t.Context(), nil, tiny(t, dir, append(words, "train.max_steps=1")...)); err != nil {
			t.Fatal(err)
		}
		truncate(t, filepath.Join(data, "phantom-0003.nii"))
		last, err := do(t, t.Context(), nil, tiny(t, dir, words...))
		if err != nil || last.Reason != "end" || last.Metrics != nil {
			t.Errorf("%v at step %d, %v", err, last.Step, last.Metrics)
		}
	})
	t.Run("the checkpoints' folder goes", func(t *testing.T) {
		dir := t.TempDir()
		j := tiny(t, dir, "checkpoint.every=1", "train.epochs=500")
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			folder := filepath.Join(dir, "checkpoints")
			for {
				if _, err := os.Stat(filepath.Join(folder, checkpoint.LastName)); err == nil {
					for os.RemoveAll(folder) != nil { // a checkpoint may be coming in
					}
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
		err := j.Run(t.Context(), nil, UI{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}})
		<-gone
		if ExitCode(err) != ExitFailed || !strings.HasPrefix(err.Error(), "checkpoint: "+filepath.Join(dir, "checkpoints", "step-")) || !strings.HasSuffix(err.Error(), ": no such file or directory") {
			t.Error(err)
		}
	})
	t.Run("a validation finds the weights broken", func(t *testing.T) {
		dir := t.TempDir()
		if _, err := do(t, t.Context(), nil, tiny(t, dir, validated, "train.max_steps=3")); err != nil {
			t.Fatal(err)
		}
		last, err := do(t, t.Context(), nil, tiny(t, dir, validated, "train.validate.every=4", "train.lr=1e30", "train.clip=0", "checkpoint.every=4"))
		if ExitCode(err) != ExitDiverged || last.Step != 3 || !strings.HasPrefix(err.Error(), "train: validate: step 4 diverged: ") {
			t.Errorf("%v, kept step %d", err, last.Step)
		}
	})
	t.Run("the loss diverges", func(t *testing.T) {
		dir := t.TempDir()
		if _, err := do(t, t.Context(), nil, tiny(t, dir, "train.max_steps=3")); err != nil {
			t.Fatal(err)
		}
		last, err := do(t, t.Context(), nil, tiny(t, dir, "train.lr=1e30", "train.clip=0", "checkpoint.every=100"))
		diverged, ok := errors.AsType[*train.DivergedError](err)
		if !ok || ExitCode(err) != ExitDiverged || diverged.Step != 5 || last.Step != 4 && last.Step != 3 {
			t.Fatalf("%v", err)
		}
		if !strings.HasPrefix(err.Error(), "train: step 5 diverged on phantom-0") || strings.Count(err.Error(), "step ") > 1 {
			t.Error(err)
		}
		// What was kept goes on with a learning rate that it can stand.
		if last, err = do(t, t.Context(), nil, tiny(t, dir, "run.resume="+filepath.Join(dir, "checkpoints", checkpoint.Name(3)))); err != nil || last.Step != 10 {
			t.Error(err)
		}
	})
}

// TestRunResume is about run.resume and what it refuses.
func TestRunResume(t *testing.T) {
	dir := t.TempDir()
	if last, err := do(t, t.Context(), nil, tiny(t, dir, "train.max_steps=4")); err != nil || last.Step != 4 {
		t.Fatal(err)
	}
	for _, c := range []struct {
		words []string
		code  int
		want  string // part of the error
	}{
		{[]string{"run.resume=never"}, ExitUsage, "run.resume: never, but " + dir + " holds checkpoints up to step 4"},
		{[]string{"run.resume=none.safetensors"}, ExitUsage, "run.resume: none.safetensors: no such checkpoint"},
		{[]string{"run.seed=9"}, ExitUsage, "run.seed: is 9, but "},
		{[]string{"model.hidden=6"}, ExitUsage, "model.hidden: is 6, but "},
		{[]string{"batch.size=2"}, ExitUsage, "batch.size: is 2, but "},
		{[]string{"train.init=none.safetensors", "run.dir=" + t.TempDir()}, ExitUsage, "train.init: "},
		{[]string{"tile.patch=[64,64,64]", "run.memory=80MiB", "run.dir=" + t.TempDir()}, ExitUsage, "tile.patch: [64, 64, 64]: memory: "},
	} {
		_, err := do(t, t.Context(), nil, tiny(t, dir, c.words...))
		if ExitCode(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %s", c.words, err, c.want)
		}
	}
	// From an earlier checkpoint, the later one is set aside.
	from := filepath.Join(dir, "checkpoints", checkpoint.Name(2))
	last, err := do(t, t.Context(), nil, tiny(t, dir, "run.resume="+from))
	if err != nil || last.Step != 10 {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "checkpoints", checkpoint.Name(4)+".aside")); err != nil {
		t.Error(err)
	}
	// What was held out when the run began stays so, whatever the table of patients says by now.
	table, held := filepath.Join(t.TempDir(), "patients.csv"), t.TempDir()
	words := []string{"run.dir=" + held, "train.validate.share=0.1", "train.validate.group=" + table + "#patient", "train.validate.every=1"}
	patients := []string{"a", "b", "c"}
	for round := range 3 {
		text := "scan,patient\n"
		for i, p := range patients {
			text += fmt.Sprintf("phantom-%04d.nii,%s\n", i+1, p)
		}
		if err := os.WriteFile(table, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		last, err := do(t, t.Context(), nil, tiny(t, held, append(words, fmt.Sprint("train.max_steps=", round+1))...))
		if err != nil {
			t.Fatal(err)
		}
		if got := last.Meta["held"]; got != `["phantom-0002.nii"]` {
			t.Errorf("after step %d, %s is held out", last.Step, got)
		}
		patients = append(patients[1:], patients[0])
	}
	// Weights taken over by another run begin at step 0.
	other, err := do(t, t.Context(), nil, tiny(t, t.TempDir(), "run.seed=5", "train.max_steps=2", "train.init="+filepath.Join(dir, "checkpoints", "last.safetensors")))
	if err != nil || other.Step != 2 {
		t.Fatal(err)
	}
}

// TestRunTwice: one folder is for one run at a time.
func TestRunTwice(t *testing.T) {
	dir := t.TempDir()
	stop, ended := make(chan struct{}), make(chan error)
	first := tiny(t, dir, "train.epochs=1000000")
	go func() { ended <- first.Run(t.Context(), stop, UI{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}}) }()
	for {
		if info, err := os.Stat(filepath.Join(dir, "metrics.jsonl")); err == nil && info.Size() > 0 {
			break // a step was taken
		}
		time.Sleep(time.Millisecond)
	}
	second := tiny(t, dir)
	err := second.Run(t.Context(), nil, UI{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}})
	if ExitCode(err) != ExitUsage || !strings.Contains(err.Error(), "is running in "+dir) {
		t.Error(err)
	}
	close(stop)
	if err := <-ended; !errors.Is(err, ErrInterrupted) || !strings.Contains(err.Error(), "the last checkpoint is "+dir) {
		t.Error(err)
	}
}

// TestRunWithoutTraining runs shorter flows: they go through the scans once, and set aside what can't be read.
func TestRunWithoutTraining(t *testing.T) {
	data, _ := scanFiles(t, [3]int{8, 8, 8}, [3]int{4, 5, 6}, [3]int{9, 9, 9})
	for _, flow := range []string{"", ", tile: {patch: [4, 4, 4]}", ", tile: {patch: [4, 4, 4]}, shuffle", ", tile: {patch: [4, 4, 4]}, batch: {size: 3}"} {
		dir := t.TempDir()
		text := fmt.Sprintf("run: {dir: %q}\nmodel: {downsample: [2, 2, 2]}\nflow: [read: {scans: [%q], bad_share: 0.5}%s]", dir, data, flow)
		if _, err := do(t, t.Context(), nil, mustLoad(t, text)); err != nil {
			t.Errorf("%s: %v", flow, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "quarantine.jsonl")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: quarantine of sound scans: %v", flow, err)
		}
	}
	if err := os.Truncate(filepath.Join(data, "s1.nii"), 360); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	text := fmt.Sprintf("run: {dir: %q}\nflow: [read: {scans: [%q], bad_share: 0.5}]", dir, data)
	if _, err := do(t, t.Context(), nil, mustLoad(t, text)); err != nil {
		t.Error(err)
	}
	if q := lines(t, filepath.Join(dir, "quarantine.jsonl")); len(q) != 1 || q[0]["scan"] != "s1.nii" {
		t.Errorf("quarantine %v", q)
	}
}

// TestRunNowhere: a folder that can't be made is a mistake in the configuration.
func TestRunNowhere(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := do(t, t.Context(), nil, tiny(t, filepath.Join(file, "run")))
	if ExitCode(err) != ExitUsage || !strings.Contains(err.Error(), "run.dir: ") {
		t.Error(err)
	}
}

// Who stops a run before it has begun is told so.
func TestStoppedBeforeItBegins(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := do(t, ctx, nil, tiny(t, t.TempDir())); !errors.Is(err, ErrInterrupted) || !strings.Contains(err.Error(), "before it began") {
		t.Error(err)
	}
}
