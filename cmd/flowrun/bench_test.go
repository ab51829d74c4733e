package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bench measures a run without leaving anything behind, in words and as JSON; interrupted, it is gone soon.
func TestBench(t *testing.T) {
	dir := workplace(t)
	spare := t.TempDir()
	t.Setenv("TMPDIR", spare)
	stdout, stderr, code := flowrun(t, dir, "bench", "small.yaml", "--seconds", "0.1", "--steps", "2")
	if code != 0 || stderr != "" {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	for _, want := range []string{"bench", "autoencoder", "conv.grad_weight", "data", "both", "memory"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	stdout, _, code = flowrun(t, dir, "bench", "small.yaml", "batch.size=3", "--seconds", "0.1", "--steps", "2", "--json")
	var k struct {
		Batch   int
		Compute []struct{ Name string }
		Both    struct {
			Voxels float64 `json:"voxels_per_second"`
		}
	}
	if err := json.Unmarshal([]byte(stdout), &k); code != 0 || err != nil || k.Batch != 3 || len(k.Compute) != 1 || k.Both.Voxels <= 0 {
		t.Errorf("exit %d, %v, %+v in %s", code, err, k, stdout)
	}

	c := exec.Command(binary, "bench", "small.yaml", "--seconds", "1000", "--steps", "1000000")
	c.Dir = dir
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) { // until it has begun to measure
		if list, err := os.ReadDir(spare); err == nil && len(list) > 0 {
			break
		}
		if time.Since(begun) > time.Minute {
			t.Fatal("bench hasn't begun")
		}
	}
	if err := c.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if _ = c.Wait(); c.ProcessState.ExitCode() != 75 {
		t.Errorf("interrupted: exit %d", c.ProcessState.ExitCode())
	}
	if list, err := os.ReadDir(spare); err != nil || len(list) > 0 {
		t.Errorf("left behind: %v, %v", list, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "out")); err == nil {
		t.Error("bench made the run's folder")
	}
}
