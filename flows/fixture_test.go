package flows

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/volume"
)

// writeScan writes an int16 image of dims x, y, z, 1 mm; voxel i is value(i) HU.
func writeScan(t testing.TB, path string, dims [3]int, value func(i int) int16) {
	t.Helper()
	b, err := nifti.New(nifti.Int16, dims, volume.Affine{{1, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 1, 0}}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	for i := range dims[0] * dims[1] * dims[2] {
		b = binary.LittleEndian.AppendUint16(b, uint16(value(i)))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// scanFiles writes a scan of each of dims to a new folder and lists them.
func scanFiles(t testing.TB, dims ...[3]int) (dir string, scans []*volume.Scan) {
	t.Helper()
	dir = t.TempDir()
	for i, d := range dims {
		writeScan(t, filepath.Join(dir, fmt.Sprintf("s%d.nii", i)), d, func(k int) int16 { return int16(k%2000 - 1000) })
	}
	scans, bad, err := read.List(context.Background(), read.Options{Scans: []string{dir}, WindowHU: [2]float64{-1000, 1000}, MaxBytes: 1 << 30, Frame: -1, ChannelDim: -1})
	if err != nil || len(bad) > 0 {
		t.Fatal(err, bad)
	}
	return dir, scans
}

// mustLoad loads a job from text.
func mustLoad(t testing.TB, text string, overrides ...string) *Job {
	t.Helper()
	j, err := Load("train.yaml", []byte(text), overrides)
	if err != nil {
		t.Fatal(err)
	}
	return j
}
