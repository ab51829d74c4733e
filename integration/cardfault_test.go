package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/gpu/cuda"
)

// A card that can't be used, is too small or fails as the run begins is refused before a scan is read, in one line that says what,
// where, and what to do.
func TestCardIsRefused(t *testing.T) {
	t.Parallel()
	p := newCard(t)
	if !p.standsIn() {
		t.Skip("a real driver has no faults on demand")
	}
	p.must("train.yaml", "run.dir=model", "train.device=cpu", "train.max_steps=1")
	p.check(os.Symlink("model/checkpoints/last.safetensors", p.path("model.safetensors")))
	// One that is read is set aside, and the run goes on: its header is good.
	p.spoil("phantom-0003.nii.gz")
	const advice = "set it to cpu or auto, or see flowrun devices"
	for _, c := range []struct {
		code  int
		env   string
		args  string
		words []string
	}{
		{2, "FLOWRUN_LIBCUDA=none.so", "train.yaml", []string{"train.yaml:7: train.device: cuda:0: no usable NVIDIA driver: none.so: cannot open", advice}},
		{2, "FLOWRUN_LIBCUDA=none.so", "reconstruct.yaml", []string{"reconstruct.yaml:5: infer.device: cuda:0: no usable NVIDIA driver", advice}},
		{2, "FLOWRUN_STANDIN_FAULT=cuInit=803@1", "train.yaml", []string{"train.device: cuda:0: no usable NVIDIA driver: cuInit: error 803", advice}},
		{2, "FLOWRUN_STANDIN_VERSION=10020", "train.yaml", []string{"cuda:0: the NVIDIA driver is for CUDA 10.2", "update it", advice}},
		{2, "FLOWRUN_STANDIN_CAPABILITY=7.5", "train.yaml", []string{"has compute capability 7.5 (want 8.0 or more", advice}},
		{2, "FLOWRUN_STANDIN_CARDS=0", "train.yaml", []string{"cuda:0: the NVIDIA driver lists no GPU", advice}},
		{2, "CUDA_VISIBLE_DEVICES=", "train.yaml", []string{"the NVIDIA driver lists no GPU", `CUDA_VISIBLE_DEVICES is "" (unset it)`, advice}},
		{2, "", "train.yaml train.device=cuda:1", []string{"train.device=cuda:1: cuda:1: there is no such GPU, the last is cuda:0", advice}},
		{2, "", "train.yaml train.memory=3MiB", []string{"train.yaml: tile.patch: [8, 8, 4]: memory: the model needs", "micro_batch: 1 needs", "the limit is train.memory", "would fit"}},
		{2, fmt.Sprintf("FLOWRUN_STANDIN_MEMORY=%d", cuda.Overhead+cuda.Spare+3<<20), "train.yaml", []string{"tile.patch: [8, 8, 4]: memory: the model needs", "micro_batch: 1 needs", "what the device has free", "would fit"}},
		{2, fmt.Sprintf("FLOWRUN_STANDIN_MEMORY=%d", cuda.Overhead+cuda.Spare), "train.yaml", []string{"memory: the model needs", "what the device has free", "no patch fits"}},
		{1, "FLOWRUN_STANDIN_FAULT=cuMemAlloc_v2=2@1", "train.yaml", []string{"cuda:0: ", "1024 MiB are free", "out of device memory", "nvidia-smi lists who holds it"}},
		{1, "FLOWRUN_STANDIN_FAULT=cuMemHostAlloc=2@1", "train.yaml", []string{"pinned host memory"}},
		{1, "FLOWRUN_STANDIN_FAULT=cuDevicePrimaryCtxRetain=2@1", "train.yaml", []string{"cuda:0: ", "out of device memory", "nvidia-smi lists who holds it"}},
		{1, "FLOWRUN_STANDIN_FAULT=cuModuleLoadDataEx=218@2", "train.yaml", []string{"cuda:0: ", "couldn't compile the kernels", "error 218", "ptxas application ptx input, line 1; fatal", "update the NVIDIA driver"}},
		{1, "FLOWRUN_STANDIN_FAULT=cuModuleLoadDataEx=222@1", "bench train.yaml", []string{"couldn't compile the kernels", "error 222", "update the NVIDIA driver"}},
	} {
		q := p
		if c.env != "" {
			q = p.with(c.env)
		}
		q.refused(c.code, strings.Fields(c.args), c.words...)
		if _, err := os.Stat(p.path("run", "checkpoints", "last.safetensors")); err == nil {
			t.Errorf("%s: a refused run left a checkpoint", c.env)
		}
		if n := len(p.events("run", "quarantine")); n > 0 {
			t.Fatalf("%s: a scan was read before the card was refused", c.env)
		}
	}
	// devices and plan answer all the same.
	for _, c := range []struct{ env, args, want string }{
		{"FLOWRUN_LIBCUDA=none.so", "devices", "none: no usable NVIDIA driver: none.so"},
		{"CUDA_VISIBLE_DEVICES=", "devices", `CUDA_VISIBLE_DEVICES is ""`},
		{"FLOWRUN_STANDIN_VERSION=10020", "devices", "can't be used: the NVIDIA driver is for CUDA 10.2"},
		{"FLOWRUN_STANDIN_CARDS=2", "devices", "cuda:1"},
		{"FLOWRUN_STANDIN_CARDS=0", "plan train.yaml", "not here"},
	} {
		if out := p.with(c.env).must(strings.Fields(c.args)...).stdout; !strings.Contains(out, c.want) || !strings.Contains(out, "cpu") && c.args == "devices" {
			t.Errorf("%s %s doesn't say %q:\n%s", c.env, c.args, c.want, out)
		}
	}
}

