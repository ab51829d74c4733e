package flows

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/volume"
	"github.com/flowrun/flowrun/stages/weights"
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
const AxesDefault = weights.AxesDefault

// Import makes a checkpoint at step 0 of a state dict: a file of an export, or what torch.save wrote of a VQ-GAN with
// medicaldiffusion's names. It says what it took from where, and what it assumed.
func Import(ctx context.Context, w io.Writer, from string, o ImportOptions) error {
	if _, err := weights.ParseAxes(o.Axes); err != nil {
		return configErrorf("--%w", err)
	}
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
		return configErrorf("%s: no such file", from)
	}
	to, err := importTarget(from, o)
	if err != nil {
		return err
	}
	src, err := openWeights(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }() // it was only read
	o.Axes = cmp.Or(o.Axes, src.Axes)
	axes, err := weights.ParseAxes(o.Axes)
	if err != nil {
		return dataErrorf("%s: metadata: %w", from, err)
	}
	m, err := src.Find(o.Prefix)
	if err != nil {
		return dataErrorf("%s: %w", from, err)
	}
	g := &guess{path: from, src: src, axes: o.Axes, outline: m.Outline}
	job, err := g.job(o.Words)
	if err != nil {
		return err
	}
	if err := job.model.Match(m.Shapes); err != nil {
		return dataErrorf("%s: %w", from, err)
	}
	arrays, notes, err := src.Load(m, axes)
	if err != nil {
		return dataErrorf("%s: %w", from, trimmed(err, from))
	}
	for _, book := range m.Outline.Codebooks() {
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
	first := from + ": " + m.Found()
	last := fmt.Sprintf("%s: %s; train.init or infer.checkpoint takes it", to, size(bytes))
	_, err = fmt.Fprintln(w, strings.Join(slices.Concat([]string{first}, g.told(), notes, m.Told(), []string{last}), "\n"))
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

// openWeights opens a state dict, and says whose fault it is where it can't.
func openWeights(path string) (*weights.File, error) {
	if info, err := checkpoint.Peek(path); err == nil && info.Checkpoint {
		return nil, configErrorf("%s: a checkpoint of flowrun already; name it in train.init or infer.checkpoint as it is", path)
	}
	f, err := weights.Open(path)
	switch {
	case errors.Is(err, weights.ErrEnding):
		return nil, &ConfigError{err}
	case err != nil:
		return nil, &DataError{err}
	}
	return f, nil
}
