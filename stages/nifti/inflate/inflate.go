package inflate

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// Errors of what is read. Data that ends too soon is io.ErrUnexpectedEOF.
var (
	ErrHeader   = errors.New("invalid gzip header")
	ErrCorrupt  = errors.New("invalid deflate data")
	ErrChecksum = errors.New("gzip checksum or size differs")
)

const (
	window = 32 << 10
	inSize = 64 << 10
	// outSize holds the window, and what is decoded at a time.
	outSize = window + 128<<10
	// slack is what one turn of the loop may write past the limit: a match of 258 in words of 8, or literals.
	slack = 320
	// pad is what may be read past the end of the input: two refills of one turn, and one more.
	pad   = 48
	ahead = 16
)

type state int

const (
	atHeader state = iota // of a member
	atBlock               // header of a block
	inStored
	inCodes
	atTrailer
	atEnd
)

// Reader inflates gzip members that follow one another.
type Reader struct {
	src io.Reader
	eof bool // src has no more

	in       []byte // [:end] is input, pad zeros behind it at the end of src
	pos, end int
	stop     int    // the loop runs while pos ≤ stop
	bits     uint64 // the next nbits of input; bits above them are input too, or 0
	nbits    uint

	out    []byte
	rd, wr int // out[rd:wr] is decoded and not read yet
	from   int // out[from:] is of this member: no match reaches before it

	state   state
	last    bool // block
	stored  int  // bytes left of a stored block
	members int
	crc     uint32
	size    uint32
	after   int64
	err     error

	lit     litTable
	dist    distTable
	lengths [288 + 32]uint8
}

// NewReader reads gzip from src. It reads ahead of what it gives.
func NewReader(src io.Reader) *Reader {
	return &Reader{src: src, in: make([]byte, inSize+pad), stop: -ahead, out: make([]byte, outSize+slack)}
}

// After is the number of bytes that follow the last member, known once Read has given io.EOF. Zero bytes alone are
// padding, and count as none.
func (z *Reader) After() int64 { return z.after }

// Read gives inflated bytes. io.EOF comes after the last member's checksum and size were verified.
func (z *Reader) Read(p []byte) (int, error) {
	for z.rd == z.wr {
		if z.err != nil {
			return 0, z.err
		}
		if len(p) == 0 {
			return 0, nil
		}
		z.err = z.more(len(p))
	}
	n := copy(p, z.out[z.rd:z.wr])
	z.rd += n
	return n, nil
}

