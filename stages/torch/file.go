package torch

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/stages/safetensors"
	"github.com/flowrun/flowrun/stages/volume"
)

const (
	maxPickle  = 16 << 20 // bytes
	maxVisited = 1 << 18  // entries of dicts on the way to the tensors
	maxNames   = 64 << 20 // bytes of their names together
	maxDepth   = 8        // of dicts in dicts
)

// Tensor describes a tensor of a file.
type Tensor struct {
	Name  string // the keys of the dicts it is in, joined by dots: state_dict.encoder.conv_first.conv.weight
	Shape []int
	DType string // as safetensors has it: F32, BF16, …

	view view
}

// File is a zip checkpoint.
type File struct {
	Tensors []Tensor // by name
	// Values are what the file's dicts hold beside tensors: bool, int64, float64, string, or []any of these, by names like
	// those of tensors (hyper_parameters.n_codes).
	Values map[string]any

	entries map[string]*zip.File // by name in the archive's folder
	bytes   int64                // of the whole file
	file    io.Closer
}

// Open reads what tensors the file at path has, not their elements. Errors start with the path.
func Open(path string) (*File, error) {
	info, err := os.Stat(path)
	var z *zip.ReadCloser
	if err == nil {
		z, err = zip.OpenReader(path)
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return nil, fmt.Errorf("%s: %w", path, p.Err)
	}
	if errors.Is(err, zip.ErrFormat) {
		return nil, fmt.Errorf("%s: not a zip file: damaged, or written before PyTorch 1.6; load it there and torch.save it anew, or save its state dict as safetensors", path)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f, err := list(&z.Reader, info.Size())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), z.Close())
	}
	f.file = z
	return f, nil
}

// Close closes the file.
func (f *File) Close() error { return f.file.Close() }

// list finds the tensors of an archive of so many bytes.
func list(z *zip.Reader, bytes int64) (*File, error) {
	f := &File{Values: map[string]any{}, entries: map[string]*zip.File{}, bytes: bytes}
	root := ""
	for _, e := range z.File {
		if folder, ok := strings.CutSuffix(e.Name, "data.pkl"); ok && strings.Count(e.Name, "/") == 1 && strings.HasSuffix(folder, "/") {
			if root != "" {
				return nil, fmt.Errorf("it holds both %sdata.pkl and %s", root, e.Name)
			}
			root = folder
		}
	}
	if root == "" {
		return nil, errors.New("no data.pkl: torch.save didn't write it")
	}
	for _, e := range z.File {
		name, ok := strings.CutPrefix(e.Name, root)
		if !ok {
			continue
		}
		if f.entries[name] != nil {
			return nil, fmt.Errorf("it holds %s twice", e.Name)
		}
		f.entries[name] = e
	}
	if _, ok := f.entries["constants.pkl"]; ok {
		return nil, errors.New("a TorchScript program; torch.save its state dict instead")
	}
	if e, ok := f.entries["byteorder"]; ok {
		if order, err := content(e, 16); err != nil || string(order) != "little" {
			return nil, errors.Join(fmt.Errorf("byte order %q (want little)", order), err)
		}
	}
	text, err := content(f.entries["data.pkl"], maxPickle)
	if err != nil {
		return nil, err
	}
	value, err := load(text)
	if err != nil {
		return nil, fmt.Errorf("data.pkl: %w", err)
	}
	top, ok := value.(*dict)
	if !ok {
		return nil, errors.New("it isn't a dict of tensors; torch.save the model's state_dict()")
	}
	found := map[string]Tensor{}
	if err := collect(found, "", top, maxDepth, &walk{}); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		f.Tensors = append(f.Tensors, found[name])
	}
	values(f.Values, "", top, maxDepth, &walk{})
	return f, nil
}

// walk counts what is met in dicts, so that a small file can't make a large tree.
type walk struct{ entries, bytes int }

// past counts an entry and says whether there were too many.
func (w *walk) past(name string) bool {
	w.entries, w.bytes = w.entries+1, w.bytes+len(name)
	return w.entries > maxVisited || w.bytes > maxNames
}

