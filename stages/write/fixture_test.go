package write

import (
	"context"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/volume"
)

var identity = volume.Affine{{1, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 1, 0}}

type fataler interface{ Fatal(...any) }

// must panics, which fails the test.
func must[T any](x T, err error) T {
	if err != nil {
		panic(err)
	}
	return x
}

// put writes an int16 scan with header h, of which voxel i in the file's order is value(i).
func put(t fataler, path string, h *nifti.Header, value func(i int) int16) {
	w := must(nifti.Create(path, h))
	n := int(h.Dim[1] * h.Dim[2] * h.Dim[3])
	samples := make([]int16, n)
	for i := range samples {
		samples[i] = value(i)
	}
	if err := w.WriteInt16(samples); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// get reads an image: header, and voxels with their scaling, in the file's order.
func get(t fataler, path string) (*nifti.Header, []float64) {
	r := must(nifti.Open(path, nifti.Limits{}))
	defer func() { _ = r.Close() }()
	g := must(r.Header.Grid(0, -1))
	if err := r.SkipTo(g.Skip); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, g.Voxels()*int64(r.Header.Datatype.Size()))
	if _, err := r.Read(b); err != nil {
		t.Fatal(err)
	}
	x := make([]float64, g.Voxels())
	r.Header.Float64(x, b)
	slope, inter := r.Header.Scaling()
	for i := range x {
		x[i] = slope*x[i] + inter
	}
	if _, err := r.Finish(); err != nil {
		t.Fatal(err)
	}
	return r.Header, x
}

func options(path string) read.Options {
	return read.Options{Scans: []string{path}, WindowHU: [2]float64{-1000, 1000}, Ahead: 1, Frame: -1, ChannelDim: -1, MaxBytes: 1 << 30}
}

// load reads one scan, and gives what says whether it was let go.
func load(t fataler, o read.Options) (*volume.Volume, *bool) {
	scans, bad, err := read.List(context.Background(), o)
	if err != nil || len(scans) != 1 {
		t.Fatal(scans, bad, err)
	}
	freed := new(bool)
	return must(read.Load(context.Background(), scans[0], 1, o, func() { *freed = true })), freed
}

// slabs gives the voxels of v in [-1, 1], so many slices at a time, and lets the caller's reference go.
func slabs(t fataler, v *volume.Volume, depth int) iter.Seq[*volume.Slab] {
	return func(yield func(*volume.Slab) bool) {
		defer v.Release()
		lo, hi := v.Window[0], v.Window[1]
		buf := make([]int16, v.Dims[0]*v.Dims[1])
		for z := 0; z < v.Dims[2]; z += depth {
			s := &volume.Slab{Volume: v.Retain(), Z0: z, Z1: min(z+depth, v.Dims[2])}
			for k := s.Z0; k < s.Z1; k++ {
				for _, x := range must(v.Rows(k, 0, v.Dims[1], buf)) {
					hu := min(max(v.Slope*float64(x)+v.Inter, lo), hi)
					s.Voxels = append(s.Voxels, float32((hu-(lo+hi)/2)/((hi-lo)/2)))
				}
			}
			if !yield(s) {
				return
			}
		}
	}
}

// blank is a volume of zeros on a file's grid of dims.
func blank(id string, dims [3]int) (*volume.Volume, *bool) {
	freed := new(bool)
	v := &volume.Volume{Scan: &volume.Scan{ID: id, Path: id, Dims: dims}, Dims: dims, Window: [2]float64{-1000, 1000}, Slope: 1,
		Geometry: volume.Geometry{Affine: identity, Source: identity, Dims: dims, Axes: [3]int{0, 1, 2}, Spacing: [3]float64{1, 1, 1}}}
	return v.Own(&volume.Memory{Data: make([]int16, dims[0]*dims[1]*dims[2]), Dims: dims}, func() { *freed = true }), freed
}

// inFolder lists what is in a folder and below.
func inFolder(t testing.TB, dir string) []string {
	var list []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, filepath.ToSlash(must(filepath.Rel(dir, path))))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

// orientations are the 48 ways in which a grid of 0.7, 0.8 and 2 mm voxels can lie along the world's axes.
func orientations() []volume.Affine {
	var all []volume.Affine
	for _, p := range [][3]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		for flips := range 8 {
			var a volume.Affine
			for f, c := range p {
				a[c][f] = []float64{0.75, 0.875, 2}[f]
				if flips>>f&1 == 1 {
					a[c][f] = -a[c][f]
				}
				a[c][3] = float64(10*c - 7)
			}
			all = append(all, a)
		}
	}
	return all
}

func near(a, b volume.Affine) bool {
	for i := range a {
		for j := range a[i] {
			if math.Abs(a[i][j]-b[i][j]) > 1e-9 {
				return false
			}
		}
	}
	return true
}

// all runs Write to its end.
func all(t fataler, seq iter.Seq2[Written, error]) []Written {
	var list []Written
	for w, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, w)
	}
	return list
}
