package phantom

import "math"

// region is what kind of place a voxel is; a shape is painted only where its mask allows.
type region uint8

// The regions.
const (
	outside region = 1 << iota
	wall
	lung
	mediastinum
	abdomen
	bone
)

// ellipsoid has orthonormal axes and a radius along each.
type ellipsoid struct {
	centre vec
	axes   [3]vec
	radii  vec
}

func sphere(centre vec, rx, ry, rz float64) ellipsoid {
	return ellipsoid{centre, [3]vec{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}, vec{rx, ry, rz}}
}

// distance is roughly the signed distance to the surface, negative inside (Quilez, "ellipsoid SDF": k0(k0-1)/k1).
func (e *ellipsoid) distance(p vec) float64 {
	d := p.sub(e.centre)
	var k0, k1 float64
	for a := range 3 {
		q := d.dot(e.axes[a]) / e.radii[a]
		k0 += q * q
		q /= e.radii[a]
		k1 += q * q
	}
	if k1 == 0 {
		return -min(e.radii[0], e.radii[1], e.radii[2])
	}
	k0 = math.Sqrt(k0)
	return k0 * (k0 - 1) / math.Sqrt(k1)
}

// shape is an ellipsoid, or else a capsule from a to b whose radius goes from ra to rb.
type shape struct {
	ball   *ellipsoid
	a, b   vec
	ra, rb float64
	hu     float64
	mask   region
	rough  float64 // HU of texture
}

func (s *shape) extent(axis int) (lo, hi float64) {
	if s.ball != nil {
		var r float64 // of the bounding box: the norm of the scaled axes' components
		for a := range 3 {
			q := s.ball.axes[a][axis] * s.ball.radii[a]
			r += q * q
		}
		r = math.Sqrt(r)
		return s.ball.centre[axis] - r, s.ball.centre[axis] + r
	}
	return min(s.a[axis]-s.ra, s.b[axis]-s.rb), max(s.a[axis]+s.ra, s.b[axis]+s.rb)
}

// paint blends a shape into the slice at height z.
func (c *canvas) paint(s *shape, z float64) {
	var box [2][2]int
	for a := range 2 {
		lo, hi := s.extent(a)
		box[a] = [2]int{max(0, c.index(a, lo-c.edge)+1), min(c.o.Size[a]-1, c.index(a, hi+c.edge))}
		if box[a][0] > box[a][1] {
			return
		}
	}
	ab := s.b.sub(s.a)
	inv := 1 / max(ab.dot(ab), 1e-9)
	for j := box[1][0]; j <= box[1][1]; j++ {
		y := c.world(1, j)
		if s.rough != 0 {
			c.planes[coarse].row(c.rows[coarse], c.x, y)
		}
		for i := box[0][0]; i <= box[0][1]; i++ {
			n := j*c.o.Size[0] + i
			if c.region[n]&s.mask == 0 {
				continue
			}
			p := vec{c.x[i], y, z}
			var d, r float64
			if s.ball != nil {
				r = s.ball.radii[0]
				d = s.ball.distance(p)
			} else {
				ap := p.sub(s.a)
				t := max(0, min(1, ap.dot(ab)*inv))
				r = s.ra + (s.rb-s.ra)*t
				d = ap.sub(ab.mul(t)).length() - r
			}
			alpha := max(0, min(1, 0.5-d/c.edge))
			if alpha == 0 {
				continue
			}
			if thin := 2 * r / c.edge; thin < 1 { // fills part of a voxel only
				alpha *= thin * math.Sqrt(thin)
			}
			hu := s.hu
			if s.rough != 0 {
				hu += s.rough * float64(c.rows[coarse][i])
			}
			c.hu[n] += float32(alpha * (hu - float64(c.hu[n])))
		}
	}
}
