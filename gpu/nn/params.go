package nn

import (
	"fmt"
	"slices"

	"github.com/flowrun/flowrun/gpu"
)

// Role says what a parameter is for: how it starts and how files lay it out depend on it.
type Role uint8

// The roles.
const (
	ConvWeight       Role = iota // [Kz, Ky, Kx, Ci, Co]
	PlaneWeight                  // [1, Ky, Kx, Ci, Co], of a convolution of images
	TransposedWeight             // [Kz, Ky, Kx, Ci, Co]
	Bias                         // [Co]
	Gain                         // [C], γ of a norm
	Shift                        // [C], β of a norm
)

// Param is one parameter tensor, row-major float32.
type Param struct {
	Name  string
	Role  Role
	Shape []int
	Off   int64 // bytes from the start of a block of the set's layout

	set *Params
}

// Len is the number of elements.
func (p *Param) Len() int {
	n := 1
	for _, d := range p.Shape {
		n *= d
	}
	return n
}

// Kernel reports whether it is a convolution's weight, five axes.
func (p *Param) Kernel() bool {
	return p.Role == ConvWeight || p.Role == PlaneWeight || p.Role == TransposedWeight
}

func (p *Param) weight() gpu.Ptr {
	if p.Kernel() && p.set.Kernels > 0 {
		return p.set.Kernels + gpu.Ptr(p.Off)
	}
	return p.set.Weights + gpu.Ptr(p.Off)
}
func (p *Param) grad() gpu.Ptr { return p.set.Grads + gpu.Ptr(p.Off) }

// Params is a set of parameters that are trained together. Graphs of one model at different shapes share it: an op asks
// for its parameters by name, and the first to ask lays them out. Weights, gradients, moments and running means are each
// one block of this layout, so the optimiser is one pass over a block; the gaps that alignment leaves hold zeros.
type Params struct {
	// Weights and Grads are the blocks that programs read and add to. Whoever runs them sets these; pointing Weights at
	// the running means evaluates those.
	Weights, Grads gpu.Ptr
	// Kernels is where the weights of convolutions are read instead, in the same layout: divided by their spectral norms, say. 0 is in Weights.
	Kernels gpu.Ptr

	list   []*Param
	byName map[string]*Param
	size   int64
}

// All lists the parameters in the order of the layout.
func (s *Params) All() []*Param { return s.list }

// Lookup finds a parameter by name.
func (s *Params) Lookup(name string) (*Param, bool) {
	p, ok := s.byName[name]
	return p, ok
}

// Count is the number of elements of all parameters.
func (s *Params) Count() int {
	n := 0
	for _, p := range s.list {
		n += p.Len()
	}
	return n
}

// Bytes is the size of one block.
func (s *Params) Bytes() int64 { return s.size }

// Floats is the length of one block with its gaps.
func (s *Params) Floats() int { return int(s.size / 4) }

func (s *Params) get(name string, role Role, shape ...int) (*Param, error) {
	if p, ok := s.byName[name]; ok {
		if p.Role != role || !slices.Equal(p.Shape, shape) {
			return nil, fmt.Errorf("%s: parameter is %v, not %v", name, p.Shape, shape)
		}
		return p, nil
	}
	p := &Param{Name: name, Role: role, Shape: shape, Off: s.size, set: s}
	if s.byName == nil {
		s.byName = map[string]*Param{}
	}
	s.byName[name] = p
	s.list = append(s.list, p)
	s.size += align(4 * int64(p.Len()))
	return p, nil
}

func align(n int64) int64 { return (n + gpu.Align - 1) / gpu.Align * gpu.Align }
