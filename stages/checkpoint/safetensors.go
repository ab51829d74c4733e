package checkpoint

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"os"

	"github.com/flowrun/flowrun/stages/volume"
)

// chunk is the size of the buffers between arrays and files: the state is never held twice.
const chunk = 1 << 18

// Bytes is the size on disk of arrays as Write would write them without metadata. Only names and shapes count.
func Bytes(arrays []volume.Array) int64 {
	h, err := newHeader(arrays, nil, false)
	if err != nil {
		return 0
	}
	return h.bytes()
}

// Write writes arrays as a safetensors file of F32 tensors in the order given, with meta as its __metadata__. The key
// sha256 is not free: it belongs to sealed files.
func Write(w io.Writer, arrays []volume.Array, meta map[string]string) error {
	h, err := newHeader(arrays, meta, false)
	if err != nil {
		return err
	}
	return write(w, h, arrays)
}

func write(w io.Writer, h *header, arrays []volume.Array) error {
	for i, t := range h.tensors {
		if int64(len(arrays[i].Data)) != t.Bytes/4 {
			return fmt.Errorf("tensor %q: %d values for shape %v", t.Name, len(arrays[i].Data), t.Shape)
		}
	}
	var word [8]byte
	binary.LittleEndian.PutUint64(word[:], uint64(len(h.raw)))
	if _, err := w.Write(word[:]); err != nil {
		return err
	}
	if _, err := w.Write(h.raw); err != nil {
		return err
	}
	buf := make([]byte, chunk)
	for _, a := range arrays {
		for data := a.Data; len(data) > 0; {
			n := min(len(data), chunk/4)
			for i, v := range data[:n] {
				binary.LittleEndian.PutUint32(buf[4*i:], math.Float32bits(v))
			}
			if _, err := w.Write(buf[:4*n]); err != nil {
				return err
			}
			data = data[n:]
		}
	}
	return nil
}

// Read reads any safetensors file whose tensors are of the types F32, F16, BF16, F64, I64, I32, I16, I8, U8 or BOOL,
// as float32 (F64, I64 and I32 are rounded). The seal of a checkpoint is checked. Arrays come in the order of their
// bytes. Errors start with the path.
func Read(path string) ([]volume.Array, map[string]string, error) {
	var arrays []volume.Array
	h, err := scan(path, func(r io.Reader, h *header) (err error) {
		arrays, err = readArrays(r, h)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return arrays, h.meta, nil
}

// scan opens path, reads its header and has body read all the rest; then it checks the seal, if there is one.
func scan(path string, body func(r io.Reader, h *header) error) (*header, error) {
	f, size, err := open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	h, err := decode(f, size, body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return h, nil
}

// decode is scan for the size bytes of r.
func decode(r io.Reader, size int64, body func(r io.Reader, h *header) error) (*header, error) {
	h, err := readHeader(r, size)
	if err != nil {
		return nil, err
	}
	sum := newSum(h)
	if err := body(io.TeeReader(r, sum), h); err != nil {
		return nil, torn(err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); h.seal != "" && got != h.seal {
		return nil, fmt.Errorf("damaged: SHA-256 is %s (want %s)", got, h.seal)
	}
	return h, nil
}

// open opens a regular file and gives its size.
func open(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, reason(err))
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a file")
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, fmt.Errorf("%s: %w", path, reason(err))
	}
	return f, info.Size(), nil
}

// newSum is the hash of a file, fed up to the tensors' bytes.
func newSum(h *header) hash.Hash {
	sum := sha256.New()
	var word [8]byte
	binary.LittleEndian.PutUint64(word[:], uint64(len(h.raw)))
	_, _ = sum.Write(word[:])
	_, _ = sum.Write(h.unsealedRaw())
	return sum
}

func readArrays(r io.Reader, h *header) ([]volume.Array, error) {
	arrays := make([]volume.Array, len(h.tensors))
	buf := make([]byte, chunk)
	for i, t := range h.tensors {
		kind, err := dtype(t.DType)
		if err != nil {
			return nil, err
		}
		data := make([]float32, t.Bytes/int64(kind.size))
		arrays[i] = volume.Array{Name: t.Name, Shape: t.Shape, Data: data}
		for len(data) > 0 {
			n := min(len(data), chunk/kind.size)
			b := buf[:n*kind.size]
			if _, err := io.ReadFull(r, b); err != nil {
				return nil, fmt.Errorf("tensor %q: %w", t.Name, torn(err))
			}
			for j := range n {
				data[j] = kind.float(b[j*kind.size:])
			}
			data = data[n:]
		}
	}
	return arrays, nil
}

// kind is how a tensor type is stored: its size in bytes and its value as float32.
type kind struct {
	size  int
	float func(b []byte) float32
}

func dtype(name string) (kind, error) {
	le := binary.LittleEndian
	switch name {
	case "F32":
		return kind{4, func(b []byte) float32 { return math.Float32frombits(le.Uint32(b)) }}, nil
	case "F16":
		return kind{2, func(b []byte) float32 { return half(le.Uint16(b)) }}, nil
	case "BF16":
		return kind{2, func(b []byte) float32 { return math.Float32frombits(uint32(le.Uint16(b)) << 16) }}, nil
	case "F64":
		return kind{8, func(b []byte) float32 { return float32(math.Float64frombits(le.Uint64(b))) }}, nil
	case "I64":
		return kind{8, func(b []byte) float32 { return float32(int64(le.Uint64(b))) }}, nil
	case "I32":
		return kind{4, func(b []byte) float32 { return float32(int32(le.Uint32(b))) }}, nil
	case "I16":
		return kind{2, func(b []byte) float32 { return float32(int16(le.Uint16(b))) }}, nil
	case "I8":
		return kind{1, func(b []byte) float32 { return float32(int8(b[0])) }}, nil
	case "U8", "BOOL":
		return kind{1, func(b []byte) float32 { return float32(b[0]) }}, nil
	}
	return kind{}, fmt.Errorf("dtype %q (want F32, F16, BF16, F64, I64, I32, I16, I8, U8 or BOOL)", name)
}

// half is the value of an IEEE 754 binary16.
func half(h uint16) float32 {
	sign, exp, frac := uint32(h>>15)<<31, uint32(h>>10&31), uint32(h&1023)
	switch exp {
	case 0: // zero and subnormals: frac · 2^-24
		return math.Float32frombits(sign | math.Float32bits(float32(frac)*0x1p-24))
	case 31: // infinity, NaN
		return math.Float32frombits(sign | 0xff<<23 | frac<<13)
	}
	return math.Float32frombits(sign | (exp+127-15)<<23 | frac<<13)
}
