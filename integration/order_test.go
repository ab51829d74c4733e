package integration

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A package's comment gives the order in which its files are read: each file that it names is there.
func TestReadingOrders(t *testing.T) {
	named := regexp.MustCompile(`\b[a-z][a-z0-9_]*\.go\b`)
	seen := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() != ".." && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".go":
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		for _, name := range named.FindAllString(file.Doc.Text(), -1) {
			seen++
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), name)); err != nil && !strings.HasPrefix(name, "zz_") {
				t.Errorf("%s names %s, which isn't there", path, name)
			}
		}
		return nil
	})
	if err != nil || seen == 0 {
		t.Fatal(seen, err)
	}
}
