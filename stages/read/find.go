package read

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/flowrun/flowrun/stages/files"
)

// found is the files that scans name.
type found struct {
	files.Found
	bad  []Bad // folders below a named one that can't be read
	away error // of one of them, if it may pass
}

const endings = ".nii, .nii.gz or .hdr"

// isScan tells by the name.
func isScan(path string) bool {
	name := strings.TrimSuffix(strings.ToLower(path), ".gz")
	return strings.HasSuffix(name, ".nii") || strings.HasSuffix(name, ".hdr")
}

// find resolves what scans name. Each of them has to name something. Where a folder may be back in a moment, all is done again.
func find(ctx context.Context, scans []string) (*found, error) {
	for tries := tries(0); ; {
		f := new(found)
		err := f.all(scans)
		if !tries.again(ctx, cmp.Or(err, f.away)) {
			return f, err
		}
	}
}

func (f *found) all(scans []string) error {
	for _, spec := range scans {
		if spec == "" {
			return errors.New("scans: an empty name (want a folder, a file, a pattern or a .txt list of scans)")
		}
		if err := f.add(spec); err != nil {
			return fmt.Errorf("scans: %s: %w", spec, err)
		}
	}
	return nil
}

func (f *found) add(spec string) error {
	info, err := os.Stat(spec)
	switch {
	case err == nil && info.IsDir():
		return f.folder(spec)
	case err == nil && strings.EqualFold(filepath.Ext(spec), ".txt"):
		return f.list(spec)
	case err == nil:
		f.Root(filepath.Dir(spec))
		f.Add(spec)
		return nil
	case errors.Is(err, fs.ErrNotExist) && strings.ContainsAny(spec, "*?[{"):
		return f.glob(spec)
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("no such file or folder (want a folder, a file, a pattern or a .txt list of scans)")
	}
	return files.Reason(err)
}

// folder takes every scan in dir and below it. Links to folders are followed, once each.
func (f *found) folder(dir string) error {
	f.Root(dir)
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
			return files.Reason(err)
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
					if passing(err) {
						f.away = err
					}
				}
			case isScan(path):
				count++
				f.Add(path)
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
		return fmt.Errorf("%s: %w", base, files.Reason(err))
	}
	names, err := doublestar.Glob(os.DirFS(base), rest, doublestar.WithFilesOnly(), doublestar.WithNoHidden())
	if err != nil {
		return fmt.Errorf("pattern: %w", err)
	}
	f.Root(base)
	count := 0
	for _, name := range names {
		if isScan(name) {
			count++
			f.Add(filepath.Join(base, filepath.FromSlash(name)))
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
	b, err := files.Read(path, files.Most)
	if err != nil {
		return err
	}
	b = bytes.TrimPrefix(b, []byte("\ufeff"))
	dir := filepath.Dir(path)
	top := files.Absolute(dir)
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
		f.Add(name)
		if !files.Below(files.Absolute(name), top) {
			f.Root(filepath.Dir(name))
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("line %d: %w", count+1, err)
	}
	if count == 0 {
		return errors.New("the list names no file")
	}
	f.Root(dir)
	return nil
}
