package vqgan

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"math"
	"slices"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/nn"
)

// Coder is a model for inference alone, on an engine of its own: weights and programs, nothing that training needs. It is not
// for concurrent use.
//
// Reconstruct runs whole patches. Encode and Decode run the two halves of the model at any size up to a patch, one at a time;
// at the size of a patch Decode of Encode gives the bits of Reconstruct. Arrays are dense, x fastest; sizes are x, y, z.
type Coder struct {
	e gpu.Engine
	c Config
	o CoderOptions

	params      nn.Params
	layout      nn.Layout
	weights     *nn.Block
	books       []nn.Codebook
	vectors     [][]float32 // of the codebooks [codes, embedding]
	fingerprint string

	many, single   *program // Reconstruct; nil where o.Batch is 0
	encode, decode *program // of a whole patch
	recent         []*half  // of other sizes, the last used first
	packed         *program // whose packed weights are in place
	quantised      []float32
	grid           []int32 // codes of one level
}

// half is an encoder or a decoder at one size.
type half struct {
	decoder bool
	size    [3]int
	*program
}

// recentHalves is how many programs of other sizes than a patch are kept. Scans end in few different sizes.
const recentHalves = 8

// CoderOptions are what a Coder needs beside the model's shape and its weights.
type CoderOptions struct {
	Patch       [3]int // voxels x, y, z
	Batch       int    // patches per pass of Reconstruct; 0 is for Encode and Decode alone
	EncodeOnly  bool   // Encode alone, which needs a fraction of the memory; Batch is 0
	MemoryLimit int64  // bytes of the arena; 0 is no limit
}

// PlanCoder says what OpenCoder would reserve. It allocates nothing on the engine. With a *MemoryError it returns the plan too.
func PlanCoder(e gpu.Engine, c Config, o CoderOptions) (*nn.Plan, error) {
	s, err := designCoder(e, c, o)
	if s == nil {
		return nil, err
	}
	p := s.layout.Plan()
	p.Parameters = s.params.Count()
	return p, err
}

// OpenCoder reserves the engine's arena and loads weights and codebook, by the names of a State; with ema the running means of
// the weights. Other arrays are passed over.
func OpenCoder(e gpu.Engine, c Config, weights []Array, ema bool, o CoderOptions) (*Coder, error) {
	s, err := designCoder(e, c, o)
	if err != nil {
		return nil, err
	}
	host, err := s.load(weights, ema)
	if err != nil {
		return nil, err
	}
	if err := e.Reserve(s.layout.Bytes()); err != nil {
		return nil, err
	}
	s.params.Weights = s.weights.At
	e.Write(s.weights.At, host)
	for i, v := range s.vectors {
		e.Write(s.books[i].Codes.At, v)
	}
	if err := e.Sync(); err != nil {
		return nil, fmt.Errorf("weights: %w", err)
	}
	return s, nil
}

// designCoder builds everything but the arena. With a *MemoryError it returns the coder too.
func designCoder(e gpu.Engine, c Config, o CoderOptions) (*Coder, error) {
	if err := c.complete(); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if err := c.checkSize("patch", o.Patch); err != nil {
		return nil, err
	}
	if o.Batch < 0 {
		return nil, fmt.Errorf("batch: %d (want at least 0)", o.Batch)
	}
	if o.EncodeOnly && o.Batch > 0 {
		return nil, fmt.Errorf("batch: %d (want 0 to encode alone)", o.Batch)
	}
	s, err := assembleCoder(e, c, o)
	if err != nil {
		return nil, err
	}
	need := s.layout.Bytes()
	if o.MemoryLimit == 0 || need <= o.MemoryLimit {
		return s, nil
	}
	tight := &MemoryError{Need: need, Limit: o.MemoryLimit, Hint: " (a smaller patch needs less)"}
	if o.Batch > 1 {
		o.Batch = 1
		if one, err := assembleCoder(e, c, o); err == nil {
			tight.Hint = fmt.Sprintf(" (one patch at a time needs %s, a smaller patch less)", gib(one.layout.Bytes()))
		}
	}
	return s, tight
}

