package flows

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/configs"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/weights"
)

// guess finds what the tensors of a state dict don't say: in the words behind the file, in what an export says of itself, in the
// options that the program that wrote it kept, or by assumption.
type guess struct {
	path    string
	src     *weights.File
	axes    string // the model's, in their order; "" is AxesDefault
	outline vqgan.Outline

	found []finding
}

// finding is a key of a run's file, its value as YAML, and where that came from.
type finding struct{ key, value, origin string }

// The origins of findings, in the order in which they are told.
const (
	byTensors  = "from the tensors"
	byWords    = "given"
	byExport   = "from the export"
	bySettings = "from hyper_parameters"
	assumed    = "assumed"
)

// loose is a model's block of which only some keys are given: nothing is checked between them.
type loose vqgan.Config

// job is the file of a run that begins at the state dict: its model, and how its scans are read and cut.
func (g *guess) job(words []string) (*Job, error) {
	given, err := g.given(words)
	if err != nil {
		return nil, err
	}
	exported, err := g.exported()
	if err != nil {
		return nil, dataErrorf("%s: %w", g.path, err)
	}
	kept, err := g.settings()
	if err != nil {
		return nil, dataErrorf("%s: %w", g.path, err)
	}
	sources := []struct {
		origin string
		values map[string]string
	}{{byWords, given}, {byExport, exported}, {bySettings, kept}, {assumed, g.assumed()}}
	o := g.outline
	seen := []finding{{"model.hidden", text(o.Hidden), byTensors}, {"model.embedding", text(o.Embedding), byTensors}}
	if o.Books > 0 {
		seen = append(seen, finding{"model.codes", text(o.Codes), byTensors})
	}
	seen = append(seen, finding{"model.decoder", text(o.Decoder), byTensors})
	switch o.Books {
	case 0:
		seen = append(seen, finding{"model.quantizer", text(vqgan.FSQ), byTensors})
	case 2:
		seen = append(seen, finding{"model.quantizer", text(vqgan.Residual), byTensors})
	}
	for _, x := range seen {
		for _, s := range sources {
			if v, ok := s.values[x.key]; ok && v != x.value {
				return nil, configErrorf("%s: %s: %s (%s), but the tensors have %s", g.path, x.key, v, s.origin, x.value)
			}
		}
	}
	levels := func(values map[string]string) bool { return values["model.levels"] != "" }
	if o.Books == 0 && !levels(given) && !levels(exported) && !levels(kept) {
		return nil, configErrorf("%s: codebook.embeddings is missing; a model with quantizer: fsq has none, but levels: give them, as in model.levels='[8, 5, 5, 5]'", g.path)
	}
	for _, s := range sources {
		if q := s.values["model.quantizer"]; o.Books == 1 && (q == text(vqgan.FSQ) || q == text(vqgan.Residual)) {
			return nil, configErrorf("%s: model.quantizer: %s (%s), but the tensors have one codebook", g.path, q, s.origin)
		}
	}
	g.found = seen
	for _, s := range sources {
		for _, key := range slices.Sorted(maps.Keys(s.values)) {
			if !slices.ContainsFunc(g.found, func(x finding) bool { return x.key == key }) {
				g.found = append(g.found, finding{key, s.values[key], s.origin})
			}
		}
	}
	if i := slices.IndexFunc(g.found, func(x finding) bool { return x.key == "model.norm" }); g.found[i].value == `"channel"` {
		g.found = slices.DeleteFunc(g.found, func(x finding) bool { return x.key == "model.groups" && x.origin == assumed })
	}
	return g.load(words)
}

// load is the job of what was found.
func (g *guess) load(words []string) (*Job, error) {
	blocks := map[string][]string{"read": {"scans: imported"}}
	for _, x := range g.found {
		block, key, _ := strings.Cut(x.key, ".")
		if x.origin != byWords {
			blocks[block] = append(blocks[block], key+": "+x.value)
		}
	}
	file := fmt.Sprintf("model: {%s}\nflow:\n  - read: {%s}\n  - tile: {%s}\n", strings.Join(blocks["model"], ", "),
		strings.Join(blocks["read"], ", "), strings.Join(blocks["tile"], ", "))
	j, err := Load(g.path, []byte(file), words)
	var wrong *configs.Error
	if errors.As(err, &wrong) && wrong.Override == "" { // the line is of no file that the user has
		return nil, configErrorf("%s: %s: %s; set it, as in %[2]s=…", g.path, wrong.Key, wrong.Reason)
	}
	if err != nil {
		return nil, err
	}
	if n := j.model.Halvings(); n != g.outline.Halvings {
		return nil, configErrorf("%s: model.downsample: %v halves %d times, but the tensors %d times; set it, as in model.downsample='%s'", g.path,
			j.model.Downsample, n, g.outline.Halvings, text(g.halved()))
	}
	return j, nil
}

