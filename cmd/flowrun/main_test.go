package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/flowrun/flowrun/configs"
)

// binary is the program under test, built once.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "flowrun")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "flowrun")
	out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput()
	code := 1
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s%v\n", out, err)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// flowrun runs the program in dir.
func flowrun(t *testing.T, dir string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	c := exec.Command(binary, args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "COLUMNS=80")
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := c.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

// small is a run that takes seconds on the scans that phantoms makes.
const small = `run: {dir: out}
model: {preset: demo, hidden: 8, codes: 64}
flow:
  - read: {scans: scans}
  - tile: {patch: [16, 16, 16]}
  - augment: {flip: x}
  - augment: {shift_hu: 5}
  - batch: {size: 2}
  - train: {device: cpu, epochs: 100000, validate: {every: 100000}}
  - checkpoint: {every: 100000}
`

// workplace is a folder with small.yaml and two scans.
func workplace(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "small.yaml"), []byte(small), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := flowrun(t, dir, "phantom", "scans", "--count", "2", "--size", "24,20,16"); code != 0 {
		t.Fatalf("phantom: exit %d: %s", code, stderr)
	}
	return dir
}

// Wrong words and wrong files: exit 2, and the last line says what, where, what to do.
func TestUsageErrors(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"good.yaml":  small,
		"typo.yaml":  "flow:\n  - read: {scans: a}\n  - trian: {}\n",
		"many.yaml":  "run: {sed: 1}\nflow:\n  - read: {scans: a}\n  - train: {lr: fast}\n",
		"empty.yaml": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ args, want string }{
		{"", "flowrun: which file? as in flowrun train.yaml; see flowrun --help"},
		{"god.yaml", "flowrun: god.yaml: no such file; did you mean good.yaml?"},
		{"completion nosh", "flowrun: which shell? as in flowrun completion bash (or zsh, fish, powershell); see flowrun completion --help"},
		{"pln good.yaml", "flowrun: pln: no such verb, nor a file; did you mean flowrun plan?"},
		{"train good.yaml", "flowrun: train: no such verb, nor a file; a run is its file alone, as in flowrun good.yaml; see flowrun --help"},
		{"reconstruct", "flowrun: reconstruct: no such verb, nor a file; a run is its file alone, as in flowrun train.yaml; see flowrun --help"},
		{".", "flowrun: .: is a directory; want a .yaml file"},
		{"typo.yaml", `flowrun: typo.yaml:3: trian: unknown stage; did you mean "train"? (stages: scans, publish, subscribe, read, tile, shuffle, augment, batch, train, checkpoint, infer, merge, measure, write, encode, save, load, decode)`},
		{"empty.yaml", "flowrun: empty.yaml: empty: a run needs at least a flow, the list of its stages"},
		{"many.yaml", `many.yaml:1: run.sed: unknown key; did you mean "seed"?
many.yaml:4: train.lr: want a number, got "fast"
flowrun: many.yaml: 2 problems, listed above; flowrun help STAGE documents the keys`},
		{"good.yaml train.lrr=1", `flowrun: command line: train.lrr=1: unknown key; did you mean "lr"?`},
		{"good.yaml augment.flip=x", "flowrun: command line: augment.flip=x: the flow has 2 stages augment: say which, from augment[0] to augment[1]"},
		{"good.yaml model.preset=leen24g", `flowrun: command line: model.preset=leen24g: no preset "leen24g"; did you mean "lean24g"? (presets: demo, lean24g, vqgan3d)`},
		{"good.yaml lr", "flowrun: lr: want key=value words behind the file, such as train.lr=3e-4; see flowrun --help"},
		{"run.seed=3 good.yaml", "flowrun: run.seed=3: the file comes first, as in flowrun train.yaml run.seed=3; see flowrun --help"},
		{"--quite good.yaml", "flowrun: unknown flag: --quite; see flowrun --help"},
		{"plan", "flowrun: want a file, as in flowrun plan train.yaml; see flowrun plan --help"},
		{"plan typo.yaml lr", "flowrun: lr: want key=value words behind the file, such as train.lr=3e-4; see flowrun plan --help"},
		{"bench good.yaml --steps 0", "flowrun: --steps and --seconds want more than 0; see flowrun bench --help"},
		{"demo a b", "flowrun: b: want key=value words behind the file, such as train.lr=3e-4; see flowrun demo --help"},
		{"phantom", "flowrun: want one folder, as in flowrun phantom scans; see flowrun phantom --help"},
		{"phantom a --size 3", `flowrun: invalid argument "3" for "--size" flag: want three numbers, as in 128,128,96; see flowrun phantom --help`},
		{"phantom a --size 8,8,x", `flowrun: invalid argument "8,8,x" for "--size" flag: "x" isn't a number that fits (want three, as in 128,128,96); see flowrun phantom --help`},
		{"inspect", "flowrun: want one file, as in flowrun inspect scan.nii.gz; see flowrun inspect --help"},
		{"import", "flowrun: want a file of weights, as in flowrun import model.ckpt; see flowrun import --help"},
		{"import model.ckpt norm", "flowrun: norm: want key=value words behind the file, such as model.norm=channel; see flowrun import --help"},
		{"import good.yaml", "flowrun: good.yaml: want a state dict: .safetensors, .ckpt, .pth or .pt"},
		{"help lr", "flowrun: lr: no such stage, block, key or verb; did you mean flowrun help train.lr?"},
		{"help zzzz", "flowrun: zzzz: no such stage, block, key or verb; flowrun help lists them"},
	} {
		t.Run(c.args, func(t *testing.T) {
			stdout, stderr, code := flowrun(t, dir, strings.Fields(c.args)...)
			if code != 2 || strings.TrimSpace(stderr) != c.want || stdout != "" {
				t.Errorf("exit %d, stdout %q\ngot  %s\nwant %s", code, stdout, stderr, c.want)
			}
		})
	}
}

