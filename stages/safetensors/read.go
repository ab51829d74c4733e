package safetensors

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"os"
	"strconv"

	"github.com/flowrun/flowrun/stages/files"
	"github.com/flowrun/flowrun/stages/volume"
)

// Read reads any file whose tensors are of the types F32, F16, BF16, F64 or integers, as float32 (F64 and integers of
// more than 24 bits are rounded). The seal, if there is one, is checked. Arrays come in the order of their bytes. Errors
// start with the path.
func Read(path string) ([]volume.Array, map[string]string, error) {
	var arrays []volume.Array
	h, err := Open(path, func(r io.Reader, h *Header) (err error) {
		arrays, err = h.Arrays(r)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return arrays, h.Meta, nil
}

// Peek reads only the header of a file; a seal is stated, not checked. Errors start with the path.
func Peek(path string) (*Header, error) {
	f, size, err := open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	h, err := readHeader(f, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return h, nil
}

// Open opens path, reads its header and has body read all the rest, or as much as it wants; then it checks the seal, if
// there is one. What body kept is to be trusted only if there is no error. Errors start with the path.
func Open(path string, body func(r io.Reader, h *Header) error) (*Header, error) {
	f, size, err := open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	h, err := Decode(f, size, body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return h, nil
}

// Decode is Open for the size bytes of r.
func Decode(r io.Reader, size int64, body func(r io.Reader, h *Header) error) (*Header, error) {
	h, err := readHeader(r, size)
	if err != nil {
		return nil, err
	}
	sum := newSum(h)
	in := bufio.NewReaderSize(io.TeeReader(r, sum), chunk)
	if err := body(in, h); err != nil {
		return nil, torn(err)
	}
	if h.Seal == "" {
		return h, nil
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return nil, err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != h.Seal {
		return nil, &DamagedError{Got: got, Want: h.Seal}
	}
	return h, nil
}

// DamagedError says that a sealed file isn't what was written.
type DamagedError struct{ Got, Want string } // hex SHA-256

func (e *DamagedError) Error() string {
	return fmt.Sprintf("damaged: SHA-256 is %s (want %s)", e.Got, e.Want)
}

// open opens a regular file and gives its size.
func open(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, files.Reason(err))
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a file")
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, fmt.Errorf("%s: %w", path, files.Reason(err))
	}
	return f, info.Size(), nil
}

// newSum is the hash of a file, fed up to the tensors' bytes.
func newSum(h *Header) hash.Hash {
	sum := sha256.New()
	var word [8]byte
	binary.LittleEndian.PutUint64(word[:], uint64(len(h.raw)))
	_, _ = sum.Write(word[:])
	_, _ = sum.Write(h.unsealedRaw())
	return sum
}

// Arrays reads all tensors, in the order of their bytes.
func (h *Header) Arrays(r io.Reader) ([]volume.Array, error) {
	arrays := make([]volume.Array, len(h.Tensors))
	for i, t := range h.Tensors {
		data, err := t.Floats(r)
		if err != nil {
			return nil, err
		}
		arrays[i] = volume.Array{Name: t.Name, Shape: t.Shape, Data: data}
	}
	return arrays, nil
}

// Floats reads the tensor, at which r stands, as float32.
func (t Tensor) Floats(r io.Reader) ([]float32, error) {
	kind, err := dtype(t.DType)
	if err != nil {
		return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
	}
	data := make([]float32, t.Bytes/int64(kind.size))
	err = t.each(r, kind.size, func(at int, b []byte) error {
		d, size, float := data[at:], kind.size, kind.float
		for i := range len(b) / size {
			d[i] = float(b[i*size:])
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

// Codes reads the tensor, at which r stands, as integers 0 ≤ i < count. It is an error if its type isn't one of
// integers or if one lies outside.
func (t Tensor) Codes(r io.Reader, count int) ([]int32, error) {
	kind, err := dtype(t.DType)
	if err != nil || kind.int == nil {
		return nil, fmt.Errorf("tensor %q: dtype %q (want integers)", t.Name, t.DType)
	}
	data := make([]int32, t.Bytes/int64(kind.size))
	err = t.each(r, kind.size, func(at int, b []byte) error {
		for i := range len(b) / kind.size {
			x := kind.int(b[i*kind.size:])
			if x >= uint64(count) || x > math.MaxInt32 {
				value := strconv.FormatUint(x, 10)
				if t.DType[0] == 'I' {
					value = strconv.FormatInt(int64(x), 10)
				}
				return fmt.Errorf("tensor %q: %s at place %d (want 0 to %d)", t.Name, value, at+i, count-1)
			}
			data[at+i] = int32(x)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

// Skip passes over the tensor, at which r stands.
func (t Tensor) Skip(r io.Reader) error {
	if _, err := io.CopyN(io.Discard, r, t.Bytes); err != nil {
		return fmt.Errorf("tensor %q: %w", t.Name, torn(err))
	}
	return nil
}

// each gives use the bytes of the tensor, some elements at a time; at is the place of the first.
func (t Tensor) each(r io.Reader, size int, use func(at int, b []byte) error) error {
	buf := make([]byte, min(1<<14, t.Bytes)) // small, for r is buffered and there may be many tensors
	for at := int64(0); at < t.Bytes; {
		b := buf[:min(t.Bytes-at, int64(len(buf)))] // whole elements: both are multiples of size
		if _, err := io.ReadFull(r, b); err != nil {
			return fmt.Errorf("tensor %q: %w", t.Name, torn(err))
		}
		if err := use(int(at)/size, b); err != nil {
			return err
		}
		at += int64(len(b))
	}
	return nil
}

// kind is how a tensor type is stored: its size in bytes, its value as float32 and, if it is one of integers, as those,
// in two's complement.
type kind struct {
	size  int
	float func(b []byte) float32
	int   func(b []byte) uint64
}

func dtype(name string) (kind, error) {
	le := binary.LittleEndian
	signed := func(size int, value func(b []byte) int64) (kind, error) {
		return kind{size, func(b []byte) float32 { return float32(value(b)) }, func(b []byte) uint64 { return uint64(value(b)) }}, nil
	}
	unsigned := func(size int, value func(b []byte) uint64) (kind, error) {
		return kind{size, func(b []byte) float32 { return float32(value(b)) }, value}, nil
	}
	switch name {
	case "F32":
		return kind{size: 4, float: func(b []byte) float32 { return math.Float32frombits(le.Uint32(b)) }}, nil
	case "F16":
		return kind{size: 2, float: func(b []byte) float32 { return half(le.Uint16(b)) }}, nil
	case "BF16":
		return kind{size: 2, float: func(b []byte) float32 { return math.Float32frombits(uint32(le.Uint16(b)) << 16) }}, nil
	case "F64":
		return kind{size: 8, float: func(b []byte) float32 { return float32(math.Float64frombits(le.Uint64(b))) }}, nil
	case "I64":
		return signed(8, func(b []byte) int64 { return int64(le.Uint64(b)) })
	case "I32":
		return signed(4, func(b []byte) int64 { return int64(int32(le.Uint32(b))) })
	case "I16":
		return signed(2, func(b []byte) int64 { return int64(int16(le.Uint16(b))) })
	case "I8":
		return signed(1, func(b []byte) int64 { return int64(int8(b[0])) })
	case "U64":
		return unsigned(8, le.Uint64)
	case "U32":
		return unsigned(4, func(b []byte) uint64 { return uint64(le.Uint32(b)) })
	case "U16":
		return unsigned(2, func(b []byte) uint64 { return uint64(le.Uint16(b)) })
	case "U8", "BOOL":
		return unsigned(1, func(b []byte) uint64 { return uint64(b[0]) })
	}
	return kind{}, fmt.Errorf("dtype %q (want F32, F16, BF16, F64, I64, I32, I16, I8, U64, U32, U16, U8 or BOOL)", name)
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