func assembleCoder(e gpu.Engine, c Config, o CoderOptions) (*Coder, error) {
	s := &Coder{e: e, c: c, o: o}
	s.books = addBooks(&s.layout, &s.c)
	var err error
	if o.Batch > 0 {
		if s.single, err = reconstruction(e, &s.params, &s.c, s.books, 1, o.Patch); err != nil {
			return nil, err
		}
		if s.many = s.single; o.Batch > 1 {
			if s.many, err = reconstruction(e, &s.params, &s.c, s.books, o.Batch, o.Patch); err != nil {
				return nil, err
			}
		}
	}
	if s.encode, err = s.encoding(o.Patch); err != nil {
		return nil, err
	}
	if s.decode, err = s.decoding(o.Patch); err != nil {
		return nil, err
	}
	s.weights = s.layout.Add("weights", nn.Parameters, s.params.Bytes())
	if s.many != nil {
		s.layout.Bind(s.many.Program)
	}
	if s.many != s.single {
		s.layout.Bind(s.single.Program)
	}
	s.layout.Bind(s.encode.Program)
	if !o.EncodeOnly { // its weights count nevertheless: the fingerprint is the model's
		s.layout.Bind(s.decode.Program)
	}
	return s, nil
}

// encoding builds the program from voxels to codes.
func (s *Coder) encoding(size [3]int) (*program, error) {
	g := nn.NewGraph(&s.params)
	p := &program{n: 1, title: title("encode", 1, size), input: g.Input("input", dims(1, size, 1))}
	p.quantised = quantise(g, &s.c, encoder(g, &s.c, p.input), s.books, 0)
	g.Keep(p.quantised.z)
	return p, p.compile(g, s.e, nn.Options{})
}

// decoding builds the program from quantised latents to voxels.
func (s *Coder) decoding(size [3]int) (*program, error) {
	g := nn.NewGraph(&s.params)
	p := &program{n: 1, title: title("decode", 1, size), input: g.Input("latents", dims(1, s.c.Latents(size), s.c.Embedding))}
	p.y = decoder(g, &s.c, p.input)
	g.Keep(p.y)
	return p, p.compile(g, s.e, nn.Options{})
}

// Config is the model's shape.
func (s *Coder) Config() Config { return s.c }

// Patch is the largest size that Encode and Decode take, and the only one of Reconstruct.
func (s *Coder) Patch() [3]int { return s.o.Patch }

// Downsample is the voxels that a latent stands for along each axis.
func (s *Coder) Downsample() [3]int { return s.c.Downsample }

// Codes is the size of a codebook, or how many codes the levels of fsq make.
func (s *Coder) Codes() int { return s.c.Codes }

// Depth is how many codes a latent has.
func (s *Coder) Depth() int { return s.c.Depth() }

// Channels is the length of a latent.
func (s *Coder) Channels() int { return s.c.Embedding }

// Tileable says that no voxel's result depends on what lies farther away than Fields: the norm is that of channels, not
// GroupNorm.
func (s *Coder) Tileable() bool { return s.c.Norm == "channel" }

// Fields are how far codes and voxels see along each axis, to the farther side, where Tileable: codes that many voxels around
// those which they stand for, rounded up to the downsampling, and voxels that many latents around their own.
func (s *Coder) Fields() (encoder, decoder [3]int) { return s.c.halos() }

func (c *Config) halos() (encoder, decoder [3]int) {
	e, d := c.EncoderField(), c.DecoderField()
	for a, f := range c.Downsample {
		encoder[a] = (max(e[a][0], e[a][1]) + f - 1) / f * f
		decoder[a] = max(d[a][0], d[a][1])
	}
	return encoder, decoder
}

// Fingerprint is the hex SHA-256 of what codes and reconstructions depend on: the weights in use, the codebooks and the shape of
// the model. Running means that another file holds as raw weights have the same.
func (s *Coder) Fingerprint() string { return s.fingerprint }

