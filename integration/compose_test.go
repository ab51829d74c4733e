package integration

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

// The stages of flows, by one letter each.
var letters = map[rune]string{
	'r': "read: {scans: [scans]}", 't': "tile: {patch: [16, 16, 8], stride: [12, 12, 8]}", 's': "shuffle: {volumes: 2}",
	'a': "augment: {flip: [x, y], shift_hu: 20}", 'n': "augment: {noise_hu: 20, scale: 0.1}", 'b': "batch: {size: 4}",
	'T': `train: {device: cpu, max_steps: 14, lr: 3e-3, warmup: 2, validate: {scans: ["*0002*"], every: 10}}`, 'c': "checkpoint: {every: 4, keep: 2}",
}

// flow writes a file whose flow is the letters' stages.
func (p *place) flow(stages string) string {
	p.Helper()
	head, _, _ := strings.Cut(tiny, "flow:\n")
	text := strings.Replace(head, "dir: run,", "dir: "+stages+",", 1) + "flow:\n"
	for _, s := range stages {
		text += "  - " + letters[s] + "\n"
	}
	p.write(stages+".yaml", text)
	return stages + ".yaml"
}

func TestFlows(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	for _, stages := range []string{"rtbTc", "rtansbTc", "rtsasbTc", "rtnsabT"} {
		p.must(p.flow(stages))
		if steps, _ := p.steps(stages); len(steps) != 14 {
			t.Errorf("%s: %d steps", stages, len(steps))
		}
		if strings.HasSuffix(stages, "c") != (p.sound(stages) > 0) {
			t.Errorf("%s: %d checkpoints", stages, p.sound(stages))
		}
	}

	// What augment does to a patch doesn't depend on where it stands, nor does the order of the shuffle.
	p.must(p.flow("rtsabTc"))
	p.must(p.flow("rtasbTc"))
	p.sameEnd("rtsabTc", "rtasbTc")
	// Of two augments each has numbers of its own.
	p.must(p.flow("rtaabTc"))
	p.must("rtaabTc.yaml", "run.dir=second", "augment[0].flip=[]", "augment[0].shift_hu=0")
	p.must("rtaabTc.yaml", "run.dir=first", "augment[1].flip=[]", "augment[1].shift_hu=0")
	p.must(p.flow("rtabTc"))
	p.sameEnd("rtabTc", "first")
	if a, b := p.final("first"), p.final("second"); differing(a.Arrays[0].Data, b.Arrays[0].Data) == 0 {
		t.Error("the second augment does to a patch what the first does")
	}

	// Two shuffles, two augments, killed.
	r := p.start("rtsasbTc.yaml", "run.dir=killed")
	r.until(func() bool { return p.reached("killed") >= 6 })
	r.kill()
	p.must("rtsasbTc.yaml", "run.dir=killed")
	p.sameRun("rtsasbTc", "killed")
}

// A flow may end anywhere: it passes over the data once.
func TestFlowsWithoutTraining(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	for _, stages := range []string{"r", "rt", "rts", "rtasb"} {
		p.must(p.flow(stages))
		if done := p.events(stages, "done"); len(done) != 1 {
			t.Errorf("%s: %v", stages, done)
		}
		if _, err := os.Stat(p.path(stages, "metrics.jsonl")); err == nil {
			t.Errorf("%s: has metrics", stages)
		}
	}
	// It did read: what is wrong with a scan's voxels shows.
	p.spoil("phantom-0004.nii.gz")
	p.must("rtasb.yaml", "run.dir=spoilt", "read.bad_share=1")
	if r := p.reasons("spoilt"); len(r) != 1 {
		t.Errorf("quarantined: %v", r)
	}
}

func TestStopWithoutCheckpoints(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.flow("rtbT")
	r := p.start("rtbT.yaml", "train.max_steps=100000", "train.epochs=100000")
	if !r.until(func() bool { return p.reached("rtbT") >= 3 }) {
		t.Fatal(r.stderr.String())
	}
	r.signal(syscall.SIGTERM)
	p.tells(r.wait(), 75, "interrupted; no checkpoint was written: the same command begins anew")
	p.must("rtbT.yaml")
	if steps, _ := p.steps("rtbT"); len(steps) != 14 {
		t.Errorf("%d steps", len(steps))
	}
}

// Scans of one patient are on one side of the split, by a pattern or by a table.
func TestPatients(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	table := "scan,patient\n"
	for i := range 7 {
		ending := ".nii.gz"
		if i == 5 {
			ending = ".nii"
		}
		table += fmt.Sprintf("phantom-%04d%s,p%d\n", i+1, ending, i/3)
	}
	p.write("patients.csv", table)
	for _, group := range []string{"patients.csv#patient", `phantom-000(.)`} {
		p.must("train.yaml", "run.dir="+group[:3], "train.max_steps=1", `train.validate.scans=["*0005*"]`, "train.validate.group="+group)
	}
	held := func(dir string) float64 { return p.events(dir, "start")[0]["held_out_scans"].(float64) }
	if a, b := held("pat"), held("pha"); a != 3 || b != 1 {
		t.Errorf("%g scans are held out with patient p1, %g alone", a, b)
	}
	p.refused(2, []string{"train.yaml", "run.dir=x", "train.validate.group=patients.csv#mrn"}, "train.validate.group: patients.csv: has the columns scan, patient (want scan and mrn)")
	p.write("short.csv", strings.Join(strings.Split(table, "\n")[:5], "\n"))
	p.refused(2, []string{"train.yaml", "run.dir=x", "train.validate.group=short.csv#patient"}, "train.validate.group: short.csv: no row for scan phantom-0005.nii.gz")

	// Lists of files.
	p.write("train.txt", "# good ones\nscans/phantom-0001.nii.gz\n\nscans/phantom-0006.nii\nscans/phantom-0002.nii.gz\n")
	p.write("held.txt", "scans/phantom-0006.nii\n")
	p.must("train.yaml", "run.dir=listed", "train.max_steps=1", "read.scans=train.txt", "train.validate.scans=held.txt")
	if s := p.events("listed", "start")[0]; s["train_scans"].(float64) != 2 || s["held_out_scans"].(float64) != 1 {
		t.Errorf("%v", s)
	}
}
