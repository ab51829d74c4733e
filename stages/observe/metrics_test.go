package observe

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

func read(t testing.TB, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func openMetrics(t testing.TB, dir string, step int) *Metrics {
	t.Helper()
	m, err := OpenMetrics(dir, step)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRecordHasTheNamesThatScriptsRelyOn(t *testing.T) {
	dir := t.TempDir()
	m := openMetrics(t, dir, 0)
	check(t, m.Train(Step{Step: 1, Recon: 0.1, LR: 3e-4, VoxelsPerSecond: 12345678.9, BoundBy: `a "b", 5%`, PSNR: math.Inf(1), GradNorm: math.NaN(), Loss: 2e-7}))
	check(t, m.Train(Step{Step: 2, More: map[string]float64{"train/gan_loss": -0.5, "train/r1": 2, "train/codebook_usage": 0.25, "train/unknown": 7}}))
	check(t, m.Validation(Val{Step: 1, Epoch: 2, Metrics: map[string]float64{"val/psnr": 31.25, "val/ema_ssim": 0.5, "val/new": 7}}))
	want := `{"step":1,"epoch":0,"train/recon_loss":0.1,"train/commitment_loss":0,"train/loss":2e-07,"train/perplexity":0,"train/psnr":null,"train/grad_norm":null,"lr":0.0003,"seconds":0,"voxels_per_second":12345679,"bound_by":"a \"b\", 5%","rss_bytes":0,"goroutines":0}
{"step":2,"epoch":0,"train/recon_loss":0,"train/commitment_loss":0,"train/loss":0,"train/perplexity":0,"train/psnr":0,"train/grad_norm":0,"lr":0,"seconds":0,"voxels_per_second":0,"bound_by":"","rss_bytes":0,"goroutines":0,"train/gan_loss":-0.5,"train/r1":2,"train/codebook_usage":0.25}
{"step":1,"epoch":2,"val/recon_loss":null,"val/psnr":31.25,"val/psnr_mean":null,"val/psnr_body":null,"val/ssim":null,"val/hfen":null,"val/hf_ratio":null,"val/mae_hu":null,"val/perplexity":null,"val/codebook_usage":null,"val/psnr_trilinear":null,"val/ssim_trilinear":null,"val/psnr_window_hu":null,"val/scans":null,"val/patches":null,"val/ema_ssim":0.5,"val/new":7}
`
	if got := read(t, dir, "metrics.jsonl"); got != want {
		t.Errorf("metrics.jsonl:\n%s\nwant\n%s", got, want)
	}
	want = `step,epoch,train/recon_loss,train/commitment_loss,train/loss,train/perplexity,train/psnr,train/grad_norm,lr,seconds,voxels_per_second,bound_by,rss_bytes,goroutines,` +
		`val/recon_loss,val/psnr,val/psnr_mean,val/psnr_body,val/ssim,val/hfen,val/hf_ratio,val/mae_hu,val/perplexity,val/codebook_usage,val/psnr_trilinear,val/ssim_trilinear,val/psnr_window_hu,val/scans,val/patches,` +
		`val/ema_recon_loss,val/ema_psnr,val/ema_psnr_mean,val/ema_psnr_body,val/ema_ssim,val/ema_hfen,val/ema_hf_ratio,val/ema_mae_hu,val/ema_perplexity,val/ema_codebook_usage,` +
		`train/ssim_loss,train/perceptual_loss,train/gan_loss,train/disc_loss,train/gan_feat_loss,train/gan_weight,train/logits_real,train/logits_fake,train/disc_grad_norm,train/r1,train/codebook_usage,train/codebook_restarts
1,0,0.1,0,2e-07,0,,,0.0003,0,12345679,"a ""b"", 5%",0,0,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,
2,0,0,0,0,0,0,0,0,0,0,,0,0,,,,,,,,,,,,,,,,,,,,,,,,,,,,-0.5,,,,,,,2,0.25,
1,2,,,,,,,,,,,,,,31.25,,,,,,,,,,,,,,,,,,0.5,,,,,,,,,,,,,,,,,
`
	if got := read(t, dir, "metrics.csv"); got != want {
		t.Errorf("metrics.csv:\n%s\nwant\n%s", got, want)
	}
}

func TestResumeDropsWhatTheRunRepeats(t *testing.T) {
	dir := t.TempDir()
	m := openMetrics(t, dir, 0)
	for s := 1; s <= 5; s++ {
		check(t, m.Train(Step{Step: s}))
		if s%2 == 0 {
			check(t, m.Validation(Val{Step: s}))
		}
	}
	check(t, m.Close())
	whole, table := read(t, dir, "metrics.jsonl"), read(t, dir, "metrics.csv")

	m = openMetrics(t, dir, 3)
	if got := steps(t, dir); got != "1 2 2v 3" {
		t.Errorf("resumed from 3: %s", got)
	}
	check(t, m.Train(Step{Step: 4}))
	check(t, m.Validation(Val{Step: 4}))
	check(t, m.Train(Step{Step: 5}))
	check(t, m.Close())
	if read(t, dir, "metrics.jsonl") != whole || read(t, dir, "metrics.csv") != table {
		t.Error("the files of a resumed run differ from those of one that wasn't")
	}
	openMetrics(t, dir, 0)
	if got := steps(t, dir); got != "" {
		t.Errorf("a new run kept %s", got)
	}
}

// steps lists the rows of metrics.csv after checking that metrics.jsonl has the same.
func steps(t testing.TB, dir string) string {
	t.Helper()
	rows, err := csv.NewReader(strings.NewReader(read(t, dir, "metrics.csv"))).ReadAll()
	check(t, err)
	var list []string
	for _, line := range strings.SplitAfter(read(t, dir, "metrics.jsonl"), "\n") {
		if line == "" {
			continue
		}
		var o map[string]any
		check(t, json.Unmarshal([]byte(line), &o))
		text := strconv.Itoa(int(o["step"].(float64)))
		if _, ok := o["val/psnr"]; ok {
			text += "v"
		}
		list = append(list, text)
	}
	if len(rows) != len(list)+1 {
		t.Errorf("metrics.csv has %d rows, metrics.jsonl %d lines", len(rows)-1, len(list))
	}
	return strings.Join(list, " ")
}

// A kill may leave any beginning of either file, or what a power cut leaves.
func TestOpenMetricsHealsTornFiles(t *testing.T) {
	whole := t.TempDir()
	m := openMetrics(t, whole, 0)
	for s := 1; s <= 3; s++ {
		check(t, m.Train(Step{Step: s, BoundBy: "train 97%"}))
	}
	check(t, m.Close())
	record, table := read(t, whole, "metrics.jsonl"), read(t, whole, "metrics.csv")
	ends := []string{"", "1", "1 2", "1 2 3"}
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		cut := rapid.IntRange(0, len(record)).Draw(rt, "record")
		tableCut := rapid.IntRange(0, len(table)).Draw(rt, "table")
		junk := rapid.SampledFrom([]string{"", "\x00\x00\x00", "{}\n", "null\n", "\x00\n", `{"step":"x"}` + "\n"}).Draw(rt, "junk")
		check(t, os.WriteFile(filepath.Join(dir, "metrics.jsonl"), []byte(record[:cut]+junk), 0o666))
		check(t, os.WriteFile(filepath.Join(dir, "metrics.csv"), []byte(table[:tableCut]), 0o666))
		check(t, os.WriteFile(filepath.Join(dir, "metrics.csv.tmp"), []byte("left behind"), 0o666))
		m := openMetrics(t, dir, 3)
		check(t, m.Close())
		want := ends[strings.Count(record[:cut], "\n")]
		if got := steps(t, dir); got != want {
			rt.Fatalf("%q: got %q, want %q", record[:cut]+junk, got, want)
		}
		if got := read(t, dir, "metrics.csv"); !strings.HasPrefix(table, got) {
			rt.Fatalf("metrics.csv:\n%s", got)
		}
	})
	left, err := filepath.Glob(filepath.Join(dir, "*.tmp"))
	check(t, err)
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// full is a file on a disk that has room for so many bytes.
type full struct {
	file
	room *int
}

func (f full) Write(b []byte) (int, error) {
	if len(b) <= *f.room {
		*f.room -= len(b)
		return f.file.Write(b)
	}
	n, _ := f.file.Write(b[:*f.room])
	*f.room = 0
	return n, syscall.ENOSPC
}

func TestAFullDiskLeavesWholeLines(t *testing.T) {
	for room := 0; room < 700; room += 9 {
		dir := t.TempDir()
		m := openMetrics(t, dir, 0)
		left := room
		m.record.file = full{m.record.file, &left}
		m.table.file = full{m.table.file, &left}
		var err error
		for s := 1; err == nil; s++ {
			err = m.Train(Step{Step: s})
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		left = 1 << 20
		check(t, m.Train(Step{Step: 9}))
		for _, name := range []string{"metrics.jsonl", "metrics.csv"} {
			text := read(t, dir, name)
			for line := range strings.Lines(text) {
				if !strings.HasSuffix(line, "\n") || name == "metrics.jsonl" && !json.Valid([]byte(line)) ||
					name == "metrics.csv" && strings.Count(line, ",") != len(columns())-1 {
					t.Fatalf("room for %d bytes: %s has %q", room, name, line)
				}
			}
			if name == "metrics.jsonl" && !strings.Contains(text, `"step":9`) {
				t.Fatalf("room for %d bytes: what came after is lost:\n%s", room, text)
			}
		}
		check(t, m.Close())
	}
}

// stable is a file of which some reach the disk.
type stable struct {
	file
	size *int64
	m    *Metrics
}

func (s stable) Sync() error {
	*s.size = s.m.record.size
	return s.file.Sync()
}

// What is synced is all that was recorded.
func TestSync(t *testing.T) {
	dir := t.TempDir()
	m := openMetrics(t, dir, 0)
	var durable int64
	m.record.file = stable{m.record.file, &durable, m}
	for s := 1; s <= 3; s++ {
		check(t, m.Train(Step{Step: s}))
		check(t, m.Sync())
		if text := read(t, dir, "metrics.jsonl"); durable != int64(len(text)) || strings.Count(text, "\n") != s {
			t.Errorf("step %d: %d bytes are durable of %q", s, durable, text)
		}
	}
}

func TestOpenMetricsMakesTheTableOfAnOlderVersionAnew(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "metrics.jsonl"), []byte(`{"step":1,"lr":1e-4,"gone":5,"bound_by":"read, 5%","train/psnr":null}`+"\n"), 0o666))
	check(t, os.WriteFile(filepath.Join(dir, "metrics.csv"), []byte("step,gone\n1,5\n"), 0o666))
	openMetrics(t, dir, 1)
	got := strings.Split(read(t, dir, "metrics.csv"), "\n")
	if got[0] != strings.Join(columns(), ",") || got[1] != `1,,,,,,,,1e-4,,,"read, 5%"`+strings.Repeat(",", len(columns())-12) {
		t.Errorf("got %q", got)
	}
}

