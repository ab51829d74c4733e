package nifti

import (
	"encoding/binary"
	"math"
	"unsafe"
)

// Float64 converts voxels as a file has them to numbers, unscaled: len(dst) voxels from src.
func (h *Header) Float64(dst []float64, src []byte) {
	o := h.Order
	switch h.Datatype {
	case Uint8:
		for i := range dst {
			dst[i] = float64(src[i])
		}
	case Int8:
		for i := range dst {
			dst[i] = float64(int8(src[i]))
		}
	case Int16:
		for i := range dst {
			dst[i] = float64(int16(o.Uint16(src[2*i:])))
		}
	case Uint16:
		for i := range dst {
			dst[i] = float64(o.Uint16(src[2*i:]))
		}
	case Int32:
		for i := range dst {
			dst[i] = float64(int32(o.Uint32(src[4*i:])))
		}
	case Uint32:
		for i := range dst {
			dst[i] = float64(o.Uint32(src[4*i:]))
		}
	case Float32:
		for i := range dst {
			dst[i] = float64(math.Float32frombits(o.Uint32(src[4*i:])))
		}
	case Int64:
		for i := range dst {
			dst[i] = float64(int64(o.Uint64(src[8*i:])))
		}
	case Uint64:
		for i := range dst {
			dst[i] = float64(o.Uint64(src[8*i:]))
		}
	case Float64:
		for i := range dst {
			dst[i] = math.Float64frombits(o.Uint64(src[8*i:]))
		}
	}
}

// Fits16 says that every sample of the file's type is an int16 plus Offset16.
func (h *Header) Fits16() bool { return h.Datatype.Size() <= 2 }

// Offset16 is what Int16 takes from samples: 32768 for uint16, else 0.
func (h *Header) Offset16() float64 {
	if h.Datatype == Uint16 {
		return 1 << 15
	}
	return 0
}

// Int16 converts voxels of 8 and 16 bits as a file has them to int16, less Offset16: len(dst) voxels from src.
func (h *Header) Int16(dst []int16, src []byte) {
	switch h.Datatype {
	case Uint8:
		for i, b := range src[:len(dst)] {
			dst[i] = int16(b)
		}
	case Int8:
		for i, b := range src[:len(dst)] {
			dst[i] = int16(int8(b))
		}
	case Int16, Uint16:
		flip := uint16(0)
		if h.Datatype == Uint16 {
			flip = 1 << 15
		}
		src = src[:2*len(dst)]
		if h.Order == binary.BigEndian {
			for i := range dst {
				dst[i] = int16(binary.BigEndian.Uint16(src[2*i:]) ^ flip)
			}
			return
		}
		if flip == 0 && binary.NativeEndian.Uint16([]byte{1, 0}) == 1 && len(dst) > 0 {
			copy(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(dst))), len(src)), src)
			return
		}
		for i := range dst {
			dst[i] = int16(binary.LittleEndian.Uint16(src[2*i:]) ^ flip)
		}
	}
}
