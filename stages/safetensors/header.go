package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/bits"
	"slices"
	"strings"
	"unicode/utf8"
)

// The format (github.com/huggingface/safetensors): 8 bytes little endian N, N bytes of JSON, the tensors' bytes.
const (
	maxHeader = 100_000_000 // bytes; the limit of the reference implementation
	align     = 8           // the tensors' bytes start at a multiple of it
	digits    = 64          // hex digits of the seal
	unsealed  = "0000000000000000000000000000000000000000000000000000000000000000"

	metadata   = "__metadata__"
	sealPrefix = `{"` + metadata + `":{"` + SealKey + `":"` // how the header of a sealed file starts
)

// SealKey is the metadata entry that holds the seal: a file's SHA-256.
const SealKey = "sha256"

// Tensor describes a tensor of a file.
type Tensor struct {
	Name  string
	DType string // as in the file: F32, BF16, …
	Shape []int
	Bytes int64
}

// Header is a file's header. The tensors' bytes follow each other in the order of Tensors, without holes.
type Header struct {
	Tensors []Tensor
	Meta    map[string]string // without the seal
	Seal    string            // hex SHA-256, as stated; "" for a file without a seal

	raw []byte // the JSON, padding included
}

// Bytes is the size of the whole file.
func (h *Header) Bytes() int64 {
	n := int64(8 + len(h.raw))
	for _, t := range h.Tensors {
		n += t.Bytes
	}
	return n
}

// unsealedRaw is the header as it was hashed: with zeros for the seal.
func (h *Header) unsealedRaw() []byte {
	if h.Seal == "" {
		return h.raw
	}
	return slices.Concat(h.raw[:len(sealPrefix)], []byte(unsealed), h.raw[len(sealPrefix)+digits:])
}

// NewHeader lays out arrays in the order given, with meta in the order of its keys. With sealed, zeros hold the place of
// the seal, at 8+len(sealPrefix) of the file; else the key sha256 is still not free.
func NewHeader(arrays []Array, meta map[string]string, sealed bool) (*Header, error) {
	h := &Header{Meta: meta}
	var b bytes.Buffer
	b.WriteByte('{')
	if sealed || len(meta) > 0 {
		entries := make([]string, 0, len(meta)+1)
		long := 0
		if sealed {
			h.Seal = unsealed
			entries = append(entries, `"`+SealKey+`":"`+unsealed+`"`)
		}
		for _, k := range slices.Sorted(maps.Keys(meta)) {
			if k == SealKey {
				return nil, fmt.Errorf("metadata %q: the name is taken", k)
			}
			if !utf8.ValidString(k) || !utf8.ValidString(meta[k]) {
				return nil, fmt.Errorf("metadata %q: not UTF-8", k)
			}
			if long += len(k) + len(meta[k]); long > maxHeader {
				return nil, fmt.Errorf("metadata %q: more than %d bytes", k, maxHeader)
			}
			entries = append(entries, quote(k)+":"+quote(meta[k]))
		}
		b.WriteString(`"` + metadata + `":{` + strings.Join(entries, ",") + "}")
	}
	names := make(map[string]bool, len(arrays))
	offset := int64(0)
	for _, a := range arrays {
		n, err := elements(a.Shape)
		dtype, size := a.Values.kind()
		switch {
		case a.Name == metadata || names[a.Name]:
			return nil, fmt.Errorf("tensor %q: the name is taken", a.Name)
		case !utf8.ValidString(a.Name):
			return nil, fmt.Errorf("tensor %q: the name is not UTF-8", a.Name)
		case err != nil:
			return nil, fmt.Errorf("tensor %q: %w", a.Name, err)
		case n > (math.MaxInt64-offset)/size:
			return nil, fmt.Errorf("tensor %q: more than 2^63 bytes", a.Name)
		}
		names[a.Name] = true
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		shape := strings.ReplaceAll(fmt.Sprint(a.Shape), " ", ",")
		fmt.Fprintf(&b, `%s:{"dtype":%q,"shape":%s,"data_offsets":[%d,%d]}`, quote(a.Name), dtype, shape, offset, offset+size*n)
		offset += size * n
		h.Tensors = append(h.Tensors, Tensor{a.Name, dtype, a.Shape, size * n})
	}
	b.WriteByte('}')
	for b.Len()%align != 0 {
		b.WriteByte(' ')
	}
	if b.Len() > maxHeader {
		return nil, fmt.Errorf("header of %d bytes (at most %d)", b.Len(), maxHeader)
	}
	h.raw = b.Bytes()
	return h, nil
}

// readHeader reads and checks the header of a file of size bytes. What it returns holds: names are unique, every
// dtype is known, and the tensors cover the rest of the file without holes or overlaps.
func readHeader(r io.Reader, size int64) (*Header, error) {
	var word [8]byte
	if _, err := io.ReadFull(r, word[:]); err != nil {
		return nil, fmt.Errorf("header: %w", torn(err))
	}
	n := binary.LittleEndian.Uint64(word[:])
	switch {
	case n > maxHeader:
		return nil, fmt.Errorf("header of %d bytes (at most %d): not a safetensors file, or damaged", n, maxHeader)
	case int64(n) > size-8:
		return nil, fmt.Errorf("header of %d bytes in a file of %d: torn", n, size)
	}
	raw := make([]byte, n)
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, fmt.Errorf("header: %w", torn(err))
	}
	h, err := parseHeader(raw)
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if want := h.Bytes(); want != size {
		return nil, fmt.Errorf("file of %d bytes (want %d): torn or damaged", size, want)
	}
	return h, nil
}

