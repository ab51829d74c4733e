package codes

import (
	"bytes"
	"errors"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/flowrun/flowrun/stages/files"
	"github.com/flowrun/flowrun/stages/volume"
	"pgregory.net/rapid"
)

func TestSaveRefuses(t *testing.T) {
	nan := float32(math.NaN())
	for want, spoil := range map[string]func(*volume.Codes){
		"codes of no scan": func(c *volume.Codes) { c.Scan = nil },
		"scan a/b.nii.gz: dims: [5 4 7], but the scan has [5 4 6]":                  func(c *volume.Codes) { c.Dims[2] = 7 },
		"scan a/b.nii.gz: window_hu: [NaN, 1000] isn't a window (want low < high)":  func(c *volume.Codes) { c.Window[0] = math.NaN() },
		"scan a/b.nii.gz: geometry.affine: not finite":                              func(c *volume.Codes) { c.Geometry.Affine[1][2] = math.Inf(1) },
		"b.codes.safetensors: 11 codes for cells [2 2 3]":                           func(c *volume.Codes) { c.Index = c.Index[1:] },
		"b.codes.safetensors: code 12 at place 3 (want 0 to 11)":                    func(c *volume.Codes) { c.Index[3] = 12 },
		"b.codes.safetensors: code -1 at place 3 (want 0 to 11)":                    func(c *volume.Codes) { c.Index[3] = -1 },
		"b.codes.safetensors: latents: 23 values for cells [2 2 3] of 2 channels":   func(c *volume.Codes) { c.Latents = c.Latents[1:] },
		"b.codes.safetensors: quantised: 24 values for cells [2 2 3] of 0 channels": func(c *volume.Codes) { c.Channels, c.Latents = 0, nil },
		"b.codes.safetensors: latents: NaN at place 5 (want finite numbers)":        func(c *volume.Codes) { c.Latents[5] = nan },
		"b.codes.safetensors: latents: the codes come without":                      func(c *volume.Codes) { c.Latents, c.Quantised = nil, nil },
		"scan ../a.nii: its name is no file below a folder":                         func(c *volume.Codes) { c.Scan.ID = "../a.nii" },
		"scan /etc/a: its name is no file below a folder":                           func(c *volume.Codes) { c.Scan.ID = "/etc/a" },
		"scan a/: its name is no file below a folder":                               func(c *volume.Codes) { c.Scan.ID = "a/" },
		"scan b/../../a: its name is no file below a folder":                        func(c *volume.Codes) { c.Scan.ID = "b/../../a" },
		"scan a\x00b: its name is no file below a folder":                           func(c *volume.Codes) { c.Scan.ID = "a\x00b" },
	} {
		c, dir := small(), t.TempDir()
		spoil(c)
		if path, err := Save(dir, c, SaveOptions{Latents: true}); err == nil || path != "" || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		if files, _ := filepath.Glob(filepath.Join(dir, "*/*")); files != nil {
			t.Errorf("%s: left behind %s", want, files)
		}
	}
	if _, err := Save(t.TempDir(), small(), SaveOptions{Name: "../x"}); err == nil {
		t.Error("a name led out of the folder")
	}
}

