package observe

import (
	"bytes"
	"encoding/json"
	"strconv"
)

// A pair is a name of a line of metrics.jsonl and its value as it stands there: a number, words without their quotes, or null.
type pair struct {
	name, value []byte
	quoted      bool
}

// entry is a line of metrics.jsonl, read as fast as lines are written that way; others have the JSON decoder read them.
type entry struct {
	pairs []pair
	names map[string]string
}

// read takes a line in, and says whether it is an object. What it has is the line's.
func (e *entry) read(line []byte) bool {
	if e.flat(line) {
		return true
	}
	e.pairs = e.pairs[:0]
	if !json.Valid(line) {
		return false
	}
	var object map[string]any
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	if d.Decode(&object) != nil || object == nil {
		return false
	}
	for name, value := range object {
		switch v := value.(type) {
		case json.Number:
			e.pairs = append(e.pairs, pair{[]byte(name), []byte(v), false})
		case string:
			e.pairs = append(e.pairs, pair{[]byte(name), []byte(v), true})
		}
	}
	return true
}

// flat reads a line as object writes it: no spaces, no backslashes, nothing in what it holds, and no name twice.
func (e *entry) flat(line []byte) bool {
	e.pairs = e.pairs[:0]
	b, ok := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\n")), []byte("{"))
	for ok {
		var p pair
		if p.name, b, ok = words(b); !ok || len(b) == 0 || b[0] != ':' {
			return false
		}
		switch b = b[1:]; {
		case bytes.HasPrefix(b, []byte("null")):
			p.value, b = b[:4], b[4:]
		case len(b) > 0 && b[0] == '"':
			if p.value, b, ok = words(b); !ok {
				return false
			}
			p.quoted = true
		default:
			n := digits(b)
			if n == 0 {
				return false
			}
			p.value, b = b[:n], b[n:]
		}
		for _, q := range e.pairs {
			if bytes.Equal(q.name, p.name) {
				return false
			}
		}
		if p.quoted || p.value[0] != 'n' {
			e.pairs = append(e.pairs, p)
		}
		if string(b) == "}" {
			return true
		}
		b, ok = bytes.CutPrefix(b, []byte(","))
	}
	return false
}

// words is what stands in quotes at the beginning of b, plain ASCII, and what follows.
func words(b []byte) (text, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != '"' {
		return nil, nil, false
	}
	for i, c := range b[1:] {
		switch {
		case c == '"':
			return b[1 : 1+i], b[2+i:], true
		case c == '\\' || c < ' ' || c > '~':
			return nil, nil, false
		}
	}
	return nil, nil, false
}

// digits is the length of the JSON number at the beginning of b, 0 for none.
func digits(b []byte) int {
	i := 0
	run := func() (n int) {
		for i < len(b) && b[i] >= '0' && b[i] <= '9' {
			i++
			n++
		}
		return n
	}
	is := func(set string) bool { return i < len(b) && bytes.IndexByte([]byte(set), b[i]) >= 0 }
	if is("-") {
		i++
	}
	zero := is("0")
	if n := run(); n == 0 || zero && n > 1 {
		return 0
	}
	if is(".") {
		if i++; run() == 0 {
			return 0
		}
	}
	if is("eE") {
		if i++; is("+-") {
			i++
		}
		if run() == 0 {
			return 0
		}
	}
	return i
}

// step is the step of a line that has one.
func (e *entry) step() (int, bool) {
	for _, p := range e.pairs {
		if string(p.name) == "step" && !p.quoted {
			n, err := strconv.Atoi(string(p.value))
			return n, err == nil
		}
	}
	return 0, false
}

// fields are its numbers and words.
func (e *entry) fields() ([]field, bool) {
	if e.names == nil {
		e.names = map[string]string{}
	}
	list := make([]field, 0, len(e.pairs))
	for _, p := range e.pairs {
		name, ok := e.names[string(p.name)]
		if !ok {
			name = string(p.name)
			e.names[name] = name
		}
		if p.quoted {
			list = append(list, field{name, string(p.value)})
			continue
		}
		x, err := strconv.ParseFloat(string(p.value), 64)
		if err != nil {
			return nil, false
		}
		list = append(list, field{name, x})
	}
	return list, true
}
