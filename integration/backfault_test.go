package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

// Mistakes on the way back end as those in training do.
func TestMistakesOnTheWayBack(t *testing.T) {
	t.Parallel()
	p := newBack(t)
	sound := p.file("models", "channel.safetensors")
	p.write("cut.safetensors", string(sound[:len(sound)/2]))
	p.write("head.safetensors", string(sound[:3000]))
	bad := bytes.Clone(sound)
	bad[len(bad)-100] ^= 1
	p.write("flipped.safetensors", string(bad))
	p.write("group.yaml", strings.NewReplacer("identity", "models/group.safetensors", "blend", "exact").Replace(back))
	p.write("random.yaml", strings.Replace(back, "tile:    {", "tile:    {mode: random, ", 1))
	p.write("over.yaml", strings.Replace(back, "{dir: out}", `{dir: scans, suffix: ""}`, 1))
	p.write("turned.yaml", strings.Replace(back, "  - batch:", "  - augment: {flip: [x]}\n  - batch:", 1))
	p.write("nomerge.yaml", strings.Replace(back, "  - merge:   {mode: blend}\n", "", 1))
	p.write("reshaped.yaml", "model: {hidden: 8, groups: 4}\n"+strings.Replace(back, "identity", "models/channel.safetensors", 1))
	before := map[string]string{}
	for _, e := range p.entries("scans") {
		before[e] = p.text("scans", e)
	}
	for _, c := range []struct {
		args  string
		words []string
	}{
		{"back.yaml infer.checkpoint=none.safetensors", []string{"infer.checkpoint=none.safetensors", "no such file"}},
		{"back.yaml infer.checkpoint=scans", []string{"infer.checkpoint=scans", "not a file"}},
		{"back.yaml infer.checkpoint=back.yaml", []string{"back.yaml", "not a safetensors file"}},
		{"back.yaml infer.checkpoint=scans/" + plain, []string{plain, "not a JSON object"}},
		{"back.yaml infer.checkpoint=head.safetensors", []string{"head.safetensors", "torn"}},
		{"back.yaml infer.checkpoint=cut.safetensors", []string{"cut.safetensors"}},
		{"back.yaml infer.checkpoint=flipped.safetensors", []string{"flipped.safetensors", "damaged", "SHA-256"}},
		{"back.yaml infer.device=cuda:0", []string{"infer.device=cuda:0", "CUDA"}},
		{"group.yaml", []string{"group.yaml:6: merge.mode: exact needs a model with norm: channel", "norm: group", "set it to blend"}},
		{"reshaped.yaml", []string{"reshaped.yaml:1: model: ", "models/channel.safetensors", "leave this block out"}},
		{"nomerge.yaml", []string{"nomerge.yaml:6: measure takes Slab, but infer (line 5) gives Output"}},
		{"random.yaml", []string{"random.yaml:3: tile.mode: random: infer needs every voxel; set it to grid"}},
		{"over.yaml", []string{"over.yaml:8: write.dir: scan phantom-0001.nii.gz: would be written over the scan", "want another dir or suffix"}},
		{"turned.yaml", []string{"turned.yaml:4: augment: infer is to give scans back as they are; leave augment out"}},
		{"over.yaml write.gz=false", []string{"would be written over the scan " + plain}},
		{"back.yaml write.dir=train.yaml", []string{"write.dir: train.yaml: not a directory", "choose a folder that can be written to"}},
		{"back.yaml write.dir=train.yaml run.dir=run", []string{"write.dir: ", "train.yaml: not a directory"}},
		{"back.yaml run.dir=train.yaml", []string{"run.dir: train.yaml: not a directory"}},
		{"back.yaml write.suffix=a/b", []string{"write.suffix=a/b", "isn't part of a file's name"}},
		{"back.yaml infer.checkpoint=models/channel.safetensors read.window_hu=[-1000,400]", []string{"read.window_hu=[-1000,400]", "was trained in [-1000 1000]", "leave it out"}},
		{"back.yaml read.window_hu=[-40000,40000]", []string{"back.yaml:8: write.dtype: int16 can't hold", "want float32"}},
		{"back.yaml measure.window_hu=[-2000,400]", []string{"measure.window_hu=[-2000,400]", "reaches beyond [-1000 1000]"}},
		{"back.yaml infer.checkpoint=models/channel.safetensors tile.patch=[15,16,8]", []string{"tile.patch=[15,16,8]: 15 along x is not a multiple", "14 and 16"}},
		{"back.yaml infer.checkpoint=models/channel.safetensors merge.mode=exact tile.patch=[16,12,16]", []string{
			"tile.patch=[16,12,16]: scan phantom-0001.nii.gz: 12 along y is too small", "halo of 6", "want a patch of at least 14"}},
		{"back.yaml tile.stride=[20,16,8]", []string{"tile.stride=[20,16,8]: 20 is larger than patch 16 along x"}},
		{"back.yaml merge.window=han", []string{"merge.window=han", "hann"}},
	} {
		p.refused(2, strings.Fields(c.args), c.words...)
	}
	for e := range before {
		if before[e] != p.text("scans", e) {
			t.Errorf("scans/%s was changed", e)
		}
	}
	for _, e := range p.entries("scans") {
		if before[e] == "" && strings.Contains(e, ".nii") {
			t.Errorf("scans/%s came", e)
		}
	}
	p.refused(3, strings.Fields("back.yaml read.scans=missing"), "read.scans: missing: no such file or folder")
}