func TestCellsTellFloat32sApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.Float32().Draw(t, "v")
		text, _ := cell(float64(v))
		got, err := strconv.ParseFloat(text, 32)
		if err != nil || float32(got) != v {
			t.Fatalf("%g became %q", v, text)
		}
		if !json.Valid([]byte(text)) {
			t.Fatalf("%q is no JSON", text)
		}
	})
	if text, _ := cell(1e300); text != "1e+300" {
		t.Errorf("1e300 became %q", text)
	}
}

func FuzzHeal(f *testing.F) {
	f.Add([]byte("{\"step\":1,\"lr\":0.5}\n{\"step\":9}\n{\"st"))
	f.Add([]byte("\n\n[]\n{\"step\":1e0}\n{\"step\":1,\"step\":\"a\"}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var once, twice, table strings.Builder
		check(t, copyRecord(&once, strings.NewReader(string(b)), 3))
		check(t, copyRecord(&twice, strings.NewReader(once.String()), 3))
		if once.String() != twice.String() {
			t.Errorf("healed %q, healed again %q", once.String(), twice.String())
		}
		check(t, tabulate(&table, strings.NewReader(once.String()), newHistory()))
		rows, err := csv.NewReader(strings.NewReader(table.String())).ReadAll()
		check(t, err)
		if want := strings.Count(once.String(), "\n") + 1; len(rows) != want {
			t.Errorf("%d rows, want %d", len(rows), want)
		}
	})
}

// A line without an end costs no memory, and those around it are read.
func TestLinesThatAreTooLong(t *testing.T) {
	endless := io.LimitReader(repeated('x'), longest+70000)
	var got []string
	check(t, lines(io.MultiReader(strings.NewReader("a\n\n"), endless, strings.NewReader("\nb\ntorn")), func(line []byte) error {
		got = append(got, string(line))
		return nil
	}))
	if want := []string{"a\n", "\n", "b\n"}; !slices.Equal(got, want) {
		t.Errorf("%d lines (want %q)", len(got), want)
	}
}

// repeated is a byte, for ever.
type repeated byte

func (r repeated) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(r)
	}
	return len(b), nil
}
