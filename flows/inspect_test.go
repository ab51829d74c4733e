package flows

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/volume"
)

// inspect returns what Inspect says of a file, with runs of spaces as one and its path as FILE.
func inspect(t *testing.T, path string) (string, error) {
	t.Helper()
	var b bytes.Buffer
	err := Inspect(&b, path)
	var text strings.Builder
	for line := range strings.Lines(strings.ReplaceAll(b.String(), path, "FILE")) {
		text.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
	}
	return text.String(), err
}

func TestInspectImage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.nii")
	writeScan(t, path, [3]int{3, 4, 5}, func(int) int16 { return 0 })
	got, err := inspect(t, path)
	want := `file FILE, NIfTI-1, little endian
voxels [3, 4, 5] int16
spacing [1, 1, 1] mm
scaling 1 × sample + 0
orientation RAS: towards the patient's right, front and head
affine 1 0 0 0
affine 0 1 0 0
affine 0 0 1 0
`
	if err != nil || got != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
}

func TestOrientation(t *testing.T) {
	for _, c := range []struct {
		axes [3]int
		flip [3]bool
		want string
	}{
		{[3]int{0, 1, 2}, [3]bool{true, true, false}, "LPS: towards the patient's left, back and head"},
		{[3]int{1, 2, 0}, [3]bool{true, false, true}, "ILA: towards the patient's feet, left and front"},
	} {
		if got := orientation(c.axes, c.flip); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

func TestInspectCheckpoint(t *testing.T) {
	store, err := checkpoint.Open(t.TempDir(), checkpoint.Options{Keep: 1, Best: "psnr"})
	if err != nil {
		t.Fatal(err)
	}
	path, err := store.Save(t.Context(), &volume.Snapshot{Step: 12, Cursor: volume.Cursor{Epoch: 1, Seq: 7}, Reason: "every",
		Arrays: []volume.Array{{Name: "w", Shape: []int{2, 3}, Data: make([]float32, 6)}}, Meta: map[string]string{"model": `{"hidden":4}`},
		Metrics: map[string]float64{"val/psnr": 31.123456, "val/mae_hu": 12}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := inspect(t, path)
	_, rows, _ := strings.Cut(got, "\n")
	want := `step 12
cursor epoch 1, patch 7
reason every
model {"hidden":4}
val/mae_hu 12
val/psnr 31.123
w [2 3] F32
checksum verified
`
	if err != nil || !strings.HasPrefix(got, "file FILE, ") || rows != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}

	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)-1] ^= 1
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := inspect(t, path); ExitCode(err) != ExitData || strings.Contains(got, "verified") || strings.Count(err.Error(), path) != 1 {
		t.Errorf("a flipped bit: %v\n%s", err, got)
	}
}

// TestInspectWeights: other people's safetensors have no step and no checksum.
func TestInspectWeights(t *testing.T) {
	head, err := json.Marshal(map[string]any{"w": map[string]any{"dtype": "F16", "shape": []int{4}, "data_offsets": []int{0, 8}}})
	if err != nil {
		t.Fatal(err)
	}
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(head)))
	b = append(append(b, head...), make([]byte, 8)...)
	path := filepath.Join(t.TempDir(), "a.safetensors")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := inspect(t, path); err != nil || !strings.HasSuffix(got, "\nw [4] F16\n") || strings.Contains(got, "checksum") {
		t.Errorf("%v\n%s", err, got)
	}
}

func TestInspectFails(t *testing.T) {
	dir := t.TempDir()
	if _, err := inspect(t, filepath.Join(dir, "none.nii")); ExitCode(err) != ExitUsage {
		t.Error(err)
	}
	for _, name := range []string{"a.nii", "a.nii.gz", "a.safetensors", "a.png"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("not what it seems to be"), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := inspect(t, path); ExitCode(err) != ExitData || got != "" || strings.Count(err.Error(), path) != 1 {
			t.Errorf("%s: %v, %s", name, err, got)
		}
	}
}

func TestInspectTorch(t *testing.T) {
	got, err := inspect(t, filepath.Join("..", "stages", "torch", "testdata", "small.pth"))
	if err != nil || !strings.Contains(got, "F32") {
		t.Errorf("%v\n%s", err, got)
	}
	got, err = inspect(t, filepath.Join("..", "stages", "torch", "testdata", "settings.ckpt"))
	if err != nil || !strings.Contains(got, "hyper_parameters.cfg.model.downsample [1 2 4]\n") || strings.Contains(got, "kwargs") {
		t.Errorf("%v\n%s", err, got)
	}
	if got := shown("a\x1b[2J\n" + strings.Repeat("é", 200)); got != "a\uFFFD[2J\uFFFD"+strings.Repeat("é", 94)+"…" {
		t.Errorf("%q", got)
	}
	if _, err := inspect(t, filepath.Join(t.TempDir(), "a.pth")); ExitCode(err) != ExitUsage {
		t.Errorf("a file that isn't there: %v", err)
	}
}
