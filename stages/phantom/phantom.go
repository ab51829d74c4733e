// Package phantom draws CT-like chests: a body with fat, muscle, ribs and spine, two lungs with branching vessels and
// airways, a heart and great vessels filled with contrast as in CT pulmonary angiography, the organs under the
// diaphragm, a table and correlated noise. They train and test a model where no real scan may be had. Every seed is
// another patient; nothing here is meant for more than that: the anatomy is recognisable, not true.
//
// Axes are canonical (RAS+): x grows to the patient's right, y to the front, z to the head; samples are int16 HU, x
// fastest. The anatomy is in millimetres about the volume's middle, give or take some, so one seed gives one patient at any size.
//
// Read phantom.go first; patient.go draws the patient, torso.go says what tissue a point is, organs.go and tree.go list
// the shapes that shape.go paints over it, texture.go makes textures and noise.
package phantom

import (
	"fmt"
	"iter"
	"math"
	"runtime"
	"sync"

	"github.com/flowrun/flowrun/stages/volume"
)

// The field of view that holds the whole chest, mm.
const fovX, fovY, fovZ = 360.0, 280.0, 300.0

// Options says which phantom to draw.
type Options struct {
	Size    [3]int     `key:"size" default:"[128, 128, 128]" unit:"voxels x, y, z" min:"4" max:"2048" doc:"Size of the volume."`
	Spacing [3]float64 `key:"spacing" default:"[0, 0, 0]" unit:"mm x, y, z" min:"0" max:"50" doc:"Size of a voxel. 0 makes the whole chest fit along that axis."`
	Seed    uint64     `key:"seed" default:"1" doc:"Which patient: the same seed is the same patient at any size and spacing."`
	Noise   float64    `key:"noise" default:"12" unit:"HU" min:"0" max:"500" doc:"Standard deviation of the scanner's noise in the middle of the body. It falls to about 60% towards the skin."`
}

// Check refuses sizes and spacings that no volume can have.
func (o *Options) Check() error {
	for a, axis := range []string{"x", "y", "z"} {
		if o.Size[a] < 1 || o.Size[a] > math.MaxInt16 {
			return fmt.Errorf("size: %d voxels along %s (want 1..%d)", o.Size[a], axis, math.MaxInt16)
		}
		if !(o.Spacing[a] >= 0) || math.IsInf(o.Spacing[a], 0) {
			return fmt.Errorf("spacing: %g mm along %s (want 0 or more)", o.Spacing[a], axis)
		}
	}
	if !(o.Noise >= 0) || math.IsInf(o.Noise, 0) {
		return fmt.Errorf("noise: %g HU (want 0 or more)", o.Noise)
	}
	return nil
}

// Voxel returns the size of a voxel in mm: Spacing, with what fits the whole chest for the axes where that is 0.
func (o *Options) Voxel() [3]float64 {
	s := o.Spacing
	plane := max(fovX/float64(o.Size[0]), fovY/float64(o.Size[1]))
	for a, fit := range [3]float64{plane, plane, fovZ / float64(o.Size[2])} {
		if s[a] == 0 {
			s[a] = fit
		}
	}
	return s
}

// Affine maps voxels to world mm, with the world's origin in the middle of the volume.
func (o *Options) Affine() volume.Affine {
	var m volume.Affine
	for a, s := range o.Voxel() {
		m[a][a] = s
		m[a][3] = -s * float64(o.Size[a]-1) / 2
	}
	return m
}

