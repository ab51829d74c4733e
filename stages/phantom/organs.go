package phantom

import "math"

// shapes lists all that is painted over the torso, in order: later shapes cover earlier ones.
func (p *patient) shapes() []shape {
	var s []shape
	s = append(s, p.belly()...)
	s = append(s, p.lungTrees()...)
	s = append(s, p.greatVessels()...)
	s = append(s, p.shoulders()...)
	return s
}

// belly is what lies under the diaphragm, seen in the lowest slices.
func (p *patient) belly() []shape {
	ball := func(e ellipsoid, hu, rough float64) shape {
		return shape{ball: &e, hu: hu, rough: rough, mask: abdomen}
	}
	r, l := p.domes[0], p.domes[1]
	s := []shape{
		ball(sphere(vec{58, 6, r - 72}, 92, 88, 70), 108, 7),         // liver, right lobe
		ball(sphere(vec{-12, 40, r - 62}, 68, 46, 48), 108, 7),       // left lobe
		ball(sphere(vec{-84, -42, l - 52}, 38, 44, 44), 122, 6),      // spleen
		ball(sphere(vec{-66, 28, l - 44}, 44, 46, 38), 38, 14),       // stomach
		ball(sphere(vec{-66, 46, l - 34}, 30, 22, 22), -960, 0),      // its gas, in front as the patient lies on his back
		ball(sphere(vec{22, -22, r - 70}, 13, 11, 90), p.left*.6, 0), // inferior vena cava
	}
	rng := p.rand("liver", 0)
	for range 14 { // hepatic vessels
		a := vec{40 + 60*rng.Float64(), -30 + 70*rng.Float64(), r - 50 - 40*rng.Float64()}
		b := vec{24, -14, r - 40 - 30*rng.Float64()}
		s = append(s, shape{a: a, b: b, ra: 1.5, rb: 4, hu: 140, mask: abdomen})
	}
	return s
}

// hilum is where vessels and bronchi enter a lung; side is 1 for the right one, -1 for the left.
func hilum(side float64) vec { return vec{side * 34, -10, 6} }

const carina = 34.0 // height where the trachea divides

