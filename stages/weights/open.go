package weights

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/stages/safetensors"
	"github.com/flowrun/flowrun/stages/torch"
	"github.com/flowrun/flowrun/stages/volume"
)

// File is a state dict on disk.
type File struct {
	Tensors  map[string]Tensor
	Settings map[string]any // what the program that wrote it kept of its options, by dotted name; see torch.File.Values
	Model    string         // of an export: the model's shape, how scans were read and cut, the order of its axes
	Stream   string
	Axes     string

	read  func(names []string) ([]volume.Array, error)
	close func() error
}

// Tensor is what a file says of a tensor.
type Tensor struct {
	DType string // as safetensors has it: F32, BF16, …
	Shape []int
}

// IsFloat says whether weights may be of the tensor's type.
func (t Tensor) IsFloat() bool {
	return slices.Contains([]string{"F32", "F16", "BF16", "F64"}, t.DType)
}

// ErrEnding is about a file whose name says that it is something else.
var ErrEnding = errors.New("want a state dict: .safetensors, .ckpt, .pth or .pt")

// Open reads what a file of weights holds, not its elements: of a file of safetensors, or of what torch.save wrote. Errors start with
// the path.
func Open(path string) (*File, error) {
	switch filepath.Ext(path) {
	case ".safetensors":
		return openSafetensors(path)
	case ".ckpt", ".pth", ".pt":
		return openTorch(path)
	}
	return nil, fmt.Errorf("%s: %w", path, ErrEnding)
}

// Close closes the file, which was only read.
func (f *File) Close() error { return f.close() }

// Read reads tensors by their names, in that order, as float32.
func (f *File) Read(names []string) ([]volume.Array, error) { return f.read(names) }

func openTorch(path string) (*File, error) {
	f, err := torch.Open(path)
	if err != nil {
		return nil, err
	}
	src := &File{Tensors: map[string]Tensor{}, Settings: f.Values, close: f.Close}
	byName := map[string]torch.Tensor{}
	for _, t := range f.Tensors {
		src.Tensors[t.Name], byName[t.Name] = Tensor{t.DType, t.Shape}, t
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

func openSafetensors(path string) (*File, error) {
	h, err := safetensors.Peek(path)
	if err != nil {
		return nil, err
	}
	src := &File{Tensors: map[string]Tensor{}, Model: h.Meta["model"], Stream: h.Meta["stream"], Axes: h.Meta["axes"],
		close: func() error { return nil }}
	for _, t := range h.Tensors {
		src.Tensors[t.Name] = Tensor{t.DType, t.Shape}
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

// HyperParameters is what stands before the options of a model's class in a file of Lightning.
const HyperParameters = "hyper_parameters."

// Setting finds an option that the writing program kept, by its last name; of several the one that is nested least.
func (f *File) Setting(name string) (path string, value any, ok bool) {
	for p, v := range f.Settings {
		_, rest, inside := strings.Cut(p, ".")
		if !inside || !strings.HasPrefix(p, HyperParameters) || rest != name && !strings.HasSuffix(rest, "."+name) {
			continue
		}
		depth, least := strings.Count(p, "."), strings.Count(path, ".")
		if !ok || depth < least || depth == least && p < path {
			path, value, ok = p, v, true
		}
	}
	return path, value, ok
}