// given are the keys that the words set.
func (g *guess) given(words []string) (map[string]string, error) {
	const sample = "flow: [{read: {scans: imported}}, {tile: {}}]"
	model := new(loose)
	f, err := configs.Load(g.path, []byte(sample), words, configs.Blocks{
		Top: map[string]any{"model": model},
		Stage: func(name string) (any, bool) {
			st, ok := find(name)
			return st.options(), ok
		},
		StageNames: []string{"read", "tile"},
	})
	if err != nil {
		return nil, &ConfigError{err}
	}
	c := vqgan.Config(*model)
	all, err := modelValues(&c)
	if err != nil {
		return nil, err
	}
	for _, s := range f.Stages {
		switch o := s.Options.(type) {
		case *read.Options:
			maps.Copy(all, readValues(o.WindowHU, o.Spacing))
		case *tile.Options:
			all["tile.patch"] = text(o.Patch)
		}
	}
	maps.DeleteFunc(all, func(key, _ string) bool { return !f.Given(key) })
	return all, nil
}

// exported are the keys that an export tells of itself.
func (g *guess) exported() (map[string]string, error) {
	all := map[string]string{}
	if g.src.Model != "" {
		c, err := vqgan.ParseConfig(g.src.Model)
		if err != nil {
			return nil, fmt.Errorf("metadata %w", err)
		}
		if all, err = modelValues(&c); err != nil {
			return nil, err
		}
	}
	if g.src.Stream != "" {
		var s stream
		if err := json.Unmarshal([]byte(g.src.Stream), &s); err != nil {
			return nil, fmt.Errorf("metadata stream: %w", err)
		}
		maps.Copy(all, readValues(s.Window, s.Spacing))
		all["tile.patch"] = text(s.Tile.Patch)
	}
	return all, nil
}

// settings are the keys that the writing program kept under medicaldiffusion's names or, if there are none, under flowrun's.
func (g *guess) settings() (map[string]string, error) {
	all := map[string]string{}
	take := func(key, name string) {
		if _, v, ok := g.src.Setting(name); ok {
			all["model."+key] = text(v)
		}
	}
	_, _, theirs := g.src.Setting("n_hiddens")
	if _, _, ours := g.src.Setting("hidden"); !theirs && ours {
		for _, key := range []string{"hidden", "downsample", "embedding", "codes", "quantizer", "levels", "norm", "groups", "padding", "decoder"} {
			take(key, key)
		}
		return all, nil
	}
	take("hidden", "n_hiddens")
	take("embedding", "embedding_dim")
	take("codes", "n_codes")
	take("groups", "num_groups")
	for name, only := range map[string]string{"norm_type": "group", "padding_type": "replicate"} {
		path, v, ok := g.src.Setting(name)
		if ok && v != any(only) {
			return nil, fmt.Errorf("%s is %v, but flowrun has only %s for models of medicaldiffusion", path, v, only)
		}
		if key, _, _ := strings.Cut(name, "_"); ok {
			all["model."+key] = text(only)
		}
	}
	if path, v, ok := g.src.Setting("downsample"); ok { // in the order of the model's axes
		steps, isList := v.([]any)
		if !isList || len(steps) != 3 {
			return nil, fmt.Errorf("%s is %v (want one number for each axis)", path, v)
		}
		var xyz [3]any
		for i, axis := range cmp.Or(g.axes, AxesDefault) {
			xyz[axis-'x'] = steps[i]
		}
		all["model.downsample"] = text(xyz)
	}
	return all, nil
}

// assumed is what medicaldiffusion has where nothing says otherwise, and a run's own defaults.
func (g *guess) assumed() map[string]string {
	r, t := new(read.Options), new(tile.Options)
	for _, o := range []any{r, t} {
		if err := configs.SetDefaults(o); err != nil {
			panic(err) // a mistake in their tags, which tests find
		}
	}
	all := map[string]string{
		"model.downsample": text(g.halved()), "model.norm": text("group"), "model.groups": text(32), "model.padding": text("replicate"),
		"read.window_hu": text(r.WindowHU), "tile.patch": text(t.Patch),
	}
	if g.outline.Books == 1 {
		all["model.quantizer"] = text(vqgan.EMA)
	}
	return all
}

// halved is the downsampling of a model that halves every axis at every level.
func (g *guess) halved() [3]int {
	n := 1 << g.outline.Halvings
	return [3]int{n, n, n}
}

// told says what came from where.
func (g *guess) told() []string {
	var lines []string
	for _, origin := range []string{byTensors, byWords, byExport, bySettings, assumed} {
		var some []string
		for _, x := range g.found {
			if x.origin == origin {
				some = append(some, x.key+" "+strings.Trim(x.value, `"`))
			}
		}
		if origin == assumed && g.src.Model == "" && g.axes == "" {
			some = append(some, "--axes "+AxesDefault)
		}
		if len(some) == 0 {
			continue
		}
		line := origin + ": " + strings.Join(some, ", ")
		if origin == assumed {
			line += "; where that is wrong, set it, as in model.norm=channel"
		}
		lines = append(lines, line)
	}
	return lines
}

// modelValues are a model's keys.
func modelValues(c *vqgan.Config) (map[string]string, error) {
	var raw map[string]json.RawMessage
	s, err := c.JSON()
	if err == nil {
		err = json.Unmarshal([]byte(s), &raw)
	}
	all := map[string]string{}
	for key, v := range raw {
		all["model."+key] = string(v)
	}
	return all, err
}

func readValues(window [2]float64, spacing [3]float64) map[string]string {
	all := map[string]string{"read.window_hu": text(window)}
	if spacing != [3]float64{} {
		all["read.spacing"] = text(spacing)
	}
	return all
}

// text is a value as JSON, which is YAML.
func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // numbers, words and lists of them
	}
	return string(b)
}
