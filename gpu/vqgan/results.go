package vqgan

import (
	"cmp"
	"math"
	"slices"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/nn"
)

// results are what a step leaves for the host: one block, read by one copy when all of the step has run. In floats, each part at a
// multiple of 64:
//
//	sums of squares of the gradients: the model's, the discriminators'
//	for each micro-batch the scalars of its program
//	for each level counts [codes] and sums [codes, dim]
//	for each level the latents that its reservoir takes [picks, dim], and the indices of their codes (int32) [picks]
//
// How many the last are depends on the step; nothing behind them is copied.
type results struct {
	block *nn.Block
	picks *nn.Block // which latents those are, each within its micro-batch (int32)
	host  []float32

	scalars int // floats of a micro-batch's
	fixed   int // floats in front of what depends on the step
	used    int // floats of this step
	levels  []region
	list    []float32 // what picks holds
}

// region is where a level's results lie.
type region struct {
	counts, sums   int
	summed         int // floats of the sums; none without a codebook
	latents, codes int
	first, n       int // of its picks, in the list
}

// Where the sums of squares lie.
const (
	ofModel = iota
	ofJudges
)

func padded(floats int) int { return (floats + 63) / 64 * 64 }

// addResults reserves the blocks, for programs with so many scalars at most. The levels' counts and sums lie in them.
func (s *Session) addResults(scalars int) {
	r := &s.result
	r.scalars = padded(scalars)
	at, picks := padded(2)+(s.o.Batch+s.o.MicroBatch-1)/s.o.MicroBatch*r.scalars, 0
	for _, l := range s.levels {
		p := region{counts: at}
		at += padded(s.c.Codes)
		if p.sums = at; l.book != nil {
			p.summed = s.c.Codes * s.c.Embedding
			at += padded(p.summed)
		}
		r.levels = append(r.levels, p)
	}
	r.fixed = at
	for _, b := range s.books() {
		at += padded(b.slots()*s.c.Embedding) + padded(b.slots())
		picks += b.slots()
	}
	r.block = s.layout.Add("results of a step", nn.Codes, 4*int64(at))
	r.picks = s.layout.Add("latents that are kept of a step", nn.Codes, 4*int64(picks))
	for i, l := range s.levels {
		if l.blocks.Counts.At = r.at(r.levels[i].counts); l.book != nil {
			l.blocks.Sums.At = r.at(r.levels[i].sums)
		}
	}
}

// at is where a float lies.
func (r *results) at(float int) gpu.Ptr { return r.block.At + gpu.Ptr(4*float) }

// clear starts counts and sums over.
func (r *results) clear(e gpu.Engine) {
	from := r.levels[0].counts
	e.Fill(r.at(from), r.fixed-from, 0)
}

// place finds room for what the levels pick of a step, and writes which latents those are.
func (r *results) place(s *Session) {
	r.used, r.list = r.fixed, r.list[:0]
	whole := s.o.MicroBatch * s.cells()
	for i, l := range s.levels {
		p := &r.levels[i]
		p.first, p.n = len(r.list), len(l.picks)
		p.latents = r.used
		p.codes = p.latents + padded(p.n*s.c.Embedding)
		r.used = p.codes + padded(p.n)
		for _, k := range l.picks {
			r.list = append(r.list, math.Float32frombits(uint32(k.latent%whole)))
		}
	}
	if len(r.list) > 0 {
		s.e.Write(r.picks.At, r.list)
	}
}

// take keeps what a program left: the scalars as those of the i-th micro-batch, which begins at a patch, and what the levels pick of it.
func (r *results) take(s *Session, p *program, i, patch int) {
	p.Results(s.e, r.at(padded(2)+i*r.scalars), r.scalars)
	r.pick(s, p, patch, true)
}

// pick keeps the latents that the levels pick of a micro-batch and, where they were quantised, the indices of their codes.
func (r *results) pick(s *Session, p *program, patch int, quantized bool) {
	for i, l := range s.levels {
		find := func(latent int) int {
			n, _ := slices.BinarySearchFunc(l.picks, latent, func(k pick, latent int) int { return cmp.Compare(k.latent, latent) })
			return n
		}
		from, to := find(patch*s.cells()), find((patch+p.n)*s.cells())
		if from == to {
			continue
		}
		of, which := &r.levels[i], r.picks.At+gpu.Ptr(4*(r.levels[i].first+from))
		p.Pick(s.e, p.quantised.inputs[i], r.at(of.latents+from*s.c.Embedding), which, to-from)
		if quantized {
			p.PickCodes(s.e, p.quantised.each[i], r.at(of.codes+from), which, to-from)
		}
	}
}

// read waits for the step and has its results copied.
func (r *results) read(e gpu.Engine) { e.Read(r.host[:r.used], r.block.At) }

// of are the scalars of the i-th micro-batch.
func (r *results) of(i int) []float32 { return r.host[padded(2)+i*r.scalars:][:r.scalars] }

// count is what a step counted of a level's codes, and the sums of their latents.
func (r *results) count(level, codes int) (counts, sums []float32) {
	p := &r.levels[level]
	return r.host[p.counts:][:codes], r.host[p.sums:][:p.summed]
}

// picked are the latents that a level picked, and the indices of their codes.
func (r *results) picked(level, dim int) (latents []float32, code func(i int) int32) {
	p := &r.levels[level]
	return r.host[p.latents:][:p.n*dim], func(i int) int32 { return int32(math.Float32bits(r.host[p.codes+i])) }
}
