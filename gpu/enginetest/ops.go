package enginetest

import (
	"math"
	"slices"
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"pgregory.net/rapid"
)

func testMemory(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		d := drawDims(t, drawChannels(t, "c"))
		v := r.random(seeded(t), d.Len())
		x := r.put(d, rapid.IntRange(0, 2).Draw(t, "halo"), drawPad(t), v)
		r.exact(t, "tensor read back", x, v)
		r.checkHalo(t, "tensor", x)
		p := r.floats(v)
		equal(t, "floats read back", r.read(p, len(v)), v)
		r.e.Fill(p, len(v)-1, 2.5)
		got := r.read(p, len(v))
		for i := range len(v) - 1 {
			v[i] = 2.5
		}
		equal(t, "filled", got, v)
	})
}

// testReserve checks that an arena takes the place of the one before it, and that 0 bytes leave none.
func testReserve(t *testing.T, e gpu.Engine) {
	for _, floats := range []int{1 << 10, 1 << 20, 0, 1 << 8} {
		if err := e.Reserve(4 * int64(floats)); err != nil {
			t.Fatal(err)
		}
		if floats == 0 {
			continue
		}
		want, got := make([]float32, floats), make([]float32, floats)
		for i := range want {
			want[i] = float32(i)
		}
		e.Write(0, want)
		if e.Read(got, 0); !slices.Equal(got, want) {
			t.Errorf("an arena of %d floats doesn't hold them", floats)
		}
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

// testUpload checks that what is uploaded is there for the Stores behind it, and for those before it is not yet.
func testUpload(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		d := drawDims(t, drawChannels(t, "c"))
		rng, halo, pad := seeded(t), rapid.IntRange(0, 2).Draw(t, "halo"), drawPad(t)
		at := r.alloc(4 * int64(d.Len()))
		if err := r.e.Sync(); err != nil { // an Upload doesn't wait for what filled the arena
			t.Fatalf("%v", err)
		}
		for range 3 {
			a, b := r.random(rng, d.Len()), r.random(rng, d.Len())
			x, y := r.tensor(d, halo, pad), r.tensor(d, halo, pad)
			host := float32s(a)
			r.e.Upload(at, host)
			clear(host)
			r.e.Store(at, x)
			r.e.Upload(at, float32s(b))
			r.e.Store(at, y)
			r.exact(t, "first", x, a)
			r.exact(t, "second", y, b)
			r.checkHalo(t, "first", x)
		}
	})
}

// testCopies checks that Copy and Gather move any bits, those of integers too.
func testCopies(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		width, rows := rapid.IntRange(1, 17).Draw(t, "width"), rapid.IntRange(1, 40).Draw(t, "rows")
		rng := seeded(t)
		src := make([]float32, width*rows)
		for i := range src {
			src[i] = math.Float32frombits(rng.Uint32() >> rng.IntN(32) &^ (1 << 23)) // no NaN, many denormal
		}
		picks := make([]float32, rapid.IntRange(0, 50).Draw(t, "picks"))
		var want []float32
		for i := range picks {
			row := rng.IntN(rows)
			picks[i] = math.Float32frombits(uint32(row))
			want = append(want, src[row*width:][:width]...)
		}
		from, at, whole := r.alloc(4*int64(len(src))), r.alloc(4*int64(len(picks))), r.alloc(4*int64(len(src)))
		r.e.Write(from, src)
		r.e.Write(at, picks)
		gathered := r.alloc(4 * int64(len(want)))
		r.e.Gather(gathered, from, width, at, len(picks))
		r.e.Copy(whole, from, len(src))
		for _, c := range []struct {
			what string
			at   gpu.Ptr
			want []float32
		}{{"gathered", gathered, want}, {"copied", whole, src}} {
			got := make([]float32, len(c.want))
			r.e.Read(got, c.at)
			for i, w := range c.want {
				if math.Float32bits(got[i]) != math.Float32bits(w) {
					t.Fatalf("%s[%d] = %#x, want %#x", c.what, i, math.Float32bits(got[i]), math.Float32bits(w))
				}
			}
		}
	})
}

