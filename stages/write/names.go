package write

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/flowrun/flowrun/stages/files"
	"github.com/flowrun/flowrun/stages/volume"
)

// Names gives each scan the file that it is written to, by ID: its ID below o.Dir, without the ending, and the suffix.
// Scans that would then have one file, or files that differ in case alone (a.nii and a.nii.gz, or a.nii and A.nii), keep
// their endings or are numbered, in the order of scans. So names are a function of the list of scans, and no two are the same.
//
// It is an error if a file would lie outside of o.Dir, or be one of the scans.
func Names(scans []*volume.Scan, o Options) (map[string]string, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	ending := ".nii"
	if o.Gz {
		ending += ".gz"
	}
	sources := make(map[string]string, len(scans))
	short := make([]string, len(scans))
	count := map[string]int{}
	for i, s := range scans {
		if !filepath.IsLocal(filepath.FromSlash(s.ID)) || s.ID == "." || strings.HasSuffix(s.ID, "/") {
			return nil, fmt.Errorf("scan %s: its name is no file below a folder", s.ID)
		}
		sources[absolute(s.Path)] = s.ID
		short[i] = files.Fit(stem(s.ID), o.Suffix+ending)
		count[strings.ToLower(short[i])]++
	}
	names := make(map[string]string, len(scans))
	taken := map[string]bool{}
	for k, n := range count {
		taken[k] = n == 1
	}
	for i, s := range scans {
		if names[s.ID] != "" {
			return nil, fmt.Errorf("scan %s: listed twice", s.ID)
		}
		name := short[i]
		if count[strings.ToLower(name)] > 1 {
			name = files.Fit(s.ID, o.Suffix+ending)
			for n := 2; taken[strings.ToLower(name)]; n++ {
				name = files.Fit(s.ID, fmt.Sprintf("%s~%d%s", o.Suffix, n, ending))
			}
			taken[strings.ToLower(name)] = true
		}
		path := filepath.Join(o.Dir, filepath.FromSlash(name))
		if other, ok := sources[absolute(path)]; ok {
			return nil, fmt.Errorf("scan %s: would be written over the scan %s (want another dir or suffix)", s.ID, other)
		}
		names[s.ID] = path
	}
	return names, nil
}

// stem is a name without the ending of a scan, if anything is left.
func stem(id string) string {
	lower := strings.ToLower(id)
	for _, e := range []string{".nii.gz", ".nii", ".hdr.gz", ".hdr"} {
		if s := id[:len(id)-min(len(e), len(id))]; strings.HasSuffix(lower, e) && s != "" && !strings.HasSuffix(s, "/") {
			return s
		}
	}
	return id
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return filepath.Clean(path)
}
