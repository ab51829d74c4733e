package nn

import (
	"cmp"
	"slices"
)

// lives sets how long each buffer is wanted.
func lives(l *lowering) {
	end := len(l.program)
	for i, in := range l.program {
		for _, b := range in.reads {
			b.last = max(b.last, i)
		}
		for _, b := range in.writes {
			b.last = max(b.last, i)
		}
	}
	for _, b := range l.buffers {
		if b.kept {
			b.last = end
		}
		if b.whole {
			b.first, b.last = -1, end
		}
	}
}

// reuse lets an output take the memory of an operand that its instruction reads last, where the op allows that and both are
// laid out alike.
func reuse(l *lowering) {
	for i, in := range l.program {
		for _, from := range in.over {
			a, b := from.buf.root(), in.out.buf
			same := from.Dims == in.out.Dims && from.Halo == in.out.Halo && from.Type == in.out.Type && a.bytes == b.bytes
			if !same || a.last != i || b.first != i || a.kept || b.into != nil || !readOnce(in, a) {
				continue
			}
			b.into, a.last = a, b.last
			a.kept = b.kept
			break
		}
	}
}

func readOnce(in instr, b *buffer) bool {
	n := 0
	for _, r := range in.reads {
		if r.root() == b {
			n++
		}
	}
	return n == 1
}

// place gives every buffer its offset and returns the size of the region. It is greedy: buffers in a given order, each in the smallest
// gap between those already placed that live at the same time. Of several orders the best is taken.
func place(l *lowering) int64 {
	var bs []*buffer
	for _, b := range l.buffers {
		if b.into == nil {
			bs = append(bs, b)
		}
	}
	orders := []func(a, b *buffer) int{
		func(a, b *buffer) int { return cmp.Compare(b.bytes, a.bytes) },
		func(a, b *buffer) int {
			return cmp.Compare(b.bytes*int64(b.last-b.first+1), a.bytes*int64(a.last-a.first+1))
		},
		func(a, b *buffer) int { return cmp.Compare(b.last-b.first, a.last-a.first) },
		func(a, b *buffer) int { return cmp.Compare(a.first, b.first) },
	}
	best, offsets := int64(-1), make([]int64, len(bs))
	for _, order := range orders {
		sorted := slices.Clone(bs)
		slices.SortStableFunc(sorted, order)
		size := greedy(sorted)
		if best < 0 || size < best {
			best = size
			for i, b := range bs {
				offsets[i] = b.off
			}
		}
	}
	for i, b := range bs {
		b.off = offsets[i]
	}
	return max(best, 0)
}

func greedy(bs []*buffer) int64 {
	var size int64
	placed := make([]*buffer, 0, len(bs)) // by offset
	for _, b := range bs {
		var low, at, gap int64 = 0, -1, 0
		for _, p := range placed {
			if p.last < b.first || b.last < p.first || p.bytes == 0 {
				continue
			}
			if free := p.off - low; free >= b.bytes && (at < 0 || free < gap) {
				at, gap = low, free
			}
			low = max(low, p.off+p.bytes)
		}
		if at < 0 {
			at = low
		}
		b.off = at
		size = max(size, at+b.bytes)
		i, _ := slices.BinarySearchFunc(placed, b, func(p, b *buffer) int { return cmp.Compare(p.off, b.off) })
		placed = slices.Insert(placed, i, b)
	}
	return size
}

// peak is the instruction at which most bytes are live, and the bytes of each kind then. No placement is smaller than their sum.
func peak(l *lowering) (at int, live [kinds]int64) {
	var most int64 = -1
	for i := range l.program {
		var now [kinds]int64
		var sum int64
		for _, b := range l.buffers {
			if b.into == nil && b.first <= i && i <= b.last {
				now[b.kind] += b.bytes
				sum += b.bytes
			}
		}
		if sum > most {
			most, at, live = sum, i, now
		}
	}
	return at, live
}
