package nifti

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/flowrun/flowrun/stages/volume"
)

// New returns a header for voxels of the given type, dims and affine, in little endian, lengths in mm. It is NIfTI-1
// unless a dim needs NIfTI-2.
func New(t Type, dims [3]int, a volume.Affine) *Header {
	h := &Header{Version: 1, Order: binary.LittleEndian, Units: 2}
	h.SetAffine(a, 1)
	return h.Derive(t, dims)
}

// Derive returns the header of an image computed from h's: orientation, codes, units, description and extensions are
// h's; type and dims are given; scaling, display range and slice timing are reset. A dim past 32767 makes it NIfTI-2.
func (h *Header) Derive(t Type, dims [3]int) *Header {
	d := *h
	d.Raw, d.Files, d.Warnings, d.Pair = nil, nil, nil, false
	d.Datatype = t
	d.Dim = [8]int64{3, int64(dims[0]), int64(dims[1]), int64(dims[2]), 1, 1, 1, 1}
	if max(dims[0], dims[1], dims[2]) > math.MaxInt16 {
		d.Version = 2
	}
	for i := 4; i < 8; i++ {
		d.Pixdim[i] = 1
	}
	d.SclSlope, d.SclInter = 1, 0
	d.CalMax, d.CalMin = 0, 0
	d.SliceDuration, d.Toffset, d.SliceStart, d.SliceEnd, d.SliceCode = 0, 0, 0, 0, 0
	d.Units &= 7 // of space; there is no time axis any more
	d.DimInfo = 0
	return &d
}

// SetAffine makes a the sform, with a code, and its lengths the voxel size, and drops the qform.
func (h *Header) SetAffine(a volume.Affine, code int) {
	h.Srow, h.SformCode = a, int64(code)
	h.QformCode, h.Quatern, h.Qoffset = 0, [3]float64{}, [3]float64{}
	h.Pixdim[0] = 1
	for i, s := range Spacing(a) {
		h.Pixdim[i+1] = s
	}
}

// Encode gives the bytes of the header and its extensions, up to the voxels of a single file (padded to a multiple of
// 16) or to the end of an .hdr.
func (h *Header) Encode() ([]byte, error) {
	d := *h
	if d.Datatype.Size() == 0 {
		return nil, &TypeError{d.Datatype}
	}
	if d.Order == nil {
		return nil, fmt.Errorf("header: no byte order")
	}
	size, single, pair := size1, "n+1", "ni1"
	if d.Version == 2 {
		size, single, pair = size2, "n+2\x00\r\n\x1a\n", "ni2\x00\r\n\x1a\n"
	} else {
		for i, x := range d.Dim {
			if x > math.MaxInt16 {
				return nil, fmt.Errorf("header: dim[%d]=%d doesn't fit NIfTI-1", i, x)
			}
		}
	}
	tail := []byte{0, 0, 0, 0}
	for _, e := range d.Extensions {
		if len(e.Data) > maxExtensions {
			return nil, fmt.Errorf("header: an extension of %d bytes (at most %d)", len(e.Data), maxExtensions)
		}
		tail[0] = 1
		esize := (8 + len(e.Data) + 15) / 16 * 16
		b := make([]byte, esize)
		d.Order.PutUint32(b, uint32(esize))
		d.Order.PutUint32(b[4:], uint32(e.Code))
		copy(b[8:], e.Data)
		tail = append(tail, b...)
	}
	d.bitpix = int64(8 * d.Datatype.Size())
	d.magic = [8]byte{}
	if d.Pair {
		copy(d.magic[:], pair)
		d.VoxOffset = 0
	} else {
		copy(d.magic[:], single)
		// The first extension starts at size+4, so that 348+4 and 540+4 are both multiples of 16.
		d.VoxOffset = int64(size + len(tail))
	}
	d.voxOffset = float64(d.VoxOffset)
	b := make([]byte, size, size+len(tail))
	d.Order.PutUint32(b, uint32(size))
	if d.Version == 1 {
		b[38] = 'r' // "regular", which some ANALYZE readers look for
	}
	d.fields(&codec{b: b, order: d.Order, v2: d.Version == 2, write: true})
	return append(b, tail...), nil
}
