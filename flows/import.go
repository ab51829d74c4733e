package flows

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/volume"
)

// ImportOptions say what to make of a state dict.
type ImportOptions struct {
	Out    string   // a .safetensors file, or a folder to put one in; "" is a file in the working folder
	Prefix string   // of the model's names, where the file holds several models
	Axes   string   // what the model's three spatial axes are, in their order; "" is AxesDefault
	Force  bool     // replace a file; write into the folder of a run
	Words  []string // key=value, of the model, read.window_hu, read.spacing and tile.patch
}

// AxesDefault is the order of a patch's axes in flowrun's own tensors.
const AxesDefault = "zyx"

// Import makes a checkpoint at step 0 of a state dict: a file of an export, or what torch.save wrote of a VQ-GAN with
// medicaldiffusion's names. It says what it took from where, and what it assumed.
func Import(ctx context.Context, w io.Writer, from string, o ImportOptions) error {
	if _, err := parseAxes(o.Axes); err != nil {
		return configErrorf("--%w", err)
	}
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
		return configErrorf("%s: no such file", from)
	}
	to, err := importTarget(from, o)
	if err != nil {
		return err
	}
	src, err := openForeign(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.close() }() // it was only read
	o.Axes = cmp.Or(o.Axes, src.axes)
	axes, err := parseAxes(o.Axes)
	if err != nil {
		return dataErrorf("%s: metadata: %w", from, err)
	}
	p, err := src.recognise(o.Prefix)
	if err != nil {
		return dataErrorf("%s: %w", from, err)
	}
	g := &guess{path: from, src: src, axes: o.Axes, outline: p.outline}
	job, err := g.job(o.Words)
	if err != nil {
		return err
	}
	if err := job.model.Match(p.model); err != nil {
		return dataErrorf("%s: %w", from, err)
	}
	arrays, notes, err := src.weights(p, axes)
	if err != nil {
		return dataErrorf("%s: %w", from, trimmed(err, from))
	}
	for _, book := range p.outline.Codebooks() {
		i := slices.IndexFunc(arrays, func(a volume.Array) bool { return a.Name == book+".embeddings" })
		if err := job.model.CheckVectors(book, arrays[i].Data); err != nil {
			return dataErrorf("%s: %w", from, err)
		}
	}
	meta, err := job.identity()
	if err != nil {
		return err
	}
	meta["imported"] = filepath.Base(from)
	if err := os.MkdirAll(filepath.Dir(to), 0o777); err != nil {
		return configErrorf("-o: %w", err)
	}
	bytes, err := checkpoint.Write(ctx, to, &volume.Snapshot{Reason: "import", Meta: meta, Arrays: arrays})
	if err != nil {
		return fmt.Errorf("%w; choose another place by -o", err)
	}
	first := fmt.Sprintf("%s: %s under %q", from, tensors(len(p.model)+len(p.discriminators)), p.prefix)
	last := fmt.Sprintf("%s: %s; train.init or infer.checkpoint takes it", to, size(bytes))
	_, err = fmt.Fprintln(w, strings.Join(slices.Concat([]string{first}, g.told(), notes, p.told(), []string{last}), "\n"))
	return err
}

// importTarget is the file that an import writes.
func importTarget(from string, o ImportOptions) (string, error) {
	name := strings.TrimSuffix(filepath.Base(from), filepath.Ext(from)) + ".flowrun.safetensors"
	to := cmp.Or(o.Out, name)
	if filepath.Ext(to) != ".safetensors" {
		if ofRun(to) && !o.Force {
			return "", configErrorf("-o: %s is the folder of a run; choose another, or write into it with --force", o.Out)
		}
		to = filepath.Join(to, name)
	}
	there, err := os.Stat(to)
	if err != nil {
		return to, nil // writing says more
	}
	if source, err := os.Stat(from); err == nil && os.SameFile(source, there) {
		return "", configErrorf("-o: %s is the file to be imported; choose another name", to)
	}
	switch {
	case there.IsDir():
		return "", configErrorf("-o: %s is a folder; give it a name that doesn't end with .safetensors", to)
	case !o.Force:
		return "", configErrorf("-o: %s is there already; choose another name, or replace it with --force", to)
	}
	return to, nil
}

