package codes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/flowrun/flowrun/stages/files"
	"github.com/flowrun/flowrun/stages/safetensors"
	"github.com/flowrun/flowrun/stages/volume"
)

// Bad names a file that can't be used, and why.
type Bad struct {
	Scan   string // as the ID of a scan would be
	Path   string
	Reason string
}

// List finds the files of codes that o names and reads their headers. What it gives are the scans to decode, sorted by
// ID and indexed: an ID is the file's slash path below the folder that all the named places share, without Ending, so
// that edited copies of one scan's codes are scans of their own; Path is the file. Files whose header can't be used are in
// bad. It is an error if a place that o names isn't there or holds no codes, or if none of the files can be used.
func List(o LoadOptions) (scans []*volume.Scan, bad []Bad, err error) {
	if err := o.Check(); err != nil {
		return nil, nil, err
	}
	var f found
	for _, place := range o.Codes {
		if err := f.add(place); err != nil {
			return nil, nil, fmt.Errorf("codes: %s: %w", place, err)
		}
	}
	for _, e := range f.Entries(short) {
		scan, err := describe(e.Path)
		if err != nil {
			reason, _ := strings.CutPrefix(err.Error(), e.Path+": ")
			bad = append(bad, Bad{e.ID, e.Path, reason})
			continue
		}
		scan.ID, scan.Path, scan.Index = e.ID, e.Path, len(scans)
		scans = append(scans, scan)
	}
	if len(scans) == 0 {
		return nil, bad, fmt.Errorf("codes: none of %d files can be used; the first, %s: %s", len(bad), bad[0].Path, bad[0].Reason)
	}
	return scans, bad, nil
}

// describe is the scan of a file, by its header.
func describe(path string) (*volume.Scan, error) {
	h, err := safetensors.Peek(path)
	if err != nil {
		return nil, err
	}
	c, err := layout(h)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c.Scan, nil
}

// found is the files that places name.
type found struct{ files.Found }

func (f *found) add(place string) error {
	if place == "" {
		return errors.New("an empty name")
	}
	info, err := os.Stat(place)
	dir, pattern := place, "**/*"+Ending
	switch {
	case err == nil && !info.IsDir():
		f.Root(filepath.Dir(place))
		f.Add(place)
		return nil
	case errors.Is(err, fs.ErrNotExist) && strings.ContainsAny(place, "*?[{"):
		dir, pattern = doublestar.SplitPattern(filepath.ToSlash(place))
		dir = filepath.FromSlash(dir)
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("no such file or folder (want a folder, a file or a pattern)")
	case err != nil:
		return files.Reason(err)
	}
	if _, err := os.ReadDir(dir); err != nil {
		return fmt.Errorf("folder %s: %w", dir, files.Reason(err))
	}
	names, err := doublestar.Glob(os.DirFS(dir), pattern, doublestar.WithFilesOnly(), doublestar.WithNoHidden())
	if err != nil {
		return fmt.Errorf("pattern: %w", err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasSuffix(name, Ending) })
	if len(names) == 0 {
		return fmt.Errorf("no %s file", Ending)
	}
	f.Root(dir)
	for _, name := range names {
		f.Add(filepath.Join(dir, filepath.FromSlash(name)))
	}
	return nil
}

// short is an ID without the ending of a file of codes, if anything is left.
func short(rel string) string {
	base := strings.TrimSuffix(strings.TrimSuffix(rel, ".safetensors"), ".codes")
	if base == "" || strings.HasSuffix(base, "/") {
		return rel
	}
	return base
}
