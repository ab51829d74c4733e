package train_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

// named are scans with these IDs, in the folder /data.
func named(ids ...string) []*volume.Scan {
	scans := make([]*volume.Scan, len(ids))
	for i, id := range ids {
		scans[i] = &volume.Scan{ID: id, Path: "/data/" + id, Index: i}
	}
	return scans
}

func ids(scans []*volume.Scan) []string {
	out := make([]string, len(scans))
	for i, s := range scans {
		out[i] = s.ID
	}
	return out
}

// Copies of a scan are on its side, with all others of the patients that they make one.
func TestSplitKeepsCopiesTogether(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list []string
		for p := range rapid.IntRange(4, 20).Draw(t, "patients") {
			for s := range rapid.IntRange(1, 3).Draw(t, "scans") {
				list = append(list, fmt.Sprintf("p%02d/s%d.nii", p, s))
			}
		}
		o := train.Validate{Share: rapid.SampledFrom([]float64{0.2, 0.5}).Draw(t, "share"), Group: `/(p\d+)/`}
		scans := named(list...)
		for range rapid.IntRange(0, 4).Draw(t, "copies") {
			i := rapid.IntRange(0, len(list)-1).Draw(t, "of")
			j := rapid.IntRange(i, len(list)-1).Draw(t, "copy")
			if i != j && scans[i].Copy == "" {
				scans[j].Copy = scans[i].ID
			}
		}
		_, out, err := train.Split(scans, o)
		if err != nil && !strings.Contains(err.Error(), "held out") {
			t.Fatal(err)
		}
		held := map[string]bool{}
		for _, s := range out {
			held[s.ID] = true
		}
		for _, s := range scans {
			if s.Copy != "" && held[s.ID] != held[s.Copy] {
				t.Fatalf("%s and its copy %s are apart", s.Copy, s.ID)
			}
			if held[s.ID] != held[s.ID[:3]+"/s0.nii"] {
				t.Fatalf("%s isn't with its patient", s.ID)
			}
		}
	})
}

// TestSplitProperty draws patients with several scans each, splits them, adds patients and splits again.
func TestSplitProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cohort := func(name string, from, least int) (list []string) {
			for p := range rapid.IntRange(least, 12).Draw(t, name) {
				for s := range rapid.IntRange(1, 3).Draw(t, "scans") {
					list = append(list, fmt.Sprintf("p%02d/s%d.nii", from+p, s))
				}
			}
			return list
		}
		o := train.Validate{Share: rapid.SampledFrom([]float64{0, 0.1, 0.3, 0.5, 0.9}).Draw(t, "share"), Group: `/(p\d+)/`}
		split := func(list []string) map[string]bool {
			scans := named(list...)
			tr, held, err := train.Split(scans, o)
			if err != nil {
				t.Fatal(err)
			}
			if all := slices.Concat(ids(tr), ids(held)); len(all) != len(list) || !slices.IsSorted(ids(tr)) || !slices.IsSorted(ids(held)) {
				t.Fatalf("not all, or not in order: %v, %v", ids(tr), ids(held))
			}
			side := map[string]bool{}
			for _, s := range held {
				side[s.ID[:3]] = true
			}
			for _, s := range tr {
				if side[s.ID[:3]] {
					t.Fatalf("patient %s is on both sides: %v, %v", s.ID[:3], ids(tr), ids(held))
				}
				side[s.ID[:3]] = false
			}
			n := 0
			for _, h := range side {
				if h {
					n++
				}
			}
			switch {
			case o.Share == 0 || len(side) < 2:
				if n != 0 {
					t.Fatalf("%d of %d patients held out, want none", n, len(side))
				}
			case n == 0 || n == len(side):
				t.Fatalf("%d of %d patients held out", n, len(side))
			}
			return side
		}
		old := cohort("patients", 0, 1)
		before := split(old)
		after := split(append(slices.Clone(old), cohort("new patients", 20, 0)...))
		// Whoever was moved so that a side isn't empty may move back.
		alone := func(side map[string]bool, patient string) bool {
			n := 0
			for _, s := range side {
				if s == side[patient] {
					n++
				}
			}
			return n <= 1
		}
		for p := range before {
			if before[p] != after[p] && !alone(before, p) && !alone(after, p) {
				t.Fatalf("%s moved to held out %v\nbefore %v\nafter  %v", p, after[p], before, after)
			}
		}
	})
}

// TestSplitShare splits many patients: the share is about what was asked for.
func TestSplitShare(t *testing.T) {
	var list []string
	for i := range 1000 {
		list = append(list, fmt.Sprintf("case%d.nii.gz", i))
	}
	_, held, err := train.Split(named(list...), train.Validate{Share: 0.2})
	if err != nil || len(held) < 160 || len(held) > 240 {
		t.Errorf("%d of 1000 held out, want about 200 (%v)", len(held), err)
	}
	// The split is a promise to every run there was: these are not to change.
	if got, want := strings.Join(ids(held[:3]), " "), "case3.nii.gz case5.nii.gz case6.nii.gz"; got != want {
		t.Errorf("the first held out: %s, want %s", got, want)
	}
}

