package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/checkpoint"
)

// Each mistake ends with one line that names the key, the value and the file or line, and says what to do.
func TestMistakes(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.check(os.Mkdir(p.path("empty"), 0o777))
	p.check(os.Mkdir(p.path("other"), 0o777))
	p.write("other/notes.md", "no scans here")
	p.write("list.txt", "scans/gone.nii\n")
	flow := func(name, old, new string) string {
		if !strings.Contains(tiny, old) {
			t.Fatalf("%q isn't in the file", old)
		}
		p.write(name, strings.Replace(tiny, old, new, 1))
		return name
	}
	for _, c := range []struct {
		code  int
		args  string
		words []string
	}{
		// Scans.
		{3, "train.yaml read.scans=missing", []string{"read.scans: missing: no such file or folder", "want a folder"}},
		{3, "train.yaml read.scans=missing/*.nii", []string{"read.scans: missing/*.nii: no such folder: missing"}},
		{3, "train.yaml read.scans=scans/*.dcm", []string{"read.scans: scans/*.dcm: no file matches"}},
		{3, "train.yaml read.scans=empty", []string{"read.scans: empty: the folder is empty", ".nii.gz"}},
		{3, "train.yaml read.scans=other", []string{"read.scans: other: no .nii"}},
		{3, "train.yaml read.scans=list.txt", []string{"scans/gone.nii", "no such file"}},
		{3, "train.yaml read.cache=train.yaml/cache", []string{"read.cache: train.yaml/cache: not a directory"}},
		// Folders and files.
		{2, "train.yaml run.dir=train.yaml/run", []string{"run.dir: train.yaml/run: not a directory", "choose a folder that can be written to"}},
		{2, "trian.yaml", []string{"trian.yaml: no such file; did you mean train.yaml?"}},
		{2, "scans", []string{"scans: is a directory", "want a .yaml file"}},
		{2, "train.yaml train.validate.scans=[nobody*]", []string{"train.validate.scans: none of the 7 scans matches nobody*", "phantom-0001"}},
		{2, "train.yaml train.validate.scans=[phantom*]", []string{"train.validate: all 7 scans are held out"}},
		{2, "train.yaml train.validate.group=none.csv#patient", []string{"train.validate.group: ", "none.csv", "no such file"}},
		{2, "train.yaml train.validate.group=patient(\\d+)", []string{"train.validate.group: ", "doesn't match scans/phantom-0001"}},
		{2, "train.yaml train.validate.group=(", []string{"train.validate.group", "missing closing )"}},
		// Memory.
		{2, "train.yaml run.memory=10MiB", []string{"run.memory: too little", "phantom-", "raise run.memory"}},
		{2, "train.yaml model.hidden=16 tile.patch=[32,32,16] run.memory=20MiB", []string{"train.yaml: tile.patch: [32, 32, 16]: memory: the model needs", "would fit"}},
		// Keys that don't fit one another, the model or the machine.
		{2, "train.yaml tile.stride=[20,16,8]", []string{"tile.stride=[20,16,8]: 20 is larger than patch 16 along x"}},
		{2, "train.yaml tile.patch=[15,16,8]", []string{"tile.patch=[15,16,8]: 15 along x is not a multiple", "14 and 16"}},
		{2, "train.yaml train.micro_batch=4", []string{"train.micro_batch=4: 4 is more than batch.size 3"}},
		{2, "train.yaml augment.rotate90=true tile.patch=[16,8,8] tile.stride=[8,8,8]", []string{"augment.rotate90=true: patch 16 × 8 is not square"}},
		{2, "train.yaml train.device=gpu", []string{`train.device=gpu: unknown device "gpu"`, "auto, cpu or cuda:N"}},
		{2, "train.yaml train.device=cuda:0", []string{"train.device=cuda:0: ", "CUDA", "set it to cpu or auto"}},
		{2, "train.yaml model.norm=group model.groups=3", []string{"model.groups=3: 3 don't divide the 4 channels"}},
		{2, "train.yaml read.window_hu=[100,-100]", []string{"read.window_hu=[100,-100]", "low < high"}},
		// Keys that aren't, values that can't be.
		{2, "train.yaml train.lrr=1", []string{`train.lrr=1: unknown key; did you mean "lr"?`}},
		{2, "train.yaml trian.lr=1", []string{"trian.lr=1", `did you mean "train.lr"?`}},
		{2, "train.yaml train.lr=fast", []string{`train.lr=fast: want a number, got "fast"`}},
		{2, "train.yaml read.bad_share=2", []string{"read.bad_share=2: want 0 to 1, got 2"}},
		{2, "train.yaml tile.mode=spiral", []string{"tile.mode=spiral", "random", "grid"}},
		{2, "train.yaml lr", []string{"lr: want key=value words"}},
		{2, flow("key.yaml", "lr: 3e-3", "learning_rate: 3e-3"), []string{"key.yaml:9: ", "learning_rate", "unknown key"}},
		{2, flow("type.yaml", "size: 3", "size: three"), []string{"type.yaml:8: ", "size", `"three"`}},
		{2, flow("twice.yaml", "epochs: 2", "epochs: 2, epochs: 3"), []string{"twice.yaml:9: ", "epochs"}},
		{2, flow("stage.yaml", "shuffle:", "shufle:"), []string{`stage.yaml:7: `, "shufle: unknown stage", `did you mean "shuffle"?`}},
		{2, flow("yaml.yaml", "{dir: run,", "{dir run"), []string{"yaml.yaml:"}},
		// Neighbours that don't meet.
		{2, flow("nobatch.yaml", "  - batch:      {size: 3}\n", ""), []string{"nobatch.yaml:8: train takes Batch, but shuffle (line 7) gives Patch"}},
		{2, flow("noread.yaml", "  - read:       {scans: [scans], bad_share: 0.5}\n", ""), []string{"noread.yaml:4: the flow begins with tile, which takes Volume"}},
		{2, flow("late.yaml", "  - batch:      {size: 3}\n", "  - batch:      {size: 3}\n  - shuffle:    {volumes: 2}\n"), []string{"late.yaml:9: shuffle takes Patch, but batch (line 8) gives Batch"}},
		{2, flow("reread.yaml", "  - batch:", "  - read: {scans: [scans]}\n  - batch:"), []string{"reread.yaml:8: ", "read", "only"}},
	} {
		p.refused(c.code, strings.Fields(c.args), c.words...)
	}
	for _, name := range []string{"run/metrics.jsonl", "run/checkpoints/last.safetensors"} {
		if _, err := os.Lstat(p.path(name)); err == nil {
			t.Errorf("a refused run left %s", name)
		}
	}
	if os.Getuid() != 0 {
		p.check(os.Mkdir(p.path("locked"), 0o000))
		p.refused(3, []string{"train.yaml", "read.scans=locked"}, "read.scans: locked: permission denied")
		p.check(os.Mkdir(p.path("shut"), 0o555))
		p.refused(2, []string{"train.yaml", "run.dir=shut/run"}, "run.dir: shut/run: permission denied")
	}
}

