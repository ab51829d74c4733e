package vqgan

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/nn"
)

// The quantisers (Config.Quantizer; "" is EMA).
//
//	ema       q = the nearest vector of a codebook, which follows its latents (van den Oord et al., 2017)
//	cosine    u = z/‖z‖, q = the nearest of unit vectors, which is that of the smallest angle (ViT-VQGAN; Yu et al., 2022)
//	fsq       q = each channel bounded and rounded to a level, gpu.Scalar (Mentzer et al., 2023)
//	residual  q = q₁ + q₂, q₁ the nearest of one codebook to z, q₂ that of another to z - q₁ (RQ-VAE with depth 2; Lee et al., 2022)
//
// Gradients go straight through from q to z (to u; of fsq through the bound), and commitment is that of each codebook to what it
// quantised, added up. Of vectors that are equally near the lowest code is taken; fsq rounds halves to even.
const (
	EMA      = "ema"
	Cosine   = "cosine"
	FSQ      = "fsq"
	Residual = "residual"
)

func (c *Config) quantizer() string {
	if c.Quantizer == "" {
		return EMA
	}
	return c.Quantizer
}

// Depth is how many codes a latent has.
func (c *Config) Depth() int {
	if c.Quantizer == Residual {
		return 2
	}
	return 1
}

// Books is how many codebooks there are: none with fsq.
func (c *Config) Books() int {
	if c.Quantizer == FSQ {
		return 0
	}
	return c.Depth()
}

// maxCodes bounds the product of fsq's levels, as the key codes is bounded.
const maxCodes = 1 << 20

// checkQuantizer is what Check says of the quantiser's keys.
func (c *Config) checkQuantizer() error {
	switch c.quantizer() {
	case EMA, Cosine, Residual:
		if len(c.Levels) > 0 {
			return fmt.Errorf("levels: %v are those of quantizer: fsq, but it is %s", c.Levels, c.quantizer())
		}
		return nil
	case FSQ:
	default:
		return fmt.Errorf("quantizer: %q (want %s, %s, %s or %s)", c.Quantizer, EMA, Cosine, FSQ, Residual)
	}
	if len(c.Levels) == 0 {
		return errors.New("levels: quantizer: fsq wants some, such as levels: [8, 5, 5, 5]")
	}
	codes := 1
	for _, n := range c.Levels {
		if n < 2 {
			return fmt.Errorf("levels: %d (want at least 2)", n)
		}
		if codes > maxCodes/n {
			return fmt.Errorf("levels: %v make more than %d codes", c.Levels, maxCodes)
		}
		codes *= n
	}
	return nil
}

// Settle takes what fsq's levels say of embedding and codes: their number and their product. It is an error if one of the two was
// given and differs; given nil takes what isn't 0 for given. c passed Check.
func (c *Config) Settle(given func(key string) bool) error {
	if c.Quantizer != FSQ {
		return nil
	}
	codes := 1
	for _, n := range c.Levels {
		codes *= n
	}
	for _, x := range []struct {
		key  string
		at   *int
		want int
		what string
	}{{"embedding", &c.Embedding, len(c.Levels), "there are"}, {"codes", &c.Codes, codes, "their product is"}} {
		if *x.at != x.want && (given == nil && *x.at != 0 || given != nil && given(x.key)) {
			return fmt.Errorf("%s: %d, but levels are %v: %s %d; leave it out", x.key, *x.at, c.Levels, x.what, x.want)
		}
		*x.at = x.want
	}
	return nil
}

// scalar is fsq's.
func (c *Config) scalar() gpu.Scalar { return gpu.Scalar{Levels: c.Levels} }

// nameBook is a codebook's name in files: that of TATS, and codebook2 for that of residues.
func nameBook(i int) string {
	if i == 0 {
		return "codebook"
	}
	return fmt.Sprintf("codebook%d", i+1)
}

// quantised is what a quantiser adds to a graph.
type quantised struct {
	z      *nn.Value      // what is quantised: latents; of length 1 with cosine
	q      *nn.Value      // what goes to the decoder
	each   []nn.Quantized // for each code of a latent
	inputs []*nn.Value    // what each of them quantises
}