// Slices draws a phantom slice by slice, in order from z = 0, on all cores and with a few slices in memory. A slice is Size[0]·Size[1]
// samples in HU, x fastest, and valid until the next one is asked for; its samples are a function of o alone. Options that Check
// refuses panic.
func Slices(o Options) iter.Seq2[int, []int16] {
	return func(yield func(int, []int16) bool) {
		s := newScene(o)
		n := workers(o)
		// Worker w draws slices w, w+n, …, each into its two buffers by turns.
		done := make(chan struct{})
		slices := make([]chan []int16, n)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer close(done)
		for w := range n {
			slices[w] = make(chan []int16)
			wg.Go(func() {
				c := s.newCanvas()
				buffers := [2][]int16{make([]int16, o.Size[0]*o.Size[1]), make([]int16, o.Size[0]*o.Size[1])}
				for z := w; z < o.Size[2]; z += n {
					b := buffers[z/n%2]
					c.draw(z, b)
					select {
					case slices[w] <- b:
					case <-done:
						return
					}
				}
			})
		}
		for z := range o.Size[2] {
			if !yield(z, <-slices[z%n]) {
				return
			}
		}
	}
}

func workers(o Options) int { return min(runtime.GOMAXPROCS(0), o.Size[2]) }

// scene is a patient on a grid: what doesn't change from slice to slice.
type scene struct {
	o       Options
	patient *patient
	at      volume.Affine // of voxels to mm in the patient
	edge    float64       // width over which a boundary blurs, mm
	shapes  []shape       // in the order they are painted
	slices  [][]int32     // shapes that reach each slice
	x       []float64     // of each column, mm
	fields  [4]texture    // by use: see the constants below
}

// The textures.
const (
	fine   = iota // parenchyma, trabecular bone
	medium        // parenchyma
	coarse        // organs, fat
	streak        // fat between muscles
)

func newScene(o Options) *scene {
	if err := o.Check(); err != nil {
		panic("phantom: " + err.Error())
	}
	s := &scene{o: o, patient: newPatient(o.Seed), at: o.Affine(), slices: make([][]int32, o.Size[2])}
	for a, mm := range s.patient.place {
		s.at[a][3] -= mm
	}
	v := o.Voxel()
	s.edge = max(1.2, 1.1*math.Cbrt(v[0]*v[1]*v[2]))
	s.x = make([]float64, o.Size[0])
	for i := range s.x {
		s.x[i] = s.world(0, i)
	}
	for i, step := range [...]float64{fine: 2.4, medium: 7, coarse: 15, streak: 5} {
		s.fields[i] = texture{key: volume.Key(o.Seed, "phantom texture", "", i), step: max(step, 1.5*v[0])}
	}
	s.shapes = s.patient.shapes()
	for i := range s.shapes {
		lo, hi := s.shapes[i].extent(2)
		for z := max(0, s.index(2, lo-s.edge)); z <= min(o.Size[2]-1, s.index(2, hi+s.edge)+1); z++ {
			s.slices[z] = append(s.slices[z], int32(i))
		}
	}
	return s
}

func (s *scene) world(axis, i int) float64 { return s.at[axis][axis]*float64(i) + s.at[axis][3] }

// index is the last voxel at or before mm.
func (s *scene) index(axis int, mm float64) int {
	return int(math.Floor(min(1e6, max(-1e6, (mm-s.at[axis][3])/s.at[axis][axis]))))
}

// canvas is what one worker draws a slice on.
type canvas struct {
	*scene
	hu     []float32
	region []region
	px     []float64    // |x/a|^n of each column
	rows   [4][]float32 // of the textures
	planes [4]plane
	noise  noise
}

func (s *scene) newCanvas() *canvas {
	n := s.o.Size[0] * s.o.Size[1]
	c := &canvas{scene: s, hu: make([]float32, n), region: make([]region, n), px: make([]float64, s.o.Size[0])}
	for i := range c.rows {
		c.rows[i] = make([]float32, s.o.Size[0])
	}
	return c
}

// draw is slice z as int16 HU.
func (c *canvas) draw(z int, out []int16) {
	mm := c.world(2, z)
	c.torso(mm)
	for _, i := range c.slices[z] {
		c.paint(&c.shapes[i], mm)
	}
	c.noise.add(c, z)
	for i, v := range c.hu {
		out[i] = int16(math.Round(float64(max(-1024, min(3071, v)))))
	}
}