func parseHeader(raw []byte) (*Header, error) {
	if len(raw) == 0 || raw[0] != '{' {
		return nil, errors.New("not a JSON object")
	}
	if !utf8.Valid(raw) {
		return nil, errors.New("not UTF-8")
	}
	h := &Header{raw: raw}
	type entry struct {
		DType   string  `json:"dtype"`
		Shape   *[]int  `json:"shape"`
		Offsets []int64 `json:"data_offsets"`
	}
	var begins []int64
	d := json.NewDecoder(bytes.NewReader(raw))
	names := make(map[string]bool)
	err := object(d, func(name string) error {
		if names[name] {
			return fmt.Errorf("%q: twice", name)
		}
		names[name] = true
		if name == metadata {
			h.Meta = make(map[string]string)
			return object(d, func(key string) error {
				if _, ok := h.Meta[key]; ok {
					return fmt.Errorf("metadata %q: twice", key)
				}
				tok, err := d.Token()
				if err != nil {
					return torn(err)
				}
				value, ok := tok.(string)
				if !ok {
					return fmt.Errorf("metadata %q: not a string", key)
				}
				h.Meta[key] = value
				return nil
			})
		}
		var e entry
		if err := d.Decode(&e); err != nil {
			return fmt.Errorf("tensor %q: %w", name, torn(err))
		}
		if e.Shape == nil || len(e.Offsets) != 2 {
			return fmt.Errorf("tensor %q: want dtype, shape and two data_offsets", name)
		}
		kind, err := dtype(e.DType)
		if err != nil {
			return fmt.Errorf("tensor %q: %w", name, err)
		}
		count, err := elements(*e.Shape)
		if err != nil {
			return fmt.Errorf("tensor %q: %w", name, err)
		}
		begin, end := e.Offsets[0], e.Offsets[1]
		if count > math.MaxInt64/int64(kind.size) || begin < 0 || end < begin || end-begin != count*int64(kind.size) {
			return fmt.Errorf("tensor %q: bytes %d to %d don't hold shape %v of %s", name, begin, end, *e.Shape, e.DType)
		}
		h.Tensors = append(h.Tensors, Tensor{name, e.DType, *e.Shape, end - begin})
		begins = append(begins, begin)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if rest := raw[d.InputOffset():]; len(bytes.TrimRight(rest, " ")) > 0 {
		return nil, errors.New("more than a JSON object")
	}
	if err := h.sort(begins); err != nil {
		return nil, err
	}
	h.takeSeal()
	return h, nil
}

// sort puts the tensors in the order of their bytes, which must follow each other.
func (h *Header) sort(begins []int64) error {
	order := make([]int, len(begins))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		// An empty tensor comes before the one that starts where it does.
		if c := begins[a] - begins[b]; c != 0 {
			return sign(c)
		}
		return sign(h.Tensors[a].Bytes - h.Tensors[b].Bytes)
	})
	sorted := make([]Tensor, len(order))
	end := int64(0)
	for i, j := range order {
		sorted[i] = h.Tensors[j]
		if begins[j] != end {
			return fmt.Errorf("tensor %q: starts at byte %d (want %d: no holes, no overlaps)", sorted[i].Name, begins[j], end)
		}
		if end += sorted[i].Bytes; end < 0 {
			return errors.New("more than 2^63 bytes")
		}
	}
	h.Tensors = sorted
	return nil
}

// takeSeal moves the seal out of the metadata, where the header starts as that of a sealed file.
func (h *Header) takeSeal() {
	rest, ok := bytes.CutPrefix(h.raw, []byte(sealPrefix))
	if !ok || len(rest) <= digits || rest[digits] != '"' {
		return
	}
	for _, c := range rest[:digits] {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return
		}
	}
	h.Seal = string(rest[:digits])
	delete(h.Meta, SealKey)
}

// object reads a JSON object from d; value is called where the value of each key starts, and reads it.
func object(d *json.Decoder, value func(key string) error) error {
	if tok, err := d.Token(); err != nil {
		return torn(err)
	} else if tok != json.Delim('{') {
		return fmt.Errorf("%v where an object should be", tok)
	}
	for d.More() {
		tok, err := d.Token()
		if err != nil {
			return torn(err)
		}
		key, ok := tok.(string)
		if !ok {
			return fmt.Errorf("%v where a name should be", tok)
		}
		if err := value(key); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return torn(err)
}

// elements is the product of a shape; 1 for a scalar.
func elements(shape []int) (int64, error) {
	n := uint64(1)
	for _, s := range shape {
		hi, lo := bits.Mul64(n, uint64(s))
		if s < 0 || hi != 0 || lo > math.MaxInt64 {
			return 0, fmt.Errorf("shape %v", shape)
		}
		n = lo
	}
	return int64(n), nil
}

// quote is s as a JSON string; s is UTF-8.
func quote(s string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string always encodes
	return strings.TrimSuffix(b.String(), "\n")
}

// torn says in the reader's words that a file ended early.
func torn(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("torn: it ends too early")
	}
	return err
}

func sign(n int64) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}
