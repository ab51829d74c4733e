package codes

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/bmatcuk/doublestar/v4"
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
	f := found{paths: map[string]string{}}
	for _, place := range o.Codes {
		if err := f.add(place); err != nil {
			return nil, nil, fmt.Errorf("codes: %s: %w", place, err)
		}
	}
	for _, e := range f.ids() {
		scan, err := describe(e.path)
		if err != nil {
			reason, _ := strings.CutPrefix(err.Error(), e.path+": ")
			bad = append(bad, Bad{e.id, e.path, reason})
			continue
		}
		scan.ID, scan.Path, scan.Index = e.id, e.path, len(scans)
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

// found is the files that places name, and the folders that they were looked for in.
type found struct {
	paths map[string]string // absolute path → path as it is shown
	roots []string          // absolute
}

func (f *found) add(place string) error {
	if place == "" {
		return errors.New("an empty name")
	}
	info, err := os.Stat(place)
	dir, pattern := place, "**/*"+Ending
	switch {
	case err == nil && !info.IsDir():
		f.file(filepath.Dir(place), place)
		return nil
	case errors.Is(err, fs.ErrNotExist) && strings.ContainsAny(place, "*?[{"):
		dir, pattern = doublestar.SplitPattern(filepath.ToSlash(place))
		dir = filepath.FromSlash(dir)
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("no such file or folder (want a folder, a file or a pattern)")
	case err != nil:
		return reason(err)
	}
	if _, err := os.ReadDir(dir); err != nil {
		return fmt.Errorf("folder %s: %w", dir, reason(err))
	}
	names, err := doublestar.Glob(os.DirFS(dir), pattern, doublestar.WithFilesOnly(), doublestar.WithNoHidden())
	if err != nil {
		return fmt.Errorf("pattern: %w", err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasSuffix(name, Ending) })
	if len(names) == 0 {
		return fmt.Errorf("no %s file", Ending)
	}
	for _, name := range names {
		f.file(dir, filepath.Join(dir, filepath.FromSlash(name)))
	}
	return nil
}

func (f *found) file(root, path string) {
	f.roots = append(f.roots, absolute(root))
	if abs := absolute(path); f.paths[abs] == "" {
		f.paths[abs] = filepath.Clean(path)
	}
}

type entry struct{ id, path string }

// ids gives every file its ID. Characters that don't belong in a name become _.
func (f *found) ids() []entry {
	top := common(f.roots)
	taken := map[string]bool{}
	var entries []entry
	for _, abs := range slices.Sorted(maps.Keys(f.paths)) {
		rel, err := filepath.Rel(top, abs)
		if err != nil || !filepath.IsLocal(rel) {
			rel = strings.TrimLeft(filepath.ToSlash(abs), "/")
		}
		rel = clean(filepath.ToSlash(rel))
		base := strings.TrimSuffix(strings.TrimSuffix(rel, ".safetensors"), ".codes")
		if base == "" || strings.HasSuffix(base, "/") {
			base = rel
		}
		id := base
		for n := 2; taken[id]; n++ {
			id = fmt.Sprintf("%s~%d", base, n)
		}
		taken[id] = true
		entries = append(entries, entry{id, f.paths[abs]})
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.id, b.id) })
	return entries
}

func clean(id string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) || strings.ContainsRune(`\:*?"<>|`, r) {
			return '_'
		}
		return r
	}, id)
}

// common is the deepest folder that holds all of dirs, which are absolute and clean.
func common(dirs []string) string {
	top := dirs[0]
	for _, d := range dirs[1:] {
		for d != top && !strings.HasPrefix(d, strings.TrimSuffix(top, string(filepath.Separator))+string(filepath.Separator)) && top != filepath.Dir(top) {
			top = filepath.Dir(top)
		}
	}
	return top
}

func absolute(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil { // the working folder is gone
		return filepath.Clean(path)
	}
	return abs
}

// reason drops the path from an error of os: it is already named.
func reason(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}
