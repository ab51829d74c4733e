package integration

import (
	"path/filepath"
	"testing"
)

// A perceptual network comes from torchvision's and lpips' files through the script, or as it is from what torch.save wrote: the loss is the
// same.
func TestPerceptualWeightsFromPyTorch(t *testing.T) {
	t.Parallel()
	python := interpreter(t)
	reference, err := filepath.Abs("reference")
	p := newPlace(t)
	p.check(err)
	torch := func(code int, script string, args ...string) outcome {
		o := p.exec(python, append([]string{"-B", filepath.Join(reference, script)}, args...)...).wait()
		if o.code != code {
			t.Fatalf("%s %v: exit %d: %s", script, args, o.code, o.stderr)
		}
		return o
	}
	torch(0, "lpips.py", "weights", ".")
	says(t, torch(0, "lpips_weights.py", "both.safetensors", "vgg16.pth", "vgg.pth").stdout, "both.safetensors: 31 tensors")
	says(t, torch(1, "lpips_weights.py", "heads.safetensors", "vgg.pth").stderr, "not in these files: features.0.weight")

	words := []string{"train.yaml", "tile.patch=[16,16,16]", "train.max_steps=2", "train.perceptual.weight=1"}
	train := func(dir, file string) (losses []any) {
		p.must(append(words, "run.dir="+dir, "train.perceptual.file="+file)...)
		steps, _ := p.steps(dir)
		for _, e := range steps {
			losses = append(losses, e["train/perceptual_loss"])
		}
		return losses
	}
	a, b := train("a", "both.safetensors"), train("b", "lpips.pth")
	if len(a) != 2 || a[0] != b[0] || a[1] != b[1] || a[0].(float64) <= 0 {
		t.Errorf("LPIPS %v through the script, %v from torch.save", a, b)
	}
	p.refused(2, append(words, "train.perceptual.file=vgg16.pth"), "vgg16.pth: not a zip file")
	p.refused(2, append(words, "train.perceptual.file=vgg.pth"), "vgg.pth: features.0.weight is missing", "linear heads alone", "docs/perceptual.md")
	p.refused(2, words, "train.perceptual.file: lpips-vgg16.safetensors: no such file")
}
