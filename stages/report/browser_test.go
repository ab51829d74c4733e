package report

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// browser is Chromium, or the test is skipped.
func browser(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("no Chromium here")
	return ""
}

// A real browser shows the page: as wide as a phone and a desk, it needs no scrolling sideways, no text of it runs, its
// script does, and a finger on a chart says what is there.
func TestPageInABrowser(t *testing.T) {
	page := full(Done)
	mux := http.NewServeMux()
	mux.HandleFunc("/report.html", func(w http.ResponseWriter, _ *http.Request) {
		if err := page.Write(w); err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprint(w, `<!doctype html><iframe id="a" width="360" height="800" src="/report.html"></iframe><iframe id="b" width="1280" height="800" src="/report.html"></iframe>
<pre id="said"></pre><script>
onload = () => {
	let said = "";
	for (const id of ["a", "b"]) {
		const frame = document.getElementById(id), d = frame.contentDocument, w = frame.contentWindow;
		const chart = d.querySelector("svg.chart"), box = chart.getBoundingClientRect();
		chart.dispatchEvent(new w.PointerEvent("pointermove", {bubbles: true, clientX: box.left + box.width / 2, clientY: box.top + 50}));
		said += id + " over=" + (d.documentElement.scrollWidth - d.documentElement.clientWidth) +
			" owned=" + (d.title === "owned") + " tip=" + (!d.getElementById("tip").hidden) + " says=" + JSON.stringify(d.getElementById("tip").textContent) +
			" letters=" + (chart.querySelector("text").getBoundingClientRect().height > 8) + " images=" + d.images.length + "\n";
	}
	document.getElementById("said").textContent = said;
};
</script>`)
	})
	said := browse(t, mux)
	for _, id := range []string{"a", "b"} {
		if !strings.Contains(said, id+" over=0 owned=false tip=true says=") || !strings.Contains(said, "letters=true images=1") {
			t.Errorf("%s: %s", id, said)
		}
	}
	if !strings.Contains(said, `17.99\n`) || !strings.Contains(said, "19.56") { // 20 + sin(18/5)
		t.Errorf("the finger is on another point: %s", said)
	}
}

// The live page asks its server for what has changed, and keeps open what was opened; the report of a run that was killed says
// that it is old.
func TestPagesThatChange(t *testing.T) {
	live, late := full(Running), full(Running)
	live.Live = true
	mux := http.NewServeMux()
	mux.HandleFunc("/live.html", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Security-Policy", Policy())
		if err := live.Write(w); err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("/live", func(w http.ResponseWriter, _ *http.Request) {
		fresh := full(Running)
		fresh.Outcome = "fresh"
		if err := fresh.WriteBody(w); err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("/late.html", func(w http.ResponseWriter, _ *http.Request) {
		if err := late.Write(w); err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprint(w, `<!doctype html><iframe id="a" src="/live.html"></iframe><iframe id="b" src="/late.html"></iframe><pre id="said"></pre><script>
onload = () => {
	const live = document.getElementById("a").contentDocument, late = document.getElementById("b").contentDocument;
	live.getElementById("config").open = true;
	setTimeout(() => {
		document.getElementById("said").textContent = "outcome=" + live.querySelector("h1").textContent + " open=" + live.getElementById("config").open +
			" files=" + live.getElementById("files").open + " late=" + !late.querySelector(".late").hidden + " livelate=" + !live.querySelector(".late").hidden;
	}, 4500);
};
</script>`)
	})
	if said := browse(t, mux); said != "outcome=fresh open=true files=false late=true livelate=false" {
		t.Errorf("got %s", said)
	}
}

// browse has Chromium open / and returns what the element said has in the end.
func browse(t *testing.T, h http.Handler) string {
	t.Helper()
	chromium := browser(t)
	server := httptest.NewServer(h)
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dom, err := exec.CommandContext(ctx, chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--user-data-dir="+t.TempDir(),
		"--virtual-time-budget=8000", "--dump-dom", server.URL).Output()
	if err != nil {
		t.Fatal(err)
	}
	_, said, _ := strings.Cut(string(dom), `id="said">`)
	said, _, _ = strings.Cut(said, "</pre>")
	return said
}
