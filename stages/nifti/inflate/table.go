package inflate

import "math/bits"

// Tables are indexed by the next bits of the stream, low bit first. Codes longer than a table's root have a subtable
// behind it. An entry is
//
//	bits 0–4    bits that it takes from the stream, a length's or distance's extra bits included
//	bits 5–6    number of literals, 0 for the rest:
//	bits 8–31     the literals
//	bits 8–11   bits of the code alone
//	bits 12–27  base of a length or distance, or index of a subtable
//	bit 29      end of block
//	bit 30      subtable
//	bit 31      no such code
//
// Bits 28 and up are flags only where there are no literals.
const (
	litRoot  = 11
	distRoot = 9
	maxCode  = 15

	litSize = 1<<litRoot + 144<<(maxCode-litRoot) // each subtable has at least two codes of at most 288
	disSize = 1<<distRoot + 16<<(maxCode-distRoot)

	endOfBlock = 1 << 29
	subtable   = 1 << 30
	invalid    = 1 << 31
	special    = endOfBlock | subtable | invalid
)

type (
	litTable  [litSize]uint32
	distTable [disSize]uint32
)

func literals(e uint32) uint32 { return e >> 5 & 3 }

// litEntry is the entry of a literal/length symbol of n bits, without n.
func litEntry(sym int) uint32 {
	switch {
	case sym < 256:
		return 1<<5 | uint32(sym)<<8
	case sym == 256:
		return endOfBlock
	case sym < 265:
		return uint32(sym-254) << 12
	case sym < 285:
		extra := uint32(sym-261) / 4
		base := (4+uint32(sym-261)%4)<<extra + 3
		return base<<12 | extra
	case sym == 285:
		return 258 << 12
	}
	return invalid
}

func distEntry(sym int) uint32 {
	switch {
	case sym < 4:
		return uint32(sym+1) << 12
	case sym < 30:
		extra := uint32(sym-2) / 2
		base := (2+uint32(sym)%2)<<extra + 1
		return base<<12 | extra
	}
	return invalid
}

// build fills a table from code lengths by symbol. A set of codes that isn't complete is refused, but for one code of
// one bit or none at all, which RFC 1951 allows.
func build(table []uint32, root int, lengths []uint8, entry func(int) uint32) bool {
	var count, offset [maxCode + 2]int
	for _, n := range lengths {
		count[n]++
	}
	space, used := 0, len(lengths)-count[0]
	for n := 1; n <= maxCode; n++ {
		space += count[n] << (maxCode - n)
		offset[n+1] = offset[n] + count[n]
	}
	if space != 1<<maxCode {
		if used > 1 || used == 1 && count[1] != 1 {
			return false
		}
		for i := range 1 << root {
			table[i] = invalid
		}
		for sym, n := range lengths {
			if n == 1 {
				for i := 0; i < 1<<root; i += 2 {
					table[i] = coded(entry(sym), 1)
				}
			}
		}
		return true
	}
	var sorted [288]uint16
	for sym, n := range lengths {
		if n != 0 {
			sorted[offset[n]] = uint16(sym)
			offset[n]++
		}
	}
	code, i := uint32(0), 0
	// The table grows: it is filled for codes of n bits, and doubled by copying when n goes up.
	for n := 1; n <= root; n++ {
		if n > 1 {
			half := 1 << (n - 1)
			copy(table[half:2*half], table[:half])
		}
		code <<= 1
		for range count[n] {
			table[bits.Reverse32(code)>>(32-n)] = coded(entry(int(sorted[i])), n)
			code++
			i++
		}
	}
	next, size, prefix := 1<<root, 1<<(maxCode-root), ^uint32(0)
	for n := root + 1; n <= maxCode; n++ {
		code <<= 1
		for range count[n] {
			rev := bits.Reverse32(code) >> (32 - n)
			if p := rev & (1<<root - 1); p != prefix {
				prefix = p
				if next+size > len(table) {
					return false
				}
				table[p] = subtable | uint32(next)<<12
				next += size
			}
			e := coded(entry(int(sorted[i])), n)
			at := next - size
			for j := int(rev >> root); j < size; j += 1 << (n - root) {
				table[at+j] = e
			}
			code++
			i++
		}
	}
	return true
}

// coded adds the bits of an entry's code.
func coded(e uint32, n int) uint32 {
	if literals(e) != 0 {
		return e + uint32(n)
	}
	return e + uint32(n) + uint32(n)<<8
}

// join makes one entry of two or three literals where their codes fit into the root together. It runs downwards: what
// an entry's remaining bits lead to has a smaller index, and is still single.
func join(table *litTable) {
	for i := uint32(1<<litRoot) - 1; i > 0; i-- {
		e := table[i]
		if literals(e) == 0 {
			continue
		}
		n := e & 31
		e2 := table[i>>n]
		n2 := n + e2&31
		if literals(e2) == 0 || n2 > litRoot {
			continue
		}
		e = n2 | 2<<5 | e&0xff00 | e2&0xff00<<8
		e3 := table[i>>n2]
		if n3 := n2 + e3&31; literals(e3) != 0 && n3 <= litRoot {
			e = n3 | 3<<5 | e&0xffff00 | e3&0xff00<<16
		}
		table[i] = e
	}
}
