package flows

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/files"
	"github.com/flowrun/flowrun/stages/safetensors"
	"github.com/flowrun/flowrun/stages/weights"
)

// The weights that an export takes, and whom it may be for.
const (
	ExportEMA        = weights.EMA
	ExportRaw        = weights.Raw
	MedicalDiffusion = "medicaldiffusion"
)

// ExportOptions say what to export.
type ExportOptions struct {
	Weights string // ExportEMA, ExportRaw, or "": EMA weights where there are any
	For     string // MedicalDiffusion refuses what that can't express; "" is any reader
	Axes    string // the order of the spatial axes of kernels; "" is AxesDefault
}

// Export writes the weights, the codebook and the discriminators of a checkpoint as a plain state dict, which safetensors.torch.load_file reads.
// A file that is there already isn't touched.
func Export(ctx context.Context, w io.Writer, from, to string, o ExportOptions) error {
	if o.Weights != "" && o.Weights != ExportEMA && o.Weights != ExportRaw {
		return configErrorf("--weights: %q (want %s or %s)", o.Weights, ExportEMA, ExportRaw)
	}
	if o.For != "" && o.For != MedicalDiffusion {
		return configErrorf("--for: %q (want %s)", o.For, MedicalDiffusion)
	}
	axes, err := weights.ParseAxes(o.Axes)
	if err != nil {
		return configErrorf("--%w", err)
	}
	if filepath.Ext(to) != ".safetensors" {
		return configErrorf("%s: want a name that ends with .safetensors", to)
	}
	if _, err := os.Lstat(to); err == nil {
		return configErrorf("%s: is there already; choose another name, or remove it", to)
	}
	snap, err := checkpoint.Load(from)
	if err != nil {
		return &DataError{err}
	}
	c, err := vqgan.ParseConfig(snap.Meta["model"])
	if err != nil {
		return dataErrorf("%s: %w", from, err)
	}
	if o.For == MedicalDiffusion {
		if err := weights.Expressible(&c); err != nil {
			return configErrorf("%s: %w; leave --for out to export it all the same", from, err)
		}
	}
	state, err := weights.Export(snap.Arrays, o.Weights, axes, o.For == MedicalDiffusion)
	if err != nil {
		return configErrorf("%s: %w", from, err)
	}
	meta := map[string]string{"format": "pt", "model": snap.Meta["model"], "stream": snap.Meta["stream"]}
	if o.Axes != "" {
		meta["axes"] = o.Axes
	}
	floats := safetensors.Floats(state.Arrays)
	h, err := safetensors.NewHeader(floats, meta, true)
	if err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	if err := safetensors.Save(ctx, files.Local(), to, h, floats); err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	_, err = fmt.Fprintf(w, "%s: %d tensors, %s, %s weights of step %d%s\n", to, len(state.Arrays), size(h.Bytes()), state.Kind, snap.Step, state.Note)
	return err
}
