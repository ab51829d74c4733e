// Package configs turns a YAML file into the options of blocks and stages, strictly.
//
// An options struct names, documents, defaults and bounds each of its keys in one place, the field's tags:
//
//	type Options struct {
//		Patch [3]int `key:"patch" default:"[128, 128, 64]" unit:"voxels x, y, z" min:"1" doc:"Size of a patch."`
//		Mode  string `key:"mode" default:"random" oneof:"random grid" doc:"How patches are placed."`
//	}
//
// SetDefaults, Decode, Describe and Encode read these tags by reflection, so that what is checked is what is
// documented. Tags: key, default and example (written as YAML), unit, min, max (both inclusive, for each element), oneof
// (words parted by spaces, for each element), required:"true", secret:"true" (text, or a list of it, that is neither saved nor
// said in errors), doc. A field without a key isn't an option. Fields are string, bool, int, int64, uint64, float64, [2] or [3] of int or float64,
// []string, []int and structs (a nested block). An integer whose unit is bytes is written as 512MiB, 16GiB, 2GB or 1e9. A field without a default has its
// zero value. Rules that join keys are a method Check() error on the struct, whose text starts with the key.
//
// Load reads a whole file: blocks of keys at the top (run, model) and flow, the list of stages. Words key=value
// override it, and model.preset names one of the embedded presets. Every problem in a file is reported at once, each
// with its line and, for a typo, the nearest key.
//
// In reading order: schema.go (tags), value.go (scalars), parse.go (YAML to nodes), decode.go, load.go, override.go, preset.go,
// describe.go; errors.go and suggest.go (what is said of a mistake).
package configs
