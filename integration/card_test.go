package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/flowrun/flowrun/gpu/cuda"
	"github.com/flowrun/flowrun/gpu/cuda/cudatest"
)

// The program with its CUDA engine, on the stand-in for a driver, or on the driver that FLOWRUN_LIBCUDA names.

// onCard is a run of seconds on the stand-in, and the way back.
const (
	onCard = `run: {dir: run, seed: 7, workers: 1}
model: {hidden: 4, downsample: [2, 2, 1], embedding: 4, codes: 16}
flow:
  - read:       {scans: [scans]}
  - tile:       {mode: random, patch: [8, 8, 4]}
  - batch:      {size: 2}
  - train:      {device: "cuda:0", epochs: 2, max_steps: 6, lr: 3e-4, warmup: 2, ema: 0.9, validate: {scans: ["*0002*"], every: 100, patches: 2}}
  - checkpoint: {every: 2, keep: 2}
`
	backOnCard = `flow:
  - read:  {scans: [scans]}
  - tile:  {patch: [8, 8, 4], stride: [6, 6, 4]}
  - batch: {size: 2}
  - infer: {checkpoint: model.safetensors, device: "cuda:0"}
  - merge
  - write: {dir: recon}
`
	toCodesOnCard = `flow:
  - read:   {scans: [scans]}
  - encode: {checkpoint: model.safetensors, device: "cuda:0"}
  - save:   {dir: codes}
`
	fromCodesOnCard = `flow:
  - load:   {codes: [codes]}
  - decode: {checkpoint: model.safetensors, device: "cuda:0"}
  - merge
  - write:  {dir: decoded}
`
)

// errNoTools says that the CUDA engine can't be built here.
var errNoTools = errors.New("there is nothing to build it with")

// engine is a program with the CUDA engine, and its driver.
var engine = sync.OnceValues(func() (paths [2]string, err error) {
	for _, tool := range []string{"gcc", "g++"} {
		if _, err := exec.LookPath(tool); err != nil {
			return paths, fmt.Errorf("%w: %w", errNoTools, err)
		}
	}
	folder, err := filepath.Abs("../gpu/cuda")
	if err != nil {
		return paths, err
	}
	if paths[1] = os.Getenv(cuda.Library); paths[1] == "" {
		if paths[1], err = cudatest.StandIn(folder); err != nil {
			return paths, fmt.Errorf("%w: a stand-in for the driver: %w", errNoTools, err)
		}
	}
	paths[0] = filepath.Join(built, "flowrun-cuda")
	build := exec.Command("go", "build", "-tags", "cuda", "-trimpath", "-o", paths[0], "../cmd/flowrun") // as make build does
	build.Env = append(os.Environ(), "CGO_ENABLED=1", "CGO_CFLAGS=-O2 -I"+folder+"/include", "CGO_LDFLAGS=-L"+folder+"/nolib")
	if out, err := build.CombinedOutput(); err != nil {
		return paths, fmt.Errorf("%w: %s", err, out)
	}
	return paths, nil
})

