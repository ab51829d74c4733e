package write

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/stages/volume"
)

func scans(ids ...string) []*volume.Scan {
	var list []*volume.Scan
	for i, id := range ids {
		list = append(list, &volume.Scan{ID: id, Path: "in/" + id, Index: i})
	}
	return list
}

func TestNamesByHand(t *testing.T) {
	o := Options{Dir: "out", Suffix: "_recon", Gz: true}
	for _, c := range []struct {
		ids, want string
	}{
		{"a.nii.gz b.nii c.HDR d/e.hdr.gz f", "a_recon.nii.gz b_recon.nii.gz c_recon.nii.gz d/e_recon.nii.gz f_recon.nii.gz"},
		{"p/a.nii q/a.nii", "p/a_recon.nii.gz q/a_recon.nii.gz"},
		{"a.nii a.nii.gz b.nii", "a.nii_recon.nii.gz a.nii.gz_recon.nii.gz b_recon.nii.gz"},
		{"A.nii a.nii", "A.nii_recon.nii.gz a.nii_recon~2.nii.gz"}, // one on many file systems
		{"a.nii a.nii.gz a.nii.nii", "a.nii_recon~2.nii.gz a.nii.gz_recon.nii.gz a.nii_recon.nii.gz"},
		{".nii d/.nii.gz", ".nii_recon.nii.gz d/.nii.gz_recon.nii.gz"},
		{"..a.nii ...", "..a_recon.nii.gz ..._recon.nii.gz"},
	} {
		ids := strings.Fields(c.ids)
		names, err := Names(scans(ids...), o)
		if err != nil {
			t.Errorf("%s: %v", c.ids, err)
			continue
		}
		for i, want := range strings.Fields(c.want) {
			if got := names[ids[i]]; got != filepath.Join("out", filepath.FromSlash(want)) {
				t.Errorf("%s of %s: %s (want %s)", ids[i], c.ids, got, want)
			}
		}
	}
	o.Gz = false
	if names := must(Names(scans("a.nii.gz"), o)); names["a.nii.gz"] != filepath.Join("out", "a_recon.nii") {
		t.Error(names)
	}
}

// A scan may have a name as long as there are; that of its file, and of that file while it is written, are no longer.
func TestLongNames(t *testing.T) {
	long := strings.Repeat("é", 120) // of two bytes
	ids := []string{"d/" + long + "a.nii.gz", "d/" + long + "b.nii.gz", "d/" + long + ".nii", strings.Repeat("dir/", 99) + "a.nii"}
	names := must(Names(scans(ids...), Options{Dir: "out", Suffix: "_recon", Gz: true}))
	seen := map[string]bool{}
	for _, id := range ids {
		name := filepath.Base(names[id])
		if len(name) > 255-22 || !utf8.ValidString(name) || !strings.HasSuffix(name, ".nii.gz") || seen[name] {
			t.Errorf("%d bytes: %s", len(name), name)
		}
		seen[name] = true
	}
	if want := filepath.FromSlash(strings.Repeat("dir/", 99) + "a_recon.nii.gz"); names[ids[3]] != filepath.Join("out", want) {
		t.Error(names[ids[3]])
	}
}

func TestNamesRefuse(t *testing.T) {
	for _, c := range []struct {
		ids  []string
		o    Options
		want string
	}{
		{[]string{"../a.nii"}, Options{Dir: "out"}, "scan ../a.nii: its name is no file below a folder"},
		{[]string{"a/../../b.nii"}, Options{Dir: "out"}, "its name is no file below a folder"},
		{[]string{"/etc/a.nii"}, Options{Dir: "out"}, "its name is no file below a folder"},
		{[]string{""}, Options{Dir: "out"}, "its name is no file below a folder"},
		{[]string{"a/"}, Options{Dir: "out"}, "its name is no file below a folder"},
		{[]string{"a.nii", "a.nii"}, Options{Dir: "out"}, "scan a.nii: listed twice"},
		{[]string{"a.nii"}, Options{Dir: "in"}, "scan a.nii: would be written over the scan a.nii (want another dir or suffix)"},
		{[]string{"a.nii", "a_x.nii"}, Options{Dir: "./in", Suffix: "_x"}, "scan a.nii: would be written over the scan a_x.nii"},
		{[]string{"a.nii"}, Options{}, "dir: no folder is named"},
		{[]string{"a.nii"}, Options{Dir: "out", Suffix: "/../../b"}, `suffix: "/../../b" isn't part of a file's name`},
	} {
		if _, err := Names(scans(c.ids...), c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v (want %s)", c.ids, err, c.want)
		}
	}
}

// Whatever the IDs, every scan has a file of its own below the folder, in whatever case, and the same one each time.
func TestNamesNeverCollide(t *testing.T) {
	id := rapid.StringMatching(`(d/|D/)?[aA](_r)?(~2)?(\.nii|\.NII|\.hdr)?(_r)?(~2)?(\.nii)?(\.gz)?`)
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.SliceOfDistinct(id, rapid.ID[string]).Draw(t, "ids")
		slices.Sort(ids)
		o := Options{Dir: "out", Suffix: rapid.SampledFrom([]string{"", "_r", ".nii"}).Draw(t, "suffix"), Gz: rapid.Bool().Draw(t, "gz")}
		names := must(Names(scans(ids...), o))
		taken := map[string]bool{}
		for _, id := range ids {
			name, ok := strings.CutPrefix(names[id], "out"+string(filepath.Separator))
			if lower := strings.ToLower(name); !ok || name == "" || taken[lower] {
				t.Fatalf("%s is written to %s", id, names[id])
			} else {
				taken[lower] = true
			}
		}
		if again := must(Names(scans(ids...), o)); !maps.Equal(names, again) {
			t.Fatal("other names the second time")
		}
	})
}

func TestReady(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := Ready(Options{Dir: dir}); err != nil {
		t.Error(err)
	}
	if left := inFolder(t, dir); len(left) > 0 {
		t.Error(left)
	}
	file := filepath.Join(dir, "c")
	if err := os.WriteFile(file, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", file, filepath.Join(file, "d")} {
		if err := Ready(Options{Dir: dir}); err == nil || !strings.HasPrefix(err.Error(), "dir: ") {
			t.Error(dir, err)
		}
	}
}
