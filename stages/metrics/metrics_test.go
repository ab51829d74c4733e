package metrics

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// image makes the volumes of integration/reference/ssim_fixture.py.
func image(size [3]int, salt int) []float32 {
	v := make([]float32, 0, size[0]*size[1]*size[2])
	for z := range size[2] {
		for y := range size[1] {
			for x := range size[0] {
				noise := int(uint32(len(v)*2654435761+salt*40503)>>16) % 256
				ramp := (x*11 + y*7 + z*5) % 192
				v = append(v, float32(float64(ramp+noise/(2+salt))/160-1))
			}
		}
	}
	return v
}

type reference struct {
	SSIM []struct {
		Size       [3]int
		SSIM, PSNR float64
	}
	HFEN []struct {
		Size        [3]int
		Norm, Ratio float64
	}
	Trilinear []struct {
		Size, Factor [3]int
		Want         []float32
	}
}

func loadReference(t testing.TB) (r reference) {
	data, err := os.ReadFile("testdata/reference.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func near(t *testing.T, name string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance) {
		t.Errorf("%s: got %v, want %v", name, got, want)
	}
}

// ssim is SSIM of volumes held whole.
func ssim(orig, recon []float32, size [3]int, workers int) float64 {
	s := NewSSIM(size, workers)
	plane := size[0] * size[1]
	for z := range size[2] {
		s.Add(orig[z*plane:][:plane], recon[z*plane:][:plane])
	}
	return s.Mean()
}

func TestSSIMAndPSNRAreThoseOfScikitImage(t *testing.T) {
	for _, c := range loadReference(t).SSIM {
		a, b := image(c.Size, 0), image(c.Size, 1)
		near(t, "SSIM", ssim(a, b, c.Size, 2), c.SSIM, 1e-9)
		m := newMeter()
		m.BeginScan("a")
		check(t, m.Add(a, b, c.Size))
		near(t, "PSNR", m.Result().PSNR, c.PSNR, 1e-9)
	}
}

func TestTrilinearIsThatOfPyTorch(t *testing.T) {
	for _, c := range loadReference(t).Trilinear {
		v := image(c.Size, 0)
		if err := Trilinear(v, v, c.Size, c.Factor); err != nil { // in place
			t.Fatal(err)
		}
		for i := range v {
			near(t, "voxel", float64(v[i]), float64(c.Want[i]), 1e-6)
		}
	}
}

func TestTrilinearKeepsConstantsAndFactorOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size, factor := drawSize(t, 9), drawSize(t, 4)
		src := image(size, 0)
		dst := make([]float32, len(src))
		if err := Trilinear(dst, src, size, [3]int{1, 1, 1}); err != nil || !slices.Equal(dst, src) {
			t.Fatalf("factor 1 changed the volume (%v)", err)
		}
		for i := range src {
			src[i] = 0.5
		}
		if err := Trilinear(dst, src, size, factor); err != nil || !slices.Equal(dst, src) {
			t.Fatalf("a constant changed (%v)", err)
		}
	})
	if Trilinear(make([]float32, 8), make([]float32, 8), [3]int{2, 2, 2}, [3]int{0, 1, 1}) == nil {
		t.Error("factor 0 accepted")
	}
	if Trilinear(make([]float32, 7), make([]float32, 8), [3]int{2, 2, 2}, [3]int{1, 1, 1}) == nil {
		t.Error("short destination accepted")
	}
}

func drawSize(t *rapid.T, most int) (s [3]int) {
	for a := range s {
		s[a] = rapid.IntRange(1, most).Draw(t, "size")
	}
	return s
}

func TestSSIMBitsDoNotDependOnWorkers(t *testing.T) {
	size := [3]int{17, 2*chunk + 31, 13} // several chunks of rows
	a, b := image(size, 0), image(size, 1)
	want := ssim(a, b, size, 1)
	for _, workers := range []int{0, 2, 5} {
		if got := ssim(a, b, size, workers); got != want {
			t.Errorf("%d workers: %v, want %v", workers, got, want)
		}
	}
}

func TestSSIMOfAnImageWithItselfIsOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := drawSize(t, 15)
		v := image(size, 0)
		if s := ssim(v, v, size, 1); math.Abs(s-1) > 1e-12 {
			t.Fatalf("size %v: %v", size, s)
		}
	})
}

func newMeter() *Meter { return &Meter{Window: [2]float64{-1000, 1000}} }

func TestMeterByHand(t *testing.T) {
	m := newMeter()
	// Scan a: 4 voxels at -1000, -1000, 0 and 1000 HU; off by 100 HU in air and 200 HU in the body.
	m.BeginScan("a")
	check(t, m.Add([]float32{-1, -1, 0, 1}, []float32{-0.9, -1, 0.2, 1}, [3]int{2, 2, 1}))
	// Scan b: twice what the window hides, once nothing wrong.
	m.BeginScan("b")
	check(t, m.Add([]float32{3, -3}, []float32{1, -1}, [3]int{1, 1, 2}))
	m.BeginScan("c")
	check(t, m.Add([]float32{-1, -1}, []float32{-1, 0}, [3]int{2, 1, 1}))
	r := m.Result()

	a := r.Scans[0]
	near(t, "a PSNR", a.PSNR, 10*math.Log10(4/((0.01+0.04)/4)), 1e-5)
	near(t, "a body", a.PSNRBody, 10*math.Log10(4/(0.04/2)), 1e-5)
	near(t, "a MAE", a.MAEHU, 75, 1e-4)
	near(t, "a L1", a.L1, 0.075, 1e-7)
	if a.ID != "a" || a.Voxels != 4 || a.BodyVoxels != 2 {
		t.Errorf("a: %+v", a)
	}
	if b := r.Scans[1]; b.PSNR != MaxPSNR || b.PSNRBody != MaxPSNR || b.SSIM != 1 {
		t.Errorf("b: %+v", b)
	}
	if c := r.Scans[2]; !math.IsNaN(c.PSNRBody) {
		t.Errorf("c has no body: %+v", c)
	}
	near(t, "pooled", r.PSNR, 10*math.Log10(4/((0.01+0.04+1)/8)), 1e-5)
	near(t, "mean", r.PSNRMean, (a.PSNR+100+r.Scans[2].PSNR)/3, 1e-9)
	near(t, "body mean", r.PSNRBodyMean, (a.PSNRBody+100)/2, 1e-9)
	if r.Voxels != 8 || r.WindowHU != 2000 {
		t.Errorf("%+v", r)
	}
}

func TestMeterSurfacesNaN(t *testing.T) {
	m := newMeter()
	m.BeginScan("a")
	check(t, m.Add([]float32{0, 0}, []float32{0, float32(math.NaN())}, [3]int{2, 1, 1}))
	r := m.Result()
	if !math.IsNaN(r.PSNR) || !math.IsNaN(r.SSIM) || !math.IsNaN(r.L1) {
		t.Errorf("%+v", r)
	}
	if data, err := json.Marshal(Row{Measures: r.Measures}); err != nil || !strings.Contains(string(data), `"psnr":null`) {
		t.Errorf("%s %v", data, err)
	}
}

func TestMeterBlocksAndWorkersDoNotMatterToSums(t *testing.T) {
	size := [3]int{12, 14, 13}
	a, b := image(size, 0), image(size, 1)
	whole := newMeter()
	whole.BeginScan("s")
	check(t, whole.Add(a, b, size))
	sliced := &Meter{Window: whole.Window, Workers: 3}
	sliced.BeginScan("s")
	block, err := sliced.Block(size)
	check(t, err)
	for z := range size[2] {
		check(t, block.Add(a[z*12*14:][:12*14], b[z*12*14:][:12*14]))
	}
	check(t, block.End())
	if w, s := fmt.Sprint(whole.Result()), fmt.Sprint(sliced.Result()); w != s { // NaN is NaN
		t.Errorf("%s\n%s", w, s)
	}
	near(t, "SSIM", whole.Result().SSIM, ssim(a, b, size, 1), 0)
}

