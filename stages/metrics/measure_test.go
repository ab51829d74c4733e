package metrics

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"runtime"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/volume"
	"pgregory.net/rapid"
)

// made returns a volume of samples in HU, and counts it in held until it is released.
func made(id string, dims [3]int, samples []int16, window [2]float64, held *int) *volume.Volume {
	*held++
	v := &volume.Volume{Scan: &volume.Scan{ID: id}, Dims: dims, Window: window, Slope: 1}
	return v.Own(&volume.Memory{Data: samples, Dims: dims}, func() { *held-- })
}

// slabs cuts a merged volume into slabs of so many slices, and releases v.
func slabs(v *volume.Volume, recon []float32, each int) iter.Seq[*volume.Slab] {
	return func(yield func(*volume.Slab) bool) {
		defer v.Release()
		plane := v.Dims[0] * v.Dims[1]
		for z := 0; z < v.Dims[2]; z += each {
			to := min(z+each, v.Dims[2])
			if !yield(&volume.Slab{Volume: v.Retain(), Z0: z, Z1: to, Voxels: recon[z*plane : to*plane]}) {
				return
			}
		}
	}
}

// both gives slabs of one sequence and of the other in turn.
func both(a, b iter.Seq[*volume.Slab]) iter.Seq[*volume.Slab] {
	return func(yield func(*volume.Slab) bool) {
		next, stop := iter.Pull(b)
		defer stop()
		for s := range a {
			if !yield(s) {
				return
			}
			if s, ok := next(); ok && !yield(s) {
				return
			}
		}
		for s, ok := next(); ok; s, ok = next() {
			if !yield(s) {
				return
			}
		}
	}
}

// drain takes all slabs, and returns their number and the error.
func drain(in iter.Seq[*volume.Slab], s *Study) (n int, err error) {
	for slab, err := range Measure(in, s) {
		if err != nil {
			return n, err
		}
		n++
		slab.Release()
	}
	return n, nil
}

// unit is HU in [-1, 1] of a window, not clipped.
func unit(hu float64, window [2]float64) float32 {
	return float32(2*(hu-window[0])/(window[1]-window[0]) - 1)
}

var wide = [2]float64{-1000, 1000}

func TestMeasureByHand(t *testing.T) {
	// Two voxels along each of x and z, one along y; tiles met in the middle of z. The reconstruction is off by 10, 20, 0
	// and 40 HU in air, lung, soft tissue and bone.
	held := 0
	dims := [3]int{2, 1, 2}
	v := made("a", dims, []int16{-1020, -700, 0, 300}, wide, &held)
	recon := []float32{unit(-990, wide), unit(-680, wide), unit(0, wide), unit(260, wide)}
	s := &Study{Codebook: 4, Borders: func(*volume.Volume) [3][]int { return [3][]int{{1}, nil, {0, 2}} }}
	check(t, s.Codes("a", []int32{0, 0, 1, 1}))
	check(t, s.Codes("b", []int32{3}))
	n, err := drain(slabs(v, recon, 1), s)
	check(t, err)
	if n != 2 || held != 0 {
		t.Errorf("%d slabs, %d volumes held", n, held)
	}
	sum := s.Summary()
	r := sum.Scans[0]
	near(t, "PSNR", r.PSNR, 10*math.Log10(2000*2000/((100.0+400+1600)/4)), 1e-3)
	near(t, "PSNR body", r.PSNRBody, 10*math.Log10(2000*2000/(1600.0/2)), 1e-3)
	near(t, "MAE", r.MAEHU, 17.5, 1e-3)
	for i, hu := range []float64{10, 20, 0, 40} { // -1020 HU was clipped to -1000
		near(t, Tissue(i).String(), r.TissueHU[i], hu, 1e-3)
	}
	if r.TissueVoxels != [4]int64{1, 1, 1, 1} || r.BodyVoxels != 2 || r.Dims != dims || r.ID != "a" {
		t.Errorf("%+v", r)
	}
	if !math.IsNaN(r.Seam) { // every voxel touches the border at x=1
		t.Errorf("seam %v", r.Seam)
	}
	near(t, "bits", r.Code.Bits, 4*2.0/4, 0) // 4 codes of 2 bits for 4 voxels
	near(t, "entropy", r.Code.Entropy, 4*1.0/4, 1e-12)
	near(t, "perplexity", r.Code.Perplexity, 2, 1e-12)
	near(t, "usage", r.Code.Share, 0.5, 0)
	if !math.IsNaN(r.Trilinear.PSNR) || r.Trilinear.Voxels != 0 {
		t.Errorf("baseline %+v", r.Trilinear)
	}
	if sum.Window != wide || fmt.Sprint(sum.Pooled.Measures) != fmt.Sprint(r.Measures) {
		t.Errorf("%+v", sum)
	}
}

