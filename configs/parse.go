package configs

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds a configuration file, in bytes.
const maxFile = 1 << 20

// parse reads data as one YAML document and returns its root. A hostile file costs little: its size is bounded,
// the YAML reader bounds its depth, and aliases stay aliases, which decoding follows no deeper than options go.
func parse(file string, data []byte) (*yaml.Node, *Error) {
	fail := func(line int, reason string) (*yaml.Node, *Error) {
		return nil, &Error{File: file, Line: line, Reason: reason}
	}
	if len(data) > maxFile {
		return fail(0, "larger than 1 MiB: this is no configuration file")
	}
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		return fail(0, "is text in UTF-16: save it as UTF-8")
	}
	if bytes.IndexByte(data, 0) >= 0 || bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		return fail(0, "a binary file, not YAML: name the run's .yaml file")
	}
	if !utf8.Valid(data) {
		line := 1
		for l := range bytes.Lines(data) {
			if !utf8.Valid(l) {
				break
			}
			line++
		}
		return fail(line, "isn't text in UTF-8: save the file as that")
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
		return fail(0, "empty: a run needs at least a flow, the list of its stages")
	} else if err != nil {
		line, reason := syntax(err, data)
		return fail(line, reason)
	}
	if err := decoder.Decode(&second); err == nil {
		return fail(second.Line, "a second document begins here: one file is one run")
	} else if !errors.Is(err, io.EOF) {
		line, reason := syntax(err, data)
		return fail(line, reason)
	}
	root := doc.Content[0]
	switch {
	case isNull(root):
		return fail(0, "empty: a run needs at least a flow, the list of its stages")
	case root.Kind != yaml.MappingNode:
		return fail(root.Line, "want blocks of keys (run, model, flow), got "+got(root))
	}
	return root, nil
}

// parseValue reads s, the value of a word of the command line, as one YAML value. An empty s is the empty text. A word
// has neither aliases nor comments: *.nii and runs/a #2 are text.
func parseValue(s string) (*yaml.Node, error) {
	quoted := func(s string) *yaml.Node {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: strings.TrimSpace(s)}
	}
	if len(s) > maxFile {
		return nil, errors.New("larger than 1 MiB")
	}
	if text := strings.TrimSpace(s); text == "" || text[0] == '*' {
		return quoted(s), nil
	}
	decoder := yaml.NewDecoder(strings.NewReader(s))
	var doc, second yaml.Node
	if err := decoder.Decode(&doc); err != nil {
		_, reason := syntax(err, []byte(s))
		return nil, errors.New(reason)
	}
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, errors.New("not one YAML value")
	}
	value := doc.Content[0]
	if value.Kind == yaml.ScalarNode && value.Style == 0 && value.LineComment != "" {
		return quoted(s), nil
	}
	return value, nil
}

var yamlLine = regexp.MustCompile(`^line (\d+): `)

// syntax turns the YAML reader's error into a line and one line of text.
func syntax(err error, data []byte) (line int, reason string) {
	for i, l := range bytes.Split(data, []byte("\n")) {
		indent := l[:len(l)-len(bytes.TrimLeft(l, " \t"))]
		if bytes.IndexByte(indent, '\t') >= 0 {
			return i + 1, "a tab in the indentation: YAML wants spaces"
		}
	}
	reason = strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(reason); m != nil {
		line, _ = strconv.Atoi(m[1])
		reason = reason[len(m[0]):]
	}
	return line, "not valid YAML: " + shorten(strings.ReplaceAll(reason, "\n", " "))
}
