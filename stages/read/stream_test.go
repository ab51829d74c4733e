package read

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/volume"
	"pgregory.net/rapid"
)

// rising is a map under which a file's slices rise in z, whichever way x and y run.
func rising(swap, flipX, flipY bool) volume.Affine {
	sign := func(flip bool, mm float64) float64 {
		if flip {
			return -mm
		}
		return mm
	}
	if swap {
		return volume.Affine{{0, sign(flipX, 2), 0, 1}, {sign(flipY, 3), 0, 0, 2}, {0, 0, 4, 3}}
	}
	return volume.Affine{{sign(flipX, 2), 0, 0, 1}, {0, sign(flipY, 3), 0, 2}, {0, 0, 4, 3}}
}

// Of any file whose slices rise, in whatever order they are asked for, a stream gives Load's samples.
func TestStreamGivesWhatLoadDoes(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		dims := [3]int{rapid.IntRange(1, 40).Draw(rt, "x"), rapid.IntRange(1, 30).Draw(rt, "y"), rapid.IntRange(1, 40).Draw(rt, "z")}
		typ := rapid.SampledFrom([]nifti.Type{nifti.Int16, nifti.Uint16, nifti.Uint8, nifti.Float32}).Draw(rt, "type")
		a := rising(rapid.Bool().Draw(rt, "swap"), rapid.Bool().Draw(rt, "flip x"), rapid.Bool().Draw(rt, "flip y"))
		o := defaults()
		if rapid.Bool().Draw(rt, "resample") {
			mm := rapid.Float64Range(1, 9)
			o.Spacing = [3]float64{mm.Draw(rt, "mm x"), mm.Draw(rt, "mm y"), mm.Draw(rt, "mm z")}
		}
		frames := rapid.IntRange(1, 2).Draw(rt, "frames")
		if frames == 2 {
			dims[0]++ // an axis of one element before the last would be a channel
			o.Frame = rapid.IntRange(0, 1).Draw(rt, "frame")
		}
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		samples := make([]float64, frames*dims[0]*dims[1]*dims[2])
		for i := range samples {
			samples[i] = float64(r.IntN(256))
			if typ == nifti.Float32 {
				samples[i] = 3000*r.Float64() - 1500
				if r.IntN(50) == 0 {
					samples[i] = math.NaN()
				}
			}
		}
		path := filepath.Join(dir, "a.nii")
		putReal(t, path, typ, dims, samples, func(h *nifti.Header) {
			*h = *nifti.New(typ, dims, a)
			if frames == 2 {
				h.Dim[0], h.Dim[4] = 4, 2
			}
		})
		if rapid.Bool().Draw(rt, "gzip") {
			b := must(os.ReadFile(path))
			var gz bytes.Buffer
			w := gzip.NewWriter(&gz)
			_, _ = w.Write(b)
			_ = w.Close()
			path += ".gz"
			if err := os.WriteFile(path, gz.Bytes(), 0o666); err != nil {
				rt.Fatal(err)
			}
		}
		scan := one(t, path, o)
		if !Streams(scan, o) {
			rt.Fatalf("%v isn't streamed", a)
		}
		whole := must(Load(context.Background(), scan, 3, o, nil))
		defer whole.Release()
		window := rapid.IntRange(1, 50).Draw(rt, "slices")
		var odd []string
		tell := func(w []string) { odd = append(odd, w...) }
		v := must(Stream(context.Background(), scan, 3, o, window, Tell{}, nil))
		defer v.Release()
		s := must(newStream(context.Background(), scan, o, window, Tell{Odd: tell}))
		defer func() { _ = s.Close() }()
		if v.Slope != whole.Slope || v.Inter != whole.Inter || v.Dims != whole.Dims || v.Window != whole.Window || v.Epoch != 3 ||
			v.Geometry.Affine != whole.Geometry.Affine || !bytes.Equal(v.Geometry.Header, whole.Geometry.Header) {
			rt.Fatalf("%+v, want %+v", v, whole)
		}
		nz, ny := v.Dims[2], v.Dims[1]
		check := func(z, y0, y1 int) {
			buf := make([]int16, (y1-y0)*v.Dims[0])
			got, want := must(s.Rows(z, y0, y1, buf)), must(whole.Rows(z, y0, y1, nil))
			if !slices.Equal(got, want) {
				rt.Fatalf("slice %d rows %d to %d: %v, want %v", z, y0, y1, got, want)
			}
		}
		for range rapid.IntRange(0, 30).Draw(rt, "asked") { // anything
			y0 := r.IntN(ny)
			check(r.IntN(nz), y0, y0+r.IntN(ny-y0)+1)
		}
		check(0, 0, ny)
		_ = reading(s) // which may take slice 0 away, where one above it was asked for
		check(0, 0, ny)
		opened := reading(s)
		for z := range nz { // what is said to be kept is, without another reading
			check(z, 0, ny)
			check(max(0, z-r.IntN(window)), 0, ny)
			if l := reading(s); l != opened && l != nil {
				rt.Fatalf("slice %d of %d: read anew with %d slices kept", z, nz, window)
			}
		}
		if got := slices.Concat(v.Warnings, odd); !slices.Equal(got, whole.Warnings) {
			rt.Fatalf("warnings %q, want %q", got, whole.Warnings)
		}
	})
}

