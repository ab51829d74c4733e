package integration

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A disk that fills up in the middle of a volume ends the run without a part of it; with room the same command goes on.
func TestFullDiskOnTheWayBack(t *testing.T) {
	t.Parallel()
	p := newCodes(t)
	disk := p.path("disk")
	p.check(os.Mkdir(disk, 0o777))
	if err := unix.Mount("none", disk, "tmpfs", 0, "size=200k"); errors.Is(err, unix.EPERM) {
		t.Skip("no right to mount a small disk")
	} else {
		p.check(err)
	}
	defer func() { _ = unix.Unmount(disk, unix.MNT_DETACH) }()
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
		p.check(unix.Mount("none", disk, "tmpfs", unix.MS_REMOUNT, "size=100m"))
		p.must(append(words, c.key+"="+dir)...)
		if got := len(p.entries(dir)); got != 10 {
			t.Errorf("%d of 10 in the end", got)
		}
		p.check(os.RemoveAll(p.path(dir)))
		p.check(unix.Mount("none", disk, "tmpfs", unix.MS_REMOUNT, "size=200k"))
	}
}
