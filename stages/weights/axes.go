package weights

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/stages/volume"
)

// AxesDefault is the order of a patch's axes in flowrun's own tensors.
const AxesDefault = "zyx"

// Axes say where z, y and x are among a model's three spatial axes.
type Axes [3]int

// ParseAxes reads axes that are named in the model's order, such as zxy; "" is AxesDefault.
func ParseAxes(text string) (at Axes, err error) {
	text = cmp.Or(text, AxesDefault)
	for i, c := range AxesDefault {
		if at[i] = strings.IndexRune(text, c); at[i] < 0 || len(text) != len(at) {
			return at, fmt.Errorf("axes: %q (want z, y and x in the model's order, such as zxy)", text)
		}
	}
	return at, nil
}

// inverse is the order that takes axes back.
func (axes Axes) inverse() (back Axes) {
	for i, a := range axes {
		back[a] = i
	}
	return back
}

// turn puts the spatial axes of a kernel, its last three or in a discriminator of slices its last two, into the order z, y, x.
func (axes Axes) turn(a *volume.Array) {
	lead := len(a.Shape) - len(axes)
	order := slices.Clone(axes[:])
	switch {
	case len(a.Shape) == 4: // a plane, of the model's last two axes
		order = slices.DeleteFunc(order, func(axis int) bool { return axis == 0 })
		lead = 2
		for i := range order {
			order[i]--
		}
	case lead != 2:
		return
	}
	if slices.IsSorted(order) {
		return
	}
	shape, steps := slices.Clone(a.Shape), make([]int, len(order)) // of the new axes, in the old array
	block := 1
	for _, n := range a.Shape[lead:] {
		block *= n
	}
	for i, axis := range order {
		shape[lead+i], steps[i] = a.Shape[lead+axis], 1
		for _, n := range a.Shape[lead+axis+1:] {
			steps[i] *= n
		}
	}
	data := make([]float32, len(a.Data))
	for begin := 0; begin < len(data); begin += block {
		for i := range block {
			from, rest := 0, i
			for k := len(order) - 1; k >= 0; k-- {
				n := shape[lead+k]
				from, rest = from+rest%n*steps[k], rest/n
			}
			data[begin+i] = a.Data[begin+from]
		}
	}
	a.Shape, a.Data = shape, data
}
