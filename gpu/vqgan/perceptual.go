package vqgan

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/nn"
)

// Perceptual is the options of LPIPS (Zhang et al., 2018) as a loss: the distance between the features that VGG16, a network trained on
// photographs, has of slices of the reconstruction and of the scan.
type Perceptual struct {
	Weight float64  `key:"weight" default:"0" min:"0" example:"1" doc:"Weight of LPIPS, the distance between reconstruction and scan in the features of VGG16. 0 is off: then no file is read, and it costs neither memory nor time. TATS used 4."`
	File   string   `key:"file" default:"lpips-vgg16.safetensors" doc:"Weights of VGG16 and of LPIPS' linear heads, by torchvision's names or those of the package lpips, under any prefix: .safetensors, or what torch.save wrote. docs/perceptual.md says where they come from."`
	Share  float64  `key:"share" default:"0.02" min:"0" max:"1" doc:"Share of a patch's slices that are compared in a step, across each of the planes, at random places; at least one slice."`
	Planes []string `key:"planes" default:"[x, y, z]" oneof:"x y z" doc:"Axes across which slices are cut: z gives axial ones. Slices must be 16 voxels or more along both of their axes."`
	Chunk  int      `key:"chunk" default:"4" unit:"slices" min:"1" doc:"Slices computed at a time, at least one of each patch of a micro-batch: memory is that of a chunk."`
}

// leastSlice is what VGG16's four halvings leave a voxel of.
const leastSlice = 16

// Check says whether the keys fit each other.
func (o *Perceptual) Check() error {
	if o.Weight > 0 && len(o.Planes) == 0 {
		return errors.New("planes: [] (want at least one of x, y, z, or weight: 0)")
	}
	for i, p := range o.Planes {
		if slices.Contains(o.Planes[:i], p) {
			return fmt.Errorf("planes: %s is there twice", p)
		}
	}
	return nil
}

// CheckPatch says whether the slices of a patch, x, y, z, are large enough.
func (o *Perceptual) CheckPatch(patch [3]int) error {
	if !o.On() {
		return nil
	}
	for _, plane := range o.Planes {
		for a, n := range patch {
			if axis := "xyz"[a : a+1]; axis != plane && n < leastSlice {
				return fmt.Errorf("planes: slices across %s are %d voxels along %s, but VGG16 halves them four times (want at least %d: leave %s out, or enlarge tile.patch)",
					plane, n, axis, leastSlice, plane)
			}
		}
	}
	return nil
}

// slices is how many of d slices are compared.
func (o *Perceptual) slices(d int) int {
	return min(d, max(1, int(math.Round(o.Share*float64(d)))))
}

// vggWidths are the channels of VGG16's convolutions (Simonyan and Zisserman, 2015; configuration D). Each stage ends with what LPIPS
// compares; a max-pool stands between two.
var vggWidths = [5][]int{{64, 64}, {128, 128}, {256, 256, 256}, {512, 512, 512}, {512, 512, 512}}

// vggPlaces are their numbers in torchvision's features, which count activations and pools too.
var vggPlaces = [5][]int{{0, 2}, {5, 7}, {10, 12, 14}, {17, 19, 21}, {24, 26, 28}}

// What LPIPS makes of intensities in [-1, 1] before VGG16 sees them: (x - shift)/scale, by channel, R, G, B.
var (
	lpipsShift = []float32{-.030, -.088, -.188}
	lpipsScale = []float32{.458, .448, .450}
)

// LPIPS is the weights of the perceptual network.
type LPIPS struct {
	digest string
	arrays map[string][]float32 // in the layout of files, by the names of its nn.Params
}

// Digest is a SHA-256 of the weights, whatever the file's names and types.
func (l *LPIPS) Digest() string { return l.digest }

// Forget gives the host's copy back: sessions that are open have their own. The digest stays.
func (l *LPIPS) Forget() { l.arrays = nil }

// lpipsTensor is one tensor of the network, and by which names files have it.
type lpipsTensor struct {
	param string
	names []string
	shape []int
}

// lpipsTensors are all of them but the scaling, in order.
func lpipsTensors() []lpipsTensor {
	var out []lpipsTensor
	from := 3
	for stage, widths := range vggWidths {
		for i, c := range widths {
			at := vggPlaces[stage][i]
			theirs, lpips := fmt.Sprintf("features.%d.", at), fmt.Sprintf("net.slice%d.%d.", stage+1, at)
			out = append(out, lpipsTensor{theirs + "weight", []string{theirs + "weight", lpips + "weight"}, []int{c, from, 3, 3}},
				lpipsTensor{theirs + "bias", []string{theirs + "bias", lpips + "bias"}, []int{c}})
			from = c
		}
		t := lpipsTensor{param: fmt.Sprintf("lin%d.weight", stage), shape: []int{1, from, 1, 1}}
		for _, module := range []string{"lin%d.model.1", "lin%d.model.0", "lins.%d.model.1", "lins.%d.model.0"} { // behind a dropout, or without one
			t.names = append(t.names, fmt.Sprintf(module+".weight", stage))
		}
		out = append(out, t)
	}
	return out
}