func TestThresholdsBelongToTheTissueBelow(t *testing.T) {
	held := 0
	samples := []int16{-951, -950, -500, -499, 200, 201}
	v := made("a", [3]int{6, 1, 1}, samples, [2]float64{-160, 240}, &held) // a window doesn't matter to them
	s := &Study{}
	_, err := drain(slabs(v, make([]float32, 6), 1), s)
	check(t, err)
	if n := s.Summary().Pooled.TissueVoxels; n != [4]int64{1, 2, 2, 1} {
		t.Errorf("%v", n)
	}
}

// TestMeasureIsTheMeterOfTheWholeVolumes: several scans among each other, any slabs, windows and workers.
func TestMeasureIsTheMeterOfTheWholeVolumes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		read := [2]float64{-1000, 600}
		window := rapid.SampledFrom([][2]float64{{}, read, {-160, 240}, {-1000, 0}}).Draw(t, "window")
		factor := drawSize(t, 4)
		s := &Study{Options: Options{WindowHU: window, Trilinear: true}, Factor: factor, Workers: rapid.IntRange(0, 2).Draw(t, "workers")}
		if window == [2]float64{} {
			window = read
		}
		model, base := &Meter{Window: window, Fine: true}, &Meter{Window: window}
		held := 0
		var streams []iter.Seq[*volume.Slab]
		for i := range 2 {
			size := drawSize(t, 14)
			samples := make([]int16, size[0]*size[1]*size[2])
			orig, input, recon := make([]float32, len(samples)), make([]float32, len(samples)), image(size, i+1)
			measured := make([]float32, len(samples))
			for j, x := range image(size, i) {
				samples[j] = int16(1000 * x)
				hu := float64(samples[j])
				orig[j], input[j] = unit(hu, window), clip(unit(hu, read))
				recon[j] = clip(recon[j])
				measured[j] = unit(read[0]+(float64(recon[j])+1)*800, window)
			}
			id := fmt.Sprint(i)
			v := made(id, size, samples, read, &held)
			v.Scan.Index = i
			streams = append(streams, slabs(v, recon, rapid.IntRange(1, 5).Draw(t, "slab")))
			low := make([]float32, len(input))
			if err := Trilinear(low, input, size, factor); err != nil {
				t.Fatal(err)
			}
			for j, x := range low {
				low[j] = unit(read[0]+(float64(x)+1)*800, window)
			}
			for m, recon := range map[*Meter][]float32{model: measured, base: low} {
				m.BeginScan(id)
				if err := m.Add(orig, recon, size); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := drain(both(streams[1], streams[0]), s); err != nil || held != 0 {
			t.Fatal(err, held)
		}
		sum := s.Summary()
		same := func(name string, got, want Measures) {
			g, w := got.fields(), want.fields()
			for i := range g {
				if x, ok := g[i].value.(float64); ok && !(math.Abs(x-w[i].value.(float64)) <= 2e-4*max(1, math.Abs(x))) && !math.IsNaN(x) || !ok && g[i] != w[i] {
					t.Fatalf("%s %s: %v, want %v", name, g[i].key, g[i].value, w[i].value)
				}
			}
		}
		m, b := model.Result(), base.Result()
		for i, r := range sum.Scans {
			same(r.ID, r.Measures, m.Scans[i].Measures)
			same(r.ID+" trilinear", r.Trilinear, b.Scans[i].Measures)
		}
		same("pooled", sum.Pooled.Measures, m.Measures)
		same("pooled trilinear", sum.Pooled.Trilinear, b.Measures)
		if math.Abs(sum.Mean.PSNR-m.PSNRMean) > 1e-3 || math.Abs(sum.Mean.SSIM-m.SSIMMean) > 1e-3 {
			t.Fatalf("mean %v %v", sum.Mean, m)
		}
	})
}

