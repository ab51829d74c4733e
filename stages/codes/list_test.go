package codes

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/volume"
)

func TestWhatIsDecoded(t *testing.T) {
	path := save1(t, small(), SaveOptions{Latents: true})
	plain := save1(t, small(), SaveOptions{})
	sampled := rewrite(t, small(), true, func(_, head map[string]any) { // there are no codes for it
		head["mine"] = head["codes"]
		delete(head, "codes")
	})
	for _, c := range []struct {
		use, path string
		want      []float32
		err       string
	}{
		{"codes", path, nil, ""},
		{"", plain, nil, ""},
		{"quantised", path, small().Quantised, ""},
		{"latents", path, small().Latents, ""},
		{"quantised", sampled, small().Quantised, ""},
		{"codes", sampled, nil, `: no tensor "codes" to decode (want use: quantised, or use: latents)`},
		{"quantised", plain, nil, `: no tensor "quantised" to decode (want use: codes, or a file saved with latents)`},
		{"latents", plain, nil, `: no tensor "latents" to decode (want use: codes, or a file saved with latents)`},
		{"mine", path, nil, `: use: "mine" (want codes, quantised or latents)`},
	} {
		o := LoadOptions{Codes: []string{c.path}, Use: c.use}
		scans, bad, err := List(o)
		check1(t, err)
		if len(scans) != 1 || bad != nil || scans[0].ID != "b" || scans[0].Dims != [3]int{5, 4, 6} || scans[0].Spacing != small().Scan.Spacing {
			t.Fatalf("%+v, %v", scans, bad)
		}
		got, err := o.Load(scans[0])
		if c.err != "" {
			if err == nil || err.Error() != c.path+c.err {
				t.Errorf("%s: got  %v\nwant %s", c.use, err, c.path+c.err)
			}
			continue
		}
		check1(t, err)
		if !slices.Equal(got.Quantised, c.want) || got.Latents != nil || got.Scan != scans[0] {
			t.Errorf("%s: %+v", c.use, got.Codes)
		}
	}
	o := LoadOptions{Codes: []string{plain}}
	if _, err := o.Load(&volume.Scan{ID: "b", Path: plain, Dims: [3]int{1, 2, 3}}); err == nil || err.Error() != plain+": holds [5 4 6] voxels (want [1 2 3], as when it was listed)" {
		t.Errorf("got %v", err)
	}
}

func TestList(t *testing.T) {
	top := t.TempDir()
	for _, id := range []string{"one/b.nii.gz", "one/a.nii", "two/c.nii", "two/deep/d.nii"} {
		c := small()
		c.Scan.ID = id
		_, err := Save(top, c, SaveOptions{})
		check1(t, err)
	}
	at := func(name string) string { return filepath.Join(top, filepath.FromSlash(name)) }
	copyOf := func(to string, cut int) {
		b, err := os.ReadFile(at("one/a" + Ending))
		check1(t, err)
		check1(t, os.WriteFile(at(to), b[:len(b)-cut], 0o666))
	}
	copyOf("one/a-edited"+Ending, 0)
	copyOf("one/torn"+Ending, 1)
	copyOf("one/._a"+Ending, 0)
	copyOf("one/a"+Ending+".tmp", 0)
	copyOf("two/odd.safetensors", 0)
	check1(t, os.Mkdir(at("empty"), 0o777))
	for _, c := range []struct {
		codes []string
		want  string // IDs
		bad   string
	}{
		{[]string{at("")}, "one/a one/a-edited one/b two/c two/deep/d", "one/torn"},
		{[]string{at("one")}, "a a-edited b", "torn"},
		{[]string{at("two")}, "c deep/d", ""},
		{[]string{at("one"), at("two")}, "one/a one/a-edited one/b two/c two/deep/d", "one/torn"},
		{[]string{at("one"), at("one"), at("one/a" + Ending)}, "a a-edited b", "torn"},
		{[]string{at("**/d*")}, "two/deep/d", ""},
		{[]string{at("one/a*")}, "a a-edited", ""},
		{[]string{at("two/*")}, "c", ""},
		{[]string{at("two/odd.safetensors")}, "odd", ""},
		{[]string{at("one/a" + Ending + ".tmp")}, "a.codes.safetensors.tmp", ""},
	} {
		scans, bad, err := List(LoadOptions{Codes: c.codes})
		if err != nil {
			t.Errorf("%s: %v", c.codes, err)
			continue
		}
		var ids, bads []string
		for i, s := range scans {
			ids = append(ids, s.ID)
			if s.Index != i {
				t.Errorf("%s: %s has index %d", c.codes, s.ID, s.Index)
			}
			if _, err := Read(s.Path); err != nil {
				t.Error(err)
			}
		}
		for _, b := range bad {
			bads = append(bads, b.Scan)
			if !strings.HasSuffix(b.Reason, "torn or damaged") || strings.Contains(b.Reason, top) || !strings.HasPrefix(b.Path, top) {
				t.Errorf("%+v", b)
			}
		}
		if got := strings.Join(ids, " "); got != c.want || strings.Join(bads, " ") != c.bad {
			t.Errorf("%s: got %s and bad %s", c.codes, got, bads)
		}
	}
	for place, want := range map[string]string{
		"":                          "an empty name",
		at("none"):                  "no such file or folder (want a folder, a file or a pattern)",
		at("none/*"):                "folder " + at("none") + ": no such file or directory",
		at("empty"):                 "no .codes.safetensors file",
		at("*.nii"):                 "no .codes.safetensors file",
		at("one/[" + Ending):        "pattern: syntax error in pattern",
		at("one/torn" + Ending)[1:]: "no such file or folder (want a folder, a file or a pattern)",
	} {
		if _, _, err := List(LoadOptions{Codes: []string{place}}); err == nil || err.Error() != "codes: "+place+": "+want {
			t.Errorf("got  %v\nwant codes: %s: %s", err, place, want)
		}
	}
	if _, bad, err := List(LoadOptions{Codes: []string{at("one/torn" + Ending)}}); err == nil || len(bad) != 1 || !strings.HasPrefix(err.Error(), "codes: none of 1 files can be used; the first, ") {
		t.Errorf("%v, %v", bad, err)
	}
	if _, _, err := List(LoadOptions{}); err == nil {
		t.Error("nothing was named")
	}
	if _, err := Read(at("none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
