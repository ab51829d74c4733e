package flows

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/safetensors"
	"github.com/flowrun/flowrun/stages/torch"
	"github.com/flowrun/flowrun/stages/volume"
)

// foreign is a file of weights that isn't a checkpoint.
type foreign struct {
	tensors  map[string]foreignTensor
	settings map[string]any // what the program that wrote it kept of its options, by dotted name
	model    string         // of an export: the model's shape, how scans were read and cut, the order of its axes
	stream   string
	axes     string
	read     func(names []string) ([]volume.Array, error) // in the order of the names
	close    func() error
}

type foreignTensor struct {
	dtype string
	shape []int
}

// openForeign reads what a file of weights holds, not its elements.
func openForeign(path string) (*foreign, error) {
	switch filepath.Ext(path) {
	case ".safetensors":
		return openSafetensors(path)
	case ".ckpt", ".pth", ".pt":
		return openTorch(path)
	}
	return nil, configErrorf("%s: want a state dict: .safetensors, .ckpt, .pth or .pt", path)
}

func openTorch(path string) (*foreign, error) {
	f, err := torch.Open(path)
	if err != nil {
		return nil, &DataError{err}
	}
	src := &foreign{tensors: map[string]foreignTensor{}, settings: f.Values, close: f.Close}
	byName := map[string]torch.Tensor{}
	for _, t := range f.Tensors {
		src.tensors[t.Name], byName[t.Name] = foreignTensor{t.DType, t.Shape}, t
	}
	src.read = func(names []string) ([]volume.Array, error) {
		list := make([]torch.Tensor, len(names))
		for i, name := range names {
			list[i] = byName[name]
		}
		return f.Arrays(list)
	}
	return src, nil
}

func openSafetensors(path string) (*foreign, error) {
	info, err := checkpoint.Peek(path)
	if err != nil {
		return nil, &DataError{err}
	}
	if info.Checkpoint {
		return nil, configErrorf("%s: a checkpoint of flowrun already; name it in train.init or infer.checkpoint as it is", path)
	}
	src := &foreign{tensors: map[string]foreignTensor{}, model: info.Meta["model"], stream: info.Meta["stream"],
		axes: info.Meta["axes"], close: func() error { return nil }}
	for _, t := range info.Tensors {
		src.tensors[t.Name] = foreignTensor{t.DType, t.Shape}
	}
	src.read = func(names []string) ([]volume.Array, error) { return readSafetensors(path, names) }
	return src, nil
}

// readSafetensors reads some tensors of a file, and checks its seal if it has one.
func readSafetensors(path string, names []string) ([]volume.Array, error) {
	place := map[string]int{}
	for i, name := range names {
		place[name] = i
	}
	arrays := make([]volume.Array, len(names))
	_, err := safetensors.Open(path, func(r io.Reader, h *safetensors.Header) error {
		for _, t := range h.Tensors {
			i, wanted := place[t.Name]
			if !wanted {
				if err := t.Skip(r); err != nil {
					return err
				}
				continue
			}
			data, err := t.Floats(r)
			if err != nil {
				return err
			}
			arrays[i] = volume.Array{Name: t.Name, Shape: t.Shape, Data: data}
		}
		return nil
	})
	if err == nil {
		if i := slices.IndexFunc(arrays, func(a volume.Array) bool { return a.Name == "" }); i >= 0 {
			err = fmt.Errorf("%s: %s is gone: the file changed while it was read", path, names[i])
		}
	}
	return arrays, err
}

// What a model is recognised by; what stands before its names, and before the options of its class, in a file of Lightning.
const (
	landmark        = "encoder.conv_first.conv.weight"
	stateKey        = "state_dict."
	hyperParameters = "hyper_parameters."
	shownMost       = 4 // names in an error
)

// prefix finds what the names of the model's tensors begin with: state_dict.model., for one. asked picks one of several.
func (f *foreign) prefix(asked string) (string, error) {
	var all, picked []string
	for name := range f.tensors {
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

// setting finds an option that the writing program kept, by its last name; of several the one that is nested least.
func (f *foreign) setting(name string) (path string, value any, ok bool) {
	for p, v := range f.settings {
		_, rest, inside := strings.Cut(p, ".")
		if !inside || !strings.HasPrefix(p, hyperParameters) || rest != name && !strings.HasSuffix(rest, "."+name) {
			continue
		}
		depth, least := strings.Count(p, "."), strings.Count(path, ".")
		if !ok || depth < least || depth == least && p < path {
			path, value, ok = p, v, true
		}
	}
	return path, value, ok
}
