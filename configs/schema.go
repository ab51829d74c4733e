package configs

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// kind is the type of one element of a field.
type kind int

const (
	text kind = iota
	flag
	integer
	unsigned
	number
	size // bytes, written with a unit
)

// shape says how a field's elements are arranged.
type shape int

const (
	scalar shape = iota
	array        // a fixed count of elements
	list         // any count
	block        // a nested struct
)

// A field is one key of an options struct, as its tags describe it.
type field struct {
	key, doc, unit string
	fallback       string // the default, as YAML; "" with hasDefault false
	hasDefault     bool
	required       bool
	secret         bool
	example        string
	min, max       string
	oneof          []string

	index int // in the struct
	kind  kind
	shape shape
	count int // elements of an array
	typ   reflect.Type
}

// fieldsOf reads the tags of struct type t. Its errors are mistakes in the program, not in a file.
func fieldsOf(t reflect.Type) ([]field, error) {
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("options of type %s: want a struct", t)
	}
	var fields []field
	for i := range t.NumField() {
		s := t.Field(i)
		key, ok := s.Tag.Lookup("key")
		if !ok {
			continue
		}
		f := field{
			key: key, doc: s.Tag.Get("doc"), unit: s.Tag.Get("unit"), example: s.Tag.Get("example"), min: s.Tag.Get("min"), max: s.Tag.Get("max"),
			oneof: strings.Fields(s.Tag.Get("oneof")), required: s.Tag.Get("required") == "true", secret: s.Tag.Get("secret") == "true",
			index: i, typ: s.Type,
		}
		f.fallback, f.hasDefault = s.Tag.Lookup("default")
		if err := f.classify(); err != nil {
			return nil, fmt.Errorf("options %s.%s: %w", t, s.Name, err)
		}
		if !s.IsExported() || key == "" || strings.ContainsAny(key, ".[]= ") {
			return nil, fmt.Errorf("options %s.%s: key %q can't be set", t, s.Name, key)
		}
		if slices.ContainsFunc(fields, func(g field) bool { return g.key == key }) {
			return nil, fmt.Errorf("options %s: key %q is there twice", t, key)
		}
		fields = append(fields, f)
	}
	return fields, nil
}

func (f *field) classify() error {
	elem := f.typ
	switch f.typ.Kind() {
	case reflect.Struct:
		f.shape = block
		return nil
	case reflect.Array:
		f.shape, f.count, elem = array, f.typ.Len(), f.typ.Elem()
	case reflect.Slice:
		f.shape, elem = list, f.typ.Elem()
	}
	switch elem.Kind() {
	case reflect.String:
		f.kind = text
	case reflect.Bool:
		f.kind = flag
	case reflect.Int, reflect.Int64:
		f.kind = integer
	case reflect.Uint64:
		f.kind = unsigned
	case reflect.Float64:
		f.kind = number
	default:
		return fmt.Errorf("type %s is none that a key can have", f.typ)
	}
	if f.unit == "bytes" && f.kind == integer {
		f.kind = size
	}
	return nil
}

// structOf returns the struct that pointer ptr points to.
func structOf(ptr any) (reflect.Value, error) {
	v := reflect.ValueOf(ptr)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return reflect.Value{}, fmt.Errorf("options %T: want a pointer to a struct", ptr)
	}
	return v.Elem(), nil
}

// SetDefaults sets every key of the options struct at ptr to its default. An error is a mistake in the tags.
func SetDefaults(ptr any) error {
	v, err := structOf(ptr)
	if err != nil {
		return err
	}
	return setDefaults(v)
}

func setDefaults(v reflect.Value) error {
	fields, err := fieldsOf(v.Type())
	if err != nil {
		return err
	}
	for _, f := range fields {
		fv := v.Field(f.index)
		if f.shape == block {
			if err := setDefaults(fv); err != nil {
				return err
			}
			continue
		}
		fv.SetZero()
		if !f.hasDefault {
			continue
		}
		node, err := parseValue(f.fallback)
		if err != nil {
			return fmt.Errorf("options %s: default of %s: %w", v.Type(), f.key, err)
		}
		if reason := f.set(fv, node); reason != "" {
			return fmt.Errorf("options %s: default of %s: %s", v.Type(), f.key, reason)
		}
	}
	return nil
}

// Lint says what is wrong with the tags of the options struct at ptr: a default out of its own bounds, a doc that
// isn't a sentence, a key that isn't snake_case. It is for tests.
func Lint(ptr any) error {
	v, err := structOf(ptr)
	if err != nil {
		return err
	}
	if err := setDefaults(reflect.New(v.Type()).Elem()); err != nil {
		return err
	}
	return lint(v.Type())
}

func lint(t reflect.Type) error {
	fields, err := fieldsOf(t)
	if err != nil {
		return err
	}
	for _, f := range fields {
		if strings.Trim(f.key, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			return fmt.Errorf("options %s: key %s isn't snake_case", t, f.key)
		}
		if !strings.HasSuffix(f.doc, ".") {
			return fmt.Errorf("options %s: the doc of %s isn't a sentence: %q", t, f.key, f.doc)
		}
		if f.required && f.hasDefault {
			return fmt.Errorf("options %s: %s is required and has a default", t, f.key)
		}
		if f.secret && (f.kind != text || f.shape == block) {
			return fmt.Errorf("options %s: %s is secret and isn't text", t, f.key)
		}
		if f.example != "" {
			node, err := parseValue(f.example)
			if err != nil {
				return fmt.Errorf("options %s: example of %s: %w", t, f.key, err)
			}
			if reason := f.set(reflect.New(f.typ).Elem(), node); reason != "" {
				return fmt.Errorf("options %s: example of %s: %s", t, f.key, reason)
			}
		}
		for _, bound := range []string{f.min, f.max} {
			if bound == "" {
				continue
			}
			if _, err := f.kind.parse(bound); err != nil || f.kind == text || f.kind == flag {
				return fmt.Errorf("options %s: bound %q of %s is no %s", t, bound, f.key, f.kind)
			}
		}
		if f.shape == block {
			if err := lint(f.typ); err != nil {
				return err
			}
		}
	}
	return nil
}
