package read

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/volume"
)

func ids(scans []*volume.Scan) string {
	var s []string
	for _, x := range scans {
		s = append(s, x.ID)
	}
	return strings.Join(s, " ")
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
}

func TestListFinds(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"p1/a.nii.gz", "p1/b.nii", "p2/deep/er/c.nii.gz", "p2/d.hdr", "e.NII"} {
		small(t, filepath.Join(dir, strings.ToLower(name)))
	}
	if err := os.Rename(filepath.Join(dir, "e.nii"), filepath.Join(dir, "e.NII")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "p1/._a.nii.gz"), "resource fork")
	write(t, filepath.Join(dir, ".hidden/x.nii"), "hidden")
	write(t, filepath.Join(dir, "notes.md"), "notes")
	write(t, filepath.Join(dir, "list.txt"), "# two of them\n\np2/d.hdr\r\n  p1/a.nii.gz  \np1/a.nii.gz")
	elsewhere := t.TempDir()
	small(t, filepath.Join(elsewhere, "z.nii"))
	write(t, filepath.Join(dir, "p1/abs.txt"), filepath.Join(elsewhere, "z.nii"))
	if err := os.Symlink(filepath.Join(dir, "p2"), filepath.Join(elsewhere, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, filepath.Join(elsewhere, "loop")); err != nil {
		t.Fatal(err)
	}
	in := func(names ...string) []string {
		for i := range names {
			names[i] = filepath.Join(dir, names[i])
		}
		return names
	}
	for _, c := range []struct {
		scans []string
		want  string
	}{
		{in("."), "e.NII p1/a.nii.gz p1/b.nii p2/d.hdr p2/deep/er/c.nii.gz"},
		{in("p1"), "a.nii.gz b.nii"},
		{in("p1", "p2"), "p1/a.nii.gz p1/b.nii p2/d.hdr p2/deep/er/c.nii.gz"},
		{in("**/*.nii.gz"), "p1/a.nii.gz p2/deep/er/c.nii.gz"},
		{in("p2/**/*.nii.gz"), "deep/er/c.nii.gz"},
		{in("p?/*"), "p1/a.nii.gz p1/b.nii p2/d.hdr"},
		{in("{p1,p2}/*.{nii,hdr}"), "p1/b.nii p2/d.hdr"},
		{in("p1/b.nii"), "b.nii"},
		{in("list.txt"), "p1/a.nii.gz p2/d.hdr"},
		{in("p1", "p1/a.nii.gz", "p1/*"), "a.nii.gz b.nii"},
		{[]string{elsewhere}, "link/d.hdr link/deep/er/c.nii.gz z.nii"},
		{in("p1/abs.txt"), strings.TrimPrefix(elsewhere, filepath.Dir(filepath.Dir(elsewhere))+"/") + "/z.nii"},
	} {
		scans, bad, err := List(context.Background(), defaults(c.scans...))
		got := ids(scans)
		if strings.HasSuffix(c.want, "/z.nii") && strings.HasSuffix(got, "/z.nii") {
			got = c.want // its folder is shared with the list's: only the end is known
		}
		if err != nil || len(bad) > 0 || got != c.want {
			t.Errorf("%v: %s, %v, %v (want %s)", c.scans, got, bad, err, c.want)
		}
		for i, s := range scans {
			if s.Index != i || s.Dims != [3]int{2, 2, 2} || len(s.Digest) != 64 {
				t.Errorf("%+v", s)
			}
		}
	}
}

// A file with brackets in its name is that file, not a pattern.
func TestNameLikeAPattern(t *testing.T) {
	path := filepath.Join(t.TempDir(), "scan[1].nii")
	small(t, path)
	if s := one(t, path, defaults()); s.ID != "scan[1].nii" {
		t.Error(s.ID)
	}
}

func TestIDsAreUniqueAndSafe(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a\nb.nii", "a_b.nii", "a:b.nii", "\xff.nii", "é.nii"} {
		small(t, filepath.Join(dir, name))
	}
	scans, _, err := List(context.Background(), defaults(dir))
	if err != nil || ids(scans) != "_.nii a_b.nii a_b.nii~2 a_b.nii~3 é.nii" {
		t.Errorf("%q, %v", ids(scans), err)
	}
}

func TestListSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "other/notes.md"), "notes")
	write(t, filepath.Join(dir, "bad/a.nii"), "not an image")
	write(t, filepath.Join(dir, "empty.txt"), "# nothing\n")
	write(t, filepath.Join(dir, "missing.txt"), "gone.nii\n")
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o777); err != nil {
		t.Fatal(err)
	}
	small(t, filepath.Join(dir, "good/a.nii"))
	good := filepath.Join(dir, "good")
	for _, c := range []struct {
		scans []string
		want  string
	}{
		{nil, "scans: no folder, pattern or file is named"},
		{[]string{""}, "scans: an empty name (want a folder"},
		{[]string{"none"}, "none: no such file or folder"},
		{[]string{"empty"}, "empty: the folder is empty (want .nii, .nii.gz or .hdr files)"},
		{[]string{"other"}, "other: no .nii, .nii.gz or .hdr file in the folder or below it"},
		{[]string{"other/*"}, "other/*: matches 1 files, but no .nii, .nii.gz or .hdr"},
		{[]string{"good/*.nii.gz"}, "no file matches"},
		{[]string{"none/**/*.nii"}, "no such folder: " + filepath.Join(dir, "none")},
		{[]string{"good/a.nii/*.nii"}, "not a directory"},
		{[]string{"good/[a.nii"}, "pattern: "},
		{[]string{"empty.txt"}, "the list names no file"},
		{[]string{"missing.txt"}, "gone.nii: no such file or directory"},
		{[]string{"bad"}, "none of 1 files can be used; the first, " + filepath.Join(dir, "bad/a.nii") + ": header: not NIfTI"},
		{[]string{"good", "none"}, "none: no such file or folder"},
	} {
		var scans []string
		for _, s := range c.scans {
			if s != "" {
				s = filepath.Join(dir, s)
			}
			scans = append(scans, s)
		}
		_, _, err := List(context.Background(), defaults(scans...))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v (want %q)", c.scans, err, c.want)
		}
	}
	o := defaults(good)
	o.Cache = filepath.Join(dir, "empty.txt", "cache")
	if _, _, err := List(context.Background(), o); err == nil || !strings.HasPrefix(err.Error(), "cache: ") {
		t.Errorf("a cache that can't be made: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := List(ctx, defaults(good)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if os.Getuid() == 0 {
		t.Skip("root reads everything")
	}
	locked := filepath.Join(dir, "good", "locked")
	if err := os.Mkdir(locked, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := List(context.Background(), defaults(locked)); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Error(err)
	}
	if scans, bad, err := List(context.Background(), defaults(good)); err != nil || len(scans) != 1 || len(bad) != 1 || bad[0].Reason != "folder: permission denied" {
		t.Error(scans, bad, err)
	}
}

