package read

import (
	"context"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/volume"
)

var (
	identity = volume.Affine{{1, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 1, 0}}
	lps      = volume.Affine{{-2, 0, 0, 5}, {0, -2, 0, 6}, {0, 0, 3, 7}}
	sagittal = volume.Affine{{0, 0, 3, 5}, {2, 0, 0, 6}, {0, -2, 0, 7}} // file axes are y, -z, x
)

func defaults(scans ...string) Options {
	return Options{Scans: scans, WindowHU: [2]float64{-1000, 1000}, Ahead: 2, Frame: -1, ChannelDim: -1, MaxBytes: 1 << 30, BadShare: 0.1}
}

// put writes an int16 image of which voxel (i, j, k) of the file is value(i, j, k).
func put(t testing.TB, path string, dims [3]int, a volume.Affine, value func(i, j, k int) int16) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	w, err := nifti.Create(path, nifti.New(nifti.Int16, dims, a))
	if err != nil {
		t.Fatal(err)
	}
	for k := range dims[2] {
		for j := range dims[1] {
			for i := range dims[0] {
				if err := w.WriteInt16([]int16{value(i, j, k)}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// putReal writes samples of any type, with the header changed by poke.
func putReal(t testing.TB, path string, typ nifti.Type, dims [3]int, samples []float64, poke func(*nifti.Header)) {
	t.Helper()
	h := nifti.New(typ, dims, identity)
	if poke != nil {
		poke(h)
	}
	b, err := h.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range samples {
		switch typ {
		case nifti.Uint8, nifti.Int8:
			b = append(b, byte(int(x)))
		case nifti.Int16, nifti.Uint16:
			b = binary.LittleEndian.AppendUint16(b, uint16(int(x)))
		case nifti.Int32, nifti.Uint32:
			b = binary.LittleEndian.AppendUint32(b, uint32(int64(x)))
		case nifti.Float32:
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(x)))
		case nifti.Float64:
			b = binary.LittleEndian.AppendUint64(b, math.Float64bits(x))
		default:
			t.Fatal(typ)
		}
	}
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
}

// small writes a 2×2×2 image.
func small(t testing.TB, path string) {
	t.Helper()
	put(t, path, [3]int{2, 2, 2}, identity, func(i, j, k int) int16 { return int16(i+2*j+4*k) - 1000 })
}

// one lists a single scan.
func one(t testing.TB, path string, o Options) *volume.Scan {
	t.Helper()
	o.Scans = []string{path}
	scans, bad, err := List(context.Background(), o)
	if err != nil || len(scans) != 1 {
		t.Fatal(scans, bad, err)
	}
	return scans[0]
}

// loaded lists and loads a single scan, and gives its intensities in HU, x fastest.
func loaded(t testing.TB, path string, o Options) (*volume.Volume, []float64) {
	t.Helper()
	v, err := Load(context.Background(), one(t, path, o), 3, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Release)
	return v, hu(t, v)
}

func hu(t testing.TB, v *volume.Volume) []float64 {
	t.Helper()
	var out []float64
	buf := make([]int16, v.Dims[0]*v.Dims[1])
	for z := range v.Dims[2] {
		rows, err := v.Rows(z, 0, v.Dims[1], buf)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range rows {
			out = append(out, v.Slope*float64(s)+v.Inter)
		}
	}
	return out
}