func TestMeasureOfTheOriginalIsPerfect(t *testing.T) {
	for _, window := range [][2]float64{{}, {-160, 240}} {
		held := 0
		size := [3]int{13, 12, 14}
		samples, recon := make([]int16, 13*12*14), make([]float32, 13*12*14)
		for i, x := range image(size, 0) {
			samples[i] = int16(1500 * x)
			recon[i] = clip(unit(float64(samples[i]), wide))
		}
		s := &Study{Options: Options{WindowHU: window}}
		_, err := drain(slabs(made("a", size, samples, wide, &held), recon, 3), s)
		check(t, err)
		if r := s.Summary().Pooled; r.PSNR != MaxPSNR || r.PSNRBody != MaxPSNR || r.SSIM < 1-1e-6 || r.MAEHU > 1e-3 {
			t.Errorf("window %v: %+v", window, r)
		}
	}
}

func TestMeasureRefuses(t *testing.T) {
	size := [3]int{2, 2, 4}
	samples, recon := make([]int16, 16), make([]float32, 16)
	for text, spoil := range map[string]func(i int, s *volume.Slab, st *Study){
		"a: slices 3 to 4: want those from 2": func(i int, s *volume.Slab, _ *Study) {
			if i == 2 {
				s.Z0, s.Z1 = 3, 4
			}
		},
		"slices 0 to 1: 3 voxels (want 4)":                    func(i int, s *volume.Slab, _ *Study) { s.Voxels = s.Voxels[:3] },
		"slices 0 to 5: want those from 0, up to 4":           func(i int, s *volume.Slab, _ *Study) { s.Z1 = 5 },
		"window_hu: [-2000 0] reaches beyond [-1000 1000]":    func(_ int, _ *volume.Slab, st *Study) { st.Options.WindowHU = [2]float64{-2000, 0} },
		"window_hu: [0 1001] reaches beyond [-1000 1000]":     func(_ int, _ *volume.Slab, st *Study) { st.Options.WindowHU = [2]float64{0, 1001} },
		"trilinear: size [2 2 4], factor [0 0 0] (want at le": func(_ int, _ *volume.Slab, st *Study) { st.Options.Trilinear = true },
		"watched": func(_ int, _ *volume.Slab, st *Study) {
			st.Watch = func(_ *volume.Volume, z int, _, _ []float32) error {
				if z == 1 {
					return errors.New("watched")
				}
				return nil
			}
		},
		"done": func(_ int, _ *volume.Slab, st *Study) {
			st.Done = func(*volume.Volume, Row) error { return errors.New("done") }
		},
	} {
		held, i, st := 0, 0, new(Study)
		in := func(yield func(*volume.Slab) bool) {
			for s := range slabs(made("a", size, samples, wide, &held), recon, 1) {
				spoil(i, s, st)
				i++
				if !yield(s) {
					return
				}
			}
		}
		_, err := drain(in, st)
		refuse(t, text, err)
		if held != 0 {
			t.Errorf("%s: %d volumes held", text, held)
		}
		if n := len(st.Summary().Scans); n != 0 && text != "done" {
			t.Errorf("%s: %d scans", text, n)
		}
	}

	held, s := 0, new(Study)
	a := slabs(made("a", size, samples, wide, &held), recon, 1)
	b := slabs(made("b", size, samples, [2]float64{-1000, 600}, &held), recon, 1)
	_, err := drain(both(a, b), s)
	refuse(t, "b: window [-1000 600] differs from [-1000 1000]", err)
	if held != 0 {
		t.Errorf("%d volumes held", held)
	}
	refuse(t, "a: code 0 of 1 is 4 (want 0..3)", (&Study{Codebook: 4}).Codes("a", []int32{4}))
	refuse(t, "window_hu: [1 0] is empty", (&Options{WindowHU: [2]float64{1, 0}}).Check())
	check(t, (&Options{}).Check())
}