func TestSplitLists(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	list := write("held.txt", "\ufeffa/2.nii  \r\n\n # the rest\nb/*\n")
	table := write("patients.csv", "\ufeffscan,sex,patient\na/1.nii,f,ann\n/data/a/2.nii,m,bob\n3.nii,f,ann\nb/4.nii,m,cid\n")
	scans := []string{"a/1.nii", "a/2.nii", "a/3.nii", "b/4.nii"}
	for _, c := range []struct {
		name string
		o    train.Validate
		held string // IDs, or the error
	}{
		{"by name", train.Validate{Scans: []string{"a/2.nii"}}, "a/2.nii"},
		{"by path", train.Validate{Scans: []string{"/data/b/4.nii"}}, "b/4.nii"},
		{"a star takes slashes", train.Validate{Scans: []string{"*3*", "b*"}}, "a/3.nii b/4.nii"},
		{"nothing but the star is special", train.Validate{Scans: []string{"a/.*nii"}}, "validate.scans: none of the 4 scans matches a/.*nii (they are named as a/1.nii)"},
		{"the whole name", train.Validate{Scans: []string{"1.nii"}}, "validate.scans: none of the 4 scans matches 1.nii (they are named as a/1.nii)"},
		{"a list file", train.Validate{Scans: []string{list}}, "a/2.nii b/4.nii"},
		{"an empty list file", train.Validate{Scans: []string{write("empty.txt", "# none\n")}, Share: 0.5}, "validate.scans: DIR/empty.txt: names no scan"},
		{"no list file", train.Validate{Scans: []string{dir + "/none.txt"}}, "validate.scans: DIR/none.txt: no such file or directory"},
		{"all", train.Validate{Scans: []string{"*"}}, "validate: all 4 scans are held out; none is left to train on"},
		{"patients stay together", train.Validate{Scans: []string{"a/1.nii"}, Group: `/([ab])/`}, "a/1.nii a/2.nii a/3.nii"},
		{"a whole match is the patient", train.Validate{Scans: []string{"b/4.nii"}, Group: `/[ab]/`}, "b/4.nii"},
		{"all of one patient", train.Validate{Scans: []string{"a/1.nii"}, Group: `data`}, "validate: all 4 scans are held out; none is left to train on"},
		{"a table", train.Validate{Scans: []string{"a/1.nii"}, Group: table + "#patient"}, "a/1.nii a/3.nii"},
		{"another column", train.Validate{Scans: []string{"a/1.nii"}, Group: table + "#sex"}, "a/1.nii a/3.nii"},
		{"no such column", train.Validate{Group: table + "#name"}, "validate.group: DIR/patients.csv: has the columns scan, sex, patient (want scan and name)"},
		{"no such table", train.Validate{Group: dir + "/none.csv#patient"}, "validate.group: DIR/none.csv: no such file or directory"},
		{"an empty table", train.Validate{Group: write("empty.csv", "") + "#patient"}, "validate.group: DIR/empty.csv: empty (want a header with the columns scan and patient)"},
		{"a torn table", train.Validate{Group: write("torn.csv", "scan,patient\na") + "#patient"}, "validate.group: DIR/torn.csv: record on line 2: wrong number of fields"},
		{"a scan that the table lacks", train.Validate{Group: write("short.csv", "scan,patient\n1.nii,ann\n") + "#patient"}, "validate.group: DIR/short.csv: no row for scan a/2.nii"},
		{"a patient without a name", train.Validate{Group: write("blank.csv", "scan,patient\n1.nii,\n") + "#patient"}, "validate.group: DIR/blank.csv: no patient for scan a/1.nii"},
		{"a number sign in the folder", train.Validate{Scans: []string{"a/1.nii"}, Group: write("#1.csv", "scan,patient\n1.nii,x\n2.nii,y\n3.nii,x\n4.nii,y\n") + "#patient"}, "a/1.nii a/3.nii"},
		{"no regular expression", train.Validate{Group: `(`}, "validate.group: error parsing regexp: missing closing ): `(`"},
		{"a path that doesn't match", train.Validate{Group: `/a/`}, `validate.group: "/a/" doesn't match /data/b/4.nii`},
		{"a group that may be missing", train.Validate{Group: `data/(b)?`}, `validate.group: "data/(b)?" finds no patient in /data/a/1.nii`},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr, held, err := train.Split(named(scans...), c.o)
			got := strings.Join(ids(held), " ")
			if err != nil {
				got = strings.ReplaceAll(err.Error(), dir, "DIR")
			} else if len(tr)+len(held) != len(scans) {
				t.Errorf("%v, %v: not all", ids(tr), ids(held))
			}
			if got != c.held {
				t.Errorf("got  %s\nwant %s", got, c.held)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	good := train.Options{Device: "auto", LR: 1}
	for want, change := range map[string]func(*train.Options){
		"":                                      func(*train.Options) {},
		"lr: 0 never learns (want more than 0)": func(o *train.Options) { o.LR = 0 },
		`device: unknown device "gpu" (want auto, cpu or cuda:N)`:     func(o *train.Options) { o.Device = "gpu" },
		`device: unknown device "cuda:0x" (want auto, cpu or cuda:N)`: func(o *train.Options) { o.Device = "cuda:0x" },
	} {
		o := good
		change(&o)
		if err := o.Check(); (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	o := good
	o.Device = "cuda:1"
	if err := o.Check(); err != nil {
		t.Error(err)
	}
	for _, group := range slices.Sorted(maps.Keys(map[string]bool{"": true, `(p\d+)`: true, "a(.csv#b": true, "(": false})) {
		v := train.Validate{Group: group}
		if err := v.Check(); (err != nil) != (group == "(") {
			t.Errorf("group %q: %v", group, err)
		}
	}
}
