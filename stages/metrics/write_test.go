package metrics

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestSummaryIsWritten(t *testing.T) {
	sum := measured(t).Summary()
	dir := filepath.Join(t.TempDir(), "out")
	for range 2 { // the second replaces the first
		check(t, sum.Write(dir))
	}
	entries, err := os.ReadDir(dir)
	check(t, err)
	if len(entries) != 2 {
		t.Errorf("folder holds %v", entries)
	}

	text, err := os.ReadFile(filepath.Join(dir, "measures.json"))
	check(t, err)
	var got struct {
		WindowHU     [2]float64 `json:"window_hu"`
		Pooled, Mean map[string]any
		Scans        []map[string]any
	}
	check(t, json.Unmarshal(text, &got))
	if got.WindowHU != wide || len(got.Scans) != 2 || got.Scans[1]["id"] != "b" {
		t.Errorf("%s", text)
	}
	for key, want := range map[string]float64{"mae_hu": sum.Scans[1].MAEHU, "bits_per_voxel": 8 * 4.0 / 24, "trilinear_psnr": sum.Scans[1].Trilinear.PSNR, "body_voxels": 24} {
		if got.Scans[1][key] != want {
			t.Errorf("%s: %v, want %v", key, got.Scans[1][key], want)
		}
	}
	if sum.Mean.PSNRBody != sum.Scans[1].PSNRBody || sum.Mean.Voxels != 48 {
		t.Errorf("mean %+v", sum.Mean)
	}
	if got.Scans[0]["psnr_body"] != nil || got.Pooled["bits_per_voxel"] != 8*4.0/24 || got.Mean["psnr"] != (sum.Scans[0].PSNR+sum.Scans[1].PSNR)/2 {
		t.Errorf("%s", text)
	}

	f, err := os.Open(filepath.Join(dir, "measures.csv"))
	check(t, err)
	records, err := csv.NewReader(f).ReadAll()
	check(t, errors.Join(err, f.Close()))
	var rows []string
	for _, r := range records {
		rows = append(rows, r[0])
		if r[0] == "pooled" && (r[1] != "" || r[2] != "" || r[7] == "") || r[1] == "b" && r[2] != "4" {
			t.Errorf("%v", r)
		}
		for i, key := range records[0] {
			if r[0] == "scan" && i > 6 && r[1] == "b" && r[i] != "" && r[i] != fmt.Sprint(got.Scans[1][key]) {
				t.Errorf("%s: %s, in JSON %v", key, r[i], got.Scans[1][key])
			}
		}
	}
	if !slices.Equal(rows, []string{"row", "scan", "scan", "pooled", "mean"}) {
		t.Errorf("rows %v", rows)
	}
	refuse(t, "not a directory", sum.Write(filepath.Join(dir, "measures.csv", "x")))
	blocked := t.TempDir()
	check(t, os.Mkdir(filepath.Join(blocked, "measures.json"), 0o777))
	refuse(t, "measures.json", sum.Write(blocked))
	if entries, err := os.ReadDir(blocked); err != nil || len(entries) != 1 {
		t.Errorf("folder holds %v (%v)", entries, err)
	}
}

func TestTableIsNarrow(t *testing.T) {
	var b bytes.Buffer
	sum := measured(t).Summary()
	check(t, sum.Table(&b))
	t.Log("\n" + b.String())
	lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	for _, l := range lines {
		if n := utf8.RuneCountInString(l); n > tableWidth {
			t.Errorf("%d columns: %s", n, l)
		}
	}
	for _, want := range []string{"…", "a.nii.gz", "–", "dB", "HU", "pooled", "mean", "tri.", "/vox"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	b.Reset()
	s := new(Study)
	held := 0
	_, err := drain(slabs(made("a", [3]int{1, 1, 1}, []int16{0}, wide, &held), []float32{0}, 1), s)
	check(t, err)
	check(t, s.Summary().Table(&b))
	if strings.Contains(b.String(), "/vox") || strings.Contains(b.String(), "tri") || !strings.Contains(b.String(), "100") {
		t.Errorf("columns without values in\n%s", b.String())
	}
}
