package configs_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/flowrun/flowrun/configs"
)

// hook has a key that is secret, with a rule that finds fault with it.
type hook struct {
	Token string   `key:"token" secret:"true" doc:"Token."`
	Name  string   `key:"name" doc:"Name."`
	Run   []string `key:"run" secret:"true" doc:"Program and arguments."`
}

// A secret is used, and never written: not in the resolved file, the words of the command line or an error.
func TestSecret(t *testing.T) {
	const secret = "https://hook/s3cr3t"
	load := func(file string, words ...string) (*configs.File, *hook, error) {
		h := new(hook)
		f, err := configs.Load("a.yaml", []byte(file), words, configs.Blocks{
			Top:        map[string]any{"hook": h},
			Stage:      func(string) (any, bool) { return new(hook), true },
			StageNames: []string{"tell"},
		})
		return f, h, err
	}
	f, h, err := load("hook: {token: "+secret+"}\nflow: [tell: {token: other}]\n", "hook.name=n-s", "tell.token=second", "tell.run=[say, -s, s3cr3t]", "hook={run: [s3cr3t], name: m}", "hook.name=n-s")
	if err != nil {
		t.Fatal(err)
	}
	if h.Token != "" || h.Run[0] != "s3cr3t" || f.Stages[0].Options.(*hook).Run[2] != "s3cr3t" || f.Stages[0].Options.(*hook).Token != "second" {
		t.Errorf("got %+v and %+v", h, f.Stages[0].Options)
	}
	resolved, err := f.Resolved()
	if err != nil || strings.Contains(string(resolved), "token") || strings.Contains(string(resolved), "run") && strings.Contains(string(resolved), "s3cr3t") || !strings.Contains(string(resolved), "name: n") {
		t.Errorf("%v: %s", err, resolved)
	}
	if got, want := f.Words(), []string{"hook.name=n-s", "tell.token=…", "tell.run=…", "hook=…", "hook.name=n-s"}; !slices.Equal(got, want) {
		t.Errorf("words %q, want %q", got, want)
	}
	for _, words := range [][]string{{"hook.token=[" + secret + "]"}, {"hook.token={a: " + secret + "}"}, {"hook.token=[" + secret}, {"hook={token: " + secret}, {"tell.run={a: " + secret + "}"}, {"hook.run=[[" + secret + "]]"}} {
		if _, _, err := load("flow: [tell: {}]\n", words...); err == nil || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s: error %v", words, err)
		}
	}
	if _, _, err := load("hook: {token: [" + secret + "]}\nflow: [tell: {}]\n"); err == nil || strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("error %v", err)
	}
}