func TestBadHeadersAreNamed(t *testing.T) {
	dir := t.TempDir()
	small(t, filepath.Join(dir, "b.nii"))
	write(t, filepath.Join(dir, "a.nii"), "not an image")
	put(t, filepath.Join(dir, "c.nii"), [3]int{3, 3, 3}, identity, func(int, int, int) int16 { return 0 })
	o := defaults(dir)
	o.MaxBytes = 40
	scans, bad, err := List(context.Background(), o)
	if err != nil || ids(scans) != "b.nii" || scans[0].Index != 0 || len(bad) != 2 ||
		bad[0].Scan != "a.nii" || !strings.Contains(bad[0].Reason, "not NIfTI") || bad[1].Scan != "c.nii" || !strings.Contains(bad[1].Reason, "above the limit of 40") {
		t.Error(ids(scans), bad, err)
	}
}

func TestTooMany(t *testing.T) {
	for _, c := range []struct {
		share      float64
		bad, total int
		ok         bool
	}{
		{0.1, 0, 1, true}, {0.1, 1, 3, true}, {0.1, 2, 10, false}, {0.1, 1, 10, true}, {0.1, 2, 11, true}, {0, 1, 1000, false}, {1, 5, 5, true}, {0.3, 3, 10, true},
	} {
		o := Options{BadShare: c.share}
		if err := o.TooMany(c.bad, c.total); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestCheck(t *testing.T) {
	for want, change := range map[string]func(*Options){
		"":            func(*Options) {},
		"window_hu: ": func(o *Options) { o.WindowHU = [2]float64{5, 5} },
		"spacing: ":   func(o *Options) { o.Spacing = [3]float64{1, 0, 1} },
	} {
		o := defaults("x")
		change(&o)
		err := o.Check()
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

func TestQuarantine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "quarantine.jsonl")
	q, err := OpenQuarantine(path)
	if err != nil || q.Len() != 0 {
		t.Fatal(err)
	}
	a := Bad{Scan: "a.nii", Path: "/x/a.nii", Reason: "truncated: 1 of 2 bytes", Until: 3}
	b := Bad{Scan: "b \"q\".nii", Path: "/x/b.nii", Reason: "<corrupt>\n"}
	for _, x := range []Bad{a, b, {Scan: "a.nii", Reason: "again"}} {
		if err := q.Add(x); err != nil {
			t.Fatal(err)
		}
	}
	check := func(q *Quarantine, want ...Bad) {
		t.Helper()
		if !slices.Equal(q.All(), want) || q.Len() != len(want) || !q.Has(want[0].Scan) || q.Has("c.nii") {
			t.Errorf("%+v", q.All())
		}
		if got, ok := q.Get(want[0].Scan); !ok || got != want[0] {
			t.Errorf("%+v", got)
		}
	}
	check(q, a, b)
	if q, err = OpenQuarantine(path); err != nil {
		t.Fatal(err)
	}
	check(q, a, b)
	whole, _ := os.ReadFile(path)
	// Torn anywhere in the last line: passed over, and mended by the next Add.
	first := len(strings.SplitAfter(string(whole), "\n")[0])
	for n := first; n < len(whole)-1; n++ {
		write(t, path, string(whole[:n]))
		q, err := OpenQuarantine(path)
		if err != nil {
			t.Fatal(err)
		}
		check(q, a)
		if err := q.Add(b); err != nil {
			t.Fatal(err)
		}
		if again, _ := os.ReadFile(path); string(again) != string(whole) {
			t.Fatalf("torn at %d: %q", n, again)
		}
	}
	write(t, path, string(whole[:len(whole)-1]))
	if q, err = OpenQuarantine(path); err != nil {
		t.Fatal(err)
	}
	check(q, a, b) // whole but for its end
	short := Bad{Scan: "c"}
	if err := q.Add(short); err != nil {
		t.Fatal(err)
	}
	if q, err = OpenQuarantine(path); err != nil || !slices.Equal(q.All(), []Bad{a, b, short}) {
		t.Error(q, err)
	}
	write(t, path, "{\n"+string(whole))
	if _, err := OpenQuarantine(path); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Error(err)
	}
	if q, err = OpenQuarantine(filepath.Join(t.TempDir(), "none", "q.jsonl")); err != nil {
		t.Fatal(err)
	}
	if err := q.Add(a); err == nil || q.Has("a.nii") {
		t.Error("added to a folder that isn't there")
	}
}
