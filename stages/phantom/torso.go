package phantom

import "math"

// Intensities in HU.
const (
	airHU       = -1000
	fatHU       = -102
	muscleHU    = 52
	skinHU      = 20
	corticalHU  = 850
	cartilageHU = 95
	pleuraHU    = 25
)

// level is what the torso is at one height.
type level struct {
	*patient
	z              float64
	a, b           float64 // half axes of the body
	up             float64 // 0 below the shoulders, 1 at their top
	spine          float64 // y of the middle of the vertebral bodies
	aortaX, aortaY float64
}

func (p *patient) level(z float64) level {
	l := level{patient: p, z: z, up: step(55, 135, z)}
	l.a, l.b = p.outline(z)
	l.spine = spineY(l.b)
	l.aortaX, l.aortaY = p.aorta(l.b)
	return l
}

// The body is a superellipse |x/a|^n + |y/b|^n = 1.
const roundness = 2.4

// depth is how far under the skin a point is, along the ray from the middle; ux, uy is the ray's direction.
func (l *level) depth(x, y, power float64) (d, ux, uy float64) {
	r := math.Hypot(x, y)
	if r < 1 {
		return l.b, 0, 1
	}
	return r * (math.Pow(power, -1/roundness) - 1), x / r, y / r
}

// chestWall is the depths at which fat ends and the cavity begins, along a ray.
func (l *level) chestWall(ux, uy float64) (fat, cavity float64) {
	fat = l.fat * (0.8 + 0.5*max(0, -uy)*max(0, -uy) + 0.25*max(0, uy))
	back := step(0.25, 1, -uy)
	side := 1 - uy*uy
	return fat, fat + l.muscle + 13*back + l.up*(16+26*side) - 3*step(0.7, 1, uy)
}

// dome is the height of the diaphragm: it sinks towards the chest wall.
func (l *level) dome(x, y float64) float64 {
	h := func(side int, cx float64) float64 {
		qx, qy := (x-cx)/82, (y-8)/96
		return l.domes[side] - 62*(qx*qx+qy*qy)
	}
	return max(h(0, 62), h(1, -62))
}

// septum is the half width of the mediastinum without its organs: wide at the hila, a mere septum in front.
func (l *level) septum(y float64) float64 {
	return 5 + (20+4*l.up)*math.Exp(-(y+8)*(y+8)/(42*42))
}

// lungDistance is roughly the signed distance to the lungs' surface, given the depth under the skin and where the cavity
// begins: the lungs fill an egg on either side, inside the cavity, above the diaphragm, outside septum, heart, spine and aorta.
func (l *level) lungDistance(x, y, depth, cavity, septum float64) float64 {
	side := 1.0
	if x < 0 {
		side = -1
	}
	const bottom = -75
	egg := ellipsoid{vec{side * 62, -4, bottom}, [3]vec{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}, vec{74, 103, l.apex - bottom}}
	p := vec{x, y, l.z}
	d := smoothMax(egg.distance(p), cavity+2-depth, 8)
	m := smoothMin(math.Abs(x+2)-septum, l.heart.distance(p)-4, 10)
	m = smoothMin(m, l.atria.distance(p)-4, 10)
	m = smoothMin(m, math.Hypot(x, y-l.spine)-21, 8)
	if l.z < 62 {
		m = smoothMin(m, math.Hypot(x-l.aortaX, y-l.aortaY)-15, 6)
	}
	d = smoothMax(d, -m, 7)
	return smoothMax(d, (l.dome(x, y)-l.z)*0.75, 6)
}

// smoothMin and smoothMax round the seam over k mm (Quilez, polynomial smooth minimum).
func smoothMin(a, b, k float64) float64 {
	h := max(k-math.Abs(a-b), 0) / k
	return min(a, b) - h*h*k/4
}

func smoothMax(a, b, k float64) float64 { return -smoothMin(-a, -b, k) }

