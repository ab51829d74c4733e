package files

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// IDs are of what is named: the same wherever the folders lie, and no two files have one.
func TestEntries(t *testing.T) {
	root := t.TempDir()
	at := func(name string) string { return filepath.Join(root, filepath.FromSlash(name)) }
	cut := func(rel string) string { return strings.TrimSuffix(rel, ".b") }
	for _, c := range []struct {
		roots, paths []string
		name         func(string) string
		want         []string // ID, path
	}{
		{nil, nil, nil, nil},
		{[]string{"x"}, []string{"x/b", "x/a/c", "x/a/../b"}, nil, []string{"a/c", "x/a/c", "b", "x/b"}},
		{[]string{"x/a", "x/b"}, []string{"x/a/1", "x/b/1"}, nil, []string{"a/1", "x/a/1", "b/1", "x/b/1"}},
		{[]string{"x", "xy"}, []string{"x/1", "xy/1"}, nil, []string{"x/1", "x/1", "xy/1", "xy/1"}},
		{[]string{"x"}, []string{"x/a:b", "x/a?b", "x/a\x01b"}, nil, []string{"a_b", "x/a\x01b", "a_b~2", "x/a:b", "a_b~3", "x/a?b"}},
		{[]string{"x"}, []string{"x/a.b", "x/a"}, cut, []string{"a", "x/a", "a~2", "x/a.b"}},
	} {
		var f Found
		for _, r := range c.roots {
			f.Root(at(r))
		}
		for _, p := range c.paths {
			f.Add(at(p))
		}
		var got []string
		for _, e := range f.Entries(c.name) {
			got = append(got, e.ID, e.Path)
		}
		for i := 1; i < len(c.want); i += 2 {
			c.want[i] = at(c.want[i])
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v: %q, want %q", c.paths, got, c.want)
		}
	}
	var f Found
	f.Root(at("x"))
	f.Add(at("y/1"))
	if e := f.Entries(nil); e[0].ID != strings.TrimLeft(filepath.ToSlash(at("y/1")), "/") {
		t.Errorf("outside of all roots: %q", e)
	}
}

func TestBelow(t *testing.T) {
	for _, c := range []struct {
		path, dir string
		want      bool
	}{{"/a/b", "/a", true}, {"/a", "/a", true}, {"/ab", "/a", false}, {"/a", "/", true}, {"/a", "/a/b", false}} {
		if Below(filepath.FromSlash(c.path), filepath.FromSlash(c.dir)) != c.want {
			t.Errorf("%s below %s: %v", c.path, c.dir, !c.want)
		}
	}
}

// A file is what was written, or what it was before.
func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	torn := errors.New("torn")
	for _, c := range []struct {
		text string
		err  error
		want string
	}{{"one", nil, "one"}, {"tw", torn, "one"}, {"three", nil, "three"}} {
		err := Write(path, func(w io.Writer) error {
			_, err := io.WriteString(w, c.text)
			return errors.Join(err, c.err)
		})
		if !errors.Is(err, c.err) || err != nil && !strings.HasPrefix(err.Error(), path+": ") {
			t.Errorf("%q: %v", c.text, err)
		}
		got, err := os.ReadFile(path)
		list, _ := os.ReadDir(filepath.Dir(path))
		if err != nil || string(got) != c.want || len(list) != 1 {
			t.Errorf("%q is there, %d files: %v", got, len(list), err)
		}
	}
	if err := Write(filepath.Join(path, "b"), func(io.Writer) error { return nil }); err == nil || strings.Count(err.Error(), path) != 1 {
		t.Error(err)
	}
}

// Wherever the disk fails the old file stays and nothing lies beside it; once the new one has its name, it has all of it.
func TestWriteOnADiskThatFails(t *testing.T) {
	for _, c := range []struct{ at, want string }{{"create", "old"}, {"sync", "old"}, {"close", "old"}, {"rename", "old"}, {"folder", "new"}} {
		path := filepath.Join(t.TempDir(), "a")
		if err := os.WriteFile(path, []byte("old"), 0o666); err != nil {
			t.Fatal(err)
		}
		var steps []string
		step := func(name string, do func() error) error {
			if steps = append(steps, name); name == c.at {
				return &os.LinkError{Op: name, Old: path, Err: syscall.EIO}
			}
			return do()
		}
		disk := Disk{
			Create: func(path string) (f File, err error) {
				err = step("create", func() error { f, err = os.Create(path); return err })
				return stepping{f, step}, err
			},
			Rename:  func(from, to string) error { return step("rename", func() error { return os.Rename(from, to) }) },
			SyncDir: func(dir string) error { return step("folder", func() error { return SyncDir(dir) }) },
		}
		err := disk.Write(path, func(f File) error { _, err := io.WriteString(f, "new"); return err })
		if !errors.Is(err, syscall.EIO) || err.Error() != syscall.EIO.Error() {
			t.Errorf("%s: %v", c.at, err)
		}
		got, err := os.ReadFile(path)
		list, _ := os.ReadDir(filepath.Dir(path))
		if err != nil || string(got) != c.want || len(list) != 1 {
			t.Errorf("%s: %q is there, %d files: %v", c.at, got, len(list), err)
		}
		if all := strings.Join(steps, " "); c.at == "folder" && all != "create sync close rename folder" {
			t.Errorf("in this order: %s", all)
		}
	}
}