// greatVessels is the heart's chambers, the arteries and veins around it, and the airways down to the hila.
func (p *patient) greatVessels() []shape {
	const where = mediastinum | lung | abdomen
	var s []shape
	ball := func(e ellipsoid, hu float64) {
		s = append(s, shape{ball: &e, hu: hu, rough: 6, mask: where})
	}
	// tube runs through points with radii between.
	tube := func(hu float64, ra, rb float64, points ...vec) {
		n := float64(len(points) - 1)
		for i := range len(points) - 1 {
			at := func(t float64) float64 { return ra + (rb-ra)*t/n }
			s = append(s, shape{a: points[i], b: points[i+1], ra: at(float64(i)), rb: at(float64(i + 1)), hu: hu, mask: where})
		}
	}
	const myocardium = 105
	h, a := p.heart, p.atria
	in := func(long, side, up float64) vec {
		return h.centre.add(h.axes[0].mul(long)).add(h.axes[1].mul(side)).add(h.axes[2].mul(up))
	}
	chamber := func(c vec, long, side, up, hu float64) { ball(ellipsoid{c, h.axes, vec{long, side, up}}, hu) }

	ball(ellipsoid{a.centre, a.axes, a.radii.sub(vec{3, 3, 3})}, myocardium)
	ball(h, myocardium)
	chamber(in(8, -16, 2), 34, 17, 20, p.left)    // left ventricle
	chamber(in(4, 21, -2), 38, 13, 25, p.right)   // right ventricle
	chamber(in(-40, 30, 2), 20, 19, 27, p.right)  // right atrium
	chamber(in(-38, -16, 12), 20, 27, 19, p.left) // left atrium

	// Arch of the aorta, then down along the spine.
	ascending := vec{12, 14, 0}
	var arch []vec
	arch = append(arch, in(-26, 6, 6), ascending, vec{15, 15, 30}, vec{12, 8, 52})
	for z := 62.0; z >= -160; z -= 11 {
		_, depth := p.outline(z)
		x, y := p.aorta(depth)
		if z == 62 {
			arch = append(arch, vec{4, -4, 63}, vec{-8, (y - 8) / 2, 65})
			z -= 6
		}
		arch = append(arch, vec{x, y, z})
	}
	tube(p.left, 14.5, 10.5, arch...)
	tube(p.left, 6, 4.5, vec{12, 4, 60}, vec{20, 0, 100}, vec{34, -6, 150}) // to the right arm and head
	tube(p.left, 4, 3.5, vec{2, -6, 62}, vec{-10, -6, 105}, vec{-14, -8, 150})
	tube(p.left, 4.5, 4, vec{-10, -18, 62}, vec{-24, -18, 105}, vec{-52, -14, 150})

	// Superior vena cava, full of contrast, and the veins from the arms.
	cava := min(600, 1.45*p.right)
	tube(cava, 8, 9, vec{30, 2, 72}, vec{29, 6, 30}, in(-44, 30, 16))
	tube(cava, 5, 8, vec{66, 6, 128}, vec{36, 8, 100}, vec{30, 2, 72})
	tube(0.7*cava, 5, 6, vec{-60, 6, 126}, vec{-26, 16, 96}, vec{30, 4, 76})

	// Pulmonary trunk and its two main arteries; the left one rides higher.
	trunk := in(6, 24, 22)
	fork := vec{-14, 6, 30}
	tube(p.right, 14, 13.5, trunk, vec{-22, 22, 16}, fork)
	tube(p.right, 11.5, 8, fork, vec{4, -8, 22}, hilum(1).add(vec{-6, 0, 6}), hilum(1))
	tube(p.right, 11.5, 8, fork, vec{-26, -10, 30}, hilum(-1).add(vec{0, -4, 10}), hilum(-1))
	for _, side := range []float64{1, -1} { // pulmonary veins into the left atrium
		tube(p.left, 6, 7, veinRoot(side), in(-38, -16, 12))
	}

	// Trachea and main bronchi: walls first, then what they hold.
	trunks := func(hu, grow float64) {
		tube(hu, 8.5+grow, 8.5+grow, vec{2, -18, 160}, vec{2, -20, 80}, vec{1, -22, carina})
		tube(hu, 6.8+grow, 5+grow, vec{1, -22, carina}, bronchus(1))
		tube(hu, 6.2+grow, 4.6+grow, vec{1, -22, carina}, bronchus(-1))
	}
	_, depth := p.outline(40)
	tube(35, 6, 6, vec{-2, -37, 160}, vec{-3, spineY(depth) + 24, 40}, vec{-6, spineY(depth) + 24, -40}, vec{-18, -20, -120}) // oesophagus
	trunks(40, 1.7)
	trunks(airHU, 0)
	return s
}

func bronchus(side float64) vec { return hilum(side).add(vec{side * -4, -8, 4}) }
func veinRoot(side float64) vec { return hilum(side).add(vec{0, -4, -14}) }

// shoulders is collar bones, shoulder blades and the heads of the arms, which are raised.
func (p *patient) shoulders() []shape {
	var s []shape
	for _, side := range []float64{1, -1} {
		clavicle := func(r, hu float64) {
			points := []vec{{side * 20, 62, 98}, {side * 66, 66, 116}, {side * 122, 34, 140}}
			for i := range 2 {
				s = append(s, shape{a: points[i], b: points[i+1], ra: r, rb: r, hu: hu, mask: wall})
			}
		}
		clavicle(5.5, 0.9*corticalHU)
		clavicle(3.4, p.marrow)
		// The blade lies on the ribs behind, turned outwards.
		turn := side * 0.62
		axes := [3]vec{{math.Cos(turn), math.Sin(turn), 0}, {-math.Sin(turn), math.Cos(turn), 0}, {0, 0, 1}}
		blade := func(r vec, hu float64) {
			s = append(s, shape{ball: &ellipsoid{vec{side * 104, -66, 92}, axes, r}, hu: hu, mask: wall | bone})
		}
		blade(vec{36, 4.6, 62}, 0.8*corticalHU)
		blade(vec{32, 2.4, 56}, p.marrow)
	}
	return s
}