// mix is a at d ≪ 0 and b at d ≫ 0, blended over the edge.
func (c *canvas) mix(a, b, d float64) float64 {
	return a + (b-a)*max(0, min(1, 0.5+d/c.edge))
}

// torso draws body, chest wall, lungs and backbone at height z, and says of each voxel which region it is.
func (c *canvas) torso(z float64) {
	l := c.patient.level(z)
	nx, ny := c.o.Size[0], c.o.Size[1]
	xs, ys := [2]float64{c.x[0], c.x[nx-1]}, [2]float64{c.world(1, 0), c.world(1, ny-1)}
	for i, t := range c.fields {
		c.planes[i].at(t, xs, ys, z)
	}
	for i, x := range c.x {
		c.px[i] = math.Pow(math.Abs(x)/l.a, roundness)
	}
	for j := range ny {
		y := c.world(1, j)
		hu, regions := c.hu[j*nx:][:nx], c.region[j*nx:][:nx]
		py := math.Pow(math.Abs(y)/l.b, roundness)
		septum := l.septum(y)
		first := true
		for i, x := range c.x {
			power := c.px[i] + py
			if power > 1.3 {
				hu[i], regions[i] = float32(c.table(x, y)), outside
				continue
			}
			if first {
				for f := range c.planes {
					c.planes[f].row(c.rows[f], c.x, y)
				}
				first = false
			}
			v, r := c.tissue(&l, i, x, y, power, septum)
			hu[i], regions[i] = float32(v), r
		}
	}
}

// table is the couch under the patient: a carbon shell around foam, seen from its end an arc.
func (c *canvas) table(x, y float64) float64 {
	const half, thick = 200, 26
	top := -c.patient.depth - c.patient.tableDistance - 14 + 20*(x/half)*(x/half)
	d := max(math.Abs(y-top+thick/2)-thick/2, math.Abs(x)-half)
	return c.mix(c.mix(-940, -500, d+2), airHU, d)
}

func (c *canvas) tissue(l *level, i int, x, y, power, septum float64) (float64, region) {
	depth, ux, uy := l.depth(x, y, power)
	if depth < -c.edge {
		return c.table(x, y), outside
	}
	fat, cavity := l.chestWall(ux, uy)
	fat += 1.5 * float64(c.rows[coarse][i])
	var v float64
	r := wall
	if depth < cavity {
		v = c.fatAndMuscle(i, depth, fat)
		v = c.mix(airHU, v, depth)
	} else {
		v, r = c.inside(l, i, x, y, depth, cavity, septum)
	}
	if d, hu := l.rib(x, y, ux, uy, depth-cavity+6.5, c.rows[fine][i]); d < c.edge {
		if d < 0 {
			r = bone
		}
		v = c.mix(hu, v, d)
	}
	if math.Abs(x) < 44 && y < l.spine+24 {
		if d, hu := l.backbone(x, y-l.spine, c.rows[fine][i]); d < c.edge {
			if d < 0 {
				r = bone
			}
			v = c.mix(hu, v, d)
		}
	}
	return v, r
}

func (c *canvas) fatAndMuscle(i int, depth, fat float64) float64 {
	f := fatHU + 9*float64(c.rows[fine][i])
	m := muscleHU + 10*float64(c.rows[medium][i])
	if s := float64(c.rows[streak][i]); depth > fat+3 && s > 0.42 {
		m += (f - m) * min(1, (s-0.42)*5)
	}
	v := c.mix(f, m, depth-fat)
	return c.mix(skinHU, v, depth-1.8)
}

// inside is what fills the cavity: lung, mediastinal fat, or what is under the diaphragm.
func (c *canvas) inside(l *level, i int, x, y, depth, cavity, septum float64) (float64, region) {
	d := l.lungDistance(x, y, depth, cavity, septum)
	under := l.dome(x, y) - l.z
	v, r := fatHU+9*float64(c.rows[fine][i]), mediastinum
	switch {
	case under > 0:
		r = abdomen
		v = c.mix(muscleHU, v, under-4)
	case depth < cavity+4:
		v = pleuraHU
	}
	if d < c.edge {
		if d < 0 {
			r = lung
		}
		// Dependent lung is denser: it lies at the back.
		air := l.parenchyma - 0.35*y + 24*float64(c.rows[medium][i]) + 26*float64(c.rows[fine][i])
		v = c.mix(air, v, d)
	}
	return v, r
}

