package nifti

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"
)

// Type is a NIfTI datatype code.
type Type int16

// The types that are read. Int16 and Float32 are written.
const (
	Uint8   Type = 2
	Int16   Type = 4
	Int32   Type = 8
	Float32 Type = 16
	Float64 Type = 64
	Int8    Type = 256
	Uint16  Type = 512
	Uint32  Type = 768
	Int64   Type = 1024
	Uint64  Type = 1280
)

// Size is the bytes of a voxel; 0 for a type that isn't read.
func (t Type) Size() int {
	switch t {
	case Uint8, Int8:
		return 1
	case Int16, Uint16:
		return 2
	case Int32, Uint32, Float32:
		return 4
	case Int64, Uint64, Float64:
		return 8
	}
	return 0
}

func (t Type) String() string {
	names := map[Type]string{1: "binary", Uint8: "uint8", Int16: "int16", Int32: "int32", Float32: "float32", 32: "complex64",
		Float64: "float64", 128: "RGB24", Int8: "int8", Uint16: "uint16", Uint32: "uint32", Int64: "int64", Uint64: "uint64",
		1536: "float128", 1792: "complex128", 2048: "complex256", 2304: "RGBA32"}
	if name, ok := names[t]; ok {
		return name
	}
	return fmt.Sprintf("datatype %d", int16(t))
}

// TypeError says that a file's voxels aren't single real numbers of a size that is read.
type TypeError struct{ Type Type }

func (e *TypeError) Error() string {
	return fmt.Sprintf("header: datatype %d (%v) isn't read (want integers of 8 to 64 bits, float32 or float64)", int16(e.Type), e.Type)
}

// Header is a NIfTI header. Fields are as the file has them; the methods say what they mean. Pairs of numbers that no
// reader uses (extents, glmax, db_name, …) are not kept.
type Header struct {
	Version int              // 1 or 2
	Order   binary.ByteOrder // of the header and of the voxels
	Pair    bool             // voxels are in an .img beside the .hdr

	Dim                    [8]int64 // Dim[0] is the number of axes; lengths follow; those past Dim[0] are 1
	Datatype               Type
	Pixdim                 [8]float64 // Pixdim[0] < 0 makes the qform left-handed
	VoxOffset              int64      // first byte of the voxels in their file
	SclSlope, SclInter     float64
	CalMax, CalMin         float64
	SliceDuration, Toffset float64
	SliceStart, SliceEnd   int64
	SliceCode, Units       int64
	IntentCode             int64
	Intent                 [3]float64
	DimInfo                int64
	QformCode, SformCode   int64
	Quatern, Qoffset       [3]float64
	Srow                   [3][4]float64
	Descrip                [80]byte
	AuxFile                [24]byte
	IntentName             [16]byte
	Extensions             []Extension
	Raw                    []byte   // the header's own 348 or 540 bytes, as they were read
	Files                  []File   // header, and voxels if they are in another file; empty for a header not read from a file
	Warnings               []string // what is odd, a line each
	bitpix                 int64
	voxOffset              float64 // as written, for NIfTI-1 has it as a float
	magic                  [8]byte
}

// Extension is a block of application data between header and voxels. Its padding belongs to Data.
type Extension struct {
	Code int32
	Data []byte
}

// File is one file of an image as it was when it was opened.
type File struct {
	Path    string
	Size    int64
	ModTime int64 // nanoseconds since 1970
}

const (
	size1 = 348
	size2 = 540
	// maxExtensions bounds what is kept of extensions; more is skipped.
	maxExtensions = 1 << 20
)

// farthest is the largest intensity that samples of 16 bits may be scaled to: what float32 holds, and room to compute with.
const farthest = 1e30

// codec moves a header's fields from or to its bytes. Each method takes the field's offset in NIfTI-1 and in NIfTI-2.
type codec struct {
	b     []byte
	order binary.ByteOrder
	v2    bool
	write bool
}

