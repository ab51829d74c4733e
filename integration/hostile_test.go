package integration

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// hostile are names that a file can have, and that would do harm if they were taken for more than a name.
var hostile = []string{
	`<img src=x onerror=alert(1)>.nii.gz`, "a\nb.nii.gz", "\x1b[31mred\x07.nii.gz", "..\\..\\up.nii.gz", `"quoted",'=1+1.nii.gz`, "\xff\xfe.nii.gz", "\u202ereversed.nii.gz",
	"$(touch owned).nii.gz", "${HOME}.nii.gz", "%s%n.nii.gz", "-rf.nii.gz", strings.Repeat("long", 59) + ".nii.gz",
	strings.Repeat("l", 248) + ".nii.gz",
}

// tree are all files below the place, apart from those of some folders.
func (p *place) tree(but ...string) (list []string) {
	p.Helper()
	p.check(filepath.WalkDir(p.dir, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(p.dir, path)
		if err == nil && d.IsDir() && slices.Contains(but, rel) {
			return filepath.SkipDir
		}
		list = append(list, rel)
		return err
	}))
	return list
}

// What a scan is called decides nothing but what it is called: no file is made outside of the run's folder, nothing that is shown
// is more than text, and no terminal is told anything.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	good := p.text("scans", "phantom-0001.nii.gz")
	names := []string{"../outside/a.nii.gz", p.path("outside", "b.nii.gz"), "scans/../../" + filepath.Base(p.dir) + "/outside/c.nii.gz"}
	p.check(os.MkdirAll(p.path("outside"), 0o777))
	p.check(os.MkdirAll(p.path("lists"), 0o777))
	for _, n := range []string{"a", "b", "c"} {
		p.write("outside/"+n+".nii.gz", good)
	}
	names[2] = p.path(names[2])
	p.write("lists/scans.txt", strings.Join(names, "\n")+"\n")
	for i, n := range hostile {
		text := good
		if i%2 == 1 {
			text = good[:2000] // which goes to quarantine when it is read
		}
		p.write(filepath.Join("scans", n), text)
	}
	before := p.tree("run", "out")
	words := []string{"train.yaml", "read.scans=[scans, lists/scans.txt]", "read.bad_share=0.9", "train.max_steps=12", `train.validate.scans=["*img*", "*red*", "*outside/a*"]`}
	p.write("back.yaml", "flow: [read: {scans: [scans, lists/scans.txt], bad_share: 0.9}, tile: {patch: [16, 16, 8]}, batch, infer: {checkpoint: identity}, merge, measure, write: {dir: out}]\n")
	before = append(before, "back.yaml")
	control := regexp.MustCompile("[\x00-\x08\x0b-\x1f\x7f\u202e]")
	for dir, args := range map[string][]string{"run": words, "out": {"back.yaml"}} {
		o := p.run(args...)
		if o.code != 0 {
			t.Fatalf("exit %d: %q", o.code, o.said())
		}
		for what, text := range map[string]string{"stderr": o.stderr, "stdout": o.stdout, "the log": p.text(dir, "log.jsonl"), "quarantine.jsonl": p.text(dir, "quarantine.jsonl")} {
			if c := control.FindString(text); c != "" {
				t.Errorf("%s: %s holds %q", dir, what, c)
			}
		}
		if text := p.report(dir); strings.Contains(text, "<img src=x") || control.MatchString(text) {
			t.Errorf("%s: a name got out of its place in the report", dir)
		}
		if n := len(p.reasons(dir)); n < 1 {
			t.Errorf("%s: none is in quarantine", dir)
		}
	}
	after := p.tree("run", "out")
	slices.Sort(before)
	slices.Sort(after)
	if !slices.Equal(before, after) {
		t.Errorf("files came or went: %q and %q", before, after)
	}
}

// What opens a server is neither in what is said nor in what is left, whatever fails.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	const secret = "s3cr3t-0123"
	p.check(os.MkdirAll(p.path("home", "nats", "context"), 0o777))
	p.write("home/nats/context/there.json", `{"url": "nats://127.0.0.1:1", "user": "u", "password": "`+secret+`"}`)
	p.write("home/nats/context/torn.json", `{"url": "nats://u:`+secret+`@127.0.0.1:1", "password": "`+secret)
	p.write("publish.yaml", queuePublisher)
	p.write("told.yaml", "observe: {command: [sh, -c, \"echo $TOLD "+secret+"; exit 3\", me, 'Bearer "+secret+"']}\n"+tiny)
	p.write("hook.yaml", "observe: {webhook: \"https://127.0.0.1:1/"+secret+"\", http: 0}\n"+tiny)
	env := []string{"XDG_CONFIG_HOME=" + p.path("home"), "FLOWRUN_WEBHOOK=http://127.0.0.1:1/" + secret, "TOLD=" + secret}
	for _, words := range [][]string{
		{"publish.yaml", "queue.context=there"},
		{"publish.yaml", "queue.context=torn"},
		{"publish.yaml", "queue.url=nats://u:" + secret + "@127.0.0.1:1"},
		{"publish.yaml", "queue.url=nats://" + secret + "@127.0.0.1:1"},
		{"hook.yaml", "train.max_steps=3", "run.dir=hook"},
		{"train.yaml", "train.max_steps=3", "run.dir=env", "observe.webhook=${FLOWRUN_WEBHOOK}"},
		{"told.yaml", "train.max_steps=3", "run.dir=told"},
		{"train.yaml", "train.max_steps=3", "run.dir=words", "observe.command=[cat, '" + secret + "']", "observe.webhook=http://127.0.0.1:1/" + secret},
		{"plan", "told.yaml", "observe.webhook=http://127.0.0.1:1/" + secret},
		{"plan", "told.yaml", "observe.command=[" + secret},
		{"train.yaml", "run.dir=bad", "observe={webhook: [" + secret + "]}"},
		{"train.yaml", "run.dir=bad", "observe={webhook: " + secret},
		{"train.yaml", "train.max_steps=3", "run.dir=bad", "observe.webhook=gopher://" + secret},
		{"train.yaml", "train.max_steps=3", "run.dir=bad", "observe.webhook=[" + secret + "]"},
	} {
		most := limit
		if words[0] == "publish.yaml" {
			most = 3 * time.Second // a server that isn't there is waited for
		}
		r := p.command(most, flowrun(), words...)
		r.cmd.Env = append(os.Environ(), env...)
		p.check(r.cmd.Start())
		r.reap()
		if o := r.wait(); strings.Contains(o.stderr+o.stdout, secret) {
			t.Errorf("%q: says it: %s", words, o.stderr)
		}
	}
	for _, f := range p.tree("home", "scans") {
		info, err := os.Stat(p.path(f))
		p.check(err)
		if info.Mode().IsRegular() && f != "hook.yaml" && f != "told.yaml" && strings.Contains(p.text(f), secret) {
			t.Errorf("%s has it", f)
		}
	}
	if len(p.events("hook", "done")) != 1 || len(p.events("env", "done")) != 1 || len(p.events("told", "done")) != 1 || len(p.events("words", "done")) != 1 {
		t.Error("a webhook that can't be reached is no reason not to train")
	}
}
