package read

import (
	"bufio"
	"bytes"
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
)

// found is the files that scans name, and the folders that they were looked for in.
type found struct {
	paths map[string]string // absolute path → path as it is shown
	roots []string          // absolute
	bad   []Bad             // folders below a named one that can't be read
}

const endings = ".nii, .nii.gz or .hdr"

// isScan tells by the name.
func isScan(path string) bool {
	name := strings.TrimSuffix(strings.ToLower(path), ".gz")
	return strings.HasSuffix(name, ".nii") || strings.HasSuffix(name, ".hdr")
}

// find resolves what scans name. Each of them has to name something.
func find(scans []string) (*found, error) {
	f := &found{paths: map[string]string{}}
	for _, spec := range scans {
		if err := f.add(spec); err != nil {
			return nil, fmt.Errorf("scans: %s: %w", spec, err)
		}
	}
	return f, nil
}

func (f *found) add(spec string) error {
	if spec == "" {
		return errors.New("an empty name")
	}
	info, err := os.Stat(spec)
	switch {
	case err == nil && info.IsDir():
		return f.folder(spec)
	case err == nil && strings.EqualFold(filepath.Ext(spec), ".txt"):
		return f.list(spec)
	case err == nil:
		f.root(filepath.Dir(spec))
		f.file(spec)
		return nil
	case errors.Is(err, fs.ErrNotExist) && strings.ContainsAny(spec, "*?[{"):
		return f.glob(spec)
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("no such file or folder (want a folder, a file, a pattern or a .txt list of scans)")
	}
	return reason(err)
}

func (f *found) root(dir string) { f.roots = append(f.roots, absolute(dir)) }

func (f *found) file(path string) {
	abs := absolute(path)
	if _, ok := f.paths[abs]; !ok {
		f.paths[abs] = filepath.Clean(path)
	}
}

// folder takes every scan in dir and below it. Links to folders are followed, once each.
func (f *found) folder(dir string) error {
	f.root(dir)
	entries := 0
	count := 0
	seen := map[string]bool{}
	var walk func(dir string) error
	walk = func(dir string) error {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			if seen[real] {
				return nil
			}
			seen[real] = true
		}
		list, err := os.ReadDir(dir)
		if err != nil {
			return reason(err)
		}
		for _, e := range list {
			if strings.HasPrefix(e.Name(), ".") { // macOS leaves "._scan.nii.gz" beside scans
				continue
			}
			entries++
			path := filepath.Join(dir, e.Name())
			isDir := e.IsDir()
			if e.Type()&fs.ModeSymlink != 0 {
				info, err := os.Stat(path)
				isDir = err == nil && info.IsDir()
			}
			switch {
			case isDir:
				if err := walk(path); err != nil {
					f.bad = append(f.bad, Bad{Scan: path, Path: path, Reason: "folder: " + err.Error()})
				}
			case isScan(path):
				count++
				f.file(path)
			}
		}
		return nil
	}
	err := walk(dir)
	switch {
	case err != nil:
		return err
	case count > 0:
		return nil
	case entries == 0:
		return fmt.Errorf("the folder is empty (want %s files)", endings)
	}
	return fmt.Errorf("no %s file in the folder or below it", endings)
}

func (f *found) glob(pattern string) error {
	base, rest := doublestar.SplitPattern(filepath.ToSlash(pattern))
	base = filepath.FromSlash(base)
	if _, err := os.ReadDir(base); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no such folder: %s", base)
	} else if err != nil {
		return fmt.Errorf("%s: %w", base, reason(err))
	}
	names, err := doublestar.Glob(os.DirFS(base), rest, doublestar.WithFilesOnly(), doublestar.WithNoHidden())
	if err != nil {
		return fmt.Errorf("pattern: %w", err)
	}
	f.root(base)
	count := 0
	for _, name := range names {
		if isScan(name) {
			count++
			f.file(filepath.Join(base, filepath.FromSlash(name)))
		}
	}
	switch {
	case count > 0:
		return nil
	case len(names) > 0:
		return fmt.Errorf("matches %d files, but no %s", len(names), endings)
	}
	return errors.New("no file matches")
}

// list takes the files that a .txt file names, a line each, relative to it. Empty lines and those that begin with # are
// passed over.
func (f *found) list(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return reason(err)
	}
	b = bytes.TrimPrefix(b, []byte("\ufeff"))
	dir := filepath.Dir(path)
	top := absolute(dir)
	count := 0
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		name := strings.TrimSpace(lines.Text())
		if name == "" || strings.HasPrefix(name, "#") {
			continue
		}
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		count++
		f.file(name)
		if !below(absolute(name), top) {
			f.root(filepath.Dir(name))
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("line %d: %w", count+1, err)
	}
	if count == 0 {
		return errors.New("the list names no file")
	}
	f.root(dir)
	return nil
}

// ids gives every file its ID: its slash path below the folder that all the named places share. Characters that don't
// belong in a name become _.
func (f *found) ids() []entry {
	top := common(f.roots)
	taken := map[string]bool{}
	var entries []entry
	for _, abs := range slices.Sorted(maps.Keys(f.paths)) {
		rel, err := filepath.Rel(top, abs)
		if err != nil || rel == ".." || strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
			rel = strings.TrimLeft(filepath.ToSlash(abs), "/")
		}
		id := clean(filepath.ToSlash(rel))
		for n := 2; taken[id]; n++ {
			id = fmt.Sprintf("%s~%d", clean(filepath.ToSlash(rel)), n)
		}
		taken[id] = true
		entries = append(entries, entry{id: id, path: f.paths[abs]})
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.id, b.id) })
	return entries
}

type entry struct{ id, path string }

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
		for !below(d, top) && top != filepath.Dir(top) {
			top = filepath.Dir(top)
		}
	}
	return top
}

// below says that path is dir or lies below it. Both are absolute and clean.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, string(filepath.Separator))+string(filepath.Separator))
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
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
