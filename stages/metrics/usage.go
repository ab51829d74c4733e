package metrics

import (
	"fmt"
	"math"
	"slices"
)

// Usage is a histogram of the codes that a pass over the data chose, one for each codebook.
type Usage struct {
	codes  int     // in a codebook
	counts []int64 // [codebook, code]
	total  int64   // latents
}

// NewUsage counts codes 0 ≤ c < codes of latents that have depth codes each, of as many codebooks.
func NewUsage(codes, depth int) *Usage {
	return &Usage{codes: codes, counts: make([]int64, codes*depth)}
}

func (u *Usage) depth() int { return len(u.counts) / max(1, u.codes) }

// Add counts codes, depth for each latent; one outside the codebook is an error, and those before it are counted.
func (u *Usage) Add(codes []int32) error {
	depth := u.depth()
	for i, c := range codes {
		if c < 0 || int(c) >= u.codes {
			return fmt.Errorf("code %d of %d is %d (want 0..%d)", i, len(codes), c, u.codes-1)
		}
		u.counts[i%depth*u.codes+int(c)]++
	}
	u.total += int64(len(codes) / depth)
	return nil
}

// Bits is depth·log2(codes): what a latent costs.
func (u *Usage) Bits() float64 { return float64(u.depth()) * math.Log2(float64(u.codes)) }

// Entropy is -Σ p·log2(p) over the shares p of a codebook's codes, added up over codebooks, in bits a latent: what a latent costs at
// least when codes are stored one by one. It is 0 before any code was added.
func (u *Usage) Entropy() float64 { return u.nats() / math.Ln2 }

// Perplexity is exp(-Σ p·ln p) over the shares p of the codes: how many codes, used evenly, would say as much. It is
// between 1 and the size of the codebook, and 0 before any code was added. Of several codebooks it is the geometric mean.
func (u *Usage) Perplexity() float64 {
	if u.total == 0 {
		return 0
	}
	return math.Exp(u.nats() / float64(u.depth()))
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

// Share is the part of the codes, of all codebooks, that was used at least once, in [0, 1].
func (u *Usage) Share() float64 {
	var used int
	for _, n := range u.counts {
		if n > 0 {
			used++
		}
	}
	return float64(used) / float64(max(1, len(u.counts)))
}

// Total is the number of latents whose codes were added.
func (u *Usage) Total() int64 { return u.total }

// Join adds the codes of another histogram of codebooks of the same size.
func (u *Usage) Join(o *Usage) {
	for c, n := range o.counts {
		u.counts[c] += n
	}
	u.total += o.total
}

// Counts is how often each code was added, one codebook after the other. It is the caller's.
func (u *Usage) Counts() []int64 { return slices.Clone(u.counts) }
