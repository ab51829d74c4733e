package integration

import (
	"encoding/csv"
	"fmt"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flowrun/flowrun/stages/checkpoint"
)

// What scripts rely on, by the key's name.
var (
	stepKeys = []string{"step", "epoch", "train/recon_loss", "train/commitment_loss", "train/perplexity", "train/psnr", "lr",
		"voxels_per_second", "bound_by", "train/codebook_usage", "train/codebook_restarts"}
	valKeys = []string{"step", "val/recon_loss", "val/psnr", "val/ssim", "val/perplexity", "val/codebook_usage", "val/psnr_trilinear",
		"val/ema_psnr"}
)

func TestTrains(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	o := p.must("train.yaml", "train.epochs=3")
	if o.stdout != "" || len(o.said()) > 0 {
		t.Errorf("stdout %q, said %q", o.stdout, o.said())
	}
	var event any
	for line := range strings.Lines(o.stderr) {
		p.write("line", line)
		e := p.lines("line")
		if _, err := time.Parse(time.RFC3339, e[0]["time"].(string)); err != nil || e[0]["level"] == nil {
			t.Errorf("%v in %s", err, line)
		}
		event = e[0]["event"]
	}
	if event != "done" {
		t.Errorf("the last line is of %v", event)
	}

	steps, validations := p.steps("run")
	if n := len(steps); n < 30 || len(validations) < n/10 || validations[len(validations)-1].step() != n {
		t.Fatalf("%d steps, %d validations, the last of step %d", n, len(validations), validations[len(validations)-1].step())
	}
	for _, e := range steps {
		has(t, e, stepKeys)
	}
	for _, e := range validations {
		has(t, e, valKeys)
	}
	loss := func(list []entry) (sum float64) {
		for _, e := range list {
			sum += e["train/recon_loss"].(float64)
		}
		return sum / float64(len(list))
	}
	if first, last := loss(steps[:5]), loss(steps[len(steps)-5:]); last > first/2 {
		t.Errorf("the loss went from %g to %g", first, last)
	}

	rows, err := csv.NewReader(strings.NewReader(p.text("run", "metrics.csv"))).ReadAll()
	if err != nil || len(rows) != 1+len(steps)+len(validations) {
		t.Errorf("metrics.csv: %d rows for %d lines, %v", len(rows), len(steps)+len(validations), err)
	}
	pictures, err := filepath.Glob(p.path("run", "samples", "*.png"))
	if err != nil || len(pictures) != len(validations) {
		t.Errorf("%d pictures of %d validations, %v", len(pictures), len(validations), err)
	}
	for _, name := range pictures {
		f, err := os.Open(name)
		p.check(err)
		_, err = png.Decode(f)
		p.check(err)
		p.check(f.Close())
	}
	if n := p.sound("run"); n < 2 || n > 4 {
		t.Errorf("%d checkpoints are kept (want the last two and the best two, which may be the same)", n)
	}
	p.check(checkpoint.Verify(p.path("run", "checkpoints", checkpoint.BestName)))
	done := p.events("run", "done")
	if len(done) != 1 || done[0]["picture"] != "run/samples/"+filepath.Base(pictures[len(pictures)-1]) {
		t.Errorf("done: %v", done)
	}

	// The same command again has nothing to do, and does nothing.
	before := p.text("run", "metrics.jsonl")
	p.must("train.yaml", "train.epochs=3")
	if p.text("run", "metrics.jsonl") != before || len(p.events("run", "done")) != 2 {
		t.Error("a finished run went on")
	}
	// The resolved config is the whole of the run.
	p.must("run/config.yaml", "run.dir=again")
	p.sameRun("run", "again")
	// Quiet is quiet.
	if o := p.must("-q", "train.yaml", "run.dir=quiet", "train.max_steps=2"); o.stderr+o.stdout != "" {
		t.Errorf("stdout %q, stderr %q", o.stdout, o.stderr)
	}
}

func has(t *testing.T, e entry, keys []string) {
	t.Helper()
	for _, k := range keys {
		if e[k] == nil {
			t.Errorf("step %d has no %s: %v", e.step(), k, e)
		}
	}
}

