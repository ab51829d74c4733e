package integration

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// file reads a file of the place as bytes.
func (p *place) file(name ...string) []byte { return []byte(p.text(name...)) }

// spoil overwrites a scan with some of its bytes flipped, so that its header is still good.
func (p *place) spoil(name string) {
	p.Helper()
	b := p.file("scans", name)
	for i := len(b) / 2; i < len(b)/2+64; i++ {
		b[i] ^= 0x5a
	}
	p.write(filepath.Join("scans", name), string(b))
}

// plain is the name of the scan that isn't compressed.
const plain = "phantom-0006.nii"

// header changes int16 fields of the plain scan's header.
func (p *place) header(fields map[int]int16, more int) string {
	p.Helper()
	b := p.file("scans", plain)
	for at, v := range fields {
		binary.LittleEndian.PutUint16(b[at:], uint16(v))
	}
	return string(append(b, make([]byte, more)...))
}

func (p *place) reasons(dir string) map[string]string {
	p.Helper()
	reasons := map[string]string{}
	for _, e := range p.lines(dir, "quarantine.jsonl") {
		name, reason := e["scan"].(string), e["reason"].(string)
		if reasons[name] != "" || e["path"] == "" {
			p.Errorf("%s/quarantine.jsonl: %v", dir, e)
		}
		reasons[name] = reason
	}
	return reasons
}

func TestBadScansAreSetAside(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	var text bytes.Buffer
	z := gzip.NewWriter(&text)
	_, err := z.Write(bytes.Repeat([]byte("not an image\n"), 100))
	p.check(err)
	p.check(z.Close())
	good := p.file("scans", "phantom-0001.nii.gz")
	p.write("scans/cut.nii.gz", string(good[:len(good)/2]))
	p.write("scans/text.nii.gz", text.String())
	p.write("scans/junk.nii.gz", strings.Repeat("junk", 200))
	p.write("scans/empty.nii", "")
	p.write("scans/rgb.nii", p.header(map[int]int16{70: 128, 72: 24}, len(p.file("scans", plain))))
	p.write("scans/frames.nii", p.header(map[int]int16{40: 4, 48: 2}, len(p.file("scans", plain))))
	p.spoil("phantom-0003.nii.gz")

	p.must("train.yaml")
	reasons := p.reasons("run")
	for name, want := range map[string]string{
		"cut.nii.gz": "ends", "text.nii.gz": "not NIfTI", "junk.nii.gz": "not NIfTI", "empty.nii": "empty", "rgb.nii": "RGB",
		"frames.nii": "frame: 0", "phantom-0003.nii.gz": "scans/phantom-0003.nii.gz: ",
	} {
		if !strings.Contains(reasons[name], want) {
			t.Errorf("%s: %q doesn't say %q", name, reasons[name], want)
		}
	}
	if len(reasons) != 7 {
		t.Errorf("quarantined: %v", reasons)
	}
	p.reports("run", "Without 7 of the scans, which couldn&#39;t be read (quarantine.jsonl).")
	if n := len(p.events("run", "quarantine")); n != 7 {
		t.Errorf("%d of 7 are in the log", n)
	}

	// The same faults, killed and resumed.
	words := []string{"train.yaml", "run.dir=killed"}
	for range 3 {
		r := p.start(words...)
		goal := p.reached("killed") + 6
		r.until(func() bool { return p.reached("killed") >= goal })
		r.kill()
	}
	p.must(words...)
	p.sameRun("run", "killed")
	if n := len(p.reasons("killed")); n != 7 {
		t.Errorf("%d are in quarantine after a resume (want 7)", n)
	}

	p.refused(3, []string{"train.yaml", "run.dir=strict", "read.bad_share=0.2"}, "of 13 scans are bad", "bad_share 0.2", "quarantine.jsonl")
	p.refused(3, []string{"train.yaml", "run.dir=none", "read.bad_share=0", "read.scans=scans/rgb.nii"}, "rgb.nii", "RGB")
	p.must("train.yaml", "run.dir=frame", "read.frame=0", "train.max_steps=2")
	if r := p.reasons("frame"); r["frames.nii"] != "" || r["rgb.nii"] == "" {
		t.Errorf("with read.frame: %v", r)
	}
}

// A scan that is spoilt between a kill and the resume is set aside, and counts as one of all that were found.
func TestScanSpoiltBetweenKillAndResume(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	for _, name := range []string{"a", "b", "c"} {
		p.write("scans/"+name+".nii", "no image")
	}
	words := []string{"train.yaml", "read.bad_share=0.39", "shuffle.volumes=3"} // 3 of 10, and one more
	r := p.start(words...)
	if !r.until(func() bool { return p.reached("run") >= 6 }) {
		t.Fatalf("over too soon: %s", r.stderr.String())
	}
	r.kill()
	p.spoil("phantom-0004.nii.gz")
	for range 2 { // again: the cursor of a checkpoint written after the loss stays true
		r := p.start(words...)
		goal := p.reached("run") + 5
		r.until(func() bool { return p.reached("run") >= goal })
		r.kill()
		p.sound("run")
	}
	p.check(os.CopyFS(p.path("copy"), os.DirFS(p.path("run"))))
	p.must(words...)
	p.steps("run")
	if reasons := p.reasons("run"); len(reasons) != 4 || !strings.Contains(reasons["phantom-0004.nii.gz"], "phantom-0004") {
		t.Errorf("quarantined: %v", reasons)
	}
	// From where it was lost, a kill more or less changes nothing.
	words = append(words, "run.dir=copy")
	r = p.start(words...)
	goal := p.reached("copy") + 7
	r.until(func() bool { return p.reached("copy") >= goal })
	r.kill()
	p.must(words...)
	p.sameRun("run", "copy")
}