// more decodes about want bytes.
func (z *Reader) more(want int) error {
	if z.wr > outSize-4096 {
		shift := z.wr - window
		copy(z.out, z.out[shift:z.wr])
		z.from = max(z.from-shift, 0)
		z.rd, z.wr = window, window
	}
	limit := min(outSize, z.wr+max(want, 4096))
	for z.wr < limit {
		start := z.wr
		var err error
		switch z.state {
		case atHeader:
			err = z.header()
		case atBlock:
			err = z.block()
		case inStored:
			err = z.copyStored(limit)
		case inCodes:
			err = z.codes(limit)
		case atTrailer:
			err = z.trailer()
		case atEnd:
			return z.rest()
		}
		if z.wr > start {
			z.crc = crc32.Update(z.crc, crc32.IEEETable, z.out[start:z.wr])
			z.size += uint32(z.wr - start)
		}
		if errors.Is(err, ErrCorrupt) && z.ends(48) {
			// A trailer of 64 bits should follow: what was decoded here is not data, but the lack of it.
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// block reads a block's header, and its codes.
func (z *Reader) block() error {
	if z.last {
		z.last = false
		z.state = atTrailer
		return nil
	}
	head, err := z.read(3)
	if err != nil {
		return err
	}
	z.last = head&1 != 0
	switch head >> 1 {
	case 0:
		z.align()
		n, err := z.read(32)
		if err != nil {
			return err
		}
		if n&0xffff != ^n>>16 {
			return ErrCorrupt
		}
		z.whole()
		z.stored = int(n & 0xffff)
		z.state = inStored
		return nil
	case 1:
		n := z.lengths[:]
		for i := range 288 {
			n[i] = 8
			if i >= 144 && i < 256 {
				n[i] = 9
			} else if i >= 256 && i < 280 {
				n[i] = 7
			}
		}
		for i := range 32 {
			n[288+i] = 5
		}
		return z.tables(n[:288], n[288:])
	case 2:
		return z.dynamic()
	}
	return ErrCorrupt
}

// order of the code length codes, RFC 1951 §3.2.7.
var order = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

func (z *Reader) dynamic() error {
	counts, err := z.read(14)
	if err != nil {
		return err
	}
	nlit, ndist, nlen := int(counts&31)+257, int(counts>>5&31)+1, int(counts>>10)+4
	if nlit > 286 || ndist > 30 {
		return ErrCorrupt
	}
	var code [19]uint8
	for _, i := range order[:nlen] {
		n, err := z.read(3)
		if err != nil {
			return err
		}
		code[i] = uint8(n)
	}
	// The code of the lengths borrows the distances' table.
	if !build(z.dist[:], 7, code[:], func(sym int) uint32 { return uint32(sym) << 12 }) {
		return ErrCorrupt
	}
	lengths := z.lengths[:nlit+ndist]
	for i := 0; i < len(lengths); {
		if err := z.peek(7); err != nil {
			return err
		}
		e := z.dist[z.bits&127]
		if e&invalid != 0 {
			return ErrCorrupt
		}
		if _, err := z.read(uint(e & 31)); err != nil {
			return err
		}
		var value uint8
		var repeat int
		var extra uint
		switch sym := e >> 12; sym {
		case 16:
			if i == 0 {
				return ErrCorrupt
			}
			value, repeat, extra = lengths[i-1], 3, 2
		case 17:
			repeat, extra = 3, 3
		case 18:
			repeat, extra = 11, 7
		default:
			value, repeat = uint8(sym), 1
		}
		more, err := z.read(extra)
		if err != nil {
			return err
		}
		repeat += int(more)
		if i+repeat > len(lengths) {
			return ErrCorrupt
		}
		for range repeat {
			lengths[i] = value
			i++
		}
	}
	if lengths[256] == 0 {
		return ErrCorrupt // no end of block
	}
	return z.tables(lengths[:nlit], lengths[nlit:])
}

func (z *Reader) tables(lit, dist []uint8) error {
	if !build(z.lit[:], litRoot, lit, litEntry) || !build(z.dist[:], distRoot, dist, distEntry) {
		return ErrCorrupt
	}
	join(&z.lit)
	z.state = inCodes
	return nil
}

// copyStored copies a stored block up to limit.
func (z *Reader) copyStored(limit int) error {
	for z.stored > 0 && z.wr < limit {
		if z.pos >= z.end {
			if z.eof {
				return io.ErrUnexpectedEOF
			}
			if err := z.fill(); err != nil {
				return err
			}
			continue
		}
		n := copy(z.out[z.wr:limit], z.in[z.pos:min(z.end, z.pos+z.stored)])
		z.pos += n
		z.wr += n
		z.stored -= n
	}
	if z.stored == 0 {
		z.state = atBlock
	}
	return nil
}

// codes decodes a block up to limit, or to its end.
func (z *Reader) codes(limit int) error {
	if z.pos > z.stop {
		if err := z.fill(); err != nil {
			return err
		}
		if z.pos > z.stop {
			return io.ErrUnexpectedEOF
		}
	}
	in, out := z.in, z.out
	lit, dist := &z.lit, &z.dist
	pos, stop, wr, from := z.pos, z.stop, z.wr, z.from
	bits, nbits := z.bits, z.nbits
	var err error
loop:
	for pos <= stop && wr < limit {
		bits |= binary.LittleEndian.Uint64(in[pos:]) << (nbits & 63)
		pos += int((63 - nbits) >> 3)
		nbits |= 56
		e := lit[bits&(1<<litRoot-1)]
		// Three looks take at most 33 of the 56 bits; a length takes at most 20 more.
		if n := literals(e); n != 0 {
			binary.LittleEndian.PutUint32(out[wr:], e>>8)
			wr += int(n)
			bits >>= e & 31
			nbits -= uint(e & 31)
			e = lit[bits&(1<<litRoot-1)]
			if n := literals(e); n != 0 {
				binary.LittleEndian.PutUint32(out[wr:], e>>8)
				wr += int(n)
				bits >>= e & 31
				nbits -= uint(e & 31)
				e = lit[bits&(1<<litRoot-1)]
				if n := literals(e); n != 0 {
					binary.LittleEndian.PutUint32(out[wr:], e>>8)
					wr += int(n)
					bits >>= e & 31
					nbits -= uint(e & 31)
					continue
				}
			}
		}
		if e&special != 0 {
			if e&subtable != 0 {
				e = lit[e>>12&0xffff+uint32(bits>>litRoot)&(1<<(maxCode-litRoot)-1)]
				if literals(e) != 0 {
					out[wr] = byte(e >> 8)
					wr++
					bits >>= e & 31
					nbits -= uint(e & 31)
					continue
				}
			}
			if e&invalid != 0 {
				err = ErrCorrupt
				break
			}
			if e&endOfBlock != 0 {
				bits >>= e & 31
				nbits -= uint(e & 31)
				z.state = atBlock
				break loop
			}
		}
		// e takes code and extra bits; the extra bits stand above the code's.
		length := int(e>>12&0xffff) + int(bits&(1<<(e&31)-1)>>(e>>8&15))
		bits >>= e & 31
		nbits -= uint(e & 31)

		bits |= binary.LittleEndian.Uint64(in[pos:]) << (nbits & 63)
		pos += int((63 - nbits) >> 3)
		nbits |= 56
		d := dist[bits&(1<<distRoot-1)]
		if d&special != 0 {
			if d&subtable != 0 {
				d = dist[d>>12&0xffff+uint32(bits>>distRoot)&(1<<(maxCode-distRoot)-1)]
			}
			if d&invalid != 0 {
				err = ErrCorrupt
				break
			}
		}
		back := int(d>>12&0xffff) + int(bits&(1<<(d&31)-1)>>(d>>8&15))
		bits >>= d & 31
		nbits -= uint(d & 31)
		if back > wr-from {
			err = ErrCorrupt
			break
		}
		end := wr + length
		switch {
		case back >= 8:
			// Whole words, past the end too: what is there will be overwritten.
			for src := wr - back; wr < end; src, wr = src+8, wr+8 {
				binary.LittleEndian.PutUint64(out[wr:], binary.LittleEndian.Uint64(out[src:]))
			}
		case back == 1:
			word := uint64(out[wr-1]) * 0x0101010101010101
			for ; wr < end; wr += 8 {
				binary.LittleEndian.PutUint64(out[wr:], word)
			}
		case back == 2:
			word := uint64(binary.LittleEndian.Uint16(out[wr-2:])) * 0x0001000100010001
			for ; wr < end; wr += 8 {
				binary.LittleEndian.PutUint64(out[wr:], word)
			}
		default:
			for ; wr < end; wr++ {
				out[wr] = out[wr-back]
			}
		}
		wr = end
	}
	z.pos, z.wr, z.bits, z.nbits = pos, wr, bits, nbits
	if err == nil && z.ends(0) {
		err = io.ErrUnexpectedEOF
	}
	return err
}
