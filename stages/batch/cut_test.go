package batch_test

import (
	"errors"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/volume"
)

// file is Samples that copies, as one that reads a file does.
type file struct{ volume.Memory }

func (f *file) Rows(z, y0, y1 int, buf []int16) ([]int16, error) {
	view, err := f.Memory.Rows(z, y0, y1, nil)
	return buf[:copy(buf, view)], err
}

// made returns a volume of slope 1, inter 0 and window [-1000, 1000], with samples that f gives.
func made(dims [3]int, f func(x, y, z int) int16) *volume.Volume {
	data := make([]int16, 0, dims[0]*dims[1]*dims[2])
	for z := range dims[2] {
		for y := range dims[1] {
			for x := range dims[0] {
				data = append(data, f(x, y, z))
			}
		}
	}
	v := &volume.Volume{Scan: &volume.Scan{ID: "a", Dims: dims}, Dims: dims, Window: [2]float64{-1000, 1000}, Slope: 1}
	return v.Own(&volume.Memory{Data: data, Dims: dims}, nil)
}

func patch(v *volume.Volume, origin, size [3]int, ops ...volume.Op) *volume.Patch {
	return &volume.Patch{Volume: v, Ops: ops, Tag: volume.Tag{Scan: "a", Tiles: 1, Origin: origin, Size: size}}
}

func cut(t interface{ Fatal(...any) }, p *volume.Patch, workers int) []float32 {
	return cutWith(t, p, batch.NewScratch(workers))
}

func cutWith(t interface{ Fatal(...any) }, p *volume.Patch, s *batch.Scratch) []float32 {
	dst := slices.Repeat([]float32{float32(math.NaN())}, p.Size[0]*p.Size[1]*p.Size[2])
	if err := batch.Cut(dst, p, s); err != nil {
		t.Fatal(err)
	}
	return dst
}

// Rows of a 2×2×2 patch whose samples are 1 to 8, x fastest, times 100 HU.
func TestCutByHand(t *testing.T) {
	count := func(x, y, z int) int16 { return int16(100 * (1 + x + 2*y + 4*z)) }
	for _, c := range []struct {
		name string
		op   volume.Op
		want []int
	}{
		{"as it is", volume.Op{Scale: 1}, []int{1, 2, 3, 4, 5, 6, 7, 8}},
		{"flip x", volume.Op{Scale: 1, Flip: [3]bool{true, false, false}}, []int{2, 1, 4, 3, 6, 5, 8, 7}},
		{"flip y", volume.Op{Scale: 1, Flip: [3]bool{false, true, false}}, []int{3, 4, 1, 2, 7, 8, 5, 6}},
		{"flip z", volume.Op{Scale: 1, Flip: [3]bool{false, false, true}}, []int{5, 6, 7, 8, 1, 2, 3, 4}},
		// From +x to +y: what was at the end of x is now at the end of y.
		{"a turn", volume.Op{Scale: 1, Turns: 1}, []int{3, 1, 4, 2, 7, 5, 8, 6}},
		{"two turns", volume.Op{Scale: 1, Turns: 2}, []int{4, 3, 2, 1, 8, 7, 6, 5}},
		{"a turn back", volume.Op{Scale: 1, Turns: -1}, []int{2, 4, 1, 3, 6, 8, 5, 7}},
		{"flip x, then a turn", volume.Op{Scale: 1, Flip: [3]bool{true, false, false}, Turns: 1}, []int{4, 2, 3, 1, 8, 6, 7, 5}},
		{"scale and shift", volume.Op{Scale: 2, Shift: -300}, []int{-1, 1, 3, 5, 7, 9, 10, 10}},
	} {
		got := cut(t, patch(made([3]int{2, 2, 2}, count), [3]int{}, [3]int{2, 2, 2}, c.op), 1)
		for i, want := range c.want {
			if got[i] != float32(want)/10 {
				t.Errorf("%s: %v, want %v tenths", c.name, got, c.want)
				break
			}
		}
	}
}

func TestCutRepeatsTheEdge(t *testing.T) {
	v := made([3]int{3, 2, 2}, func(x, y, z int) int16 { return int16(100*x + 10*y + z) })
	for _, turns := range []int{0, 4} {
		got := cut(t, patch(v, [3]int{1, 1, 0}, [3]int{4, 4, 4}, volume.Op{Scale: 1, Turns: turns}), 2)
		for i, x := range got {
			at := [3]int{i % 4, i / 4 % 4, i / 16}
			want := 100*min(1+at[0], 2) + 10*1 + min(at[2], 1)
			if x != float32(want)/1000 {
				t.Fatalf("%v: %v HU, want %d", at, 1000*x, want)
			}
		}
	}
}

