package weights

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/stages/volume"
)

// Load reads a model's tensors as a checkpoint has them: weights, codebook, running means that begin at the weights, discriminators.
// notes say what had to be made up.
func (f *File) Load(m *Model, axes Axes) (arrays []volume.Array, notes []string, err error) {
	names := slices.Concat(slices.Sorted(maps.Keys(m.Shapes)), m.discriminators)
	full := make([]string, len(names))
	for i, name := range names {
		full[i] = m.prefix + name
	}
	if arrays, err = f.read(full); err != nil {
		return nil, nil, err
	}
	byName := map[string]volume.Array{}
	for i := range arrays {
		a := &arrays[i]
		if at := slices.IndexFunc(a.Data, func(x float32) bool { return math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) }); at >= 0 {
			return nil, nil, fmt.Errorf("%s: element %d is %v in float32", a.Name, at, a.Data[at])
		}
		a.Name = names[i]
		axes.turn(a)
		byName[a.Name] = *a
	}
	for _, book := range m.Outline.Codebooks() {
		var again bool
		if arrays, again, err = statistics(arrays, byName, book); err != nil {
			return nil, nil, err
		}
		if again {
			notes = append(notes, book+": it has no counts (N) and sums (z_avg) of its codes; new ones begin at one latent a code")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.Shapes)) {
		if a := byName[name]; !strings.HasPrefix(name, "codebook") {
			a.Name = "ema." + name
			arrays = append(arrays, a)
		}
	}
	return arrays, notes, nil
}

// statistics completes a codebook: without both N and z_avg each code counts as one latent, at its vector.
func statistics(arrays []volume.Array, byName map[string]volume.Array, book string) (all []volume.Array, again bool, err error) {
	vectors, counts, sums := book+".embeddings", book+".N", book+".z_avg"
	n, ok1 := byName[counts]
	if i := slices.IndexFunc(n.Data, func(x float32) bool { return x < 0 }); i >= 0 {
		return nil, false, fmt.Errorf("%s: element %d is %v (want at least 0)", counts, i, n.Data[i])
	}
	if _, ok2 := byName[sums]; ok1 && ok2 {
		return arrays, false, nil
	}
	all = slices.DeleteFunc(arrays, func(a volume.Array) bool { return a.Name == counts || a.Name == sums })
	e := byName[vectors]
	one := slices.Repeat([]float32{1}, e.Shape[0])
	return append(all, volume.Array{Name: counts, Shape: e.Shape[:1:1], Data: one}, volume.Array{Name: sums, Shape: e.Shape, Data: e.Data}), true, nil
}