func (c *codec) at(off1, off2 int) []byte {
	if c.v2 {
		return c.b[off2:]
	}
	return c.b[off1:]
}

// real is float32 in NIfTI-1 and float64 in NIfTI-2.
func (c *codec) real(off1, off2 int, xs ...*float64) {
	b := c.at(off1, off2)
	for i, x := range xs {
		switch {
		case c.v2 && c.write:
			c.order.PutUint64(b[8*i:], math.Float64bits(*x))
		case c.v2:
			*x = math.Float64frombits(c.order.Uint64(b[8*i:]))
		case c.write:
			c.order.PutUint32(b[4*i:], math.Float32bits(float32(*x)))
		default:
			*x = float64(math.Float32frombits(c.order.Uint32(b[4*i:])))
		}
	}
}

// whole is an integer of size1 bytes in NIfTI-1 and size2 in NIfTI-2. One byte is unsigned.
func (c *codec) whole(off1, size1, off2, size2 int, x *int64) {
	b, size := c.at(off1, off2), size1
	if c.v2 {
		size = size2
	}
	switch {
	case c.write && size == 1:
		b[0] = byte(*x)
	case c.write && size == 2:
		c.order.PutUint16(b, uint16(*x))
	case c.write && size == 4:
		c.order.PutUint32(b, uint32(*x))
	case c.write:
		c.order.PutUint64(b, uint64(*x))
	case size == 1:
		*x = int64(b[0])
	case size == 2:
		*x = int64(int16(c.order.Uint16(b)))
	case size == 4:
		*x = int64(int32(c.order.Uint32(b)))
	default:
		*x = int64(c.order.Uint64(b))
	}
}

func (c *codec) text(off1, off2 int, x []byte) {
	b := c.at(off1, off2)
	if c.write {
		copy(b, x)
	} else {
		copy(x, b)
	}
}

// fields visits every field, in either direction.
func (h *Header) fields(c *codec) {
	datatype := int64(h.Datatype)
	c.whole(70, 2, 12, 2, &datatype)
	h.Datatype = Type(datatype)
	c.whole(72, 2, 14, 2, &h.bitpix)
	for i := range h.Dim {
		c.whole(40+2*i, 2, 16+8*i, 8, &h.Dim[i])
	}
	c.real(56, 80, &h.Intent[0], &h.Intent[1], &h.Intent[2])
	for i := range h.Pixdim {
		c.real(76+4*i, 104+8*i, &h.Pixdim[i])
	}
	if c.v2 {
		c.whole(0, 0, 168, 8, &h.VoxOffset)
		h.voxOffset = float64(h.VoxOffset)
	} else {
		c.real(108, 0, &h.voxOffset)
	}
	c.real(112, 176, &h.SclSlope, &h.SclInter)
	c.real(124, 192, &h.CalMax, &h.CalMin, &h.SliceDuration, &h.Toffset)
	c.whole(74, 2, 224, 8, &h.SliceStart)
	c.whole(120, 2, 232, 8, &h.SliceEnd)
	c.text(148, 240, h.Descrip[:])
	c.text(228, 320, h.AuxFile[:])
	c.whole(252, 2, 344, 4, &h.QformCode)
	c.whole(254, 2, 348, 4, &h.SformCode)
	c.real(256, 352, &h.Quatern[0], &h.Quatern[1], &h.Quatern[2])
	c.real(268, 376, &h.Qoffset[0], &h.Qoffset[1], &h.Qoffset[2])
	for i := range h.Srow {
		r := &h.Srow[i]
		c.real(280+16*i, 400+32*i, &r[0], &r[1], &r[2], &r[3])
	}
	c.whole(122, 1, 496, 4, &h.SliceCode)
	c.whole(123, 1, 500, 4, &h.Units)
	c.whole(68, 2, 504, 4, &h.IntentCode)
	c.text(328, 508, h.IntentName[:])
	c.whole(39, 1, 524, 1, &h.DimInfo)
	if c.v2 {
		c.text(0, 4, h.magic[:])
	} else {
		c.text(344, 0, h.magic[:4])
	}
}

