package inflate

import (
	"encoding/binary"
	"io"
)

// fill reads more input, until there is some or src has ended.
func (z *Reader) fill() error {
	if z.eof {
		if z.ends(0) {
			return io.ErrUnexpectedEOF
		}
		return nil
	}
	// The last 8 bytes stay: they may be in bits, and whole gives them back.
	shift := max(z.pos-8, 0)
	copy(z.in, z.in[shift:z.end])
	z.end -= shift
	z.pos -= shift
	for z.end-z.pos < 2*ahead && !z.eof {
		n, err := z.src.Read(z.in[z.end:inSize])
		z.end += n
		if err == io.EOF {
			z.eof = true
		} else if err != nil {
			return err
		}
	}
	z.stop = z.end - ahead
	if z.eof {
		clear(z.in[z.end : z.end+pad])
		z.stop = z.end + ahead
	}
	return nil
}

// peek has n ≤ 48 bits ready, zeros past the end of the input.
func (z *Reader) peek(n uint) error {
	if z.nbits >= n {
		return nil
	}
	if z.pos > z.stop {
		if err := z.fill(); err != nil {
			return err
		}
		if z.pos > z.stop {
			return io.ErrUnexpectedEOF
		}
	}
	z.bits |= binary.LittleEndian.Uint64(z.in[z.pos:]) << z.nbits
	z.pos += int(63-z.nbits) >> 3
	z.nbits |= 56
	return nil
}

// ends says that the input has fewer than n bits left.
func (z *Reader) ends(n uint) bool { return z.eof && z.pos*8-int(z.nbits)+int(n) > z.end*8 }

// take gives the next n bits, after peek.
func (z *Reader) take(n uint) uint32 {
	v := uint32(z.bits & (1<<n - 1))
	z.bits >>= n
	z.nbits -= n
	return v
}

// read gives the next n bits.
func (z *Reader) read(n uint) (uint32, error) {
	if err := z.peek(n); err != nil {
		return 0, err
	}
	if z.ends(n) {
		return 0, io.ErrUnexpectedEOF
	}
	return z.take(n), nil
}

// align drops bits up to a whole byte.
func (z *Reader) align() { z.take(z.nbits & 7) }

// whole gives the read-ahead bits back: input goes on at in[pos], a whole byte.
func (z *Reader) whole() {
	z.align()
	z.pos -= int(z.nbits / 8)
	z.bits, z.nbits = 0, 0
}
