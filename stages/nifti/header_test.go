package nifti

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func put16(off int, x int16) func([]byte) {
	return func(b []byte) { binary.LittleEndian.PutUint16(b[off:], uint16(x)) }
}

func put32(off int, x float32) func([]byte) {
	return func(b []byte) { binary.LittleEndian.PutUint32(b[off:], math.Float32bits(x)) }
}

func dims(n int16, lengths ...int16) func([]byte) {
	return func(b []byte) {
		put16(40, n)(b)
		for i, d := range lengths {
			put16(42+2*i, d)(b)
		}
	}
}

var nan, inf = float32(math.NaN()), float32(math.Inf(1))

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		poke func([]byte)
		want string
	}{
		{"sizeof_hdr", func(b []byte) { b[0] = 7 }, "not NIfTI: sizeof_hdr=263"},
		{"analyze", func(b []byte) { clear(b[344:348]) }, "ANALYZE"},
		{"magic", func(b []byte) { b[345] = '2' }, `magic "n21" (want n+1 or ni1)`},
		{"version of the magic", func(b []byte) { b[346] = '2' }, `magic "n+2"`},
		{"no axes", dims(0), "dim[0]=0 (want 1..7)"},
		{"too many axes", dims(9), "dim[0]=9 (want 1..7)"},
		{"negative axes", dims(-3), "dim[0]=-3 (want 1..7)"},
		{"zero dim", dims(3, 4, 0, 2), "dim[2]=0"},
		{"negative dim", dims(3, 4, 3, -2), "dim[3]=-2"},
		{"overflow", dims(7, 32767, 32767, 32767, 32767, 32767, 32767, 32767), "more bytes than can be counted"},
		{"negative offset", put32(108, -352), "vox_offset=-352"},
		{"NaN offset", put32(108, nan), "vox_offset=NaN"},
		{"infinite offset", put32(108, inf), "vox_offset=+Inf"},
		{"offset in the header", put32(108, 100), "vox_offset=100 is inside the header"},
		{"NaN inter", func(b []byte) { put32(112, 2)(b); put32(116, nan)(b) }, "scl_inter=NaN with scl_slope=2"},
		{"infinite inter", func(b []byte) { put32(112, 2)(b); put32(116, inf)(b) }, "scl_inter=+Inf"},
	} {
		b := base(t)
		c.poke(b)
		if _, err := Parse(b); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v (want %q)", c.name, err, c.want)
		}
	}
	for n := range size1 {
		if _, err := Parse(base(t)[:n]); err == nil {
			t.Errorf("a header of %d bytes is accepted", n)
		}
	}
}

func TestHugeSlope(t *testing.T) {
	h := fixtureHeader(Int16, 2, binary.LittleEndian)
	for slope, want := range map[float64]string{1e306: "scl_slope=1e+306", -1e38: "scl_slope=-1e+38"} {
		h.SclSlope = slope
		if _, err := Parse(file(t, h)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", slope, err)
		}
	}
}

func TestTypes(t *testing.T) {
	for code := range int16(2400) {
		b := base(t)
		put16(70, code)(b)
		_, err := Parse(b)
		var te *TypeError
		if known := slices.Contains(types, Type(code)); known != (err == nil) || !known && !errors.As(err, &te) {
			t.Errorf("datatype %d: %v", code, err)
		}
	}
	b := base(t)
	put16(70, 128)(b)
	if _, err := Parse(b); err == nil || !strings.Contains(err.Error(), "RGB24") {
		t.Errorf("RGB: %v", err)
	}
}

func TestScaling(t *testing.T) {
	for _, c := range []struct {
		slope, inter float32
		s, i         float64
		warned       bool
	}{
		{0, 7, 1, 0, false}, {0, nan, 1, 0, false}, {nan, 7, 1, 0, false}, {inf, 7, 1, 0, false},
		{2, -1024, 2, -1024, false}, {1, 0, 1, 0, false}, {-1, 5, -1, 5, true},
	} {
		b := base(t)
		put32(112, c.slope)(b)
		put32(116, c.inter)(b)
		h, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if s, i := h.Scaling(); s != c.s || i != c.i || (len(h.Warnings) > 0) != c.warned {
			t.Errorf("slope %v, inter %v: %v, %v, %q", c.slope, c.inter, s, i, h.Warnings)
		}
	}
}