func TestAnotherScansFileIsNotReplaced(t *testing.T) {
	dir := t.TempDir()
	c := small()
	path, err := Save(dir, c, SaveOptions{})
	check1(t, err)
	before, err := os.ReadFile(path)
	check1(t, err)
	c.Scan.ID = "a/b.nii"
	if _, err := Save(dir, c, SaveOptions{}); err == nil || err.Error() != path+": holds the codes of another scan, a/b.nii.gz (want another dir)" {
		t.Errorf("got %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Error("the file has changed")
	}
	check1(t, os.WriteFile(path, before[:99], 0o666)) // what no one can read is replaced
	if _, err := Save(dir, c, SaveOptions{}); err != nil {
		t.Error(err)
	}
}

// full fails to sync.
type full struct{ files.File }

func (full) Sync() error { return syscall.ENOSPC }

func TestAFailedSaveChangesNothing(t *testing.T) {
	dir := t.TempDir()
	c := small()
	path, err := Save(dir, c, SaveOptions{})
	check1(t, err)
	disk := files.Local()
	disk.Create = func(path string) (files.File, error) {
		f, err := files.Local().Create(path)
		return full{f}, err
	}
	c.Index[0] = 5
	if _, err := save(disk, dir, c, SaveOptions{}); !errors.Is(err, syscall.ENOSPC) || err.Error() != path+": no space left on device" {
		t.Errorf("got %v", err)
	}
	got, err := Read(path)
	check1(t, err)
	if got.Index[0] != 0 {
		t.Error("the file has changed")
	}
	if left, _ := filepath.Glob(path + ".*"); left != nil {
		t.Errorf("left behind %s", left)
	}
}

func TestNames(t *testing.T) {
	ids := []string{"a.nii", "a.nii.gz", "A.nii", "b/c.hdr", "b/d.nii.gz", ".nii", "e"}
	var scans []*volume.Scan
	for _, id := range ids {
		scans = append(scans, &volume.Scan{ID: id})
	}
	got, err := Names(scans)
	check1(t, err)
	want := map[string]string{
		"a.nii": "a.nii.codes.safetensors", "a.nii.gz": "a.nii.gz.codes.safetensors", "A.nii": "A.nii~2.codes.safetensors",
		"b/c.hdr": "b/c.codes.safetensors", "b/d.nii.gz": "b/d.codes.safetensors", ".nii": ".nii.codes.safetensors", "e": "e.codes.safetensors",
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if _, err := Names([]*volume.Scan{{ID: "../a"}}); err == nil {
		t.Error("a name led out of the folder")
	}
	if _, err := Names([]*volume.Scan{{ID: "a"}, {ID: "a"}}); err == nil || err.Error() != "scan a: listed twice" {
		t.Errorf("got %v", err)
	}
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.SampledFrom([]string{"a", "A", "b", "a.nii", "a~2", "a.codes"})
		id := rapid.Custom(func(t *rapid.T) *volume.Scan {
			return &volume.Scan{ID: strings.Join(rapid.SliceOfN(part, 1, 2).Draw(t, "parts"), "/") +
				rapid.SampledFrom([]string{"", ".nii", ".nii.gz", ".NII", ".hdr", "~2", ".nii~2"}).Draw(t, "ending")}
		})
		scans := rapid.SliceOfNDistinct(id, 1, 8, func(s *volume.Scan) string { return s.ID }).Draw(t, "scans")
		names, err := Names(scans)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]string{}
		for id, n := range names {
			low := strings.ToLower(n)
			if other, ok := seen[low]; ok || !filepath.IsLocal(n) || !strings.HasSuffix(n, Ending) {
				t.Fatalf("%s and %s: %s", id, other, n)
			}
			seen[low] = id
		}
	})
}

// Scans may have names as long as there are; the codes of each have a file of their own.
func TestLongNames(t *testing.T) {
	long := strings.Repeat("é", 120) // of two bytes
	ids := []string{"d/" + long + "a.nii.gz", "d/" + long + "b.nii.gz", "d/" + long + ".nii", strings.Repeat("l", 248) + ".nii.gz"}
	var scans []*volume.Scan
	for _, id := range ids {
		scans = append(scans, &volume.Scan{ID: id})
	}
	names, err := Names(scans)
	check1(t, err)
	seen := map[string]bool{}
	for _, id := range ids {
		c := small()
		scan := *c.Scan
		scan.ID, c.Scan = id, &scan
		path := save1(t, c, SaveOptions{Name: names[id]})
		name := filepath.Base(path)
		f, err := Read(path)
		check1(t, err)
		if f.Scan.ID != id || !utf8.ValidString(name) || !strings.HasSuffix(name, Ending) || seen[name] {
			t.Errorf("%s of %q", name, f.Scan.ID)
		}
		seen[name] = true
	}
	c := small()
	c.Scan.ID = ids[3]
	save1(t, c, SaveOptions{})
}
