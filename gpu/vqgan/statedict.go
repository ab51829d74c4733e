package vqgan

import (
	"math"
	"slices"
	"strings"
)

// Discriminators picks the discriminators from a state's arrays, as PyTorch's modules have them: the number of batches that a batch
// norm has seen is one number, which a state has in parts.
func Discriminators(state []Array) []Array {
	var out []Array
	for _, a := range state {
		if !ofDiscriminator(a.Name) {
			continue
		}
		if strings.HasSuffix(a.Name, nameBatches) && len(a.Data) == len(limbs(0)) {
			if n, err := whole(a.Data); err == nil {
				a.Shape, a.Data = []int{}, []float32{float32(n[0])}
			}
		}
		out = append(out, a)
	}
	return out
}

// ofDiscriminator reports whether a name is that of a discriminator's weight or buffer in a state dict.
func ofDiscriminator(name string) bool {
	return strings.HasPrefix(name, "image_discriminator.") || strings.HasPrefix(name, "video_discriminator.")
}

// SingularVectors adds to weights under spectral norm what PyTorch keeps beside NAME_u and NAME_orig [O, …]: NAME_v, Wᵀu at length 1.
// It replaces those that are there.
func SingularVectors(arrays []Array) []Array {
	byName := map[string]Array{}
	for _, a := range arrays {
		byName[a.Name] = a
	}
	out := slices.DeleteFunc(slices.Clone(arrays), func(a Array) bool {
		base, ok := strings.CutSuffix(a.Name, suffixV)
		return ok && byName[base+suffixU].Name != ""
	})
	for _, a := range arrays {
		base, ok := strings.CutSuffix(a.Name, suffixU)
		w := byName[base+suffixOrig]
		if !ok || len(a.Data) == 0 || len(w.Data)%len(a.Data) != 0 {
			continue
		}
		columns := len(w.Data) / len(a.Data)
		sums, square := make([]float64, columns), 0.0
		for o, u := range a.Data {
			for i, x := range w.Data[o*columns:][:columns] {
				sums[i] += float64(u) * float64(x)
			}
		}
		for _, x := range sums {
			square += x * x
		}
		v := make([]float32, columns)
		for i, x := range sums {
			v[i] = float32(x / math.Sqrt(square))
		}
		out = append(out, Array{base + suffixV, []int{columns}, v})
	}
	return out
}
