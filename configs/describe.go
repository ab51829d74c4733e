package configs

import (
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A Key is one key of an options struct, for help.
type Key struct {
	Name     string   // dotted: validate.every
	Type     string   // "a number", "3 whole numbers", "a list of words", "block"
	Unit     string   // "" for none
	Default  string   // as YAML; "" for a block and for a required key
	Example  string   // as YAML; "" for none
	Bounds   string   // "at least 1", "0 to 1"; "" for none
	Choices  []string // all values there are, where they are few
	Doc      string   // sentences
	Required bool
}

// Block reports whether the key is a block of keys, which follow it.
func (k Key) Block() bool { return k.Type == blockType }

const blockType = "block"

// Describe lists every key of the options struct at ptr, in its order; a nested block comes before its keys. It
// panics where ptr is no such pointer or the tags are wrong, which SetDefaults and Lint return as an error.
func Describe(ptr any) []Key {
	v, err := structOf(ptr)
	if err != nil {
		panic(err)
	}
	return describe(v.Type(), "")
}

func describe(t reflect.Type, path string) []Key {
	fields, err := fieldsOf(t)
	if err != nil {
		panic(err)
	}
	var keys []Key
	for _, f := range fields {
		k := Key{
			Name: join(path, f.key), Type: f.typeName(), Unit: f.unit, Example: f.example, Bounds: f.bounds(), Choices: f.oneof, Doc: f.doc, Required: f.required,
		}
		if f.shape == block {
			keys = append(keys, k)
			keys = append(keys, describe(f.typ, k.Name)...)
			continue
		}
		if !f.required {
			if k.Default = f.fallback; k.Default == "" {
				k.Default = inline(f.encode(reflect.Zero(f.typ)))
			}
		}
		keys = append(keys, k)
	}
	return keys
}

func (f *field) typeName() string {
	name := f.kind.String()
	if f.kind == size {
		name = "a size"
	}
	switch f.shape {
	case array:
		return strconv.Itoa(f.count) + " " + plural(f.kind)
	case list:
		return "a list of " + plural(f.kind)
	case block:
		return blockType
	}
	return name
}

// Encode writes the options struct at ptr as a YAML mapping that Decode reads back to the same values, secret keys apart,
// which are left out. Like Describe it panics where the tags are wrong.
func Encode(ptr any) *yaml.Node {
	v, err := structOf(ptr)
	if err != nil {
		panic(err)
	}
	return encode(v)
}

func encode(v reflect.Value) *yaml.Node {
	fields, err := fieldsOf(v.Type())
	if err != nil {
		panic(err)
	}
	node := &yaml.Node{Kind: yaml.MappingNode}
	if len(fields) == 0 {
		node.Style = yaml.FlowStyle
	}
	for _, f := range fields {
		if !f.secret {
			node.Content = append(node.Content, textNode(f.key), f.encode(v.Field(f.index)))
		}
	}
	return node
}

func (f *field) encode(v reflect.Value) *yaml.Node {
	switch f.shape {
	case block:
		return encode(v)
	case array, list:
		node := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for i := range v.Len() {
			node.Content = append(node.Content, f.encodeScalar(v.Index(i)))
		}
		return node
	}
	return f.encodeScalar(v)
}

func (f *field) encodeScalar(v reflect.Value) *yaml.Node {
	plain := func(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: s} }
	switch f.kind {
	case flag:
		return plain(strconv.FormatBool(v.Bool()))
	case integer:
		return plain(strconv.FormatInt(v.Int(), 10))
	case unsigned:
		return plain(strconv.FormatUint(v.Uint(), 10))
	case number:
		return plain(formatFloat(v.Float()))
	case size:
		return plain(formatSize(v.Int()))
	}
	return textNode(v.String())
}

// textNode returns text as a scalar; the writer quotes it where it would read as something else.
func textNode(s string) *yaml.Node {
	node := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if strings.Contains(s, "\n") { // the writer's literal style can't begin with a tab
		node.Style = yaml.DoubleQuotedStyle
	}
	return node
}

// inline writes a value on one line.
func inline(node *yaml.Node) string {
	b, err := yaml.Marshal(node)
	if err != nil {
		return node.Value
	}
	return strings.TrimSpace(string(b))
}