// reference does what Cut does one operation after the other, in HU and float64.
func reference(p *volume.Patch, at func(x, y, z int) int16) []float32 {
	w, h, d := p.Size[0], p.Size[1], p.Size[2]
	v := p.Volume
	hu := make([]float64, w*h*d)
	for i := range hu {
		q := [3]int{i % w, i / w % h, i / w / h}
		for a := range q {
			q[a] = min(p.Origin[a]+q[a], v.Dims[a]-1)
		}
		hu[i] = v.Slope*float64(at(q[0], q[1], q[2])) + v.Inter
	}
	move := func(to func(x, y, z int) (int, int, int)) {
		next := make([]float64, len(hu))
		for i, f := range hu {
			x, y, z := to(i%w, i/w%h, i/w/h)
			next[(z*h+y)*w+x] = f
		}
		hu = next
	}
	for _, op := range p.Ops {
		if op.Flip[0] {
			move(func(x, y, z int) (int, int, int) { return w - 1 - x, y, z })
		}
		if op.Flip[1] {
			move(func(x, y, z int) (int, int, int) { return x, h - 1 - y, z })
		}
		if op.Flip[2] {
			move(func(x, y, z int) (int, int, int) { return x, y, d - 1 - z })
		}
		if op.Turns == 2 {
			move(func(x, y, z int) (int, int, int) { return w - 1 - x, h - 1 - y, z })
		} else {
			for range op.Turns {
				move(func(x, y, z int) (int, int, int) { return h - 1 - y, x, z })
			}
		}
		for i := range hu {
			hu[i] = op.Scale*hu[i] + op.Shift
		}
	}
	out := make([]float32, len(hu))
	for i, x := range hu {
		lo, hi := v.Window[0], v.Window[1]
		out[i] = float32(2*(min(max(x, lo), hi)-lo)/(hi-lo) - 1)
	}
	return out
}

func TestCutAgainstReference(t *testing.T) {
	scratch := [3]*batch.Scratch{batch.NewScratch(1), batch.NewScratch(2), batch.NewScratch(3)}
	rapid.Check(t, func(t *rapid.T) {
		var dims, origin, size [3]int
		for a := range 3 {
			dims[a] = rapid.IntRange(1, 40).Draw(t, "dims")
			size[a] = rapid.IntRange(1, 40).Draw(t, "size")
			origin[a] = rapid.IntRange(0, dims[a]-1).Draw(t, "origin")
		}
		if rapid.Bool().Draw(t, "square") {
			size[1] = size[0]
		}
		var ops []volume.Op
		for range rapid.IntRange(0, 3).Draw(t, "ops") {
			op := volume.Op{
				Scale: rapid.Float64Range(0.5, 2).Draw(t, "scale"),
				Shift: rapid.Float64Range(-300, 300).Draw(t, "shift"),
				Turns: rapid.IntRange(0, 3).Draw(t, "turns"),
			}
			for a := range 3 {
				op.Flip[a] = rapid.Bool().Draw(t, "flip")
			}
			if size[0] != size[1] {
				op.Turns &= 2
			}
			ops = append(ops, op)
		}
		at := func(x, y, z int) int16 { return int16(x*7919 + y*104729 + z*1299709) }
		v := made(dims, at)
		v.Slope, v.Inter = rapid.Float64Range(0.01, 1).Draw(t, "slope"), rapid.Float64Range(-1024, 1024).Draw(t, "inter")
		if rapid.Bool().Draw(t, "file") {
			v.Own(&file{volume.Memory{Data: samples(t, v), Dims: dims}}, nil)
		}
		p := patch(v, origin, size, ops...)
		got := cutWith(t, p, rapid.SampledFrom(scratch[:]).Draw(t, "scratch"))
		want := reference(p, at)
		for i := range got {
			if !(math.Abs(float64(got[i]-want[i])) < 1e-6) {
				t.Fatalf("voxel %d: %v, want %v", i, got[i], want[i])
			}
		}
	})
}

func samples(t interface{ Fatal(...any) }, v *volume.Volume) (all []int16) {
	for z := range v.Dims[2] {
		s, err := v.Rows(z, 0, v.Dims[1], nil)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s...)
	}
	return all
}

