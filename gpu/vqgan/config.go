package vqgan

import (
	"encoding/json"
	"fmt"
	"math/bits"
	"reflect"
	"slices"

	"github.com/flowrun/flowrun/gpu"
)

// Config is the model's shape: the model block of a YAML file, and what a checkpoint says of itself.
type Config struct {
	Preset     string `key:"preset" json:"-" default:"" example:"vqgan3d" doc:"Named set of values for this block: vqgan3d, lean24g or demo. Keys written beside it override it."`
	Hidden     int    `key:"hidden" json:"hidden" default:"16" unit:"channels" min:"1" max:"1024" doc:"Channels at full resolution. They double with each halving of the resolution."`
	Downsample [3]int `key:"downsample" json:"downsample" default:"[4, 4, 4]" unit:"voxels per latent, x, y, z" min:"1" max:"64" doc:"How many voxels one latent stands for along each axis. Powers of two; they may differ."`
	Embedding  int    `key:"embedding" json:"embedding" default:"8" unit:"channels" min:"1" max:"1024" doc:"Length of a code's vector. With quantizer: fsq it is the number of levels, and may be left out."`
	Codes      int    `key:"codes" json:"codes" default:"512" min:"2" max:"1048576" doc:"Codes in the codebook, or in each of two. With quantizer: fsq it is the product of the levels, and may be left out."`
	Quantizer  string `key:"quantizer" json:"quantizer" default:"ema" oneof:"ema cosine fsq residual" doc:"How latents become codes. ema: the nearest vector of a codebook that follows the latents by running means. cosine: the same with latents and codes of length 1, where nearest is the smallest angle. fsq: each channel is bounded and rounded to one of its levels; there is no codebook. residual: two codebooks, the second for what the first leaves; a latent has two codes."`
	Levels     []int  `key:"levels" json:"levels,omitempty" default:"[]" min:"2" max:"4096" example:"[8, 5, 5, 5]" doc:"Levels of each channel, for quantizer: fsq. [8, 5, 5, 5] makes 1000 codes, [8, 8, 8, 6, 5] 15360."`
	Norm       string `key:"norm" json:"norm" default:"channel" oneof:"channel group" doc:"channel divides each voxel by the root mean square over its channels, which doesn't depend on the tile. group is GroupNorm, for weights of the predecessor."`
	Groups     int    `key:"groups" json:"groups" default:"8" min:"1" max:"1024" doc:"Groups of channels, for norm: group."`
	Padding    string `key:"padding" json:"padding" default:"replicate" oneof:"replicate zero" doc:"What convolutions see beyond a face: the nearest voxel, or zero."`
	Decoder    string `key:"decoder" json:"decoder" default:"lean" oneof:"lean full" doc:"full has the predecessor's widths, with twice as many channels at each resolution on the way up. lean has half of those, a third of the work and little more than half of the memory."`
}

// Check says whether the keys fit each other, but for what Settle does.
func (c *Config) Check() error {
	halvings := 0
	for a, d := range c.Downsample {
		if d < 1 || d&(d-1) != 0 {
			return fmt.Errorf("downsample: %d along %c isn't a power of two", d, "xyz"[a])
		}
		halvings = max(halvings, log2(d))
	}
	if halvings == 0 {
		return fmt.Errorf("downsample: %v leaves the resolution as it is (want at least 2 along one axis)", c.Downsample)
	}
	if c.Hidden < 1 || c.quantizer() != FSQ && (c.Embedding < 1 || c.Codes < 2) {
		return fmt.Errorf("hidden: %d, embedding %d, codes %d (want at least 1, 1, 2)", c.Hidden, c.Embedding, c.Codes)
	}
	if top := c.Hidden << halvings; top > 1<<16 {
		return fmt.Errorf("hidden: %d doubled %d times is %d channels (want at most %d)", c.Hidden, halvings, top, 1<<16)
	}
	if c.Norm == "group" {
		if n := c.narrowest(); c.Groups < 1 || n%c.Groups != 0 {
			return fmt.Errorf("groups: %d don't divide the %d channels at full resolution", c.Groups, n)
		}
	}
	return c.checkQuantizer()
}

// narrowest is the smallest number of channels that a norm sees.
func (c *Config) narrowest() int {
	if c.Decoder == "full" {
		return 2 * c.Hidden
	}
	return c.Hidden
}

// Halvings is how often the resolution is halved.
func (c *Config) Halvings() int {
	return log2(max(c.Downsample[0], c.Downsample[1], c.Downsample[2]))
}

// Latents is the size of the code grid of a patch, x, y, z.
func (c *Config) Latents(patch [3]int) [3]int {
	for a := range patch {
		patch[a] /= c.Downsample[a]
	}
	return patch
}

// checkSize says whether voxels of a size become whole latents.
func (c *Config) checkSize(what string, size [3]int) error {
	for a, n := range size {
		if f := c.Downsample[a]; n < 1 || n%f != 0 {
			return fmt.Errorf("%s: %d along %c isn't a multiple of the downsampling %d", what, n, "xyz"[a], f)
		}
	}
	return nil
}

// JSON is the shape as a checkpoint keeps it, without the name of the preset that it came from.
func (c *Config) JSON() (string, error) {
	written := *c
	if written.Quantizer == "" {
		written.Quantizer = EMA
	}
	b, err := json.Marshal(&written)
	if err != nil {
		return "", fmt.Errorf("model: %w", err)
	}
	return string(b), nil
}

// ParseConfig reads what JSON wrote and checks it.
func ParseConfig(s string) (Config, error) {
	var c Config
	if err := json.Unmarshal([]byte(s), &c); err != nil {
		return c, fmt.Errorf("model: %w", err)
	}
	if c.Quantizer == "" { // of a checkpoint that was written when there was no choice
		c.Quantizer = EMA
	}
	if err := c.complete(); err != nil {
		return c, fmt.Errorf("model: %w", err)
	}
	return c, nil
}

// complete checks the shape and fills in what the levels say of it.
func (c *Config) complete() error {
	if err := c.Check(); err != nil {
		return err
	}
	return c.Settle(nil)
}

// Equal says whether two shapes are one; the preset that they came from doesn't matter.
func (c *Config) Equal(o *Config) bool {
	a, b := *c, *o
	a.Preset, b.Preset, a.Levels, b.Levels = "", "", nil, nil
	return reflect.DeepEqual(a, b) && slices.Equal(c.Levels, o.Levels)
}

func (c *Config) pad() gpu.Padding {
	if c.Padding == "zero" {
		return gpu.Zero
	}
	return gpu.Replicate
}

// norm has PyTorch code's ε.
func (c *Config) norm() gpu.Norm {
	n := gpu.Norm{Eps: 1e-6}
	if c.Norm == "group" {
		n.Groups = c.Groups
	}
	return n
}

// stride is the stride of a level, z, y, x: 2 along axes that are still to be halved, at level 0 next to the voxels.
func (c *Config) stride(level int) [3]int {
	s := [3]int{1, 1, 1}
	for a, d := range c.Downsample {
		if log2(d) > level {
			s[2-a] = 2
		}
	}
	return s
}

func log2(n int) int { return bits.Len(uint(n)) - 1 }
