package integration

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// report is a run's report.html: whole, and in need of nothing from elsewhere.
func (p *place) report(dir string) string {
	p.Helper()
	text := p.text(dir, "report.html")
	if !strings.HasPrefix(text, "<!doctype html>") || !strings.HasSuffix(text, "</html>\n") {
		p.Errorf("%s/report.html isn't whole", dir)
	}
	if m := regexp.MustCompile(`(src|href)="(https?:)?//`).FindString(text); m != "" {
		p.Errorf("%s/report.html has %s", dir, m)
	}
	return text
}

// said checks that a report has each of words.
func (p *place) reports(dir string, words ...string) {
	p.Helper()
	text := p.report(dir)
	for _, w := range words {
		if !strings.Contains(text, w) {
			p.Errorf("%s/report.html doesn't say %q", dir, w)
		}
	}
}

// told are the notices that a server was posted.
type told struct {
	*httptest.Server
	mu   sync.Mutex
	list []entry
}

// listen is a webhook whose path is a secret.
func listen(t *testing.T) *told {
	w := &told{}
	w.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var e entry
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			t.Error(err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.list = append(w.list, e)
	}))
	t.Cleanup(w.Close)
	return w
}

// events are what the notices were of, and the last of them.
func (w *told) events() (names string, last entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.list {
		name, _ := e["event"].(string)
		names, last = names+" "+name, e
	}
	return strings.TrimSpace(names), last
}

// However a run ends, its report says how, and so does the webhook, whose address is nowhere in the run's folder.
func TestHowARunEnds(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	hook := listen(t)
	words := []string{"train.yaml", "observe.webhook=" + hook.URL + "/s3cr3t", "train.max_steps=12", "observe.report=1"}

	r := p.start(append(words, "train.max_steps=1000", "train.epochs=1000")...)
	if !r.until(func() bool { return p.reached("run") >= 11 }) {
		t.Fatal("over before it could be stopped")
	}
	r.signal(syscall.SIGTERM)
	if o := r.wait(); o.code != 75 {
		t.Fatalf("exit %d", o.code)
	}
	p.reports("run", "Interrupted at step", "The same command goes on from there", "Held-out scans", "data:image/jpeg", "phantom-0002", ">PSNR", "train.epochs=1000")
	if names, last := hook.events(); names != "interrupted" || last["exit"] != 75.0 || last["run"] != "run" || !strings.Contains(last["text"].(string), "Interrupted at step") {
		t.Errorf("told of %s: %v", names, last)
	}

	p.must("train.yaml", "train.max_steps=40", "observe.webhook="+hook.URL+"/s3cr3t", "run.dir=done")
	p.reports("done", "Done: 40 steps in", "beside validation and checkpoints", "dB with EMA weights", "the trilinear baseline", "train.max_steps=80", "Where the time went", "flowrun train.yaml")
	p.must("train.yaml", "train.max_steps=40", "run.dir=done") // has done it already
	p.reports("done", "Done: 40 steps in", "train.max_steps=80", "data:image/jpeg")
	names, last := hook.events()
	metrics, _ := last["metrics"].(map[string]any)
	if names != "interrupted done" || last["exit"] != 0.0 || last["step"] != 40.0 || metrics["val/psnr"] == nil || last["report"] != "done/report.html" {
		t.Errorf("told of %s: %v", names, last)
	}

	files, err := filepath.Glob(p.path("done", "events.out.tfevents.*"))
	p.check(err)
	if len(files) != 1 {
		t.Fatalf("event files %v", files)
	}
	b, err := os.ReadFile(files[0])
	p.check(err)
	for _, w := range []string{"brain.Event:2", "train/recon_loss", "val/psnr_trilinear", "val/codes", "val/sample", "\x89PNG"} {
		if !strings.Contains(string(b), w) {
			t.Errorf("the event file has no %q", w)
		}
	}

	p.refused(4, append(words, "run.dir=diverged", "train.lr=1e30", "train.warmup=0"), "diverged")
	p.reports("diverged", "Diverged: ", "isn&#39;t finite", "train.lr=5e&#43;29")
	if names, _ = hook.events(); names != "interrupted done diverged" {
		t.Errorf("told of %s", names)
	}

	p.check(os.Remove(p.path("scans", "phantom-0002.nii.gz")))
	p.refused(2, append(words, "run.dir=done", "train.validate.scans=[none*]"))
	p.reports("done", "Done: 40 steps") // a mistake on the command line leaves it
	for _, dir := range []string{"run", "done", "diverged"} {
		p.check(filepath.WalkDir(p.path(dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			if strings.Contains(string(b), "s3cr3t") {
				t.Errorf("%s has the webhook's secret", path)
			}
			return err
		}))
	}
}