// entries are the names in a folder, hidden ones too.
func (p *place) entries(dir string) (names []string) {
	p.Helper()
	list, err := os.ReadDir(p.path(dir))
	p.check(err)
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// Volumes may stand beside their scans.
func TestWrittenBesideTheScans(t *testing.T) {
	t.Parallel()
	p := newBack(t)
	p.must("back.yaml", "write.dir=scans", "run.dir=run")
	if n := len(p.entries("scans")); n != 14 {
		t.Errorf("%d files of 7 scans and 7 volumes: %v", n, p.entries("scans"))
	}
	p.must("back.yaml", "read.scans=scans/phantom-000?.*")
	for name := range p.recons("out") {
		if p.text("scans", stem(name)+"_recon.nii.gz") != p.text("out", stem(name)+"_recon.nii.gz") {
			t.Errorf("%s differs", name)
		}
	}
}

// A scan that can't be read is set aside; the others are written. Once it is mended the same command takes it.
func TestBadScansOnTheWayBack(t *testing.T) {
	t.Parallel()
	p := newBack(t)
	whole := p.file("scans", "phantom-0003.nii.gz")
	p.spoil("phantom-0003.nii.gz")
	o := p.must("back.yaml")
	if r := p.reasons("out"); len(r) != 1 || !strings.Contains(r["phantom-0003.nii.gz"], "corrupt") {
		t.Errorf("quarantined: %v", r)
	}
	if n := len(p.recons("out")); n != 6 || strings.Contains(o.stdout, "0003") || !strings.Contains(o.stdout, "0004") {
		t.Errorf("%d are written; measured:\n%s", n, o.stdout)
	}
	p.swept("out")
	p.refused(3, []string{"back.yaml", "read.bad_share=0", "write.dir=strict"}, "1 of 7 scans are bad", "bad_share 0", "phantom-0003.nii.gz")
	p.swept("strict")
	p.refused(3, []string{"back.yaml", "read.scans=scans/phantom-0003.nii.gz", "write.dir=alone"}, "all 1 scans are bad", "alone/quarantine.jsonl")
	p.write("scans/phantom-0003.nii.gz", string(whole))
	p.must("back.yaml", "write.dir=out")
	p.must("back.yaml", "write.dir=new")
	if n := p.sameFiles("out", "new"); n != 7 || len(p.reasons("out")) > 0 {
		t.Errorf("%d are written, quarantined: %v", n, p.reasons("out"))
	}
}

// Stopped in the middle, a run leaves whole volumes only; the same command does the rest.
func TestStoppedOnTheWayBack(t *testing.T) {
	t.Parallel()
	p := newBack(t)
	p.must("phantom", "scans", "--size", "48,40,32", "--count", "3", "--seed", "20") // the last ones, and the slowest
	for _, mode := range []string{"blend", "exact"} {
		words := []string{"back.yaml", "infer.checkpoint=models/channel.safetensors", "merge.mode=" + mode, "tile.patch=[20,20,20]", "tile.stride=[12,12,12]"}
		if mode == "exact" {
			words[4] = "tile.stride=[0,0,0]"
		}
		whole, dir := "whole-"+mode, "out-"+mode
		p.must(append(words, "write.dir="+whole)...)
		words = append(words, "write.dir="+dir)
		for i, s := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
			r := p.start(words...)
			from := len(p.events(dir, "written"))
			if !r.until(func() bool { return len(p.events(dir, "written")) > from+i }) {
				t.Fatalf("over before it could be stopped: %s", r.stderr.String())
			}
			r.signal(s)
			p.tells(r.wait(), 75, "interrupted", "what is written is whole", "the same command does the rest")
			p.swept(dir)
			n := 0
			for _, name := range p.entries(dir) {
				if strings.Contains(name, ".nii") {
					n++
					if p.text(dir, name) != p.text(whole, name) {
						t.Errorf("%s: %s isn't whole", mode, name)
					}
				}
			}
			if n == 0 || n >= 10 {
				t.Fatalf("%s: %d of 10 volumes were written before the signal told", mode, n)
			}
		}
		p.must(words...)
		p.sameFiles(whole, dir)
		var a, b any
		p.check(json.Unmarshal(p.file(dir, "measures.json"), &a))
		p.check(json.Unmarshal(p.file(whole, "measures.json"), &b))
		if fmt.Sprint(a) != fmt.Sprint(b) {
			t.Errorf("%s: measured %v and %v", mode, a, b)
		}
	}
}
