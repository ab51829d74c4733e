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

	used   []float32 // counts of a step, once they are known
	totals []float32 // sums
	picks  []pick    // what the reservoir will take of a step's latents, if the step is taken
	far    []float32 // squared distances of those from their codes
}

// addLevels reserves the quantiser's blocks. Counts and sums are among the results of a step, which are placed later.
func (s *Session) addLevels() {
	for _, k := range addBooks(&s.layout, &s.c) {
		if k.Counts = new(nn.Block); s.c.Books() > 0 {
			k.Sums = new(nn.Block)
		}
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
	for i, l := range s.levels {
		if l.book == nil {
			continue
		}
		if latents, code := s.result.picked(i, s.c.Embedding); len(l.picks) > 0 {
			l.far = l.far[:0]
			for j := range l.picks {
				l.far = append(l.far, l.book.distance(latents[j*s.c.Embedding:], code(j)))
			}
			l.book.take(l.picks, latents, l.far, n*s.cells())
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
		for _, l := range s.levels {
			l.picks = nil
		}
		l.picks = l.book.picks(n * s.cells())
		s.result.place(s)
		s.passes(n, plain, func(p *program, at int) {
			p.Write(s.e, p.input, input[at*s.voxels():(at+p.n)*s.voxels()])
			p.RunTo(s.e, &s.call, p.quantised.inputs[i])
			s.result.pick(s, p, at, false)
		})
		s.result.read(s.e)
		if err := s.e.Sync(); err != nil {
			return fmt.Errorf("step 1: %w", err)
		}
		latents, _ := s.result.picked(i, s.c.Embedding)
		for _, x := range latents {
			if !finite(float64(x)) {
				return &NonFiniteError{Step: s.step + 1, What: "a latent"}
			}
		}
		l.book.take(l.picks, latents, slices.Repeat([]float32{1}, len(l.picks)), n*s.cells())
		l.book.draw()
		s.e.Write(l.blocks.Codes.At, l.book.vectors)
		l.picks = nil
	}
	return nil
}
