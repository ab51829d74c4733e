package weights

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/volume"
)

// The weights of a checkpoint that an export takes.
const (
	EMA = "ema"
	Raw = "raw"
)

// StateDict is what an export takes of a checkpoint.
type StateDict struct {
	Arrays []volume.Array // weights, codebook, discriminators
	Kind   string         // EMA or Raw
	Note   string         // what is to be said of discriminators, behind the rest
}

// Export makes the state dict of a model of shape c out of a checkpoint's arrays, with weights of a kind ("" is EMA where there are any)
// and the kernels' axes in an order. medicalDiffusion leaves out discriminators that it couldn't load; see also Expressible.
func Export(all []volume.Array, weights string, axes Axes, medicalDiffusion bool) (*StateDict, error) {
	arrays, kind, err := pick(all, weights)
	if err != nil {
		return nil, err
	}
	s := &StateDict{Kind: kind}
	judges := fromModel(vqgan.Discriminators(ToModel(all)))
	switch {
	case len(judges) == 0:
	case medicalDiffusion && !batchNormed(judges):
		s.Note = "; left out: the discriminators, for medicaldiffusion's have BatchNorm (train.gan.norm: batch)"
	default:
		arrays, s.Note = append(arrays, judges...), ", discriminators"
	}
	back := axes.inverse()
	for i := range arrays {
		back.turn(&arrays[i])
	}
	s.Arrays = fromModel(vqgan.SingularVectors(ToModel(arrays)))
	return s, nil
}

// batchNormed says whether discriminators have batch norm.
func batchNormed(judges []volume.Array) bool {
	return slices.ContainsFunc(judges, func(a volume.Array) bool { return strings.HasSuffix(a.Name, ".running_mean") })
}

// Expressible says which key of a model medicaldiffusion has no counterpart for.
func Expressible(c *vqgan.Config) error {
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

// pick picks weights and codebook from a checkpoint's arrays, under their names in the state dict.
func pick(all []volume.Array, weights string) (arrays []volume.Array, kind string, err error) {
	const average = "ema."
	running := map[string]volume.Array{}
	for _, a := range all {
		if name, ok := strings.CutPrefix(a.Name, average); ok {
			running[name] = a
		}
	}
	switch {
	case weights == EMA && len(running) == 0:
		return nil, "", errors.New("it holds no EMA weights (train.ema was 0); take --weights raw")
	case weights == Raw || len(running) == 0:
		kind = Raw
	default:
		kind = EMA
	}
	for _, a := range all {
		switch module, rest, _ := strings.Cut(a.Name, "."); module {
		case "encoder", "decoder", "pre_vq_conv", "post_vq_conv":
			if kind == EMA {
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

// ToModel gives arrays the model's type.
func ToModel(list []volume.Array) []vqgan.Array {
	out := make([]vqgan.Array, len(list))
	for i, a := range list {
		out[i] = vqgan.Array(a)
	}
	return out
}

// fromModel takes it back.
func fromModel(list []vqgan.Array) []volume.Array {
	out := make([]volume.Array, len(list))
	for i, a := range list {
		out[i] = volume.Array(a)
	}
	return out
}