// rib is the distance to the nearest rib, costal cartilage or the sternum, and its intensity. Ribs run around the cavity
// and sink from the spine to the front; off is the depth below the layer in which they lie.
func (l *level) rib(x, y, ux, uy, off float64, grain float32) (float64, float64) {
	if math.Abs(off) > 12 {
		return math.Inf(1), 0
	}
	marrow := l.marrow + 70*float64(grain)
	if y > 0 && math.Abs(x) < 30 && l.z > -62 && l.z < 92 {
		half := 14 + 10*step(55, 90, l.z)
		d := max(math.Abs(x)-half, math.Abs(off-1)-5, l.z-90, -60-l.z)
		if d < 3 {
			return d, shell(d, 1.6, 0.6*corticalHU, marrow)
		}
	}
	front := (1 + uy) / 2 // 0 at the spine, 1 at the sternum
	slope := l.ribDrop * front * front * (1.6 - 0.6*front)
	n := math.Round((l.ribTop - l.z - slope) / l.ribStep)
	end := 1 - 0.012*n // where cartilage meets the sternum
	switch {
	case n < 0 || n > 11 || math.Abs(x) < 19:
		return math.Inf(1), 0
	case n > 9:
		end = 0.45
	case n > 6:
		end = 0.93 - 0.06*(n-6)
	}
	if front > end {
		return math.Inf(1), 0
	}
	dz := (l.ribTop - n*l.ribStep - slope - l.z) * 0.85
	d := (math.Hypot(off/3.4, dz/6.2) - 1) * 4.2
	if cartilage := 0.80 - 0.015*n; front > cartilage && n < 10 {
		return d, cartilageHU
	}
	return d, shell(d, 1.5, corticalHU, marrow)
}

// shell is bone: cortical near the surface, marrow further in.
func shell(d, thickness, cortical, marrow float64) float64 {
	return cortical + (marrow-cortical)*step(thickness*0.6, thickness*1.6, -d)
}

// backbone is the distance to the spine and its intensity; y is from the middle of the vertebral bodies, which face +y.
func (l *level) backbone(x, y float64, grain float32) (float64, float64) {
	marrow := l.marrow + 70*float64(grain)
	phase := math.Mod(l.z+l.spinePhase+1e4*l.vertebra, l.vertebra) // 0 is the middle of a disc
	toDisc := min(phase, l.vertebra-phase) - 2.6
	waist := 1.8 * step(0, 9, toDisc)
	body := (math.Pow(math.Pow(math.Abs(x)/(18-waist), 2.5)+math.Pow(math.Abs(y)/(14.5-waist), 2.5), 0.4) - 1) * 15
	if body < 4 {
		if toDisc < 0 {
			return body, cartilageHU
		}
		return body, shell(-min(-body, toDisc), 1.3, 0.8*corticalHU, marrow)
	}
	// Behind the body: the canal with its arch, and the processes in the upper half of each vertebra.
	canal := math.Hypot(x/1.15, y+23) - 8.5
	if canal < 0 {
		return -10, 30
	}
	high := step(2, 6, toDisc)
	arch := max(canal-3.6-1.5*high, y+10) + 3*(1-high)
	spinous := max(math.Abs(x)-3.2, math.Abs(y+36)-8) + 4*step(4, 12, math.Abs(phase-l.vertebra/2))
	across := max(math.Hypot((y+20)/4.2, (phase-l.vertebra/2)/5.5)*4-4, math.Abs(x)-31, 9-math.Abs(x))
	d := smoothMin(smoothMin(arch, spinous, 3), across, 3)
	return d, shell(d, 1.4, corticalHU, marrow)
}
