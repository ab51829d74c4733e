package enginetest

import (
	"math"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"pgregory.net/rapid"
)

// eachProduct calls f for every product of a convolution as gpu.Conv defines it: which input voxel (before padding folds it,
// with ok false where padding is zero), output voxel and tap meet.
func eachProduct(c gpu.Conv, f func(in, out, tap int)) {
	axis := func(i int) (pairs [][3]int) { // input, output, tap
		size := func(d gpu.Dims) int { return [3]int{d.D, d.H, d.W}[i] }
		ni, no := size(c.In), size(c.Out)
		for o := range no {
			for k := range c.K[i] {
				in := o*c.S[i] - c.Lo[i] + k
				if c.Transposed {
					if in = o + c.Lo[i] - k; in%c.S[i] != 0 {
						continue
					}
					in /= c.S[i]
				}
				if c.Pad == gpu.Replicate {
					in = min(max(in, 0), ni-1)
				}
				if in >= 0 && in < ni {
					pairs = append(pairs, [3]int{in, o, k})
				}
			}
		}
		return pairs
	}
	z, y, x := axis(0), axis(1), axis(2)
	for n := range c.In.N {
		for _, pz := range z {
			for _, py := range y {
				for _, px := range x {
					f(((n*c.In.D+pz[0])*c.In.H+py[0])*c.In.W+px[0],
						((n*c.Out.D+pz[1])*c.Out.H+py[1])*c.Out.W+px[1],
						(pz[2]*c.K[1]+py[2])*c.K[2]+px[2])
				}
			}
		}
	}
}

// refConv gives the output and the sum of magnitudes behind each of its values.
func refConv(c gpu.Conv, x, w, bias []float64) (y, size []float64) {
	ci, co := c.In.C, c.Out.C
	y, size = make([]float64, c.Out.Len()), make([]float64, c.Out.Len())
	for i := range y {
		y[i] = bias[i%co]
		size[i] = math.Abs(y[i])
	}
	eachProduct(c, func(in, out, tap int) {
		to, mag := y[out*co:(out+1)*co], size[out*co:(out+1)*co]
		for i, v := range x[in*ci : (in+1)*ci] {
			for o, u := range w[(tap*ci+i)*co : (tap*ci+i+1)*co] {
				to[o] += v * u
				mag[o] += math.Abs(v * u)
			}
		}
	})
	return y, size
}

// grads are a convolution's gradients and the sums of magnitudes behind them.
type grads struct{ dx, dw, db, sizeX, sizeW, sizeB []float64 }

func refConvGrad(c gpu.Conv, x, w, dy []float64) grads {
	ci, co := c.In.C, c.Out.C
	make2 := func(n int) ([]float64, []float64) { return make([]float64, n), make([]float64, n) }
	var g grads
	g.dx, g.sizeX = make2(len(x))
	g.dw, g.sizeW = make2(len(w))
	g.db, g.sizeB = make2(co)
	for i, v := range dy {
		g.db[i%co] += v
		g.sizeB[i%co] += math.Abs(v)
	}
	eachProduct(c, func(in, out, tap int) {
		d := dy[out*co : (out+1)*co]
		for i := range ci {
			v, a := x[in*ci+i], (tap*ci+i)*co
			for o, u := range d {
				p, q := u*w[a+o], u*v
				g.dx[in*ci+i] += p
				g.sizeX[in*ci+i] += math.Abs(p)
				g.dw[a+o] += q
				g.sizeW[a+o] += math.Abs(q)
			}
		}
	})
	return g
}

// axisKind is one axis of a convolution in use.
type axisKind struct {
	k, s, lo   int
	margin     int // what padding on both sides exceeds k-s by
	transposed bool
}

// size is how many outputs n inputs give.
func (a axisKind) size(n int) int {
	if a.transposed {
		return n * a.s
	}
	return (n + a.margin) / a.s
}

