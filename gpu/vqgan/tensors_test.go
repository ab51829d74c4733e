package vqgan

import (
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// shapesOf are the tensors of a model's state dict.
func shapesOf(t rapid.TB, c *Config) map[string][]int {
	t.Helper()
	list, err := c.StateDict()
	if err != nil {
		t.Fatal(err)
	}
	shapes := map[string][]int{}
	for _, e := range list {
		shapes[e.Name] = e.Shape
	}
	return shapes
}

func TestStateDictIsThatOfASession(t *testing.T) {
	for _, name := range generators() {
		f := readFixture(t, name)
		shapes := shapesOf(t, &f.model)
		if len(shapes) != len(f.weights) {
			t.Errorf("%s: %d tensors (want %d)", name, len(shapes), len(f.weights))
		}
		for _, a := range f.weights {
			if fmt.Sprint(shapes[a.Name]) != fmt.Sprint(a.Shape) {
				t.Errorf("%s: %s is %v (want %v)", name, a.Name, shapes[a.Name], a.Shape)
			}
		}
	}
}

func TestOutline(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		power := rapid.IntRange(0, 3)
		c := Config{Hidden: rapid.IntRange(1, 9).Draw(t, "hidden"), Embedding: rapid.IntRange(1, 5).Draw(t, "embedding"),
			Codes: rapid.IntRange(2, 9).Draw(t, "codes"), Norm: "channel", Padding: "zero", Decoder: rapid.SampledFrom([]string{"lean", "full"}).Draw(t, "decoder"),
			Downsample: [3]int{1 << power.Draw(t, "x"), 1 << power.Draw(t, "y"), 1 << power.Draw(t, "z")}}
		if c.Downsample == unit {
			c.Downsample[1] = 2
		}
		shapes := shapesOf(t, &c)
		got, err := ReadOutline(shapes)
		want := Outline{c.Hidden, c.Embedding, 1, c.Codes, bits.Len(uint(max(c.Downsample[0], c.Downsample[1], c.Downsample[2]))) - 1, c.Decoder}
		if err != nil || got != want {
			t.Fatalf("%+v, %v (want %+v)", got, err, want)
		}
		if err := c.Match(shapes); err != nil {
			t.Fatal(err)
		}
		delete(shapes, "codebook.N")
		delete(shapes, "codebook.z_avg")
		if err := c.Match(shapes); err != nil {
			t.Fatal(err)
		}
		c.Embedding++
		if err := c.Match(shapes); err == nil || !strings.Contains(err.Error(), "pre_vq_conv") {
			t.Fatalf("%v (want pre_vq_conv)", err)
		}
	})
}

func TestForeignStateDicts(t *testing.T) {
	c := Config{Hidden: 2, Downsample: [3]int{4, 4, 2}, Embedding: 3, Codes: 5, Norm: "group", Groups: 2, Padding: "replicate", Decoder: "full"}
	for want, change := range map[string]func(s map[string][]int){
		"running_mean [8]: the model has batch norm": func(s map[string][]int) { s["encoder.conv_blocks.1.res.norm1.running_mean"] = []int{8} },
		"conv_shortcut.conv.weight [4 2 3 3 3]: a residual block": func(s map[string][]int) {
			s["decoder.conv_blocks.1.res1.conv_shortcut.conv.weight"] = []int{4, 2, 3, 3, 3}
		},
		"conv_first.conv.weight is [2 3 3 3 3]: images of 3 channels":   func(s map[string][]int) { s["encoder.conv_first.conv.weight"][1] = 3 },
		"conv_last.conv.weight is [3 4 3 3 3]: images of 3 channels":    func(s map[string][]int) { s["decoder.conv_last.conv.weight"][0] = 3 },
		"conv_first.conv.weight is missing":                             func(s map[string][]int) { delete(s, "encoder.conv_first.conv.weight") },
		"encoder.conv_first.conv.weight is [2 1] (want 5 axes)":         func(s map[string][]int) { s["encoder.conv_first.conv.weight"] = []int{2, 1} },
		"convt.weight is [8 5 4 4 4]: 5 channels out (want 8 of a full": func(s map[string][]int) { s["decoder.conv_blocks.0.up.convt.weight"][1] = 5 },
		"halves nothing":                 func(s map[string][]int) { delete(s, "encoder.conv_blocks.0.down.conv.weight") },
		"codebook.embeddings is missing": func(s map[string][]int) { delete(s, "codebook.embeddings") },
	} {
		shapes := shapesOf(t, &c)
		change(shapes)
		if _, err := ReadOutline(shapes); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v (want %s)", err, want)
		}
	}
	for want, change := range map[string]func(s map[string][]int){
		"encoder.final_block.0.bias is missing":    func(s map[string][]int) { delete(s, "encoder.final_block.0.bias") },
		"post_vq_conv.conv.bias is [1] (want [8])": func(s map[string][]int) { s["post_vq_conv.conv.bias"] = []int{1} },
		"attention.weight [4 4] is left over":      func(s map[string][]int) { s["attention.weight"] = []int{4, 4} },
		"b [] is left over, c [] is left over, and 1": func(s map[string][]int) {
			maps.Copy(s, map[string][]int{"a0": {}, "a1": {}, "b": {}, "c": {}, "d": {}})
		},
	} {
		shapes := shapesOf(t, &c)
		change(shapes)
		if err := c.Match(shapes); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v (want %s)", err, want)
		}
	}
}

// Whatever shapes a file claims, they are refused or understood.
func TestAnyShapes(t *testing.T) {
	c := Config{Hidden: 2, Downsample: [3]int{4, 4, 2}, Embedding: 3, Codes: 5, Norm: "channel", Padding: "replicate", Decoder: "full"}
	whole := shapesOf(t, &c)
	rapid.Check(t, func(t *rapid.T) {
		shapes := maps.Clone(whole)
		names := slices.Sorted(maps.Keys(whole))
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			size := rapid.OneOf(rapid.IntRange(0, 9), rapid.IntRange(0, 1<<40))
			shapes[rapid.SampledFrom(names).Draw(t, "name")] = rapid.SliceOfN(size, 0, 6).Draw(t, "shape")
		}
		o, err := ReadOutline(shapes)
		if err != nil {
			return
		}
		n := 1 << o.Halvings
		guess := Config{Hidden: o.Hidden, Downsample: [3]int{n, n, n}, Embedding: o.Embedding, Codes: o.Codes, Norm: "channel", Padding: "zero", Decoder: o.Decoder}
		if err := guess.Match(shapes); err == nil && !maps.EqualFunc(shapes, whole, slices.Equal) {
			t.Fatalf("%v is a model", shapes)
		}
	})
}
