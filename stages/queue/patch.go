package queue

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unsafe"

	"github.com/cespare/xxhash/v2"
	"github.com/nats-io/nats.go"

	"github.com/flowrun/flowrun/stages/volume"
)

// Patch is a patch on its way: raw samples, what is still to be done to them, and the scan that they were cut from. A void one
// has no samples: its scan gives no patches in this epoch, for a reason.
type Patch struct {
	Run     string
	Tile    int
	Tiles   int    // patches of the scan in the epoch
	Size    [3]int // x, y, z
	Origin  [3]int // in the scan
	Window  [2]float64
	Slope   float64 // HU = Slope*sample + Inter
	Inter   float64
	Ops     []volume.Op
	Source  Scan
	Void    string  // the reason; "" for a patch
	Samples []int16 // [z, y, x], x fastest
}

// ID is the patch's identity; a void one has that of its scan.
func (p *Patch) ID() ID {
	id := p.Source.ID(p.Run)
	if p.Void == "" {
		id.Tile = p.Tile
	}
	return id
}

// rest is the JSON of Fr-Patch.
type rest struct {
	Origin [3]int      `json:"origin"`
	Window [2]float64  `json:"window_hu"`
	Slope  float64     `json:"slope"`
	Inter  float64     `json:"inter"`
	Ops    []volume.Op `json:"ops,omitempty"`
}

const (
	dtype = "<i2"
	// maxBody is the largest body of a patch: a file store's records stop at 32 MiB, headers included.
	maxBody    = 32<<20 - headerRoom
	headerRoom = 64 << 10
)

// PatchBytes is the size of the message of a patch of these voxels, at most.
func PatchBytes(size [3]int) int64 {
	return 2*int64(size[0])*int64(size[1])*int64(size[2]) + headerRoom
}

// CheckPatch refuses patches that are too large for a message.
func CheckPatch(size [3]int) error {
	if n := PatchBytes(size) - headerRoom; n > maxBody-headerRoom {
		return fmt.Errorf("%d × %d × %d voxels are %d bytes, more than the %d that a message takes", size[0], size[1], size[2], n, maxBody-headerRoom)
	}
	return nil
}

// encode makes the message of a patch. Its body is p.Samples' own memory where that is little endian.
func (p *Patch) encode(n names) (*nats.Msg, error) {
	m := nats.NewMsg(n.patchSubject())
	source, err := json.Marshal(&p.Source)
	if err != nil {
		return nil, err
	}
	id := p.ID()
	m.Header.Set(nats.MsgIdHdr, once(id, p.Source.Attempt))
	m.Header.Set(idHeader, id.String())
	m.Header.Set(scansHeader, strconv.Itoa(p.Source.Scans))
	m.Header.Set(sourceHeader, string(source))
	if p.Void != "" {
		m.Header.Set(nats.MsgIdHdr, once(id, p.Source.Attempt)+"/void")
		m.Header.Set(schemaHeader, voidSchema)
		m.Header.Set(reasonHeader, oneLine(p.Void))
		return m, nil
	}
	if n := p.Size[0] * p.Size[1] * p.Size[2]; n == 0 || len(p.Samples) != n {
		return nil, fmt.Errorf("%s: %d samples for a patch of %v", id, len(p.Samples), p.Size)
	}
	more, err := json.Marshal(rest{p.Origin, p.Window, p.Slope, p.Inter, p.Ops})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", id, err)
	}
	m.Data = bytesOf(p.Samples)
	m.Header.Set(schemaHeader, patchSchema)
	m.Header.Set(digestHeader, checksumOf(m.Data))
	m.Header.Set(dtypeHeader, dtype)
	m.Header.Set(shapeHeader, fmt.Sprintf("%d,%d,%d", p.Size[2], p.Size[1], p.Size[0]))
	m.Header.Set(tilesHeader, strconv.Itoa(p.Tiles))
	m.Header.Set(patchHeader, string(more))
	if (m.Size()-len(m.Data)-len(m.Subject))%2 == 1 { // so that samples lie at even addresses where they arrive: no copy
		m.Header.Set(padHeader, "-") // with its name and line end an odd number of bytes
	}
	if size := m.Size(); size > maxBody {
		return nil, fmt.Errorf("%s: the message is %d bytes (want at most %d): choose a smaller patch", id, size, maxBody)
	}
	return m, nil
}

