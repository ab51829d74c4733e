package integration

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Scans to codes, and codes to scans.
const (
	toCodes = `flow:
  - read:   {scans: [scans]}
  - encode: {checkpoint: models/channel.safetensors}
  - save:   {dir: codes}
`
	fromCodes = `flow:
  - load:   {codes: [codes]}
  - decode: {checkpoint: models/channel.safetensors}
  - merge:  {window: hann}
  - write:  {dir: decoded}
`
)

// newCodes is a place with back.yaml, encode.yaml and decode.yaml.
func newCodes(t *testing.T) *place {
	t.Helper()
	p := newBack(t)
	p.odd()
	p.write("encode.yaml", toCodes)
	p.write("decode.yaml", fromCodes)
	return p
}

// Codes give back what reconstruct gives in exact mode, whatever tiles either was cut into.
func TestCodesAreTheExactVolume(t *testing.T) {
	t.Parallel()
	p := newCodes(t)
	p.check(os.MkdirAll(p.path("scans", "ward", "b"), 0o777))
	p.check(os.Rename(p.path("scans", "odd.nii"), p.path("scans", "ward", "b", "odd.nii")))
	for _, model := range []string{"channel", "spacing"} {
		checkpoint := "checkpoint=models/" + model + ".safetensors"
		words := append([]string{"back.yaml", "infer." + checkpoint, "merge.mode=exact", "tile.patch=[20,22,14]", "tile.stride=[0,0,0]"}, plainly...)
		p.must(append(words, "write.dir=exact-"+model)...)
		p.must("encode.yaml", "encode."+checkpoint, "save.dir=codes-"+model)
		p.must("encode.yaml", "encode."+checkpoint, "encode.patch=[14,40,16]", "save.dir=other-"+model, "save.latents=true")
		for i, codes := range []string{"codes-", "other-"} {
			words := append([]string{"decode.yaml", "decode." + checkpoint, "load.codes=" + codes + model}, plainly...)
			dir := "decoded-" + codes + model
			p.must(append(words, "write.dir="+dir, []string{"decode.patch=[64,64,64]", "decode.patch=[14,14,18]"}[i])...)
			if n := p.sameFiles("exact-"+model, dir); n != 10 {
				t.Errorf("%s: %d volumes of 10 scans", model, n)
			}
		}
		// What was kept beside the codes decodes to the same, where nothing was edited.
		p.must(append([]string{"decode.yaml", "decode." + checkpoint, "load.codes=other-" + model, "load.use=quantised", "write.dir=quantised-" + model}, plainly...)...)
		p.sameFiles("exact-"+model, "quantised-"+model)
	}
	if info, err := os.Stat(p.path("codes-channel", "phantom-0006.codes.safetensors")); err != nil || info.Size() > 2*21*14*8+4096 {
		t.Errorf("42 × 28 × 16 voxels, 2352 codes: %v, %v", info, err)
	}
	p.refused(2, []string{"decode.yaml", "load.codes=codes-channel", "load.use=both"}, "load.use=both")
	p.refused(3, []string{"decode.yaml", "load.codes=codes-channel", "load.use=latents"}, "quarantine", `no tensor "latents" to decode`)
	p.must("decode.yaml", "load.codes=other-channel", "load.use=latents", "write.dir=latents")
	p.sameGrid("odd", p.picture("scans", "ward", "b", "odd.nii"), p.picture("latents", "ward", "b", "odd_recon.nii.gz"))
}

