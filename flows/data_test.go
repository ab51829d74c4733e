package flows

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/stages/volume"
)

// What a run has written below its scans isn't taken for scans by the next one, unless it is named.
func TestWhatIsWrittenIsNoScan(t *testing.T) {
	dir, _ := scanFiles(t, [3]int{9, 8, 7}, [3]int{7, 8, 9})
	out := filepath.Join(dir, "out")
	run := func(scans, out string) (string, error) {
		var log bytes.Buffer
		err := mustLoad(t, fmt.Sprintf(ways, filepath.Join(t.TempDir(), "run"), scans, out)).Run(t.Context(), nil, UI{Out: io.Discard, Err: &log})
		return log.String(), err
	}
	names := func(dir string) (list []string) {
		for _, e := range must(os.ReadDir(dir)) {
			list = append(list, e.Name())
		}
		return list
	}
	for n := range 3 {
		if n == 2 { // nor is what can't be read
			if err := os.WriteFile(filepath.Join(out, "torn.nii.gz"), []byte{0x1f, 0x8b}, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		log, err := run(dir, out)
		if err != nil {
			t.Fatal(err)
		}
		if told := strings.Count(log, "an earlier run wrote them"); told != min(n, 1) || n > 0 && !strings.Contains(log, fmt.Sprintf(`"files":%d`, n+1)) {
			t.Errorf("run %d tells %d times:\n%s", n, told, log)
		}
		if list := names(out); len(list) != 2+n/2 {
			t.Errorf("run %d: %v", n, list)
		}
	}
	again := t.TempDir()
	for _, scans := range []string{out + "/*_recon.nii.gz", filepath.Join(out, "s0_recon.nii.gz")} {
		if _, err := run(scans, filepath.Join(out, "again")); err != nil {
			t.Error(err)
		}
		if log, err := run(scans, again); err != nil || strings.Contains(log, "left out") {
			t.Errorf("%v\n%s", err, log)
		}
	}
	if list := names(again); len(list) != 2 {
		t.Errorf("%v", list)
	}
	linked, elsewhere := t.TempDir(), t.TempDir() // by a link in the folder of scans
	if err := errors.Join(os.Symlink(filepath.Join(dir, "s0.nii"), filepath.Join(linked, "s0.nii")), os.Symlink(elsewhere, filepath.Join(linked, "out"))); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := run(linked, elsewhere); err != nil {
			t.Error(err)
		}
	}
	if list := names(elsewhere); !slices.Equal(list, []string{"s0_recon.nii.gz"}) {
		t.Errorf("%v", list)
	}
	only := t.TempDir()
	if err := os.Rename(out, filepath.Join(only, "out")); err != nil {
		t.Fatal(err)
	}
	if _, err := run(only, filepath.Join(only, "out")); ExitCode(err) != 3 || !strings.Contains(err.Error(), "all 5 scans lie in write.dir") {
		t.Error(err)
	}
}

// Copies are named, a few of them.
func TestCopiesInWords(t *testing.T) {
	d := &data{all: []*volume.Scan{{ID: "a"}, {ID: "b", Copy: "a"}}}
	if got := d.copies(); got != "b of a" {
		t.Error(got)
	}
	for i := range 7 {
		d.all = append(d.all, &volume.Scan{ID: string(rune('c' + i)), Copy: "a"})
	}
	if got := d.copies(); got != "b of a, c of a, d of a, e of a, f of a, 3 more" {
		t.Error(got)
	}
}
