package weights

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/gpu/vqgan"
)

// What a model is recognised by, and what stands before its names in a file of Lightning.
const (
	landmark  = "encoder.conv_first.conv.weight"
	stateKey  = "state_dict."
	shownMost = 4 // names in an error
)

// Model is the tensors of a model in a state dict, by their names without the prefix.
type Model struct {
	Outline vqgan.Outline
	Shapes  map[string][]int

	prefix         string
	discriminators []string
	perceptual     int
	outside        []string // what the names of tensors outside the prefix begin with
	others         int      // those tensors
}

// Find finds the model among the tensors. prefix, of the model's names, is for a file that holds several models.
func (f *File) Find(prefix string) (*Model, error) {
	prefix, err := f.prefix(prefix)
	if err != nil {
		return nil, err
	}
	m, err := f.split(prefix)
	if err != nil {
		return nil, err
	}
	m.Outline, err = vqgan.ReadOutline(m.Shapes)
	return m, err
}

// split tells the model's tensors from what came with them, and refuses types that aren't floats.
func (f *File) split(prefix string) (*Model, error) {
	m := &Model{prefix: prefix, Shapes: map[string][]int{}}
	for _, full := range slices.Sorted(maps.Keys(f.Tensors)) {
		t := f.Tensors[full]
		name, inside := strings.CutPrefix(full, prefix)
		module, _, _ := strings.Cut(name, ".")
		switch {
		case !inside:
			m.others++
			if first, _, _ := strings.Cut(strings.TrimPrefix(full, stateKey), "."); !slices.Contains(m.outside, first) {
				m.outside = append(m.outside, first)
			}
			continue
		case module == "perceptual_model":
			m.perceptual++
			continue
		case module == "image_discriminator", module == "video_discriminator":
			if strings.HasSuffix(name, ".weight_v") && f.Tensors[strings.TrimSuffix(full, "_v")+"_u"].Shape != nil { // follows from weight and weight_u
				continue
			}
			m.discriminators = append(m.discriminators, name)
			if strings.HasSuffix(name, ".num_batches_tracked") { // of batch norm, a whole number
				continue
			}
		default:
			m.Shapes[name] = t.Shape
		}
		if !t.IsFloat() {
			return nil, fmt.Errorf("%s is of type %s (want float32, float16, bfloat16 or float64)", full, t.DType)
		}
	}
	return m, nil
}

// Found says what was found: 68 tensors under "state_dict.".
func (m *Model) Found() string {
	return fmt.Sprintf("%s under %q", tensors(len(m.Shapes)+len(m.discriminators)), m.prefix)
}

// Told says, in lines, what was taken along and what was left behind.
func (m *Model) Told() []string {
	var lines []string
	if n := len(m.discriminators); n > 0 {
		lines = append(lines, fmt.Sprintf("discriminators: %s, kept beside the weights", tensors(n)))
	}
	if m.perceptual > 0 {
		lines = append(lines, fmt.Sprintf("left out: %s of perceptual_model, which isn't part of the model", tensors(m.perceptual)))
	}
	if m.others > 0 {
		lines = append(lines, fmt.Sprintf("left out: %s of other modules: %s", tensors(m.others), quoted(m.outside)))
	}
	return lines
}

func tensors(n int) string {
	if n == 1 {
		return "1 tensor"
	}
	return fmt.Sprintf("%d tensors", n)
}

// prefix finds what the names of the model's tensors begin with: state_dict.model., for one. asked picks one of several.
func (f *File) prefix(asked string) (string, error) {
	var all, picked []string
	for name := range f.Tensors {
		if p, ok := strings.CutSuffix(name, landmark); ok && (p == "" || strings.HasSuffix(p, ".")) {
			all = append(all, p)
		}
	}
	slices.Sort(all)
	want := strings.TrimSuffix(asked, ".")
	for _, p := range all {
		if bare := strings.TrimSuffix(p, "."); bare == want || strings.TrimPrefix(bare, stateKey) == want {
			picked = append(picked, p)
		}
	}
	switch {
	case len(all) == 0:
		return "", fmt.Errorf("no %s in it: not a VQ-GAN like medicaldiffusion's (flowrun inspect lists its tensors)", landmark)
	case asked != "" && len(picked) != 1:
		return "", fmt.Errorf("--prefix: no model under %q (there are: %s)", asked, quoted(all))
	case asked != "":
		return picked[0], nil
	case len(all) > 1:
		return "", fmt.Errorf("several models, under %s: choose one by --prefix", quoted(all))
	}
	return all[0], nil
}

// quoted lists words, not all of many.
func quoted(words []string) string {
	list := make([]string, 0, shownMost+1)
	for _, w := range words[:min(len(words), shownMost)] {
		list = append(list, fmt.Sprintf("%q", w))
	}
	if n := len(words) - shownMost; n > 0 {
		list = append(list, fmt.Sprintf("and %d more", n))
	}
	return strings.Join(list, ", ")
}
