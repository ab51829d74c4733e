package integration

import (
	"os"
	"strings"
	"testing"
)

// A disk that fills up in the middle of a volume ends the run without a part of it; with room the same command goes on.
func TestFullDiskOnTheWayBack(t *testing.T) {
	t.Parallel()
	p := newCodes(t)
	resize := p.disk("200k")
	for _, c := range []struct{ file, key, stage, ending string }{
		{"back.yaml", "write.dir", "write", ".nii"},
		{"encode.yaml", "save.dir", "save", ".safetensors"},
	} {
		words := append([]string{c.file, "run.dir=run-" + c.stage}, map[string][]string{"write": plainly, "save": {"save.latents=true"}}[c.stage]...)
		p.must(append(words, c.key+"=whole-"+c.stage)...)
		dir := "disk/" + c.stage
		p.refused(1, append(words, c.key+"="+dir), c.stage+": ", dir+"/", "no space left on device")
		n := 0
		for _, name := range p.entries(dir) {
			if strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".tmp") {
				t.Errorf("%s was left", name)
			}
			if n++; p.text(dir, name) != p.text("whole-"+c.stage, name) {
				t.Errorf("%s isn't whole", name)
			}
		}
		if n == 0 || n >= 10 {
			t.Errorf("%d of 10 fit", n)
		}
		resize("100m")
		p.must(append(words, c.key+"="+dir)...)
		if got := len(p.entries(dir)); got != 10 {
			t.Errorf("%d of 10 in the end", got)
		}
		p.check(os.RemoveAll(p.path(dir)))
		resize("200k")
	}
}
