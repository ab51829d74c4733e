package metrics

import (
	"slices"
	"testing"

	"github.com/flowrun/flowrun/stages/volume"
	"pgregory.net/rapid"
)

func TestSeamIndexByHand(t *testing.T) {
	// 5 × 4 × 3 voxels; borders at x=2 and z=1. Next to them: columns 1 and 2, slices 0 and 1. The error is 30 HU there and
	// 20 elsewhere.
	held := 0
	size := [3]int{5, 4, 3}
	orig := make([]int16, 60)
	recon := make([]float32, 60)
	beside := 0
	for i := range recon {
		x, z := i%5, i/20
		recon[i] = 0.02
		if x == 1 || x == 2 || z < 2 {
			recon[i] = -0.03
			beside++
		}
	}
	s := &Study{Borders: func(*volume.Volume) [3][]int { return [3][]int{{2}, {4}, {1}} }}
	_, err := drain(slabs(made("a", size, orig, wide, &held), recon, 2), s)
	check(t, err)
	near(t, "seam", s.Summary().Scans[0].Seam, 1.5, 1e-6)
	near(t, "MAE", s.Summary().Scans[0].MAEHU, (30*float64(beside)+20*float64(60-beside))/60, 1e-4)
	if got := Borders([3]int{10, 8, 9}, [3]int{4, 8, 4}, [3][]int{{0, 3, 6}, {0}, {0, 4, 8}}); !slices.Equal(got[0], []int{3, 4, 6, 7}) ||
		got[1] != nil || !slices.Equal(got[2], []int{4, 8}) {
		t.Errorf("borders %v", got)
	}
}

func TestCropBordersLieHalfwayThroughOverlaps(t *testing.T) {
	// Tiles of 4 at 0, 3 and 6 give voxels 0–3, 4–6 and 7 on: voxel 3 is as near to the middle of the first as of the
	// second. Along z the volume ends before the last tile's part begins.
	got := CropBorders([3]int{10, 4, 6}, [3]int{4, 4, 4}, [3][]int{{0, 3, 6}, {0}, {0, 2, 6}})
	if !slices.Equal(got[0], []int{4, 7}) || got[1] != nil || !slices.Equal(got[2], []int{3}) {
		t.Errorf("borders %v", got)
	}
}

func TestSeamsRunsCoverEveryVoxelOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := drawSize(t, 7)
		var planes [3][]int
		for a := range 3 {
			planes[a] = rapid.SliceOfN(rapid.IntRange(-1, 8), 0, 3).Draw(t, "planes")
		}
		s := newSeams(size, planes)
		for z := range size[2] {
			at := 0
			for r := range s.runs(z) {
				if r.from != at || r.to <= at {
					t.Fatalf("slice %d: run %v after %d", z, r, at)
				}
				for i := r.from; i < r.to; i++ {
					want := 0
					for a, x := range []int{i % size[0], i / size[0], z} {
						for _, b := range planes[a] {
							if 0 < b && b < size[a] && (x == b || x == b-1) {
								want = 1
							}
						}
					}
					if r.seam != want {
						t.Fatalf("slice %d voxel %d: %d, want %d (planes %v)", z, i, r.seam, want, planes)
					}
				}
				at = r.to
			}
			if at != size[0]*size[1] {
				t.Fatalf("slice %d ends at %d", z, at)
			}
		}
	})
}

// whole is Trilinear as it was before it streamed: the small volume is held.
func whole(src []float32, size, factor [3]int) []float32 {
	var low [3]int
	for a := range 3 {
		low[a] = max(1, size[a]/factor[a])
	}
	resize := func(src []float32, from, to [3]int) (dst []float32) {
		xs, ys, zs := lerps(from[0], to[0]), lerps(from[1], to[1]), lerps(from[2], to[2])
		at := func(x, y, z int) float32 { return src[(z*from[1]+y)*from[0]+x] }
		for _, z := range zs {
			for _, y := range ys {
				for _, x := range xs {
					depth := func(x, y int) float32 { return (1-z.w)*at(x, y, z.a) + z.w*at(x, y, z.b) }
					row := func(x int) float32 { return (1-y.w)*depth(x, y.a) + y.w*depth(x, y.b) }
					dst = append(dst, (1-x.w)*row(x.a)+x.w*row(x.b))
				}
			}
		}
		return dst
	}
	return resize(resize(src, size, low), low, size)
}

func TestBaselineStreamsTrilinear(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size, factor := drawSize(t, 12), drawSize(t, 9)
		size[2] = rapid.IntRange(1, 40).Draw(t, "nz")
		v := image(size, 0)
		b, err := NewBaseline(size, factor)
		if err != nil {
			t.Fatal(err)
		}
		plane := size[0] * size[1]
		var got []float32
		for z := range size[2] {
			if err := b.Add(v[z*plane:][:plane], func(at int, vox []float32) error {
				if at*plane != len(got) || at > z {
					t.Fatalf("slice %d after %d, at %d of the original", at, len(got)/plane, z)
				}
				got = append(got, vox...)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if late := z + 1 - len(got)/plane; late > 2*factor[2]+2 {
				t.Fatalf("%d slices late, factor %d", late, factor[2])
			}
		}
		if want := whole(v, size, factor); !slices.Equal(got, want) {
			t.Fatalf("size %v factor %v: differs", size, factor)
		}
		if b.Add(v[:plane], nil) == nil {
			t.Fatal("one slice more was taken")
		}
	})
}
