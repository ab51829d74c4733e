package safetensors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/volume"
	"pgregory.net/rapid"
)

// put writes a safetensors file of a header and data to a fresh path.
func put(t testing.TB, header, data string) string {
	t.Helper()
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return putBytes(t, append(append(b, header...), data...))
}

func putBytes(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.safetensors")
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWriteIsTheFormatByteForByte(t *testing.T) {
	var b bytes.Buffer
	arrays := []volume.Array{{Name: "b", Shape: []int{2}, Data: []float32{1, -2}}, {Name: "a", Shape: nil, Data: []float32{0.5}}}
	if err := Write(&b, Floats(arrays), map[string]string{"k": "<v>"}); err != nil {
		t.Fatal(err)
	}
	header := `{"__metadata__":{"k":"<v>"},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[],"data_offsets":[8,12]}}`
	header += strings.Repeat(" ", (8-len(header)%8)%8)
	want := string([]byte{byte(len(header))}) + "\x00\x00\x00\x00\x00\x00\x00" + header + "\x00\x00\x80\x3f\x00\x00\x00\xc0\x00\x00\x00\x3f"
	if b.String() != want {
		t.Errorf("got  %q\nwant %q", b.String(), want)
	}
}

// arrayGen draws arrays of any bits, empty ones and scalars included.
func arrayGen() *rapid.Generator[[]volume.Array] {
	return rapid.Custom(func(t *rapid.T) []volume.Array {
		names := rapid.SliceOfNDistinct(rapid.String(), 0, 5, rapid.ID).Draw(t, "names")
		var arrays []volume.Array
		for _, name := range names {
			if name == metadata {
				continue
			}
			shape := rapid.SliceOfN(rapid.IntRange(0, 5), 0, 4).Draw(t, "shape")
			n, _ := elements(shape)
			bits := rapid.SliceOfN(rapid.Uint32(), int(n), int(n)).Draw(t, "bits")
			data := make([]float32, n)
			for i, b := range bits {
				data[i] = math.Float32frombits(b)
			}
			arrays = append(arrays, volume.Array{Name: name, Shape: shape, Data: data})
		}
		return arrays
	})
}

func TestWriteThenReadIsIdentity(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.safetensors")
	rapid.Check(t, func(t *rapid.T) {
		arrays := arrayGen().Draw(t, "arrays")
		meta := rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "meta")
		delete(meta, SealKey)
		var b bytes.Buffer
		if err := Write(&b, Floats(arrays), meta); err != nil {
			t.Fatal(err)
		}
		if h, err := NewHeader(Floats(arrays), meta, false); err != nil || h.Bytes() != int64(b.Len()) {
			t.Fatalf("%v, Bytes = %d, wrote %d", err, h.Bytes(), b.Len())
		}
		if n := binary.LittleEndian.Uint64(b.Bytes()); n%8 != 0 {
			t.Fatalf("header of %d bytes: not aligned", n)
		}
		if err := os.WriteFile(path, b.Bytes(), 0o666); err != nil {
			t.Fatal(err)
		}
		got, gotMeta, err := Read(path)
		if err := errors.Join(err, same(got, arrays)); err != nil || !maps.Equal(meta, gotMeta) {
			t.Fatalf("metadata %q, want %q: %v", gotMeta, meta, err)
		}
	})
}

// same compares arrays bit by bit. An empty tensor may come before one that starts where it does.
func same(got, want []volume.Array) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d arrays, want %d", len(got), len(want))
	}
	for _, w := range want {
		i := slices.IndexFunc(got, func(a volume.Array) bool { return a.Name == w.Name })
		if i < 0 {
			return fmt.Errorf("no %q", w.Name)
		}
		if !slices.Equal(got[i].Shape, w.Shape) {
			return fmt.Errorf("%q: shape %v, want %v", w.Name, got[i].Shape, w.Shape)
		}
		if !slices.EqualFunc(got[i].Data, w.Data, func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) }) {
			return fmt.Errorf("%q: other values", w.Name)
		}
	}
	return nil
}

