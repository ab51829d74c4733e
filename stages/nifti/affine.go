package nifti

import (
	"fmt"
	"math"

	"github.com/flowrun/flowrun/stages/volume"
)

// Affine gives the map from the file's voxel indices to world millimetres, and what was odd about it: the sform if its
// code is set, else the qform, else the voxel size alone. One that can't be inverted is passed over. Where both are set
// and differ, the sform holds. Oblique and sheared maps are kept as they are. Lengths in metres or micrometres are converted.
func (h *Header) Affine() (volume.Affine, []string) {
	var warnings []string
	warn := func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }
	mm := 1.0 // in what the header counts in
	switch h.Units & 7 {
	case 1:
		mm = 1e3
		warn("header: lengths are in metres; converted to mm")
	case 3:
		mm = 1e-3
		warn("header: lengths are in micrometres; converted to mm")
	}
	qform, qok := h.qform()
	qok = qok && h.QformCode > 0
	if h.QformCode > 0 && !qok {
		warn("header: the qform can't be inverted; passed over")
	}
	if h.SformCode > 0 {
		sform := volume.Affine(h.Srow)
		if invertible(sform) {
			if qok && !near(sform, qform) {
				warn("header: sform and qform differ; the sform holds")
			}
			return scaled(sform, mm), warnings
		}
		warn("header: the sform can't be inverted; passed over")
	}
	if qok {
		return scaled(qform, mm), warnings
	}
	warn("header: no orientation; axes are taken as x to the right, y to the front, z up")
	var a volume.Affine
	for i := range 3 {
		s := math.Abs(h.Pixdim[i+1]) * mm
		if s == 0 || !finite(s) {
			warn("header: pixdim[%d]=%v; taken as 1 mm", i+1, h.Pixdim[i+1])
			s = 1
		}
		a[i][i] = s
	}
	return a, warnings
}

func scaled(a volume.Affine, by float64) volume.Affine {
	for i := range a {
		for j := range a[i] {
			a[i][j] *= by
		}
	}
	return a
}

// qform is method 2 of nifti1.h: a rotation by a unit quaternion, voxel sizes, and a reflection of z if pixdim[0] < 0.
func (h *Header) qform() (volume.Affine, bool) {
	b, c, d := h.Quatern[0], h.Quatern[1], h.Quatern[2]
	a := 1 - (b*b + c*c + d*d)
	if a < 1e-7 { // a half turn: b, c, d are normalised, as nifti1_io.c does
		s := 1 / math.Sqrt(b*b+c*c+d*d)
		a, b, c, d = 0, b*s, c*s, d*s
	} else {
		a = math.Sqrt(a)
	}
	r := [3][3]float64{
		{a*a + b*b - c*c - d*d, 2*b*c - 2*a*d, 2*b*d + 2*a*c},
		{2*b*c + 2*a*d, a*a + c*c - b*b - d*d, 2*c*d - 2*a*b},
		{2*b*d - 2*a*c, 2*c*d + 2*a*b, a*a + d*d - b*b - c*c},
	}
	var m volume.Affine
	for i := range 3 {
		for j := range 3 {
			s := math.Abs(h.Pixdim[j+1])
			if j == 2 && h.Pixdim[0] < 0 {
				s = -s
			}
			m[i][j] = r[i][j] * s
		}
		m[i][3] = h.Qoffset[i]
	}
	return m, invertible(m)
}

// invertible says that a's columns span space: their determinant isn't lost in rounding beside their lengths.
func invertible(a volume.Affine) bool {
	for _, row := range a {
		for _, x := range row {
			if !finite(x) {
				return false
			}
		}
	}
	s := Spacing(a)
	size := s[0] * s[1] * s[2]
	return size > 0 && finite(size) && math.Abs(det(a)) > 1e-6*size
}

func det(a volume.Affine) float64 {
	return a[0][0]*(a[1][1]*a[2][2]-a[1][2]*a[2][1]) -
		a[0][1]*(a[1][0]*a[2][2]-a[1][2]*a[2][0]) +
		a[0][2]*(a[1][0]*a[2][1]-a[1][1]*a[2][0])
}

// near says that two maps are the same to 1% of a voxel along each axis and a tenth of a voxel at the origin.
func near(a, b volume.Affine) bool {
	s := Spacing(a)
	for i := range 3 {
		for j := range 3 {
			if math.Abs(a[i][j]-b[i][j]) > 0.01*s[j] {
				return false
			}
		}
		if math.Abs(a[i][3]-b[i][3]) > 0.1*max(s[0], s[1], s[2]) {
			return false
		}
	}
	return true
}

// Spacing is the lengths of a's columns: the voxel size in mm.
func Spacing(a volume.Affine) [3]float64 {
	var s [3]float64
	for j := range s {
		s[j] = math.Hypot(math.Hypot(a[0][j], a[1][j]), a[2][j])
	}
	return s
}

// Canonical finds the axes and flips that turn a file's voxels towards RAS+: canonical axis c is the file's axis axes[c],
// run backwards if flip[c]. Of the six orders it takes the one whose directions agree best with the world's axes.
func Canonical(a volume.Affine) (axes [3]int, flip [3]bool) {
	s := Spacing(a)
	best := -1.0
	for _, p := range [][3]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		sum := 0.0
		for c, f := range p {
			sum += math.Abs(a[c][f]) / s[f]
		}
		if sum > best+1e-9 {
			best, axes = sum, p
		}
	}
	for c, f := range axes {
		flip[c] = a[c][f] < 0
	}
	return axes, flip
}

// Reorient gives the dims and affine of a file's grid after axes and flips, as Canonical finds them.
func Reorient(a volume.Affine, dims [3]int, axes [3]int, flip [3]bool) (volume.Affine, [3]int) {
	var b volume.Affine
	var out [3]int
	for i := range 3 {
		b[i][3] = a[i][3]
	}
	for c, f := range axes {
		out[c] = dims[f]
		for i := range 3 {
			b[i][c] = a[i][f]
			if flip[c] {
				b[i][c] = -a[i][f]
				b[i][3] += a[i][f] * float64(dims[f]-1)
			}
		}
	}
	return b, out
}

// Undo gives the axes and flips that lead back: Reorient by them undoes Reorient by axes and flip.
func Undo(axes [3]int, flip [3]bool) (back [3]int, backFlip [3]bool) {
	for c, f := range axes {
		back[f], backFlip[f] = c, flip[c]
	}
	return back, backFlip
}

// Place says where voxel (i, j, k) of a file goes among canonical voxels with x fastest:
// index = start + i*step[0] + j*step[1] + k*step[2]. dims are the file's.
func Place(dims [3]int, axes [3]int, flip [3]bool) (start int, step [3]int) {
	stride := 1
	for c, f := range axes {
		step[f] = stride
		if flip[c] {
			start += stride * (dims[f] - 1)
			step[f] = -stride
		}
		stride *= dims[f]
	}
	return start, step
}
