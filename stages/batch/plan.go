package batch

import (
	"fmt"
	"math"

	"github.com/flowrun/flowrun/stages/volume"
)

// plan is what a patch's operations come to.
//
// Geometry: along z the result runs against the volume if against[2]. In the plane, the result's x axis is the volume's
// y axis if swap is set, else its x axis, and runs against it if against[0]; the result's y axis is the other one, and runs
// against it if against[1].
//
// Intensity: scaled = a*sample + b, clipped to [-1, 1]. Noise is added before clipping, on the scale of the result.
type plan struct {
	swap    bool
	against [3]bool
	a, b    float64
	noise   []noise // reused
}

type noise struct {
	std float64 // on the scale of the result
	key uint64
}

// set works out the plan of p.
func (l *plan) set(p *volume.Patch) error {
	v := p.Volume
	lo, hi := v.Window[0], v.Window[1]
	l.swap, l.against, l.noise = false, [3]bool{}, l.noise[:0]
	scale, shift := 1.0, 0.0 // HU' = scale*HU + shift
	for _, op := range p.Ops {
		for a, flip := range op.Flip {
			l.against[a] = l.against[a] != flip
		}
		for range op.Turns & 3 {
			// (x, y) goes to (size-1-y, x).
			l.swap = !l.swap
			l.against[0], l.against[1] = !l.against[1], l.against[0]
		}
		scale, shift = scale*op.Scale, shift*op.Scale+op.Shift
		for i := range l.noise {
			l.noise[i].std *= math.Abs(op.Scale)
		}
		if op.Noise > 0 {
			l.noise = append(l.noise, noise{op.Noise, op.Key})
		}
	}
	k := 2 / (hi - lo)
	l.a = scale * v.Slope * k
	l.b = (scale*v.Inter+shift-lo)*k - 1
	for i := range l.noise {
		l.noise[i].std *= k
	}
	switch {
	case !(lo < hi):
		return fmt.Errorf("%s: window %v HU is empty", p.Tag, v.Window)
	case !(math.Abs(l.a)*(1<<15)+math.Abs(l.b) < math.MaxFloat32):
		return fmt.Errorf("%s: HU = %g·sample + %g, then %g·HU + %g: too large or not a number", p.Tag, v.Slope, v.Inter, scale, shift)
	case l.swap && p.Size[0] != p.Size[1]:
		return fmt.Errorf("%s: a quarter turn needs a patch that is square in x and y", p.Tag)
	}
	for _, n := range l.noise {
		if !(n.std < math.MaxFloat32/100) {
			return fmt.Errorf("%s: noise is too large or not a number", p.Tag)
		}
	}
	return nil
}

// table gives for each sample, as uint16, its place in the window: -1 at the low end, 1 at the high end.
type table struct {
	value [1 << 16]float32
	a, b  float64
	clip  bool
	made  bool
}

// set makes the table, unless it is what it was.
func (t *table) set(a, b float64, clip bool) {
	if t.made && t.a == a && t.b == b && t.clip == clip {
		return
	}
	t.a, t.b, t.clip, t.made = a, b, clip, true
	for i := range t.value {
		x := float32(float64(a*float64(int16(i))) + b)
		if clip {
			x = min(max(x, -1), 1)
		}
		t.value[i] = x
	}
}
