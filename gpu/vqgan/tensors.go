package vqgan

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/gpu/nn"
)

// Tensor is the name and the shape of a tensor of a state dict, in the layout of files (Array).
type Tensor struct {
	Name  string
	Shape []int
}

// StateDict lists the tensors of the model's state dict: weights by name, then for each codebook (codebook, codebook2) its
// .embeddings, .N and .z_avg. fsq has none.
func (c *Config) StateDict() ([]Tensor, error) {
	settled := *c
	if err := settled.complete(); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	c = &settled
	var params nn.Params
	g := nn.NewGraph(&params)
	encoder(g, c, g.Input("input", dims(1, c.Downsample, 1)))
	decoder(g, c, g.Input("latents", dims(1, unit, c.Embedding)))
	if err := g.Err(); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	var list []Tensor
	for _, p := range params.All() {
		list = append(list, Tensor{p.Name, fileShape(p)})
	}
	slices.SortFunc(list, func(a, b Tensor) int { return strings.Compare(a.Name, b.Name) })
	for i := range c.Books() {
		name := nameBook(i)
		list = append(list, Tensor{name + suffixVectors, []int{c.Codes, c.Embedding}}, Tensor{name + suffixN, []int{c.Codes}},
			Tensor{name + suffixSum, []int{c.Codes, c.Embedding}})
	}
	return list, nil
}

// Match says in what tensors, shapes by name, aren't the model's state dict. A codebook's .N and .z_avg may be missing.
func (c *Config) Match(shapes map[string][]int) error {
	want, err := c.StateDict()
	if err != nil {
		return err
	}
	var missing, wrong, left []string
	known := map[string]bool{}
	for _, t := range want {
		known[t.Name] = true
		switch shape, ok := shapes[t.Name]; {
		case !ok && !strings.HasSuffix(t.Name, suffixN) && !strings.HasSuffix(t.Name, suffixSum):
			missing = append(missing, t.Name+" is missing")
		case ok && !slices.Equal(shape, t.Shape):
			wrong = append(wrong, fmt.Sprintf("%s is %v (want %v)", t.Name, shape, t.Shape))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(shapes)) {
		if !known[name] {
			left = append(left, fmt.Sprintf("%s %v is left over", name, shapes[name]))
		}
	}
	return faulty("state dict", slices.Concat(missing, wrong, left))
}

// Outline is what the shapes of a state dict show of a model. What they don't show are the axes that are halved, the norm, the
// padding, whether one codebook is of quantizer: ema or cosine, and the levels of fsq.
type Outline struct {
	Hidden, Embedding int
	Books, Codes      int // codebooks, and codes in each; none with fsq
	Halvings          int
	Decoder           string
}

// Codebooks are what the names of the codebooks' tensors begin with.
func (o *Outline) Codebooks() []string {
	var names []string
	for i := range o.Books {
		names = append(names, nameBook(i))
	}
	return names
}

// maxHalvings bounds what a file can claim; so many halvings leave nothing of a patch.
const maxHalvings = 16

// ReadOutline finds the outline of a model in its tensors, shapes by name, or says what of them flowrun has no counterpart for.
func ReadOutline(shapes map[string][]int) (Outline, error) {
	for _, name := range slices.Sorted(maps.Keys(shapes)) {
		switch shape := shapes[name]; {
		case strings.HasSuffix(name, ".running_mean"), strings.HasSuffix(name, ".running_var"):
			return Outline{}, fmt.Errorf("%s %v: the model has batch norm, and a batch of patches has statistics of its own; only norm: group and norm: channel can be read", name, shape)
		case strings.Contains(name, ".conv_shortcut."):
			return Outline{}, fmt.Errorf("%s %v: a residual block that changes its number of channels; those of flowrun keep theirs", name, shape)
		}
	}
	const first, last, up = "encoder.conv_first.conv.weight", "decoder.conv_last.conv.weight", "decoder.conv_blocks.0.up.convt.weight"
	get := func(name string, rank int) ([]int, error) {
		switch shape, ok := shapes[name]; {
		case !ok:
			return nil, fmt.Errorf("%s is missing: not a VQ-GAN like medicaldiffusion's", name)
		case len(shape) != rank || slices.Contains(shape, 0):
			return nil, fmt.Errorf("%s is %v (want %d axes)", name, shape, rank)
		default:
			return shape, nil
		}
	}
	input, err1 := get(first, 5)
	output, err2 := get(last, 5)
	mirror, err3 := get(up, 5)
	latent, err4 := get("pre_vq_conv.conv.weight", 5)
	err := errors.Join(err1, err2, err3, err4)
	var books [][]int
	for name := nameBook(0) + suffixVectors; err == nil && shapes[name] != nil; name = nameBook(len(books)) + suffixVectors {
		var vectors []int
		vectors, err = get(name, 2)
		books = append(books, vectors)
	}
	for name := range shapes {
		if err == nil && len(books) == 0 && strings.HasPrefix(name, nameBook(0)+".") {
			err = fmt.Errorf("%s is missing: not a VQ-GAN like medicaldiffusion's", nameBook(0)+suffixVectors)
		}
	}
	if err != nil {
		one, _, _ := strings.Cut(err.Error(), "\n")
		return Outline{}, errors.New(one)
	}
	switch {
	case input[1] != 1:
		return Outline{}, fmt.Errorf("%s is %v: images of %d channels (want 1)", first, input, input[1])
	case output[0] != 1:
		return Outline{}, fmt.Errorf("%s is %v: images of %d channels (want 1)", last, output, output[0])
	}
	o := Outline{Hidden: input[0], Embedding: latent[0], Books: len(books)}
	if o.Books > 2 {
		return Outline{}, fmt.Errorf("%s: %d codebooks (want at most 2)", nameBook(2)+suffixVectors, o.Books)
	}
	if o.Books > 0 {
		o.Codes, o.Embedding = books[0][0], books[0][1]
	}
	for shapes[fmt.Sprintf("encoder.conv_blocks.%d.down.conv.weight", o.Halvings)] != nil && o.Halvings < maxHalvings {
		o.Halvings++
	}
	if o.Halvings == 0 {
		return Outline{}, errors.New("encoder.conv_blocks.0.down.conv.weight is missing: an encoder that halves nothing")
	}
	switch top := o.Hidden << o.Halvings; mirror[1] {
	case top:
		o.Decoder = "full"
	case top / 2:
		o.Decoder = "lean"
	default:
		return Outline{}, fmt.Errorf("%s is %v: %d channels out (want %d of a full decoder or %d of a lean one)", up, mirror, mirror[1], top, top/2)
	}
	return o, nil
}