// What is cut and not changed gives the samples back, clipped to the window.
func TestCutIsExact(t *testing.T) {
	for _, slope := range []float64{1, 1. / 32} {
		v := made([3]int{256, 256, 1}, func(x, y, _ int) int16 { return int16(x + 256*y) })
		v.Slope = slope
		for i, x := range cut(t, patch(v, [3]int{}, [3]int{256, 256, 1}), 1) {
			want := min(max(float64(int16(i))*slope, -1000), 1000)
			if got := (float64(x)+1)*1000 - 1000; math.Round(got/slope) != want/slope {
				t.Fatalf("slope %g: sample %d came back as %g HU", slope, int16(i), got)
			}
		}
	}
}

func TestNoise(t *testing.T) {
	v := made([3]int{70, 70, 60}, func(int, int, int) int16 { return 250 })
	size := [3]int{64, 64, 48}
	op := volume.Op{Scale: 1, Noise: 40, Key: 9}
	got := cut(t, patch(v, [3]int{}, size, op), 1)
	var mean, square, along, across float64
	n := float64(len(got))
	for i, x := range got {
		d := 1000*float64(x) - 250
		mean += d / n
		square += d * d / n
		along += d * (1000*float64(got[(i+1)%len(got)]) - 250) / n
		across += d * (1000*float64(got[(i+64)%len(got)]) - 250) / n
	}
	if std := math.Sqrt(square); math.Abs(mean) > 0.5 || math.Abs(std-40) > 0.5 || math.Abs(along) > 16 || math.Abs(across) > 16 {
		t.Errorf("mean %.2f HU, standard deviation %.2f (want 40), covariance of neighbours %.2f and %.2f", mean, std, along, across)
	}
	for i, x := range cut(t, patch(v, [3]int{}, size, op), 3) {
		if x != got[i] {
			t.Fatal("the noise depends on the number of workers")
		}
	}
	op.Key++
	for i, x := range cut(t, patch(v, [3]int{}, size, op), 1)[:100] {
		if x == got[i] {
			t.Fatal("the key of the noise doesn't matter")
		}
	}
	// Noise is added before clipping, and the table that does without clipping isn't kept.
	s := batch.NewScratch(1)
	bright := made(size, func(int, int, int) int16 { return 990 })
	for _, x := range cutWith(t, patch(bright, [3]int{}, size, op), s) {
		if x > 1 {
			t.Fatalf("%v is outside [-1, 1]", x)
		}
	}
	bright.Inter = 20
	_ = cutWith(t, patch(bright, [3]int{}, size, op), s)
	for _, x := range cutWith(t, patch(bright, [3]int{}, size), s) {
		if x != 1 {
			t.Fatalf("%v at the window's end, want 1", x)
		}
	}
	// A second operation scales the noise of the first and adds its own: 40·1.5 and 25 are 65 together.
	got = cut(t, patch(v, [3]int{}, size, op, volume.Op{Scale: 1.5, Shift: -375, Noise: 25, Key: 11}), 1)
	square = 0
	for _, x := range got {
		square += float64(x) * float64(x) * 1e6 / n
	}
	if std := math.Sqrt(square); math.Abs(std-65) > 0.8 {
		t.Errorf("standard deviation %.2f HU after two operations, want 65", std)
	}
}

// Rows wider than a worker asks for at a time come in strips.
func TestCutInStrips(t *testing.T) {
	at := func(x, y, z int) int16 { return int16(x*31 + y*17 + z) }
	v := made([3]int{6000, 200, 2}, at)
	v.Own(&file{volume.Memory{Data: samples(t, v), Dims: v.Dims}}, nil)
	for _, op := range []volume.Op{{Scale: 1}, {Scale: 1, Turns: 1}, {Scale: 1, Flip: [3]bool{true, true, true}}} {
		p := patch(v, [3]int{3000, 5, 0}, [3]int{198, 198, 2}, op)
		got, want := cut(t, p, 2), reference(p, at)
		for i := range got {
			if !(math.Abs(float64(got[i]-want[i])) < 1e-6) {
				t.Fatalf("%+v: voxel %d: %v, want %v", op, i, got[i], want[i])
			}
		}
	}
}

// failing fails, or panics, at a slice.
type failing struct {
	volume.Memory
	panics bool
	calls  atomic.Int64
}

func (f *failing) Rows(z, y0, y1 int, buf []int16) ([]int16, error) {
	f.calls.Add(1)
	if z == 3 && f.panics {
		panic("index out of range")
	}
	if z == 3 {
		return nil, errors.New("input/output error")
	}
	return f.Memory.Rows(z, y0, y1, buf)
}