// A card that fails in the middle ends the run with exit code 1 and one line; the last checkpoint is whole, and the same command goes on to
// the bits of a run that nothing happened to.
func TestCardFails(t *testing.T) {
	t.Parallel()
	p := newCard(t)
	if !p.standsIn() {
		t.Skip("a real driver has no faults on demand")
	}
	flow := []string{"train.yaml", "train.max_steps=4", "train.validate.share=0", "train.validate.scans=[]"}
	p.must(append(flow, "run.dir=whole")...)
	for _, c := range []struct{ fault, kind, result string }{
		{"cuGraphLaunch=719", "the device is lost", "error 719"},
		{"cuGraphLaunch=701", "a kernel couldn't be launched", "error 701"},
		{"cuMemcpyHtoDAsync_v2=700", "the device is lost", "cuMemcpyHtoDAsync: error 700"},
	} {
		p.check(os.RemoveAll(p.path("run")))
		failing := p.with("FLOWRUN_STANDIN_FAULT=" + c.fault + "@run/checkpoints/step-00000002.safetensors")
		failing.tells(failing.run(flow...), 1, "train: step ", c.kind, c.result, "nvidia-smi and the system's log may say why",
			"the last checkpoint is run/checkpoints/step-0000000", "the same command goes on from there")
		if p.sound("run") == 0 {
			t.Error("no checkpoint is left")
		}
		p.must(flow...)
		p.sameRun("whole", "run")
	}
}

// A card that could compute faster than it does says why, in the log of what it does, and so does a driver that device: auto passed over. What
// computes is in the log in any case.
func TestCardDoesWithout(t *testing.T) {
	t.Parallel()
	p := newCard(t)
	if !p.standsIn() {
		t.Skip("a real driver is as old as it is")
	}
	for i, c := range []struct{ env, device, computes, want string }{
		{cuda.OwnKernels + "=on", "cuda:0", "cuda:0 (", ""},
		{cuda.OwnKernels + "=off", "cuda:0", "cuda:0 (", "FLOWRUN_OWN_KERNELS is off"},
		{"FLOWRUN_STANDIN_VERSION=11080", "cuda:0", "cuda:0 (", "with one for 12.0 or later"},
		{"FLOWRUN_STANDIN_VERSION=11080", "auto", "cuda:0 (", "with one for 12.0 or later"},
		{"FLOWRUN_STANDIN_VERSION=10020", "auto", "cpu (", "the CPU computes: cuda:0: the NVIDIA driver is for CUDA 10.2"},
		{"FLOWRUN_STANDIN_FAULT=cuInit=803@1", "auto", "cpu (", "the CPU computes: no usable NVIDIA driver: cuInit: error 803"},
		{"FLOWRUN_LIBCUDA=none.so", "auto", "cpu (", ""},
	} {
		dir := fmt.Sprint("run", i)
		p.with("FLOWRUN_STANDIN_CAPABILITY=9.0", c.env).must("train.yaml", "run.dir="+dir, "train.device="+c.device, "train.max_steps=1", "train.validate.share=0", "train.validate.scans=[]")
		said := p.events(dir, "device")
		if c.want == "" && len(said) > 0 || c.want != "" && (len(said) != 1 || !strings.Contains(fmt.Sprint(said[0]["message"]), c.want)) {
			t.Errorf("%s: %v, want %q", c.env, said, c.want)
		}
		if start := p.events(dir, "start"); len(start) != 1 || !strings.HasPrefix(fmt.Sprint(start[0]["device"]), c.computes) {
			t.Errorf("%s: %v, want the device %s", c.env, start, c.computes)
		}
	}
}