// A model with GroupNorm has codes of each tile: they give what reconstruct blends from the same tiles.
func TestCodesOfTilesAreTheBlend(t *testing.T) {
	t.Parallel()
	p := newCodes(t)
	const checkpoint = "checkpoint=models/group.safetensors"
	p.must("encode.yaml", "encode."+checkpoint, "encode.patch=[16,16,8]", "encode.stride=[12,12,8]")
	for _, window := range []string{"hann", "gaussian"} {
		p.must(append([]string{"back.yaml", "infer." + checkpoint, "merge.window=" + window, "write.dir=blend-" + window}, plainly...)...)
		p.must(append([]string{"decode.yaml", "decode." + checkpoint, "merge.window=" + window, "write.dir=decoded-" + window}, plainly...)...)
		if n := p.sameFiles("blend-"+window, "decoded-"+window); n != 10 {
			t.Errorf("%d volumes of 10 scans", n)
		}
	}
	if p.text("blend-hann", "odd_recon.nii") == p.text("blend-gaussian", "odd_recon.nii") {
		t.Error("the window doesn't matter")
	}
	// By default tiles are those of the training's patch, three quarters apart.
	p.must("encode.yaml", "encode."+checkpoint, "save.dir=default")
	p.must(append([]string{"decode.yaml", "decode." + checkpoint, "load.codes=default", "write.dir=decoded"}, plainly...)...)
	p.must(append([]string{"back.yaml", "infer." + checkpoint, "tile.stride=[0,0,0]", "write.dir=blend"}, plainly...)...)
	p.sameFiles("blend", "decoded")
}

// tensors is a file of codes as another program sees it.
type tensors struct {
	meta map[string]string
	head map[string]tensor
	data []byte
}

type tensor struct {
	Dtype   string `json:"dtype"`
	Shape   []int  `json:"shape"`
	Offsets [2]int `json:"data_offsets"`
}

func (p *place) tensors(name ...string) *tensors {
	p.Helper()
	b := p.file(name...)
	n := 8 + binary.LittleEndian.Uint64(b)
	f := &tensors{head: map[string]tensor{}, data: b[n:]}
	var raw map[string]json.RawMessage
	p.check(json.Unmarshal(b[8:n], &raw))
	for k, v := range raw {
		if k == "__metadata__" {
			p.check(json.Unmarshal(v, &f.meta))
			continue
		}
		var t tensor
		p.check(json.Unmarshal(v, &t))
		f.head[k] = t
	}
	return f
}

// of is the bytes of a tensor, to be edited.
func (f *tensors) of(name string) []byte {
	t := f.head[name]
	return f.data[t.Offsets[0]:t.Offsets[1]]
}

// put writes the file without care for the order or the spaces of its header, as other programs do.
func (f *tensors) put(p *place, name ...string) {
	p.Helper()
	all := map[string]any{"__metadata__": f.meta}
	for k, t := range f.head {
		all[k] = t
	}
	head, err := json.Marshal(all)
	p.check(err)
	p.check(os.MkdirAll(filepath.Dir(p.path(name...)), 0o777))
	p.write(filepath.Join(name...), string(slices.Concat(binary.LittleEndian.AppendUint64(nil, uint64(len(head))), head, f.data)))
}

const code1, recon1 = "phantom-0001.codes.safetensors", "phantom-0001_recon.nii.gz"

