package phantom

import "math"

// branch is one piece of a vessel or airway.
type branch struct {
	a, b   vec
	ra, rb float64
}

// lungTrees grows arteries, veins and airways into both lungs, with clots in some arteries and nodules in some lungs.
func (p *patient) lungTrees() []shape {
	var s, walls, lumens []shape
	paint := func(hu float64, bs []branch) {
		for _, b := range bs {
			s = append(s, shape{a: b.a, b: b.b, ra: b.ra, rb: b.rb, hu: hu, mask: lung | mediastinum})
		}
	}
	for i, side := range []float64{1, -1} {
		inward := vec{side, -0.1, -0.25}
		arteries := grow(hilum(side), inward, p.lungPoints("arteries", side, 2600), 0.42, 8)
		veins := grow(veinRoot(side), inward, p.lungPoints("veins", side, 1500), 0.42, 6)
		airways := grow(bronchus(side), inward, p.lungPoints("airways", side, 110), 1.0, 5)
		paint(p.left, veins)
		for _, b := range airways {
			thick := 0.5 + 0.12*b.ra
			walls = append(walls, shape{a: b.a, b: b.b, ra: b.ra + thick, rb: b.rb + thick, hu: -20, mask: lung | mediastinum})
			lumens = append(lumens, shape{a: b.a, b: b.b, ra: b.ra, rb: b.rb, hu: -985, mask: lung | mediastinum})
		}
		paint(p.right, arteries)
		r := p.rand("findings", i)
		if r.IntN(2) == 0 { // emboli: filling defects in arteries of 3 mm and more
			wide := 0
			for _, b := range arteries {
				if b.rb > 1.6 {
					arteries[wide] = b
					wide++
				}
			}
			for range 1 + r.IntN(3) {
				b := arteries[r.IntN(wide)]
				s = append(s, shape{a: b.a.toward(b.b, 0.2), b: b.a.toward(b.b, 0.9), ra: 0.75 * b.rb, rb: 0.65 * b.rb, hu: 55, mask: lung | mediastinum})
			}
		}
		if r.IntN(3) == 0 { // a nodule
			at := p.lungPoints("nodule", side, 1)[0]
			size := 2.5 + 6*r.Float64()
			e := sphere(at, size, size*(0.8+0.4*r.Float64()), size)
			s = append(s, shape{ball: &e, hu: 30, mask: lung})
		}
	}
	return append(append(s, walls...), lumens...)
}

// lungPoints draws points evenly in one lung, away from its surface.
func (p *patient) lungPoints(use string, side float64, n int) []vec {
	r := p.rand(use, int(side)+1)
	points := make([]vec, 0, n)
	for len(points) < n {
		q := vec{side * (8 + 140*r.Float64()), -105 + 210*r.Float64(), -140 + 270*r.Float64()}
		l := p.level(q[2])
		power := math.Pow(math.Abs(q[0])/l.a, roundness) + math.Pow(math.Abs(q[1])/l.b, roundness)
		depth, ux, uy := l.depth(q[0], q[1], power)
		_, cavity := l.chestWall(ux, uy)
		if depth > cavity && l.lungDistance(q[0], q[1], depth, cavity, l.septum(q[1])) < -3 {
			points = append(points, q)
		}
	}
	return points
}

// grow makes a tree that reaches every point from root, after Tawhai, Pullan and Hunter (Annals of Biomedical
// Engineering 28, 2000): each branch goes part of the way to the centre of its points, which a plane then divides
// between two daughters. Radii follow Murray's law, r³ = Σ r³ of the daughters, from the tips' radius up to at most
// the root's. It reorders the points.
func grow(root, direction vec, points []vec, tip, most float64) []branch {
	const reach = 0.42
	var bs []branch
	// A daughter starts where its mother ends, as wide as it is itself: Murray's law is a step at each fork.
	var visit func(from, along vec, ps []vec)
	visit = func(from, along vec, ps []vec) {
		radius := min(most, tip*math.Cbrt(float64(len(ps))))
		if len(ps) == 1 {
			bs = append(bs, branch{from, ps[0], radius, radius * 0.8})
			return
		}
		centre, axis := principal(ps)
		end := from.toward(centre, reach)
		// Bend: the branch leaves in its mother's direction.
		length := end.sub(from).length()
		middle := from.toward(end, 0.5).add(along.sub(end.sub(from).unit()).mul(0.12 * length))
		bs = append(bs, branch{from, middle, radius, radius * 0.96}, branch{middle, end, radius * 0.96, radius * 0.9})
		n := 0
		for i, q := range ps {
			if q.sub(centre).dot(axis) < 0 {
				ps[i], ps[n] = ps[n], ps[i]
				n++
			}
		}
		n = max(1, min(len(ps)-1, n))
		along = end.sub(middle).unit()
		visit(end, along, ps[:n])
		visit(end, along, ps[n:])
	}
	visit(root, direction.unit(), points)
	return bs
}

// principal is the centre of points and the direction in which they spread most, by power iteration.
func principal(ps []vec) (centre, axis vec) {
	for _, q := range ps {
		centre = centre.add(q)
	}
	centre = centre.mul(1 / float64(len(ps)))
	var m [3]vec
	for _, q := range ps {
		d := q.sub(centre)
		for a := range 3 {
			m[a] = m[a].add(d.mul(d[a]))
		}
	}
	axis = vec{0.5, 0.6, 0.62}
	for range 12 {
		axis = vec{m[0].dot(axis), m[1].dot(axis), m[2].dot(axis)}.unit()
	}
	return centre, axis
}