// decodePatch reads a message of a patch. Its samples are the body's memory where that can be. Where the headers name
// the patch, it is given beside the error: its scan can be asked for again.
func decodePatch(h nats.Header, body []byte) (*Patch, error) {
	p := new(Patch)
	id, err := ParseID(h.Get(idHeader))
	if err != nil {
		return nil, err
	}
	source, err := parseScan([]byte(h.Get(sourceHeader)))
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", id, sourceHeader, err)
	}
	p.Run, p.Tile, p.Source = id.Run, id.Tile, *source
	if want := source.ID(id.Run); id.Epoch != want.Epoch || id.Scan != want.Scan {
		return nil, fmt.Errorf("%s: its scan is %s", id, want)
	}
	switch schema := h.Get(schemaHeader); {
	case schema == voidSchema && id.Tile < 0 && h.Get(reasonHeader) != "":
		p.Void = h.Get(reasonHeader)
		return p, nil
	case schema != patchSchema || id.Tile < 0:
		return nil, fmt.Errorf("%s: schema %.40q (this flowrun reads %s)", id, schema, patchSchema)
	}
	if p.Tiles, err = count(h.Get(tilesHeader)); err != nil || p.Tile >= p.Tiles {
		return nil, fmt.Errorf("%s: %s %.20q", id, tilesHeader, h.Get(tilesHeader))
	}
	if err := p.decode(h, body); err != nil {
		return p, fmt.Errorf("%s: %w", id, err)
	}
	return p, nil
}

func (p *Patch) decode(h nats.Header, body []byte) error {
	if got := h.Get(dtypeHeader); got != dtype {
		return fmt.Errorf("%s %.20q (want %s)", dtypeHeader, got, dtype)
	}
	parts := strings.Split(h.Get(shapeHeader), ",")
	if len(parts) != 3 {
		return fmt.Errorf("%s %.40q (want z,y,x)", shapeHeader, h.Get(shapeHeader))
	}
	n := 1
	for i, part := range parts {
		v, err := count(part)
		if err != nil || v == 0 || n > maxBody/v {
			return fmt.Errorf("%s %.40q", shapeHeader, h.Get(shapeHeader))
		}
		p.Size[2-i] = v
		n *= v
	}
	if len(body) != 2*n {
		return fmt.Errorf("%d bytes for a patch of %v (want %d)", len(body), p.Size, 2*n)
	}
	if got := checksumOf(body); got != h.Get(digestHeader) {
		return errors.New("its samples don't have the digest that they were sent with")
	}
	var more rest
	if err := json.Unmarshal([]byte(h.Get(patchHeader)), &more); err != nil {
		return fmt.Errorf("%s: %w", patchHeader, err)
	}
	lo, hi := more.Window[0], more.Window[1]
	if !(lo < hi) || !finite(lo, hi, more.Slope, more.Inter) {
		return fmt.Errorf("%s: window %v, slope %v, intercept %v", patchHeader, more.Window, more.Slope, more.Inter)
	}
	for _, op := range more.Ops {
		if !finite(op.Scale, op.Shift, op.Noise) {
			return fmt.Errorf("%s: an operation isn't finite", patchHeader)
		}
	}
	p.Origin, p.Window, p.Slope, p.Inter, p.Ops = more.Origin, more.Window, more.Slope, more.Inter, more.Ops
	p.Samples = samplesOf(body)
	return nil
}