// collect finds the tensors of dicts in dicts.
func collect(found map[string]Tensor, prefix string, d *dict, depth int, w *walk) error {
	for _, key := range slices.Sorted(maps.Keys(d.entries)) {
		name := prefix + key
		if w.past(name) {
			return fmt.Errorf("more than %d entries, or %d bytes of their names", maxVisited, maxNames)
		}
		switch v := d.entries[key].(type) {
		case *view:
			if _, twice := found[name]; twice {
				return fmt.Errorf("%s is there twice", name)
			}
			found[name] = Tensor{name, slices.Clone(v.shape), v.storage.dtype, *v}
		case *dict:
			if depth > 1 {
				if err := collect(found, name+".", v, depth-1, w); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// content is all of a small entry.
func content(e *zip.File, limit uint64) ([]byte, error) {
	if e.Method != zip.Store || e.UncompressedSize64 > limit {
		return nil, fmt.Errorf("%s: %d bytes, method %d (want at most %d, not compressed)", e.Name, e.UncompressedSize64, e.Method, limit)
	}
	r, err := e.Open()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.Name, err)
	}
	b, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", e.Name, err)
	}
	return b, nil
}

// Arrays reads tensors of the file as float32, row-major whatever their strides, in the order given; the archive's checksums
// are checked. F64 and integers of more than 24 bits are rounded. Tensors or storages that hold more bytes together than the
// file does are refused: what is read at most is twice the file, and four times for integers of a byte.
func (f *File) Arrays(tensors []Tensor) ([]volume.Array, error) {
	var elements, stored int64
	byStorage := map[string][]int{} // places in tensors
	var order []*storage
	for i, t := range tensors {
		s := t.view.storage
		size, ok := sizes[s.dtype]
		if !ok {
			return nil, fmt.Errorf("%s: type %s can't be read", t.Name, s.dtype)
		}
		n := int64(t.view.len()) * int64(size)
		first, seen := byStorage[s.key]
		switch {
		case !seen:
			stored += int64(s.count) * int64(size)
			order = append(order, s)
		case tensors[first[0]].view.storage.dtype != s.dtype || tensors[first[0]].view.storage.count != s.count:
			return nil, fmt.Errorf("%s: its storage data/%s is of another type or size for %s", t.Name, s.key, tensors[first[0]].Name)
		}
		if elements += n; n > f.bytes || elements > f.bytes || stored > f.bytes {
			return nil, fmt.Errorf("%s: the tensors up to this one hold more than the file's %d bytes: they overlap", t.Name, f.bytes)
		}
		byStorage[s.key] = append(byStorage[s.key], i)
	}
	arrays := make([]volume.Array, len(tensors))
	for _, s := range order {
		flat, err := f.floats(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", tensors[byStorage[s.key][0]].Name, err)
		}
		for _, i := range byStorage[s.key] {
			arrays[i] = volume.Array{Name: tensors[i].Name, Shape: tensors[i].Shape, Data: tensors[i].view.gather(flat)}
		}
	}
	return arrays, nil
}

// floats reads a whole storage.
func (f *File) floats(s *storage) ([]float32, error) {
	e, ok := f.entries["data/"+s.key]
	if !ok {
		return nil, fmt.Errorf("no data/%s in the archive", s.key)
	}
	bytes := int64(s.count) * int64(sizes[s.dtype])
	if e.Method != zip.Store || e.UncompressedSize64 != uint64(bytes) || e.CompressedSize64 != e.UncompressedSize64 {
		return nil, fmt.Errorf("%s: %d bytes, method %d (want %d elements of %s, not compressed)", e.Name, e.UncompressedSize64, e.Method, s.count, s.dtype)
	}
	r, err := e.Open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	flat, err := safetensors.Tensor{Name: e.Name, DType: s.dtype, Shape: []int{s.count}, Bytes: bytes}.Floats(r)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // to the checksum
	}
	if err != nil {
		return nil, err
	}
	return flat, nil
}
