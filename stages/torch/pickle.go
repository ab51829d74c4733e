package torch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// maxOps bounds the work and the memory that a pickle can ask for.
const maxOps = 1 << 21

// The machine of Python's pickle (Lib/pickletools.py documents each opcode), protocols 2 to 5. Nothing is imported and nothing
// is called: reduce knows what to build.
type machine struct {
	in    []byte
	stack []any
	marks []int
	memo  map[uint64]any
	err   error
}

// load returns the value of a pickle.
func load(in []byte) (any, error) {
	m := &machine{in: in, memo: map[uint64]any{}}
	for range maxOps {
		op := m.byte()
		if m.err == nil && op == '.' {
			v := m.pop()
			return v, m.err
		}
		m.step(op)
		if m.err != nil {
			return nil, fmt.Errorf("at byte %d: %w", len(in)-len(m.in), m.err)
		}
	}
	return nil, fmt.Errorf("more than %d operations", maxOps)
}

func (m *machine) fail(err error) {
	if m.err == nil {
		m.err = err
	}
}

func (m *machine) take(n uint64) []byte {
	if m.err != nil || n > uint64(len(m.in)) {
		m.fail(io.ErrUnexpectedEOF)
		return nil
	}
	b := m.in[:n]
	m.in = m.in[n:]
	return b
}

func (m *machine) byte() byte {
	if b := m.take(1); b != nil {
		return b[0]
	}
	return 0
}

// uint reads n bytes, the lowest first.
func (m *machine) uint(n uint64) uint64 {
	var word [8]byte
	copy(word[:], m.take(n))
	return binary.LittleEndian.Uint64(word[:])
}

func (m *machine) line() string {
	for i, c := range m.in {
		if c == '\n' {
			s := string(m.in[:i])
			m.in = m.in[i+1:]
			return s
		}
	}
	m.fail(io.ErrUnexpectedEOF)
	return ""
}

func (m *machine) push(v any) { m.stack = append(m.stack, v) }

// floor is where the stack above the last mark begins.
func (m *machine) floor() int {
	if len(m.marks) == 0 {
		return 0
	}
	return m.marks[len(m.marks)-1]
}

func (m *machine) pop() any {
	if len(m.stack) <= m.floor() {
		m.fail(errors.New("nothing on the stack"))
		return nil
	}
	v := m.stack[len(m.stack)-1]
	m.stack = m.stack[:len(m.stack)-1]
	return v
}

func (m *machine) top() any {
	v := m.pop()
	m.push(v)
	return v
}

// popn returns the topmost n values, the first pushed first.
func (m *machine) popn(n int) tuple {
	t := make(tuple, n)
	for i := n - 1; i >= 0; i-- {
		t[i] = m.pop()
	}
	return t
}

// popMark returns what lies above the last mark.
func (m *machine) popMark() tuple {
	if len(m.marks) == 0 {
		m.fail(errors.New("no mark on the stack"))
		return nil
	}
	at := m.floor()
	t := append(tuple(nil), m.stack[at:]...)
	m.stack, m.marks = m.stack[:at], m.marks[:len(m.marks)-1]
	return t
}

// integer pushes a number in two's complement, where it fits.
func (m *machine) integer(n uint64) {
	b := m.take(n)
	if n > 8 {
		m.push(object{})
		return
	}
	var x int64
	for i, c := range b {
		x |= int64(c) << (8 * i)
	}
	if n > 0 && n < 8 {
		x = x << (64 - 8*n) >> (64 - 8*n)
	}
	m.push(x)
}

func (m *machine) append(values tuple) {
	if l, ok := m.top().(*items); ok {
		l.list = append(l.list, values...)
	}
}

func (m *machine) set(pairs tuple) {
	if len(pairs)%2 != 0 {
		m.fail(errors.New("a key without a value"))
		return
	}
	var d *dict
	switch v := m.top().(type) {
	case *dict:
		d = v
	case *instance: // of a class that is a dict
		d = &v.dict
	default:
		return
	}
	for i := 0; i < len(pairs); i += 2 {
		d.set(pairs[i], pairs[i+1])
	}
}

// instance pushes what stands for an object of a class.
func (m *machine) instance(class any) {
	name, ok := class.(global)
	if !ok {
		m.push(object{})
		return
	}
	m.push(&instance{class: name})
}

func (m *machine) get(at uint64) {
	v, ok := m.memo[at]
	if !ok {
		m.fail(fmt.Errorf("memo %d is empty", at))
	}
	m.push(v)
}

