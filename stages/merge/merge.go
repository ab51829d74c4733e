package merge

import (
	"fmt"
	"iter"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/flowrun/flowrun/stages/volume"
)

// Merge blends the tiles of each volume by the window of o. grid is asked once for each volume and says where its tiles
// lie. Tiles may come in any order and those of several scans among each other; voxels are clipped to [-1, 1], and
// padding is dropped.
//
// A slab is one slice. It is given as soon as no tile that is still to come touches it or a slice below it; the slabs
// of a scan come in order of z. Bytes says how much memory is held until then. A slab's buffer is used again once it is
// released, which any goroutine may do at any time.
//
// It is an error, which names the tags, if a tile arrives twice, if it isn't one of the grid's or of its volume's, if
// its size or its number of voxels is wrong, if a voxel is NaN or infinite, or if tiles are missing when in ends. But
// where stopping (which may be nil) then says that the data was cut short, scans without all their tiles are dropped.
//
// Scans that are lost (volume.Lost) are dropped: what is held of them, and what still comes.
//
// Merge releases every output that it takes from in. Nothing is held once the sequence has ended or was broken off.
func Merge(in iter.Seq[*volume.Output], o Options, grid func(*volume.Volume) (volume.Grid, error), stopping func() bool) iter.Seq2[*volume.Slab, error] {
	return merge(in, o, grid, stopping, runtime.GOMAXPROCS(0))
}

func merge(in iter.Seq[*volume.Output], o Options, grid func(*volume.Volume) (volume.Grid, error), stopping func() bool, workers int) iter.Seq2[*volume.Slab, error] {
	return func(yield func(*volume.Slab, error) bool) {
		m := &merger{window: o.Window, grid: grid, workers: workers, open: map[key]*image{}, done: map[key]bool{}}
		defer m.close()
		for out := range in {
			m.dropLost()
			if out.Volume.Lost() != nil {
				out.Release()
				continue
			}
			im, err := m.add(out)
			if err != nil {
				yield(nil, err)
				return
			}
			if !m.give(im, yield) {
				return
			}
		}
		if stopping != nil && stopping() {
			return
		}
		m.dropLost()
		if err := m.missing(); err != nil {
			yield(nil, err)
		}
	}
}

// merger is the volumes in flight.
type merger struct {
	window  string
	grid    func(*volume.Volume) (volume.Grid, error)
	workers int
	open    map[key]*image
	order   []*image // open ones, as they began
	done    map[key]bool
	pool    pool
}

type key struct {
	scan  string
	epoch int
}

// image is one volume in flight.
type image struct {
	key
	v       *volume.Volume // counted
	grid    volume.Grid
	axes    [3][]weights
	arrived []bool      // by tile
	left    []int       // tiles still to come of each layer
	layer   int         // the first of which tiles are still to come
	slices  [][]float32 // by z: accumulators, in fixed point, once a tile has touched it
	next    int         // slice that is given next
}

// add takes an output in, and releases it.
func (m *merger) add(out *volume.Output) (*image, error) {
	defer out.Release()
	if err := checkOutput(out); err != nil {
		return nil, err
	}
	k := key{out.Scan, out.Epoch}
	im := m.open[k]
	if im == nil {
		if m.done[k] {
			return nil, fmt.Errorf("%s: arrived twice: its scan is finished", out.Tag)
		}
		var err error
		if im, err = m.begin(k, out.Volume); err != nil {
			return nil, err
		}
	}
	if v := out.Volume; v.Dims != im.v.Dims || v.Window != im.v.Window {
		return nil, fmt.Errorf("%s: foreign: of a volume of %v voxels with window %v, the scan's others are of %v with %v",
			out.Tag, v.Dims, v.Window, im.v.Dims, im.v.Window)
	}
	if err := checkTag(&im.grid, &out.Tag); err != nil {
		return nil, err
	}
	if im.arrived[out.Tile] {
		return nil, fmt.Errorf("%s: arrived twice", out.Tag)
	}
	im.arrived[out.Tile] = true
	place := im.grid.Place(out.Tile)
	if !im.add(m, out, place) {
		return nil, fmt.Errorf("%s: a voxel isn't a finite number (has the model diverged?)", out.Tag)
	}
	im.left[place[2]]--
	return im, nil
}

// checkOutput says whether an output fits itself.
func checkOutput(out *volume.Output) error {
	if out.Volume.Scan.ID != out.Scan || out.Volume.Epoch != out.Epoch {
		return fmt.Errorf("%s: foreign: its volume is %s epoch %d", out.Tag, out.Volume.Scan.ID, out.Volume.Epoch)
	}
	if n := out.Size[0] * out.Size[1] * out.Size[2]; len(out.Voxels) != n {
		return fmt.Errorf("%s: wrong size: %d voxels (want %d)", out.Tag, len(out.Voxels), n)
	}
	return nil
}

