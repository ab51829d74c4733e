package phantom

import (
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// whole is a phantom held whole.
type whole struct {
	dims    [3]int
	spacing [3]float64 // mm
	vox     []int16
}

func generate(o Options) *whole {
	p := &whole{dims: o.Size, spacing: o.Voxel()}
	for _, s := range Slices(o) {
		p.vox = append(p.vox, s...)
	}
	return p
}

func TestVoxelsAreAFunctionOfTheOptions(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, o := range []Options{
		{Size: [3]int{1, 1, 1}},
		{Size: [3]int{24, 18, 21}, Noise: 12, Seed: 1},
		{Size: [3]int{2, 9, 5}, Spacing: [3]float64{40, 0.5, 3}, Seed: 2},
		{Size: [3]int{20, 20, 3}, Spacing: [3]float64{0.5, 0.5, 0}, Noise: 300},
	} {
		runtime.GOMAXPROCS(1)
		p := generate(o)
		for _, cores := range []int{2, 4} {
			runtime.GOMAXPROCS(cores)
			if !slices.Equal(generate(o).vox, p.vox) {
				t.Errorf("%+v: other voxels on %d cores", o, cores)
			}
		}
		plane, next := o.Size[0]*o.Size[1], 0
		for z, s := range Slices(o) {
			if z != next || len(s) != plane {
				t.Fatalf("%+v: slice %d (want %d) of %d voxels", o, z, next, len(s))
			}
			next++
		}
		if next != o.Size[2] {
			t.Errorf("%+v: %d slices", o, next)
		}
	}
}

func TestSlicesMayBeLeftEarly(t *testing.T) {
	before := runtime.NumGoroutine()
	for z := range Slices(Options{Size: [3]int{8, 8, 100}}) {
		if z == 3 {
			break
		}
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, %d before", n, before)
	}
}

// chest is small, and the whole of it is in view.
func chest(seed uint64) *whole {
	return generate(Options{Size: [3]int{72, 72, 60}, Seed: seed})
}

// each calls f with the place, in mm from the middle, and HU of every voxel.
func (p *whole) each(f func(at vec, hu int16)) {
	i := 0
	for z := range p.dims[2] {
		for y := range p.dims[1] {
			for x := range p.dims[0] {
				var at vec
				for a, k := range [3]int{x, y, z} {
					at[a] = p.spacing[a] * (float64(k) - float64(p.dims[a]-1)/2)
				}
				f(at, p.vox[i])
				i++
			}
		}
	}
}

func TestEveryPatientHasAChest(t *testing.T) {
	for seed := range uint64(5) {
		var air, lungs, fat, soft, contrast, bone float64
		var heart, spine, liver mean
		p := chest(seed)
		p.each(func(at vec, hu int16) {
			switch {
			case hu < -930:
				air++
			case hu < -700:
				lungs++
			case hu > -130 && hu < -60:
				fat++
			case hu > 20 && hu < 150:
				soft++
			case hu > 160 && hu < 500:
				contrast++
			case hu > 500:
				bone++
			}
			// Between the lungs' roots and the diaphragm, what is not lung inside the chest is heart.
			if at[2] > -55 && at[2] < -25 && math.Hypot(at[0], at[1]-10) < 70 && hu > 60 {
				heart.add(at[0])
			}
			if hu > 400 && math.Abs(at[0]) < 25 && at[2] < 60 && at[1] < 40 {
				spine.add(at[1])
			}
			if at[2] < -125 && hu > 90 && hu < 115 {
				liver.add(at[0])
			}
		})
		n := float64(len(p.vox))
		for _, c := range []struct {
			name        string
			got, lo, hi float64
		}{
			{"share of air", air / n, 0.35, 0.75},
			{"share of lung", lungs / n, 0.08, 0.25},
			{"share of fat", fat / n, 0.03, 0.25},
			{"share of soft tissue", soft / n, 0.08, 0.3},
			{"share of contrast", contrast / n, 0.006, 0.06},
			{"share of bone", bone / n, 0.003, 0.05},
			{"x of the heart (left is negative)", heart.value(), -35, -5},
			{"y of the spine (the back is negative)", spine.value(), -100, -30},
			{"x of the liver (right is positive)", liver.value(), 15, 80},
		} {
			if !(c.got > c.lo && c.got < c.hi) {
				t.Errorf("seed %d: %s is %.3f (want %g..%g)", seed, c.name, c.got, c.lo, c.hi)
			}
		}
	}
}

type mean struct{ sum, n float64 }

func (m *mean) add(x float64)  { m.sum += x; m.n++ }
func (m *mean) value() float64 { return m.sum / m.n }

func TestSeedsAreOtherPatientsAndSizesAreNot(t *testing.T) {
	difference := func(a, b *whole) (d float64) {
		for i := range a.vox {
			d += math.Abs(float64(a.vox[i]) - float64(b.vox[i]))
		}
		return d / float64(len(a.vox))
	}
	a := chest(1)
	if d := difference(a, chest(2)); d < 40 {
		t.Errorf("seeds 1 and 2 differ by %.1f HU", d)
	}
	// Every second voxel of a twice as fine grid that shares the world with a is beside one of a's.
	fine := generate(Options{Size: [3]int{144, 144, 120}, Seed: 1})
	half := &whole{dims: a.dims, vox: make([]int16, len(a.vox))}
	for i := range half.vox {
		x, y, z := i%72, i/72%72, i/72/72
		sum := 0
		for k := range 8 {
			sum += int(fine.vox[((2*z+k>>2)*144+2*y+k>>1&1)*144+2*x+k&1])
		}
		half.vox[i] = int16(sum / 8)
	}
	if d := difference(a, half); d > 25 {
		t.Errorf("one patient on two grids differs by %.1f HU", d)
	}
}

func TestNoiseIsWhatWasAskedFor(t *testing.T) {
	o := Options{Size: [3]int{96, 96, 48}, Spacing: [3]float64{0.5, 0.5, 0.5}, Seed: 5} // 24 mm about the middle
	clean := generate(o)
	o.Noise = 20
	noisy := generate(o)
	var all, square, beside, apart mean
	at := func(i int) float64 { return float64(noisy.vox[i]) - float64(clean.vox[i]) }
	for i := range len(clean.vox) - 96*96*3 {
		if i%96 > 92 {
			continue
		}
		d := at(i)
		all.add(d)
		square.add(d * d)
		beside.add(d * at(i+96*96)) // along z: [1 2 1]·[1 2 1] shifted by 1, 4/6
		apart.add(d * at(i+96*96*3))
	}
	if math.Abs(all.value()) > 0.5 {
		t.Errorf("mean %.2f HU", all.value())
	}
	if s := math.Sqrt(square.value()); s < 18.5 || s > 20.5 {
		t.Errorf("deviation %.2f HU, want 20 or a little less", s)
	}
	if r := beside.value() / square.value(); math.Abs(r-4.0/6) > 0.03 {
		t.Errorf("correlation along z %.3f, want 0.667", r)
	}
	if r := apart.value() / square.value(); math.Abs(r) > 0.03 {
		t.Errorf("correlation at 3 slices %.3f, want 0", r)
	}
}

func TestOptions(t *testing.T) {
	o := Options{Size: [3]int{512, 512, 600}}
	if v := o.Voxel(); v != [3]float64{360.0 / 512, 360.0 / 512, 0.5} {
		t.Errorf("the chest does not fit: voxels of %v", v)
	}
	o = Options{Size: [3]int{5, 3, 2}, Spacing: [3]float64{2, 3, 4}}
	if m := o.Affine(); m != [3][4]float64{{2, 0, 0, -4}, {0, 3, 0, -3}, {0, 0, 4, -2}} {
		t.Errorf("affine %v", m)
	}
	for text, o := range map[string]Options{
		"size: 0 voxels along y":     {Size: [3]int{1, 0, 1}},
		"spacing: -1 mm along z":     {Size: [3]int{1, 1, 1}, Spacing: [3]float64{0, 0, -1}},
		"noise: NaN":                 {Size: [3]int{1, 1, 1}, Noise: math.NaN()},
		"spacing: +Inf mm along x":   {Size: [3]int{1, 1, 1}, Spacing: [3]float64{math.Inf(1), 0, 0}},
		"size: 40000 voxels along x": {Size: [3]int{40000, 1, 1}},
	} {
		if err := o.Check(); err == nil || !strings.HasPrefix(err.Error(), text) {
			t.Errorf("got %v, want %q", err, text)
		}
	}
}

func TestTreesReachEveryPointInsideTheLung(t *testing.T) {
	p := newPatient(7)
	for _, side := range []float64{1, -1} {
		points := p.lungPoints("test", side, 300)
		want := slices.Clone(points)
		for _, q := range want {
			if q[0]*side <= 0 {
				t.Fatalf("point %v is in the other lung", q)
			}
		}
		bs := grow(hilum(side), vec{side, 0, 0}, points, 0.5, 20)
		ends := map[vec]bool{hilum(side): true}
		root := bs[0].ra
		for _, b := range bs { // mothers come before daughters
			if !ends[b.a] {
				t.Fatalf("branch from %v hangs in the air", b.a)
			}
			if b.ra > root || b.rb > b.ra || b.rb < 0.4 {
				t.Fatalf("radii %g, %g under a root of %g", b.ra, b.rb, root)
			}
			ends[b.b] = true
		}
		for _, q := range want {
			if !ends[q] {
				t.Fatalf("%v was not reached", q)
			}
		}
		if math.Abs(root-0.5*math.Cbrt(300)) > 1e-9 {
			t.Errorf("root %g mm, Murray's law wants %g", root, 0.5*math.Cbrt(300))
		}
	}
}

func TestEllipsoidDistanceIsZeroOnItsSurface(t *testing.T) {
	e := newPatient(1).heart
	rapid.Check(t, func(t *rapid.T) {
		u := vec{rapid.Float64Range(-1, 1).Draw(t, "u"), rapid.Float64Range(-1, 1).Draw(t, "v"), rapid.Float64Range(0.1, 1).Draw(t, "w")}.unit()
		q := e.centre
		for a := range 3 {
			q = q.add(e.axes[a].mul(u[a] * e.radii[a]))
		}
		if d := e.distance(q); math.Abs(d) > 1e-9 {
			t.Fatalf("%v: %g", u, d)
		}
		if e.distance(e.centre.toward(q, 0.9)) >= 0 || e.distance(e.centre.toward(q, 1.1)) <= 0 {
			t.Fatal("sign")
		}
		s := shape{ball: &e}
		for a := range 3 {
			if lo, hi := s.extent(a); q[a] < lo-1e-9 || q[a] > hi+1e-9 {
				t.Fatalf("%v is outside the extent %g..%g", q, lo, hi)
			}
		}
	})
	if d := e.distance(e.centre); d >= 0 {
		t.Errorf("centre: %g", d)
	}
}
