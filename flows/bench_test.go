package flows

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A bench names model, data and both, says what bounds, and leaves nothing in the run's folder.
func TestBench(t *testing.T) {
	dir := t.TempDir()
	if err := Phantoms(context.Background(), filepath.Join(dir, "scans"), PhantomOptions{Count: 2, Size: [3]int{16, 16, 16}, Seed: 1}); err != nil {
		t.Fatal(err)
	}
	file := []byte(`
run: {dir: ` + filepath.Join(dir, "run") + `}
model: {hidden: 4, downsample: [2, 2, 2], codes: 16}
flow: [read: {scans: [` + filepath.Join(dir, "scans") + `]}, tile: {patch: [8, 8, 8]}, batch: {size: 2}, train: {device: cpu}]
`)
	var out strings.Builder
	if err := Bench(context.Background(), "train.yaml", file, nil, 2, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"engine ", "model alone ", "conv.grad_weight ", "data alone ", "data and model ", "bound by "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "run")); err == nil {
		t.Error("the run's folder is there")
	}
	if err := Bench(context.Background(), "train.yaml", file, []string{"train.device=cuda:99"}, 2, &out); err == nil {
		t.Error("a device that isn't there was measured")
	}
}