// Codes that another program edited decode, and say so; a sealed file that was edited is damaged.
func TestEditedCodes(t *testing.T) {
	t.Parallel()
	p := newCodes(t)
	p.must("encode.yaml", "save.latents=true", "read.scans=[scans/phantom-0001.nii.gz, scans/phantom-0004.nii.gz]")
	p.must("decode.yaml")
	whole := p.picture("decoded", recon1)
	differ := func(dir string) (n int) {
		t.Helper()
		out := p.picture(dir, recon1)
		p.sameGrid(dir, whole, out)
		for i, x := range whole.voxels {
			if out.voxels[i] != x {
				n++
			}
		}
		return n
	}
	unsealed := func(dir string) int { return len(p.events(dir, "unsealed")) }
	if unsealed("decoded") != 0 {
		t.Error("sealed codes are taken for edited ones")
	}

	f := p.tensors("codes", code1)
	if f.meta["sha256"] == "" || f.head["codes"].Dtype != "U16" || !slices.Equal(f.head["codes"].Shape, []int{8, 12, 16}) {
		t.Fatalf("%v, %v", f.meta["sha256"], f.head)
	}
	delete(f.meta, "sha256")
	f.put(p, "same", code1)
	p.must("decode.yaml", "load.codes=same", "write.dir=same-out")
	if n := differ("same-out"); n != 0 || unsealed("same-out") != 1 {
		t.Errorf("without a seal %d voxels differ, and %d were told", n, unsealed("same-out"))
	}

	// One code, in a corner: what changes is what the decoder sees of it.
	codes := f.of("codes")
	codes[0] = (codes[0] + 7) % 16
	f.put(p, "edited", code1)
	p.must("decode.yaml", "load.codes=edited", "write.dir=edited-out")
	n := differ("edited-out")
	if n == 0 || n == len(whole.voxels) {
		t.Errorf("%d of %d voxels changed", n, len(whole.voxels))
	}
	p.must("decode.yaml", "load.codes=edited", "load.use=quantised", "write.dir=quantised-out")
	if n := differ("quantised-out"); n != 0 {
		t.Errorf("the quantised latents weren't edited, but %d voxels are other", n)
	}
	// And one that the codebook hasn't.
	codes[0] = 16
	f.put(p, "beyond", code1)
	p.refused(3, []string{"decode.yaml", "load.codes=beyond", "write.dir=beyond-out"}, "all 1 scans are bad")
	if r := p.reasons("beyond-out")["phantom-0001"]; !strings.Contains(r, "16") {
		t.Errorf("set aside for %q", r)
	}

	// Sealed, but edited: set aside, the other decoded.
	b := p.file("codes", code1)
	b[len(b)-len(f.data)+f.head["quantised"].Offsets[0]] ^= 1
	p.write("codes/"+code1, string(b))
	p.must("decode.yaml", "write.dir=rest")
	if r := p.reasons("rest"); len(r) != 1 || !strings.Contains(r["phantom-0001"], "damaged") || !strings.Contains(r["phantom-0001"], "leave sha256 out") {
		t.Errorf("set aside: %v", r)
	}
	if w := p.recons("rest"); len(w) != 1 || w["phantom-0004"] == "" {
		t.Errorf("written: %v", w)
	}
	p.refused(3, []string{"decode.yaml", "load.bad_share=0", "write.dir=strict"}, "1 of 2 scans are bad", "bad_share 0", "damaged")
	p.swept("rest")
}