// drawConv gives a convolution of a shape in use, each axis by itself (y and x often alike), and those axes.
func drawConv(t *rapid.T) (gpu.Conv, [3]axisKind) {
	c := gpu.Conv{Pad: drawPad(t), Transposed: rapid.Bool().Draw(t, "transposed")}
	c.In = drawDims(t, drawChannels(t, "ci"))
	c.Out.C = drawChannels(t, "co")
	if rapid.IntRange(0, 7).Draw(t, "deep") == 0 { // a thin end of a deep network
		c.In.C, c.Out.C = 1, 512
		if rapid.Bool().Draw(t, "last") {
			c.In.C, c.Out.C = 512, 1
		}
	}
	kinds := []axisKind{{k: 1, s: 1}, {k: 3, s: 1, lo: 1}, {k: 4, s: 2, lo: 1}, {k: 4, s: 1, lo: 2}}
	switch {
	case c.Transposed:
		kinds = []axisKind{{k: 4, s: 2, lo: 1, transposed: true}, {k: 4, s: 1, lo: 1, transposed: true}}
	case c.Pad == gpu.Zero:
		kinds = append(kinds, axisKind{k: 4, s: 2, lo: 2, margin: 2}, axisKind{k: 4, s: 1, lo: 2, margin: 1})
	}
	flat := !c.Transposed && rapid.IntRange(0, 3).Draw(t, "flat") == 0 // images along N
	if flat {
		c.In.N, c.In.D = rapid.IntRange(1, 5).Draw(t, "images"), 1
	}
	c.Out.N = c.In.N
	in, out := [3]*int{&c.In.D, &c.In.H, &c.In.W}, [3]*int{&c.Out.D, &c.Out.H, &c.Out.W}
	var axes [3]axisKind
	alike := rapid.Bool().Draw(t, "alike")
	for i := range 3 {
		a := rapid.SampledFrom(kinds).Draw(t, "kind")
		switch {
		case i == 0 && flat:
			a = kinds[0]
		case i == 2 && alike:
			a = axes[1]
		}
		if !a.transposed && a.margin == 0 {
			*in[i] += *in[i] % a.s
		}
		axes[i], c.K[i], c.S[i], c.Lo[i] = a, a.k, a.s, a.lo
		*out[i] = a.size(*in[i])
	}
	for c.FLOPs() > 10e6 { // the reference is slow
		if c.In.C >= c.Out.C {
			c.In.C /= 2
		} else {
			c.Out.C /= 2
		}
	}
	return c, axes
}

func testConv(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		c, _ := drawConv(t)
		c.Type = r.draw(t, "x")
		r.holdConv(t, c, r.draw(t, "y"))
	})
}

// thinShapes are those of first and last layers: few channels, in float32, at one end.
var thinShapes = []struct {
	axis axisKind
	last bool
	few  int
	pads []gpu.Padding
}{
	{axisKind{k: 3, s: 1, lo: 1}, false, 1, []gpu.Padding{gpu.Zero, gpu.Replicate}},
	{axisKind{k: 3, s: 1, lo: 1}, true, 1, []gpu.Padding{gpu.Zero, gpu.Replicate}},
	{axisKind{k: 3, s: 1, lo: 1}, false, 3, []gpu.Padding{gpu.Zero, gpu.Replicate}},
	{axisKind{k: 4, s: 2, lo: 2, margin: 2}, false, 1, []gpu.Padding{gpu.Zero}},
	{axisKind{k: 4, s: 1, lo: 2, margin: 1}, false, 1, []gpu.Padding{gpu.Zero}},
	{axisKind{k: 4, s: 1, lo: 2, margin: 1}, true, 1, []gpu.Padding{gpu.Zero}},
	{axisKind{k: 4, s: 1, lo: 2}, true, 1, []gpu.Padding{gpu.Replicate}},
	{axisKind{k: 4, s: 1, lo: 1, transposed: true}, false, 1, []gpu.Padding{gpu.Replicate}}, // borders fold more taps than there are
}