// quantise adds the quantiser. books are the codebooks' blocks; of fsq one with no more than counts, which may be nil.
func quantise(g *nn.Graph, c *Config, z *nn.Value, books []nn.Codebook, commitment float64) quantised {
	x := quantised{z: z}
	if c.quantizer() == FSQ {
		one := g.Round("levels", z, c.scalar(), books[0].Counts)
		x.q, x.each, x.inputs = one.Q, []nn.Quantized{one}, []*nn.Value{z}
		return x
	}
	if c.quantizer() == Cosine {
		x.z = g.Unit("unit", z)
	}
	rest := x.z
	for i, k := range books {
		if k.Second = i > 0; k.Second {
			rest = g.Residue("residue", rest, x.q)
		}
		one := g.Quantize(nameBook(i), rest, k, commitment)
		x.each, x.inputs = append(x.each, one), append(x.inputs, rest)
		if x.q = one.Q; i > 0 {
			x.q = g.Add("quantised", x.each[i-1].Q, one.Q)
			g.Wide(x.q)
		}
	}
	return x
}

// keep holds all that training or a reader wants of it.
func (x *quantised) keep(g *nn.Graph) {
	for _, v := range x.inputs {
		g.Keep(v)
	}
}

// codes reads the codes of all latents, [latent, depth]. scratch is reused where there are several of a latent.
func (p *program) codes(e gpu.Engine, dst []int32, scratch *[]int32) {
	depth := len(p.quantised.each)
	if depth == 1 {
		p.Codes(e, p.quantised.each[0], dst)
		return
	}
	n := len(dst) / depth
	one := slices.Grow((*scratch)[:0], n)[:n]
	*scratch = one
	for i, k := range p.quantised.each {
		p.Codes(e, k, one)
		for j, code := range one {
			dst[j*depth+i] = code
		}
	}
}

// lookup writes the vectors that codes [latent, depth] stand for: sums of the books' vectors; with fsq no book is wanted. They have the
// bits of the graph's.
func (c *Config) lookup(dst []float32, codes []int32, books [][]float32) error {
	dim, depth := c.Embedding, c.Depth()
	for i, k := range codes {
		if k < 0 || int(k) >= c.Codes {
			return fmt.Errorf("code %d is %d (the codebook has %d)", i, k, c.Codes)
		}
		to := dst[i/depth*dim:][:dim]
		switch {
		case c.Quantizer == FSQ:
			rest := int(k)
			for j, n := range c.Levels {
				to[j] = float32(float64(rest%n-n/2) / float64(n/2))
				rest /= n
			}
		case i%depth == 0:
			copy(to, books[0][int(k)*dim:])
		default:
			for j, x := range books[i%depth][int(k)*dim:][:dim] {
				to[j] += x
			}
		}
	}
	return nil
}

// CheckVectors finds vectors [codes, embedding] of a codebook (codebook, codebook2) that aren't of length 1 where those of latents are.
func (c *Config) CheckVectors(book string, vectors []float32) error {
	const off = 1e-3
	if c.Quantizer != Cosine {
		return nil
	}
	for k := range len(vectors) / c.Embedding {
		sum := 0.0
		for _, x := range vectors[k*c.Embedding:][:c.Embedding] {
			sum += float64(x) * float64(x)
		}
		if n := math.Sqrt(sum); n > 0 && math.Abs(n-1) > off { // 0: not drawn yet
			return fmt.Errorf("%s: code %d has length %.4g (want 1, as quantizer: cosine has)", book+suffixVectors, k, n)
		}
	}
	return nil
}

// bound brings fsq's latents to the scale of what they are rounded to, in place: gpu.Scalar's b over L div 2. Other latents are on it.
func (c *Config) bound(latents []float32) {
	if c.Quantizer != FSQ {
		return
	}
	for j, n := range c.Levels {
		half, offset, shift := float64(n-1)*1.001/2, 0.0, 0.0
		if n%2 == 0 {
			offset = 0.5
			shift = math.Atanh(offset / half)
		}
		for i := j; i < len(latents); i += len(c.Levels) {
			latents[i] = float32((math.Tanh(float64(latents[i])+shift)*half - offset) / float64(n/2))
		}
	}
}

// addBooks reserves the codebooks; with fsq it gives one that has nothing.
func addBooks(layout *nn.Layout, c *Config) []nn.Codebook {
	if c.Books() == 0 {
		return make([]nn.Codebook, 1)
	}
	var books []nn.Codebook
	for i := range c.Books() {
		books = append(books, nn.Codebook{Quantizer: gpu.Quantizer{Codes: c.Codes, Dim: c.Embedding},
			Codes: layout.Add(nameBook(i), nn.Codes, 4*int64(c.Codes)*int64(c.Embedding))})
	}
	return books
}