// Scans that aren't there when a run is resumed, because a disk isn't mounted, are no bad scans.
func TestScansThatMoved(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.must("train.yaml", "run.dir=whole", "train.schedule=constant", "train.max_steps=12")
	p.must("train.yaml", "train.schedule=constant", "train.max_steps=6")
	p.check(os.Rename(p.path("scans"), p.path("elsewhere")))
	words := []string{"train.yaml", "train.schedule=constant", "train.max_steps=12"}
	p.refused(3, words, "read.scans: scans: no such file or folder")
	p.check(os.Mkdir(p.path("scans"), 0o777))
	p.refused(3, words, "read.scans: scans: the folder is empty")
	p.write("elsewhere/another.nii", p.text("elsewhere", plain))
	p.must(append(words, "read.scans=elsewhere")...)
	if r := p.reasons("run"); len(r) > 0 {
		t.Errorf("quarantined: %v", r)
	}
	p.sameEnd("whole", "run")
	if !strings.Contains(p.text("run", "log.jsonl"), "were not there when the run began") {
		t.Error("the scan that is left out isn't mentioned")
	}
}

// Held-out scans are set aside like others. What is measured, the baseline included, is measured on those that are left.
func TestHeldOutScansAreLost(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	words := []string{"train.yaml", "train.max_steps=40", `train.validate.scans=["*0002*", "*0005*", "*0007*"]`, "train.validate.patches=20"}
	r := p.start(words...)
	if !r.until(func() bool { return p.reached("run") >= 12 }) { // one validation has three scans
		t.Fatal(r.stderr.String())
	}
	p.spoil("phantom-0005.nii.gz")
	if o := r.wait(); o.code != 0 {
		t.Fatalf("exit %d: %s", o.code, o.said())
	}
	_, whole := p.steps("run")
	p.must(append(words, "run.dir=two")...)
	_, two := p.steps("two")
	p.sameEnd("run", "two")
	p.sameEntries(whole[3:], two[3:])
	if whole[0]["val/scans"] != 3.0 || whole[3]["val/scans"] != 2.0 || two[0]["val/scans"] != 2.0 {
		t.Errorf("%v, %v and %v scans", whole[0]["val/scans"], whole[3]["val/scans"], two[0]["val/scans"])
	}
	p.spoil("phantom-0002.nii.gz")
	p.spoil("phantom-0007.nii.gz")
	p.must(append(words, "run.dir=none")...)
	if _, v := p.steps("none"); len(v) > 0 {
		t.Errorf("validated on %v", v)
	}
	if r := p.reasons("none"); len(r) != 3 {
		t.Errorf("quarantined: %v", r)
	}
	p.sameEnd("run", "none")
}

// A scan that is lost while it is read ahead for the next epoch keeps its places in this one.
func TestScanLostAheadOfItsEpoch(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	words := []string{"train.yaml", "shuffle.volumes=1", "read.ahead=3", "checkpoint.every=1"}
	p.must(append(words, "run.dir=first", "train.max_steps=1")...)
	first := p.final("first").Tags[0].Scan
	lost := func(dir string) *process {
		r := p.start(append(words, "run.dir="+dir)...)
		if !r.until(func() bool { return p.reached(dir) >= 1 }) {
			t.Fatalf("over too soon: %s", r.stderr.String())
		}
		b := p.file("scans", first)
		p.write(filepath.Join("scans", first), "spoilt")
		r.until(func() bool { return len(p.lines(dir, "quarantine.jsonl")) > 0 })
		p.write(filepath.Join("scans", first), string(b)) // a new file, in any case: another time of modification
		return r
	}
	isLost := func(dir string) bool { return len(p.lines(dir, "quarantine.jsonl")) == 1 }
	for try := 0; try < 8 && !isLost("whole"); try++ {
		p.check(os.RemoveAll(p.path("whole")))
		if o := lost("whole").wait(); o.code != 0 {
			t.Fatalf("exit %d: %s", o.code, o.said())
		}
	}
	hit := false
	for try := 0; try < 8 && !hit; try++ {
		p.check(os.RemoveAll(p.path("run")))
		lost("run").kill()
		m := p.lines("run", "metrics.jsonl")
		if hit = isLost("run") && m[len(m)-1]["epoch"].(float64) == 0; !hit {
			continue
		}
		p.must(append(words, "run.dir=run")...)
		p.sameRun("whole", "run")
	}
	if !hit {
		t.Error("no kill hit the epoch before the loss")
	}
}