func (m *merger) begin(k key, v *volume.Volume) (*image, error) {
	fail := func(err error) (*image, error) { return nil, fmt.Errorf("scan %s: %w", k.scan, err) }
	g, err := m.grid(v)
	if err != nil {
		return fail(err)
	}
	if err := check(&g, v.Dims); err != nil {
		return fail(err)
	}
	im := &image{key: k, grid: g, arrived: make([]bool, g.Len()), left: make([]int, g.N[2]), slices: make([][]float32, g.Dims[2])}
	for a := range im.axes {
		if im.axes[a], err = newAxis(m.window, g.Patch[a], g.Origins[a]); err != nil {
			return fail(err)
		}
	}
	for i := range im.left {
		im.left[i] = g.N[0] * g.N[1]
	}
	im.v = v.Retain()
	m.open[k] = im
	m.order = append(m.order, im)
	return im, nil
}

// add adds the voxels of a tile, its slices in parallel. It says whether all of them are finite.
func (im *image) add(m *merger, out *volume.Output, place [3]int) bool {
	dims, patch, o := im.grid.Dims, im.grid.Patch, out.Origin
	wx, wy, wz := im.axes[0][place[0]], im.axes[1][place[1]], im.axes[2][place[2]]
	x0, x1 := wx.lo, min(wx.hi, dims[0]-o[0])
	y0, y1 := wy.lo, min(wy.hi, dims[1]-o[1])
	z0, z1 := wz.lo, min(wz.hi, dims[2]-o[2])
	var broken atomic.Bool
	each(m.workers, z1-z0, func(i int) {
		z := z0 + i
		b := im.slices[o[2]+z]
		if b == nil {
			b = m.pool.get(dims[0] * dims[1])
			clear(b)
			im.slices[o[2]+z] = b
		}
		acc := fixed(b)
		for y := y0; y < y1; y++ {
			to, from := (o[1]+y)*dims[0]+o[0], (z*patch[1]+y)*patch[0]
			if x0 < x1 && !add(acc[to+x0:to+x1], out.Voxels[from+x0:from+x1], wx.w[x0:x1], wy.w[y]*wz.w[z]) {
				broken.Store(true)
				return
			}
		}
	})
	return !broken.Load()
}

// give yields the slices that are finished. It is false once yield was.
func (m *merger) give(im *image, yield func(*volume.Slab, error) bool) bool {
	for im.layer < len(im.left) && im.left[im.layer] == 0 {
		im.layer++
	}
	end := im.grid.Dims[2]
	if im.layer < len(im.left) {
		end = min(end, im.grid.Origins[2][im.layer]+im.axes[2][im.layer].lo)
	}
	first := im.next
	each(m.workers, end-first, func(i int) { finish(im.slices[first+i]) })
	for ; im.next < end; im.next++ {
		b := im.slices[im.next]
		im.slices[im.next] = nil
		s := &volume.Slab{Volume: im.v.Retain(), Z0: im.next, Z1: im.next + 1, Voxels: b, Free: func() { m.pool.put(b) }}
		if !yield(s, nil) {
			return false
		}
	}
	if im.layer == len(im.left) {
		m.end(im)
	}
	return true
}

// end forgets a volume of which all tiles have arrived.
func (m *merger) end(im *image) {
	im.v.Release()
	delete(m.open, im.key)
	m.done[im.key] = true
	m.order = slices.DeleteFunc(m.order, func(other *image) bool { return other == im })
}

// dropLost forgets the volumes that are lost.
func (m *merger) dropLost() {
	m.order = slices.DeleteFunc(m.order, func(im *image) bool {
		if im.v.Lost() == nil {
			return false
		}
		for _, b := range im.slices {
			if b != nil {
				m.pool.put(b)
			}
		}
		im.v.Release()
		delete(m.open, im.key)
		return true
	})
}

// listed is how many missing tiles of a scan are named.
const listed = 8

// missing lists the tiles that haven't arrived.
func (m *merger) missing() error {
	var parts []string
	for _, im := range m.order {
		var tags []string
		n := 0
		for tile, arrived := range im.arrived {
			if arrived {
				continue
			}
			if n++; n <= listed {
				t := volume.Tag{Scan: im.scan, Epoch: im.epoch, Tile: tile, Tiles: len(im.arrived), Origin: im.grid.Tile(tile), Size: im.grid.Patch}
				tags = append(tags, t.String())
			}
		}
		if n > listed {
			tags = append(tags, fmt.Sprintf("and %d more of this scan", n-listed))
		}
		parts = append(parts, tags...)
	}
	if len(parts) == 0 {
		return nil
	}
	return fmt.Errorf("missing: %s", strings.Join(parts, "; "))
}

// close lets go of what was still in flight.
func (m *merger) close() {
	for _, im := range m.order {
		im.v.Release()
	}
	m.order, m.open = nil, nil
	m.pool.close()
}
