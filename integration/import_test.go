package integration

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// lightning is a checkpoint that PyTorch wrote as Lightning would: integration/reference/weights.py.
const lightning = "../flows/testdata/lightning.ckpt"

// newImport is a place with model.ckpt.
func newImport(t *testing.T) *place {
	t.Helper()
	p := newPlace(t)
	b, err := os.ReadFile(lightning)
	p.check(err)
	p.write("model.ckpt", string(b))
	return p
}

func TestImportedWeightsGoOn(t *testing.T) {
	t.Parallel()
	p := newImport(t)
	o := p.must("import", "model.ckpt", "-o", "models", "tile.patch=[16, 16, 8]")
	says(t, o.stdout, "model.ckpt: 74 tensors", "from hyper_parameters: model.downsample [4,2,1]", "assumed: model.quantizer ema, read.window_hu [-1000,1000]", "models/model.flowrun.safetensors")
	const made = "models/model.flowrun.safetensors"
	says(t, p.must("inspect", made).stdout, "import", "[2 1 3 3 3]", "image_discriminator", "verified")
	model := []string{"model.hidden=2", "model.downsample=[4,2,1]", "model.embedding=3", "model.codes=10", "model.norm=group", "model.groups=2", "model.decoder=full"}
	p.must(append([]string{"train.yaml", "train.max_steps=2", "train.init=" + made}, model...)...)
	says(t, p.must("inspect", "run/checkpoints/last.safetensors").stdout, `"downsample":[4,2,1]`)
	p.write("back.yaml", strings.ReplaceAll(back, "  - tile:    {patch: [16, 16, 8], stride: [12, 12, 8]}\n", "  - tile:    {}\n"))
	o = p.must("back.yaml", "infer.checkpoint="+made)
	if strings.Contains(o.stderr, `"level":"warn"`) {
		t.Error(o.stderr)
	}
	p.must("export", made, "weights.safetensors", "--for", "medicaldiffusion")
	p.must("import", "weights.safetensors", "-o", "again.safetensors")

	p.refused(2, []string{"import", "model.ckpt", "-o", "models"}, "models/model.flowrun.safetensors is there already", "--force")
	p.must("import", "model.ckpt", "-o", "models", "--force")
	p.refused(2, []string{"import", "model.ckpt", "-o", "run"}, "run is the folder of a run", "--force")
	p.refused(2, []string{"import", "run/checkpoints/last.safetensors"}, "a checkpoint of flowrun already")
	p.refused(2, []string{"import", "train.yaml"}, "train.yaml: want a state dict")
	p.refused(3, []string{"import", "model.ckpt", "--prefix", "net"}, "no model under", "state_dict.vqgan.")
	p.write("old.pth", "\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")
	p.refused(3, []string{"import", "old.pth"}, "old.pth: not a zip file", "torch.save it anew")
	if _, err := os.Stat(p.path("run", "model.flowrun.safetensors")); !os.IsNotExist(err) {
		t.Error("a refused import wrote a file")
	}
}

// interpreter is a Python that has torch: PYTHON, or python3. Without one the test is skipped.
func interpreter(t testing.TB) string {
	t.Helper()
	python := cmp.Or(os.Getenv("PYTHON"), "python3")
	if err := exec.Command(python, "-c", "import torch").Run(); err != nil {
		t.Skipf("%s has no torch", python)
	}
	return python
}

// torch runs reference/weights.py.
func (p *place) torch() func(args ...string) string {
	p.Helper()
	python := interpreter(p)
	script, err := filepath.Abs("reference/weights.py")
	p.check(err)
	return func(args ...string) string {
		p.Helper()
		o := p.exec(python, append([]string{script}, args...)...).wait()
		if o.code != 0 {
			p.Fatalf("weights.py %v: exit %d: %s", args, o.code, o.stderr)
		}
		return o.stdout
	}
}

// What PyTorch saved comes back to PyTorch with the same bits, and what flowrun exported comes back to flowrun with them.
func TestWeightsGoToPyTorchAndBack(t *testing.T) {
	t.Parallel()
	p := newImport(t)
	torch := p.torch()
	p.must("import", "model.ckpt", "-o", "a.safetensors")
	p.must("export", "a.safetensors", "a.out.safetensors")
	says(t, torch("compare", "a.out.safetensors", "model.ckpt"), "tensors are the same")

	torch("resave", "a.out.safetensors", "b.pth")
	p.must("import", "b.pth", "-o", "b.safetensors", "model.downsample=[4,2,1]", "model.groups=2")
	p.must("export", "b.safetensors", "b.out.safetensors")
	if p.text("a.out.safetensors") != p.text("b.out.safetensors") {
		t.Error("an export that PyTorch loaded and saved is another one")
	}
}

// Discriminators go to PyTorch's modules and back, and training takes them up.
func TestDiscriminatorsGoToPyTorchAndBack(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	torch := p.torch()
	for norm, count := range map[string]int{"spectral": 12, "batch": 11} {
		words := []string{"train.yaml", "train.max_steps=2", "train.gan.weight=1", "train.gan.start=0", "train.gan.channels=4", "train.gan.layers=1", "train.gan.norm=" + norm}
		p.must(append(words, "run.dir="+norm)...)
		a, b := norm+".safetensors", norm+".again.safetensors"
		says(t, p.must("export", norm+"/checkpoints/last.safetensors", a).stdout, ", discriminators")
		says(t, torch("judges", a), fmt.Sprintf("image_discriminator.* %d tensors", count), fmt.Sprintf("video_discriminator.* %d tensors", count))
		torch("resave", a, norm+".pth")
		p.must("import", norm+".pth", "-o", norm+".made.safetensors", "model.downsample=[2,2,2]", "model.norm=channel", "tile.patch=[16,16,8]")
		p.must("export", norm+".made.safetensors", b)
		says(t, torch("compare", a, b), "tensors are the same")
		p.must(append(words, "run.dir=on", "train.init="+norm+".made.safetensors")...)
		p.must("train.yaml", "run.dir=off", "train.max_steps=1", "train.init="+norm+".made.safetensors")
		p.refused(2, append(words, "run.dir=other", "train.gan.channels=8", "train.init="+norm+".made.safetensors"), "image_discriminator.model0.0.")
		p.check(os.RemoveAll(p.path("on")))
		p.check(os.RemoveAll(p.path("off")))
	}
}