func TestGrid(t *testing.T) {
	for _, c := range []struct {
		name           string
		dims           func([]byte)
		frame, channel int
		want           [3]int
		skip           int64
		err            string
	}{
		{name: "3D", dims: dims(3, 4, 3, 2), frame: -1, channel: -1, want: [3]int{4, 3, 2}},
		{name: "3D, with frame and channel", dims: dims(3, 4, 3, 2), want: [3]int{4, 3, 2}},
		{name: "2D", dims: dims(2, 4, 3, 99), frame: -1, channel: -1, want: [3]int{4, 3, 1}},
		{name: "1D", dims: dims(1, 4), frame: -1, channel: -1, want: [3]int{4, 1, 1}},
		{name: "trailing ones", dims: dims(7, 4, 3, 2, 1, 1, 1, 1), frame: -1, channel: -1, want: [3]int{4, 3, 2}},
		{name: "a one inside", dims: dims(3, 1, 3, 2), frame: -1, channel: -1, want: [3]int{1, 3, 2}},
		{name: "4D", dims: dims(4, 4, 3, 2, 5), frame: -1, channel: -1, err: "5 frames (set frame: 0"},
		{name: "4D, frame 2", dims: dims(4, 4, 3, 2, 5), frame: 2, channel: -1, want: [3]int{4, 3, 2}, skip: 48},
		{name: "4D, no such frame", dims: dims(4, 4, 3, 2, 5), frame: 5, channel: -1, err: "no frame 5 (frames are 0..4)"},
		{name: "3D, no such frame", dims: dims(3, 4, 3, 2), frame: 1, channel: -1, err: "no frame 1 (frames are 0..0)"},
		{name: "5D", dims: dims(5, 4, 3, 2, 1, 3), frame: 1, channel: -1, want: [3]int{4, 3, 2}, skip: 24},
		{name: "channel first", dims: dims(4, 1, 4, 3, 2), frame: -1, channel: -1, err: "channel_dim: 0"},
		{name: "channel first, set", dims: dims(4, 1, 4, 3, 2), frame: -1, channel: 0, want: [3]int{4, 3, 2}},
		{name: "channel first and frames", dims: dims(5, 1, 4, 3, 2, 5), frame: 3, channel: 0, want: [3]int{4, 3, 2}, skip: 72},
		{name: "channel of three", dims: dims(4, 3, 4, 3, 2), frame: -1, channel: 0, err: "channel_dim 0 has 3 elements"},
		{name: "no such channel", dims: dims(4, 3, 4, 3, 2), frame: -1, channel: 6, err: "no axis 6"},
	} {
		b := base(t)
		c.dims(b)
		h, err := Parse(b)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		g, err := h.Grid(c.frame, c.channel)
		switch {
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: %v (want %q)", c.name, err, c.err)
		case c.err == "" && (err != nil || g.Dims != c.want || g.Skip != c.skip):
			t.Errorf("%s: %v, %v", c.name, g, err)
		}
	}
}

