package vqgan

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/gpu/nn"
)

// Array is a named tensor on the host, row-major. Names and layouts are the predecessor's state dict: convolutions
// [O, I, D, H, W], transposed ones [I, O, D, H, W], with D, H, W = z, y, x.
type Array struct {
	Name  string
	Shape []int
	Data  []float32
}

// Prefixes of what a state holds for each weight beside the weight itself, and the names of what isn't per weight.
const (
	prefixAverage = "ema."
	prefixFirst   = "adam.m."
	prefixSecond  = "adam.v."

	suffixVectors = ".embeddings" // of a codebook's name
	suffixN       = ".N"
	suffixSum     = ".z_avg"
	suffixPool    = ".reservoir"
	suffixFar     = ".reservoir_distance"
	nameCounters  = "session.counters"
)

// Init starts over at step 0: weights as PyTorch's layers start, U(±1/√fan_in), norms at 1 and 0, each tensor drawn by its
// name and the seed; no codes yet: the first Step draws them.
func (s *Session) Init() error {
	s.e.Write(s.weights.At, s.draw(&s.params))
	s.e.Fill(s.grads.At, s.params.Floats(), 0)
	s.restart()
	s.initJudges()
	s.clearBooks()
	if err := s.e.Sync(); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	return nil
}

// draw gives a set's weights at the start.
func (s *Session) draw(params *nn.Params) []float32 {
	host := make([]float32, params.Floats())
	fan := 0.0
	for _, p := range params.All() {
		data := host[p.Off/4:][:p.Len()]
		switch p.Role {
		case nn.Gain:
			for i := range data {
				data[i] = 1
			}
			continue
		case nn.Shift:
			continue
		case nn.ConvWeight, nn.PlaneWeight: // [Kz, Ky, Kx, Ci, Co]
			fan = float64(p.Len() / p.Shape[4])
		case nn.TransposedWeight: // PyTorch takes its second axis, the outputs, for the fan-in
			fan = float64(p.Len() / p.Shape[3])
		case nn.Bias: // of the weight before it
		}
		r := rand.New(rand.NewPCG(key(s.o.Seed, p.Name), 0))
		for i := range data {
			data[i] = float32((2*r.Float64() - 1) / math.Sqrt(fan))
		}
	}
	return host
}

// direction is a random unit vector.
func direction(key uint64, n int) []float32 {
	r := rand.New(rand.NewPCG(key, 0))
	x, sum := make([]float32, n), 0.0
	for i := range x {
		x[i] = float32(r.NormFloat64())
		sum += float64(x[i]) * float64(x[i])
	}
	for i := range x {
		x[i] /= float32(math.Sqrt(sum))
	}
	return x
}

// restart forgets the optimiser; running means begin at the weights.
func (s *Session) restart() {
	s.step, s.packed, s.fed, s.flight = 0, nil, nil, nil
	s.e.Fill(s.first.At, s.params.Floats(), 0)
	s.e.Fill(s.second.At, s.params.Floats(), 0)
	if s.average != nil {
		host := make([]float32, s.params.Floats())
		s.e.Read(host, s.weights.At)
		s.e.Write(s.average.At, host)
	}
}

// blocks are the per-weight blocks of a state, by prefix.
func (s *Session) blocks() []struct {
	prefix string
	block  *nn.Block
} {
	type row = struct {
		prefix string
		block  *nn.Block
	}
	rows := []row{{"", s.weights}}
	if s.average != nil {
		rows = append(rows, row{prefixAverage, s.average})
	}
	return append(rows, row{prefixFirst, s.first}, row{prefixSecond, s.second})
}

// State copies to the host all that a run needs to go on with the same bits: weights, running means, moments, codebooks,
// reservoirs and counters.
func (s *Session) State() ([]Array, error) {
	var out []Array
	host := make([]float32, s.params.Floats())
	for _, row := range s.blocks() {
		s.e.Read(host, row.block.At)
		if err := s.e.Sync(); err != nil {
			return nil, fmt.Errorf("state: %w", err)
		}
		for _, p := range s.params.All() {
			a := Array{Name: row.prefix + p.Name, Shape: fileShape(p), Data: make([]float32, p.Len())}
			toFile(p, a.Data, host[p.Off/4:])
			out = append(out, a)
		}
	}
	judges, err := s.judgeState()
	if err != nil {
		return nil, err
	}
	out = append(out, judges...)
	counters := []int64{int64(s.step)}
	for i, b := range s.books() {
		name := nameBook(i)
		out = append(out,
			Array{name + suffixVectors, []int{b.codes, b.dim}, slices.Clone(b.vectors)},
			Array{name + suffixN, []int{b.codes}, slices.Clone(b.n)},
			Array{name + suffixSum, []int{b.codes, b.dim}, slices.Clone(b.sum)},
			Array{name + suffixPool, []int{b.slots(), b.dim}, slices.Clone(b.pool)},
			Array{name + suffixFar, []int{b.slots()}, slices.Clone(b.far)})
		counters = append(counters, int64(b.steps), int64(b.filled), b.seen)
	}
	return append(out, Array{nameCounters, []int{len(counters), 3}, limbs(counters...)}), nil
}

