package configs

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// String names what a value of the kind is, as an error says it.
func (k kind) String() string {
	switch k {
	case text:
		return "text"
	case flag:
		return "true or false"
	case integer, unsigned:
		return "a whole number"
	case number:
		return "a number"
	default:
		return "a size in bytes, such as 512MiB or 16GiB"
	}
}

// errKind says that a value isn't of the kind asked for; other errors of parse say more.
var errKind = errors.New("not of this kind")

// parse reads an unquoted scalar as string, bool, int64 (integer and size), uint64 or float64.
func (k kind) parse(s string) (any, error) {
	switch k {
	case text:
		return s, nil
	case flag:
		switch s {
		case "true", "True", "TRUE":
			return true, nil
		case "false", "False", "FALSE":
			return false, nil
		}
		return nil, errKind
	case integer:
		return parseInt(s)
	case unsigned:
		if u, err := strconv.ParseUint(strings.ReplaceAll(s, "_", ""), 10, 64); err == nil {
			return u, nil
		}
		i, err := parseInt(s)
		if err == nil && i < 0 {
			return nil, fmt.Errorf("want 0 or more, got %s", s)
		}
		return uint64(i), err
	case number:
		return parseFloat(s)
	default:
		return parseSize(s)
	}
}

// parseInt takes 100000, 100_000 and 1e5.
func parseInt(s string) (int64, error) {
	digits := strings.ReplaceAll(s, "_", "")
	i, err := strconv.ParseInt(digits, 10, 64)
	if err == nil {
		return i, nil
	}
	f, ferr := parseFloat(s)
	if ferr != nil {
		return 0, ferr
	}
	if errors.Is(err, strconv.ErrRange) || math.Abs(f) >= 1<<63 {
		return 0, fmt.Errorf("%s is too large for a whole number", s)
	}
	if f != math.Trunc(f) {
		return 0, errKind
	}
	return int64(f), nil
}

func parseFloat(s string) (float64, error) {
	digits := strings.ReplaceAll(s, "_", "")
	if strings.ContainsAny(digits, "xXpPiInN") { // hexadecimal, infinities, NaN
		return 0, errKind
	}
	f, err := strconv.ParseFloat(digits, 64)
	if errors.Is(err, strconv.ErrRange) {
		return 0, fmt.Errorf("%s is too large for a number", s)
	}
	if err != nil {
		return 0, errKind
	}
	return f, nil
}

// A byteUnit is a unit of sizes; larger ones come first.
type byteUnit struct {
	name  string
	bytes float64
}

