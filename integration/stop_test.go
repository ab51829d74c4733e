package integration

import (
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestSignalsStopWithACheckpoint(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	words := []string{"train.yaml", "train.epochs=1", "shuffle.volumes=3", "checkpoint.every=1000"}
	p.must(append(words, "run.dir=whole")...)
	for i, s := range []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		if signal.Ignored(s) {
			t.Logf("%v is ignored here, as under nohup, and so it is by runs", s)
			continue
		}
		r := p.start(words...)
		goal := p.reached("run") + 3 + i
		if !r.until(func() bool { return p.reached("run") >= goal }) {
			t.Fatalf("over before step %d: %s", goal, r.stderr.String())
		}
		r.signal(s)
		o := r.wait()
		p.tells(o, 75, "interrupted", "run/checkpoints/step-", "the same command goes on from there")
		end := p.final("run")
		if steps, _ := p.steps("run"); end.Step != len(steps) || end.Reason != "stop" && end.Step%10 != 0 {
			t.Errorf("%v: the checkpoint (%q) is of step %d, the last one taken is %d", s, end.Reason, end.Step, len(steps))
		}
		p.swept("run")
	}
	p.must(words...)
	p.sameRun("whole", "run")

	r := p.start(append(words, "run.dir=new", "run.resume=never")...)
	r.until(func() bool { return p.reached("new") >= 2 })
	r.signal(syscall.SIGTERM)
	p.tells(r.wait(), 75, "with run.resume: auto the same command goes on")
}

// slow is a run whose validations take many seconds.
var slow = strings.Fields("train.yaml train.validate.every=1 train.validate.patches=0 read.scans=[scans,held] train.validate.scans=[held/*]")

func TestASignalInAValidation(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.must("phantom", "held", "--size", "256,256,128", "--count", "1")
	r := p.start(slow...)
	if !r.until(func() bool { return p.reached("run") == 1 }) {
		t.Fatalf("over before it could be stopped: %s", r.stderr.String())
	}
	r.signal(syscall.SIGTERM)
	p.tells(r.wait(), 75, "interrupted", "run/checkpoints/step-00000001.safetensors", "the same command goes on from there")
	if steps, validations := p.steps("run"); len(steps) != 1 || len(validations) > 0 {
		t.Errorf("%d steps and %d validations (want the step, and no validation)", len(steps), len(validations))
	}
	p.swept("run")
	p.must(append(slow, "train.max_steps=2", "train.validate.patches=1")...)
	if _, validations := p.steps("run"); len(validations) != 2 {
		t.Errorf("%d validations (want that which was cut short, and the next)", len(validations))
	}
}

// A step can't be broken off: the process ends without it.
func TestTheSecondSignalDoesNotWaitForALongStep(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.must("phantom", "scans", "--size", "128,128,64", "--count", "1", "--seed", "9")
	words := []string{"train.yaml", "read.scans=scans/phantom-0009.nii", "model.hidden=32", "model.groups=8", "tile.patch=[128, 128, 64]", "batch.size=1",
		"train.validate.scans=[]", "train.validate.share=0", "augment.flip=[]"}
	for try := 1; ; try++ {
		p.check(os.RemoveAll(p.path("run")))
		r := p.start(words...)
		if !r.until(func() bool { return len(p.events("run", "start")) == 1 }) {
			t.Fatalf("over before it could be stopped: %s", r.stderr.String())
		}
		time.Sleep(time.Duration(try) * time.Second) // now it is in its first step, or soon
		r.signal(syscall.SIGINT)
		r.until(func() bool { return len(p.events("run", "stop")) == 1 })
		r.signal(syscall.SIGINT)
		o := r.wait()
		p.tells(o, 75)
		if strings.Contains(o.stderr, "stopped at once") {
			break
		}
		if try == 4 {
			t.Fatalf("not once in its step: %s", o.said())
		}
	}
	if n := p.reached("run"); n > 0 {
		t.Errorf("%d steps were taken", n)
	}
	p.swept("run")
}

func TestStoppedBeforeTheFirstStep(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	r := p.start("train.yaml")
	if !r.until(func() bool { _, err := os.Stat(p.path("run", ".lock")); return err == nil }) {
		t.Fatal("it is over before it began")
	}
	r.signal(syscall.SIGTERM)
	o := r.wait()
	p.tells(o, 75, "interrupted")
	p.must("train.yaml")
	p.must("train.yaml", "run.dir=whole")
	p.sameRun("whole", "run")
}

// A run whose folder is removed ends, and leaves alone what takes its place.
func TestFolderReplaced(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	r := p.start("train.yaml", "train.epochs=100000")
	if !r.until(func() bool { return p.reached("run") >= 6 }) {
		t.Fatalf("over: %s", r.stderr.String())
	}
	for os.RemoveAll(p.path("run")) != nil { // it may be writing
		continue
	}
	p.must("train.yaml", "run.seed=8")
	o := r.wait()
	if said := o.said(); o.code != 1 || len(said) != 1 || !strings.Contains(said[0], "run was removed or replaced while the run was in it") {
		t.Errorf("exit %d: %s", o.code, said)
	}
	p.must("train.yaml", "run.seed=8", "run.dir=alone")
	p.sameRun("alone", "run")
}

// A run that hasn't begun has nothing to save: one signal ends it, whatever it waits for.
func TestStopBeforeItBegins(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.check(syscall.Mkfifo(p.path("waits.yaml"), 0o666))
	r := p.start("waits.yaml")
	r.until(func() bool { // somebody reads what this test never writes
		f, err := os.OpenFile(p.path("waits.yaml"), os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if err == nil {
			p.Cleanup(func() { _ = f.Close() })
		}
		return err == nil
	})
	r.signal(syscall.SIGTERM)
	p.tells(r.wait(), 75, "stopped at once; the same command goes on")
}