// StateBytes is the host memory of a State.
func (s *Session) StateBytes() int64 {
	const step, counters = 3, 9
	elements := s.params.Count()*len(s.blocks()) + s.judges.stateLen()
	return 4 * int64(elements+step+s.c.Books()*(s.c.Codes*(2*s.c.Embedding+1)+reservoir(s.c.Codes)*(s.c.Embedding+1)+counters))
}

// SetState goes on from a State. Nothing changes unless all of it fits. With strict every array must be there and be known;
// without, running means that are missing begin at the weights, and unknown arrays are passed over. Where an option is to blame the
// error is an *OptionError.
func (s *Session) SetState(arrays []Array, strict bool) error {
	in, err := index(arrays)
	if err != nil {
		return err
	}
	var faults []string
	want := func(name string, shape ...int) []float32 { return in.get(name, shape, &faults) }

	type load struct {
		block *nn.Block
		host  []float32
	}
	var loads []load
	for _, row := range s.blocks() {
		from := row.prefix
		if first := s.params.All()[0].Name; from == prefixAverage && !strict && !in.has(prefixAverage+first) {
			from = ""
		}
		host := make([]float32, s.params.Floats())
		for _, p := range s.params.All() {
			if data := want(from+p.Name, fileShape(p)...); data != nil {
				fromFile(p, host[p.Off/4:], data)
			}
		}
		loads = append(loads, load{row.block, host})
	}
	type shelf struct{ vectors, n, sum, pool, far []float32 }
	var shelves []shelf
	for i, b := range s.books() {
		name := nameBook(i)
		shelves = append(shelves, shelf{want(name+suffixVectors, b.codes, b.dim), want(name+suffixN, b.codes), want(name+suffixSum, b.codes, b.dim),
			want(name+suffixPool, b.slots(), b.dim), want(name+suffixFar, b.slots())})
	}
	counters := want(nameCounters, 1+3*len(shelves), 3)
	putJudges := s.loadJudges(in, true, &faults)
	if strict {
		for _, name := range slices.Sorted(maps.Keys(in)) {
			if !in[name].used {
				faults = append(faults, name+" is unknown")
			}
		}
	}
	if err := faulty("state", faults); err != nil {
		if misfit := s.misfit(in); misfit != nil {
			return misfit
		}
		return err
	}
	c, err := whole(counters)
	if err != nil {
		return err
	}
	for i, b := range s.books() {
		if filled := c[3*i+2]; filled > int64(b.slots()) {
			return fmt.Errorf("state: %s: %d of %d slots of the reservoir are filled", nameCounters, filled, b.slots())
		}
	}
	for _, l := range loads {
		s.e.Write(l.block.At, l.host)
	}
	putJudges()
	s.step, s.fed, s.flight = int(c[0]), nil, nil
	for i, b := range s.books() {
		b.steps, b.filled, b.seen = int(c[3*i+1]), int(c[3*i+2]), c[3*i+3]
		copy(b.vectors, shelves[i].vectors)
		copy(b.n, shelves[i].n)
		copy(b.sum, shelves[i].sum)
		copy(b.pool, shelves[i].pool)
		copy(b.far, shelves[i].far)
	}
	s.writeBooks()
	s.packed = nil
	if err := s.e.Sync(); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

// LoadWeights starts a new run at step 0 from another's weights and codebooks; with ema from its running means. Other arrays
// are passed over. Nothing changes unless all of it fits.
func (s *Session) LoadWeights(arrays []Array, ema bool) error {
	in, err := index(arrays)
	if err != nil {
		return err
	}
	prefix := ""
	if ema {
		prefix = prefixAverage
	}
	var faults []string
	host := make([]float32, s.params.Floats())
	for _, p := range s.params.All() {
		if data := in.get(prefix+p.Name, fileShape(p), &faults); data != nil {
			fromFile(p, host[p.Off/4:], data)
		}
	}
	type shelf struct{ vectors, n, sum []float32 }
	var shelves []shelf
	for i, b := range s.books() {
		name := nameBook(i)
		shelf := shelf{vectors: in.get(name+suffixVectors, []int{b.codes, b.dim}, &faults)}
		if in.has(name+suffixN) || in.has(name+suffixSum) {
			shelf.n, shelf.sum = in.get(name+suffixN, []int{b.codes}, &faults), in.get(name+suffixSum, []int{b.codes, b.dim}, &faults)
		}
		shelves = append(shelves, shelf)
	}
	putJudges := s.loadJudges(in, false, &faults)
	if err := faulty("weights", faults); err != nil {
		return err
	}
	for i, shelf := range shelves {
		if err := s.c.CheckVectors(nameBook(i), shelf.vectors); err != nil {
			return fmt.Errorf("weights: %w", err)
		}
	}
	s.e.Write(s.weights.At, host)
	s.restart()
	putJudges()
	for i, b := range s.books() {
		b.clear()
		b.steps = initSteps // the codes are there
		copy(b.vectors, shelves[i].vectors)
		copy(b.n, shelves[i].n)
		copy(b.sum, shelves[i].sum)
		for k := range b.codes {
			// A count of another batch size must not restart the code at once.
			if shelves[i].n == nil || b.threshold > 0 && float64(b.n[k]) < b.fresh() {
				b.anchor(k)
			}
		}
	}
	s.writeBooks()
	if err := s.e.Sync(); err != nil {
		return fmt.Errorf("weights: %w", err)
	}
	return nil
}

// dict is a state by name.
type dict map[string]*entry

type entry struct {
	Array
	used bool
}

func index(arrays []Array) (dict, error) {
	in := dict{}
	for _, a := range arrays {
		if in.has(a.Name) {
			return nil, fmt.Errorf("state: %s is there twice", a.Name)
		}
		in[a.Name] = &entry{Array: a}
	}
	return in, nil
}

func (in dict) has(name string) bool { return in[name] != nil }

// get returns an array's data, or nil and one fault more.
func (in dict) get(name string, shape []int, faults *[]string) []float32 {
	e := in[name]
	n := 1
	for _, d := range shape {
		n *= d
	}
	switch {
	case e == nil:
		*faults = append(*faults, name+" is missing")
	case !slices.Equal(e.Shape, shape) || len(e.Data) != n:
		*faults = append(*faults, fmt.Sprintf("%s is %v (want %v)", name, e.Shape, shape))
	default:
		e.used = true
		return e.Data
	}
	return nil
}

// faulty is one error that names the first few faults.
func faulty(what string, faults []string) error {
	const shown = 4
	switch n := len(faults); {
	case n == 0:
		return nil
	case n > shown:
		faults = append(faults[:shown:shown], fmt.Sprintf("and %d more", n-shown))
	}
	return fmt.Errorf("%s: another model's: %s", what, strings.Join(faults, ", "))
}

// fileShape is a parameter's shape in files.
func fileShape(p *nn.Param) []int {
	k := p.Shape
	switch p.Role {
	case nn.ConvWeight:
		return []int{k[4], k[3], k[0], k[1], k[2]}
	case nn.PlaneWeight:
		return []int{k[4], k[3], k[1], k[2]}
	case nn.TransposedWeight:
		return []int{k[3], k[4], k[0], k[1], k[2]}
	}
	return slices.Clone(k)
}

// places calls f with an element's index in the engine's layout and in the file's.
func places(p *nn.Param, f func(engine, file int)) {
	if !p.Kernel() {
		for i := range p.Len() {
			f(i, i)
		}
		return
	}
	taps := p.Shape[0] * p.Shape[1] * p.Shape[2]
	in, out := p.Shape[3], p.Shape[4]
	for t := range taps {
		for i := range in {
			for o := range out {
				row := o*in + i
				if p.Role == nn.TransposedWeight {
					row = i*out + o
				}
				f((t*in+i)*out+o, row*taps+t)
			}
		}
	}
}

func toFile(p *nn.Param, dst, src []float32) {
	places(p, func(engine, file int) { dst[file] = src[engine] })
}

func fromFile(p *nn.Param, dst, src []float32) {
	places(p, func(engine, file int) { dst[engine] = src[file] })
}

// limbs writes each number as three of 20 bits, which float32 holds exactly.
func limbs(xs ...int64) []float32 {
	var out []float32
	for _, x := range xs {
		for range 3 {
			out = append(out, float32(x&(1<<20-1)))
			x >>= 20
		}
	}
	return out
}

// whole is limbs' inverse.
func whole(data []float32) ([]int64, error) {
	out := make([]int64, len(data)/3)
	for i, f := range data {
		x := int64(f)
		if float32(x) != f || x < 0 || x >= 1<<20 {
			return nil, fmt.Errorf("state: %s: %v isn't a counter", nameCounters, f)
		}
		out[i/3] |= x << (20 * (i % 3))
	}
	return out, nil
}