func TestResumeIsRefusedOrChosen(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.must("train.yaml", "train.max_steps=12")
	for _, c := range []struct {
		word  string
		words []string
	}{
		{"model.hidden=8", []string{"model.hidden: is 8", "step-00000012.safetensors was trained with 4", "choose another run.dir", "train.init"}},
		{"run.seed=8", []string{"run.seed: is 8", "was trained with 7"}},
		{"tile.patch=[8,8,8]", []string{"tile.patch: is [8,8,8]", "choose another run.dir"}},
		{"augment.flip=[]", []string{"augment.flip: is []"}},
		{"batch.size=2", []string{"batch.size: is 2", "was trained with 3"}},
		{"train.ema=0", []string{"train.ema: is 0", "step-00000012.safetensors was trained with more than 0", "choose another run.dir"}},
		{"run.resume=never", []string{"run.resume: never, but run holds checkpoints up to step 12", "choose another run.dir"}},
		{"run.resume=none.safetensors", []string{"run.resume: none.safetensors: no such checkpoint"}},
		{"run.resume=train.yaml", []string{"run.resume: train.yaml: "}},
	} {
		args := []string{"train.yaml", c.word}
		if c.word == "tile.patch=[8,8,8]" {
			args = append(args, "tile.stride=[8,8,8]")
		}
		p.refused(2, args, c.words...)
	}
	if end := p.final("run"); end.Step != 12 {
		t.Errorf("the refused run is at step %d", end.Step)
	}

	// Another learning rate is no other run; a chosen checkpoint sets the later ones aside.
	p.check(os.CopyFS(p.path("back"), os.DirFS(p.path("run"))))
	from := "back/checkpoints/" + checkpoint.Name(8)
	if _, err := os.Stat(p.path(from)); err != nil {
		from = "back/checkpoints/" + checkpoint.Name(10)
	}
	p.must("train.yaml", "run.dir=back", "train.max_steps=12", "run.resume="+from)
	p.sameRun("run", "back")
	if aside, err := filepath.Glob(p.path("back/checkpoints/*.aside")); err != nil || len(aside) != 1 {
		t.Errorf("set aside: %v, %v", aside, err)
	}
	p.must("train.yaml", "train.max_steps=20", "train.lr=1e-4")
	if steps, _ := p.steps("run"); len(steps) != 20 {
		t.Errorf("%d steps", len(steps))
	}
}

