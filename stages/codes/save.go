package codes

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/stages/files"
	"github.com/flowrun/flowrun/stages/safetensors"
	"github.com/flowrun/flowrun/stages/volume"
)

// Ending ends the names of files of codes.
const Ending = ".codes.safetensors"

// Names of tensors.
const (
	codesName     = "codes"
	latentsName   = "latents"
	quantisedName = "quantised"
	meanSuffix    = ".mean"
	stdSuffix     = ".std"
)

// SaveOptions say what of codes is saved, and under which name.
type SaveOptions struct {
	Latents bool   // the latents before and after quantisation too, those of the two that the codes come with
	Name    string // slash path of the file below the folder, as Names gives it; "" is the scan's ID without its ending, and Ending
}

// Names gives each scan the slash path of its file below a folder, by ID: its ID without the ending, and Ending. Scans
// that would then have one file, or files that differ in case alone, keep their endings or are numbered, in the order of
// scans; those that no file system takes are cut. It is an error if a file would lie outside of the folder.
func Names(scans []*volume.Scan) (map[string]string, error) {
	count := map[string]int{}
	for _, s := range scans {
		if err := local(s.ID); err != nil {
			return nil, err
		}
		count[strings.ToLower(name(s.ID))]++
	}
	taken := map[string]bool{}
	for k, n := range count {
		taken[k] = n == 1
	}
	names := make(map[string]string, len(scans))
	for _, s := range scans {
		if names[s.ID] != "" {
			return nil, fmt.Errorf("scan %s: listed twice", s.ID)
		}
		n := name(s.ID)
		if count[strings.ToLower(n)] > 1 {
			n = files.Fit(s.ID, Ending)
			for i := 2; taken[strings.ToLower(n)]; i++ {
				n = files.Fit(s.ID, fmt.Sprintf("~%d%s", i, Ending))
			}
			taken[strings.ToLower(n)] = true
		}
		names[s.ID] = n
	}
	return names, nil
}

// name is the file of a scan that shares it with no other.
func name(id string) string {
	lower := strings.ToLower(id)
	for _, e := range []string{".nii.gz", ".nii", ".hdr.gz", ".hdr"} {
		if stem := id[:len(id)-min(len(e), len(id))]; strings.HasSuffix(lower, e) && stem != "" && !strings.HasSuffix(stem, "/") {
			return files.Fit(stem, Ending)
		}
	}
	return files.Fit(id, Ending)
}

// local says that an ID names a file below a folder.
func local(id string) error {
	if !filepath.IsLocal(filepath.FromSlash(id)) || id == "." || strings.HasSuffix(id, "/") || strings.ContainsRune(id, 0) {
		return fmt.Errorf("scan %s: its name is no file below a folder", id)
	}
	return nil
}

// Save writes the codes of a scan to a file below dir, which appears whole and durable or not at all, and returns its
// path. The same codes give the same bytes. A file that holds the codes of the same scan is replaced, one that holds those
// of another is not.
func Save(dir string, c *volume.Codes, o SaveOptions) (string, error) {
	return save(files.Local(), dir, c, o)
}

func save(disk files.Disk, dir string, c *volume.Codes, o SaveOptions) (string, error) {
	if c.Scan == nil {
		return "", errors.New("codes of no scan")
	}
	if err := check(c); err != nil {
		return "", fmt.Errorf("scan %s: %w", c.Scan.ID, err)
	}
	if o.Name == "" {
		if err := local(c.Scan.ID); err != nil {
			return "", err
		}
		o.Name = name(c.Scan.ID)
	}
	if err := local(o.Name); err != nil {
		return "", err
	}
	path := filepath.Join(dir, filepath.FromSlash(o.Name))
	arrays, err := tensors(c, o.Latents)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	text, err := encodeInfo(c)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	h, err := safetensors.NewHeader(arrays, map[string]string{infoKey: text}, true)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return "", fmt.Errorf("dir: %w", err)
	}
	if old, err := safetensors.Peek(path); err == nil {
		if other, err := decodeInfo(old.Meta); err == nil && other.Scan.ID != c.Scan.ID {
			return "", fmt.Errorf("%s: holds the codes of another scan, %s (want another dir)", path, other.Scan.ID)
		}
	}
	if err := safetensors.Save(context.Background(), disk, path, h, arrays); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return path, nil
}

