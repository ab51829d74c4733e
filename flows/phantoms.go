package flows

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/flowrun/flowrun/configs"
	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/phantom"
)

// PhantomOptions say which phantoms to write.
type PhantomOptions struct {
	Count   int
	Size    [3]int     // voxels x, y, z
	Spacing [3]float64 // mm; 0 makes the whole chest fit along that axis
	Seed    uint64     // of the first patient; the next one's is one more
	Noise   float64    // standard deviation, HU
	Gzip    bool
}

// Phantoms writes CT-like chest scans to a folder as NIfTI. Files that are there already are written anew.
func Phantoms(ctx context.Context, dir string, o PhantomOptions) error {
	if o.Count < 1 {
		return configErrorf("phantom: count %d (want at least 1)", o.Count)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		if path, ok := errors.AsType[*fs.PathError](err); ok {
			err = path.Err
		}
		return configErrorf("phantom: %s: %w; choose a folder that can be written to", dir, err)
	}
	ext := ".nii"
	if o.Gzip {
		ext = ".nii.gz"
	}
	for i := range o.Count {
		seed := o.Seed + uint64(i)
		p := phantom.Options{Size: o.Size, Spacing: o.Spacing, Seed: seed, Noise: o.Noise}
		if err := configs.Decode(configs.Encode(&p), &p); err != nil { // bounds, and Check
			return configErrorf("phantom: %w", err)
		}
		if err := writePhantom(ctx, filepath.Join(dir, fmt.Sprintf("phantom-%04d%s", seed, ext)), p); err != nil {
			return err
		}
	}
	return nil
}

func writePhantom(ctx context.Context, path string, o phantom.Options) error {
	w, err := nifti.Create(path, nifti.New(nifti.Int16, o.Size, o.Affine()))
	if err != nil {
		return err
	}
	for _, slice := range phantom.Slices(o) {
		if err = errors.Join(context.Cause(ctx), w.WriteInt16(slice)); err != nil {
			w.Cancel()
			return err
		}
	}
	return w.Close()
}