// stepping is a file with a step before each end of it.
type stepping struct {
	File
	step func(string, func() error) error
}

func (s stepping) Sync() error { return s.step("sync", s.File.Sync) }

func (s stepping) Close() error {
	return errors.Join(s.step("close", func() error { return nil }), s.File.Close())
}

// What is too large isn't read to its end, nor is what has none.
func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	if err := os.WriteFile(path, []byte("12345"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		most int64
		want string
	}{{path, 5, ""}, {path, 4, "larger than 4 bytes"}, {os.DevNull, 0, ""}, {path + "b", 5, "no such file or directory"}} {
		b, err := Read(c.path, c.most)
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("%s: %q, %v (want %s)", c.path, b, err, c.want)
		}
	}
	if _, err := os.Stat("/dev/zero"); err == nil {
		if _, err := Read("/dev/zero", 1000); err == nil {
			t.Error("all of /dev/zero was read")
		}
	}
}

// What was added is there again, what was torn goes, and what isn't a line is named.
func TestLines(t *testing.T) {
	type number struct{ N int }
	path := filepath.Join(t.TempDir(), "a.jsonl")
	open := func() (*Lines[number], []number, error) {
		return OpenLines(path, "a small number", func(x number) bool { return x.N > 0 && x.N < 10 })
	}
	const two = `{"N":1}` + "\n\n" + ` {"N":2}` + "\r\n"
	for _, c := range []struct {
		there, after string // the file before it is opened, and once 4 has been added
		want         []number
	}{
		{"", `{"N":4}` + "\n", nil},
		{two, two + `{"N":4}` + "\n", []number{{1}, {2}}},
		{two + `{"N":3`, two + `{"N":4}` + "\n", []number{{1}, {2}}},
		{two + `{"N":3}`, two + `{"N":3}` + "\n" + `{"N":4}` + "\n", []number{{1}, {2}, {3}}},
		{two + `{"N":3} `, two + `{"N":3} ` + "\n" + `{"N":4}` + "\n", []number{{1}, {2}, {3}}},
		{two + "  ", two + `{"N":4}` + "\n", []number{{1}, {2}}},
		{`{"N":12345`, `{"N":4}` + "\n", nil},
	} {
		if err := os.WriteFile(path, []byte(c.there), 0o666); err != nil {
			t.Fatal(err)
		}
		if c.there == "" {
			_ = os.Remove(path)
		}
		l, got, err := open()
		if err != nil || !slices.Equal(got, c.want) {
			t.Fatalf("%q: %v, %v (want %v)", c.there, got, err, c.want)
		}
		err = l.Add(number{4})
		if text, _ := os.ReadFile(path); err != nil || string(text) != c.after {
			t.Errorf("%q and 4: %q, %v (want %q)", c.there, text, err, c.after)
		}
		if err := errors.Join(l.Add(number{5}), l.Add(number{6})); err != nil {
			t.Error(err)
		}
		if _, got, err := open(); err != nil || !slices.Equal(got, append(c.want, number{4}, number{5}, number{6})) {
			t.Errorf("%q: %v, %v", c.there, got, err)
		}
	}
	for text, line := range map[string]string{`{"N":1}` + "\nx\n{}\n": "2", `{"N":1}` + "\n\n" + `{"N":10}` + "\n": "3", `{"N":1}` + "\n" + `{"M":2}`: "2"} {
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		if _, _, err := open(); err == nil || err.Error() != path+": line "+line+" isn't a small number (mend or remove the line)" {
			t.Errorf("%q: %v", text, err)
		}
	}
	below := &Lines[int]{path: filepath.Join(path, "b")}
	if err := below.Add(1); err == nil || strings.Count(err.Error(), path) != 1 || below.size != 0 {
		t.Errorf("a file in a file: %v", err)
	}
}
