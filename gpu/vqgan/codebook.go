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

// codebook is the host's half of a quantiser with one: counts and sums come from the engine once per optimiser step, vectors go
// back. Codes follow their latents by running means (van den Oord et al., 2017, appendix A), as in TATS:
//
//	N ← d·N + (1-d)·counts      z ← d·z + (1-d)·sums
//	e = z / w,  w = (N + 1e-7) / (ΣN + K·1e-7) · ΣN
//
// With unit, latents have length 1 and so have codes: e = z/‖z‖.
//
// A code with N below a threshold restarts, in e, z and N, at a latent of the reservoir, drawn in proportion to its squared
// distance from its code (as k-means++ does; Arthur and Vassilvitskii, 2007), and no two codes nearly at the same place: much
// of a CT is air, whose latents are all alike, and a second code there would never be used. Its new N is so far above the
// threshold that unused it falls below it again after ten steps: an idle code doesn't move every step, but soon where the
// encoder moved away from it; and a small N lets it settle fast where it landed.
//
// The reservoir is a sample of latents: uniform over all of them in the first steps, then a quarter of it is replaced every
// step, so that it holds several batches and none that the encoder has long left.
type codebook struct {
	codes, dim int
	unit       bool
	vectors    []float32 // e [codes, dim]
	n          []float32 // N [codes]
	sum        []float32 // z [codes, dim]
	pool       []float32 // reservoir [slots, dim]
	far        []float32 // squared distance of each of its latents from its code when it came in [slots]
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
		pool: make([]float32, reservoir(codes)*dim), far: make([]float32, reservoir(codes))}
	b.threshold = o.Restart * min(1, float64(perStep)/float64(4*codes))
	return b
}

// reservoir is how many latents the codebook keeps.
func reservoir(codes int) int { return max(codes, 1024) }

func (b *codebook) slots() int { return len(b.far) }

// fresh is the N of a code that was just placed.
func (b *codebook) fresh() float64 {
	if b.threshold == 0 {
		return 1
	}
	return b.threshold * min(math.E, math.Pow(b.decay, -10))
}

// clear forgets all.
func (b *codebook) clear() {
	for _, s := range [][]float32{b.vectors, b.n, b.sum, b.pool, b.far} {
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
	k := min(b.slots()/4, latents)
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

// take puts the picked latents into the reservoir. vectors and far are in the picks' order; latents is the step's count.
func (b *codebook) take(ps []pick, vectors, far []float32, latents int) {
	for i, p := range ps {
		copy(b.pool[p.slot*b.dim:][:b.dim], vectors[i*b.dim:])
		b.far[p.slot] = far[i]
		b.filled = max(b.filled, p.slot+1)
	}
	if b.steps < initSteps {
		b.seen += int64(latents)
	}
}

// distance is the squared distance of a latent from a code.
func (b *codebook) distance(z []float32, code int32) float32 {
	var sum float64
	for i, x := range b.vectors[int(code)*b.dim:][:b.dim] {
		d := float64(z[i]) - float64(x)
		sum += d * d
	}
	return float32(sum)
}

// draw puts every code on a latent of the reservoir; where it has too few that differ, beside one.
func (b *codebook) draw() {
	r := rand.New(rand.NewPCG(key(b.seed, "draw"), uint64(b.steps)))
	order := r.Perm(b.filled)
	apart := b.apart()
	k := 0
	for _, slot := range order {
		if k < b.codes && apart.take(b.pool[slot*b.dim:][:b.dim]) {
			b.place(k, slot)
			k++
		}
	}
	for i := 0; k < b.codes; i, k = i+1, k+1 {
		b.place(k, order[i%b.filled])
		for j := range b.dim {
			b.vectors[k*b.dim+j] += float32(r.NormFloat64() / apart.per[j])
		}
		if b.unit {
			project(b.vectors[k*b.dim:][:b.dim], b.vectors[k*b.dim:][:b.dim])
		}
		b.anchor(k)
	}
}

// restart moves the codes that fell below the threshold and returns how many it moved. Where the reservoir runs out, the rest wait.
func (b *codebook) restart() (restarted int) {
	var dead []int
	for k, n := range b.n {
		if float64(n) < b.threshold {
			dead = append(dead, k)
		}
	}
	if len(dead) == 0 {
		return 0
	}
	// Weighted sampling without replacement (Efraimidis and Spirakis, 2006): the smallest of exponential variates of rate far.
	r := rand.New(rand.NewPCG(key(b.seed, "restart"), uint64(b.steps)))
	type turn struct {
		at   float64
		slot int
	}
	order := make([]turn, 0, b.filled)
	for slot := range b.filled {
		if x := r.ExpFloat64(); b.far[slot] > 0 {
			order = append(order, turn{x / float64(b.far[slot]), slot})
		}
	}
	slices.SortFunc(order, func(a, b turn) int { return cmp.Or(cmp.Compare(a.at, b.at), a.slot-b.slot) })
	apart := b.apart()
	for _, o := range order {
		if restarted == len(dead) {
			break
		}
		if apart.take(b.pool[o.slot*b.dim:][:b.dim]) {
			b.place(dead[restarted], o.slot)
			restarted++
		}
	}
	return restarted
}

// cellsPerDeviation is how finely latents are told apart.
const cellsPerDeviation = 16

// cells tells latents apart by a grid whose side is a share of the reservoir's standard deviation along each axis.
type cells struct {
	per   []float64 // cells per unit
	taken map[uint64]bool
}

func (b *codebook) apart() *cells {
	c := &cells{per: make([]float64, b.dim), taken: map[uint64]bool{}}
	for j := range b.dim {
		var sum, squares float64
		for slot := range b.filled {
			x := float64(b.pool[slot*b.dim+j])
			sum += x
			squares += x * x
		}
		n := float64(max(1, b.filled))
		c.per[j] = cellsPerDeviation / math.Sqrt(max(squares/n-sum/n*sum/n, 1e-12))
	}
	return c
}

// take reports whether a latent's cell was free, and takes it.
func (c *cells) take(z []float32) bool {
	h := uint64(0xcbf29ce484222325)
	for j, x := range z {
		h = (h ^ uint64(int64(math.Floor(float64(x)*c.per[j])))) * 0x100000001b3
		h ^= h >> 29
	}
	if c.taken[h] {
		return false
	}
	c.taken[h] = true
	return true
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
			if w > 0 && !b.unit {
				b.vectors[i] = float32(float64(b.sum[i]) / w)
			}
		}
		if b.unit {
			project(b.vectors[k*b.dim:][:b.dim], b.sum[k*b.dim:][:b.dim])
		}
	}
	if b.threshold == 0 || b.filled == 0 {
		return 0
	}
	return b.restart()
}

// project writes x/‖x‖ to y; it leaves y as it is where x has no direction. y may be x.
func project(y, x []float32) {
	sum := 0.0
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	if n := math.Sqrt(sum); n > 1e-12 {
		for i, v := range x {
			y[i] = float32(float64(v) / n)
		}
	}
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