func testQuantize(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		k := gpu.Quantizer{Codes: rapid.IntRange(1, 70).Draw(t, "codes"), Dim: rapid.IntRange(1, 17).Draw(t, "dim")}
		d := drawDims(t, k.Dim)
		if rapid.IntRange(0, 2).Draw(t, "long") == 0 {
			k.Dim = rapid.SampledFrom([]int{40, 400, 1024}).Draw(t, "long dim")
			d.C, d.D, d.H = k.Dim, 1, 1
		}
		rng := seeded(t)
		z, book := r.random(rng, d.Len()), r.random(rng, k.Codes*k.Dim)
		halo := rapid.IntRange(0, 1).Draw(t, "halo")
		tz, tq := r.put(d, halo, gpu.Replicate, z), r.tensor(d, halo, gpu.Replicate)
		counts0, sums0 := r.random(rng, k.Codes), r.random(rng, len(book))
		pb, idx, counts, sums := r.floats(book), r.alloc(4*int64(d.Voxels())), r.floats(counts0), r.floats(sums0)
		loss, work := r.alloc(4), r.alloc(r.e.QuantizeWork(k, d))
		r.e.Quantize(k, tz, pb, idx, tq, counts, sums, loss, work)

		codes := make([]int32, d.Voxels())
		r.e.Codes(codes, idx)
		code := func(i int) []float64 { return book[i*k.Dim : (i+1)*k.Dim] }
		var want, squares []float64
		for v, c := range codes {
			if c < 0 || int(c) >= k.Codes {
				t.Fatalf("code %d of %d", c, k.Codes)
			}
			at := z[v*k.Dim : (v+1)*k.Dim]
			best := math.Inf(1)
			for i := range k.Codes {
				best = min(best, squared(at, code(i)))
			}
			// Nearly as near is as good: float32 can't tell.
			near(t, "distance to the code", []float64{squared(at, code(int(c)))}, []float64{best}, []float64{dot(at, at)}, 2e-5)
			counts0[c]++
			for j, x := range at {
				sums0[int(c)*k.Dim+j] += x
			}
			want = append(want, code(int(c))...)
			squares = append(squares, squared(at, code(int(c))))
		}
		r.exact(t, "q", tq, want)
		r.checkHalo(t, "q", tq)
		near(t, "counts", r.read(counts, k.Codes), counts0, nil, 1e-6)
		near(t, "sums", r.read(sums, len(book)), sums0, nil, 1e-5)
		var total float64
		for _, s := range squares {
			total += s
		}
		near(t, "loss", r.read(loss, 1), []float64{total / float64(d.Len())}, nil, 1e-5)

		r.e.Quantize(k, tz, pb, idx, tq, -1, -1, loss, work)
		tl := r.tensor(d, halo, gpu.Replicate)
		r.e.Lookup(k, pb, idx, tl)
		r.exact(t, "looked up", tl, want)
		r.checkHalo(t, "looked up", tl)

		dq := r.random(rng, d.Len())
		tdq, tdz, scale := r.put(d, 0, gpu.Zero, dq), r.tensor(d, 1, gpu.Zero), r.floats([]float64{0.25})
		alone := make([]float64, d.Len())
		for i := range alone {
			alone[i] = 0.25 * (z[i] - want[i])
		}
		r.e.QuantizeGrad(k, tz, pb, idx, nil, scale, tdz)
		r.close(t, "dz of the commitment alone", tdz, alone, nil, 1e-6)
		r.e.QuantizeGrad(k, tz, pb, idx, &tdq, scale, tdz)
		for i := range dq {
			dq[i] += alone[i]
		}
		r.close(t, "dz", tdz, dq, nil, 1e-6)
		r.checkHalo(t, "dz", tdz)
		r.e.QuantizeGrad(k, tz, pb, idx, &tdq, scale, tdq)
		equal(t, "dz in place", r.get(tdq), r.get(tdz))
	})
}

func squared(a, b []float64) float64 {
	var s float64
	for i, v := range a {
		s += (v - b[i]) * (v - b[i])
	}
	return s
}

// testQuantizeTies gives every code many equals: the lowest must be found.
func testQuantizeTies(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		k := gpu.Quantizer{Codes: rapid.IntRange(1, 300).Draw(t, "codes"), Dim: 3}
		distinct := rapid.IntRange(1, 40).Draw(t, "distinct")
		rng := seeded(t)
		values := r.random(rng, distinct*k.Dim)
		book, first := make([]float64, 0, k.Codes*k.Dim), map[int]int{}
		for i := range k.Codes {
			v := rng.IntN(distinct)
			if _, ok := first[v]; !ok {
				first[v] = i
			}
			book = append(book, values[v*k.Dim:(v+1)*k.Dim]...)
		}
		var z []float64
		var want []int32
		for v, i := range first {
			z = append(z, values[v*k.Dim:(v+1)*k.Dim]...)
			want = append(want, int32(i))
		}
		d := gpu.Dims{N: 1, D: 1, H: 1, W: len(want), C: k.Dim}
		tz, tq := r.put(d, 0, gpu.Zero, z), r.tensor(d, 0, gpu.Zero)
		idx := r.alloc(4 * int64(len(want)))
		r.e.Quantize(k, tz, r.floats(book), idx, tq, -1, -1, r.alloc(4), r.alloc(r.e.QuantizeWork(k, d)))
		got := make([]int32, len(want))
		r.e.Codes(got, idx)
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("code %d, want %d, the first of its equals", got[i], want[i])
			}
		}
	})
}

