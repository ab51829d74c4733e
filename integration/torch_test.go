package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// bench_torch.py, which flowrun is compared with, builds models of as many parameters as flowrun's, and times whatever it is asked for.
func TestTorchIsTheSameModel(t *testing.T) {
	t.Parallel()
	python := ""
	for _, name := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(name, "-c", "import torch, numpy").Run() == nil {
			python = name
			break
		}
	}
	if python == "" {
		t.Skip("no python3 has PyTorch")
	}
	script, err := filepath.Abs("reference/bench_torch.py")
	if err != nil {
		t.Fatal(err)
	}
	type said struct {
		Preset, Mode, Failed       string
		Parameters, Discriminators int
		Rate                       float64 `json:"patches_per_second"`
		Ceiling                    struct{ FLOPS float64 }
	}
	p := newPlace(t)
	ask := func(words string) (list []said) {
		t.Helper()
		o := p.exec(python, append([]string{"-B", script, "--device", "cpu"}, strings.Fields(words)...)...).wait()
		d := json.NewDecoder(bytes.NewReader([]byte(o.stdout)))
		for d.More() {
			var s said
			p.check(d.Decode(&s))
			list = append(list, s)
		}
		if o.code != 0 || len(list) == 0 {
			t.Fatalf("%s: exit %d: %s", words, o.code, o.stderr)
		}
		return list
	}
	for _, s := range ask("--count") {
		out := p.must("plan", "train.yaml", "model={preset: "+s.Preset+"}", "tile.patch=[32,32,32]", "tile.stride=[32,32,32]", "train.gan.weight=1", "train.gan.start=1", "train.device=cuda:0").stdout
		for _, want := range []string{
			fmt.Sprintf("model %.3g million parameters", float64(s.Parameters)/1e6),
			fmt.Sprintf("discriminators %.3g million parameters", float64(s.Discriminators)/1e6),
		} {
			if !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
				t.Errorf("%s: plan doesn't say %q:\n%s", s.Preset, want, out)
			}
		}
	}
	modes := map[string]bool{}
	for i, s := range ask("--preset demo --patch 16 16 8 --batch 1 --steps 1 --channels 4 --layers 1") {
		switch {
		case i == 0 && s.Ceiling.FLOPS > 0:
		case s.Failed != "" || !(s.Rate > 0):
			t.Errorf("%+v", s)
		default:
			modes[s.Mode] = true
		}
	}
	if len(modes) != 3 {
		t.Errorf("timed: %v", modes)
	}
}