// Help names every stage, block and key, and keeps to the width of the terminal.
func TestHelp(t *testing.T) {
	dir := t.TempDir()
	stages, blocks := documents()
	text, stderr, code := flowrun(t, dir, "help")
	if code != 0 || stderr != "" {
		t.Fatalf("exit %d %s", code, stderr)
	}
	narrow(t, text)
	for _, d := range append(stages, blocks...) {
		if !strings.Contains(text, "\n  "+d.Name+" ") {
			t.Errorf("help doesn't list %s", d.Name)
		}
		topic, stderr, code := flowrun(t, dir, "help", d.Name)
		if code != 0 || stderr != "" {
			t.Fatalf("help %s: exit %d %s", d.Name, code, stderr)
		}
		narrow(t, topic)
		for _, k := range configs.Describe(d.Options) {
			if !strings.Contains(topic, "\n  "+d.Name+"."+k.Name) {
				t.Errorf("help %s doesn't document %s", d.Name, k.Name)
			}
		}
		if err := configs.Lint(d.Options); err != nil {
			t.Error(err)
		}
	}
	one, _, _ := flowrun(t, dir, "help", "train", "validate.every")
	if !strings.Contains(one, "train.validate.every\n") || strings.Contains(one, "train.validate.share") {
		t.Errorf("help of one key:\n%s", one)
	}
	for _, verb := range verbs() {
		text, _, code := flowrun(t, dir, verb, "--help")
		if code != 0 || !strings.Contains(text, "Usage:") {
			t.Errorf("%s --help: exit %d\n%s", verb, code, text)
		}
	}
	if text, _, code := flowrun(t, dir, "--help"); code != 0 || !strings.Contains(text, "Start here:") {
		t.Errorf("--help: exit %d\n%s", code, text)
	}
}

func narrow(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		if utf8.RuneCountInString(strings.TrimSuffix(line, "\n")) > 80 {
			t.Errorf("wider than a terminal: %s", line)
		}
	}
}

// The files that are shipped load against the stages as they are.
func TestShippedConfigs(t *testing.T) {
	path := filepath.Join("..", "..", "configs", "train.yaml")
	if _, err := load(path, nil); err != nil {
		t.Error(err)
	}
	for _, preset := range configs.Presets() {
		if _, err := load(path, []string{"model.preset=" + preset}); err != nil {
			t.Error(err)
		}
	}
	demo := filepath.Join(t.TempDir(), "demo.yaml")
	if err := os.WriteFile(demo, configs.Demo, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := load(demo, nil); err != nil {
		t.Error(err)
	}
}

func TestVersion(t *testing.T) {
	for _, word := range []string{"version", "--version"} {
		out, _, code := flowrun(t, t.TempDir(), word)
		if code != 0 || !strings.HasPrefix(out, "flowrun ") || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: exit %d %q", word, code, out)
		}
	}
}