// A checkpoint that doesn't verify is passed over; where none does, the run doesn't start anew over it.
func TestDamagedCheckpoints(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	words := []string{"train.yaml", "train.max_steps=20"}
	p.must(append(words, "run.dir=whole")...)
	p.must(append(words, "train.max_steps=14")...)
	damage := func(step int) {
		t.Helper()
		name := p.path("run", "checkpoints", checkpoint.Name(step))
		info, err := os.Stat(name)
		p.check(err)
		p.check(os.Truncate(name, info.Size()-5))
	}
	damage(14)
	p.must("train.yaml", "train.max_steps=14", "run.dir=whole14") // the schedule's end is part of the bits
	p.must("train.yaml", "train.max_steps=14")
	p.sameRun("whole14", "run")
	for _, name := range []string{"run/checkpoints/*.safetensors"} {
		files, err := filepath.Glob(p.path(name))
		p.check(err)
		for _, f := range files {
			if info, err := os.Lstat(f); err == nil && info.Mode().IsRegular() {
				p.check(os.Truncate(f, 1000))
			}
		}
	}
	p.refused(3, words, "none of the", "checkpoints in run/checkpoints verifies", "set run.resume")
}

func TestTwoRunsInOneFolder(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	first := p.start("train.yaml", "train.epochs=1000")
	if !first.until(func() bool { return p.reached("run") > 0 }) {
		t.Fatal(first.stderr.String())
	}
	p.refused(2, []string{"train.yaml"}, "run.dir: another flowrun (pid ", "is running in run", "choose another folder or stop it")
	first.kill()
	p.must("train.yaml")
}

func TestDivergedRunKeepsItsCheckpoints(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	words := []string{"train.yaml", "train.max_steps=24", "train.schedule=constant"}
	p.must(append(words, "run.dir=whole")...)
	p.must(append(words, "train.max_steps=12")...)
	before := p.final("run")
	p.refused(4, append(words, "train.lr=1e30"), "diverged", "phantom-", "isn't finite", "going back 4 times was in vain", "set train.lr lower")
	p.sound("run")
	after := p.final("run")
	if after.Step == 12 {
		p.sameBits(before, after)
	}
	p.must(append(words, "run.resume=run/checkpoints/"+checkpoint.Name(12))...)
	p.sameEnd("whole", "run")
	steps, _ := p.steps("run")
	others, _ := p.steps("whole")
	p.sameEntries(others, steps)
}