// ofRun says whether a folder is a run's, or that of its checkpoints.
func ofRun(dir string) bool {
	for _, sign := range []string{"log.jsonl", "checkpoints", "step-*.safetensors"} {
		if found, err := filepath.Glob(filepath.Join(escaped(dir), sign)); err == nil && len(found) > 0 {
			return true
		}
	}
	return false
}

// escaped is a path as a pattern that matches it alone.
func escaped(path string) string {
	return strings.NewReplacer("*", `\*`, "?", `\?`, "[", `\[`, `\`, `\\`).Replace(path)
}

// recognise finds the model among the tensors.
func (f *foreign) recognise(asked string) (*parts, error) {
	prefix, err := f.prefix(asked)
	if err != nil {
		return nil, err
	}
	p, err := f.split(prefix)
	if err != nil {
		return nil, err
	}
	p.outline, err = vqgan.ReadOutline(p.model)
	return p, err
}

// parts are the tensors of a state dict, by their names without the prefix.
type parts struct {
	prefix         string
	outline        vqgan.Outline
	model          map[string][]int // shapes
	discriminators []string
	perceptual     int
	outside        []string // what the names of tensors outside the prefix begin with
	others         int      // those tensors
}

// split tells the model's tensors from what came with them, and refuses types that aren't floats.
func (f *foreign) split(prefix string) (*parts, error) {
	p := &parts{prefix: prefix, model: map[string][]int{}}
	for _, full := range slices.Sorted(maps.Keys(f.tensors)) {
		t := f.tensors[full]
		name, inside := strings.CutPrefix(full, prefix)
		module, _, _ := strings.Cut(name, ".")
		switch {
		case !inside:
			p.others++
			if first, _, _ := strings.Cut(strings.TrimPrefix(full, stateKey), "."); !slices.Contains(p.outside, first) {
				p.outside = append(p.outside, first)
			}
			continue
		case module == "perceptual_model":
			p.perceptual++
			continue
		case module == "image_discriminator", module == "video_discriminator":
			if strings.HasSuffix(name, ".weight_v") && f.tensors[strings.TrimSuffix(full, "_v")+"_u"].shape != nil { // follows from weight and weight_u
				continue
			}
			p.discriminators = append(p.discriminators, name)
			if strings.HasSuffix(name, ".num_batches_tracked") { // of batch norm, a whole number
				continue
			}
		default:
			p.model[name] = t.shape
		}
		if !isFloat(t.dtype) {
			return nil, fmt.Errorf("%s is of type %s (want float32, float16, bfloat16 or float64)", full, t.dtype)
		}
	}
	return p, nil
}

// isFloat says whether weights may be of a type.
func isFloat(dtype string) bool {
	return slices.Contains([]string{"F32", "F16", "BF16", "F64"}, dtype)
}

// told says what was taken along and what was left behind.
func (p *parts) told() []string {
	var lines []string
	if n := len(p.discriminators); n > 0 {
		lines = append(lines, fmt.Sprintf("discriminators: %s, kept beside the weights", tensors(n)))
	}
	if p.perceptual > 0 {
		lines = append(lines, fmt.Sprintf("left out: %s of perceptual_model, which isn't part of the model", tensors(p.perceptual)))
	}
	if p.others > 0 {
		lines = append(lines, fmt.Sprintf("left out: %s of other modules: %s", tensors(p.others), quoted(p.outside)))
	}
	return lines
}

func tensors(n int) string {
	if n == 1 {
		return "1 tensor"
	}
	return fmt.Sprintf("%d tensors", n)
}

// weights reads the model's tensors as a checkpoint has them: weights, codebook, running means that begin at the weights,
// discriminators.
func (f *foreign) weights(p *parts, axes [3]int) (arrays []volume.Array, notes []string, err error) {
	names := slices.Concat(slices.Sorted(maps.Keys(p.model)), p.discriminators)
	full := make([]string, len(names))
	for i, name := range names {
		full[i] = p.prefix + name
	}
	if arrays, err = f.read(full); err != nil {
		return nil, nil, err
	}
	byName := map[string]volume.Array{}
	for i := range arrays {
		a := &arrays[i]
		if at := slices.IndexFunc(a.Data, func(x float32) bool { return math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) }); at >= 0 {
			return nil, nil, fmt.Errorf("%s: element %d is %v in float32", a.Name, at, a.Data[at])
		}
		a.Name = names[i]
		turn(a, axes)
		byName[a.Name] = *a
	}
	for _, book := range p.outline.Codebooks() {
		var again bool
		if arrays, again, err = statistics(arrays, byName, book); err != nil {
			return nil, nil, err
		}
		if again {
			notes = append(notes, book+": it has no counts (N) and sums (z_avg) of its codes; new ones begin at one latent a code")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.model)) {
		if a := byName[name]; !strings.HasPrefix(name, "codebook") {
			a.Name = "ema." + name
			arrays = append(arrays, a)
		}
	}
	return arrays, notes, nil
}

// statistics completes a codebook: without both N and z_avg each code counts as one latent, at its vector.
func statistics(arrays []volume.Array, byName map[string]volume.Array, book string) (all []volume.Array, again bool, err error) {
	vectors, counts, sums := book+".embeddings", book+".N", book+".z_avg"
	n, ok1 := byName[counts]
	if i := slices.IndexFunc(n.Data, func(x float32) bool { return x < 0 }); i >= 0 {
		return nil, false, fmt.Errorf("%s: element %d is %v (want at least 0)", counts, i, n.Data[i])
	}
	if _, ok2 := byName[sums]; ok1 && ok2 {
		return arrays, false, nil
	}
	all = slices.DeleteFunc(arrays, func(a volume.Array) bool { return a.Name == counts || a.Name == sums })
	e := byName[vectors]
	one := slices.Repeat([]float32{1}, e.Shape[0])
	return append(all, volume.Array{Name: counts, Shape: e.Shape[:1:1], Data: one}, volume.Array{Name: sums, Shape: e.Shape, Data: e.Data}), true, nil
}

// parseAxes says where z, y and x are among three spatial axes, named in their order.
func parseAxes(text string) (at [3]int, err error) {
	text = cmp.Or(text, AxesDefault)
	for i, c := range AxesDefault {
		if at[i] = strings.IndexRune(text, c); at[i] < 0 || len(text) != len(at) {
			return at, fmt.Errorf("axes: %q (want z, y and x in the model's order, such as zxy)", text)
		}
	}
	return at, nil
}

// inverse is the order that takes axes back.
func inverse(axes [3]int) (back [3]int) {
	for i, a := range axes {
		back[a] = i
	}
	return back
}

// turn puts the spatial axes of a kernel, its last three or in a discriminator of slices its last two, into the order z, y, x.
func turn(a *volume.Array, axes [3]int) {
	lead := len(a.Shape) - len(axes)
	order := slices.Clone(axes[:])
	switch {
	case len(a.Shape) == 4: // a plane, of the model's last two axes
		order = slices.DeleteFunc(order, func(axis int) bool { return axis == 0 })
		lead = 2
		for i := range order {
			order[i]--
		}
	case lead != 2:
		return
	}
	if slices.IsSorted(order) {
		return
	}
	shape, steps := slices.Clone(a.Shape), make([]int, len(order)) // of the new axes, in the old array
	block := 1
	for _, n := range a.Shape[lead:] {
		block *= n
	}
	for i, axis := range order {
		shape[lead+i], steps[i] = a.Shape[lead+axis], 1
		for _, n := range a.Shape[lead+axis+1:] {
			steps[i] *= n
		}
	}
	data := make([]float32, len(a.Data))
	for begin := 0; begin < len(data); begin += block {
		for i := range block {
			from, rest := 0, i
			for k := len(order) - 1; k >= 0; k-- {
				n := shape[lead+k]
				from, rest = from+rest%n*steps[k], rest/n
			}
			data[begin+i] = a.Data[begin+from]
		}
	}
	a.Shape, a.Data = shape, data
}