// A run on the way back is reported likewise.
func TestReportOfAReconstruction(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.write("back.yaml", "flow: [read: {scans: [scans]}, tile: {patch: [16, 16, 8]}, batch, infer: {checkpoint: identity}, merge, measure, write: {dir: out}]\n")
	p.must("back.yaml")
	p.reports("out", "Done: 7 scans in", "Scans, the worst first", "phantom-0006.nii", "data:image/jpeg")
}

// While it goes on a run can be looked at, asked for its health and scraped.
func TestWatchedLive(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	r := p.start("train.yaml", "observe.http=0", "train.epochs=100000", "train.max_steps=0")
	if !r.until(func() bool { return p.reached("run") >= 11 }) {
		t.Fatalf("over: %s", r.stderr.String())
	}
	served := p.events("run", "serving")
	if len(served) != 1 {
		t.Fatalf("serving %v", served)
	}
	url, _ := served[0]["url"].(string)
	get := func(path string) (code int, body string) { return p.get(url + path) }
	for path, want := range map[string]string{
		"": "<!doctype html>", "live": "waiting for", "healthz": "ok", "readyz": "ok", "samples/step-00000010.png": "\x89PNG",
	} {
		if code, body := get(path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("/%s: %d, without %q", path, code, want)
		}
	}
	if _, body := get(""); !strings.Contains(body, `src="samples/step-00000010.png"`) || strings.Contains(body, "data:image") || !strings.Contains(body, "Volume") {
		t.Error("the live page's pictures are links, and it has the graph")
	}
	for _, path := range []string{"config.yaml", "samples/..%2fconfig.yaml", "samples/step-00000011.png", "samples/", "debug/pprof/"} {
		if code, _ := get(path); code != 404 {
			t.Errorf("/%s: %d", path, code)
		}
	}
	_, text := get("metrics")
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	p.check(err)
	for _, name := range []string{"flowrun_train_step", "flowrun_train_steps_total", "flowrun_validation_psnr_decibels", "flowrun_stage_seconds_total", "flowrun_scan_budget_used_bytes", "go_goroutines"} {
		if families[name] == nil {
			t.Errorf("no %s", name)
		}
	}
	if step := families["flowrun_train_step"].GetMetric()[0].GetGauge().GetValue(); step < 11 {
		t.Errorf("step %g", step)
	}
	p.refused(2, []string{"train.yaml", "run.dir=other", "observe.http=" + strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/")}, "observe.http", "in use")
	r.signal(syscall.SIGTERM)
	if o := r.wait(); o.code != 75 {
		t.Errorf("exit %d", o.code)
	}
}

// A service manager hears that the run has started, is alive, how far it is, and that it stops.
func TestServiceManager(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	dir, err := os.MkdirTemp("", "notify") // a socket's path must be short
	p.check(err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Skip("no such sockets here: ", err)
	}
	defer func() { _ = c.Close() }()
	r := p.exec("sh", "-c", "NOTIFY_SOCKET="+socket+" WATCHDOG_USEC=3000000 exec "+flowrun()+" train.yaml train.epochs=100000 train.max_steps=0")
	p.check(c.SetReadDeadline(time.Now().Add(limit)))
	hears := func(want string) {
		t.Helper()
		for {
			var b [512]byte
			n, err := c.Read(b[:])
			p.check(err)
			if strings.HasPrefix(string(b[:n]), want) {
				return
			}
		}
	}
	hears("READY=1")
	hears("STATUS=Step ")
	hears("WATCHDOG=1")
	hears("WATCHDOG=1")
	r.signal(syscall.SIGTERM)
	hears("STOPPING=1")
	if o := r.wait(); o.code != 75 {
		t.Errorf("exit %d", o.code)
	}
}