func TestWriteRefuses(t *testing.T) {
	one := []float32{1}
	for want, arrays := range map[string][]volume.Array{
		`tensor "a": the name is taken`:            {{Name: "a", Data: one}, {Name: "a", Data: one}},
		`tensor "__metadata__": the name is taken`: {{Name: metadata, Data: one}},
		`tensor "\xff": the name is not UTF-8`:     {{Name: "\xff", Data: one}},
		`tensor "a": shape [-1]`:                   {{Name: "a", Shape: []int{-1}, Data: one}},
		`tensor "a": 1 values for shape [2]`:       {{Name: "a", Shape: []int{2}, Data: one}},
		`tensor "a": shape [4294967296 4294967296]`: {
			{Name: "a", Shape: []int{1 << 32, 1 << 32}, Data: one}},
		`tensor "b": more than 2^63 bytes`: {
			{Name: "a", Shape: []int{1 << 60}}, {Name: "b", Shape: []int{1 << 60}}},
	} {
		if err := Write(&bytes.Buffer{}, Floats(arrays), nil); err == nil || err.Error() != want {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
	if err := Write(&bytes.Buffer{}, nil, map[string]string{SealKey: unsealed}); err == nil {
		t.Error("a seal that nobody checked was written")
	}
	if err := Write(&bytes.Buffer{}, nil, map[string]string{"k": "\xff"}); err == nil {
		t.Error("metadata that isn't UTF-8 was written")
	}
	if err := Write(&bytes.Buffer{}, nil, map[string]string{"k": strings.Repeat("x", maxHeader)}); err == nil {
		t.Error("a header that no reader takes was written")
	}
}

func TestReadConvertsEveryType(t *testing.T) {
	inf := float32(math.Inf(1))
	for _, c := range []struct {
		dtype, data string
		want        []float32
	}{
		{"F32", "\x00\x00\xc0\x3f", []float32{1.5}},
		{"F16", "\x00\x3c\x00\xc0\x01\x00\xff\x7b\x00\x7c\xff\x83\x00\x80\x00\x04",
			[]float32{1, -2, 0x1p-24, 65504, inf, -1023 * 0x1p-24, float32(math.Copysign(0, -1)), 0x1p-14}},
		{"BF16", "\xc0\x3f\x80\xff", []float32{1.5, -inf}},
		{"F64", "\x00\x00\x00\x00\x00\x00\xf8\x3f", []float32{1.5}},
		{"I64", "\xfe\xff\xff\xff\xff\xff\xff\xff", []float32{-2}},
		{"I32", "\xfe\xff\xff\xff", []float32{-2}},
		{"I16", "\xfe\xff\x01\x00", []float32{-2, 1}},
		{"I8", "\xfe\x01", []float32{-2, 1}},
		{"U64", "\xfe\x00\x00\x00\x00\x00\x00\x80", []float32{0x1p63}},
		{"U32", "\xfe\x00\x00\x80", []float32{0x1p31 + 254}},
		{"U16", "\xfe\xff\x01\x00", []float32{65534, 1}},
		{"U8", "\xfe\x01", []float32{254, 1}},
		{"BOOL", "\x00\x01", []float32{0, 1}},
	} {
		path := put(t, fmt.Sprintf(`{"a":{"dtype":%q,"shape":[%d],"data_offsets":[0,%d]}}`, c.dtype, len(c.want), len(c.data)), c.data)
		got, _, err := Read(path)
		if err != nil {
			t.Errorf("%s: %v", c.dtype, err)
			continue
		}
		if err := same(got, []volume.Array{{Name: "a", Shape: []int{len(c.want)}, Data: c.want}}); err != nil {
			t.Errorf("%s: %v: %v, want %v", c.dtype, err, got[0].Data, c.want)
		}
	}
	if got := half(0x7e00); got == got {
		t.Errorf("half NaN = %v", got)
	}
}

func TestReadTakesWhatTheFormatAllows(t *testing.T) {
	for name, header := range map[string]string{
		"tensors listed out of order": `{"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}`,
		"padding":                     `{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}      `,
		"metadata last":               `{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"__metadata__":{"x":"y"}}`,
		"an empty tensor listed after the one it precedes": `{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"e":{"dtype":"F32","shape":[3,0],"data_offsets":[0,0]}}`,
		"a sha256 entry elsewhere":                         `{"__metadata__":{"x":"y","sha256":"` + unsealed + `"},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`,
		"a sha256 that isn't one":                          `{"__metadata__":{"sha256":"none"},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`,
	} {
		arrays, _, err := Read(put(t, header, "abcd"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if arrays[len(arrays)-1].Data[0] < 'a' {
			t.Errorf("%s: %v", name, arrays)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	tensor := func(s string) string { return `{"a":{"dtype":"U8",` + s + `}}` }
	for _, c := range []struct{ name, header, want string }{
		{"no object", `[]`, "header: not a JSON object"},
		{"leading space", ` {}`, "header: not a JSON object"},
		{"empty", ``, "header: not a JSON object"},
		{"cut", `{"a":`, "torn"},
		{"cut in a tensor", `{"a":{"dtype":`, "torn"},
		{"two objects", `{}{}`, "more than a JSON object"},
		{"not UTF-8", "{\"\xff\":{}}", "not UTF-8"},
		{"a name twice", `{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`, `"a": twice`},
		{"metadata twice", `{"__metadata__":{},"__metadata__":{}}`, "twice"},
		{"a metadata key twice", `{"__metadata__":{"k":"1","k":"2"}}`, `metadata "k": twice`},
		{"metadata not strings", `{"__metadata__":{"k":1}}`, `metadata "k": not a string`},
		{"metadata not an object", `{"__metadata__":"k"}`, "where an object should be"},
		{"no shape", tensor(`"data_offsets":[0,4]`), "want dtype, shape and two data_offsets"},
		{"one offset", tensor(`"shape":[4],"data_offsets":[4]`), "want dtype, shape and two data_offsets"},
		{"three offsets", tensor(`"shape":[4],"data_offsets":[0,2,4]`), "want dtype, shape and two data_offsets"},
		{"unknown type", `{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}`, `dtype "F8_E4M3"`},
		{"shape and bytes differ", tensor(`"shape":[3],"data_offsets":[0,4]`), "don't hold shape"},
		{"negative dimension", tensor(`"shape":[-4],"data_offsets":[0,4]`), "shape [-4]"},
		{"huge shape", tensor(`"shape":[4294967296,4294967296],"data_offsets":[0,4]`), "shape"},
		{"huge shape times size", `{"a":{"dtype":"F64","shape":[9223372036854775807],"data_offsets":[0,4]}}`, "don't hold shape"},
		{"backwards", tensor(`"shape":[0],"data_offsets":[4,0]`), "don't hold shape"},
		{"negative offset", tensor(`"shape":[8],"data_offsets":[-4,4]`), "don't hold shape"},
		{"fraction", tensor(`"shape":[4.5],"data_offsets":[0,4]`), "cannot unmarshal"},
		{"hole at the start", tensor(`"shape":[3],"data_offsets":[1,4]`), "no holes"},
		{"overlap", `{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}}`, "no overlaps"},
		{"past the end", tensor(`"shape":[5],"data_offsets":[0,5]`), "torn or damaged"},
		{"bytes left over", tensor(`"shape":[3],"data_offsets":[0,3]`), "torn or damaged"},
		{"sums past 2^63", `{"a":{"dtype":"U8","shape":[9223372036854775807],"data_offsets":[0,9223372036854775807]},"b":{"dtype":"U8","shape":[0],"data_offsets":[9223372036854775807,9223372036854775807]}}`, "torn or damaged"},
	} {
		path := put(t, c.header, "abcd")
		_, _, err := Read(path)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), path+": ") {
			t.Errorf("%s: got %v\nwant %s", c.name, err, c.want)
		}
	}
	for _, b := range []string{"", "\x02", "\x02\x00\x00\x00\x00\x00\x00\x00{", "\xff\xff\xff\xff\xff\xff\xff\xff{}", "\x01\xe1\xf5\x05\x00\x00\x00\x00{}"} {
		if _, err := Peek(putBytes(t, []byte(b))); err == nil {
			t.Errorf("%q was read", b)
		}
	}
	if _, err := Peek(t.TempDir()); err == nil || !strings.HasSuffix(err.Error(), ": not a file") {
		t.Errorf("a folder: %v", err)
	}
	if _, err := Peek("nowhere.safetensors"); err == nil || err.Error() != "nowhere.safetensors: no such file or directory" {
		t.Errorf("no file: %v", err)
	}
}

// What reads as a file is written again as an equal one; nothing else may happen to any bytes.
func FuzzRead(f *testing.F) {
	add := func(header, data string) {
		f.Add(append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...), data...))
	}
	add(`{}`, "")
	add(`{"__metadata__":{"k":"v"},"a":{"dtype":"F16","shape":[2,1],"data_offsets":[0,4]},"b":{"dtype":"I64","shape":[],"data_offsets":[4,12]}}`, "abcdefghijkl")
	add(`{"a":{"dtype":"F32","shape":[0,9],"data_offsets":[0,0]}}  `, "")
	add(sealPrefix+unsealed+`"}}`, "")
	var b bytes.Buffer
	_ = Write(&b, []Array{{"w", []int{1, 2}, F32{1, 2}}, {"i", []int{1}, I32{-1}}, {"u", nil, U16{65535}}}, map[string]string{"k": `{"version":1}`})
	f.Add(b.Bytes())
	readAll := func(b []byte) (arrays []volume.Array, meta map[string]string, err error) {
		h, err := Decode(bytes.NewReader(b), int64(len(b)), func(r io.Reader, h *Header) (err error) {
			arrays, err = h.Arrays(r)
			return err
		})
		if err != nil {
			return nil, nil, err
		}
		return arrays, h.Meta, nil
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		arrays, meta, err := readAll(b)
		if _, ok := meta[SealKey]; err != nil || ok {
			return
		}
		var again bytes.Buffer
		if err := Write(&again, Floats(arrays), meta); err != nil {
			t.Fatal(err)
		}
		got, gotMeta, err := readAll(again.Bytes())
		if err := errors.Join(err, same(got, arrays)); err != nil || !maps.Equal(meta, gotMeta) {
			t.Fatalf("metadata %q, want %q: %v", gotMeta, meta, err)
		}
	})
}