func testReconLoss(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		d := drawDims(t, rapid.IntRange(1, 3).Draw(t, "c"))
		rng := seeded(t)
		y, x := r.random(rng, d.Len()), r.random(rng, d.Len())
		x[0] = y[0] // sign(0) = 0
		const l1, l2, scale = 0.75, 0.5, 3
		var want [4]float64
		clip := func(v float64) float64 { return min(max(v, -1), 1) }
		dy := make([]float64, d.Len())
		n := float64(d.Len())
		for i := range y {
			e, c := y[i]-x[i], clip(y[i])-clip(x[i])
			want[0] += math.Abs(e) / n
			want[1] += e * e / n
			want[2] += c * c / n
			dy[i] = l2 * 2 * e
			if e != 0 {
				dy[i] += l1 * math.Copysign(1, e)
			}
			dy[i] *= scale / n
		}
		ty, tt := r.put(d, 1, gpu.Replicate, y), r.put(d, 0, gpu.Zero, x)
		out, work, by := r.alloc(16), r.alloc(r.e.LossWork(d)), r.floats([]float64{scale})
		r.e.ReconLoss(ty, tt, l1, l2, -1, nil, out, work)
		near(t, "losses", r.read(out, 4), want[:], nil, 2e-6)
		td := r.tensor(d, 1, gpu.Zero)
		r.e.ReconLoss(ty, tt, l1, l2, by, &td, out, work)
		near(t, "losses", r.read(out, 4), want[:], nil, 2e-6)
		r.close(t, "dy", td, dy, nil, 1e-6)
		r.checkHalo(t, "dy", td)
		over := ty
		over.Pad = gpu.Zero
		r.e.ReconLoss(ty, tt, l1, l2, by, &over, out, work)
		equal(t, "dy over y", r.get(over), r.get(td))
		r.checkHalo(t, "dy over y", over)
	})
}

func testReconLossNotFinite(t *testing.T, r *rig) {
	d := gpu.Dims{N: 1, D: 2, H: 3, W: 37, C: 1}
	y := make([]float64, d.Len())
	y[0], y[5], y[40], y[d.Len()-1] = math.NaN(), math.Inf(1), math.Inf(-1), math.NaN()
	out := r.alloc(16)
	r.e.ReconLoss(r.put(d, 0, gpu.Zero, y), r.put(d, 0, gpu.Zero, make([]float64, d.Len())), 1, 1, -1, nil, out, r.alloc(r.e.LossWork(d)))
	if got := r.read(out, 4)[3]; got != 4 {
		t.Fatalf("%v values that aren't finite, want 4", got)
	}
}

func testSumSquares(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		v := r.random(seeded(t), rapid.IntRange(1, 40000).Draw(t, "n"))
		p, out, work := r.floats(v), r.alloc(4), r.alloc(r.e.SumSquaresWork(len(v)))
		r.e.SumSquares(p, len(v), out, work)
		near(t, "sum", r.read(out, 1), []float64{dot(v, v)}, nil, 2e-6)
		bad := rapid.SampledFrom([]float64{math.NaN(), math.Inf(1), math.Inf(-1)}).Draw(t, "bad")
		v[rapid.IntRange(0, len(v)-1).Draw(t, "at")] = bad
		r.e.SumSquares(r.floats(v), len(v), out, work)
		if got := r.read(out, 1)[0]; !math.IsNaN(got) && !math.IsInf(got, 0) {
			t.Fatalf("sum of squares with %v is %v", bad, got)
		}
	})
}

func testAdam(t *testing.T, r *rig) {
	r.check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 100).Draw(t, "n")
		rng := seeded(t)
		p, grad, m, v, ema := r.random(rng, n), r.random(rng, n), r.random(rng, n), r.random(rng, n), r.random(rng, n)
		for i := range v {
			v[i] *= v[i]
		}
		a := gpu.Adam{LR: 1e-2, Beta1: 0.5, Beta2: 0.9, Eps: 1e-8, WeightDecay: 0.125, GradScale: 0.5, EMADecay: 0.75, Step: rapid.IntRange(1, 50).Draw(t, "step")}
		pp, pg, pm, pv, pe := r.floats(p), r.floats(grad), r.floats(m), r.floats(v), r.floats(ema)
		if rapid.Bool().Draw(t, "no ema") {
			r.e.AdamStep(a, pp, pg, pm, pv, -1, n)
		} else {
			r.e.AdamStep(a, pp, pg, pm, pv, pe, n)
			defer func() { near(t, "ema", r.read(pe, n), ema, nil, 3e-6) }()
		}
		b1, b2 := float64(a.Beta1), float64(a.Beta2)
		for i := range p {
			g := grad[i] * float64(a.GradScale)
			m[i] = b1*m[i] + (1-b1)*g
			v[i] = b2*v[i] + (1-b2)*g*g
			mhat, vhat := m[i]/(1-math.Pow(b1, float64(a.Step))), v[i]/(1-math.Pow(b2, float64(a.Step)))
			lr := float64(a.LR)
			p[i] -= lr * float64(a.WeightDecay) * p[i]
			p[i] -= lr * mhat / (math.Sqrt(vhat) + float64(a.Eps))
			ema[i] = float64(a.EMADecay)*ema[i] + (1-float64(a.EMADecay))*p[i]
		}
		near(t, "p", r.read(pp, n), p, nil, 3e-6)
		near(t, "m", r.read(pm, n), m, nil, 3e-6)
		near(t, "v", r.read(pv, n), v, nil, 3e-6)
	})
}
