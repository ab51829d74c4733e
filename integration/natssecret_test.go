package integration

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each role logs in as its own user, with no more rights than docs/nats-server.conf gives it. No password is in what they say, in
// their runs' folders or in /metrics; a wrong one is refused in one line.
func TestQueueKeepsSecrets(t *testing.T) {
	t.Parallel()
	p := newParts(t)
	n := p.perEpoch()
	conf, err := os.ReadFile("../docs/nats-server.conf")
	p.check(err)
	text := strings.NewReplacer("ctpa", "t", "/var/lib/nats", p.path("nats")).Replace(string(conf))
	secrets := t.TempDir() // beside all that is searched
	login := func(file, user, password string) string {
		path := filepath.Join(secrets, file+".json")
		p.check(os.WriteFile(path, fmt.Appendf(nil, `{"url": "nats://%s", "user": %q, "password": %q}`, p.address, user, password), 0o600))
		return "queue.context=" + path
	}
	as := map[string]string{}
	for _, user := range []string{"admin", "publisher", "worker", "trainer"} {
		password := "geheim-" + user
		text = strings.Replace(text, "$"+strings.ToUpper(user)+"_PASSWORD", password, 1)
		as[user] = login(user, user, password)
	}
	p.config = filepath.Join(secrets, "nats.conf")
	p.check(os.WriteFile(p.config, []byte(text), 0o600))
	p.startServer()
	var said strings.Builder
	hear := func(o outcome) { said.WriteString(o.stdout + o.stderr) }

	hear(p.must("queue", "create", "trainer.yaml", as["admin"]))
	trainer := p.begin("trainer", as["trainer"], "observe.http=0")
	p.begin("worker", as["worker"])
	p.begin("publisher", as["publisher"])
	p.await(func() bool { return p.reached("run") >= 3 })
	served := p.events("run", "serving")
	if len(served) != 1 {
		t.Fatalf("serving %v", served)
	}
	for _, page := range []string{"metrics", ""} {
		_, body := p.get(served[0]["url"].(string) + page)
		if page == "metrics" && !strings.Contains(body, "flowrun_queue_held_messages") {
			t.Errorf("no queue in /metrics: %s", body)
		}
		said.WriteString(body)
	}
	hear(p.must("queue", "trainer.yaml", as["admin"]))
	hear(p.refused(2, []string{"worker.yaml", "run.dir=other", login("wrong", "worker", "geheim-falsch")}, "refuses this client", "role worker"))
	hear(p.refused(2, []string{"queue", "trainer.yaml", as["publisher"]}, "refuses this client"))
	if o := trainer.wait(); o.code != 0 {
		t.Fatalf("exit %d: %s", o.code, o.said())
	}
	p.exact(n, 2)
	for _, r := range p.all {
		r.signal(os.Interrupt)
		hear(r.wait())
	}
	p.check(filepath.WalkDir(p.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), "geheim") {
			t.Errorf("a password is in %s", path)
		}
		return err
	}))
	if strings.Contains(said.String(), "geheim") {
		t.Errorf("a password is told:\n%s", said.String())
	}
}
