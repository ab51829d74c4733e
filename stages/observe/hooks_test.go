package observe

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const secret = "s3cr3t"

// hooksTo are hooks that post to a server, without waiting between tries.
func hooksTo(t *testing.T, url string) *Hooks {
	t.Helper()
	h, err := NewHooks(Options{Webhook: "${BASE}/" + secret, On: []string{"done"}}, func(string) string { return url })
	check(t, err)
	h.wait = time.Millisecond
	return h
}

func TestWebhook(t *testing.T) {
	var bodies []Notice
	var codes []int
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var n Notice
		if err := json.NewDecoder(r.Body).Decode(&n); err != nil || r.URL.Path != "/"+secret || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
		bodies = append(bodies, n)
		code := codes[min(len(bodies), len(codes))-1]
		if code == 302 {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(code)
	}))
	defer server.Close()
	for _, c := range []struct {
		codes []int
		tries int
		fails string
	}{
		{[]int{200}, 1, ""}, {[]int{204}, 1, ""}, {[]int{500, 429, 200}, 3, ""}, {[]int{503}, 3, "webhook: its server answers 503 Service Unavailable"},
		{[]int{404}, 1, "webhook: its server answers 404 Not Found"}, {[]int{302}, 1, "webhook: its server answers 302 Found"},
	} {
		bodies, codes = nil, c.codes
		err := hooksTo(t, server.URL).Tell(t.Context(), Notice{Event: "done", Text: "it is", Metrics: map[string]float64{"val/psnr": 30}})
		if (err == nil) != (c.fails == "") || err != nil && err.Error() != c.fails || len(bodies) != c.tries {
			t.Errorf("%v: %d tries, %v", c.codes, len(bodies), err)
		}
		for _, n := range bodies {
			if n.Event != "done" || n.Text != "it is" || n.Content != n.Text || n.Metrics["val/psnr"] != 30 || n.Exit != nil {
				t.Errorf("%+v", n)
			}
		}
	}
}

// Nobody learns the webhook's address from an error.
func TestWebhookIsSecret(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	url := server.URL
	server.Close()
	if err := hooksTo(t, url).Tell(t.Context(), Notice{Event: "done"}); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("nobody listens: %v", err)
	}
	for _, o := range []Options{{Webhook: "http://[" + secret}, {Webhook: secret}, {Webhook: "$" + "NONE/" + secret}} {
		if _, err := NewHooks(o, func(string) string { return "" }); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%v", err)
		}
	}
	if _, err := NewHooks(Options{Webhook: "$NONE"}, func(string) string { return "" }); err == nil || err.Error() != "webhook: $NONE isn't set in the environment" {
		t.Errorf("%v", err)
	}
}

func TestWebhookThatHangs(t *testing.T) {
	var asked atomic.Int32
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1); <-release }))
	defer server.Close()
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := hooksTo(t, server.URL).Tell(ctx, Notice{Event: "done"}); err == nil || asked.Load() != 1 {
		t.Errorf("%d tries, %v", asked.Load(), err)
	}
}

func TestCommandHook(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs sh")
	}
	path := filepath.Join(t.TempDir(), "said")
	script := fmt.Sprintf(`printf '%%s|%%s|%%s|' "$FLOWRUN_EVENT" "$FLOWRUN_DIR" "$FLOWRUN_TEXT" >%s; cat >>%s`, path, path)
	h, err := NewHooks(Options{Command: []string{"sh", "-c", script}, On: []string{"done", "failed"}}, os.Getenv)
	check(t, err)
	check(t, h.Tell(t.Context(), Notice{Event: "stalled"}))
	if _, err := os.Stat(path); err == nil {
		t.Error("nobody asked for stalled")
	}
	check(t, h.Tell(t.Context(), Notice{Event: "failed", Run: "runs/a", Text: "$(rm -rf /); it's so"}))
	text := read(t, filepath.Dir(path), "said")
	if !strings.HasPrefix(text, "failed|runs/a|$(rm -rf /); it's so|{") || !strings.HasSuffix(text, "}\n") {
		t.Errorf("%q", text)
	}
	h.command = []string{"sh", "-c", "echo why >&2; exit 3"}
	if err := h.Tell(t.Context(), Notice{Event: "done"}); err == nil || err.Error() != "command sh: exit status 3: why" {
		t.Errorf("%v", err)
	}
	t.Setenv("HOOK_TOKEN", "s3cr3t-of-the-environment")
	h.command = []string{"sh", "-c", "echo $1 $HOOK_TOKEN https://host/s3cr3t >&2; exit 3", "me", "Bearer s3cr3t"}
	if err := h.Tell(t.Context(), Notice{Event: "done"}); err == nil || strings.Contains(err.Error(), "s3cr3t") || err.Error() != "command sh: exit status 3: … … …" {
		t.Errorf("%v", err)
	}
	h.command = []string{"sh", "-c", "seq 100000 >&2; exit 3"}
	if err := h.Tell(t.Context(), Notice{Event: "done"}); err == nil || len(err.Error()) > 600 || !strings.HasSuffix(err.Error(), "\n99999\n…") && !strings.HasSuffix(err.Error(), "\n100000") {
		t.Errorf("%v", err)
	}
	h.command = []string{filepath.Join(t.TempDir(), "none")}
	if h.Tell(t.Context(), Notice{Event: "done"}) == nil {
		t.Error("no program, no error")
	}
}
