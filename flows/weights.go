package flows

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/files"
	"github.com/flowrun/flowrun/stages/safetensors"
	"github.com/flowrun/flowrun/stages/volume"
)

// The weights that an export takes, and whom it may be for.
const (
	ExportEMA        = "ema"
	ExportRaw        = "raw"
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
	axes, err := parseAxes(o.Axes)
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
		if err := expressible(&c); err != nil {
			return configErrorf("%s: %w; leave --for out to export it all the same", from, err)
		}
	}
	arrays, kind, err := stateDict(snap.Arrays, o.Weights)
	if err != nil {
		return configErrorf("%s: %w", from, err)
	}
	judges, note := fromModel(vqgan.Discriminators(toModel(snap.Arrays))), ""
	switch {
	case len(judges) == 0:
	case o.For == MedicalDiffusion && !batchNormed(judges):
		note = "; left out: the discriminators, for medicaldiffusion's have BatchNorm (train.gan.norm: batch)"
	default:
		arrays, note = append(arrays, judges...), ", discriminators"
	}
	meta := map[string]string{"format": "pt", "model": snap.Meta["model"], "stream": snap.Meta["stream"]}
	if back := inverse(axes); o.Axes != "" {
		meta["axes"] = o.Axes
		for i := range arrays {
			turn(&arrays[i], back)
		}
	}
	arrays = fromModel(vqgan.SingularVectors(toModel(arrays)))
	floats := safetensors.Floats(arrays)
	h, err := safetensors.NewHeader(floats, meta, true)
	if err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	if err := safetensors.Save(ctx, files.Local(), to, h, floats); err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	_, err = fmt.Fprintf(w, "%s: %d tensors, %s, %s weights of step %d%s\n", to, len(arrays), size(h.Bytes()), kind, snap.Step, note)
	return err
}

// batchNormed says whether discriminators have batch norm.
func batchNormed(judges []volume.Array) bool {
	return slices.ContainsFunc(judges, func(a volume.Array) bool { return strings.HasSuffix(a.Name, ".running_mean") })
}

// expressible says which key of a model medicaldiffusion has no counterpart for.
func expressible(c *vqgan.Config) error {
	switch {
	case c.Quantizer != vqgan.EMA:
		return fmt.Errorf("model.quantizer: %s, but medicaldiffusion has one codebook (quantizer: ema)", c.Quantizer)
	case c.Norm != "group":
		return fmt.Errorf("model.norm: %s, but medicaldiffusion has GroupNorm (norm: group)", c.Norm)
	case c.Decoder != "full":
		return fmt.Errorf("model.decoder: %s, but medicaldiffusion has the full one", c.Decoder)
	case c.Padding != "replicate":
		return fmt.Errorf("model.padding: %s, but medicaldiffusion's residual blocks replicate", c.Padding)
	}
	return nil
}

// stateDict picks weights and codebook from a checkpoint's arrays, under their names in the state dict.
func stateDict(all []volume.Array, weights string) (arrays []volume.Array, kind string, err error) {
	const average = "ema."
	running := map[string]volume.Array{}
	for _, a := range all {
		if name, ok := strings.CutPrefix(a.Name, average); ok {
			running[name] = a
		}
	}
	switch {
	case weights == ExportEMA && len(running) == 0:
		return nil, "", errors.New("it holds no EMA weights (train.ema was 0); take --weights raw")
	case weights == ExportRaw || len(running) == 0:
		kind = ExportRaw
	default:
		kind = ExportEMA
	}
	for _, a := range all {
		switch module, rest, _ := strings.Cut(a.Name, "."); module {
		case "encoder", "decoder", "pre_vq_conv", "post_vq_conv":
			if kind == ExportEMA {
				mean, ok := running[a.Name]
				if !ok {
					return nil, "", fmt.Errorf("%s%s is missing", average, a.Name)
				}
				a.Shape, a.Data = mean.Shape, mean.Data
			}
		case "codebook", "codebook2":
			if rest != "embeddings" && rest != "N" && rest != "z_avg" {
				continue // the reservoir is the session's
			}
		default:
			continue
		}
		arrays = append(arrays, a)
	}
	if len(arrays) == 0 {
		return nil, "", errors.New("it holds no weights")
	}
	return arrays, kind, nil
}

// toModel and fromModel are the same arrays by the types of two packages.
func toModel(list []volume.Array) []vqgan.Array {
	out := make([]vqgan.Array, len(list))
	for i, a := range list {
		out[i] = vqgan.Array(a)
	}
	return out
}

func fromModel(list []vqgan.Array) []volume.Array {
	out := make([]volume.Array, len(list))
	for i, a := range list {
		out[i] = volume.Array(a)
	}
	return out
}
