package metrics

import (
	"fmt"
	"math"
	"slices"
)

// Usage is a histogram of the codes that a pass over the data chose.
type Usage struct {
	counts []int64
	total  int64
}

// NewUsage counts codes 0 ≤ c < codes.
func NewUsage(codes int) *Usage { return &Usage{counts: make([]int64, codes)} }

// Add counts codes; one outside the codebook is an error, and those before it are counted.
func (u *Usage) Add(codes []int32) error {
	for i, c := range codes {
		if c < 0 || int(c) >= len(u.counts) {
			return fmt.Errorf("code %d of %d is %d (want 0..%d)", i, len(codes), c, len(u.counts)-1)
		}
		u.counts[c]++
		u.total++
	}
	return nil
}

// Entropy is -Σ p·log2(p) over the shares p of the codes, in bits a code: what a code costs at least when codes are
// stored one by one. It is 0 before any code was added.
func (u *Usage) Entropy() float64 { return u.nats() / math.Ln2 }

// Perplexity is exp(-Σ p·ln p) over the shares p of the codes: how many codes, used evenly, would say as much. It is
// between 1 and the size of the codebook, and 0 before any code was added.
func (u *Usage) Perplexity() float64 {
	if u.total == 0 {
		return 0
	}
	return math.Exp(u.nats())
}

func (u *Usage) nats() (entropy float64) {
	for _, n := range u.counts {
		if n > 0 {
			p := float64(n) / float64(u.total)
			entropy -= p * math.Log(p)
		}
	}
	return entropy
}

// Share is the part of the codebook that was used at least once, in [0, 1].
func (u *Usage) Share() float64 {
	var used int
	for _, n := range u.counts {
		if n > 0 {
			used++
		}
	}
	return float64(used) / float64(max(1, len(u.counts)))
}

// Total is the number of codes added.
func (u *Usage) Total() int64 { return u.total }

// Join adds the codes of another histogram of a codebook of the same size.
func (u *Usage) Join(o *Usage) {
	for c, n := range o.counts {
		u.counts[c] += n
	}
	u.total += o.total
}

// Counts is how often each code was added. It is the caller's.
func (u *Usage) Counts() []int64 { return slices.Clone(u.counts) }
