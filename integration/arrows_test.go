package integration

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const module = "github.com/flowrun/flowrun"

// house says which rooms a room's packages may import, its own beside them. A room is a folder: of stages and gpu the
// folders below; the package gpu is a room of its own. The first row that matches holds. Arrows point down: no row
// names one above it.
var house = []struct{ room, may string }{
	{"integration", "flows configs stages/* gpu gpu/*"},
	{"cmd", "flows configs"},
	{"flows", "configs stages/* gpu gpu/cpu gpu/cuda gpu/nn gpu/optim gpu/vqgan"},
	{"configs", ""},
	{"stages/checkpoint", "stages/files stages/safetensors stages/volume"},
	{"stages/codes", "stages/files stages/safetensors stages/volume"},
	{"stages/files", ""},
	{"stages/observe", "stages/files stages/pipe stages/volume"},
	{"stages/pipe", ""},
	{"stages/read", "stages/files stages/nifti stages/volume"},
	{"stages/train", "stages/files stages/volume gpu gpu/nn gpu/optim gpu/vqgan"},
	{"stages/infer", "stages/volume gpu gpu/vqgan"},
	{"stages/torch", "stages/safetensors stages/volume"},
	{"stages/weights", "stages/safetensors stages/torch stages/volume gpu/vqgan"},
	{"stages/write", "stages/files stages/nifti stages/volume"},
	{"stages/volume", ""},
	{"stages/*", "stages/files stages/volume"},
	{"gpu/vqgan", "gpu/nn gpu/optim gpu"},
	{"gpu/*", "gpu"},
	{"gpu", ""},
}

// guests are the packages from outside that only some rooms may import.
var guests = []struct{ pkg, rooms string }{
	{"github.com/reugn/go-streams", "stages/pipe"},
	{"github.com/rs/zerolog", "cmd flows stages/observe"},
	{"github.com/spf13", "cmd"},
	{"github.com/prometheus", "stages/observe"},
	{"gorgonia.org/cu", "gpu/cuda"},
	{"C", "gpu/cuda"},
	{"github.com/mmcloughlin/avo", "gpu/cpu"},
	{"github.com/nats-io", "stages/queue"},
	{"pgregory.net/rapid", "gpu/enginetest"},
	{"testing", "gpu/enginetest"},
}

// arrow is an import of a file that isn't a test.
type arrow struct {
	file string
	line int
	from string // room
	pkg  string // what it imports
}

// arrows reads every Go file of the module, whatever its build tags.
func arrows(tree fs.FS) ([]arrow, error) {
	var all []arrow
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.ContainsAny(path.Base(name)[:1], "._") || path.Base(name) == "testdata"):
			return fs.SkipDir
		case d.IsDir() || path.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		text, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, name, text, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range file.Imports {
			pkg, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			all = append(all, arrow{name, files.Position(i.Pos()).Line, room(path.Dir(name)), pkg})
		}
		return nil
	})
	return all, err
}

// room is the room of a package, by its path in the module.
func room(pkg string) string {
	parts := strings.Split(pkg, "/")
	if len(parts) > 1 && (parts[0] == "stages" || parts[0] == "gpu") {
		return path.Join(parts[:2]...)
	}
	return parts[0]
}

// may returns the row of a room.
func may(room string) (rooms []string, known bool) {
	for _, row := range house {
		if match(row.room, room) {
			return strings.Fields(row.may), true
		}
	}
	return nil, false
}

func match(pattern, room string) bool {
	ok, err := path.Match(pattern, room)
	return ok && err == nil
}

// fault says what is wrong with a, or nothing.
func (a arrow) fault() string {
	at := fmt.Sprintf("%s:%d: %s imports %s: ", a.file, a.line, a.from, a.pkg)
	for _, guest := range guests {
		if (a.pkg == guest.pkg || strings.HasPrefix(a.pkg, guest.pkg+"/")) && !slices.Contains(strings.Fields(guest.rooms), a.from) {
			return at + "only these do: " + guest.rooms
		}
	}
	inside, ours := strings.CutPrefix(a.pkg+"/", module+"/")
	if !ours {
		return ""
	}
	rooms, known := may(a.from)
	to := room(strings.TrimSuffix(inside, "/"))
	switch {
	case a.from == to:
		return ""
	case !known:
		return at + "the room has no row in the table of integration/arrows_test.go"
	case slices.ContainsFunc(rooms, func(p string) bool { return match(p, to) }):
		return ""
	case len(rooms) == 0:
		return at + "it may import nothing of flowrun"
	}
	return at + "it may import " + strings.Join(rooms, ", ")
}