// sniff tells version and byte order from sizeof_hdr.
func sniff(b []byte) (version int, order binary.ByteOrder, err error) {
	if len(b) < 4 {
		return 0, nil, fmt.Errorf("header: %d bytes (want %d or %d)", len(b), size1, size2)
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		switch order.Uint32(b) {
		case size1:
			return 1, order, nil
		case size2:
			return 2, order, nil
		}
	}
	return 0, nil, fmt.Errorf("header: not NIfTI: sizeof_hdr=%d (want %d or %d in either byte order)", int32(binary.LittleEndian.Uint32(b)), size1, size2)
}

// Parse reads the 348 or 540 bytes of a header and checks what can be checked without the file. Bytes behind them are
// left alone.
func Parse(b []byte) (*Header, error) {
	version, order, err := sniff(b)
	if err != nil {
		return nil, err
	}
	size := size1
	if version == 2 {
		size = size2
	}
	if len(b) < size {
		return nil, fmt.Errorf("header: %d bytes (want %d)", len(b), size)
	}
	h := &Header{Version: version, Order: order, Raw: bytes.Clone(b[:size])}
	h.fields(&codec{b: h.Raw, order: order, v2: version == 2})
	for _, check := range []func() error{h.checkMagic, h.checkType, h.checkDims, h.checkOffset, h.checkScaling} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func (h *Header) checkMagic() error {
	switch magic := string(h.magic[:3]); {
	case h.magic[3] != 0:
	case magic == "n+1" && h.Version == 1, magic == "n+2" && h.Version == 2:
		h.Pair = false
		return nil
	case magic == "ni1" && h.Version == 1, magic == "ni2" && h.Version == 2:
		h.Pair = true
		return nil
	}
	if h.Version == 1 && h.magic == [8]byte{} {
		return fmt.Errorf("header: no NIfTI magic (ANALYZE 7.5 isn't read: it doesn't say left from right)")
	}
	return fmt.Errorf("header: magic %q (want n+%d or ni%d)", bytes.TrimRight(h.magic[:], "\x00"), h.Version, h.Version)
}

func (h *Header) checkType() error {
	if h.Datatype.Size() == 0 {
		return &TypeError{h.Datatype}
	}
	if want := int64(8 * h.Datatype.Size()); h.bitpix != want {
		h.warn("header: bitpix=%d for %v; taken as %d", h.bitpix, h.Datatype, want)
	}
	return nil
}

func (h *Header) checkDims() error {
	if h.Dim[0] < 1 || h.Dim[0] > 7 {
		return fmt.Errorf("header: dim[0]=%d (want 1..7)", h.Dim[0])
	}
	for i := 1; i < 8; i++ {
		if int64(i) > h.Dim[0] {
			h.Dim[i] = 1
		} else if h.Dim[i] <= 0 || h.Dim[i] > math.MaxInt32 {
			return fmt.Errorf("header: dim[%d]=%d (want 1..%d)", i, h.Dim[i], math.MaxInt32)
		}
	}
	if _, ok := h.bytes(); !ok {
		return fmt.Errorf("header: dims %v of %v are more bytes than can be counted", h.Dim[1:h.Dim[0]+1], h.Datatype)
	}
	return nil
}

func (h *Header) checkOffset() error {
	least := float64(len(h.Raw))
	if h.Pair {
		least = 0
	}
	switch off := h.voxOffset; {
	case off == 0 && !h.Pair:
		h.voxOffset = least + 4
	case math.IsNaN(off) || off < 0 || off > 1<<53:
		return fmt.Errorf("header: vox_offset=%v (want a place in the file)", off)
	case off < least:
		return fmt.Errorf("header: vox_offset=%v is inside the header of %v bytes", off, least)
	}
	h.VoxOffset = int64(h.voxOffset)
	return nil
}

func (h *Header) checkScaling() error {
	switch slope, inter := h.SclSlope, h.SclInter; {
	case slope == 0 || !finite(slope):
	case !finite(inter):
		return fmt.Errorf("header: scl_inter=%v with scl_slope=%v (want a number)", inter, slope)
	case math.Abs(slope)*(1<<16)+math.Abs(inter) > farthest:
		return fmt.Errorf("header: scl_slope=%v with scl_inter=%v are out of range", slope, inter)
	case slope < 0:
		h.warn("header: scl_slope=%v is negative: intensities run against the samples", slope)
	}
	return nil
}

// bytes is the size of all voxels of the file; false if it overflows.
func (h *Header) bytes() (int64, bool) {
	n := uint64(h.Datatype.Size())
	for _, d := range h.Dim[1:] {
		hi, lo := bits.Mul64(n, uint64(d))
		if hi != 0 || lo > math.MaxInt64/2 {
			return 0, false
		}
		n = lo
	}
	return int64(n), true
}

// Bytes is the size of all voxels of the file, inflated.
func (h *Header) Bytes() int64 {
	n, _ := h.bytes()
	return n
}

// Scaling gives intensity = slope*sample + inter. A slope of 0, NaN or Inf means none: 1 and 0.
func (h *Header) Scaling() (slope, inter float64) {
	if h.SclSlope == 0 || !finite(h.SclSlope) {
		return 1, 0
	}
	return h.SclSlope, h.SclInter
}

// Grid is one 3D image among the voxels of a file.
type Grid struct {
	Dims [3]int // of the image, in the file's axes
	Skip int64  // voxels of the file before it
}

// Voxels is the number of voxels of the image.
func (g Grid) Voxels() int64 { return int64(g.Dims[0]) * int64(g.Dims[1]) * int64(g.Dims[2]) }

// Grid finds the 3D image of a file. Trailing axes of one element are dropped. frame picks one image of a 4D (or
// higher) file, counted over all axes past the third; -1 refuses such a file. channel is the axis (from 0) of one
// element that stands among the image's, as 0 in (1, H, W, D), where there are more than three; -1 refuses a file that
// begins with one. Columns of the affine and
// Pixdim then belong to the axes that are left, as writers of such files mean them.
func (h *Header) Grid(frame, channel int) (Grid, error) {
	axes := slices.Clone(h.Dim[1:])
	shape := h.Dim[1 : h.Dim[0]+1]
	n := 7
	for n > 3 && axes[n-1] == 1 {
		n--
	}
	switch {
	case n <= 3:
	case channel >= n:
		return Grid{}, fmt.Errorf("dims %v: no axis %d for channel_dim", shape, channel)
	case channel >= 0 && axes[channel] != 1:
		return Grid{}, fmt.Errorf("dims %v: channel_dim %d has %d elements (want 1)", shape, channel, axes[channel])
	case channel >= 0:
		axes = slices.Delete(axes, channel, channel+1)
	case axes[0] == 1:
		return Grid{}, fmt.Errorf("dims %v: the first axis looks like a channel (set channel_dim: 0 to read it so)", shape)
	}
	frames := int64(1)
	for _, d := range axes[3:] {
		frames *= d
	}
	g := Grid{Dims: [3]int{int(axes[0]), int(axes[1]), int(axes[2])}}
	switch {
	case frame < 0 && frames > 1:
		return Grid{}, fmt.Errorf("dims %v: %d frames (set frame: 0 to read the first)", shape, frames)
	case int64(frame) >= frames:
		return Grid{}, fmt.Errorf("dims %v: no frame %d (frames are 0..%d)", shape, frame, frames-1)
	}
	g.Skip = int64(max(frame, 0)) * g.Voxels()
	return g, nil
}

func (h *Header) warn(format string, args ...any) {
	h.Warnings = append(h.Warnings, fmt.Sprintf(format, args...))
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }
