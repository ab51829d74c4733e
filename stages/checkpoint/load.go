package checkpoint

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/flowrun/flowrun/stages/safetensors"
	"github.com/flowrun/flowrun/stages/volume"
)

// Load reads a checkpoint that Save wrote, whole, or says why it can't be trusted. It may run beside a Save. Errors
// start with the path.
func Load(path string) (*volume.Snapshot, error) {
	var s *volume.Snapshot
	_, err := safetensors.Open(path, func(r io.Reader, h *safetensors.Header) (err error) {
		if s, err = trusted(h); err != nil {
			return err
		}
		s.Arrays, err = h.Arrays(r)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Verify reads a checkpoint as Load does, and keeps nothing of it.
func Verify(path string) error {
	_, err := safetensors.Open(path, func(r io.Reader, h *safetensors.Header) error {
		if _, err := trusted(h); err != nil {
			return err
		}
		for _, t := range h.Tensors {
			if err := t.Skip(r); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// trusted is the snapshot, without arrays, of a header that has a seal.
func trusted(h *safetensors.Header) (*volume.Snapshot, error) {
	s, err := decodeMeta(h.Meta)
	if err == nil && h.Seal == "" {
		err = errors.New("no checksum: not written by flowrun, or damaged")
	}
	return s, err
}

// Info is what a safetensors file says of itself.
type Info struct {
	Bytes      int64
	SHA256     string // the seal, hex, as stated (see Verify); "" if it has none
	Tensors    []safetensors.Tensor
	Meta       map[string]string
	Checkpoint bool // the rest is known: flowrun wrote it
	Step       int
	Cursor     volume.Cursor
	Metrics    map[string]float64
	Reason     string
	Tags       int // how many
}

// Peek reads only the header of a safetensors file, a checkpoint or not. Errors start with the path.
func Peek(path string) (Info, error) {
	h, err := safetensors.Peek(path)
	if err != nil {
		return Info{}, err
	}
	info := Info{Bytes: h.Bytes(), SHA256: h.Seal, Tensors: h.Tensors, Meta: h.Meta}
	if _, ok := h.Meta[stateKey]; !ok {
		return info, nil
	}
	s, err := decodeMeta(h.Meta)
	if err != nil {
		return Info{}, fmt.Errorf("%s: %w", path, err)
	}
	info.Checkpoint, info.Meta = true, s.Meta
	info.Step, info.Cursor, info.Metrics, info.Reason, info.Tags = s.Step, s.Cursor, s.Metrics, s.Reason, len(s.Tags)
	return info, nil
}

// Latest loads the checkpoint of the highest step that verifies whole. What it had to skip is reported, newest first,
// and stays on disk. Where none verifies the snapshot is nil: with nothing skipped the folder holds no checkpoints, else
// a run shouldn't start anew over damaged work.
func (s *Store) Latest() (snapshot *volume.Snapshot, path string, skipped []error, err error) {
	files, err := s.files()
	if err != nil {
		return nil, "", nil, err
	}
	for _, f := range slices.Backward(files) {
		path := s.path(f)
		snapshot, err := Load(path)
		if err == nil && snapshot.Step != f {
			err = fmt.Errorf("%s: holds step %d", path, snapshot.Step)
		}
		if err == nil {
			return snapshot, path, skipped, nil
		}
		s.damaged[f] = true
		skipped = append(skipped, err)
	}
	return nil, "", skipped, nil
}
