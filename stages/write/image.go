package write

import (
	"errors"
	"fmt"

	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/volume"
)

// layout says where canonical voxels go in a file: voxel (x, y, z) to start + x·step[0] + y·step[1] + z·step[2].
type layout struct {
	dims  [3]int // canonical
	start int
	step  [3]int
	whole bool // the file's order needs all slices before the first voxel can be written
	depth int  // slices that are collected before they are turned
}

func newLayout(g *volume.Geometry) (layout, error) {
	var l layout
	var used [3]bool
	for _, f := range g.Axes {
		if f < 0 || f > 2 || used[f] {
			return l, fmt.Errorf("geometry: axes %v aren't an order of three", g.Axes)
		}
		used[f] = true
	}
	if min(g.Dims[0], g.Dims[1], g.Dims[2]) < 1 {
		return l, fmt.Errorf("geometry: a file of %v voxels", g.Dims)
	}
	for c, f := range g.Axes {
		l.dims[c] = g.Dims[f]
	}
	back, flip := nifti.Undo(g.Axes, g.Flip)
	l.start, l.step = nifti.Place(l.dims, back, flip)
	l.whole = g.Axes[2] != 2 || g.Flip[2]
	l.depth = 1
	if g.Axes[2] == 0 { // z is the file's fastest: cache lines of it are written in one go
		l.depth = min(32, l.dims[2])
	}
	return l, nil
}

// held is the voxels that an image of this layout holds.
func (l *layout) held() int64 {
	slice := int64(l.dims[0]) * int64(l.dims[1])
	n := slice
	if l.whole {
		n *= int64(l.dims[2])
	}
	if !l.straight() {
		n += int64(l.depth) * slice
	}
	return n
}

// straight says that the file's fastest axis is x.
func (l *layout) straight() bool { return l.step[0] == 1 || l.step[0] == -1 }

// image is a file being written from canonical slices in [-1, 1].
type image[T int16 | float32] struct {
	layout
	w       *nifti.Writer
	write   func([]T) error
	convert func(dst []T, src []float32)
	data    []T       // of the file: all of it, or one slice
	turned  []T       // depth canonical slices, to be turned
	row     []float32 // clipped voxels
	first   int       // slice that turned begins with
}

func newImage[T int16 | float32](l layout, w *nifti.Writer, write func([]T) error, convert func([]T, []float32)) *image[T] {
	slice := l.dims[0] * l.dims[1]
	m := &image[T]{layout: l, w: w, write: write, convert: convert, row: make([]float32, l.dims[0])}
	if l.whole {
		m.data = make([]T, slice*l.dims[2])
	} else {
		m.data = make([]T, slice)
	}
	if !l.straight() {
		m.turned = make([]T, l.depth*slice)
	}
	return m
}

var errNaN = errors.New("a voxel isn't a number")

// slice takes canonical slice z. They come in order.
func (m *image[T]) slice(z int, src []float32) error {
	nx, ny := m.dims[0], m.dims[1]
	if len(src) != nx*ny || z >= m.dims[2] {
		return fmt.Errorf("%d voxels for slice %d of %v", len(src), z, m.dims)
	}
	at := m.start
	if m.whole {
		at += z * m.step[2]
	}
	for y := range ny {
		row, ok := clean(src[y*nx:(y+1)*nx], m.row)
		switch {
		case !ok:
			return errNaN
		case m.step[0] == 1:
			to := at + y*m.step[1]
			m.convert(m.data[to:to+nx], row)
		case m.step[0] == -1:
			to := at + y*m.step[1] - nx + 1
			m.convert(m.data[to:to+nx], row)
			reverse(m.data[to : to+nx])
		default:
			to := (z-m.first)*nx*ny + y*nx
			m.convert(m.turned[to:to+nx], row)
		}
	}
	if last := z == m.dims[2]-1; m.turned != nil && (last || z+1-m.first == m.depth) {
		if m.whole {
			at = m.start + m.first*m.step[2]
		}
		m.turn(at, z+1-m.first)
		m.first = z + 1
	}
	if !m.whole || z == m.dims[2]-1 {
		return m.write(m.data)
	}
	return nil
}

// turn puts n canonical slices where they belong, the first of them from at on. The file's fastest axis, y or z, is
// walked in the inner loop.
func (m *image[T]) turn(at, n int) {
	nx, ny := m.dims[0], m.dims[1]
	if m.step[2] == 1 || m.step[2] == -1 {
		for y := range ny {
			transpose(m.data, at+y*m.step[1], m.step[0], m.step[2], m.turned[y*nx:], nx*ny, nx, n)
		}
		return
	}
	for z := range n {
		transpose(m.data, at+z*m.step[2], m.step[0], m.step[1], m.turned[z*nx*ny:], nx, nx, ny)
	}
}

// transpose puts src[i + j·rows] at dst[at + i·outer + j·inner], i < ni and j < nj, in blocks that the cache holds.
func transpose[T any](dst []T, at, outer, inner int, src []T, rows, ni, nj int) {
	const block = 32
	for j0 := 0; j0 < nj; j0 += block {
		for i0 := 0; i0 < ni; i0 += block {
			for i := i0; i < min(i0+block, ni); i++ {
				to, from := at+i*outer+j0*inner, i+j0*rows
				for range min(block, nj-j0) {
					dst[to] = src[from]
					to += inner
					from += rows
				}
			}
		}
	}
}

func reverse[T any](row []T) {
	for i, j := 0, len(row)-1; i < j; i, j = i+1, j-1 {
		row[i], row[j] = row[j], row[i]
	}
}

func (m *image[T]) close() error { return m.w.Close() }
func (m *image[T]) cancel()      { m.w.Cancel() }