// What is encoded is parsed back, in both versions and byte orders.
func TestHeaderRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.Custom(func(t *rapid.T) float64 { return float64(rapid.Float32Range(-1e6, 1e6).Draw(t, "x")) })
		code := rapid.Int64Range(0, 127)
		h := &Header{
			Version: rapid.SampledFrom([]int{1, 2}).Draw(t, "version"), Order: rapid.SampledFrom(orders).Draw(t, "order"),
			Pair: rapid.Bool().Draw(t, "pair"), Datatype: rapid.SampledFrom(types).Draw(t, "type"),
			SclSlope: 1, SclInter: number.Draw(t, "inter"), CalMax: number.Draw(t, "max"), CalMin: number.Draw(t, "min"),
			SliceDuration: number.Draw(t, "duration"), Toffset: number.Draw(t, "toffset"),
			SliceStart: code.Draw(t, "start"), SliceEnd: code.Draw(t, "end"), SliceCode: code.Draw(t, "slice"),
			Units: code.Draw(t, "units"), IntentCode: code.Draw(t, "intent"), DimInfo: code.Draw(t, "info"),
			QformCode: code.Draw(t, "qform"), SformCode: code.Draw(t, "sform"),
		}
		h.Dim[0] = rapid.Int64Range(1, 7).Draw(t, "axes")
		for i := 1; i < 8; i++ {
			h.Dim[i] = 1
			if int64(i) <= h.Dim[0] {
				h.Dim[i] = rapid.Int64Range(1, 60).Draw(t, "dim")
			}
		}
		for _, x := range []*[3]float64{&h.Intent, &h.Quatern, &h.Qoffset} {
			for i := range x {
				x[i] = number.Draw(t, "x")
			}
		}
		for i := range h.Pixdim {
			h.Pixdim[i] = number.Draw(t, "pixdim")
		}
		for i := range h.Srow {
			for j := range 4 {
				h.Srow[i][j] = number.Draw(t, "srow")
			}
		}
		copy(h.Descrip[:], rapid.StringN(0, 20, 80).Draw(t, "descrip"))
		copy(h.AuxFile[:], "aux")
		copy(h.IntentName[:], "name")
		b, err := h.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if !h.Pair && (got.VoxOffset != int64(len(b)) || len(b)%16 != 0) {
			t.Fatalf("voxels at %d, header of %d bytes", got.VoxOffset, len(b))
		}
		again, err := got.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(b, again) {
			t.Fatal("bytes differ after a round trip")
		}
		want := *h
		want.bitpix, want.voxOffset, want.VoxOffset, want.magic, want.Raw = got.bitpix, got.voxOffset, got.VoxOffset, got.magic, got.Raw
		want.Warnings = got.Warnings
		if !equal(&want, got) {
			t.Fatalf("%+v\nwant %+v", got, want)
		}
	})
}

func equal(a, b *Header) bool {
	return a.Version == b.Version && a.Order == b.Order && a.Pair == b.Pair && a.Dim == b.Dim && a.Datatype == b.Datatype &&
		a.Pixdim == b.Pixdim && a.SclSlope == b.SclSlope && a.SclInter == b.SclInter && a.CalMax == b.CalMax && a.CalMin == b.CalMin &&
		a.SliceDuration == b.SliceDuration && a.Toffset == b.Toffset && a.SliceStart == b.SliceStart && a.SliceEnd == b.SliceEnd &&
		a.SliceCode == b.SliceCode && a.Units == b.Units && a.IntentCode == b.IntentCode && a.Intent == b.Intent && a.DimInfo == b.DimInfo &&
		a.QformCode == b.QformCode && a.SformCode == b.SformCode && a.Quatern == b.Quatern && a.Qoffset == b.Qoffset && a.Srow == b.Srow &&
		a.Descrip == b.Descrip && a.AuxFile == b.AuxFile && a.IntentName == b.IntentName
}

// A few fields at the places that nifti1.h and nifti2.h give them, so that both directions can't be wrong together.
func TestFieldPlaces(t *testing.T) {
	h := fixtureHeader(Int16, 1, binary.LittleEndian)
	h.SformCode, h.QformCode, h.Units = 4, 2, 10
	b, err := h.Encode()
	if err != nil {
		t.Fatal(err)
	}
	u16 := binary.LittleEndian.Uint16
	if u16(b[40:]) != 3 || u16(b[42:]) != 4 || u16(b[70:]) != 4 || u16(b[72:]) != 16 || u16(b[252:]) != 2 || u16(b[254:]) != 4 ||
		b[123] != 10 || string(b[148:161]) != "a description" || string(b[344:347]) != "n+1" || math.Float32frombits(binary.LittleEndian.Uint32(b[300:])) != 1 {
		t.Errorf("NIfTI-1: % x", b)
	}
	h.Version = 2
	if b, err = h.Encode(); err != nil {
		t.Fatal(err)
	}
	u64 := binary.LittleEndian.Uint64
	if string(b[4:12]) != "n+2\x00\r\n\x1a\n" || u16(b[12:]) != 4 || u16(b[14:]) != 16 || u64(b[16:]) != 3 || u64(b[24:]) != 4 || u64(b[168:]) != 544 ||
		string(b[240:253]) != "a description" || binary.LittleEndian.Uint32(b[344:]) != 2 || binary.LittleEndian.Uint32(b[348:]) != 4 ||
		math.Float64frombits(u64(b[440:])) != 1 || binary.LittleEndian.Uint32(b[500:]) != 10 {
		t.Errorf("NIfTI-2: % x", b)
	}
}
