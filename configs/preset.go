package configs

import (
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// presetBlock is the block that presets fill: model: {preset: NAME}.
const presetBlock, presetKey = "model", "preset"

//go:embed presets/*.yaml
var presetFiles embed.FS

// Demo is the configuration of flowrun demo.
//
//go:embed demo.yaml
var Demo []byte

// Reconstruct is the flow that puts whole volumes through a trained model.
//
//go:embed reconstruct.yaml
var Reconstruct []byte

// Presets lists the names that model.preset takes, sorted.
func Presets() []string {
	files, _ := fs.Glob(presetFiles, "presets/*.yaml") // the pattern is right
	for i, f := range files {
		files[i] = strings.TrimSuffix(strings.TrimPrefix(f, "presets/"), ".yaml")
	}
	slices.Sort(files)
	return files
}

// Preset returns the text of a preset: comments that say what it is for, then a model block.
func Preset(name string) ([]byte, error) {
	data, err := presetFiles.ReadFile("presets/" + name + ".yaml")
	if err != nil || !slices.Contains(Presets(), name) {
		return nil, fmt.Errorf("no preset %q%s (presets: %s)", shorten(name), didYouMean(name, Presets()), strings.Join(Presets(), ", "))
	}
	return data, nil
}

// applyPreset puts the preset's keys into the model block, below those given.
func (l *loader) applyPreset() {
	model := l.top[presetBlock]
	if model == nil {
		return
	}
	given := resolve(model.value)
	if given.Kind != yaml.MappingNode {
		return
	}
	var key, name *yaml.Node
	names := map[string]bool{}
	for i := 0; i+1 < len(given.Content); i += 2 {
		k := resolve(given.Content[i]).Value
		if names[k] = true; k == presetKey {
			key, name = given.Content[i], resolve(given.Content[i+1])
		}
	}
	if name == nil || name.Kind != yaml.ScalarNode || name.Value == "" || isNull(name) {
		return
	}
	data, err := Preset(name.Value)
	if err != nil {
		l.add(key, join(presetBlock, presetKey), "%s", err)
		return
	}
	root, problem := parse("preset "+name.Value, data)
	if problem != nil {
		l.errs = append(l.errs, problem)
		return
	}
	merged := &yaml.Node{Kind: yaml.MappingNode, Line: given.Line, Content: slices.Clone(given.Content)}
	origin := l.at(key, "", "")
	for i := 0; i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value != presetBlock {
			continue
		}
		keys := root.Content[i+1].Content
		for j := 0; j+1 < len(keys); j += 2 {
			if !names[keys[j].Value] {
				l.moved[keys[j]], l.preset[keys[j]] = origin, true
				merged.Content = append(merged.Content, keys[j], keys[j+1])
			}
		}
	}
	model.value = merged
}
