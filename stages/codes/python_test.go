package codes

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const docs = "../../docs/codes.md"

// blocks are the Python parts of the docs: the reader and the writer.
func blocks(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(docs)
	check1(t, err)
	var list []string
	for _, m := range regexp.MustCompile("(?s)```python\n(.*?)```").FindAllSubmatch(text, -1) {
		list = append(list, string(m[1]))
	}
	if len(list) != 2 {
		t.Fatalf("%d Python parts in %s (want 2)", len(list), docs)
	}
	return list
}

func TestTheDocsHaveOneReader(t *testing.T) {
	reader := blocks(t)[0]
	doc, err := os.ReadFile("doc.go")
	check1(t, err)
	for line := range strings.Lines(reader) {
		if line = strings.TrimSpace(line); line != "" && !strings.Contains(string(doc), line+"\n") {
			t.Errorf("doc.go lacks %s", line)
		}
	}
	if n := strings.Count(reader, "\n"); n > 10 {
		t.Errorf("the reader has %d lines (want at most 10)", n)
	}
}

// python is a Python that has numpy.
func python(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"python3", "/usr/bin/python3"} {
		if path, err := exec.LookPath(name); err == nil && exec.Command(path, "-c", "import numpy").Run() == nil {
			return path
		}
	}
	t.Skip("no python3 with numpy")
	return ""
}

// TestPythonOfTheDocs reads what Save wrote, edits it and writes what Load reads.
func TestPythonOfTheDocs(t *testing.T) {
	exe := python(t)
	dir := t.TempDir()
	for name, c := range map[string]struct {
		latents bool
		count   int // of the codebook
		script  string
	}{
		"one": {true, 12, `
info, t = read(sys.argv[1])
assert info["scan"]["id"] == "a/b.nii.gz" and info["dims"] == [5, 4, 6], info
codes = t["codes"]
assert codes.dtype == numpy.uint16 and codes.shape == (2, 2, 3), codes
assert (codes == numpy.arange(12).reshape(2, 2, 3)).all(), codes
assert codes[1, 0, 2] == 8  # z, y, x
assert t["latents"].shape == (2, 2, 3, 2) and (t["latents"][..., 1] == -2).all(), t["latents"]
assert numpy.allclose(t["latents"].mean((0, 1, 2)), t["latents.mean"]) and numpy.allclose(t["latents"].std((0, 1, 2)), t["latents.std"])
assert numpy.allclose(t["quantised"].mean((0, 1, 2)), t["quantised.mean"]) and numpy.allclose(t["quantised"].std((0, 1, 2)), t["quantised.std"])
t["codes"] = codes.astype(int)[:, :, ::-1]
t["quantised"] = t["quantised"] * 2.0
write(sys.argv[2], info, t)
`},
		"big": {false, 70000, `
info, t = read(sys.argv[1])
assert t["codes"].dtype == numpy.int32, t["codes"]
t["codes"] = t["codes"][:, :, ::-1].astype(">i4")
write(sys.argv[2], info, t)
`},
	} {
		code := small()
		code.Count = c.count
		from, to := save1(t, code, SaveOptions{Latents: c.latents}), filepath.Join(dir, name)
		run := exec.Command(exe, "-c", "import sys\n"+strings.Join(blocks(t), "\n")+c.script, from, to)
		if out, err := run.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		got, err := Read(to)
		check1(t, err)
		want := small()
		want.Count, want.Scan.Path = c.count, to
		for row := range slices.Chunk(want.Index, 3) {
			slices.Reverse(row)
		}
		for i := range want.Quantised {
			want.Quantised[i] *= 2
		}
		if !c.latents {
			want.Latents, want.Quantised = nil, nil
		}
		if got.Sealed || !reflect.DeepEqual(got.Codes, want) {
			t.Errorf("%s: got %+v", name, got.Codes)
		}
	}
}
