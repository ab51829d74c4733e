package integration

import (
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A network folder that is away for a moment, when it is searched, while headers are read and while scans are streamed, costs
// seconds and no scan.
func TestScansAreReadAgain(t *testing.T) {
	t.Parallel()
	p := newBack(t)
	r, g, _, err := p.startGated("back.yaml")
	if err != nil {
		r.wait()
		t.Skip(err)
	}
	var mu sync.Mutex
	calls := map[call]int{}
	g.watch(func(c call) error {
		mu.Lock()
		defer mu.Unlock()
		below := strings.HasPrefix(c.path, p.path("scans")+"/")
		if !below && (c.name != "open" || c.path != p.path("scans")) {
			return nil
		}
		calls[c]++
		if c.name == "open" && !below && calls[c] == 1 || c.name == "read" && (calls[c] == 1 || calls[c] == 3) {
			return unix.ESTALE
		}
		return nil
	})
	o := r.wait()
	if o.code != 0 || strings.Contains(o.stderr, "quarantine") {
		t.Fatalf("exit %d: %s\n%s", o.code, o.said(), o.stderr)
	}
	again := strings.Count(o.stderr, "read again after: stale")
	scans, _ := filepath.Glob(p.path("scans", "*"))
	out, _ := filepath.Glob(p.path("out", "*.nii*"))
	if again == 0 || len(out) != len(scans) || calls[call{"open", p.path("scans")}] < 2 {
		t.Errorf("%d of %d scans came back, %d were read again, calls %v:\n%s", len(out), len(scans), again, calls, o.stderr)
	}
	p.must("back.yaml", "write.dir=undisturbed")
	for _, path := range out {
		if name := filepath.Base(path); p.text("out", name) != p.text("undisturbed", name) {
			t.Errorf("%s isn't what it is without a failure", name)
		}
	}
}
