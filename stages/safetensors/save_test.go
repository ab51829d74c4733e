package safetensors

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/files"
	"pgregory.net/rapid"
)

// sealed is a file of codes and latents, as bytes.
func sealed(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a")
	arrays := []Array{{"f", []int{2}, F32{1, -2}}, {"i", []int{1}, I32{-2}}, {"u", []int{3}, U16{0, 1, 65535}}}
	h, err := NewHeader(arrays, map[string]string{"k": "v"}, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := Save(t.Context(), files.Local(), path, h, arrays); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || int64(len(b)) != h.Bytes() {
		t.Fatalf("%d bytes (want %d), %v", len(b), h.Bytes(), err)
	}
	return b
}

func TestASealedFileByteForByte(t *testing.T) {
	b := sealed(t)
	zeros := strings.Repeat("0", 64)
	header := `{"__metadata__":{"sha256":"` + zeros + `","k":"v"},"f":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},` +
		`"i":{"dtype":"I32","shape":[1],"data_offsets":[8,12]},"u":{"dtype":"U16","shape":[3],"data_offsets":[12,18]}}`
	header += strings.Repeat(" ", (8-len(header)%8)%8)
	want := string([]byte{byte(len(header)), byte(len(header) >> 8)}) + "\x00\x00\x00\x00\x00\x00" + header +
		"\x00\x00\x80\x3f\x00\x00\x00\xc0\xfe\xff\xff\xff\x00\x00\x01\x00\xff\xff"
	sum := sha256.Sum256([]byte(want))
	if want = strings.Replace(want, zeros, hex.EncodeToString(sum[:]), 1); string(b) != want {
		t.Errorf("got  %q\nwant %q", b, want)
	}
}

// A body that reads less than all of a sealed file still hears of damage behind it.
func TestTheSealCoversWhatNobodyRead(t *testing.T) {
	b := sealed(t)
	first := func(r io.Reader, h *Header) error {
		data, err := h.Tensors[0].Floats(r)
		if err == nil && !slices.Equal(data, []float32{1, -2}) {
			err = fmt.Errorf("%v", data)
		}
		return err
	}
	if h, err := Decode(bytes.NewReader(b), int64(len(b)), first); err != nil || len(h.Seal) != 64 || len(h.Meta) != 1 {
		t.Errorf("%+v, %v", h, err)
	}
	b[len(b)-1]++
	_, err := Decode(bytes.NewReader(b), int64(len(b)), first)
	if damaged, ok := errors.AsType[*DamagedError](err); !ok || damaged.Got == damaged.Want || err.Error() != "damaged: SHA-256 is "+damaged.Got+" (want "+damaged.Want+")" {
		t.Errorf("got %v", err)
	}
}

func TestTensorsOneByOne(t *testing.T) {
	b := sealed(t)
	_, err := Decode(bytes.NewReader(b), int64(len(b)), func(r io.Reader, h *Header) error {
		if err := h.Tensors[0].Skip(r); err != nil {
			return err
		}
		if err := h.Tensors[1].Skip(r); err != nil {
			return err
		}
		codes, err := h.Tensors[2].Codes(r, 65536)
		if err == nil && !slices.Equal(codes, []int32{0, 1, 65535}) {
			t.Errorf("codes %v", codes)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestCodesOfEveryType(t *testing.T) {
	const eight = "\x05\x00\x00\x00\x00\x00\x00\x00"
	high := strings.Repeat("\xff", 8)
	for _, c := range []struct {
		dtype string
		size  int
		high  string // its highest bits set, as a code
	}{
		{"U8", 1, "255"}, {"I8", 1, "-1"}, {"U16", 2, "65535"}, {"I16", 2, "-1"}, {"U32", 4, "4294967295"}, {"I32", 4, "-1"},
		{"U64", 8, "18446744073709551615"}, {"I64", 8, "-1"},
	} {
		tensor := Tensor{"c", c.dtype, []int{2}, int64(2 * c.size)}
		got, err := tensor.Codes(strings.NewReader(eight[:c.size]+eight[:c.size]), 6)
		if err != nil || !slices.Equal(got, []int32{5, 5}) {
			t.Errorf("%s: %v, %v", c.dtype, got, err)
		}
		for data, want := range map[string]string{eight[:c.size] + high[:c.size]: c.high + " at place 1", eight[:c.size] + "\x06" + eight[1:c.size]: "6 at place 1"} {
			if got, err := tensor.Codes(strings.NewReader(data), 6); err == nil || got != nil || err.Error() != `tensor "c": `+want+" (want 0 to 5)" {
				t.Errorf("%s: %v, %v", c.dtype, got, err)
			}
		}
		if _, err := tensor.Codes(strings.NewReader(eight[:c.size]), 6); err == nil || err.Error() != `tensor "c": torn: it ends too early` {
			t.Errorf("%s: %v", c.dtype, err)
		}
	}
	for _, dtype := range []string{"F32", "BF16", "F8"} {
		if _, err := (Tensor{"c", dtype, nil, 4}).Codes(strings.NewReader("abcd"), 5); err == nil || err.Error() != `tensor "c": dtype "`+dtype+`" (want integers)` {
			t.Errorf("got %v", err)
		}
	}
}

func TestIntegersAreWrittenAndRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.SampledFrom([]int{0, 1, 7, chunk/4 + 1, chunk/2 + 3}).Draw(t, "n")
		seed := rapid.Uint32().Draw(t, "seed")
		ints, small := make(I32, n), make(U16, n)
		for i := range n {
			seed = seed*1664525 + 1013904223
			ints[i], small[i] = int32(seed>>1), uint16(seed>>16)
		}
		var b bytes.Buffer
		if err := Write(&b, []Array{{"i", []int{n}, ints}, {"u", []int{n}, small}}, nil); err != nil {
			t.Fatal(err)
		}
		_, err := Decode(&b, int64(b.Len()), func(r io.Reader, h *Header) error {
			got, err := h.Tensors[0].Codes(r, 1<<31)
			if err != nil || !slices.Equal(got, ints) {
				t.Fatalf("%d integers: %v", n, err)
			}
			got, err = h.Tensors[1].Codes(r, 1<<16)
			if err != nil || !slices.EqualFunc(got, small, func(a int32, b uint16) bool { return a == int32(b) }) {
				t.Fatalf("%d small integers: %v", n, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestSaveIsAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	arrays := []Array{{"w", []int{1}, F32{1}}}
	h, err := NewHeader(arrays, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := NewHeader(arrays, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	stopped, stop := context.WithCancelCause(t.Context())
	why := errors.New("second signal")
	stop(why)
	for what, err := range map[string]error{
		"stopped": Save(stopped, files.Local(), path, h, arrays),
		"plain":   Save(t.Context(), files.Local(), path, plain, arrays),
		"short":   Save(t.Context(), files.Local(), path, h, []Array{{"w", []int{1}, F32{}}}),
		"nowhere": Save(t.Context(), files.Local(), filepath.Join(dir, "none", "a"), h, arrays),
	} {
		if err == nil || what == "stopped" && !errors.Is(err, why) || strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind %v", left)
	}
}
