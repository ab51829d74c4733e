package observe

import (
	"strings"
	"testing"
)

func TestAddress(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "8080": "127.0.0.1:8080", ":8080": "127.0.0.1:8080", "localhost:0": "localhost:0", "0.0.0.0:80": "0.0.0.0:80", "[::1]:9": "[::1]:9",
	} {
		if got, err := (&Options{HTTP: text}).Address(); got != want || err != nil {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"here", "a:b", "127.0.0.1", "1:2:3", "127.0.0.1:70000", "http://localhost:80"} {
		if got, err := (&Options{HTTP: text}).Address(); err == nil {
			t.Errorf("%q: %q and no error", text, got)
		}
	}
}

// A webhook that is no URL is refused without being quoted: it may hold a secret.
func TestOptionsCheck(t *testing.T) {
	for _, text := range []string{"s3cr3t", "ftp://host/s3cr3t", "https:///s3cr3t", "https://host:s3cr3t/", "://s3cr3t"} {
		err := (&Options{Webhook: text}).Check()
		if err == nil || strings.Contains(err.Error(), "s3cr3t") || !strings.HasPrefix(err.Error(), "webhook: ") {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, o := range []Options{{}, {Webhook: "https://host/path"}, {Webhook: "$HOOK"}, {Command: []string{"mail", ""}}} {
		if err := o.Check(); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if err := (&Options{Command: []string{" "}}).Check(); err == nil {
		t.Error("a program without a name")
	}
}
