package codes

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/stages/safetensors"
	"github.com/flowrun/flowrun/stages/volume"
)

// File is what a file holds.
type File struct {
	*volume.Codes
	Sealed bool // it has a seal, which is right: these are the codes that were saved. Without, another program wrote the file.
}

// Read reads a file that Save or another program wrote. It holds codes, or latents, or both. Codes are below the size of the
// codebook, latents are finite, the shapes agree with the grid and the tiles cover the volume. Codes may be of any type of
// integers, latents of any type of floats. Tensors of other names are passed over. Scan.Path is path. Errors start with the
// path.
//
// A sealed file is refused if anything in it isn't as it was saved. Who edits one leaves sha256 out of the metadata.
func Read(path string) (*File, error) {
	var f *File
	_, err := safetensors.Open(path, func(r io.Reader, h *safetensors.Header) (err error) {
		f, err = read(r, h)
		return err
	})
	if damaged, ok := errors.AsType[*safetensors.DamagedError](err); ok {
		return nil, fmt.Errorf("%s: %w; if it was edited, leave sha256 out of its metadata", path, damaged)
	}
	if err != nil {
		return nil, err
	}
	f.Scan.Path = path
	return f, nil
}

// Load loads the codes of a scan that List found, and leaves what o.Use names: Quantised holds what is to be decoded
// instead of the codes, or is nil. Errors start with the file's path.
func (o *LoadOptions) Load(scan *volume.Scan) (*File, error) {
	f, err := Read(scan.Path)
	if err != nil {
		return nil, err
	}
	if f.Dims != scan.Dims {
		return nil, fmt.Errorf("%s: holds %v voxels (want %v, as when it was listed)", scan.Path, f.Dims, scan.Dims)
	}
	if err := o.choose(f.Codes); err != nil {
		return nil, fmt.Errorf("%s: %w", scan.Path, err)
	}
	f.Scan = scan
	return f, nil
}

func read(r io.Reader, h *safetensors.Header) (*File, error) {
	c, err := layout(h)
	if err != nil {
		return nil, err
	}
	for _, t := range h.Tensors {
		switch t.Name {
		case codesName:
			c.Index, err = t.Codes(r, c.Count)
		case latentsName:
			c.Latents, err = latents(r, t)
		case quantisedName:
			c.Quantised, err = latents(r, t)
		default:
			err = t.Skip(r)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := checkCover(c); err != nil {
		return nil, err
	}
	return &File{Codes: c, Sealed: h.Seal != ""}, nil
}

func latents(r io.Reader, t safetensors.Tensor) ([]float32, error) {
	if !strings.Contains(t.DType, "F") {
		return nil, fmt.Errorf("tensor %q: dtype %q (want floats)", t.Name, t.DType)
	}
	data, err := t.Floats(r)
	if err != nil {
		return nil, err
	}
	return data, checkFinite(t.Name, data)
}

// layout gives codes without their arrays from a file's header, whose tensors are of the shapes that they should have.
func layout(h *safetensors.Header) (*volume.Codes, error) {
	c, err := decodeInfo(h.Meta)
	if err != nil {
		return nil, err
	}
	if _, ok := h.Meta[safetensors.SealKey]; ok {
		return nil, errors.New("the seal isn't in its place: another program wrote the file; leave sha256 out of its metadata")
	}
	cells, found := shapeOf(c), false
	for _, t := range h.Tensors {
		var want []int
		switch t.Name {
		case codesName:
			want = indexShape(c)
		case latentsName, quantisedName:
			if c.Channels < 1 {
				return nil, fmt.Errorf("tensor %q: the metadata says 0 channels", t.Name)
			}
			want = append(slices.Clone(cells), c.Channels)
		default:
			continue
		}
		if !slices.Equal(t.Shape, want) {
			return nil, fmt.Errorf("tensor %q: shape %v (want %v)", t.Name, t.Shape, want)
		}
		found = true
	}
	if !found {
		return nil, fmt.Errorf("no tensor %q, %q or %q", codesName, quantisedName, latentsName)
	}
	return c, nil
}
