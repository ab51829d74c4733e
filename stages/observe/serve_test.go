package observe

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/flowrun/flowrun/stages/pipe"
)

func get(t *testing.T, url, host string) (code int, body string) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	check(t, err)
	q.Host = host
	answer, err := http.DefaultClient.Do(q)
	check(t, err)
	b, err := io.ReadAll(answer.Body)
	check(t, err)
	check(t, answer.Body.Close())
	return answer.StatusCode, string(b)
}

// On loopback a page is for this machine: who names another is sent away.
func TestServe(t *testing.T) {
	s, err := Serve("127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "page") }))
	check(t, err)
	if !s.Loopback || !strings.HasPrefix(s.URL, "http://127.0.0.1:") || strings.HasSuffix(s.URL, ":0/") {
		t.Errorf("%+v", s)
	}
	for _, host := range []string{"", "localhost", "localhost:80", "127.0.0.1:1", "[::1]", "[::1]:7"} {
		if code, body := get(t, s.URL, host); code != 200 || body != "page" {
			t.Errorf("%s: %d %s", host, code, body)
		}
	}
	for _, host := range []string{"evil.example", "evil.example:80", "192.168.0.1", "localhost.evil.example", "[::2]:80"} {
		if code, body := get(t, s.URL, host); code != 403 || strings.Contains(body, "page\n") {
			t.Errorf("%s: %d %s", host, code, body)
		}
	}
	address := strings.TrimSuffix(strings.TrimPrefix(s.URL, "http://"), "/")
	if _, err := Serve(address, nil); err == nil || !strings.HasPrefix(err.Error(), address+": ") || !strings.Contains(err.Error(), "in use") {
		t.Errorf("the same address twice: %v", err)
	}
	s.Close()
	if c, err := net.DialTimeout("tcp", address, time.Second); err == nil {
		_ = c.Close()
		t.Error("still there after Close")
	}
}

func TestServeForOthers(t *testing.T) {
	s, err := Serve("0.0.0.0:0", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "page") }))
	check(t, err)
	defer s.Close()
	if s.Loopback || !strings.HasPrefix(s.URL, "http://localhost:") {
		t.Errorf("%+v", s)
	}
	if code, _ := get(t, s.URL, "gpu.example"); code != 200 {
		t.Errorf("answer %d", code)
	}
}

// scraped is a scrape as Prometheus reads it.
func scraped(t *testing.T, e *Exporter) (values map[string]float64, text string) {
	t.Helper()
	answer := httptest.NewRecorder()
	e.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	text = answer.Body.String()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	check(t, err)
	values = map[string]float64{}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			key := name
			if len(labels) > 0 {
				key += "{" + strings.Join(labels, ",") + "}"
			}
			switch {
			case m.GetGauge() != nil:
				values[key] = m.GetGauge().GetValue()
			case m.GetCounter() != nil:
				values[key] = m.GetCounter().GetValue()
			case m.GetHistogram() != nil:
				values[key+" count"], values[key+" sum"] = float64(m.GetHistogram().GetSampleCount()), m.GetHistogram().GetSampleSum()
			}
		}
	}
	return values, text
}

// A scrape reads as Prometheus reads it, says what is so, and its names are those that Prometheus asks for.
func TestExporter(t *testing.T) {
	r := Reading{Dir: "runs/\"a\"\n\xff", Version: "v1", State: "running", States: []string{"running", "done"}, Limit: 100, InUse: 40, Free: 1 << 30, Memory: 1 << 31, Quarantined: 2, Saved: 8,
		Progress: 1.5e9, Queue: &Queue{Held: map[string]int{"trainer": 3}, Waiting: true, Known: true, Patches: 4, Given: 5, Bytes: 6, Limit: 7}, Stages: []pipe.Stat{
			{Stage: "read", In: 3, Out: 2, Busy: 1500 * time.Millisecond, BlockedIn: time.Second, BlockedOut: 2 * time.Second, Bytes: 77, Workers: 4},
			{Stage: "augment[1]", In: 1}},
	}
	e := NewExporter(func() Reading { return r })
	values, _ := scraped(t, e)
	for name := range values {
		if strings.HasPrefix(name, "flowrun_train_step") && !strings.Contains(name, "_total") && !strings.Contains(name, "duration") {
			t.Errorf("%s before the first step", name)
		}
	}
	for step := 9; step <= 10; step++ {
		r.Step = Step{Step: step, Epoch: 1, Loss: 0.5, Recon: 0.4, PSNR: 21, LR: 1e-4, Seconds: 2, VoxelsPerSecond: 1000}
		e.Step(r.Step)
	}
	e.Saved()
	r.Total = 20
	r.Validation = map[string]float64{"val/psnr": 30, "val/ema_psnr": 31, "val/psnr_trilinear": 28, "val/mae_hu": 12, "val/codebook_usage": 0.5, "val/psnr_body": 27, "val/psnr_window_hu": 2000, "odd": 1}
	values, text := scraped(t, e)
	for name, want := range map[string]float64{
		`flowrun_queue_held_messages{role=trainer}`: 3, `flowrun_queue_blocked`: 1, `flowrun_queue_waiting_patches`: 4, `flowrun_queue_unacknowledged_patches`: 5,
		"flowrun_train_step": 10, "flowrun_train_steps_total": 2, "flowrun_train_voxels_total": 4000, "flowrun_train_planned_steps": 20,
		"flowrun_train_step_duration_seconds count": 2, "flowrun_train_step_duration_seconds sum": 4, "flowrun_train_loss": 0.5,
		"flowrun_train_recon_loss": 0.4, "flowrun_train_psnr_decibels": 21, "flowrun_train_learning_rate": 1e-4, "flowrun_train_epoch": 1,
		"flowrun_validation_psnr_decibels{weights=raw}": 30, "flowrun_validation_psnr_decibels{weights=ema}": 31,
		"flowrun_validation_psnr_decibels{weights=trilinear}": 28, "flowrun_validation_mae_hounsfield_units{weights=raw}": 12,
		"flowrun_validation_codebook_usage_ratio{weights=raw}": 0.5, "flowrun_validation_psnr_body_decibels{weights=raw}": 27,
		"flowrun_run_state{state=running}": 1, "flowrun_run_state{state=done}": 0, "flowrun_scan_budget_limit_bytes": 100, "flowrun_scan_budget_used_bytes": 40,
		"flowrun_stage_elements_total{direction=in,stage=read}": 3, "flowrun_stage_elements_total{direction=out,stage=read}": 2,
		"flowrun_stage_seconds_total{doing=working,stage=read}": 1.5, "flowrun_stage_seconds_total{doing=waiting_for_output,stage=read}": 2,
		"flowrun_stage_bytes{stage=read}": 77, "flowrun_stage_workers{stage=read}": 4, "flowrun_stage_elements_total{direction=in,stage=augment[1]}": 1,
		"flowrun_quarantined_scans": 2, "flowrun_checkpoint_step": 8, "flowrun_checkpoints_total": 1, "flowrun_disk_free_bytes": 1 << 30, "flowrun_memory_free_bytes": 1 << 31,
		"flowrun_last_progress_timestamp_seconds": 1.5e9,
	} {
		if got, ok := values[name]; !ok || got != want {
			t.Errorf("%s is %g, %v; want %g", name, got, ok, want)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if strings.Contains(name, "odd") {
			t.Errorf("%s", name)
		}
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	check(t, err)
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "flowrun_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}
