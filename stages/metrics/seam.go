package metrics

import (
	"iter"
	"slices"
)

// Borders lists the planes where tiles of size patch at the given offsets begin or end inside a volume of dims: plane b
// of an axis lies between voxels b-1 and b. Each is listed once, rising.
func Borders(dims, patch [3]int, origins [3][]int) (planes [3][]int) {
	for a := range 3 {
		for _, o := range origins[a] {
			for _, b := range [2]int{o, o + patch[a]} {
				if 0 < b && b < dims[a] {
					planes[a] = append(planes[a], b)
				}
			}
		}
		slices.Sort(planes[a])
		planes[a] = slices.Compact(planes[a])
	}
	return planes
}

// CropBorders is Borders where each voxel was taken from the tile whose middle is nearest, the lower one's of two: the
// planes halfway through the overlaps.
func CropBorders(dims, patch [3]int, origins [3][]int) (planes [3][]int) {
	for a := range 3 {
		for i := range max(len(origins[a])-1, 0) {
			if b := (origins[a][i] + origins[a][i+1] + patch[a] + 1) / 2; b < dims[a] {
				planes[a] = append(planes[a], b)
			}
		}
	}
	return planes
}

// seams says which voxels of a block touch a tile border along x, y or z.
type seams struct {
	size [3]int
	on   [3][]bool // by axis and coordinate: next to a border
	row  []run     // of a row that is next to none along y and z
}

// run is voxels from ≤ i < to of a slice; seam is 1 next to a border and 0 away from them.
type run struct{ from, to, seam int }

func newSeams(size [3]int, planes [3][]int) *seams {
	s := &seams{size: size}
	for a, n := range size {
		s.on[a] = make([]bool, n)
		for _, b := range planes[a] {
			if 0 < b && b < n {
				s.on[a][b-1], s.on[a][b] = true, true
			}
		}
	}
	s.row = bands(s.on[0])
	return s
}

// bands joins neighbours that are alike.
func bands(on []bool) (rs []run) {
	for i, seam := range on {
		if i == 0 || seam != on[i-1] {
			rs = append(rs, run{from: i, seam: flag(seam)})
		}
		rs[len(rs)-1].to = i + 1
	}
	return rs
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// runs cuts slice z into runs, in order.
func (s *seams) runs(z int) iter.Seq[run] {
	return func(yield func(run) bool) {
		nx, ny := s.size[0], s.size[1]
		if s.on[2][z] {
			yield(run{0, nx * ny, 1})
			return
		}
		for y := range ny {
			if s.on[1][y] {
				if !yield(run{y * nx, (y + 1) * nx, 1}) {
					return
				}
				continue
			}
			for _, r := range s.row {
				if !yield(run{y*nx + r.from, y*nx + r.to, r.seam}) {
					return
				}
			}
		}
	}
}
