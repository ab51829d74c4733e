package configs

import (
	"bytes"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// flowKey is the top block that lists the stages.
const flowKey = "flow"

// maxStages bounds a flow.
const maxStages = 100

// Blocks say what a file may hold.
type Blocks struct {
	// Top maps a block's name (run, model) to a pointer to its options struct. Load sets its defaults, then what
	// the file says.
	Top map[string]any
	// Stage returns a pointer to a fresh options struct of the stage of that name. Load sets its defaults.
	Stage func(name string) (options any, ok bool)
	// StageNames are all names that Stage knows, in the order they are to be listed.
	StageNames []string
}

// A File is a configuration that was read and found free of problems.
type File struct {
	Path   string
	Stages []Stage // of the flow, in order

	words   []string // the overrides
	top     map[string]any
	order   []string // of the top blocks: the file's, then the rest by name
	decoder *decoder
}

// A Stage is one entry of the flow.
type Stage struct {
	Name    string // as in Blocks.StageNames
	Label   string // the name, with its number where the flow has several of it: augment[1]
	Options any    // the pointer that Blocks.Stage gave
	Line    int    // in the file
	Index   int    // in the flow, from 0

	key     *yaml.Node
	decoder *decoder
}

// A loader reads one file. Its nodes: blocks and stages, with what overrides added.
type loader struct {
	*decoder
	blocks Blocks
	top    map[string]*entry
	order  []string
	stages []*entry
}

// An entry is a top block or a stage: its key node and the mapping under it.
type entry struct {
	name, label string
	key, value  *yaml.Node
}

// Load reads a configuration: data, the content of the file at path (used in errors only), then the words key=value
// of overrides, in order. A key is dotted, beginning with a block or a stage (train.validate.every=100), with the
// stage's number, from 0, where the flow has several of it (augment[1].flip=[x]); the value is YAML. The error is
// Errors: every problem there is. Options of blocks.Top may be partly set after an error.
func Load(path string, data []byte, overrides []string, blocks Blocks) (*File, error) {
	for _, ptr := range blocks.Top {
		if err := SetDefaults(ptr); err != nil {
			return nil, err
		}
	}
	root, problem := parse(path, data)
	if problem != nil {
		return nil, Errors{problem}
	}
	l := &loader{decoder: newDecoder(path), blocks: blocks, top: map[string]*entry{}}
	l.split(root)
	for _, word := range overrides {
		l.override(word)
	}
	l.applyPreset()
	f, err := l.decode()
	if f != nil {
		f.words = overrides
	}
	return f, err
}

// split finds the blocks and the stages in the root mapping.
func (l *loader) split(root *yaml.Node) {
	names := slices.Sorted(maps.Keys(l.blocks.Top))
	seen := map[string]*yaml.Node{}
	l.pairs(root, "", seen, func(key, value *yaml.Node) {
		name := resolve(key).Value
		_, known := l.blocks.Top[name]
		switch {
		case name == flowKey:
			l.flow(key, resolve(value))
		case known:
			l.top[name] = &entry{name: name, label: name, key: key, value: value}
			l.order = append(l.order, name)
		case slices.Contains(l.blocks.StageNames, name):
			l.add(key, shorten(name), "this is a stage: write it as an entry of flow, - %s: …", name)
		default:
			all := append(slices.Clone(names), flowKey)
			l.add(key, shorten(name), "unknown block%s (blocks: %s)", didYouMean(name, all), strings.Join(all, ", "))
		}
	})
	if seen[flowKey] == nil && len(l.errs) == 0 {
		l.add(nil, flowKey, "this block is required: the list of stages (%s)", strings.Join(l.blocks.StageNames, ", "))
	}
	for _, name := range names {
		if l.top[name] == nil {
			l.top[name] = &entry{name: name, label: name, key: nil, value: &yaml.Node{Kind: yaml.MappingNode}}
			l.order = append(l.order, name)
		}
	}
}

// flow reads the list of stages.
func (l *loader) flow(at, node *yaml.Node) {
	switch {
	case node.Kind == yaml.MappingNode:
		l.add(at, flowKey, "want a list of stages: begin each with a dash, as in - read: …")
		return
	case node.Kind != yaml.SequenceNode || len(node.Content) == 0:
		l.add(at, flowKey, "want a list of stages, got %s (stages: %s)", got(node), strings.Join(l.blocks.StageNames, ", "))
		return
	case len(node.Content) > maxStages:
		l.add(at, flowKey, "%d stages are too many (at most %d)", len(node.Content), maxStages)
		return
	}
	for _, item := range node.Content {
		if len(l.errs) >= maxProblems {
			return
		}
		if e := l.stage(item); e != nil {
			l.stages = append(l.stages, e)
		}
	}
	count := map[string]int{}
	for _, e := range l.stages {
		count[e.name]++
	}
	numbers := map[string]int{}
	for _, e := range l.stages {
		if e.label = e.name; count[e.name] > 1 {
			e.label = fmt.Sprintf("%s[%d]", e.name, numbers[e.name])
		}
		numbers[e.name]++
		l.keys[e.label] = e.key
	}
}

// stage reads one entry of the flow: - name, - name: or - name: {…}.
func (l *loader) stage(item *yaml.Node) *entry {
	item = resolve(item)
	key, value := item, &yaml.Node{Kind: yaml.MappingNode}
	switch {
	case item.Kind == yaml.MappingNode && len(item.Content) == 2:
		key, value = resolve(item.Content[0]), item.Content[1]
	case item.Kind == yaml.MappingNode && len(item.Content) > 2:
		l.sideBySide(item)
		return nil
	}
	if key.Kind != yaml.ScalarNode || isNull(key) {
		l.add(item, flowKey, "want a stage, got %s", got(item))
		return nil
	}
	if !slices.Contains(l.blocks.StageNames, key.Value) {
		l.add(key, shorten(key.Value), "unknown stage%s (stages: %s)", didYouMean(key.Value, l.blocks.StageNames), strings.Join(l.blocks.StageNames, ", "))
		return nil
	}
	return &entry{name: key.Value, key: key, value: value}
}

// sideBySide says what is wrong with an entry of several keys: most often options that aren't indented under their
// stage.
func (l *loader) sideBySide(item *yaml.Node) {
	first, second := resolve(item.Content[0]), resolve(item.Content[2])
	if slices.Contains(l.blocks.StageNames, second.Value) {
		l.add(item.Content[2], shorten(second.Value), "a second stage in one entry of flow: begin it with a dash of its own")
		return
	}
	l.add(item.Content[2], join(shorten(first.Value), shorten(second.Value)),
		"indent the options of %s deeper than its name (here they stand beside it)", shorten(first.Value))
}

// decode sets the options of every block and stage.
func (l *loader) decode() (*File, error) {
	file := &File{Path: l.file, top: l.blocks.Top, order: l.order, decoder: l.decoder}
	for _, name := range l.order {
		v, err := structOf(l.blocks.Top[name])
		if err != nil {
			return nil, err
		}
		e := l.top[name]
		if e.key != nil {
			l.keys[name] = e.key
		}
		l.block(e.key, e.value, v, name)
	}
	for i, e := range l.stages {
		options, ok := l.blocks.Stage(e.name)
		if !ok {
			return nil, fmt.Errorf("stage %s is listed, but has no options", e.name)
		}
		if err := SetDefaults(options); err != nil {
			return nil, err
		}
		v, err := structOf(options)
		if err != nil {
			return nil, err
		}
		l.block(e.key, e.value, v, e.label)
		file.Stages = append(file.Stages, Stage{
			Name: e.name, Label: e.label, Options: options, Line: e.key.Line, Index: i, key: e.key, decoder: l.decoder,
		})
	}
	return file, l.err()
}

// Errorf returns an *Error about a dotted key of a top block (run.memory), or a whole block (run), placed at its line,
// or at the override that set it.
func (f *File) Errorf(key, format string, args ...any) error {
	return f.decoder.at(f.decoder.keyNode(key, nil), key, fmt.Sprintf(format, args...))
}

// Errorf returns an *Error about a key of the stage (patch, validate.every), or with key "" about the stage, placed at
// its line, or at the override that set it.
func (s Stage) Errorf(key, format string, args ...any) error {
	dotted := s.Label
	if key != "" {
		dotted = join(s.Label, key)
	}
	return s.decoder.at(s.decoder.keyNode(dotted, s.key), dotted, fmt.Sprintf(format, args...))
}

// Given reports whether the file or an override sets a dotted key of a top block or stage (run.dir, train.device). What
// a preset sets isn't given.
func (f *File) Given(key string) bool {
	node := f.decoder.keys[key]
	return node != nil && !f.decoder.preset[node]
}

// Words are the overrides, with … for what is secret in them.
func (f *File) Words() []string {
	var all []string
	for _, ptr := range f.top {
		all = append(all, secrets(reflect.ValueOf(ptr).Elem())...)
	}
	for _, s := range f.Stages {
		all = append(all, secrets(reflect.ValueOf(s.Options).Elem())...)
	}
	words := slices.Clone(f.words)
	for i := range words {
		if hidden, ok := f.decoder.hidden[words[i]]; ok {
			words[i] = hidden
			continue
		}
		for _, s := range all {
			words[i] = strings.ReplaceAll(words[i], s, "…")
		}
	}
	return words
}

// secrets are the texts of secret keys that are set, for other words that may hold them as well. Lists hold too much that isn't
// secret.
func secrets(v reflect.Value) (all []string) {
	fields, err := fieldsOf(v.Type())
	if err != nil {
		return nil
	}
	for _, f := range fields {
		switch fv := v.Field(f.index); {
		case f.shape == block:
			all = append(all, secrets(fv)...)
		case f.secret && f.shape == scalar && fv.String() != "":
			all = append(all, fv.String())
		}
	}
	return all
}

// Resolved writes the configuration as the run uses it: every key, defaults, preset and overrides included, secret keys
// left out. Load reads it back to the same options.
func (f *File) Resolved() ([]byte, error) {
	root := &yaml.Node{Kind: yaml.MappingNode}
	for _, name := range f.order {
		root.Content = append(root.Content, textNode(name), Encode(f.top[name]))
	}
	flow := &yaml.Node{Kind: yaml.SequenceNode}
	for _, s := range f.Stages {
		flow.Content = append(flow.Content, &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{textNode(s.Name), Encode(s.Options)}})
	}
	root.Content = append(root.Content, textNode(flowKey), flow)

	var b bytes.Buffer
	fmt.Fprintf(&b, "# %s as flowrun ran it: every key, defaults and overrides included.\n", shorten(filepath.Base(f.Path)))
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(root); err != nil {
		return nil, err
	}
	if err := e.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