// tensors are those of a file. Those of 4 bytes come first, so that each starts at a multiple of its elements' size.
func tensors(c *volume.Codes, latents bool) ([]safetensors.Array, error) {
	shape := shapeOf(c)
	n := int64(len(c.Tiles)) * volumeOf(c.Cells())
	if int64(len(c.Index)) != n*int64(c.Depth) {
		return nil, fmt.Errorf("%d codes for cells %v", len(c.Index), indexShape(c))
	}
	if err := checkCover(c); err != nil {
		return nil, err
	}
	var arrays []safetensors.Array
	for _, l := range []struct {
		name string
		data []float32
	}{{latentsName, c.Latents}, {quantisedName, c.Quantised}} {
		if !latents || l.data == nil {
			continue
		}
		if c.Channels < 1 || int64(len(l.data)) != n*int64(c.Channels) {
			return nil, fmt.Errorf("%s: %d values for cells %v of %d channels", l.name, len(l.data), shape, c.Channels)
		}
		if err := checkFinite(l.name, l.data); err != nil {
			return nil, err
		}
		mean, std := moments(l.data, c.Channels)
		arrays = append(arrays,
			safetensors.Array{Name: l.name, Shape: append(slices.Clone(shape), c.Channels), Values: safetensors.F32(l.data)},
			safetensors.Array{Name: l.name + meanSuffix, Shape: []int{c.Channels}, Values: safetensors.F32(mean)},
			safetensors.Array{Name: l.name + stdSuffix, Shape: []int{c.Channels}, Values: safetensors.F32(std)})
	}
	if latents && arrays == nil {
		return nil, fmt.Errorf("latents: the codes come without")
	}
	for i, code := range c.Index {
		if code < 0 || int(code) >= c.Count {
			return nil, fmt.Errorf("code %d at place %d (want 0 to %d)", code, i, c.Count-1)
		}
	}
	if c.Count > math.MaxUint16+1 {
		return append(arrays, safetensors.Array{Name: codesName, Shape: indexShape(c), Values: safetensors.I32(c.Index)}), nil
	}
	small := make(safetensors.U16, len(c.Index))
	for i, code := range c.Index {
		small[i] = uint16(code)
	}
	return append(arrays, safetensors.Array{Name: codesName, Shape: indexShape(c), Values: small}), nil
}

// indexShape is the shape of the codes: that of the cells, and depth where a cell has several.
func indexShape(c *volume.Codes) []int {
	if c.Depth == 1 {
		return shapeOf(c)
	}
	return append(shapeOf(c), c.Depth)
}

// shapeOf is the shape of the cells: [z, y, x] of one tile, else [tile, z, y, x].
func shapeOf(c *volume.Codes) []int {
	n := c.Cells()
	if len(c.Tiles) == 1 {
		return []int{n[2], n[1], n[0]}
	}
	return []int{len(c.Tiles), n[2], n[1], n[0]}
}

// moments are mean and standard deviation (of the population, not of a sample) of each channel.
func moments(data []float32, channels int) (mean, std []float32) {
	sum, square := make([]float64, channels), make([]float64, channels)
	n := float64(len(data) / channels)
	for at := 0; at < len(data); at += channels {
		for i, x := range data[at : at+channels] {
			sum[i] += float64(x)
		}
	}
	for i := range sum {
		sum[i] /= n
	}
	for at := 0; at < len(data); at += channels {
		for i, x := range data[at : at+channels] {
			d := float64(x) - sum[i]
			square[i] += d * d
		}
	}
	mean, std = make([]float32, channels), make([]float32, channels)
	for i := range sum {
		mean[i], std[i] = float32(sum[i]), float32(math.Sqrt(square[i]/n))
	}
	return mean, std
}

func checkFinite(name string, data []float32) error {
	for i, x := range data {
		if x-x != 0 {
			return fmt.Errorf("%s: %v at place %d (want finite numbers)", name, x, i)
		}
	}
	return nil
}