// begin has s decode as far as it does before it is asked for anything.
func begin(s *stream) {
	s.window.Lock()
	defer s.window.Unlock()
	s.start()
}

// reading is what s reads with once it has decoded all that there is room for; nil at the file's end.
func reading(s *stream) *loader {
	s.decoding.Wait()
	return s.loader
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A scan whose slices don't rise isn't streamed, nor one that is read from the cache.
func TestStreams(t *testing.T) {
	dir := t.TempDir()
	falling := rising(false, false, false)
	falling[2][2] = -1
	for name, c := range map[string]struct {
		a     volume.Affine
		cache string
		want  bool
	}{
		"up": {identity, "", true}, "lps": {lps, "", true}, "sagittal": {sagittal, "", false}, "down": {falling, "", false},
		"cache": {identity, filepath.Join(dir, "cache"), false},
	} {
		path := filepath.Join(dir, name+".nii")
		put(t, path, [3]int{2, 3, 4}, c.a, func(i, j, k int) int16 { return 0 })
		o := defaults()
		o.Cache = c.cache
		if got := Streams(one(t, path, o), o); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Whatever is wrong with a file, a stream finds it before its last slice is given, if Load finds it; the volume is lost then, and
// its memory is free although somebody holds it.
func TestStreamFindsWhatIsWrong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.nii.gz")
	r := rand.New(rand.NewPCG(1, 2))
	put(t, path, [3]int{5, 4, 12}, lps, func(i, j, k int) int16 { return int16(r.IntN(300)) - 600 })
	sound := must(os.ReadFile(path))
	o := defaults()
	bad := 0
	try := func(what string, at int, b []byte) {
		if err := os.WriteFile(path, b, 0o666); err != nil {
			t.Fatal(err)
		}
		o.Scans = []string{path}
		scans, _, err := List(context.Background(), o)
		if err != nil || !Streams(scans[0], o) {
			return // the header
		}
		var want []float64
		whole, loadErr := Load(context.Background(), scans[0], 0, o, nil)
		if loadErr == nil {
			want = hu(t, whole)
			whole.Release()
		}
		freed := 0
		v, err := Stream(context.Background(), scans[0], 0, o, 3, Tell{}, func() { freed++ })
		if err != nil {
			if loadErr == nil || freed != 1 {
				t.Fatalf("%s %d: %v, freed %d times; Load gave %v", what, at, err, freed, loadErr)
			}
			return
		}
		defer v.Release()
		got := []float64{}
		buf := make([]int16, v.Dims[0]*v.Dims[1])
		for z := range v.Dims[2] {
			var rows []int16
			if rows, err = v.Rows(z, 0, v.Dims[1], buf); err != nil {
				break
			}
			for _, s := range rows {
				got = append(got, v.Slope*float64(s)+v.Inter)
			}
		}
		if (err == nil) != (loadErr == nil) || err == nil && !slices.Equal(got, want) {
			t.Fatalf("%s %d: after %d voxels %v; Load gave %v", what, at, len(got), err, loadErr)
		}
		if err == nil {
			if v.Lost() != nil || freed != 0 {
				t.Fatalf("%s %d: lost, freed %d times: %v", what, at, freed, v.Lost())
			}
			return
		}
		bad++
		_, again := v.Rows(0, 0, 1, buf)
		if !strings.HasPrefix(err.Error(), path+": ") || !errors.Is(v.Lost(), err) || !errors.Is(again, err) || freed != 1 {
			t.Fatalf("%s %d: %v, lost for %v, then %v, freed %d times", what, at, err, v.Lost(), again, freed)
		}
	}
	for at := range sound {
		try("cut at", at, sound[:at])
		b := slices.Clone(sound)
		b[at] ^= 1 << r.IntN(8)
		try("flipped at", at, b)
	}
	if bad < len(sound)/2 {
		t.Fatalf("only %d of %d files were bad beyond their header", bad, 2*len(sound))
	}
}

// A file that is changed between two readings isn't taken for the scan.
func TestStreamSeesAChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.nii")
	dims := [3]int{3, 3, 60}
	put(t, path, dims, identity, func(i, j, k int) int16 { return int16(k) })
	o := defaults()
	v := must(Stream(context.Background(), one(t, path, o), 0, o, 2, Tell{}, nil))
	defer v.Release()
	buf := make([]int16, 9)
	for _, z := range []int{59, 1} {
		if rows := must(v.Rows(z, 0, 3, buf)); rows[0] != int16(z) {
			t.Fatalf("slice %d: %v", z, rows)
		}
	}
	put(t, path, dims, identity, func(i, j, k int) int16 { return int16(k) + 1 })
	if _, err := v.Rows(0, 0, 3, buf); err != nil {
		t.Error(err) // the reading that has begun is of the old file
	}
	if _, err := v.Rows(59, 0, 3, buf); err != nil {
		t.Error(err)
	}
	if _, err := v.Rows(0, 0, 3, buf); err == nil || !strings.Contains(err.Error(), "a.nii: the file has changed since the run began") {
		t.Error(err)
	}
}

// Anybody may read anything at any time, also while the volume is let go.
func TestStreamForMany(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.nii.gz")
	dims := [3]int{7, 5, 40}
	put(t, path, dims, lps, func(i, j, k int) int16 { return int16(i + 10*j + 100*k) })
	o := defaults()
	scan := one(t, path, o)
	for _, early := range []bool{false, true} {
		v := must(Stream(context.Background(), scan, 0, o, 10, Tell{}, nil))
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				buf := make([]int16, 14)
				for z := range dims[2] - w {
					rows, err := v.Rows(z+w, 1, 3, buf)
					if err != nil && !early {
						t.Error(err)
					}
					if err == nil && (rows[0] != int16(6+10*3+100*(z+w)) || rows[13] != int16(10*2+100*(z+w))) {
						t.Errorf("slice %d: %v", z+w, rows)
					}
					if early && w == 0 && z == 20 {
						v.Release()
					}
				}
			})
		}
		wg.Wait()
		if !early {
			v.Release()
		}
	}
}

