package vqgan

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// initSteps is how many optimiser steps redraw the codes from the latents of all batches so far, before they follow their
// own latents: one batch is one corner of a scan, and the encoder still moves fast.
const initSteps = 10

// codebook is the host's half of the quantiser: counts and sums come from the engine once per optimiser step, vectors go
// back. Codes follow their latents by running means (van den Oord et al., 2017, appendix A), as in TATS:
//
//	N ← d·N + (1-d)·counts      z ← d·z + (1-d)·sums
//	e = z / w,  w = (N + 1e-7) / (ΣN + K·1e-7) · ΣN
//
// A code with N below a threshold restarts, in e, z and N, at a latent of the reservoir. Its new N is so far above the threshold that
// unused it falls below it again after ten steps: an idle code doesn't move every step, but soon where the encoder moved
// away from it; and a small N lets it settle fast where it landed.
//
// The reservoir is a sample of latents: uniform over all of them in the first steps, then an eighth of it is replaced every
// step, so that it holds several batches and none that the encoder has long left.
type codebook struct {
	codes, dim int
	vectors    []float32 // e [codes, dim]
	n          []float32 // N [codes]
	sum        []float32 // z [codes, dim]
	pool       []float32 // reservoir [slots, dim]
	filled     int       // slots that hold a latent
	seen       int64     // latents that went by in the first steps
	steps      int       // optimiser steps taken; initSteps at once where codes were loaded

	decay, threshold float64
	seed             uint64
}

// newCodebook is empty: nothing is drawn yet. perStep is the latents of a whole optimiser step.
func newCodebook(codes, dim int, o CodebookOptions, perStep int, seed uint64) *codebook {
	b := &codebook{codes: codes, dim: dim, decay: o.Decay, seed: seed,
		vectors: make([]float32, codes*dim), n: make([]float32, codes), sum: make([]float32, codes*dim),
		pool: make([]float32, max(codes, 1024)*dim)}
	b.threshold = o.Restart * min(1, float64(perStep)/float64(16*codes))
	return b
}

func (b *codebook) slots() int { return len(b.pool) / b.dim }

// fresh is the N of a code that was just placed.
func (b *codebook) fresh() float64 {
	if b.threshold == 0 {
		return 1
	}
	return b.threshold * min(math.E, math.Pow(b.decay, -10))
}

// clear forgets all.
func (b *codebook) clear() {
	for _, s := range [][]float32{b.vectors, b.n, b.sum, b.pool} {
		clear(s)
	}
	b.filled, b.seen, b.steps = 0, 0, 0
}

// pick says that a latent of this step goes to a slot of the reservoir.
type pick struct{ slot, latent int }

// picks chooses what the reservoir takes of a step's latents, in order of the latent. It changes nothing.
func (b *codebook) picks(latents int) []pick {
	r := rand.New(rand.NewPCG(key(b.seed, "reservoir"), uint64(b.steps)))
	if b.steps < initSteps {
		// Algorithm R (Vitter, 1985).
		at := map[int]int{}
		for i := range latents {
			slot := int(b.seen) + i
			if slot >= b.slots() {
				slot = int(r.Int64N(b.seen + int64(i) + 1))
			}
			if slot < b.slots() {
				at[slot] = i
			}
		}
		ps := make([]pick, 0, len(at))
		for slot, latent := range at {
			ps = append(ps, pick{slot, latent})
		}
		slices.SortFunc(ps, func(a, b pick) int { return cmp.Compare(a.latent, b.latent) })
		return ps
	}
	k := min(max(1, b.slots()/8), latents)
	if b.filled < b.slots() {
		k = min(b.slots()-b.filled, latents)
	}
	ps := make([]pick, k)
	for i := range ps {
		// One of each of k equal stretches of the step.
		low, high := i*latents/k, (i+1)*latents/k
		ps[i].latent = low + r.IntN(high-low)
	}
	if b.filled < b.slots() {
		for i := range ps {
			ps[i].slot = b.filled + i
		}
		return ps
	}
	for i, slot := range r.Perm(b.slots())[:k] {
		ps[i].slot = slot
	}
	return ps
}

// take puts the picked latents into the reservoir. vectors holds them in the picks' order; latents is the step's count.
func (b *codebook) take(ps []pick, vectors []float32, latents int) {
	for i, p := range ps {
		copy(b.pool[p.slot*b.dim:][:b.dim], vectors[i*b.dim:])
		b.filled = max(b.filled, p.slot+1)
	}
	if b.steps < initSteps {
		b.seen += int64(latents)
	}
}

// draw puts every code on a latent of the reservoir: different ones, and where there are too few, beside one.
func (b *codebook) draw() {
	r := rand.New(rand.NewPCG(key(b.seed, "draw"), uint64(b.steps)))
	order := r.Perm(b.filled)
	jitter := 0.01 / math.Sqrt(float64(b.dim)) // as in TATS
	for k := range b.codes {
		b.place(k, order[k%b.filled])
		if k >= b.filled {
			for i := range b.dim {
				b.vectors[k*b.dim+i] += float32(jitter * r.NormFloat64())
			}
			b.anchor(k)
		}
	}
}

// place moves a code to a slot's latent.
func (b *codebook) place(k, slot int) {
	copy(b.vectors[k*b.dim:][:b.dim], b.pool[slot*b.dim:])
	b.anchor(k)
}

// anchor makes the running means say what the vector is.
func (b *codebook) anchor(k int) {
	b.n[k] = float32(b.fresh())
	for i := k * b.dim; i < (k+1)*b.dim; i++ {
		b.sum[i] = b.n[k] * b.vectors[i]
	}
}

// step takes one optimiser step's counts and sums, and returns how many codes restarted.
func (b *codebook) step(counts, sums []float32) (restarted int) {
	b.steps++
	if b.steps <= initSteps {
		b.draw()
		return 0
	}
	d := b.decay
	var total float64
	for k, c := range counts {
		b.n[k] = float32(d*float64(b.n[k]) + (1-d)*float64(c))
		total += float64(b.n[k])
	}
	for k := range b.codes {
		w := (float64(b.n[k]) + 1e-7) / (total + float64(b.codes)*1e-7) * total
		for i := k * b.dim; i < (k+1)*b.dim; i++ {
			b.sum[i] = float32(d*float64(b.sum[i]) + (1-d)*float64(sums[i]))
			if w > 0 {
				b.vectors[i] = float32(float64(b.sum[i]) / w)
			}
		}
	}
	if b.threshold == 0 || b.filled == 0 {
		return 0
	}
	var order []int
	for k, n := range b.n {
		if float64(n) >= b.threshold {
			continue
		}
		if order == nil {
			order = rand.New(rand.NewPCG(key(b.seed, "restart"), uint64(b.steps))).Perm(b.filled)
		}
		b.place(k, order[restarted%len(order)])
		restarted++
	}
	return restarted
}

// perplexity is exp of the entropy of the codes' shares; used is how many were used.
func perplexity(counts []float32) (perplexity float64, used int) {
	var total, h float64
	for _, c := range counts {
		total += float64(c)
	}
	for _, c := range counts {
		if c > 0 {
			used++
			p := float64(c) / total
			h -= p * math.Log(p)
		}
	}
	return math.Exp(h), used
}
