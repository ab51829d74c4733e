package files

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
)

// Found is files, each once, and the folders that they were looked for in. The zero value is empty.
type Found struct {
	paths map[string]string // absolute path → path as it is shown
	roots []string          // absolute
}

// Entry is a file that was found.
type Entry struct {
	ID   string // see Found.Entries
	Path string // as it was named
}

// Root adds a folder that was searched.
func (f *Found) Root(dir string) { f.roots = append(f.roots, Absolute(dir)) }

// Add adds a file.
func (f *Found) Add(path string) {
	if f.paths == nil {
		f.paths = map[string]string{}
	}
	if abs := Absolute(path); f.paths[abs] == "" {
		f.paths[abs] = filepath.Clean(path)
	}
}

// Entries gives every file its ID: its slash path below the folder that all roots share, as name makes it shorter (nil leaves
// it). Characters that don't belong in a name become _; of files that would have one ID, those behind the first in the order
// of their paths get ~2, ~3 and so on. Entries are sorted by ID.
func (f *Found) Entries(name func(rel string) string) []Entry {
	top := common(f.roots)
	taken := map[string]bool{}
	var entries []Entry
	for _, abs := range slices.Sorted(maps.Keys(f.paths)) {
		rel, err := filepath.Rel(top, abs)
		if err != nil || !filepath.IsLocal(rel) {
			rel = strings.TrimLeft(filepath.ToSlash(abs), "/")
		}
		base := clean(filepath.ToSlash(rel))
		if name != nil {
			base = name(base)
		}
		id := base
		for n := 2; taken[id]; n++ {
			id = fmt.Sprintf("%s~%d", base, n)
		}
		taken[id] = true
		entries = append(entries, Entry{ID: id, Path: f.paths[abs]})
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.ID, b.ID) })
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

// common is the deepest folder that holds all of dirs.
func common(dirs []string) string {
	if len(dirs) == 0 {
		return ""
	}
	top := dirs[0]
	for _, d := range dirs[1:] {
		for !Below(d, top) && top != filepath.Dir(top) {
			top = filepath.Dir(top)
		}
	}
	return top
}

// Below says that path is dir or lies below it. Both are absolute and clean.
func Below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, string(filepath.Separator))+string(filepath.Separator))
}

// Absolute is a path from the root, clean; only clean where the working folder is gone.
func Absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return filepath.Clean(path)
}

// Reason is an error of package os without its operation and paths, for those who have named them.
func Reason(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	if le, ok := errors.AsType[*os.LinkError](err); ok {
		return le.Err
	}
	return err
}
