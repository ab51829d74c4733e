package volume

import (
	"hash/fnv"
	"math/rand/v2"
)

// Key names a source of randomness by what it is for, never by who draws from it: the same parts give the same
// numbers for any number of workers and after any resume.
func Key(seed uint64, op, scan string, numbers ...int) uint64 {
	h := fnv.New64a()
	var b [8]byte
	word := func(x uint64) {
		for i := range b {
			b[i] = byte(x >> (8 * i))
		}
		_, _ = h.Write(b[:])
	}
	word(seed)
	_, _ = h.Write([]byte(op))
	word(uint64(len(op)))
	_, _ = h.Write([]byte(scan))
	word(uint64(len(scan)))
	for _, n := range numbers {
		word(uint64(n))
	}
	// FNV's low bits are weak for short input: finish with splitmix64's mixer.
	x := h.Sum64()
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Rand returns the generator of a key.
func Rand(key uint64) *rand.Rand { return rand.New(rand.NewPCG(key, 0x9e3779b97f4a7c15)) }
