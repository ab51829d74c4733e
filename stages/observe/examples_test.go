package observe

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/flowrun/flowrun/stages/pipe"
)

// The examples and the documentation name metrics that there are.
func TestExamplesNameMetricsThatThereAre(t *testing.T) {
	r := Reading{States: []string{"running"}, Stages: []pipe.Stat{{Stage: "read"}}, Step: Step{Step: 1}, Total: 2, Queue: &Queue{Held: map[string]int{"worker": 1}, Known: true},
		Validation: map[string]float64{"val/psnr": 1, "val/ssim": 1, "val/mae_hu": 1, "val/codebook_usage": 1}}
	values, _ := scraped(t, NewExporter(func() Reading { return r }))
	var names []string
	for name := range maps.Keys(values) {
		name, _, _ = strings.Cut(name, "{")
		name, _, _ = strings.Cut(name, " ")
		names = append(names, name)
	}
	for _, path := range []string{"examples/alerts.yaml", "examples/alerts_test.yaml", "examples/grafana.json", "monitoring.md"} {
		b, err := os.ReadFile(filepath.Join("../../docs", filepath.FromSlash(path)))
		check(t, err)
		used := regexp.MustCompile(`flowrun_[a-z_]+[a-z]`).FindAllString(string(b), -1)
		if len(used) < 5 {
			t.Errorf("%s names %d metrics", path, len(used))
		}
		for _, name := range used {
			if !slices.Contains(names, name) {
				t.Errorf("%s: there is no %s", path, name)
			}
		}
	}
}

// Prometheus' own tool finds nothing wrong with the rules, and they wake somebody up where they should.
func TestAlerts(t *testing.T) {
	tool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("no promtool here")
	}
	for _, words := range []string{"check rules alerts.yaml", "check config prometheus.yaml", "test rules alerts_test.yaml"} {
		c := exec.CommandContext(t.Context(), tool, strings.Fields(words)...)
		c.Dir = filepath.Join("../../docs", "examples")
		if said, err := c.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v: %s", words, err, said)
		}
	}
}

func TestExamplesAreWellFormed(t *testing.T) {
	for _, path := range []string{"alerts.yaml", "alerts_test.yaml", "prometheus.yaml", "grafana.json"} {
		b, err := os.ReadFile(filepath.Join("../../docs/examples", path))
		check(t, err)
		var v map[string]any
		if strings.HasSuffix(path, ".json") {
			err = json.Unmarshal(b, &v)
		} else {
			err = yaml.Unmarshal(b, &v)
		}
		if err != nil || len(v) == 0 {
			t.Errorf("%s: %v", path, err)
		}
	}
}