func (m *machine) step(op byte) {
	switch op {
	case 0x80: // PROTO
		if v := m.byte(); v < 2 || v > 5 {
			m.fail(fmt.Errorf("protocol %d (want 2 to 5)", v))
		}
	case 0x95: // FRAME
		m.take(8)
	case '(':
		m.marks = append(m.marks, len(m.stack))
	case '0': // POP, of a mark too
		if n := len(m.marks); n > 0 && m.marks[n-1] == len(m.stack) {
			m.marks = m.marks[:n-1]
			return
		}
		m.pop()
	case '1':
		m.popMark()
	case '2':
		m.push(m.top())
	case 'N':
		m.push(nil)
	case 0x88, 0x89:
		m.push(op == 0x88)
	case 'J':
		m.integer(4)
	case 'K':
		m.push(int64(m.uint(1)))
	case 'M':
		m.push(int64(m.uint(2)))
	case 0x8a: // LONG1
		m.integer(m.uint(1))
	case 0x8b: // LONG4
		m.integer(m.uint(4))
	case 'G':
		if b := m.take(8); b != nil {
			m.push(math.Float64frombits(binary.BigEndian.Uint64(b)))
		}
	case 'X', 'T': // BINUNICODE, BINSTRING
		m.push(string(m.take(m.uint(4))))
	case 0x8c, 'U': // SHORT_BINUNICODE, SHORT_BINSTRING
		m.push(string(m.take(m.uint(1))))
	case 0x8d: // BINUNICODE8
		m.push(string(m.take(m.uint(8))))
	case 'B': // bytes name nothing and are no tensor
		m.take(m.uint(4))
		m.push(object{})
	case 'C':
		m.take(m.uint(1))
		m.push(object{})
	case 0x8e, 0x96: // BINBYTES8, BYTEARRAY8
		m.take(m.uint(8))
		m.push(object{})
	case 'q':
		m.memo[m.uint(1)] = m.top()
	case 'r':
		m.memo[m.uint(4)] = m.top()
	case 0x94: // MEMOIZE
		m.memo[uint64(len(m.memo))] = m.top()
	case 'h':
		m.get(m.uint(1))
	case 'j':
		m.get(m.uint(4))
	default:
		m.build(op)
	}
}

// build carries out the opcodes that make containers and objects.
func (m *machine) build(op byte) {
	switch op {
	case ')':
		m.push(tuple(nil))
	case 0x85, 0x86, 0x87: // TUPLE1, 2, 3
		m.push(m.popn(int(op - 0x84)))
	case 't':
		m.push(m.popMark())
	case ']':
		m.push(&items{})
	case 'l':
		m.push(&items{m.popMark()})
	case 'a':
		v := m.pop()
		m.append(tuple{v})
	case 'e':
		m.append(m.popMark())
	case '}':
		m.push(&dict{})
	case 'd':
		pairs := m.popMark()
		m.push(&dict{})
		m.set(pairs)
	case 's':
		m.set(m.popn(2))
	case 'u':
		m.set(m.popMark())
	case 0x8f: // EMPTY_SET
		m.push(object{})
	case 0x90: // ADDITEMS
		m.popMark()
		m.top()
	case 0x91: // FROZENSET
		m.popMark()
		m.push(object{})
	case 'c':
		module := m.line()
		m.push(global(module + " " + m.line()))
	case 0x93: // STACK_GLOBAL
		t := m.popn(2)
		module, ok1 := t[0].(string)
		name, ok2 := t[1].(string)
		if !ok1 || !ok2 {
			m.fail(errors.New("a global without a name"))
			return
		}
		m.push(global(module + " " + name))
	case 'Q':
		m.push(persistent(m.pop()))
	case 'R':
		t := m.popn(2)
		args, ok := t[1].(tuple)
		if !ok {
			m.fail(errors.New("arguments that aren't a tuple"))
			return
		}
		v, err := reduce(t[0], args)
		if err != nil {
			m.fail(err)
		}
		m.push(v)
	case 'b': // BUILD: the state of an object, or attributes of a dict
		state := m.pop()
		if o, ok := m.top().(*instance); ok {
			o.state = state
		}
	case 0x81: // NEWOBJ
		m.instance(m.popn(2)[0])
	case 0x92: // NEWOBJ_EX
		m.instance(m.popn(3)[0])
	default:
		m.fail(fmt.Errorf("operation 0x%02x is none that torch.save writes", op))
	}
}
