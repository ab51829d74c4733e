package flows

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDiscriminatorsOfARun: they may come and go as a run goes on, which is said; others are refused, by the key.
func TestDiscriminatorsOfARun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	gan := strings.Fields("train.gan.weight=1 train.gan.channels=2 train.gan.layers=1 train.gan.start=0 train.gan.ramp=4")
	said := func(text string) bool {
		return slices.ContainsFunc(lines(t, filepath.Join(dir, "log.jsonl")), func(o map[string]any) bool {
			return strings.Contains(o["message"].(string), text)
		})
	}
	run := func(steps string, words ...string) error {
		_, err := do(t, t.Context(), nil, tiny(t, dir, append(words, "train.max_steps="+steps)...))
		return err
	}
	if err := run("2"); err != nil || said("discriminators") {
		t.Fatal("without any", err)
	}
	if err := run("4", gan...); err != nil || !said("has no discriminators: new ones begin behind step 2") {
		t.Fatal("with new ones", err)
	}
	for _, o := range lines(t, filepath.Join(dir, "metrics.jsonl")) {
		if o["step"] == 3. && o["train/loss"] != nil && o["train/gan_weight"] != 0.25 {
			t.Errorf("step 3: %v of the ramp", o["train/gan_weight"])
		}
	}
	err := run("5", append(slices.Clip(gan), "train.gan.channels=3")...)
	if want := "train.gan.channels: is 3, but "; ExitCode(err) != ExitUsage || !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), "was trained with 2") {
		t.Errorf("wider ones: %v", err)
	}
	if err := run("5", gan...); err != nil || said("are left behind") {
		t.Error("with the same", err)
	}
	if err := run("6"); err != nil || !said("are left behind") {
		t.Error("without them", err)
	}
}

// Memory that only the discriminators are too large for is told by their channels, not by the patch.
func TestDiscriminatorsThatDontFit(t *testing.T) {
	words := []string{"train.gan.weight=1", "train.gan.layers=1", "train.memory=8MiB"}
	err := tiny(t, t.TempDir(), append(words, "train.gan.channels=256")...).Plan(t.Context(), io.Discard)
	if err == nil || ExitCode(err) != ExitUsage || !strings.Contains(err.Error(), "train.gan.channels: 256: memory: with its discriminators") || !strings.Contains(err.Error(), "the limit is train.memory; ") {
		t.Fatal(err)
	}
	var fits int
	if _, err := fmt.Sscanf(err.Error()[strings.LastIndex(err.Error(), "; ")+2:], "%d channels would fit", &fits); err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]bool{fits: true, 2 * fits: false} {
		if err := tiny(t, t.TempDir(), append(words, fmt.Sprintf("train.gan.channels=%d", n))...).Plan(t.Context(), io.Discard); (err == nil) != want {
			t.Errorf("%d channels: %v", n, err)
		}
	}
}
