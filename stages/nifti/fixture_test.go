package nifti

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/flowrun/flowrun/stages/volume"
)

// A fixture is an image of 4×3×2 voxels of which voxel (i, j, k) is i + 10j + 100k.
var fixtureDims = [3]int{4, 3, 2}

func fixtureValue(voxel int) float64 {
	i, j, k := voxel%4, voxel/4%3, voxel/12
	return float64(i + 10*j + 100*k)
}

var identity = volume.Affine{{1, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 1, 0}}

var orders = []binary.ByteOrder{binary.LittleEndian, binary.BigEndian}

var types = []Type{Uint8, Int8, Int16, Uint16, Int32, Uint32, Int64, Uint64, Float32, Float64}

func fixtureHeader(t Type, version int, o binary.ByteOrder) *Header {
	h := New(t, fixtureDims, identity)
	h.Version, h.Order = version, o
	copy(h.Descrip[:], "a description")
	return h
}

// voxels encodes the fixture's voxels, modulo what the type can hold.
func voxels(t Type, o binary.ByteOrder) []byte {
	size := t.Size()
	b := make([]byte, 24*size)
	for v := range 24 {
		x, at := fixtureValue(v), b[v*size:]
		switch t {
		case Uint8, Int8:
			at[0] = byte(int(x))
		case Int16, Uint16:
			o.PutUint16(at, uint16(x))
		case Int32, Uint32:
			o.PutUint32(at, uint32(x))
		case Int64, Uint64:
			o.PutUint64(at, uint64(x))
		case Float32:
			o.PutUint32(at, math.Float32bits(float32(x)))
		case Float64:
			o.PutUint64(at, math.Float64bits(x))
		}
	}
	return b
}

// file gives the bytes of a single file.
func file(t testing.TB, h *Header) []byte {
	t.Helper()
	b, err := h.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return append(b, voxels(h.Datatype, h.Order)...)
}

// base is the fixture as int16 NIfTI-1 in little endian; tests poke at its bytes.
func base(t testing.TB) []byte { return file(t, fixtureHeader(Int16, 1, binary.LittleEndian)) }

func zip(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func save(t testing.TB, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// image reads a whole file: its first 3D image as numbers, unscaled, and all warnings.
func image(path string, limits Limits) (*Header, []float64, []string, error) {
	r, err := Open(path, limits)
	if err != nil {
		return nil, nil, nil, err
	}
	defer func() { _ = r.Close() }()
	g, err := r.Header.Grid(0, 0)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := r.SkipTo(g.Skip); err != nil {
		return nil, nil, nil, err
	}
	size := r.Header.Datatype.Size()
	var out []float64
	row := make([]float64, g.Dims[0])
	b := make([]byte, len(row)*size)
	for range g.Dims[1] * g.Dims[2] {
		if _, err := r.Read(b); err != nil {
			return nil, nil, nil, err
		}
		r.Header.Float64(row, b)
		out = append(out, row...)
	}
	warnings, err := r.Finish()
	return r.Header, out, append(r.Header.Warnings, warnings...), err
}
