package flows

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/torch"
	"github.com/flowrun/flowrun/stages/weights"
)

// Inspect says what a safetensors file, a file of torch.save or a NIfTI image holds, and whether a checkpoint verifies.
func Inspect(w io.Writer, path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return configErrorf("%s: no such file", path)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	var err error
	switch filepath.Ext(path) {
	case ".safetensors":
		err = inspectCheckpoint(t, path)
	case ".pth", ".pt", ".ckpt":
		err = inspectTorch(t, path)
	default:
		err = inspectImage(t, path)
	}
	if err != nil {
		return dataErrorf("%s: %w", path, trimmed(err, path))
	}
	return t.Flush()
}

func inspectCheckpoint(w io.Writer, path string) error {
	info, err := checkpoint.Peek(path)
	if err != nil {
		return err
	}
	row := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("file", "%s, %s", path, size(info.Bytes))
	if info.Checkpoint {
		row("step", "%d", info.Step)
		row("cursor", "epoch %d, patch %d", info.Cursor.Epoch, info.Cursor.Seq)
		row("reason", "%s", info.Reason)
		row("model", "%s", info.Meta["model"])
		for _, name := range slices.Sorted(maps.Keys(info.Metrics)) {
			row(name, "%.5g", info.Metrics[name])
		}
	}
	for _, t := range info.Tensors {
		row(t.Name, "%v %s", t.Shape, t.DType)
	}
	if !info.Checkpoint {
		return nil
	}
	if err := checkpoint.Verify(path); err != nil {
		return err
	}
	row("checksum", "verified")
	return nil
}

// inspectTorch lists the tensors of a file that torch.save wrote, and the options that Lightning kept in it. Nothing of its
// pickle is run.
func inspectTorch(w io.Writer, path string) error {
	f, err := torch.Open(path)
	if err != nil {
		return err
	}
	for _, t := range f.Tensors {
		_, _ = fmt.Fprintf(w, "%s\t%v %s\n", t.Name, t.Shape, t.DType)
	}
	for _, key := range slices.Sorted(maps.Keys(f.Values)) {
		if strings.HasPrefix(key, weights.HyperParameters) {
			_, _ = fmt.Fprintf(w, "%s\t%s\n", key, shown(f.Values[key]))
		}
	}
	return f.Close()
}

// shown is a setting on one line, without what a terminal would obey.
func shown(v any) string {
	const most = 100 // letters
	text := []rune(fmt.Sprint(v))
	for i, r := range text {
		if !unicode.IsPrint(r) {
			text[i] = unicode.ReplacementChar
		}
	}
	if len(text) > most {
		return string(text[:most]) + "…"
	}
	return string(text)
}

func inspectImage(w io.Writer, path string) error {
	h, err := nifti.ReadHeader(path)
	if err != nil {
		return err
	}
	affine, notes := h.Affine()
	axes, flip := nifti.Canonical(affine)
	slope, inter := h.Scaling()
	row := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	order, spacing := "little endian", nifti.Spacing(affine)
	if h.Order == binary.BigEndian {
		order = "big endian"
	}
	row("file", "%s, NIfTI-%d, %s", path, h.Version, order)
	row("voxels", "%s %v", strings.ReplaceAll(fmt.Sprint(h.Dim[1:1+h.Dim[0]]), " ", ", "), h.Datatype)
	row("spacing", "[%.4g, %.4g, %.4g] mm", spacing[0], spacing[1], spacing[2])
	row("scaling", "%g × sample + %g", slope, inter)
	row("orientation", "%s", orientation(axes, flip))
	for _, r := range affine {
		row("affine", "%9.4g %9.4g %9.4g %9.4g", r[0], r[1], r[2], r[3])
	}
	for _, note := range append(notes, h.Warnings...) {
		row("note", "%s", note)
	}
	return nil
}

// orientation says where a file's axes lead, given how canonical ones (RAS+) lie in it.
func orientation(axes [3]int, flip [3]bool) string {
	ends := [3][2]string{{"right", "left"}, {"front", "back"}, {"head", "feet"}}
	letters := [3]string{"RL", "AP", "SI"}
	var code [3]byte
	var to [3]string
	for a, f := range axes {
		end := 0
		if flip[a] {
			end = 1
		}
		code[f], to[f] = letters[a][end], ends[a][end]
	}
	return fmt.Sprintf("%s: towards the patient's %s, %s and %s", code, to[0], to[1], to[2])
}

// trimmed is err without the path that it may begin with.
func trimmed(err error, path string) error {
	if rest, ok := strings.CutPrefix(err.Error(), path+": "); ok {
		return errors.New(rest)
	}
	return err
}