func TestMeterRefuses(t *testing.T) {
	v := make([]float32, 8)
	cube := [3]int{2, 2, 2}
	m := newMeter()
	refuse(t, "no scan begun", m.Add(v, v, cube))
	m.BeginScan("a")
	refuse(t, "want 8", m.Add(v, v[:7], cube))
	refuse(t, "no voxels", m.Add(nil, nil, [3]int{0, 1, 1}))
	b, err := m.Block(cube)
	check(t, err)
	refuse(t, "want 4", b.Add(v, v))
	refuse(t, "0 slices of 2", b.End())
	check(t, b.Add(v[:4], v[:4]))
	check(t, b.Add(v[:4], v[:4]))
	refuse(t, "the block has 2", b.Add(v[:4], v[:4]))
	empty := &Meter{}
	empty.BeginScan("a")
	refuse(t, "window", empty.Add(v, v, cube))
	if n := m.Result().Voxels; n != 0 {
		t.Errorf("%d voxels of refused blocks", n)
	}
}

func TestUsage(t *testing.T) {
	u := NewUsage(8, 1)
	if u.Perplexity() != 0 || u.Share() != 0 {
		t.Error("unused codebook")
	}
	check(t, u.Add([]int32{0, 0, 3, 3}))
	near(t, "two even codes", u.Perplexity(), 2, 1e-12)
	near(t, "share", u.Share(), 0.25, 0)
	check(t, u.Add([]int32{7, 7, 7, 7}))
	near(t, "¼ ¼ ½", u.Perplexity(), math.Pow(2, 1.5), 1e-12)
	once := NewUsage(4, 1)
	check(t, once.Add([]int32{2}))
	near(t, "one code once", once.Share(), 0.25, 0)
	near(t, "one code once", once.Perplexity(), 1, 0)
	refuse(t, "want 0..7", u.Add([]int32{8}))
	refuse(t, "want 0..7", u.Add([]int32{-1}))
	if u.Total() != 8 {
		t.Errorf("total %d", u.Total())
	}
}

func TestUsageOfTwoCodebooks(t *testing.T) {
	u := NewUsage(8, 2)
	check(t, u.Add([]int32{0, 5, 0, 6, 3, 5, 3, 6})) // 0 and 3 of the first, 5 and 6 of the second
	check(t, u.Add([]int32{0, 7, 0, 7, 3, 7, 3, 7}))
	near(t, "latents", float64(u.Total()), 8, 0)
	near(t, "bits", u.Bits(), 6, 0)
	near(t, "entropy", u.Entropy(), 1+1.5, 1e-12)
	near(t, "perplexity", u.Perplexity(), math.Sqrt(2*math.Pow(2, 1.5)), 1e-12)
	near(t, "share", u.Share(), 5.0/16, 0)
	if !slices.Equal(u.Counts(), []int64{4, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 4}) {
		t.Errorf("counts %v", u.Counts())
	}
	refuse(t, "want 0..7", u.Add([]int32{1, 8}))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func refuse(t *testing.T, text string, err error) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want an error with %q", err, text)
	}
}

func BenchmarkSSIM(b *testing.B) {
	size := [3]int{128, 128, 24}
	x, y := image(size, 0), image(size, 1)
	b.ReportAllocs()
	for b.Loop() {
		ssim(x, y, size, 1)
	}
	b.ReportMetric(float64(len(x))*float64(b.N)/b.Elapsed().Seconds(), "voxels/s")
}

func BenchmarkTrilinear(b *testing.B) {
	size := [3]int{128, 128, 32}
	v := image(size, 0)
	dst := make([]float32, len(v))
	for b.Loop() {
		if err := Trilinear(dst, v, size, [3]int{4, 4, 4}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(v))*float64(b.N)/b.Elapsed().Seconds(), "voxels/s")
}