// As far as there is room slices are decoded before they are asked for, and never so far that one which is to be kept goes.
func TestStreamDecodesAhead(t *testing.T) {
	dir := t.TempDir()
	for _, mm := range []float64{0, 4, 1.3, 9} {
		path := filepath.Join(dir, "a.nii")
		put(t, path, [3]int{3, 2, 90}, rising(false, true, false), func(i, j, k int) int16 { return int16(k) })
		o := defaults()
		o.Spacing = [3]float64{2 * min(mm, 1), 3 * min(mm, 1), mm}
		scan := one(t, path, o)
		synctest.Test(t, func(t *testing.T) {
			const slices = 5
			s := must(newStream(t.Context(), scan, o, slices, Tell{}))
			buf := make([]int16, 3)
			for _, z := range []int{-1, 0, 3, 10, 11, 2, 3, scan.Dims[2] / 2, scan.Dims[2] - 3, scan.Dims[2] - 1} {
				if z >= 0 {
					must(s.Rows(z, 0, 1, buf))
				} else {
					begin(s)
				}
				synctest.Wait() // the goroutine has ended
				low, high := max(s.top-slices, 0), min(max(s.top, slices)+aheadSlices, scan.Dims[2])
				if s.running || s.low > low || s.high < high || s.high-s.low > len(s.ring) || s.high > high+s.burst {
					t.Errorf("%v mm, slice %d: %d to %d are there, want %d to %d", mm, z, s.low, s.high, low, high)
				}
			}
			s.fail(errors.New("found ahead"), false) // meanwhile
			if err := s.await(scan.Dims[2] - 1); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil || s.loader != nil || s.running {
				t.Error(err)
			}
		})
	}
}