// Element is the patch as the stages behind subscribe take it: of a volume of its own size, so its origin is zero.
func (p *Patch) Element(free func()) *volume.Patch {
	v := &volume.Volume{Epoch: p.Source.Epoch, Dims: p.Size, Window: p.Window, Slope: p.Slope, Inter: p.Inter,
		Scan: &volume.Scan{ID: p.Source.Name, Path: p.Source.Path, Index: p.Source.Index, Dims: p.Size, Digest: p.Source.Digest}}
	return &volume.Patch{Volume: v.Own(&volume.Memory{Data: p.Samples, Dims: p.Size}, free), Ops: p.Ops, Tag: volume.Tag{
		Scan: p.Source.Name, Index: p.Source.Index, Epoch: p.Source.Epoch, Tile: p.Tile, Tiles: p.Tiles, Size: p.Size}}
}

// Cut is the message of a patch: its samples, with those beyond the volume's high ends repeating the edge. It doesn't
// release p.
func Cut(p *volume.Patch, run string, source Scan) (*Patch, error) {
	v := p.Volume
	for a := range 3 {
		if p.Size[a] < 1 || p.Origin[a] < 0 || p.Origin[a] >= v.Dims[a] {
			return nil, fmt.Errorf("%s: outside the volume of %v", p.Tag, v.Dims)
		}
	}
	w, h, d := p.Size[0], p.Size[1], p.Size[2]
	out := make([]int16, w*h*d)
	columns, rows := min(w, v.Dims[0]-p.Origin[0]), min(h, v.Dims[1]-p.Origin[1])
	buf := make([]int16, rows*v.Dims[0])
	for z := range d {
		slice := out[z*w*h : (z+1)*w*h]
		at := p.Origin[2] + z
		if at >= v.Dims[2] {
			copy(slice, out[(z-1)*w*h:z*w*h])
			continue
		}
		src, err := v.Rows(at, p.Origin[1], p.Origin[1]+rows, buf)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.Tag, err)
		}
		for y := range h {
			row := slice[y*w : (y+1)*w]
			if y >= rows {
				copy(row, slice[(y-1)*w:y*w])
				continue
			}
			copy(row[:columns], src[y*v.Dims[0]+p.Origin[0]:])
			for x := columns; x < w; x++ {
				row[x] = row[columns-1]
			}
		}
	}
	return &Patch{Run: run, Tile: p.Tile, Tiles: p.Tiles, Size: p.Size, Origin: p.Origin, Window: v.Window,
		Slope: v.Slope, Inter: v.Inter, Ops: p.Ops, Source: source, Samples: out}, nil
}

func finite(values ...float64) bool {
	for _, v := range values {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return false
		}
	}
	return true
}

var little = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// bytesOf is samples in little endian, without a copy where the machine is.
func bytesOf(samples []int16) []byte {
	if little {
		return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(samples))), 2*len(samples))
	}
	b := make([]byte, 0, 2*len(samples))
	for _, s := range samples {
		b = binary.LittleEndian.AppendUint16(b, uint16(s))
	}
	return b
}

// samplesOf is the inverse of bytesOf, without a copy where the bytes are aligned.
func samplesOf(b []byte) []int16 {
	at := unsafe.Pointer(unsafe.SliceData(b))
	if little && uintptr(at)%2 == 0 {
		return unsafe.Slice((*int16)(at), len(b)/2)
	}
	out := make([]int16, len(b)/2)
	for i := range out {
		out[i] = int16(binary.LittleEndian.Uint16(b[2*i:]))
	}
	return out
}

// checksumOf is "xxh64:" and the 16 hex digits of the XXH64 of b: it finds damage on the way, and is meant for nothing else. SHA-256
// of both ends was a third of the processor time of a patch on its way.
func checksumOf(b []byte) string { return fmt.Sprintf("xxh64:%016x", xxhash.Sum64(b)) }

// oneLine is text that can stand in a header.
func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	return strings.ToValidUTF8(text[:min(len(text), 2000)], "")
}
