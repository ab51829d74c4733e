package configs

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxProblems bounds what is reported at once: a file that has more is another file.
const maxProblems = 20

// A decoder sets structs from nodes and gathers what is wrong.
type decoder struct {
	file   string
	moved  map[*yaml.Node]*Error // where a node came from, if not from its line of file
	keys   map[string]*yaml.Node // the key node that set a dotted key
	preset map[*yaml.Node]bool   // the key nodes that are a preset's
	hidden map[string]string     // overrides of secret keys, as they may be shown
	errs   Errors
}

func newDecoder(file string) *decoder {
	return &decoder{file: file, moved: map[*yaml.Node]*Error{}, keys: map[string]*yaml.Node{}, preset: map[*yaml.Node]bool{}, hidden: map[string]string{}}
}

// Decode sets the options struct at ptr from a YAML mapping (or a document that is one), then calls Check on every
// struct in it that has one. Keys that aren't given keep their value: call SetDefaults first. A problem is reported
// as Errors, all at once. It never panics, whatever the node; it reads each node a bounded number of times.
func Decode(node *yaml.Node, ptr any) error {
	v, err := structOf(ptr)
	if err != nil {
		return err
	}
	if err := checkTags(v.Type()); err != nil {
		return err
	}
	if node.Kind == yaml.DocumentNode && len(node.Content) == 1 {
		node = node.Content[0]
	}
	d := newDecoder("")
	d.block(node, node, v, "")
	return d.err()
}

// checkTags reports a mistake in the tags of t or a struct nested in it.
func checkTags(t reflect.Type) error {
	fields, err := fieldsOf(t)
	for _, f := range fields {
		if f.shape == block && err == nil {
			err = checkTags(f.typ)
		}
	}
	return err
}

func (d *decoder) err() error {
	if len(d.errs) == 0 {
		return nil
	}
	d.errs.sort()
	return d.errs
}

// at returns an error placed where node is.
func (d *decoder) at(node *yaml.Node, key, reason string) *Error {
	e := &Error{File: d.file, Key: key, Reason: reason}
	if from := d.moved[node]; from != nil {
		e.File, e.Line, e.Override = from.File, from.Line, from.Override
	} else if node != nil {
		e.Line = node.Line
	}
	return e
}

func (d *decoder) add(node *yaml.Node, key, format string, args ...any) {
	if len(d.errs) < maxProblems {
		d.errs = append(d.errs, d.at(node, key, fmt.Sprintf(format, args...)))
	}
}

// block decodes mapping node, found under key node at, into struct v, whose dotted key is path. A null node is an
// empty block.
func (d *decoder) block(at, node *yaml.Node, v reflect.Value, path string) {
	fields, err := fieldsOf(v.Type())
	if err != nil {
		d.add(at, path, "%s", err)
		return
	}
	before := len(d.errs)
	node = resolve(node)
	seen := map[string]*yaml.Node{}
	switch {
	case node.Kind == yaml.MappingNode:
		d.pairs(node, path, seen, func(key, value *yaml.Node) {
			d.field(key, value, v, path, fields)
		})
	case !isNull(node) && node.Kind != 0:
		d.add(at, path, "want a block of keys, got %s", got(node))
		return
	}
	for _, f := range fields {
		dotted := join(path, f.key)
		if seen[f.key] != nil {
			continue
		}
		if f.required {
			what, _, _ := strings.Cut(strings.ReplaceAll(f.doc, ": ", ". "), ". ")
			d.add(at, dotted, "this key is required (%s)", strings.TrimSuffix(what, "."))
		}
		if f.shape == block { // its own rules hold for its defaults too
			d.block(at, &yaml.Node{}, v.Field(f.index), dotted)
		}
	}
	if len(d.errs) == before {
		d.check(at, v, path, fields)
	}
}

// pairs walks a mapping, refusing what no block may hold.
func (d *decoder) pairs(node *yaml.Node, path string, seen map[string]*yaml.Node, each func(key, value *yaml.Node)) {
	for i := 0; i+1 < len(node.Content) && len(d.errs) < maxProblems; i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		name := resolve(key)
		switch {
		case name.ShortTag() == "!!merge":
			d.add(key, path, "the merge key << isn't read: write the keys out, or name a value with an alias")
		case name.Kind != yaml.ScalarNode:
			d.add(key, path, "want a key, got %s", got(name))
		case seen[name.Value] != nil:
			d.add(key, join(path, shorten(name.Value)), "this key is there twice (first on line %d)", seen[name.Value].Line)
		default:
			seen[name.Value] = key
			d.keys[join(path, name.Value)] = key
			each(key, value)
		}
	}
}

func (d *decoder) field(key, value *yaml.Node, v reflect.Value, path string, fields []field) {
	name := resolve(key).Value
	dotted := join(path, shorten(name))
	for _, f := range fields {
		if f.key != name {
			continue
		}
		if f.secret {
			d.hide(key)
		}
		if f.shape == block {
			d.block(key, value, v.Field(f.index), dotted)
		} else if reason := f.set(v.Field(f.index), value); reason != "" {
			if f.secret {
				reason = "want " + f.kind.String()
			}
			d.add(key, dotted, "%s", reason)
		}
		return
	}
	d.add(key, dotted, "unknown key%s", didYouMean(name, keyNames(fields)))
}

// hide keeps the value of an override out of errors about its key.
func (d *decoder) hide(key *yaml.Node) {
	if from := d.moved[key]; from != nil {
		hidden := masked(from.Override)
		d.hidden[from.Override], from.Override = hidden, hidden
	}
}

// masked is an override without its value.
func masked(word string) string {
	name, _, _ := strings.Cut(word, "=")
	return name + "=…"
}

// keyNames lists the keys of fields, then those of the blocks nested in them, dotted.
func keyNames(fields []field) []string {
	var names, nested []string
	for _, f := range fields {
		names = append(names, f.key)
		if f.shape != block {
			continue
		}
		inner, err := fieldsOf(f.typ)
		if err != nil {
			continue
		}
		for _, name := range keyNames(inner) {
			nested = append(nested, join(f.key, name))
		}
	}
	return append(names, nested...)
}

// check calls the struct's Check, if it has one, and places what it says at the key it names.
func (d *decoder) check(at *yaml.Node, v reflect.Value, path string, fields []field) {
	checker, ok := v.Addr().Interface().(interface{ Check() error })
	if !ok {
		return
	}
	for _, err := range flatten(checker.Check()) {
		reason := strings.ReplaceAll(err.Error(), "\n", " ")
		node, key := at, path
		if name, rest, ok := strings.Cut(reason, ": "); ok && slices.Contains(keyNames(fields), name) {
			key, reason = join(path, name), rest
			node = d.keyNode(key, at)
		}
		d.add(node, key, "%s", reason)
	}
}

// keyNode returns the node of dotted key, or of the nearest block around it that was given, or fallback.
func (d *decoder) keyNode(key string, fallback *yaml.Node) *yaml.Node {
	for key != "" {
		if node := d.keys[key]; node != nil {
			return node
		}
		key = key[:max(strings.LastIndexByte(key, '.'), 0)]
	}
	return fallback
}

// flatten parts what errors.Join joined.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	var joined interface {
		error
		Unwrap() []error
	}
	if !errors.As(err, &joined) || joined.Error() != err.Error() {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, flatten(e)...)
	}
	if errors.Join(all...).Error() != err.Error() { // says more than its parts
		return []error{err}
	}
	return all
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