// newCard is a place whose flowrun has the CUDA engine, with four small scans.
func newCard(t *testing.T) *place {
	t.Helper()
	paths, err := engine()
	if errors.Is(err, errNoTools) {
		t.Skipf("the CUDA engine is left out: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	p := &place{T: t, dir: t.TempDir(), bin: paths[0], env: []string{cuda.Library + "=" + paths[1]}}
	p.must("phantom", "scans", "--count", "4", "--size", "12,10,8", "--gz")
	p.write("train.yaml", onCard)
	p.write("reconstruct.yaml", backOnCard)
	p.write("encode.yaml", toCodesOnCard)
	p.write("decode.yaml", fromCodesOnCard)
	return p
}

// standsIn reports whether the driver is the stand-in, which can be told what to do.
func (p *place) standsIn() bool { return strings.Contains(p.env[0], "standin") }

// with is the place, with more in the environment.
func (p *place) with(env ...string) *place {
	more := *p
	more.env = slices.Concat(p.env, env)
	return &more
}

// A run on the card is that of the CPU within what bfloat16 costs, is the same when it is killed and goes on, and takes the memory that
// plan names, once. The trained model does on scans what it does on the CPU.
func TestCard(t *testing.T) {
	t.Parallel()
	p := newCard(t)
	p.must("train.yaml", "run.dir=cpu", "train.device=cpu")
	p.with("FLOWRUN_STANDIN_LOG="+p.path("memory")).must("train.yaml", "run.dir=whole")

	r := p.start("train.yaml")
	if !r.until(func() bool { return p.reached("run") >= 3 }) {
		t.Fatalf("over before it could be killed: %s", r.stderr.String())
	}
	if r.kill() {
		t.Fatal("over before it could be killed")
	}
	p.sound("run")
	p.must("train.yaml")
	p.sameRun("whole", "run")
	if len(p.events("run", "resume")) != 1 {
		t.Error("the killed run began anew")
	}

	steps, validations := p.steps("whole")
	others, otherValidations := p.steps("cpu")
	near := func(e, other entry, key string, tolerance float64) {
		t.Helper()
		if got, want := e[key].(float64), other[key].(float64); !(math.Abs(got-want) <= tolerance*(0.02+math.Abs(want))) {
			t.Errorf("step %d: %s is %v, on the CPU %v", e.step(), key, got, want)
		}
	}
	if len(steps) != 6 || len(others) != 6 || len(validations) != 1 {
		t.Fatalf("%d and %d steps, %d validations", len(steps), len(others), len(validations))
	}
	near(steps[0], others[0], "train/recon_loss", 0.01)
	near(steps[0], others[0], "train/grad_norm", 0.05)
	for i := range steps { // a code that flips here or there makes steps differ
		near(steps[i], others[i], "train/recon_loss", 0.05)
	}
	near(validations[0], otherValidations[0], "val/psnr", 0.05)
	near(validations[0], otherValidations[0], "val/ema_psnr", 0.05)
	p.check(os.Symlink("whole/checkpoints/last.safetensors", p.path("model.safetensors")))
	t.Run("memory", p.takesWhatIsPlanned)
	t.Run("verbs", p.verbsSeeTheCard)
	t.Run("back", p.sameModelOnBoth)
}

// takesWhatIsPlanned compares what the stand-in gave with the plan.
func (p *place) takesWhatIsPlanned(t *testing.T) {
	if !p.standsIn() {
		t.Skip("a real driver doesn't say what it gave")
	}
	q := *p
	q.T = t
	var held []float64
	for _, line := range strings.Fields(q.text("memory")) {
		n, err := strconv.ParseFloat(line, 64)
		q.check(err)
		held = append(held, n)
	}
	m := regexp.MustCompile(`(?m)^arena +([0-9.]+) MiB`).FindStringSubmatch(q.must("plan", "train.yaml").stdout)
	if m == nil || len(held) != 2 || held[1] != 0 {
		t.Fatalf("in use: %v (want one allocation, given back), planned: %v", held, m)
	}
	arena, err := strconv.ParseFloat(m[1], 64)
	q.check(err)
	if got := (held[0] - cuda.Overhead) / (1 << 20); math.Abs(got-arena) > 0.02*arena {
		t.Errorf("an arena of %v MiB, planned: %v", got, arena)
	}
}

// verbsSeeTheCard asks those that name a device or measure it.
func (p *place) verbsSeeTheCard(t *testing.T) {
	q := *p
	q.T = t
	for _, c := range []struct{ args, want string }{
		{"devices", `(?m)^cuda:0 .*GiB, compute capability \d+\.\d, driver for CUDA \d+\.\d`},
		{"plan train.yaml", `(?m)^engine +cuda:0 \(.*, bfloat16\)`},
		{"plan reconstruct.yaml infer.device=auto", `(?m)^engine +cuda:0 \(`},
	} {
		if out := q.must(strings.Fields(c.args)...).stdout; !regexp.MustCompile(c.want).MatchString(out) {
			t.Errorf("%s doesn't say %s:\n%s", c.args, c.want, out)
		}
	}
	if out := q.with("CUDA_VISIBLE_DEVICES=").must("plan", "reconstruct.yaml", "infer.device=auto").stdout; !regexp.MustCompile(`(?m)^engine +cpu `).MatchString(out) {
		t.Errorf("auto without a card:\n%s", out)
	}
	var figures struct {
		Engine  string
		Compute []struct{ Seconds float64 }
		Ops     []struct{ Kind string }
		Both    struct{ Seconds float64 }
		Memory  struct {
			Arena int64 `json:"arena"`
			OnGPU bool  `json:"arena_on_gpu"`
			Used  int64 `json:"gpu_used"`
		}
	}
	q.check(json.Unmarshal([]byte(q.must("bench", "train.yaml", "--json", "--steps", "1", "--seconds", "0.1").stdout), &figures))
	f := figures
	if !strings.HasPrefix(f.Engine, "cuda:0 (") || len(f.Compute) != 1 || !(f.Compute[0].Seconds > 0) || len(f.Ops) < 5 || !(f.Both.Seconds > 0) ||
		f.Memory.Arena == 0 || !f.Memory.OnGPU || f.Memory.Used < f.Memory.Arena {
		t.Errorf("bench: %+v", f)
	}
}

// sameModelOnBoth takes scans through the trained model here and there.
func (p *place) sameModelOnBoth(t *testing.T) {
	q := *p
	q.T = t
	for _, c := range []struct{ file, device, dir, more string }{
		{"reconstruct.yaml", "infer.device=", "write.dir=recon-", ""},
		{"encode.yaml", "encode.device=", "save.dir=codes-", ""},
		{"decode.yaml", "decode.device=", "write.dir=decoded-", "load.codes=codes-cpu"},
	} {
		for name, device := range map[string]string{"cuda": "cuda:0", "cpu": "cpu"} {
			words := []string{c.file, c.device + device, c.dir + name}
			if c.more != "" {
				words = append(words, c.more)
			}
			q.must(words...)
		}
	}
	for _, dir := range []string{"recon-", "decoded-"} {
		files, err := filepath.Glob(q.path(dir+"cpu", "*.nii.gz"))
		if err != nil || len(files) != 4 {
			t.Fatalf("%s: %v, %v", dir, files, err)
		}
		near, n := 0, 0
		for _, f := range files {
			a, b := q.picture(dir+"cpu", filepath.Base(f)), q.picture(dir+"cuda", filepath.Base(f))
			q.sameGrid(dir, a, b)
			for i, x := range a.voxels {
				if n++; math.Abs(x-b.voxels[i]) <= 20 { // HU of a window of 2000
					near++
				}
			}
		}
		t.Logf("%s: %d of %d voxels agree", dir, near, n)
		if share := float64(near) / float64(n); share < 0.6 || dir == "decoded-" && share < 0.99 { // a code that flips takes its surroundings along
			t.Errorf("%s: %d of %d voxels agree", dir, near, n)
		}
	}
	same, all := 0, 0
	for i := range 4 {
		name := fmt.Sprintf("phantom-%04d.codes.safetensors", i+1)
		a, b := q.tensors("codes-cpu", name).of("codes"), q.tensors("codes-cuda", name).of("codes")
		if len(a) != len(b) || len(a) == 0 {
			t.Fatalf("%s: %d and %d bytes of codes", name, len(a), len(b))
		}
		for k := 0; k < len(a); k += 2 {
			if all++; a[k] == b[k] && a[k+1] == b[k+1] {
				same++
			}
		}
	}
	t.Logf("%d of %d codes agree", same, all)
	if float64(same) < 0.95*float64(all) {
		t.Errorf("%d of %d codes agree", same, all)
	}
}