// The names of the scaling; files may leave it out.
const nameShift, nameScale = "scaling_layer.shift", "scaling_layer.scale"

// FindLPIPS finds the perceptual network among the tensors of a file, shapes by name, and returns the names of those that NewLPIPS
// wants, in its order. They may stand under a prefix.
func FindLPIPS(shapes map[string][]int) ([]string, error) {
	prefix, err := findVGG(shapes)
	if err != nil {
		return nil, err
	}
	var names, missing, wrong []string
	for _, t := range lpipsTensors() {
		at := slices.IndexFunc(t.names, func(name string) bool { return shapes[prefix+name] != nil })
		if at < 0 {
			missing = append(missing, prefix+t.names[0]+" is missing")
			continue
		}
		name := prefix + t.names[at]
		if !slices.Equal(shapes[name], t.shape) {
			wrong = append(wrong, fmt.Sprintf("%s is %v (want %v)", name, shapes[name], t.shape))
		}
		names = append(names, name)
	}
	for _, name := range []string{nameShift, nameScale} {
		if shape := shapes[prefix+name]; shape != nil {
			if want := []int{1, 3, 1, 1}; !slices.Equal(shape, want) {
				wrong = append(wrong, fmt.Sprintf("%s is %v (want %v)", prefix+name, shape, want))
			}
			names = append(names, prefix+name)
		} else if shapes[prefix+nameShift] != nil || shapes[prefix+nameScale] != nil {
			missing = append(missing, prefix+name+" is missing")
		}
	}
	return names, faulty("perceptual network", slices.Concat(wrong, missing))
}