// What can't be read is an error when it is asked for, however early it was found.
func TestStreamErrsWhereTheFileDoes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.nii.gz")
	r := rand.New(rand.NewPCG(3, 4))
	put(t, path, [3]int{20, 30, 30}, identity, func(i, j, k int) int16 { return int16(r.IntN(2000) - 1000) })
	b := must(os.ReadFile(path))
	for _, part := range []float64{0.3, 0.5, 0.8, 1} {
		cut := slices.Clone(b[:int(part*float64(len(b)))])
		if part == 1 {
			cut[len(cut)-6] ^= 1 // the checksum
		}
		if err := os.WriteFile(path, cut, 0o666); err != nil {
			t.Fatal(err)
		}
		o := defaults()
		scan := one(t, path, o)
		file, p, err := open(scan, &o)
		if err != nil {
			t.Fatal(err)
		}
		l, sound := newLoader(file, p, &o), 0
		slice := newPlacer(make([]int16, 600), [3]int{20, 30, 1}, p.geometry.Axes, p.geometry.Flip)
		for sound < 29 && l.block(t.Context(), slice, 600) == nil {
			sound++
		}
		_ = file.Close()
		synctest.Test(t, func(t *testing.T) {
			freed := 0
			v := must(Stream(t.Context(), scan, 0, o, 4, Tell{}, func() { freed++ }))
			buf := make([]int16, 20)
			for z := range 30 {
				synctest.Wait()
				_, err := v.Rows(z, 0, 1, buf)
				if z < sound && err != nil || z >= sound && (err == nil || !errors.Is(v.Lost(), err) || freed != 1) {
					t.Fatalf("%v of the file, %d sound slices: slice %d: %v, freed %d times", part, sound, z, err, freed)
				}
			}
			v.Release()
		})
	}
}

// A panic ahead of who asks is his.
func TestStreamPanicsForWhoAsks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.nii")
	put(t, path, [3]int{2, 2, 9}, identity, func(i, j, k int) int16 { return 0 }) // doesn't look like CT
	o := defaults()
	scan := one(t, path, o)
	synctest.Test(t, func(t *testing.T) {
		s := must(newStream(t.Context(), scan, o, 3, Tell{Odd: func([]string) { panic("odd") }}))
		begin(s)
		synctest.Wait()
		buf := make([]int16, 2)
		for z := range 8 {
			must(s.Rows(z, 0, 1, buf))
		}
		defer func() {
			if p, _ := recover().(error); p == nil || !strings.HasPrefix(p.Error(), "odd\n") {
				t.Error(p)
			}
			if err := s.Close(); err != nil || s.running {
				t.Error(err)
			}
		}()
		_, err := s.Rows(8, 0, 1, buf)
		t.Error(err)
	})
}

