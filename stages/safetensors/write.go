package safetensors

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/flowrun/flowrun/stages/volume"
)

// chunk is the size of the buffers between arrays and files: the state is never held twice.
const chunk = 1 << 18

// Array is a named tensor to write, row-major.
type Array struct {
	Name   string
	Shape  []int
	Values Values
}

// Values are the elements of a tensor: F32, I32 or U16.
type Values interface {
	kind() (dtype string, size int64)
	count() int
	// put writes elements from place at on until b has no room, and returns how many.
	put(b []byte, at int) int
}

// Values in the types that can be written.
type (
	F32 []float32
	I32 []int32
	U16 []uint16
)

func (F32) kind() (string, int64) { return "F32", 4 }
func (I32) kind() (string, int64) { return "I32", 4 }
func (U16) kind() (string, int64) { return "U16", 2 }

func (v F32) count() int { return len(v) }
func (v I32) count() int { return len(v) }
func (v U16) count() int { return len(v) }

func (v F32) put(b []byte, at int) int {
	n := min(len(v)-at, len(b)/4)
	for i, x := range v[at : at+n] {
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(x))
	}
	return n
}

func (v I32) put(b []byte, at int) int {
	n := min(len(v)-at, len(b)/4)
	for i, x := range v[at : at+n] {
		binary.LittleEndian.PutUint32(b[4*i:], uint32(x))
	}
	return n
}

func (v U16) put(b []byte, at int) int {
	n := min(len(v)-at, len(b)/2)
	for i, x := range v[at : at+n] {
		binary.LittleEndian.PutUint16(b[2*i:], x)
	}
	return n
}

// Floats are arrays as F32.
func Floats(arrays []volume.Array) []Array {
	list := make([]Array, len(arrays))
	for i, a := range arrays {
		list[i] = Array{a.Name, a.Shape, F32(a.Data)}
	}
	return list
}

// Write writes arrays as a file without a seal, in the order given, with meta as its __metadata__. The key sha256 is
// not free: it belongs to sealed files.
func Write(w io.Writer, arrays []Array, meta map[string]string) error {
	h, err := NewHeader(arrays, meta, false)
	if err != nil {
		return err
	}
	return h.write(w, arrays)
}

func (h *Header) write(w io.Writer, arrays []Array) error {
	for i, t := range h.Tensors {
		if _, size := arrays[i].Values.kind(); int64(arrays[i].Values.count()) != t.Bytes/size {
			return fmt.Errorf("tensor %q: %d values for shape %v", t.Name, arrays[i].Values.count(), t.Shape)
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
		_, size := a.Values.kind()
		for at := 0; at < a.Values.count(); {
			n := a.Values.put(buf, at)
			if _, err := w.Write(buf[:n*int(size)]); err != nil {
				return err
			}
			at += n
		}
	}
	return nil
}
