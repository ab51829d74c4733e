package nifti

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Every type, version, byte order and container gives the same voxels.
func TestReadsAll(t *testing.T) {
	dir := t.TempDir()
	for _, typ := range types {
		for _, version := range []int{1, 2} {
			for _, o := range orders {
				h := fixtureHeader(typ, version, o)
				single := file(t, h)
				pair := *h
				pair.Pair = true
				head, err := pair.Encode()
				if err != nil {
					t.Fatal(err)
				}
				data := voxels(typ, o)
				for i, files := range []map[string][]byte{
					{"a.nii": single},
					{"a.nii.gz": zip(t, single)},
					{"a.nii": zip(t, single)}, // gzip whatever its name
					{"a.nii.gz": single},      // and the other way round
					{"a.hdr": head, "a.img": data},
					{"a.hdr": head, "a.img.gz": zip(t, data)},
					{"a.hdr.gz": zip(t, head), "a.img.gz": zip(t, data)},
					{"A.HDR": head, "A.IMG": data},
				} {
					dir := filepath.Join(dir, fmt.Sprint(typ, version, o, i))
					if err := os.Mkdir(dir, 0o777); err != nil {
						t.Fatal(err)
					}
					for name, b := range files {
						if err := os.WriteFile(filepath.Join(dir, name), b, 0o666); err != nil {
							t.Fatal(err)
						}
					}
					for name := range files { // a pair by either name
						got, v, warnings, err := image(filepath.Join(dir, name), Limits{})
						if err != nil || len(warnings) > 0 {
							t.Fatalf("%v NIfTI-%d %v %s: %v %q", typ, version, o, name, err, warnings)
						}
						for i, x := range v {
							want := fixtureValue(i)
							if typ == Int8 {
								want = float64(int8(int(want)))
							}
							if x != want {
								t.Fatalf("%v NIfTI-%d %v %s: voxel %d is %v (want %v)", typ, version, o, name, i, x, want)
							}
						}
						if len(v) != 24 || got.Version != version || got.Order != o || string(got.Descrip[:13]) != "a description" {
							t.Fatalf("%v: header %+v", name, got)
						}
					}
				}
			}
		}
	}
}

func TestInt16(t *testing.T) {
	for _, o := range orders {
		for _, c := range []struct {
			t    Type
			b    []byte
			want []int16
		}{
			{Uint8, []byte{0, 255}, []int16{0, 255}},
			{Int8, []byte{0x80, 0x7f}, []int16{-128, 127}},
			{Int16, pair16(o, 0x8000, 0x7fff), []int16{-32768, 32767}},
			{Uint16, pair16(o, 0, 65535), []int16{-32768, 32767}},
		} {
			h := &Header{Datatype: c.t, Order: o}
			got, f := make([]int16, 2), make([]float64, 2)
			h.Int16(got, c.b)
			h.Float64(f, c.b)
			if !slices.Equal(got, c.want) || float64(got[0])+h.Offset16() != f[0] || float64(got[1])+h.Offset16() != f[1] {
				t.Errorf("%v: %v, %v", c.t, got, f)
			}
		}
	}
}

func pair16(o binary.ByteOrder, a, b uint16) []byte {
	x := make([]byte, 4)
	o.PutUint16(x, a)
	o.PutUint16(x[2:], b)
	return x
}