type short struct{ volume.Memory }

func (s *short) Rows(int, int, int, []int16) ([]int16, error) { return make([]int16, 3), nil }

func TestCutReportsErrors(t *testing.T) {
	dims := [3]int{8, 8, 300}
	flat := func() *volume.Volume { return made(dims, func(int, int, int) int16 { return 0 }) }
	memory := volume.Memory{Data: make([]int16, 8*8*300), Dims: dims}
	of := func(change func(p *volume.Patch)) *volume.Patch {
		p := patch(flat(), [3]int{}, dims, volume.Op{Scale: 1})
		change(p)
		return p
	}
	for _, c := range []struct {
		p    *volume.Patch
		want string
	}{
		{of(func(p *volume.Patch) { p.Volume.Own(nil, nil) }), "scan a: no samples in a dry volume"},
		{of(func(p *volume.Patch) { p.Volume.Own(&failing{Memory: memory}, nil) }), "size [8 8 300]: input/output error"},
		{of(func(p *volume.Patch) { p.Volume.Own(&short{memory}, nil) }), "got 3 samples for 8 rows of 8"},
		{of(func(p *volume.Patch) { p.Origin[1] = 8 }), "outside the volume of [8 8 300]"},
		{of(func(p *volume.Patch) { p.Origin[2] = -1 }), "outside the volume of [8 8 300]"},
		{of(func(p *volume.Patch) { p.Volume.Window = [2]float64{5, 5} }), "window [5 5] HU is empty"},
		{of(func(p *volume.Patch) { p.Volume.Window[1] = math.NaN() }), "window [-1000 NaN] HU is empty"},
		{of(func(p *volume.Patch) { p.Volume.Slope = math.NaN() }), "not a number"},
		{of(func(p *volume.Patch) { p.Volume.Inter = 1e300 }), "too large"},
		{of(func(p *volume.Patch) { p.Ops[0].Noise = math.Inf(1) }), "noise is too large"},
		{of(func(p *volume.Patch) { p.Size[1], p.Size[2], p.Ops[0].Turns = 300, 8, 3 }), "square in x and y"},
	} {
		err := batch.Cut(make([]float32, 8*8*300), c.p, batch.NewScratch(3))
		if err == nil || !strings.HasPrefix(err.Error(), "a epoch 0 tile 0/1") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	if err := batch.Cut(make([]float32, 7), of(func(*volume.Patch) {}), batch.NewScratch(1)); err == nil || !strings.Contains(err.Error(), "room for 7 voxels, want 19200") {
		t.Errorf("got %v", err)
	}
	f := &failing{Memory: memory}
	p := of(func(p *volume.Patch) { p.Volume.Own(f, nil) })
	s := batch.NewScratch(2)
	if err := batch.Cut(make([]float32, 8*8*300), p, s); err == nil || f.calls.Load() > 50 {
		t.Errorf("%v, but %d of 300 slices were read", err, f.calls.Load())
	}
	for _, x := range cutWith(t, of(func(*volume.Patch) {}), s) {
		if x != 0 {
			t.Fatalf("scratch can't be used after an error: %v", x)
		}
	}
}

// A panic of a worker reaches the caller, who can recover from it.
func TestCutPanicsInItsCaller(t *testing.T) {
	f := &failing{Memory: volume.Memory{Data: make([]int16, 8*8*300), Dims: [3]int{8, 8, 300}}, panics: true}
	p := patch(made([3]int{8, 8, 300}, func(int, int, int) int16 { return 0 }), [3]int{}, [3]int{8, 8, 300})
	p.Volume.Own(f, nil)
	defer func() {
		if err, ok := recover().(error); !ok || !strings.Contains(err.Error(), "index out of range") {
			t.Errorf("recovered %v", err)
		}
	}()
	_ = batch.Cut(make([]float32, 8*8*300), p, batch.NewScratch(4))
	t.Error("no panic")
}

func TestCutAllocatesNothing(t *testing.T) {
	p := patch(made([3]int{64, 64, 8}, func(int, int, int) int16 { return 0 }), [3]int{}, [3]int{32, 32, 8}, volume.Op{Scale: 1, Turns: 1})
	dst, s := make([]float32, 32*32*8), batch.NewScratch(2)
	if n := testing.AllocsPerRun(20, func() { _ = batch.Cut(dst, p, s) }); n != 0 {
		t.Errorf("%g allocations a patch", n)
	}
}
