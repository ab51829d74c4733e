package checkpoint

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/safetensors"
	"github.com/flowrun/flowrun/stages/volume"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// put writes a file of one tensor and this metadata, as another program would, to a fresh path.
func put(t testing.TB, key, value string) string {
	t.Helper()
	var b bytes.Buffer
	check(t, safetensors.Write(&b, []safetensors.Array{{Name: "a", Shape: []int{2}, Values: safetensors.U16{1, 2}}}, map[string]string{key: value}))
	path := filepath.Join(t.TempDir(), "a.safetensors")
	check(t, os.WriteFile(path, b.Bytes(), 0o666))
	return path
}

// dataBytes is how many bytes arrays are in a file, about.
func dataBytes(arrays []volume.Array) (bytes int64) {
	for _, a := range arrays {
		bytes += 4 * int64(len(a.Data))
	}
	return bytes
}

// same compares arrays bit by bit.
func same(got, want []volume.Array) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d arrays, want %d", len(got), len(want))
	}
	for i, w := range want {
		if got[i].Name != w.Name || !slices.Equal(got[i].Shape, w.Shape) {
			return fmt.Errorf("%q of shape %v, want %q of %v", got[i].Name, got[i].Shape, w.Name, w.Shape)
		}
		if !slices.EqualFunc(got[i].Data, w.Data, func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) }) {
			return fmt.Errorf("%q: other values", w.Name)
		}
	}
	return nil
}

func open1(t testing.TB, dir string, keep int, best string) *Store {
	t.Helper()
	s, err := Open(dir, Options{Every: 1, Keep: keep, Best: best})
	check(t, err)
	return s
}

// snap is a snapshot whose arrays tell its step; psnr < 0 is none.
func snap(step int, psnr float64) *volume.Snapshot {
	s := &volume.Snapshot{
		Step:   step,
		Cursor: volume.Cursor{Epoch: 1, Seq: 2 * step},
		Arrays: []volume.Array{
			{Name: "encoder.conv_first.conv.weight", Shape: []int{2, 1, 1, 1, 3}, Data: []float32{1, 2, 3, 4, 5, float32(step)}},
			{Name: "codebook.N", Shape: []int{2}, Data: []float32{0.5, float32(math.Inf(1))}},
		},
		Meta:   map[string]string{"config": "run: {dir: \"a\"}\n", "scans": `["é"]`},
		Reason: "every",
		Tags:   []volume.Tag{{Scan: "a/b.nii.gz", Index: 1, Epoch: 1, Tile: 2, Tiles: 3, Origin: [3]int{4, 5, 6}, Size: [3]int{7, 8, 9}, Seq: 10}},
	}
	if psnr >= 0 {
		s.Metrics = map[string]float64{"val/psnr": psnr, "val/mae_hu": 100 - psnr}
	}
	return s
}

func save(t testing.TB, s *Store, snaps ...*volume.Snapshot) {
	t.Helper()
	for _, x := range snaps {
		_, err := s.Save(t.Context(), x)
		check(t, err)
	}
}

// list is the folder: steps as numbers, links as name=step, anything else by its name.
func list(t testing.TB, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	check(t, err)
	short := func(name string) string {
		name = strings.TrimPrefix(strings.TrimSuffix(name, ".safetensors"), "step-")
		return cmp.Or(strings.TrimLeft(name, "0"), "0")
	}
	var names []string
	for _, e := range entries {
		name := short(e.Name())
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			name += "=" + short(to)
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

// damage flips a bit of the last byte.
func damage(t testing.TB, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	check(t, err)
	b[len(b)-1] ^= 1
	check(t, os.WriteFile(path, b, 0o666))
}
