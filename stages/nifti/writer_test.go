package nifti

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/volume"
	"pgregory.net/rapid"
)

// What is written, in any cut, is read back; codes, units, description and extensions of the source are kept.
func TestWriteRoundTrip(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		src := fixtureHeader(Uint8, rapid.SampledFrom([]int{1, 2}).Draw(t, "version"), rapid.SampledFrom(orders).Draw(t, "order"))
		src.SetAffine(volume.Affine{{0, 0, 2, 5}, {-3, 0.5, 0, 6}, {0, 4, 0, 7}}, 3)
		src.QformCode, src.Quatern[1], src.Units = 2, 0.5, 10
		src.SclSlope, src.SclInter, src.CalMax = 2, -1024, 9
		src.Extensions = []Extension{{Code: 4, Data: []byte("DICOM...")}}
		dims := [3]int{rapid.IntRange(1, 40).Draw(t, "x"), rapid.IntRange(1, 40).Draw(t, "y"), rapid.IntRange(1, 40).Draw(t, "z")}
		typ := rapid.SampledFrom([]Type{Int16, Float32}).Draw(t, "type")
		name := rapid.SampledFrom([]string{"a.nii", "a.nii.gz", "a.hdr", "a.hdr.gz"}).Draw(t, "name")
		path := filepath.Join(dir, fmt.Sprint(n)+name)
		w, err := Create(path, src.Derive(typ, dims))
		if err != nil {
			t.Fatal(err)
		}
		total := dims[0] * dims[1] * dims[2]
		ints, floats := make([]int16, total), make([]float32, total)
		for i := range total {
			ints[i], floats[i] = int16(i*31), float32(i)/7
		}
		for at := 0; at < total; {
			part := min(rapid.IntRange(1, 50000).Draw(t, "part"), total-at)
			if typ == Int16 {
				err = w.WriteInt16(ints[at : at+part])
			} else {
				err = w.WriteFloat32(floats[at : at+part])
			}
			if err != nil {
				t.Fatal(err)
			}
			at += part
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		h, v, warnings, err := image(path, Limits{})
		if err != nil || len(v) != total || len(warnings) > 0 {
			t.Fatal(err, len(v), warnings)
		}
		for i, x := range v {
			if want := float64(ints[i]); typ == Int16 && x != want {
				t.Fatalf("voxel %d: %v (want %v)", i, x, want)
			}
			if want := float64(floats[i]); typ == Float32 && x != want {
				t.Fatalf("voxel %d: %v (want %v)", i, x, want)
			}
		}
		slope, inter := h.Scaling()
		a, _ := h.Affine()
		if h.Version != src.Version || h.Order != src.Order || h.SformCode != 3 || h.QformCode != 2 || h.Units != 2 || a != volume.Affine(src.Srow) ||
			slope != 1 || inter != 0 || h.CalMax != 0 || h.Descrip != src.Descrip || string(h.Extensions[0].Data) != "DICOM..." {
			t.Fatalf("%+v", h)
		}
	})
}

func TestLongAxisIsVersion2(t *testing.T) {
	path := filepath.Join(t.TempDir(), "long.nii")
	h := New(Int16, [3]int{40000, 1, 1}, identity)
	w, err := Create(path, h)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.WriteInt16(make([]int16, 40000)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadHeader(path); err != nil || got.Version != 2 || got.Dim[1] != 40000 {
		t.Fatal(got, err)
	}
	h.Version = 1
	if _, err := Create(path, h); err == nil || !strings.Contains(err.Error(), "doesn't fit NIfTI-1") {
		t.Error(err)
	}
}

// inside is what lies in a folder, hidden files too.
func inside(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// Until Close the name doesn't appear, and what was there stays; nothing is left of an image that wasn't completed.
func TestWriterIsAtomic(t *testing.T) {
	for _, name := range []string{"a.nii", "a.nii.gz", "a.hdr"} {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("old"), 0o666); err != nil {
			t.Fatal(err)
		}
		start := func() *Writer {
			w, err := Create(path, fixtureHeader(Int16, 1, binary.LittleEndian))
			if err != nil {
				t.Fatal(err)
			}
			if err := w.WriteInt16(make([]int16, 23)); err != nil {
				t.Fatal(err)
			}
			return w
		}
		w := start()
		w.Cancel()
		w.Cancel()
		w = start()
		if err := w.Close(); err == nil || !strings.Contains(err.Error(), "1 voxels are missing") {
			t.Error(err)
		}
		w = start()
		if err := w.WriteInt16(make([]int16, 2)); err == nil || !strings.Contains(err.Error(), "1 voxels too many") {
			t.Error(err)
		}
		if err := w.WriteFloat32(make([]float32, 1)); err == nil {
			t.Error("float32 samples in an image of int16")
		}
		if b, _ := os.ReadFile(path); string(b) != "old" {
			t.Errorf("%s changed before Close", name)
		}
		if err := w.WriteInt16(make([]int16, 1)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		w.Cancel()
		if err := w.WriteInt16(nil); err == nil {
			t.Error("write after Close")
		}
		if _, err := ReadHeader(path); err != nil {
			t.Error(err)
		}
		want := []string{name}
		if name == "a.hdr" {
			want = append(want, "a.img")
		}
		if got := inside(t, dir); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("left in the folder: %q", got)
		}
	}
}

func TestCreateRefuses(t *testing.T) {
	h := fixtureHeader(Int16, 1, binary.LittleEndian)
	dir := t.TempDir()
	for name, want := range map[string]string{
		"a.txt":         "want a name that ends in",
		"a.img":         "want a name that ends in",
		"none/a.nii":    "no such file or directory",
		"none/a.hdr":    "no such file or directory",
		"none/a.nii.gz": "no such file or directory",
	} {
		if _, err := Create(filepath.Join(dir, name), h); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Create(filepath.Join(dir, "a.nii"), fixtureHeader(Float64, 1, binary.LittleEndian)); err == nil {
		t.Error("float64 is written")
	}
	if got := inside(t, dir); len(got) > 0 {
		t.Errorf("left in the folder: %q", got)
	}
}

// A disk that is full in the middle: the error says so, and nothing stays. /dev/full is such a disk.
func TestDiskFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer func() { _ = full.Close() }()
	for _, name := range []string{"a.nii", "a.nii.gz"} {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		w, err := Create(path, New(Int16, [3]int{100, 100, 100}, identity))
		if err != nil {
			t.Fatal(err)
		}
		w.parts[0].w.Reset(full)
		for range 100 {
			if err = w.WriteInt16(make([]int16, 10000)); err != nil {
				break
			}
		}
		if cerr := w.Close(); cerr == nil || !strings.Contains(cerr.Error(), path) || !strings.Contains(cerr.Error(), "no space left") {
			t.Errorf("%s: %v, %v", name, err, cerr)
		}
		if got := inside(t, dir); len(got) > 0 {
			t.Errorf("left in the folder: %q", got)
		}
	}
}