// Memory is given back when nobody decodes into it any more.
func TestStreamIsFreeOnceDecodingHasEnded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.nii")
	put(t, path, [3]int{2, 2, 9}, identity, func(i, j, k int) int16 { return 0 })
	o := defaults()
	scan := one(t, path, o)
	synctest.Test(t, func(t *testing.T) {
		odd, freed := make(chan bool), false
		v := must(Stream(t.Context(), scan, 0, o, 3, Tell{Odd: func([]string) { <-odd }}, func() { freed = true }))
		synctest.Wait() // the last slice is being decoded
		go v.Release()
		if synctest.Wait(); freed {
			t.Error("free while a slice is decoded")
		}
		close(odd)
		if synctest.Wait(); !freed {
			t.Error("not free")
		}
	})
}

// Who waits for a slice is told of while he does; what is there, or is read anew, nobody is said to wait for.
func TestStreamTellsOfWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.nii")
	put(t, path, [3]int{2, 2, 90}, identity, func(i, j, k int) int16 { return 0 })
	o := defaults()
	scan := one(t, path, o)
	synctest.Test(t, func(t *testing.T) {
		odd, begun, waits := make(chan bool), 0, 0
		v := must(Stream(t.Context(), scan, 0, o, 3, Tell{
			Odd:  func([]string) { <-odd },
			Wait: func() func() { begun++; waits++; return func() { waits-- } },
		}, nil))
		defer v.Release()
		rows := func(z int) { must(v.Rows(z, 0, 2, make([]int16, 4))) }
		synctest.Wait()
		rows(0) // is there
		go rows(89)
		if synctest.Wait(); waits != 1 {
			t.Errorf("%d wait for the last slice", waits)
		}
		close(odd)
		if synctest.Wait(); waits != 0 {
			t.Errorf("%d wait for what is there", waits)
		}
		if rows(0); begun != 1 {
			t.Errorf("%d waits for a slice that was there", begun-1)
		}
	})
}

// Decoding ends with its context.
func TestStreamEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.nii")
	put(t, path, [3]int{2, 2, 90}, identity, func(i, j, k int) int16 { return 0 })
	o := defaults()
	scan := one(t, path, o)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		v := must(Stream(ctx, scan, 0, o, 1, Tell{}, nil))
		defer v.Release()
		synctest.Wait()
		cancel()
		if _, err := v.Rows(80, 0, 2, make([]int16, 4)); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// What a stream holds is what it is said to cost, however tall the scan.
func TestStreamCost(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		nz, slices int
		spacing    float64
		want       int64 // slices
	}{{100, 10, 0, 27}, {1000, 10, 0, 27}, {10, 10, 0, 10}, {5, 10, 0, 5}, {200, 10, 4, 28}, {200, 10, 1, 27 + 6}} {
		path := filepath.Join(dir, "a.nii")
		dims := [3]int{8, 8, c.nz}
		put(t, path, dims, rising(false, false, false), func(i, j, k int) int16 { return 0 })
		o := defaults()
		plane := int64(8 * 8 * 2)
		if c.spacing > 0 {
			o.Spacing = [3]float64{2, 3, c.spacing}
		}
		scan := one(t, path, o)
		s := must(newStream(context.Background(), scan, o, c.slices, Tell{}))
		must(s.Rows(scan.Dims[2]-1, 0, 1, make([]int16, 8)))
		held := int64(0)
		for _, b := range append(s.ring, s.spare) {
			held += 2 * int64(len(b))
		}
		if s.resampling != nil {
			held += s.resampling.bytes()
		}
		said := StreamCost(scan, o, c.slices) - buffers
		if held > said || said > held+plane || c.spacing == 0 && said != plane*min(c.want, int64(c.nz)+1) || s.Bytes() != c.want*plane {
			t.Errorf("%+v: %d bytes are held, %d of slices, said to be %d", c, held, s.Bytes(), said)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