func TestAScanCutShortIsNotInTheResults(t *testing.T) {
	held := 0
	size := [3]int{2, 2, 4}
	v := made("a", size, make([]int16, 16), wide, &held)
	s := new(Study)
	var n int
	for slab, err := range Measure(slabs(v, make([]float32, 16), 1), s) {
		check(t, err)
		slab.Release()
		if n++; n == 3 {
			break
		}
	}
	if held != 0 || len(s.Summary().Scans) != 0 {
		t.Errorf("%d volumes held, %v", held, s.Summary().Scans)
	}
	data, err := json.Marshal(s.Summary())
	check(t, err)
	if !strings.Contains(string(data), `"scans":[]`) || !strings.Contains(string(data), `"psnr":null`) {
		t.Errorf("%s", data)
	}
}

func TestAScanMayComeAgain(t *testing.T) {
	held := 0
	size := [3]int{1, 1, 2}
	s := &Study{Codebook: 2}
	check(t, s.Codes("a", []int32{1}))
	again := func() iter.Seq[*volume.Slab] {
		return slabs(made("a", size, make([]int16, 2), wide, &held), make([]float32, 2), 2)
	}
	_, err := drain(both(again(), again()), s)
	check(t, err)
	scans := s.Summary().Scans
	if len(scans) != 2 || scans[0].Code.Bits != 0.5 || !math.IsNaN(scans[1].Code.Bits) {
		t.Errorf("%+v", scans)
	}
}

func TestBitsOfTwoCodebooks(t *testing.T) {
	held := 0
	size := [3]int{2, 2, 2}
	s := &Study{Codebook: 16, Depth: 2}
	check(t, s.Codes("a", []int32{1, 2, 3, 2})) // two latents
	_, err := drain(slabs(made("a", size, make([]int16, 8), wide, &held), make([]float32, 8), 2), s)
	check(t, err)
	if c := s.Summary().Pooled.Code; c.Bits != 2*8.0/8 || c.Entropy != 2*1.0/8 || c.Share != 3.0/32 {
		t.Errorf("%+v", c)
	}
}

func TestBytesBoundWhatMeasureAllocates(t *testing.T) {
	held := 0
	size, factor := [3]int{96, 80, 40}, [3]int{4, 4, 4}
	n := size[0] * size[1] * size[2]
	samples, recon := make([]int16, n), make([]float32, n)
	for _, trilinear := range []bool{false, true} {
		s := &Study{Options: Options{Trilinear: trilinear}, Factor: factor}
		bound := Bytes(size, [3]int{})
		if trilinear {
			bound = Bytes(size, factor)
		}
		in := slabs(made("a", size, samples, wide, &held), recon, 1)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := drain(in, s)
		runtime.ReadMemStats(&after)
		check(t, err)
		// Nothing is allocated slice by slice but the slabs themselves, and what SSIM and HFEN need for a few rows.
		if got := int64(after.TotalAlloc - before.TotalAlloc); got > bound+200<<10 || got < bound*3/4 {
			t.Errorf("trilinear %t: allocated %d bytes, Bytes says %d", trilinear, got, bound)
		}
	}
}

// measured is a study of two scans, one without body or codes.
func measured(t *testing.T) *Study {
	held := 0
	size := [3]int{4, 3, 2}
	s := &Study{Codebook: 16, Factor: [3]int{2, 2, 2}, Options: Options{Trilinear: true}, Borders: func(*volume.Volume) [3][]int { return [3][]int{{1}} }}
	body, air, recon := make([]int16, 24), make([]int16, 24), make([]float32, 24)
	for i := range body {
		body[i], air[i], recon[i] = int16(30*i-400), -1000, float32(i)/24-0.5
	}
	check(t, s.Codes("b", []int32{0, 1, 2, 3, 0, 1, 2, 3}))
	second := made("b", size, body, wide, &held)
	second.Scan.Index = 1
	for _, v := range []*volume.Volume{second, made("patients/0001/series with a long name, a.nii.gz", size, air, wide, &held)} {
		_, err := drain(slabs(v, recon, 1), s)
		check(t, err)
	}
	return s
}

