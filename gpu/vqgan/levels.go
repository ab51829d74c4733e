package vqgan

import (
	"fmt"
	"math"
	"slices"

	"github.com/flowrun/flowrun/gpu/nn"
)

// level is one code of a session's latents: a codebook, its blocks, and what a step counts of it.
type level struct {
	book   *codebook // nil with fsq
	blocks nn.Codebook

	used    []float32 // counts
	totals  []float32 // sums
	harvest harvest
}

// harvest is what the reservoir will take of a step's latents, if the step is taken.
type harvest struct {
	picks   []pick
	vectors []float32 // of the picks so far
	far     []float32 // their squared distances from their codes
	next    int       // the first pick that is still to come
}

// addLevels reserves the quantiser's blocks.
func (s *Session) addLevels() {
	floats := 4 * int64(s.c.Codes)
	if s.c.Books() == 0 {
		s.levels = []*level{{blocks: nn.Codebook{Counts: s.layout.Add("code counts", nn.Codes, floats)}, used: make([]float32, s.c.Codes)}}
		return
	}
	for i, k := range addBooks(&s.layout, &s.c) {
		k.Counts = s.layout.Add(nameBook(i)+" counts", nn.Codes, floats)
		k.Sums = s.layout.Add(nameBook(i)+" sums", nn.Codes, floats*int64(s.c.Embedding))
		s.levels = append(s.levels, &level{blocks: k})
	}
}

// codebooks are the levels' blocks in the arena.
func (s *Session) codebooks() []nn.Codebook {
	var books []nn.Codebook
	for _, l := range s.levels {
		books = append(books, l.blocks)
	}
	return books
}

// books are the session's codebooks: none with fsq.
func (s *Session) books() []*codebook {
	var all []*codebook
	for _, l := range s.levels {
		if l.book != nil {
			all = append(all, l.book)
		}
	}
	return all
}

// newBooks makes empty codebooks, with randomness of their own.
func (s *Session) newBooks() {
	for i := range s.c.Books() {
		seed := s.o.Seed
		if i > 0 {
			seed = key(seed, nameBook(i))
		}
		b := newCodebook(s.c.Codes, s.c.Embedding, s.o.Codebook, s.o.Batch*s.cells(), seed)
		b.unit = s.c.Quantizer == Cosine
		s.levels[i].book = b
	}
}

// writeBooks brings the codes' vectors to the engine.
func (s *Session) writeBooks() {
	for _, l := range s.levels {
		if l.book != nil {
			s.e.Write(l.blocks.Codes.At, l.book.vectors)
		}
	}
}

// clearBooks forgets all codes.
func (s *Session) clearBooks() {
	for _, b := range s.books() {
		b.clear()
	}
	s.writeBooks()
}

// unborn reports whether no code was ever drawn.
func (s *Session) unborn() bool {
	return slices.ContainsFunc(s.books(), func(b *codebook) bool { return b.steps == 0 })
}

// count starts a step's counts and sums over, and chooses what the reservoirs take of n patches; with fresh they have them already.
func (s *Session) count(n int, fresh bool) {
	for _, l := range s.levels {
		s.e.Fill(l.blocks.Counts.At, s.c.Codes, 0)
		if l.book == nil {
			continue
		}
		s.e.Fill(l.blocks.Sums.At, s.c.Codes*s.c.Embedding, 0)
		if l.harvest = (harvest{vectors: l.harvest.vectors[:0], far: l.harvest.far[:0]}); !fresh {
			l.harvest.picks = l.book.picks(n * s.cells())
		}
	}
}

// counted reads counts and sums.
func (s *Session) counted() {
	for _, l := range s.levels {
		s.e.Read(l.used, l.blocks.Counts.At)
		if l.book != nil {
			s.e.Read(l.totals, l.blocks.Sums.At)
		}
	}
}

// usage is the perplexity of a step's codes and how many were used: with two codebooks the geometric mean of their perplexities, which
// the collapse of either brings down, and the sum.
func (s *Session) usage() (all float64, used int) {
	all = 1
	for _, l := range s.levels {
		p, n := perplexity(l.used)
		all *= p
		used += n
	}
	return math.Pow(all, 1/float64(len(s.levels))), used
}

// follow moves the codebooks by what a step of n patches counted, and returns how many codes restarted.
func (s *Session) follow(n int) (restarted int) {
	for _, l := range s.levels {
		if l.book == nil {
			continue
		}
		if h := &l.harvest; len(h.picks) > 0 {
			l.book.take(h.picks, h.vectors, h.far, n*s.cells())
		}
		restarted += l.book.step(l.used, l.totals)
	}
	s.writeBooks()
	return restarted
}

// firstCodes draws the codes that the very first step quantises with: each codebook's from what it is to quantise, which of residues
// the codebook before says.
func (s *Session) firstCodes(input []float32, n int) error {
	for i, l := range s.levels {
		l.harvest = harvest{picks: l.book.picks(n * s.cells())}
		s.passes(n, plain, func(p *program, at int) {
			p.Write(s.e, p.input, input[at*s.voxels():(at+p.n)*s.voxels()])
			p.RunTo(s.e, &s.call, p.quantised.inputs[i])
			s.gather(p, i, at, false)
		})
		if err := s.e.Sync(); err != nil {
			return fmt.Errorf("step 1: %w", err)
		}
		for _, x := range l.harvest.vectors {
			if !finite(float64(x)) {
				return &NonFiniteError{Step: s.step + 1, What: "a latent"}
			}
		}
		l.book.take(l.harvest.picks, l.harvest.vectors, l.harvest.far, n*s.cells())
		l.book.draw()
		s.e.Write(l.blocks.Codes.At, l.book.vectors)
	}
	return nil
}

// gather reads the chosen latents of a micro-batch that ran, as the i-th codebook quantises them, and how far from their codes they are
// if they were quantised.
func (s *Session) gather(p *program, i, at int, quantized bool) {
	l := s.levels[i]
	h := &l.harvest
	first, end, dim := at*s.cells(), (at+p.n)*s.cells(), s.c.Embedding
	if h.next == len(h.picks) || h.picks[h.next].latent >= end {
		return
	}
	p.Read(s.e, p.quantised.inputs[i], s.latents[:p.n*s.latentLen()])
	nearest := s.nearest[:p.n*s.cells()]
	if quantized {
		p.Codes(s.e, p.quantised.each[i], nearest)
	}
	for ; h.next < len(h.picks) && h.picks[h.next].latent < end; h.next++ {
		at := h.picks[h.next].latent - first
		z, far := s.latents[at*dim:][:dim], float32(1)
		if quantized {
			far = l.book.distance(z, nearest[at])
		}
		h.vectors, h.far = append(h.vectors, z...), append(h.far, far)
	}
}
