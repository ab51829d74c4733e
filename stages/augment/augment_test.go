package augment_test

import (
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/stages/augment"
	"github.com/flowrun/flowrun/stages/volume"
)

var all = augment.Options{Flip: []string{"x", "y", "z"}, Rotate90: true, Scale: 0.2, ShiftHU: 30, NoiseHU: 50}

func apply(tag volume.Tag, o augment.Options, seed uint64, stage int) volume.Op {
	p := &volume.Patch{Tag: tag}
	augment.Apply(p, o, seed, stage)
	return p.Ops[0]
}

func TestApplyKeepsToItsRanges(t *testing.T) {
	const n = 4000
	var flips [3]int
	var turns [4]int
	var scale, shift, noise float64
	keys := map[uint64]bool{}
	for i := range n {
		op := apply(volume.Tag{Scan: "a", Tile: i}, all, 1, 0)
		for a, f := range op.Flip {
			if f {
				flips[a]++
			}
		}
		turns[op.Turns]++
		if math.Abs(op.Scale-1) > 0.2 || math.Abs(op.Shift) > 30 || op.Noise < 0 || op.Noise > 50 {
			t.Fatalf("%+v", op)
		}
		scale, shift, noise = scale+op.Scale/n, shift+op.Shift/n, noise+op.Noise/n
		keys[op.Key] = true
	}
	near := func(what string, got, want, by float64) {
		if math.Abs(got-want) > by {
			t.Errorf("%s: %g, want about %g", what, got, want)
		}
	}
	for a := range 3 {
		near("flips", float64(flips[a])/n, 0.5, 0.04)
	}
	for k := range 4 {
		near("turns", float64(turns[k])/n, 0.25, 0.04)
	}
	near("mean scale", scale, 1, 0.01)
	near("mean shift", shift, 0, 1.5)
	near("mean noise", noise, 25, 1.5)
	if len(keys) != n {
		t.Errorf("%d keys of noise for %d patches", len(keys), n)
	}
}

func TestNothingAsked(t *testing.T) {
	for i := range 100 {
		op := apply(volume.Tag{Scan: "a", Tile: i}, augment.Options{}, 1, 0)
		op.Key = 0
		if op != (volume.Op{Scale: 1}) {
			t.Fatalf("%+v", op)
		}
	}
}

func TestOptionsDontDisturbEachOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tag := volume.Tag{Scan: rapid.String().Draw(t, "scan"), Epoch: rapid.IntRange(0, 9).Draw(t, "epoch"), Tile: rapid.IntRange(0, 99).Draw(t, "tile")}
		want := apply(tag, all, 5, 1)
		some := func(name string) bool { return rapid.Bool().Draw(t, name) }
		var o augment.Options
		for a, name := range []string{"x", "y", "z"} {
			if some(name) {
				o.Flip = append(o.Flip, name)
			} else {
				want.Flip[a] = false
			}
		}
		if o.Rotate90 = some("rotate90"); !o.Rotate90 {
			want.Turns = 0
		}
		if some("scale") {
			o.Scale = all.Scale
		} else {
			want.Scale = 1
		}
		if some("shift") {
			o.ShiftHU = all.ShiftHU
		} else {
			want.Shift = 0
		}
		if some("noise") {
			o.NoiseHU = all.NoiseHU
		} else {
			want.Noise = 0
		}
		if got := apply(tag, o, 5, 1); got != want {
			t.Fatalf("%+v: %+v, want %+v", o, got, want)
		}
	})
}

func TestApplyDependsOnItsKey(t *testing.T) {
	base := volume.Tag{Scan: "a", Epoch: 1, Tile: 2}
	want := apply(base, all, 3, 4)
	moved := base
	moved.Origin, moved.Seq, moved.Index, moved.Tiles = [3]int{1, 2, 3}, 9, 9, 9
	if apply(base, all, 3, 4) != want || apply(moved, all, 3, 4) != want {
		t.Error("the draw depends on more than seed, scan, epoch, tile and stage")
	}
	other := []volume.Op{
		apply(volume.Tag{Scan: "b", Epoch: 1, Tile: 2}, all, 3, 4),
		apply(volume.Tag{Scan: "a", Epoch: 2, Tile: 2}, all, 3, 4),
		apply(volume.Tag{Scan: "a", Epoch: 1, Tile: 3}, all, 3, 4),
		apply(base, all, 4, 4),
		apply(base, all, 3, 5),
	}
	for i, op := range other {
		if op.Key == want.Key || op.Scale == want.Scale {
			t.Errorf("part %d of the key doesn't matter", i)
		}
	}
}

func TestApplyAppends(t *testing.T) {
	p := &volume.Patch{Tag: volume.Tag{Scan: "a"}}
	augment.Apply(p, all, 1, 0)
	augment.Apply(p, all, 1, 1)
	if len(p.Ops) != 2 || p.Ops[0] != apply(p.Tag, all, 1, 0) || p.Ops[1] != apply(p.Tag, all, 1, 1) {
		t.Errorf("%+v", p.Ops)
	}
}

func TestChecks(t *testing.T) {
	for _, c := range []struct {
		flip []string
		want string
	}{
		{nil, ""},
		{[]string{"z", "x"}, ""},
		{[]string{"x", "y", "x"}, "flip: x is given twice"},
		{[]string{"w"}, `flip: "w" is not an axis (want x, y or z)`},
	} {
		o := augment.Options{Flip: c.flip}
		if err := o.Check(); err == nil && c.want != "" || err != nil && err.Error() != c.want {
			t.Errorf("%v: %v, want %s", c.flip, err, c.want)
		}
	}
	o := augment.Options{Rotate90: true}
	want := "rotate90: patch 256 × 128 is not square in the x-y plane (switch rotate90 off or make tile.patch square)"
	if err := o.CheckPatch([3]int{256, 128, 64}); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if err := o.CheckPatch([3]int{128, 128, 64}); err != nil {
		t.Error(err)
	}
	o.Rotate90 = false
	if err := o.CheckPatch([3]int{256, 128, 64}); err != nil {
		t.Error(err)
	}
}
