package weights

import (
	"reflect"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/volume"
)

func equal(t *testing.T, what string, got, want volume.Array) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestTurn(t *testing.T) {
	for _, text := range []string{"zyx", "zxy", "yzx", "yxz", "xzy", "xyz"} {
		axes, err := ParseAxes(text)
		if err != nil {
			t.Fatal(err)
		}
		size := map[byte]int{'z': 2, 'y': 3, 'x': 4}
		// Each element tells where it is: z, y, x as digits, behind that of the leading axes.
		fill := func(order string, lead int) volume.Array {
			a := volume.Array{Shape: []int{lead, 1}}
			for i := range order {
				a.Shape = append(a.Shape, size[order[i]])
			}
			n := lead
			for i := range order {
				n *= size[order[i]]
			}
			for i := range n {
				digits, rest := 0, i
				for k := len(order) - 1; k >= 0; k-- {
					at := rest % size[order[k]]
					rest /= size[order[k]]
					digits += at * map[byte]int{'z': 100, 'y': 10, 'x': 1}[order[k]]
				}
				a.Data = append(a.Data, float32(1000*rest+digits))
			}
			return a
		}
		a := fill(text, 2)
		axes.turn(&a)
		equal(t, "a kernel in "+text, a, fill("zyx", 2))
		plane := strings.Trim("zyx", text[:1])
		if text[:1] == "y" {
			plane = "zx"
		}
		b := fill(text[1:], 2)
		axes.turn(&b)
		equal(t, "a plane's kernel in "+text, b, fill(plane, 2))
		bias := volume.Array{Shape: []int{3}, Data: []float32{1, 2, 3}}
		axes.turn(&bias)
		equal(t, "a bias", bias, volume.Array{Shape: []int{3}, Data: []float32{1, 2, 3}})
	}
}