// load finds weights and codebooks among arrays and takes their fingerprint. It returns the block of weights.
func (s *Coder) load(arrays []Array, ema bool) ([]float32, error) {
	in, err := index(arrays)
	if err != nil {
		return nil, err
	}
	all, prefix := s.params.All(), ""
	if ema {
		if prefix = prefixAverage; in.has(all[0].Name) && !in.has(prefix+all[0].Name) {
			return nil, errors.New("weights: there are no running means of the weights (ema was off), only raw ones")
		}
	}
	var faults []string
	h := sha256.New()
	fmt.Fprintf(h, "flowrun vqgan 1\ndownsample %v\nnorm %s\npadding %s\n", s.c.Downsample, s.c.Norm, s.c.Padding)
	if s.c.Norm == "group" {
		fmt.Fprintf(h, "groups %d\n", s.c.Groups)
	}
	if k := s.c.quantizer(); k != EMA { // the first, and for a while the only one, has none
		fmt.Fprintf(h, "quantizer %s %v\n", k, s.c.Levels)
	}
	host := make([]float32, s.params.Floats())
	// By name: the layout's order depends on which program is built first.
	for _, p := range slices.SortedFunc(slices.Values(all), func(a, b *nn.Param) int { return cmp.Compare(a.Name, b.Name) }) {
		if data := in.get(prefix+p.Name, fileShape(p), &faults); data != nil {
			fromFile(p, host[p.Off/4:], data)
			digest(h, p.Name, fileShape(p), data)
		}
	}
	shape := []int{s.c.Codes, s.c.Embedding}
	for i := range s.c.Books() {
		name := nameBook(i) + suffixVectors
		vectors := in.get(name, shape, &faults)
		digest(h, name, shape, vectors)
		s.vectors = append(s.vectors, slices.Clone(vectors))
	}
	if err := faulty("weights", faults); err != nil {
		return nil, err
	}
	for i, v := range s.vectors {
		if err := s.c.CheckVectors(nameBook(i), v); err != nil {
			return nil, fmt.Errorf("weights: %w", err)
		}
	}
	s.fingerprint = hex.EncodeToString(h.Sum(nil))
	return host, nil
}

// digest adds an array: its name and shape as a line, its floats little-endian.
func digest(h hash.Hash, name string, shape []int, data []float32) {
	fmt.Fprintf(h, "%s %v\n", name, shape)
	b := make([]byte, 0, 4096)
	for part := range slices.Chunk(data, cap(b)/4) {
		b = b[:0]
		for _, x := range part {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
		}
		_, _ = h.Write(b)
	}
}

// use makes a program ready to run.
func (s *Coder) use(p *program) {
	if s.packed != p {
		p.Pack(s.e)
		s.packed = p
	}
}

// at is the encoder or the decoder at a size.
func (s *Coder) at(decoder bool, size [3]int) (*program, error) {
	build, whole := s.encoding, s.encode
	if decoder {
		build, whole = s.decoding, s.decode
	}
	if size == s.o.Patch {
		return whole, nil
	}
	i := slices.IndexFunc(s.recent, func(h *half) bool { return h.decoder == decoder && h.size == size })
	if i >= 0 {
		h := s.recent[i]
		s.recent = slices.Insert(slices.Delete(s.recent, i, i+1), 0, h)
		return h.program, nil
	}
	p, err := build(size)
	if err != nil {
		return nil, err
	}
	if region := s.layout.Bytes() - s.layout.Size(); p.Bytes() > region {
		return nil, fmt.Errorf("%s needs %s of memory, a whole patch %s", p.Name, gib(p.Bytes()), gib(region))
	}
	p.Bind(gpu.Ptr(s.layout.Size()))
	s.recent = slices.Insert(s.recent, 0, &half{decoder, size, p})
	s.recent = s.recent[:min(len(s.recent), recentHalves)]
	return p, nil
}

// Reconstruct runs the model on n patches src [n, D, H, W] and writes dst, of the same shape, and codes [n, z, y, x, depth] where it
// isn't nil. dst may be src. A patch's result doesn't depend on its neighbours in the batch.
func (s *Coder) Reconstruct(dst, src []float32, n int, codes []int32) error {
	voxels, cells := product(s.o.Patch), product(s.c.Latents(s.o.Patch))*s.c.Depth()
	switch {
	case s.many == nil:
		return errors.New("reconstruct: the coder was opened for codes alone (batch is 0)")
	case n < 1 || len(src) != n*voxels || len(dst) != len(src) || codes != nil && len(codes) != n*cells:
		return fmt.Errorf("reconstruct: %d patches, %d voxels to %d, %d codes (want %d voxels and %d codes a patch)", n, len(src),
			len(dst), len(codes), voxels, cells)
	}
	reconstruct(s.e, s.many, s.single, s.use, dst, src, n, codes, &s.grid)
	if err := s.e.Sync(); err != nil {
		return fmt.Errorf("reconstruct: %w", err)
	}
	return nil
}