func TestMistakesWithCodes(t *testing.T) {
	t.Parallel()
	p := newCodes(t)
	p.must("encode.yaml", "read.scans=scans/phantom-0001.nii.gz")
	p.must("encode.yaml", "read.scans=scans/phantom-0001.nii.gz", "encode.checkpoint=models/group.safetensors", "save.dir=tiles")
	p.write("measured.yaml", strings.Replace(fromCodes, "  - write", "  - measure:\n  - write", 1))
	p.write("resaved.yaml", "flow:\n  - load: {codes: [codes]}\n  - save: {dir: again}\n")
	encode, _, _ := strings.Cut(toCodes, "  - save")
	_, decode, _ := strings.Cut(fromCodes, "codes: [codes]}\n")
	p.write("atonce.yaml", encode+decode)
	p.write("noload.yaml", strings.Replace(fromCodes, "  - load:   {codes: [codes]}\n", "", 1))
	p.write("nocodes.yaml", strings.Replace(fromCodes, "codes: [codes]", "use: codes", 1))
	p.check(os.Mkdir(p.path("empty"), 0o777))
	for _, c := range []struct {
		code  int
		args  string
		words []string
	}{
		{3, "decode.yaml decode.checkpoint=models/group.safetensors", []string{"decode: scan phantom-0001: codes: they are of model", "want the checkpoint and weights that they were made with"}},
		{3, "decode.yaml load.codes=tiles", []string{"decode: scan phantom-0001: codes: they are of model"}},
		{3, "decode.yaml decode.weights=raw", []string{"codes: they are of model"}}, // those were EMA's
		{3, "decode.yaml decode.checkpoint=identity", []string{"codes: they are of model", "not identity"}},
		{3, "decode.yaml load.codes=none", []string{"load.codes: none: no such file or folder"}},
		{3, "decode.yaml load.codes=empty", []string{"load.codes: empty: no .codes.safetensors file"}},
		{3, "decode.yaml load.codes=train.yaml", []string{"load.codes: none of 1 files can be used", "train.yaml"}},
		{3, "decode.yaml load.codes=models/channel.safetensors", []string{"models/channel.safetensors", "no file of codes"}},
		{2, "measured.yaml", []string{"measured.yaml:5: ", "codes have no scan beside them", "leave measure out"}},
		{2, "resaved.yaml", []string{"resaved.yaml:3: save: what load gives is saved already"}},
		{2, "atonce.yaml", []string{"atonce.yaml:4: decode: takes the codes that load gives", "mode: exact"}},
		{2, "noload.yaml", []string{"noload.yaml:2: the flow begins with decode, which takes Codes"}},
		{2, "nocodes.yaml", []string{"nocodes.yaml:2: load.codes: "}},
		{2, "encode.yaml encode.patch=[8,16,16]", []string{"encode.patch=[8,16,16]: scan ", "8 along x is too small", "want a patch of at least 14"}},
		{2, "encode.yaml encode.patch=[15,16,16]", []string{"encode.patch=[15,16,16]", "15 along x"}},
		{2, "encode.yaml encode.checkpoint=models/group.safetensors encode.stride=[12,20,8]", []string{"encode.stride=[12,20,8]: 20 is larger than patch 16 along y"}},
		{2, "decode.yaml decode.patch=[16,16,8]", []string{"decode.patch=[16,16,8]: scan phantom-0001: 8 along z is too small"}},
		{2, "encode.yaml encode.checkpoint=none.safetensors", []string{"encode.checkpoint=none.safetensors", "no such file"}},
		{2, "encode.yaml encode.checkpoint=codes/" + code1, []string{"not a checkpoint of flowrun"}},
		{2, "encode.yaml save.dir=train.yaml", []string{"save.dir: train.yaml: not a directory"}},
		{2, "encode.yaml read.window_hu=[-1000,400]", []string{"was trained in [-1000 1000]"}},
		{2, "decode.yaml merge.mode=exact decode.checkpoint=models/group.safetensors load.codes=tiles", []string{"merge.mode=exact: ", "norm: group"}},
	} {
		p.refused(c.code, strings.Fields(c.args), c.words...)
	}
}

// Stopped in the middle, codes are whole or not there; the same command makes the rest.
func TestStoppedWhileEncoding(t *testing.T) {
	t.Parallel()
	p := newCodes(t)
	p.must("phantom", "scans", "--size", "48,40,32", "--count", "3", "--seed", "20")
	words := []string{"encode.yaml", "encode.patch=[14,20,20]"}
	p.must(append(words, "save.dir=whole")...)
	r := p.start(words...)
	if !r.until(func() bool { return len(p.events("codes", "written")) > 1 }) {
		t.Fatalf("over before it could be stopped: %s", r.stderr.String())
	}
	r.signal(syscall.SIGTERM)
	p.tells(r.wait(), 75, "interrupted", "what is written is whole")
	p.swept("codes")
	same := func() (n int) {
		t.Helper()
		for _, name := range p.entries("codes") {
			if strings.HasSuffix(name, ".safetensors") {
				n++
				if p.text("codes", name) != p.text("whole", name) {
					t.Errorf("%s isn't whole", name)
				}
			}
		}
		return n
	}
	if n := same(); n < 2 || n >= 13 {
		t.Errorf("%d of 13 were written before the signal told", n)
	}
	p.must(words...)
	if n := same(); n != 13 {
		t.Errorf("%d of 13", n)
	}
}
