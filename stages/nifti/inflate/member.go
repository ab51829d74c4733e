package inflate

import "io"

// header reads a member's header.
func (z *Reader) header() error {
	magic, err := z.read(24)
	if err != nil {
		return err
	}
	flags, err := z.read(8)
	if err != nil {
		return err
	}
	if magic != 0x088b1f || flags&0xe0 != 0 {
		return ErrHeader
	}
	if _, err := z.read(24); err != nil { // time
		return err
	}
	if _, err := z.read(24); err != nil { // time, extra flags, system
		return err
	}
	if flags&4 != 0 {
		n, err := z.read(16)
		if err != nil {
			return err
		}
		for range n {
			if _, err := z.read(8); err != nil {
				return err
			}
		}
	}
	for _, text := range []uint32{8, 16} { // name, comment
		for c := flags & text; c != 0; {
			if c, err = z.read(8); err != nil {
				return err
			}
		}
	}
	if flags&2 != 0 { // checksum of the header
		if _, err := z.read(16); err != nil {
			return err
		}
	}
	z.crc, z.size, z.from = 0, 0, z.wr
	z.members++
	z.state = atBlock
	return nil
}

// trailer verifies the member and looks at what follows.
func (z *Reader) trailer() error {
	z.align()
	crc, err := z.read(32)
	if err != nil {
		return err
	}
	size, err := z.read(32)
	if err != nil {
		return err
	}
	if crc != z.crc || size != z.size {
		return ErrChecksum
	}
	z.whole()
	if z.pos+3 > z.end && !z.eof {
		if err := z.fill(); err != nil {
			return err
		}
	}
	z.state = atEnd
	if b := z.in[z.pos:z.end]; len(b) >= 3 && b[0] == 0x1f && b[1] == 0x8b && b[2] == 8 {
		z.state = atHeader
	}
	return nil
}

// rest counts what follows the last member.
func (z *Reader) rest() error {
	junk := false
	for {
		for _, b := range z.in[z.pos:z.end] {
			junk = junk || b != 0
		}
		z.after += int64(z.end - z.pos)
		z.pos = z.end
		if z.eof {
			break
		}
		if err := z.fill(); err != nil {
			return err
		}
	}
	if !junk {
		z.after = 0
	}
	return io.EOF
}