// testConvThin is testConv of thin layers, each of them with rows that are longer than what a kernel takes at a time, or shorter.
func testConvThin(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		for _, s := range thinShapes {
			c := gpu.Conv{Pad: rapid.SampledFrom(s.pads).Draw(t, "pad"), Transposed: s.axis.transposed, In: gpu.Dims{N: rapid.IntRange(1, 2).Draw(t, "n"), C: s.few}}
			many := []int{2, 5, 16, 40, 64, 72, 130, 264}
			switch {
			case s.few > 1:
				many = []int{16, 40}
			case c.Transposed:
				many = []int{64}
			}
			c.Out.C = rapid.SampledFrom(many).Draw(t, "channels")
			c.In.D, c.In.H = rapid.IntRange(1, 4).Draw(t, "d"), rapid.IntRange(1, 4).Draw(t, "h")
			c.In.W = rapid.OneOf(rapid.IntRange(1, 40), rapid.IntRange(290, 600)).Draw(t, "w")
			types := [2]gpu.Type{gpu.Float32, r.kind}
			if s.last {
				c.In.C, c.Out.C, types[0], types[1] = c.Out.C, c.In.C, types[1], types[0]
			}
			c.Out.N, c.Type = c.In.N, types[0]
			for {
				in, out := [3]int{c.In.D, c.In.H, c.In.W}, [3]*int{&c.Out.D, &c.Out.H, &c.Out.W}
				for i, n := range in {
					a := s.axis
					if i == 0 && n == 1 && (a.k == 4 || s.few > 1) { // images
						a = axisKind{k: 1, s: 1}
					}
					c.K[i], c.S[i], c.Lo[i], *out[i] = a.k, a.s, a.lo, a.size(n)
				}
				if c.FLOPs() < 3e6 { // the reference is slow
					break
				}
				if most := max(c.In.D, c.In.H); most > 1 {
					c.In.D, c.In.H = min(c.In.D, most-1), min(c.In.H, most-1)
				} else if c.In.N > 1 {
					c.In.N, c.Out.N = 1, 1
				} else {
					c.In.W = c.In.W * 2 / 3
				}
			}
			r.holdConv(t, c, types[1])
		}
	})
}

// holdConv compares a convolution, its output of a type, and its gradients with the reference.
func (r *rig) holdConv(t *rapid.T, c gpu.Conv, yType gpu.Type) {
	rng := seeded(t)
	x, w, bias := r.random(rng, c.In.Len()), r.random(rng, c.Taps()*c.In.C*c.Out.C), r.random(rng, c.Out.C)
	dy, add := r.random(rng, c.Out.Len()), r.random(rng, c.Out.Len())
	more := rapid.IntRange(0, 1).Draw(t, "more halo")
	yPad := drawPad(t)

	sizes := r.e.ConvSizes(c)
	packed, packedGrad, work := r.alloc(sizes.Packed), r.alloc(sizes.PackedGrad), r.alloc(sizes.Workspace)
	r.e.PackConv(c, r.floats(w), packed, packedGrad)
	tx, pb := r.putTyped(c.In, c.Halo()+more, c.Pad, c.Type, x), r.floats(bias)

	want, size := refConv(c, x, w, bias)
	ty := r.typed(c.Out, rapid.IntRange(0, 2).Draw(t, "halo of y"), yPad, yType)
	r.e.Conv(c, tx, packed, pb, nil, ty)
	r.close(t, "y", ty, want, size, 2e-6)
	r.checkHalo(t, "y", ty)

	for i, v := range add {
		want[i] += v
		size[i] += math.Abs(v)
	}
	ta := r.putTyped(c.Out, 1, gpu.Zero, yType, add)
	r.e.Conv(c, tx, packed, pb, &ta, ty)
	r.close(t, "y with add", ty, want, size, 2e-6)
	r.e.Conv(c, tx, packed, pb, &ta, ta)
	equal(t, "y over add", r.get(ta), r.get(ty))

	g := refConvGrad(c, x, w, dy)
	tdy := r.putTyped(c.Out, c.Halo()+more, gpu.Zero, yType, dy)
	tdx := r.typed(c.In, rapid.IntRange(0, 2).Draw(t, "halo of dx"), gpu.Zero, c.Type)
	r.e.ConvGradInput(c, tdy, packedGrad, tdx)
	r.close(t, "dx", tdx, g.dx, g.sizeX, 2e-6)
	r.checkHalo(t, "dx", tdx)

	dw, db := r.random(rng, len(w)), r.random(rng, len(bias))
	pdw, pdb := r.floats(dw), r.floats(db)
	r.e.ConvGradWeight(c, tx, tdy, pdw, pdb, work)
	for i, v := range dw {
		g.dw[i] += v
		g.sizeW[i] += math.Abs(v)
	}
	for i, v := range db {
		g.db[i] += v
		g.sizeB[i] += math.Abs(v)
	}
	near(t, "dw", r.read(pdw, len(dw)), g.dw, g.sizeW, 2e-6)
	near(t, "db", r.read(pdb, len(db)), g.db, g.sizeB, 2e-6)
}

