package configs

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

var overrideWord = regexp.MustCompile(`^([A-Za-z0-9_-]+)(?:\[(\d{1,4})\])?((?:\.[A-Za-z0-9_-]+)*)$`)

// override applies one word key=value to the nodes, before they are decoded; so that its value is checked like the
// file's, and what it replaces isn't.
func (l *loader) override(word string) {
	fail := func(format string, args ...any) {
		if len(l.errs) < maxProblems {
			l.errs = append(l.errs, &Error{File: l.file, Override: word, Reason: fmt.Sprintf(format, args...)})
		}
	}
	name, text, ok := strings.Cut(word, "=")
	m := overrideWord.FindStringSubmatch(strings.TrimSpace(name))
	if !ok || m == nil {
		fail("want key=value, such as train.lr=3e-4 or run.seed=7")
		return
	}
	head, number, path := m[1], m[2], strings.Split(strings.TrimPrefix(m[3], "."), ".")
	target, reason := l.target(head, number)
	value, err := parseValue(text)
	if err != nil {
		if target != nil && l.holdsSecrets(target) {
			word = masked(word)
		}
		fail("%s", err)
		return
	}
	switch {
	case reason != "":
		fail("%s", reason)
		return
	case target == nil:
		fail("unknown key%s", didYouMean(strings.TrimSpace(name), l.overridable()))
		return
	case m[3] == "" && value.Kind == yaml.ScalarNode:
		fail("%s is a block: set its keys, as in %s", head, l.sample(target))
		return
	}
	l.mark(value, word)
	key := textNode(target.name)
	l.moved[key] = &Error{File: l.file, Override: word}
	if target.key == nil {
		target.key = key
	}
	if m[3] == "" {
		target.key, target.value = key, value
		return
	}
	l.patch(&target.value, path, value, word)
}

// target finds the block or the stage that an override begins with. Neither a target nor a reason: the name is
// unknown.
func (l *loader) target(head, number string) (target *entry, reason string) {
	if e := l.top[head]; e != nil && number == "" {
		return e, ""
	}
	var same []*entry
	for _, e := range l.stages {
		if e.name == head {
			same = append(same, e)
		}
	}
	switch {
	case head == flowKey:
		return nil, "flow is the list of stages: set a stage's keys, as in train.lr=3e-4"
	case len(same) == 0 && slices.Contains(l.blocks.StageNames, head):
		return nil, fmt.Sprintf("the flow has no stage %s", head)
	case len(same) == 0:
		return nil, ""
	case number == "" && len(same) > 1:
		return nil, fmt.Sprintf("the flow has %d stages %s: say which, from %s[0] to %s[%d]", len(same), head, head, head, len(same)-1)
	case number == "":
		return same[0], ""
	}
	i, err := strconv.Atoi(number)
	if err != nil || i >= len(same) {
		return nil, fmt.Sprintf("the flow has %d of stage %s, counted from %s[0]", len(same), head, head)
	}
	return same[i], ""
}

// patch sets the value at path below mapping *node, which may be shared by aliases: what changes is copied.
func (l *loader) patch(node **yaml.Node, path []string, value *yaml.Node, word string) {
	old := resolve(*node)
	fresh := &yaml.Node{Kind: yaml.MappingNode, Line: old.Line}
	switch {
	case old.Kind == yaml.MappingNode:
		fresh.Content = slices.Clone(old.Content)
	case !isNull(old):
		return // not a block: the file's own problem, reported when it is decoded
	}
	*node = fresh
	for i := 0; i+1 < len(fresh.Content); i += 2 {
		if k := resolve(fresh.Content[i]); k.Kind == yaml.ScalarNode && k.Value == path[0] {
			child := resolve(fresh.Content[i+1])
			switch {
			case len(path) > 1 && (child.Kind == yaml.MappingNode || isNull(child)):
				l.patch(&fresh.Content[i+1], path[1:], value, word)
			case len(path) > 1: // a value has no keys: decoding says so
				fresh.Content[i], fresh.Content[i+1] = l.key(path[0], word), l.nest(path[1:], value, word)
			default:
				key := l.key(path[0], word)
				key.Line = k.Line
				fresh.Content[i], fresh.Content[i+1] = key, value
			}
			return
		}
	}
	fresh.Content = append(fresh.Content, l.key(path[0], word), l.nest(path[1:], value, word))
}

// nest puts value into a mapping for each name of path.
func (l *loader) nest(path []string, value *yaml.Node, word string) *yaml.Node {
	for _, name := range slices.Backward(path) {
		value = &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{l.key(name, word), value}}
	}
	return value
}

// key returns a key node that came from an override.
func (l *loader) key(name, word string) *yaml.Node {
	node := textNode(name)
	l.mark(node, word)
	return node
}

// mark says that node and what is in it came from an override.
func (l *loader) mark(node *yaml.Node, word string) {
	l.moved[node] = &Error{File: l.file, Override: word}
	for _, child := range node.Content {
		l.mark(child, word)
	}
}

// holdsSecrets says that one of the entry's keys is secret.
func (l *loader) holdsSecrets(e *entry) bool {
	v, err := structOf(l.options(e))
	return err == nil && holdsSecrets(v.Type())
}

func holdsSecrets(t reflect.Type) bool {
	fields, err := fieldsOf(t)
	return err == nil && slices.ContainsFunc(fields, func(f field) bool { return f.secret || f.shape == block && holdsSecrets(f.typ) })
}

// options is a struct of the entry's type.
func (l *loader) options(e *entry) any {
	if options := l.blocks.Top[e.name]; options != nil {
		return options
	}
	options, _ := l.blocks.Stage(e.name)
	return options
}

// overridable lists every key that an override of this file can set, for suggestions.
func (l *loader) overridable() []string {
	var names []string
	entries := slices.Clone(l.stages)
	for _, name := range l.order {
		entries = append(entries, l.top[name])
	}
	for _, e := range entries {
		names = append(names, l.keysOf(e)...)
	}
	return names
}

func (l *loader) keysOf(e *entry) []string {
	v, err := structOf(l.options(e))
	if err != nil {
		return nil
	}
	fields, err := fieldsOf(v.Type())
	if err != nil {
		return nil
	}
	names := keyNames(fields)
	for i := range names {
		names[i] = join(e.label, names[i])
	}
	return names
}

// sample is an override of one of the entry's keys.
func (l *loader) sample(e *entry) string {
	if keys := l.keysOf(e); len(keys) > 0 {
		return keys[0] + "=…"
	}
	return e.label + ".key=…"
}
