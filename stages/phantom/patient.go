package phantom

import (
	"math"
	"math/rand/v2"

	"github.com/flowrun/flowrun/stages/volume"
)

// vec is a point or direction in mm.
type vec [3]float64

func (a vec) add(b vec) vec     { return vec{a[0] + b[0], a[1] + b[1], a[2] + b[2]} }
func (a vec) sub(b vec) vec     { return vec{a[0] - b[0], a[1] - b[1], a[2] - b[2]} }
func (a vec) mul(k float64) vec { return vec{a[0] * k, a[1] * k, a[2] * k} }
func (a vec) dot(b vec) float64 { return a[0]*b[0] + a[1]*b[1] + a[2]*b[2] }
func (a vec) length() float64   { return math.Sqrt(a.dot(a)) }
func (a vec) unit() vec         { return a.mul(1 / max(a.length(), 1e-9)) }
func (a vec) cross(b vec) vec {
	return vec{a[1]*b[2] - a[2]*b[1], a[2]*b[0] - a[0]*b[2], a[0]*b[1] - a[1]*b[0]}
}
func (a vec) toward(b vec, t float64) vec { return a.add(b.sub(a).mul(t)) }

// patient is the numbers that make one chest differ from another. Lengths are mm, intensities HU.
type patient struct {
	seed          uint64
	width, depth  float64    // half axes of the body
	fat, muscle   float64    // thickness
	domes         [2]float64 // heights of the diaphragm: right, left
	apex          float64    // height of the lungs' tops
	heart         ellipsoid  // ventricles and their wall
	atria         ellipsoid
	ribTop        float64 // height of the first rib at the spine
	ribStep       float64
	ribDrop       float64 // from spine to sternum
	spinePhase    float64
	vertebra      float64 // height of a vertebra with its disc
	aortaX        float64
	parenchyma    float64 // HU
	right, left   float64 // HU of blood in the right heart and pulmonary arteries, and in the left heart and aorta
	marrow        float64
	tableDistance float64
	place         vec // of the middle of the chest in the scanner
}

func newPatient(seed uint64) *patient {
	r := volume.Rand(volume.Key(seed, "phantom", ""))
	u := func(lo, hi float64) float64 { return lo + (hi-lo)*r.Float64() }
	p := &patient{seed: seed}
	size := u(0.93, 1.03)
	p.width = size * u(150, 160)
	p.depth = size * u(106, 119)
	p.fat = u(7, 22)
	p.muscle = u(13, 18)
	base := u(-78, -58)
	p.domes = [2]float64{base, base - u(6, 18)}
	p.apex = u(112, 126)
	p.ribTop = u(112, 122)
	p.ribStep = u(23, 27)
	p.ribDrop = u(60, 95)
	p.spinePhase = u(0, 24)
	p.vertebra = u(22, 26)
	p.aortaX = u(-28, -16)
	p.parenchyma = u(-880, -830)
	p.right = u(280, 420)
	p.left = u(170, 300)
	p.marrow = u(130, 240)
	p.tableDistance = u(0, 5)
	p.place = vec{u(-3, 3), u(-8, 8), u(-9, 9)}

	long := vec{-0.72, 0.56, u(-0.5, -0.32)}.unit()
	side := long.cross(vec{0, 0, 1}).unit()
	axes := [3]vec{long, side, side.cross(long)}
	k := u(0.92, 1.08)
	centre := vec{u(-24, -16), u(16, 24), p.domes[1] + u(34, 42)}
	p.heart = ellipsoid{centre, axes, vec{60, 43, 40}.mul(k)}
	p.atria = ellipsoid{centre.add(long.mul(-36 * k)).add(side.mul(9)), axes, vec{28, 42, 34}.mul(k)}
	return p
}

func (p *patient) rand(use string, i int) *rand.Rand {
	return volume.Rand(volume.Key(p.seed, "phantom "+use, "", i))
}

// spineY is where the middle of the vertebral bodies is, given the body's half depth there.
func spineY(depth float64) float64 { return 51 - depth }

// aorta is the middle of the descending aorta, given the body's half depth there.
func (p *patient) aorta(depth float64) (x, y float64) { return p.aortaX, spineY(depth) + 22 }

// outline is the half axes of the body at a height. The shoulders are wide and flat.
func (p *patient) outline(z float64) (a, b float64) {
	return p.width * (1 + 0.06*step(20, 140, z)), p.depth * (1 - 0.1*step(20, 150, z))
}

// step rises smoothly from 0 at lo to 1 at hi.
func step(lo, hi, x float64) float64 {
	t := max(0, min(1, (x-lo)/(hi-lo)))
	return t * t * (3 - 2*t)
}