// testConvExtent holds convolutions to their word that a voxel's value doesn't depend on the extent around it: a crop gives the
// same bits wherever its taps stay inside it, or leave the whole tensor with it.
func testConvExtent(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		whole, axes := drawConv(t)
		whole.Type = r.kind
		whole.In.N, whole.Out.N = 1, 1
		part := whole
		var from [3]int // the crop's first input
		size := func(d *gpu.Dims) [3]*int { return [3]*int{&d.D, &d.H, &d.W} }
		for i, n := range size(&part.In) {
			step := 1
			if !whole.Transposed {
				step = whole.S[i] // crops begin and end where outputs do
			}
			all := *n
			cells := (all + step - 1) / step
			first := rapid.IntRange(0, cells-1).Draw(t, "first")
			last := rapid.IntRange(first, cells-1).Draw(t, "last")
			from[i], *n = first*step, min((last+1)*step, all)-first*step
			*size(&part.Out)[i] = axes[i].size(*n)
		}
		rng := seeded(t)
		x, w, bias := r.random(rng, whole.In.Len()), r.random(rng, whole.Taps()*whole.In.C*whole.Out.C), r.random(rng, whole.Out.C)
		var crop []float64
		for z := range part.In.D {
			for y := range part.In.H {
				at := (((from[0]+z)*whole.In.H+from[1]+y)*whole.In.W + from[2]) * whole.In.C
				crop = append(crop, x[at:at+part.In.W*whole.In.C]...)
			}
		}
		want := r.get(r.conv(whole, r.put(whole.In, whole.Halo(), whole.Pad, x), w, bias, nil))
		got := r.get(r.conv(part, r.put(part.In, part.Halo(), part.Pad, crop), w, bias, nil))

		var same [3][]bool // which of the crop's outputs must be
		for i := range same {
			n, all := *size(&part.In)[i], *size(&whole.In)[i]
			for o := range *size(&part.Out)[i] {
				ok := true
				for k := range part.K[i] {
					in := o*part.S[i] - part.Lo[i] + k
					if part.Transposed {
						if in = o + part.Lo[i] - k; in%part.S[i] != 0 {
							continue
						}
						in /= part.S[i]
					}
					ok = ok && (in >= 0 || from[i] == 0) && (in < n || from[i]+n == all)
				}
				same[i] = append(same[i], ok)
			}
		}
		at := func(i int) int { // of the whole's outputs is the crop's first
			if whole.Transposed {
				return from[i] * whole.S[i]
			}
			return from[i] / whole.S[i]
		}
		co := whole.Out.C
		for z, okZ := range same[0] {
			for y, okY := range same[1] {
				for x, okX := range same[2] {
					if okZ && okY && okX {
						i := ((z*part.Out.H+y)*part.Out.W + x) * co
						j := (((at(0)+z)*whole.Out.H+at(1)+y)*whole.Out.W + at(2) + x) * co
						equal(t, "voxel of the crop", got[i:i+co], want[j:j+co])
					}
				}
			}
		}
	})
}