// findVGG finds what the names begin with.
func findVGG(shapes map[string][]int) (prefix string, err error) {
	ends := lpipsTensors()[0].names
	var found []string
	heads := false
	for _, name := range slices.Sorted(maps.Keys(shapes)) {
		heads = heads || strings.HasSuffix(name, "lin0.model.1.weight")
		for _, end := range ends {
			if p, ok := strings.CutSuffix(name, end); ok && (p == "" || strings.HasSuffix(p, ".")) && !slices.Contains(found, p) {
				found = append(found, p)
			}
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return "", fmt.Errorf("several networks, under %q and %q: keep one of them", found[0], found[1])
	case heads:
		return "", fmt.Errorf("%s is missing: LPIPS' linear heads alone, without VGG16", ends[0])
	}
	return "", fmt.Errorf("%s is missing (so is %s, lpips' name for it): not VGG16", ends[0], ends[1])
}

// NewLPIPS takes the tensors that FindLPIPS named, in that order. Weights that aren't finite and negative ones of the heads (with which
// farther could be better) are errors.
func NewLPIPS(tensors []Array) (*LPIPS, error) {
	all := lpipsTensors()
	l := &LPIPS{arrays: map[string][]float32{}}
	for i, a := range tensors {
		head, scale := i < len(all) && strings.HasPrefix(all[i].param, "lin"), strings.HasSuffix(a.Name, nameScale)
		for k, x := range a.Data {
			switch {
			case !finite(float64(x)):
				return nil, fmt.Errorf("%s: element %d is %v (want a finite number)", a.Name, k, x)
			case head && x < 0:
				return nil, fmt.Errorf("%s: element %d is %v (want at least 0)", a.Name, k, x)
			case scale && x <= 0:
				return nil, fmt.Errorf("%s: element %d is %v (want more than 0)", a.Name, k, x)
			}
		}
		if i < len(all) {
			l.arrays[all[i].param] = a.Data
		}
	}
	shift, divisor := lpipsShift, lpipsScale
	if len(tensors) == len(all)+2 {
		shift, divisor = tensors[len(all)].Data, tensors[len(all)+1].Data
	}
	by, plus := make([]float32, 3), make([]float32, 3)
	for c := range by {
		by[c], plus[c] = float32(1/float64(divisor[c])), float32(-float64(shift[c])/float64(divisor[c]))
	}
	l.arrays["scaling.scale"], l.arrays["scaling.shift"] = by, plus

	sum, buf := sha256.New(), []byte(nil)
	for _, name := range slices.Sorted(maps.Keys(l.arrays)) {
		buf = append(buf[:0], name...)
		for _, x := range l.arrays[name] {
			buf = binary.LittleEndian.AppendUint32(buf, math.Float32bits(x))
		}
		_, _ = sum.Write(buf)
	}
	l.digest = hex.EncodeToString(sum.Sum(nil))
	return l, nil
}

// lpips is the network in a session. Nothing trains it.
type lpips struct {
	params nn.Params
	block  *nn.Block
}

// features adds a run of VGG16 on slices [n, 1, H, W, 1] and returns relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.
func (n *lpips) features(g *nn.Graph, scope string, slice *nn.Value) (out []*nn.Value) {
	g.With(&n.params, scope, func() {
		h := g.Tint("scaling", slice, 3)
		for stage, widths := range vggWidths {
			if stage > 0 {
				h = g.MaxPool(fmt.Sprintf("pool%d", stage), h)
			}
			for i, channels := range widths {
				h = g.Conv(fmt.Sprintf("features.%d", vggPlaces[stage][i]), h, nn.Conv{Channels: channels, Kernel: [3]int{1, 3, 3}, Stride: unit, Planar: true})
				h = g.Activate(fmt.Sprintf("relu%d_%d", stage+1, i+1), h, 0)
			}
			out = append(out, h)
		}
	})
	return out
}

// distance adds LPIPS between slices y and t to what a set minimises: the sum of the scalars.
func (n *lpips) distance(g *nn.Graph, of *nn.Params, scope string, y, t *nn.Value, w nn.Weight) (said []*nn.Scalars) {
	on, ours := n.features(g, scope+"scan ", t), n.features(g, scope+"reconstruction ", y)
	g.With(&n.params, scope, func() {
		for i, f := range ours {
			said = append(said, g.Perceptual(fmt.Sprintf("lin%d", i), of, f, on[i], w))
		}
	})
	return said
}

// On reports whether LPIPS is a loss.
func (o *Perceptual) On() bool { return o.Weight > 0 }

// assemblePerceptual adds the network's block.
func (s *Session) assemblePerceptual() error {
	if !s.o.Perceptual.On() {
		return nil
	}
	n, d := &s.lpips, gpu.Dims{N: 1, D: 1, H: leastSlice, W: leastSlice, C: 1}
	g := nn.NewGraph(&n.params)
	n.distance(g, &n.params, "", g.Input("reconstruction", d), g.Input("scan", d), nn.Weight{})
	if err := g.Err(); err != nil {
		return fmt.Errorf("perceptual: %w", err)
	}
	n.block = s.layout.Add("perceptual network", nn.Parameters, n.params.Bytes())
	n.params.Weights = n.block.At
	return nil
}

// fillPerceptual puts the network's weights in place.
func (s *Session) fillPerceptual() error {
	if !s.o.Perceptual.On() {
		return nil
	}
	if s.o.LPIPS == nil || s.o.LPIPS.arrays == nil {
		return errors.New("perceptual: no weights of VGG16 were given")
	}
	host := make([]float32, s.lpips.params.Floats())
	for _, p := range s.lpips.params.All() {
		fromFile(p, host[p.Off/4:], s.o.LPIPS.arrays[p.Name])
	}
	s.e.Write(s.lpips.block.At, host)
	return s.e.Sync()
}

// view is a chunk of slices that a program compares.
type view struct {
	at         *nn.Value
	axis       int // of the tensor, z, y, x
	first, per int // of the slices of each patch
	share      float64
	said       []*nn.Scalars
}

// perceive adds LPIPS of the reconstruction y.
func (s *Session) perceive(g *nn.Graph, p *program, y *nn.Value) {
	o := &s.o.Perceptual
	if !o.On() {
		return
	}
	for _, plane := range o.Planes {
		axis := int('z' - plane[0])
		all := o.slices(depth(p, axis))
		most := max(1, o.Chunk/p.n)
		chunks := (all + most - 1) / most
		per := (all + chunks - 1) / chunks
		for first := 0; first < all; first += per {
			v := view{axis: axis, first: first, per: min(per, all-first)}
			v.share = float64(v.per) / float64(all*len(o.Planes))
			scope := fmt.Sprintf("perceptual %s %d ", plane, first)
			v.at = g.Input(scope+"slices", gpu.Dims{N: p.n * v.per, D: 1, H: 1, W: 1, C: 1})
			g.Segment(func() {
				fake, real := g.Slices(scope+"reconstruction", y, axis, v.at), g.Slices(scope+"scan", p.target, axis, v.at)
				v.said = s.lpips.distance(g, &s.params, scope, fake, real, nn.Weight{Constant: o.Weight * v.share})
			})
			p.views = append(p.views, v)
		}
	}
}

// depth is the number of slices of a patch across an axis.
func depth(p *program, axis int) int { return [3]int{p.target.D, p.target.H, p.target.W}[axis] }

// look draws which slices of a micro-batch are compared, and writes it: of each patch one from each of as many equal parts, by (seed,
// step, patch, plane).
func (s *Session) look(p *program, at int) {
	for _, v := range p.views {
		d := depth(p, v.axis)
		all, plane := s.o.Perceptual.slices(d), "zyx"[v.axis:v.axis+1]
		where := make([]float32, 0, v.at.N)
		for i := range p.n {
			r := rand.New(rand.NewPCG(key(s.o.Seed, "perceptual "+plane), uint64(s.step)<<20|uint64(at+i)))
			for k := range v.first + v.per {
				from, to := k*d/all, (k+1)*d/all
				if place := from + r.IntN(to-from); k >= v.first {
					where = append(where, float32(place))
				}
			}
		}
		p.Write(s.e, v.at, where)
	}
}

// distances is the mean LPIPS of a micro-batch's slices, by what it left.
func (p *program) distances(left []float32) (sum float64) {
	for _, v := range p.views {
		for _, said := range v.said {
			sum += v.share * float64(said.Of(left)[0])
		}
	}
	return sum
}