func BenchmarkMeasure(b *testing.B) {
	size := [3]int{256, 256, 40}
	held := 0
	samples := make([]int16, 256*256*40)
	recon := image(size, 1)
	for i, x := range image(size, 0) {
		samples[i] = int16(1000 * x)
	}
	for _, trilinear := range []bool{false, true} {
		b.Run(fmt.Sprintf("trilinear=%t", trilinear), func(b *testing.B) {
			for b.Loop() {
				s := &Study{Options: Options{Trilinear: trilinear}, Factor: [3]int{4, 4, 4}, Workers: 2,
					Borders: func(*volume.Volume) [3][]int { return [3][]int{{100, 150}, {100, 150}, {20}} }}
				if _, err := drain(slabs(made("a", size, samples, wide, &held), recon, 1), s); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(samples))*float64(b.N)/b.Elapsed().Seconds(), "voxels/s")
		})
	}
}

// torn is Samples of which the slices from z on can't be read.
type torn struct {
	volume.Memory
	from int
}

func (t *torn) Rows(z, y0, y1 int, buf []int16) ([]int16, error) {
	if z >= t.from {
		return nil, errors.New("torn")
	}
	return t.Memory.Rows(z, y0, y1, buf)
}

// A scan that can't be read to its end isn't in the results, and none of its slabs goes on; the others are as they were.
func TestLostScansAreNotMeasured(t *testing.T) {
	dims := [3]int{3, 2, 6}
	data := make([]int16, 36)
	recon := make([]float32, 36)
	for _, from := range []int{0, 3, 5} {
		for _, told := range []error{nil, errors.New("too many")} {
			held := 0
			lost, good := made("lost", dims, data, wide, &held), made("good", dims, data, wide, &held)
			lost.Own(&torn{volume.Memory{Data: data, Dims: dims}, from}, func() { held-- })
			s := &Study{Codebook: 2, Lost: func(v *volume.Volume) error {
				if v != lost || v.Lost() == nil {
					t.Errorf("told of %s, lost for %v", v.Scan.ID, v.Lost())
				}
				return told
			}}
			check(t, s.Codes("lost", []int32{0}))
			check(t, s.Codes("good", []int32{1}))
			n, err := drain(both(slabs(lost, recon, 1), slabs(good, recon, 1)), s)
			if !errors.Is(err, told) || held != 0 && told == nil {
				t.Fatalf("%v, %d held", err, held)
			}
			if told != nil {
				continue
			}
			if sum := s.Summary(); n != from+6 || len(sum.Scans) != 1 || sum.Scans[0].ID != "good" || sum.Scans[0].Code.Share != 0.5 || len(s.codes) != 0 {
				t.Errorf("from %d: %d slabs, %+v", from, n, sum.Scans)
			}
		}
	}
	held := 0
	v := made("lost", dims, data, wide, &held)
	v.Own(&torn{volume.Memory{Data: data, Dims: dims}, 3}, func() { held-- })
	if n, err := drain(slabs(v, recon, 1), new(Study)); n != 3 || err == nil || err.Error() != "lost: slice 3: torn" {
		t.Errorf("%d slabs, then %v", n, err)
	}
}

// Whoever else finds that a scan is lost, measure lets it go.
func TestScansLostElsewhere(t *testing.T) {
	dims := [3]int{3, 2, 6}
	held, told := 0, 0
	v := made("lost", dims, make([]int16, 36), wide, &held)
	v.Own(&torn{volume.Memory{Data: make([]int16, 36), Dims: dims}, 3}, func() { held-- })
	s := &Study{Lost: func(*volume.Volume) error { told++; return nil }}
	in := func(yield func(*volume.Slab) bool) {
		defer v.Release()
		if yield(&volume.Slab{Volume: v.Retain(), Z1: 1, Voxels: make([]float32, 6)}) {
			_, _ = v.Rows(5, 0, 1, nil)
		}
	}
	if n, err := drain(in, s); n != 1 || err != nil || told != 1 || held != 0 || len(s.Summary().Scans) != 0 {
		t.Errorf("%d slabs, %v, told %d times, %d held", n, err, told, held)
	}
}