func TestWorkersDoNotChangeTheResult(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	words := []string{"train.yaml", "train.max_steps=16", "model.norm=group"}
	p.must(append(words, "run.dir=one")...)
	p.must(append(words, "run.dir=three", "run.workers=3", "read.ahead=5")...)
	p.sameRun("one", "three")
}

func TestValidationDoesNotChangeTraining(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	words := []string{"train.yaml", "train.max_steps=14"}
	p.must(append(words, "run.dir=often", "train.validate.every=3", "train.validate.patches=0")...)
	p.must(append(words, "run.dir=seldom", "train.validate.every=1000")...)
	p.sameEnd("often", "seldom")
	_, often := p.steps("often")
	_, seldom := p.steps("seldom")
	if len(often) != 5 || len(seldom) != 1 {
		t.Errorf("%d and %d validations", len(often), len(seldom))
	}
}

func TestWarmStart(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.must("train.yaml", "run.dir=old", "train.max_steps=20")
	p.must("train.yaml", "run.dir=new", "train.max_steps=3", "train.init=old/checkpoints/last.safetensors", "tile.patch=[8, 8, 8]", "tile.stride=[8, 8, 8]")
	p.must("train.yaml", "run.dir=cold", "train.max_steps=3", "tile.patch=[8, 8, 8]", "tile.stride=[8, 8, 8]")
	warm, _ := p.steps("new")
	cold, _ := p.steps("cold")
	if a, b := warm[0]["train/recon_loss"].(float64), cold[0]["train/recon_loss"].(float64); a > 0.8*b {
		t.Errorf("the first loss is %g from trained weights, %g from none", a, b)
	}
	if s := p.final("new"); s.Step != 3 {
		t.Errorf("the new run ended with step %d", s.Step)
	}
	p.refused(2, []string{"train.yaml", "run.dir=a", "train.init=none.safetensors"}, "train.init: none.safetensors: no such file")
	p.refused(2, []string{"train.yaml", "run.dir=b", "train.init=old/checkpoints/last.safetensors", "model.hidden=8"}, "train.init: old/checkpoints/last.safetensors: ", "another model's")
	p.refused(2, []string{"train.yaml", "run.dir=c", "train.init=train.yaml"}, "train.init: train.yaml: ")
}

// Nobody has to read what a run says.
func TestClosedPipe(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	ours, theirs, err := os.Pipe()
	p.check(err)
	p.check(ours.Close())
	cmd := exec.Command(flowrun(), "train.yaml", "train.max_steps=4")
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.dir, theirs, theirs
	p.check(cmd.Run())
	if steps, _ := p.steps("run"); len(steps) != 4 || len(p.events("run", "done")) != 1 {
		t.Errorf("%d steps", len(steps))
	}
}

// Two runs may share a cache, at the same time.
func TestSharedCache(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	words := []string{"train.yaml", "train.max_steps=8"}
	p.must(append(words, "run.dir=plain")...)
	var runs []*process
	for i := range 3 {
		runs = append(runs, p.start(append(words, "read.cache=cache", fmt.Sprintf("run.dir=run%d", i))...))
	}
	for i, r := range runs {
		if o := r.wait(); o.code != 0 {
			t.Fatalf("exit %d: %s", o.code, o.said())
		}
		p.sameRun("plain", fmt.Sprintf("run%d", i))
	}
	p.swept("cache")
}

func TestCache(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	words := []string{"train.yaml", "train.max_steps=40"}
	p.must(append(words, "run.dir=plain")...)
	p.must(append(words, "run.dir=cached", "read.cache=cache")...)
	p.sameRun("plain", "cached")
	files, err := os.ReadDir(p.path("cache"))
	p.check(err)
	if len(files) < 7 {
		t.Errorf("%d files in the cache of 7 scans", len(files))
	}
	// A damaged copy is made anew.
	for _, f := range files {
		file, err := os.OpenFile(p.path("cache", f.Name()), os.O_RDWR, 0)
		p.check(err)
		info, err := file.Stat()
		p.check(err)
		_, err = file.WriteAt([]byte{0xaa, 0x55}, info.Size()/2)
		p.check(err)
		p.check(file.Close())
	}
	p.must(append(words, "run.dir=again", "read.cache=cache")...)
	p.sameRun("plain", "again")
	if q := p.lines("again", "quarantine.jsonl"); len(q) > 0 {
		t.Errorf("quarantined: %v", q)
	}
}
