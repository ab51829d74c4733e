package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Real scans of every kind train without special care. FLOWRUN_SCANS names a folder of them.
func TestRealScans(t *testing.T) {
	scans := os.Getenv("FLOWRUN_SCANS")
	if scans == "" {
		t.Skip("FLOWRUN_SCANS names no folder of scans")
	}
	scans, err := filepath.Abs(scans)
	if err != nil {
		t.Fatal(err)
	}
	p := newPlace(t)
	words := []string{"train.yaml", "read.scans=" + scans, "read.frame=0", "read.bad_share=1", "train.max_steps=5", "train.epochs=10", "train.validate.scans=[]",
		"tile.patch=[32, 32, 16]", "tile.stride=[32, 32, 16]", "batch.size=2", "train.validate.patches=8"}
	p.must(append(words, "run.dir=run")...)
	steps, validations := p.steps("run")
	if len(steps) != 5 || len(validations) != 1 {
		t.Errorf("%d steps, %d validations", len(steps), len(validations))
	}
	for name, reason := range p.reasons("run") {
		t.Errorf("%s: %s", name, reason)
	}
	for _, e := range p.lines("run", "log.jsonl") {
		if e["warnings"] != nil {
			t.Logf("%v: %v", e["scan"], e["warnings"])
		}
	}
	// Each alone, at its own size.
	files, err := filepath.Glob(filepath.Join(scans, "*.nii*"))
	p.check(err)
	for _, f := range files {
		dir := "run-" + strings.ReplaceAll(filepath.Base(f), ".", "-")
		p.must(append(words, "run.dir="+dir, "read.scans="+f, "train.validate.share=0")...)
		if steps, _ := p.steps(dir); len(steps) != 5 {
			t.Errorf("%s: %d steps", f, len(steps))
		}
		p.must("inspect", f)
	}
	p.must(append(words, "run.dir=resampled", "read.spacing=[3, 3, 4]", "read.cache=cache")...)
	p.must(append(words, "run.dir=again", "read.spacing=[3, 3, 4]", "read.cache=cache")...)
	p.sameRun("resampled", "again")
	// And without a frame, as scans that are 4D.
	p.must(append(words, "run.dir=3d", "read.frame=-1")...)
	for name, reason := range p.reasons("3d") {
		if !strings.Contains(reason, "set frame: 0") {
			t.Errorf("%s: %s", name, reason)
		}
	}
}