// Profile times the ops of one pass of Reconstruct over src, n patches: 1, or CoderOptions.Batch, in order.
func (s *Coder) Profile(src []float32, n int) ([]nn.Timing, error) {
	p := s.many
	if n == 1 {
		p = s.single
	}
	if p == nil || n != p.n || len(src) != n*product(s.o.Patch) {
		return nil, fmt.Errorf("profile: %d patches, %d voxels (want 1 or %d patches of %d)", n, len(src), s.o.Batch, product(s.o.Patch))
	}
	s.use(p)
	p.Write(s.e, p.input, src)
	return p.Profile(s.e, nn.Call{})
}

// Encode finds the codes of src [D, H, W], of any size up to a patch that is a multiple of the downsampling: idx [z, y, x, depth], and
// latents before and after quantisation [z, y, x, channel] where those aren't nil. Those before are on the scale of those after, so that
// Decode takes either: of length 1 with cosine, within fsq's bounds.
func (s *Coder) Encode(idx []int32, latents, quantised, src []float32, size [3]int) error {
	if err := s.checkSize(size); err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	cells := product(s.c.Latents(size))
	floats := cells * s.c.Embedding
	if len(src) != product(size) || len(idx) != cells*s.c.Depth() || latents != nil && len(latents) != floats ||
		quantised != nil && len(quantised) != floats {
		return fmt.Errorf("encode: %d voxels to %d codes, %d and %d latents (want %d to %d, %d)", len(src), len(idx), len(latents),
			len(quantised), product(size), cells*s.c.Depth(), floats)
	}
	p, err := s.at(false, size)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	s.use(p)
	p.Write(s.e, p.input, src)
	p.Run(s.e, &nn.Call{})
	p.codes(s.e, idx, &s.grid)
	if latents != nil {
		p.Read(s.e, p.quantised.z, latents)
	}
	if err := s.e.Sync(); err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if latents != nil {
		s.c.bound(latents)
	}
	if quantised != nil {
		return s.c.lookup(quantised, idx, s.vectors)
	}
	return nil
}

// Decode writes dst [D, H, W], of any size up to a patch that is a multiple of the downsampling, from its codes idx [z, y, x, depth]
// or, where it isn't nil, from quantised [z, y, x, channel], which needn't be vectors of the codebook.
func (s *Coder) Decode(dst []float32, idx []int32, quantised []float32, size [3]int) error {
	if s.o.EncodeOnly {
		return errors.New("decode: the coder was opened to encode alone")
	}
	if err := s.checkSize(size); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	cells := product(s.c.Latents(size))
	floats := cells * s.c.Embedding
	if len(dst) != product(size) || quantised == nil && len(idx) != cells*s.c.Depth() || quantised != nil && len(quantised) != floats {
		return fmt.Errorf("decode: %d codes or %d latents to %d voxels (want %d or %d to %d)", len(idx), len(quantised), len(dst),
			cells*s.c.Depth(), floats, product(size))
	}
	if quantised == nil {
		quantised = slices.Grow(s.quantised[:0], floats)[:floats]
		s.quantised = quantised
		if err := s.c.lookup(quantised, idx, s.vectors); err != nil {
			return fmt.Errorf("decode: %w", err)
		}
	}
	p, err := s.at(true, size)
	if err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	s.use(p)
	p.Write(s.e, p.input, quantised)
	p.Run(s.e, &nn.Call{})
	p.Read(s.e, p.y, dst)
	if err := s.e.Sync(); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	return nil
}

func (s *Coder) checkSize(size [3]int) error {
	if err := s.c.checkSize("size", size); err != nil {
		return err
	}
	for a, n := range size {
		if n > s.o.Patch[a] {
			return fmt.Errorf("size: %d along %c is larger than the patch, %d", n, "xyz"[a], s.o.Patch[a])
		}
	}
	return nil
}

func product(n [3]int) int { return n[0] * n[1] * n[2] }