func TestArrowsPointDown(t *testing.T) {
	all, err := arrows(os.DirFS(".."))
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatal("no Go files")
	}
	for _, a := range all {
		if fault := a.fault(); fault != "" {
			t.Error(fault)
		}
	}
}

// No two rooms may need each other, by whatever way.
func TestTheTableHasNoCycle(t *testing.T) {
	var rooms []string // each that the table names, and one more of each kind
	for _, row := range house {
		for _, name := range append(strings.Fields(row.may), row.room) {
			rooms = append(rooms, strings.ReplaceAll(name, "*", "any"))
		}
	}
	slices.Sort(rooms)
	rooms = slices.Compact(rooms)
	done := map[string]bool{}
	var walk func(way []string)
	walk = func(way []string) {
		from := way[len(way)-1]
		if slices.Contains(way[:len(way)-1], from) {
			t.Errorf("a cycle: %s", strings.Join(way, " → "))
			return
		}
		if done[from] {
			return
		}
		row, _ := may(from)
		for _, to := range rooms {
			if to != from && slices.ContainsFunc(row, func(p string) bool { return match(p, to) }) {
				walk(append(slices.Clone(way), to))
			}
		}
		done[from] = true
	}
	for _, r := range rooms {
		walk([]string{r})
	}
}

func TestArrowsAreSeen(t *testing.T) {
	file := func(imports ...string) *fstest.MapFile {
		text := "//go:build never\n\npackage x\n"
		for _, i := range imports {
			text += "import _ " + strconv.Quote(i) + "\n"
		}
		return &fstest.MapFile{Data: []byte(text)}
	}
	all, err := arrows(fstest.MapFS{
		"stages/tile/tile.go":         file("fmt", module+"/stages/volume", module+"/configs"),
		"stages/tile/tile_test.go":    file(module + "/flows"),
		"stages/tile/testdata/a.go":   file(module + "/flows"),
		"stages/tile/deep/deep.go":    file(module+"/stages/tile", module+"/stages/read"),
		"stages/read/read.go":         file(module+"/stages/nifti", "github.com/reugn/go-streams/flow"),
		"stages/train/train.go":       file(module+"/gpu", module+"/gpu/vqgan", module+"/gpu/cpu"),
		"gpu/gpu.go":                  file(module + "/stages/volume"),
		"gpu/cpu/internal/gen/gen.go": file(module+"/gpu", module+"/gpu/cpu", "github.com/mmcloughlin/avo/build"),
		"gpu/nn/nn.go":                file(module+"/gpu/vqgan", "C"),
		"configs/configs.go":          file(module+"extra", module),
		"attic/attic.go":              file(module + "/gpu"),
		"flows/flows.go":              file(module+"/stages/pipe", module+"/cmd/flowrun", "testing"),
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range all {
		if fault := a.fault(); fault != "" {
			got = append(got, strings.ReplaceAll(fault, module, "M"))
		}
	}
	want := []string{
		"attic/attic.go:4: attic imports M/gpu: the room has no row in the table of integration/arrows_test.go",
		"configs/configs.go:5: configs imports M: it may import nothing of flowrun",
		"flows/flows.go:5: flows imports M/cmd/flowrun: it may import configs, stages/*, gpu, gpu/cpu, gpu/cuda, gpu/nn, gpu/optim, gpu/vqgan",
		"flows/flows.go:6: flows imports testing: only these do: gpu/enginetest",
		"gpu/gpu.go:4: gpu imports M/stages/volume: it may import nothing of flowrun",
		"gpu/nn/nn.go:4: gpu/nn imports M/gpu/vqgan: it may import gpu",
		"gpu/nn/nn.go:5: gpu/nn imports C: only these do: gpu/cuda",
		"stages/read/read.go:5: stages/read imports github.com/reugn/go-streams/flow: only these do: stages/pipe",
		"stages/tile/deep/deep.go:5: stages/tile imports M/stages/read: it may import stages/files, stages/volume",
		"stages/tile/tile.go:6: stages/tile imports M/configs: it may import stages/files, stages/volume",
		"stages/train/train.go:6: stages/train imports M/gpu/cpu: it may import stages/files, stages/volume, gpu, gpu/nn, gpu/optim, gpu/vqgan",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