func byteUnits() []byteUnit {
	return []byteUnit{
		{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
		{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
	}
}

// parseSize takes 512MiB, 1.5 GiB, 2GB, 1e9 and plain bytes; units in any case.
func parseSize(s string) (int64, error) {
	digits, scale := s, 1.0
	for _, u := range byteUnits() {
		if n := len(s) - len(u.name); n > 0 && strings.EqualFold(s[n:], u.name) {
			digits, scale = strings.TrimSpace(s[:n]), u.bytes
			break
		}
	}
	if scale == 1 {
		if last := s[max(len(s)-1, 0):]; len(s) > 1 && strings.ContainsAny(last, "kKmMgGtT") {
			if _, err := parseFloat(s[:len(s)-1]); err == nil {
				u := strings.ToUpper(last)
				return 0, fmt.Errorf("%s: write %s%siB (2^10) or %s%sB (10^3)", s, s[:len(s)-1], u, s[:len(s)-1], u)
			}
		}
		return parseInt(digits)
	}
	f, err := parseFloat(digits)
	if err != nil {
		return 0, err
	}
	if math.Abs(f*scale) >= 1<<63 {
		return 0, fmt.Errorf("%s is too large for a size", s)
	}
	return int64(f * scale), nil
}

// formatSize writes n bytes in the largest binary unit that divides it.
func formatSize(n int64) string {
	if n != 0 {
		for _, u := range byteUnits()[:4] {
			if n%int64(u.bytes) == 0 {
				return strconv.FormatInt(n/int64(u.bytes), 10) + u.name
			}
		}
	}
	return strconv.FormatInt(n, 10)
}

// formatFloat writes f as YAML reads it back: shortest, 1e-4 rather than 1e-04.
func formatFloat(f float64) string {
	s := strconv.FormatFloat(f, 'g', -1, 64)
	mantissa, exponent, ok := strings.Cut(s, "e")
	if !ok {
		return s
	}
	sign := strings.TrimRight(exponent[:1], "+")
	return mantissa + "e" + sign + strings.TrimLeft(exponent[1:], "0")
}

// set decodes node into v and returns what is wrong with it, or "".
func (f *field) set(v reflect.Value, node *yaml.Node) string {
	node = resolve(node)
	node = f.split(node)
	switch f.shape {
	case scalar:
		x, reason := f.scalar(node, f.kind.String())
		if reason != "" {
			return reason
		}
		assign(v, x)
		return ""
	case array:
		if node.Kind != yaml.SequenceNode || len(node.Content) != f.count {
			return fmt.Sprintf("want %s, got %s", f.wants(), got(node))
		}
	case list:
		if node.Kind == yaml.MappingNode {
			return fmt.Sprintf("want %s, got %s", f.wants(), got(node))
		}
	}
	elements := node.Content
	if node.Kind == yaml.ScalarNode { // one element, for short
		elements = []*yaml.Node{node}
	}
	decoded := reflect.New(f.typ).Elem()
	if f.shape == list {
		decoded.Set(reflect.MakeSlice(f.typ, len(elements), len(elements)))
	}
	for i, e := range elements {
		x, reason := f.scalar(resolve(e), f.wants())
		if reason != "" {
			return reason
		}
		assign(decoded.Index(i), x)
	}
	v.Set(decoded)
	return ""
}

// split takes 64,64,32 for [64, 64, 32], except where an element may hold a comma itself.
func (f *field) split(node *yaml.Node) *yaml.Node {
	words := f.shape != scalar && (f.kind != text || len(f.oneof) > 0)
	if !words || node.Kind != yaml.ScalarNode || node.Style&yaml.TaggedStyle != 0 || !strings.Contains(node.Value, ",") {
		return node
	}
	elements := &yaml.Node{Kind: yaml.SequenceNode, Line: node.Line}
	for word := range strings.SplitSeq(node.Value, ",") {
		elements.Content = append(elements.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: strings.TrimSpace(word), Line: node.Line})
	}
	return elements
}

// scalar decodes one element and checks it against the field's bounds and choices.
func (f *field) scalar(node *yaml.Node, wants string) (x any, reason string) {
	if node.Style&yaml.TaggedStyle != 0 {
		return nil, fmt.Sprintf("the YAML tag %s isn't used here: write the value alone", node.Tag)
	}
	quoted := node.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
	tag := node.ShortTag()
	if node.Kind != yaml.ScalarNode || f.kind != text && quoted || !quoted && (tag == "!!null" || f.kind == text && tag == "!!bool") {
		return nil, fmt.Sprintf("want %s, got %s", wants, got(node))
	}
	x, err := f.kind.parse(node.Value)
	switch {
	case errors.Is(err, errKind):
		return nil, fmt.Sprintf("want %s, got %s", wants, got(node))
	case err != nil:
		return nil, err.Error()
	case f.kind == text && strings.HasPrefix(node.Value, "~/"): // a folder of that name would be made
		return nil, fmt.Sprintf("%s: ~ isn't read as the home folder: write it out", got(node))
	case len(f.oneof) > 0 && !slices.Contains(f.oneof, fmt.Sprint(x)):
		return nil, fmt.Sprintf("want %s, got %s%s", oneOf(f.oneof), got(node), didYouMean(node.Value, f.oneof))
	case !f.within(x):
		unit := ""
		if f.unit != "" && f.kind != size {
			unit = " (" + f.unit + ")"
		}
		return nil, fmt.Sprintf("want %s%s, got %s", f.bounds(), unit, got(node))
	}
	return x, ""
}

// within reports whether x, as parse returns it, lies in the field's bounds.
func (f *field) within(x any) bool {
	if f.min != "" {
		if low, err := f.kind.parse(f.min); err == nil && compare(x, low) < 0 {
			return false
		}
	}
	if f.max != "" {
		if high, err := f.kind.parse(f.max); err == nil && compare(x, high) > 0 {
			return false
		}
	}
	return true
}

// compare orders two values of one kind.
func compare(a, b any) int {
	switch a := a.(type) {
	case int64:
		return cmp.Compare(a, b.(int64))
	case uint64:
		return cmp.Compare(a, b.(uint64))
	case float64:
		return cmp.Compare(a, b.(float64))
	}
	return 0
}

func assign(v reflect.Value, x any) {
	v.Set(reflect.ValueOf(x).Convert(v.Type()))
}

func plural(k kind) string {
	switch k {
	case text:
		return "words"
	case flag:
		return "flags"
	case number:
		return "numbers"
	case size:
		return "sizes"
	}
	return "whole numbers"
}

// wants names what a field's value looks like, for an error.
func (f *field) wants() string {
	words := plural(f.kind)
	if f.shape == array {
		words = fmt.Sprintf("%d %s", f.count, words)
	} else {
		words = "a list of " + words
	}
	sample := f.example
	switch {
	case sample != "":
	case f.fallback != "" && f.fallback != "[]":
		sample = f.fallback
	case len(f.oneof) > 0:
		sample = "[" + strings.Join(f.oneof, ", ") + "]"
	case f.shape == array:
		sample = "[" + strings.TrimSuffix(strings.Repeat("1, ", f.count), ", ") + "]"
	}
	if sample == "" {
		return words
	}
	return words + ", such as " + sample
}

// bounds says what min and max allow: "at least 1", "1 to 7", or "".
func (f *field) bounds() string {
	switch {
	case f.min != "" && f.max != "":
		return f.min + " to " + f.max
	case f.min != "":
		return "at least " + f.min
	case f.max != "":
		return "at most " + f.max
	}
	return ""
}

// got describes a node that was found where something else was wanted.
func got(node *yaml.Node) string {
	switch {
	case node.Kind == yaml.MappingNode:
		return "a block of keys"
	case node.Kind == yaml.SequenceNode:
		return sequenceText(node)
	case isNull(node):
		return "nothing"
	case node.ShortTag() == "!!str":
		return strconv.Quote(shorten(node.Value))
	}
	return shorten(node.Value)
}

// sequenceText writes a short list out, and counts a long one.
func sequenceText(node *yaml.Node) string {
	var words []string
	for _, e := range node.Content {
		e = resolve(e)
		if e.Kind != yaml.ScalarNode || len(words) == 6 {
			return fmt.Sprintf("a list of %d", len(node.Content))
		}
		words = append(words, shorten(e.Value))
	}
	return "[" + strings.Join(words, ", ") + "]"
}

// shorten cuts s to what an error can quote on one line.
func shorten(s string) string {
	if len(s) > 60 {
		s = strings.ToValidUTF8(s[:60], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

func isNull(node *yaml.Node) bool {
	return node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null" && node.Style&yaml.TaggedStyle == 0
}

// resolve follows an alias to its anchor.
func resolve(node *yaml.Node) *yaml.Node {
	for range 8 { // YAML has no alias of an alias; never loop all the same
		if node.Kind != yaml.AliasNode || node.Alias == nil {
			break
		}
		node = node.Alias
	}
	return node
}
