package phantom

import (
	"math"
	"math/rand/v2"

	"github.com/flowrun/flowrun/stages/volume"
)

// texture is value noise in [-1, 1]: random values on a lattice of step mm, interpolated smoothly. It is fixed in space,
// so it doesn't depend on the grid.
type texture struct {
	key  uint64
	step float64
}

// plane is the lattice at one height.
type plane struct {
	texture
	x0, y0, nx, ny int
	values         []float32
}

// at brings p to height z, over the rectangle that x and y span.
func (p *plane) at(t texture, xs [2]float64, ys [2]float64, z float64) {
	p.texture = t
	p.x0, p.y0 = int(math.Floor(xs[0]/t.step)), int(math.Floor(ys[0]/t.step))
	p.nx, p.ny = int(math.Floor(xs[1]/t.step))+2-p.x0, int(math.Floor(ys[1]/t.step))+2-p.y0
	if n := p.nx * p.ny; cap(p.values) < n {
		p.values = make([]float32, n)
	}
	p.values = p.values[:p.nx*p.ny]
	z0 := math.Floor(z / t.step)
	w := fade(z/t.step - z0)
	for j := range p.ny {
		for i := range p.nx {
			a, b := t.value(p.x0+i, p.y0+j, int(z0)), t.value(p.x0+i, p.y0+j, int(z0)+1)
			p.values[j*p.nx+i] = a + w*(b-a)
		}
	}
}

// row fills out with the texture at the columns x of row y.
func (p *plane) row(out []float32, x []float64, y float64) {
	f := y/p.step - float64(p.y0)
	j := int(f)
	w := fade(f - float64(j))
	a, b := p.values[j*p.nx:][:p.nx], p.values[(j+1)*p.nx:][:p.nx]
	for i, mm := range x {
		f := mm/p.step - float64(p.x0)
		k := int(f)
		u := fade(f - float64(k))
		lo, hi := a[k]+u*(a[k+1]-a[k]), b[k]+u*(b[k+1]-b[k])
		out[i] = lo + w*(hi-lo)
	}
}

func (t texture) value(x, y, z int) float32 {
	h := t.key ^ uint64(x)*0x9e3779b97f4a7c15 ^ uint64(y)*0xc2b2ae3d27d4eb4f ^ uint64(z)*0x165667b19e3779f9
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return float32(int64(h)>>40) / (1 << 23)
}

func fade(t float64) float32 { return float32(t * t * (3 - 2*t)) }

// noise is the scanner's: white noise through [-1 1 4 1 -1]/√20 along x and y, whose spectrum rises from its low end and
// falls to nothing at the highest frequency, as that of a filtered back-projection does, and [1 2 1]/√6 along z.
type noise struct {
	white, mid []float32
}

const halo = 2 // columns and rows that the filter reaches

func (n *noise) add(c *canvas, z int) {
	if c.o.Noise == 0 {
		return
	}
	nx, ny := c.o.Size[0], c.o.Size[1]
	w, h := nx+2*halo, ny+2*halo
	if n.white == nil {
		n.white, n.mid = make([]float32, w*h), make([]float32, w*h)
	}
	clear(n.white)
	for dz, k := range [3]float32{1, 2, 1} {
		var src rand.PCG
		src.Seed(volume.Key(c.o.Seed, "phantom noise", "", z+dz-1), 0x9e3779b97f4a7c15)
		for i := range n.white {
			n.white[i] += k * normal(src.Uint64())
		}
	}
	filter := func(dst, src []float32, at, stride int) {
		dst[at] = 4*src[at] + src[at-stride] + src[at+stride] - src[at-2*stride] - src[at+2*stride]
	}
	for j := range h {
		for i := halo; i < w-halo; i++ {
			filter(n.mid, n.white, j*w+i, 1)
		}
	}
	scale := c.o.Noise / math.Sqrt(6*20*20)
	for j := range ny {
		y := c.world(1, j)
		for i, x := range c.x {
			at := (j+halo)*w + i + halo
			filter(n.white, n.mid, at, w)
			r := 1 / (1 + (x*x+y*y)/(120*120))
			c.hu[j*nx+i] += float32(scale*(0.45+0.55*r)) * n.white[at]
		}
	}
}

// normal makes a nearly normal deviate of deviation 1 out of the four 16-bit halves of a word (Irwin-Hall); the filter
// makes it normal.
func normal(u uint64) float32 {
	sum := int32(u&0xffff) + int32(u>>16&0xffff) + int32(u>>32&0xffff) + int32(u>>48)
	return float32(sum-2*0xffff) * (1.7320508 / 65536)
}
