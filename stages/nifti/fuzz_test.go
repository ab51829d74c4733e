package nifti

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// FuzzParse: no header makes it panic; one that is accepted keeps its promises and survives being written.
func FuzzParse(f *testing.F) {
	for _, version := range []int{1, 2} {
		for _, o := range orders {
			f.Add(file(f, fixtureHeader(Int16, version, o)))
			f.Add(file(f, fixtureHeader(Float64, version, o)))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Parse(b)
		if err != nil {
			return
		}
		if h.Bytes() <= 0 || h.VoxOffset < 0 || h.Datatype.Size() == 0 {
			t.Fatalf("%+v", h)
		}
		a, _ := h.Affine()
		if !invertible(a) {
			t.Fatalf("affine %v", a)
		}
		axes, flip := Canonical(a)
		for _, channel := range []int{-1, 0, 3} {
			if g, err := h.Grid(0, channel); err == nil {
				if g.Voxels() <= 0 || (g.Skip+g.Voxels())*int64(h.Datatype.Size()) > h.Bytes() {
					t.Fatalf("grid %v of %v", g, h.Dim)
				}
				Reorient(a, g.Dims, axes, flip)
			}
		}
		if e, err := h.Encode(); err == nil {
			if _, err := Parse(e); err != nil {
				t.Fatalf("refused after a round trip: %v", err)
			}
		}
	})
}

// FuzzRead: no file makes a reader panic, take more memory than the cap, or give voxels that aren't in it.
func FuzzRead(f *testing.F) {
	for _, version := range []int{1, 2} {
		h := fixtureHeader(Int16, version, binary.LittleEndian)
		h.Extensions = []Extension{{Code: 6, Data: []byte("comment.")}}
		b := file(f, h)
		f.Add(b)
		f.Add(zip(f, b))
	}
	path := filepath.Join(f.TempDir(), "a.nii")
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o666); err != nil {
			t.Fatal(err)
		}
		h, v, _, err := image(path, Limits{Bytes: 1 << 16})
		if err == nil && int64(len(v)*h.Datatype.Size()) > h.Bytes() {
			t.Fatalf("%d voxels of %v", len(v), h.Dim)
		}
	})
}