func TestBrokenFiles(t *testing.T) {
	whole := base(t)
	poked := func(poke func([]byte)) []byte {
		b := slices.Clone(whole)
		poke(b)
		return b
	}
	gz := zip(t, whole)
	flipped := slices.Clone(gz)
	flipped[len(gz)-6] ^= 1 // in the checksum
	for _, c := range []struct {
		name  string
		b     []byte
		limit int64
		want  string
	}{
		{"empty.nii", nil, 0, "is empty"},
		{"short.nii", whole[:100], 0, "truncated: 100 of 348 bytes"},
		{"three.nii", whole[:3], 0, "truncated: 3 of 348"},
		{"text.nii", []byte("not an image"), 0, "not NIfTI"},
		{"cut.nii", whole[:len(whole)-1], 0, "truncated: 399 of 400 bytes"},
		{"offset.nii", poked(put32(108, 1e6)), 0, "truncated: 400 of 1000048 bytes"},
		{"offset.nii.gz", zip(t, poked(put32(108, 4096))), 0, "truncated: the gzip data ends after 400 of 4144 bytes"},
		{"lie.nii", poked(dims(3, 30000, 30000, 3000)), 0, "truncated: 400 of 5400000000352 bytes"},
		{"lie.nii.gz", zip(t, poked(dims(3, 30000, 30000, 3000))), 0, "can't be inflated to the 5400000000352"},
		{"cut.nii.gz", gz[:len(gz)-9], 0, "truncated: the gzip data ends after"},
		{"no-trailer.nii.gz", gz[:len(gz)-8], 0, "truncated: the gzip data ends after 400 of 400 bytes"},
		{"checksum.nii.gz", flipped, 0, "corrupt: gzip checksum or size differs (inflated 400 of 400 bytes)"},
		{"gzip.nii.gz", []byte{0x1f, 0x8b, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0, "corrupt: invalid gzip header"},
		{"cap.nii", whole, 47, "48 bytes, above the limit of 47"},
		{"cap.nii.gz", gz, 47, "above the limit"},
		{"pair.nii", poked(func(b []byte) { b[345] = 'i' }), 0, "isn't an .hdr"},
		{"alone.hdr", poked(func(b []byte) { b[345] = 'i'; put32(108, 0)(b) })[:352], 0, "the .img file of the pair isn't beside it"},
		{"alone.img", whole, 0, "the .hdr file of the pair isn't beside it"},
		{"padded.nii.gz", zip(t, append(slices.Clone(whole), make([]byte, 65<<20)...)), 0, "bytes more than the header says"},
	} {
		if _, _, _, err := image(save(t, c.name, c.b), Limits{Bytes: c.limit}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v (want %q)", c.name, err, c.want)
		}
	}
	dir := t.TempDir()
	if _, err := ReadHeader(dir); err == nil || err.Error() != "is a folder" {
		t.Error(err)
	}
	if _, err := ReadHeader(filepath.Join(dir, "none.nii")); err == nil || err.Error() != "no such file or directory" {
		t.Error(err)
	}
	pipe := filepath.Join(dir, "pipe.nii")
	if syscall.Mkfifo(pipe, 0o666) == nil {
		if _, err := ReadHeader(pipe); err == nil || err.Error() != "isn't a regular file" {
			t.Error(err)
		}
	}
}

// Every truncation of either container is an error, and no gzip file with a flipped bit gives other voxels.
func TestEveryTruncation(t *testing.T) {
	whole := base(t)
	_, want, _, err := image(save(t, "a.nii", whole), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{whole, zip(t, whole)} {
		for n := range b {
			if _, _, _, err := image(save(t, "a.nii", b[:n]), Limits{}); err == nil {
				t.Fatalf("%d of %d bytes are accepted", n, len(b))
			}
		}
	}
	gz := zip(t, whole)
	for i := range gz {
		b := slices.Clone(gz)
		b[i] ^= 0x10
		if _, got, _, err := image(save(t, "a.nii", b), Limits{}); err == nil && !slices.Equal(got, want) {
			t.Fatalf("byte %d flipped unseen", i)
		}
	}
}

func TestWhatFollows(t *testing.T) {
	whole := base(t)
	gz := zip(t, whole)
	for _, c := range []struct {
		name, want string
		b          []byte
	}{
		{"more.nii", "5 bytes more than the header says", append(slices.Clone(whole), "extra"...)},
		{"more.nii.gz", "5 bytes more than the header says", zip(t, append(slices.Clone(whole), "extra"...))},
		{"nuls.nii.gz", "", append(slices.Clone(gz), make([]byte, 5000)...)},
		{"junk.nii.gz", "4 bytes after the gzip data", append(slices.Clone(gz), "junk"...)},
		{"members.nii.gz", "", append(zip(t, whole[:360]), zip(t, whole[360:])...)},
		{"bitpix.nii", "bitpix=8 for int16", func() []byte { b := slices.Clone(whole); put16(72, 8)(b); return b }()},
		{"zero-offset.nii", "", func() []byte { b := slices.Clone(whole); put32(108, 0)(b); return b }()},
	} {
		_, v, warnings, err := image(save(t, c.name, c.b), Limits{})
		text := strings.Join(warnings, "; ")
		if err != nil || len(v) != 24 || v[23] != 123 || c.want == "" && text != "" || !strings.Contains(text, c.want) {
			t.Errorf("%s: %v, %v, %q (want %q)", c.name, v, err, text, c.want)
		}
	}
}

func TestExtensions(t *testing.T) {
	for _, o := range orders {
		h := fixtureHeader(Int16, 1, o)
		h.Extensions = []Extension{{Code: 6, Data: []byte("a comment of 24 bytes...")}, {Code: 4, Data: make([]byte, 100)}}
		path := save(t, "a.nii", file(t, h))
		got, v, warnings, err := image(path, Limits{})
		if err != nil || len(warnings) > 0 || v[23] != 123 || len(got.Extensions) != 2 || got.Extensions[0].Code != 6 ||
			string(got.Extensions[0].Data) != "a comment of 24 bytes..." || len(got.Extensions[1].Data) != 104 {
			t.Fatalf("%+v, %v, %q", got.Extensions, err, warnings)
		}
		if d := got.Derive(Float32, [3]int{1, 2, 3}); len(d.Extensions) != 2 {
			t.Error("extensions are lost in a derived header")
		}
	}
	// A flag with nothing behind it, sizes that don't add up: ignored.
	for _, size := range []int32{0, 7, -16, 17 << 20} {
		h := fixtureHeader(Int16, 1, binary.LittleEndian)
		h.Extensions = []Extension{{Code: 6, Data: make([]byte, 8)}}
		b := file(t, h)
		binary.LittleEndian.PutUint32(b[352:], uint32(size))
		got, v, _, err := image(save(t, "a.nii", b), Limits{})
		if err != nil || v[23] != 123 || len(got.Extensions) != 0 {
			t.Errorf("size %d: %+v, %v", size, got.Extensions, err)
		}
	}
	b := base(t)
	b[348] = 1
	if _, v, _, err := image(save(t, "a.nii", b), Limits{}); err != nil || v[23] != 123 {
		t.Errorf("bogus flag: %v", err)
	}
}

func TestReaderRefuses(t *testing.T) {
	r, err := Open(save(t, "a.nii", base(t)), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if err := r.SkipTo(20); err != nil {
		t.Fatal(err)
	}
	if err := r.SkipTo(3); err == nil {
		t.Error("goes back")
	}
	if err := r.SkipTo(25); err == nil {
		t.Error("goes past the end")
	}
	if _, err := r.Read(make([]byte, 9)); !errors.Is(err, io.EOF) {
		t.Errorf("reads past the end: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// A file that is written to while it is read is neither what it was nor what it becomes.
func TestReaderSeesAChange(t *testing.T) {
	path := save(t, "a.nii", base(t))
	for name, change := range map[string]func() error{
		"written to": func() error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte{1}, 360)
			return errors.Join(err, f.Close(), os.Chtimes(path, time.Time{}, time.Unix(1, 0))) // whatever the clock's steps
		},
		"longer": func() error { return os.Truncate(path, 500) },
		"cut":    func() error { return os.Truncate(path, 370) },
	} {
		if err := os.WriteFile(path, base(t), 0o666); err != nil {
			t.Fatal(err)
		}
		r, err := Open(path, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Finish(); err == nil || err.Error() != "the file was changed while it was read" {
			t.Errorf("%s: %v", name, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(path, base(t), 0o666); err != nil {
		t.Fatal(err)
	}
	r, err := Open(path, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Finish(); err != nil {
		t.Errorf("removed: %v", err) // what was opened is all there
	}
}
