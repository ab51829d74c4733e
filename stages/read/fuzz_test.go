package read

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/flowrun/flowrun/stages/nifti"
)

// FuzzLoad: no file makes List or Load panic or give a volume whose rows can't be read; free runs once.
func FuzzLoad(f *testing.F) {
	path := filepath.Join(f.TempDir(), "a.nii")
	for _, typ := range []nifti.Type{nifti.Int16, nifti.Float32} {
		h := nifti.New(typ, [3]int{3, 2, 2}, sagittal)
		b, err := h.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(b, make([]byte, 12*typ.Size())...), 0.0)
		f.Add(append(b, make([]byte, 12*typ.Size())...), 1.5)
	}
	f.Fuzz(func(t *testing.T, b []byte, spacing float64) {
		if err := os.WriteFile(path, b, 0o666); err != nil {
			t.Fatal(err)
		}
		o := defaults(path)
		o.Frame, o.MaxBytes, o.Spacing = 0, 1<<16, [3]float64{spacing, spacing, spacing}
		scans, _, err := List(context.Background(), o)
		if err != nil {
			return
		}
		freed := 0
		v, err := Load(context.Background(), scans[0], 0, o, func() { freed++ })
		if err == nil {
			for _, x := range hu(t, v) {
				if !finite(x) {
					t.Fatal("intensity", x)
				}
			}
			v.Release()
		}
		if freed != 1 {
			t.Fatalf("freed %d times", freed)
		}
	})
}
