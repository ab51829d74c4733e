package torch

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/stages/safetensors"
)

const (
	maxPickle  = 16 << 20 // bytes
	maxVisited = 1 << 18  // entries of dicts on the way to the tensors
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

	zip  *zip.Reader
	root string // folder of the archive
	file io.Closer
}

// Open reads what tensors the file at path has, not their values. Errors start with the path.
func Open(path string) (*File, error) {
	z, err := zip.OpenReader(path)
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return nil, fmt.Errorf("%s: %w", path, p.Err)
	}
	if errors.Is(err, zip.ErrFormat) {
		return nil, fmt.Errorf("%s: not a zip file: damaged, or written before PyTorch 1.6; load it there and torch.save it anew, or save its state dict as safetensors", path)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f, err := list(&z.Reader)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), z.Close())
	}
	f.file = z
	return f, nil
}

// Close closes the file.
func (f *File) Close() error { return f.file.Close() }

// list finds the tensors of an archive.
func list(z *zip.Reader) (*File, error) {
	f := &File{zip: z}
	var pickle *zip.File
	for _, e := range z.File {
		if root, ok := strings.CutSuffix(e.Name, "data.pkl"); ok && strings.Count(e.Name, "/") == 1 && strings.HasSuffix(root, "/") {
			if pickle != nil {
				return nil, fmt.Errorf("it holds both %s and %s", pickle.Name, e.Name)
			}
			pickle, f.root = e, root
		}
	}
	if pickle == nil {
		return nil, errors.New("no data.pkl: torch.save didn't write it")
	}
	if _, ok := f.entry("constants.pkl"); ok {
		return nil, errors.New("a TorchScript program; torch.save its state dict instead")
	}
	if e, ok := f.entry("byteorder"); ok {
		if order, err := content(e, 16); err != nil || string(order) != "little" {
			return nil, errors.Join(fmt.Errorf("byte order %q (want little)", order), err)
		}
	}
	text, err := content(pickle, maxPickle)
	if err != nil {
		return nil, err
	}
	value, err := load(text)
	if err != nil {
		return nil, fmt.Errorf("data.pkl: %w", err)
	}
	root, ok := value.(*dict)
	if !ok {
		return nil, errors.New("it isn't a dict of tensors; torch.save the model's state_dict()")
	}
	found := map[string]Tensor{}
	visited := 0
	if err := collect(found, "", root, maxDepth, &visited); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		f.Tensors = append(f.Tensors, found[name])
	}
	return f, nil
}

// collect finds the tensors of dicts in dicts.
func collect(found map[string]Tensor, prefix string, d *dict, depth int, visited *int) error {
	for _, key := range slices.Sorted(maps.Keys(d.entries)) {
		if *visited++; *visited > maxVisited {
			return fmt.Errorf("more than %d entries", maxVisited)
		}
		name := prefix + key
		switch v := d.entries[key].(type) {
		case *view:
			if _, twice := found[name]; twice {
				return fmt.Errorf("%s is there twice", name)
			}
			found[name] = Tensor{name, slices.Clone(v.shape), v.storage.dtype, *v}
		case *dict:
			if depth > 1 {
				if err := collect(found, name+".", v, depth-1, visited); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (f *File) entry(name string) (*zip.File, bool) {
	for _, e := range f.zip.File {
		if e.Name == f.root+name {
			return e, true
		}
	}
	return nil, false
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

// Floats reads a tensor of the file as float32, row-major whatever its strides; the archive's checksum is checked. F64
// and integers of more than 24 bits are rounded.
func (f *File) Floats(t Tensor) ([]float32, error) {
	data, err := f.floats(t.view)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Name, err)
	}
	return data, nil
}

func (f *File) floats(v view) ([]float32, error) {
	size, ok := sizes[v.storage.dtype]
	if !ok {
		return nil, fmt.Errorf("type %s can't be read", v.storage.dtype)
	}
	e, ok := f.entry("data/" + v.storage.key)
	switch {
	case !ok:
		return nil, fmt.Errorf("no data/%s in the archive", v.storage.key)
	case e.Method != zip.Store || e.UncompressedSize64 != uint64(v.storage.count)*uint64(size) || e.CompressedSize64 != e.UncompressedSize64:
		return nil, fmt.Errorf("%s: %d bytes, method %d (want %d elements of %d bytes, not compressed)", e.Name, e.UncompressedSize64, e.Method, v.storage.count, size)
	}
	r, err := e.Open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	if _, err := io.CopyN(io.Discard, r, int64(v.offset*size)); err != nil {
		return nil, err
	}
	// The entry's bytes must be there before room is made for them: its size is only what the archive says.
	n := v.extent()
	raw, err := io.ReadAll(io.LimitReader(r, int64(n*size)))
	if err == nil {
		_, err = io.Copy(io.Discard, r) // to the checksum
	}
	if err != nil {
		return nil, err
	}
	if len(raw) != n*size {
		return nil, io.ErrUnexpectedEOF
	}
	span := safetensors.Tensor{Name: e.Name, DType: v.storage.dtype, Shape: []int{n}, Bytes: int64(len(raw))}
	flat, err := span.Floats(strings.NewReader(string(raw)))
	if err != nil {
		return nil, err
	}
	return v.gather(flat), nil
}