func TestCompletion(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pulmonary.yaml"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"train.yaml\x00tile.m":                      "tile.mode=\t",
		"train.yaml\x00tile.mode=":                  "tile.mode=random\ntile.mode=grid\n",
		"plan\x00t.yaml\x00model.pre":               "model.preset=\t",
		"t.yaml\x00model.preset=":                   "model.preset=demo\n",
		"t.yaml\x00augment.rotate90=":               "augment.rotate90=true\naugment.rotate90=false\n",
		"help\x00shuf":                              "shuffle\n",
		"import\x00":                                "ckpt\npth\npt\n:8\n",
		"import\x00m.ckpt\x00-o\x00":                ":0\n",
		"import\x00m.ckpt\x00--axes\x00z":           "zyx\nzxy\n",
		"export\x00a.safetensors\x00b\x00--for\x00": "medicaldiffusion\n:4\n",
		"import\x00m.ckpt\x00read.":                 "read.window_hu=\tIntensities that become -1 and 1. What lies outside is clipped.\nread.spacing=",
		"import\x00m.ckpt\x00model.n":               "model.norm=\t",
		"":                                          "plan\t",
		"p":                                         "pulmonary.yaml\n:0\n", // beside plan and phantom: no filter of file names
	} {
		out, _, _ := flowrun(t, dir, append([]string{"__complete"}, strings.Split(args, "\x00")...)...)
		if !strings.Contains(out, want) {
			t.Errorf("%q completes to\n%s", args, out)
		}
	}
	if out, _, code := flowrun(t, dir, "completion", "bash"); code != 0 || !strings.Contains(out, "flowrun") {
		t.Errorf("completion bash: exit %d", code)
	}
}

// A reader that goes away, as in flowrun help | head, is no failure, and no signal kills the program.
func TestClosedPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(binary, "help")
	var errs bytes.Buffer
	c.Stdout, c.Stderr = w, &errs
	if err := c.Run(); err != nil || errs.Len() > 0 {
		t.Errorf("%v, %s", err, errs.String())
	}
	_ = w.Close()
}

// The first signal stops a run with a checkpoint and exit 75; the same command goes on from there.
func TestSoftStop(t *testing.T) {
	dir := workplace(t)
	for range 2 {
		c, errs := start(t, dir, "small.yaml")
		if err := c.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait() // its exit code follows
		lines := strings.Split(strings.TrimSpace(errs.String()), "\n")
		if last := lines[len(lines)-1]; c.ProcessState.ExitCode() != 75 || !strings.HasPrefix(last, "flowrun: interrupted") {
			t.Fatalf("exit %d: %s", c.ProcessState.ExitCode(), errs)
		}
		if files, err := filepath.Glob(filepath.Join(dir, "out", "checkpoints", "step-*.safetensors")); err != nil || len(files) == 0 {
			t.Fatalf("no checkpoint: %v", err)
		}
	}
}

// A second signal ends a run at once, with the same exit code.
func TestHardStop(t *testing.T) {
	dir := workplace(t)
	c, errs := start(t, dir, "small.yaml")
	for range 2 {
		if err := c.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.Wait() // its exit code follows
	lines := strings.Split(strings.TrimSpace(errs.String()), "\n")
	if last := lines[len(lines)-1]; c.ProcessState.ExitCode() != 75 || !strings.HasPrefix(last, "flowrun: ") {
		t.Fatalf("exit %d: %s", c.ProcessState.ExitCode(), errs)
	}
}

// start begins a run and returns once it trains.
func start(t *testing.T, dir string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	c := exec.Command(binary, args...)
	c.Dir = dir
	errs := new(bytes.Buffer)
	c.Stderr = errs
	size := func() int64 {
		info, err := os.Stat(filepath.Join(dir, "out", "metrics.jsonl"))
		if err != nil {
			return 0
		}
		return info.Size()
	}
	before := size()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill() }) // when the test failed half-way
	for range 600 {
		if size() > before {
			return c, errs
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("no step was taken in 30 seconds")
	return nil, nil
}
